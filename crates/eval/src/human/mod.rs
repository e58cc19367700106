//! Human evaluation (paper §3, appendix F, figure 7): a page that shows two pictures per caption
//! and saves a person's answers, and the majority votes over the saved answers of several people.

mod votes;

use anyhow::{Result, ensure};
use image::RgbImage;
use serde_json::json;
use tessera_base::fnv1a;

use crate::page::png_url;

pub use votes::{Hasty, Votes, votes};

/// Two models' pictures of one caption.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The caption that both pictures were generated for.
    pub caption: String,
    /// The picture of model A, then the picture of model B.
    pub pictures: [RgbImage; 2],
}

/// Returns an HTML page for one person at a time, which needs no network. The order of the two
/// pictures depends on the person and the task. The page does not show which model generated which
/// picture.
///
/// # Errors
/// If `tasks` is empty, or a picture has no pixels.
pub fn comparison_page(tasks: &[Comparison]) -> Result<String> {
    ensure!(!tasks.is_empty(), "nothing to compare; wanted at least one caption with two pictures");
    let mut entries = Vec::with_capacity(tasks.len());
    for task in tasks {
        let [a, b] = &task.pictures;
        entries.push(json!({"caption": task.caption, "pictures": [png_url(a)?, png_url(b)?]}));
    }
    let json = json!({ "id": "ID", "tasks": entries }).to_string();
    let json = json.replacen("\"ID\"", &format!("\"{:016x}\"", fnv1a(json.as_bytes())), 1);
    // Escaping `<` prevents a caption from closing the script element that contains it.
    Ok(include_str!("page.html").replacen("TASKS", &json.replace('<', "\\u003c"), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(caption: &str) -> Comparison {
        Comparison { caption: caption.into(), pictures: [RgbImage::new(2, 2), RgbImage::new(3, 3)] }
    }

    #[test]
    fn page_contains_its_tasks_and_escapes_captions() {
        let page = comparison_page(&[task("</script><b>\"x\"</b>"), task("a cat")]).unwrap();
        assert!(page.contains("\\u003c/script>\\u003cb>\\\"x\\\"") && page.contains("\"caption\":\"a cat\""));
        assert_eq!(page.matches("data:image/png;base64,").count(), 4);
        assert!(!page.contains("http://") && !page.contains("https://"));
        assert_eq!(page, comparison_page(&[task("</script><b>\"x\"</b>"), task("a cat")]).unwrap());
        assert!(comparison_page(&[]).unwrap_err().to_string().contains("nothing to compare"));
    }
}
