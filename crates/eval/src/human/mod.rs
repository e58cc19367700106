//! Comparisons by people (paper §3, appendix F, figure 7): a page that shows two pictures of a caption and saves what is said, and what the
//! saved answers of several people come to.

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
    /// What both should show.
    pub caption: String,
    /// Of model A, of model B.
    pub pictures: [RgbImage; 2],
}

/// A page for one person at a time, in one file that needs no network. Which picture stands on the left is another for each person and task;
/// who answers is not told which model drew it.
///
/// # Errors
/// If there is nothing to compare, or a picture has no pixels.
pub fn comparison_page(tasks: &[Comparison]) -> Result<String> {
    ensure!(!tasks.is_empty(), "nothing to compare; wanted at least one caption with two pictures");
    let mut written = Vec::with_capacity(tasks.len());
    for task in tasks {
        let [a, b] = &task.pictures;
        written.push(json!({"caption": task.caption, "pictures": [png_url(a)?, png_url(b)?]}));
    }
    let written = json!({ "id": "ID", "tasks": written }).to_string();
    let written = written.replacen("\"ID\"", &format!("\"{:016x}\"", fnv1a(written.as_bytes())), 1);
    // Nothing in a caption ends the script element that it lies in.
    Ok(include_str!("page.html").replacen("TASKS", &written.replace('<', "\\u003c"), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(caption: &str) -> Comparison {
        Comparison { caption: caption.into(), pictures: [RgbImage::new(2, 2), RgbImage::new(3, 3)] }
    }

    #[test]
    fn a_page_holds_its_tasks_and_no_caption_breaks_out() {
        let page = comparison_page(&[task("</script><b>\"x\"</b>"), task("a cat")]).unwrap();
        assert!(page.contains("\\u003c/script>\\u003cb>\\\"x\\\"") && page.contains("\"caption\":\"a cat\""));
        assert_eq!(page.matches("data:image/png;base64,").count(), 4);
        assert!(!page.contains("http://") && !page.contains("https://"));
        assert_eq!(page, comparison_page(&[task("</script><b>\"x\"</b>"), task("a cat")]).unwrap());
        assert!(comparison_page(&[]).unwrap_err().to_string().contains("nothing to compare"));
    }
}
