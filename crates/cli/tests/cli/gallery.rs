//! Tests of `tessera gallery`.

use std::fs;

use super::pipeline::pipeline;
use super::program::{entries, folder, mistake, succeed};

#[test]
fn gallery_page_shows_all_drawings_and_their_settings() {
    let dir = folder();
    let path = dir.path();
    fs::create_dir_all(path.join("drawings/deeper")).unwrap();
    let draw = |prompt: &str, out: &str, more: &[&str]| {
        let model = pipeline().model();
        let args = ["draw", prompt, "--model", &model, "-n", "1", "--seed", "7", "--out", out];
        succeed(path, &[&args, more].concat());
    };
    draw("a cat", "drawings/b.png", &["--guidance", "2", "--negative", "a dog"]);
    draw("{{title}} <i>", "drawings/deeper/a.png", &[]);
    image::RgbImage::new(4, 4).save(path.join("drawings/other.png")).unwrap();
    fs::write(path.join("drawings/text.png"), "no picture").unwrap();
    let output = succeed(path, &["gallery", "drawings", "--out", "page.html", "--title", "Cats & dogs"]);
    assert_eq!(output.stdout, "page.html: 2 drawings; left out: 2 other PNGs\n");
    let page = fs::read_to_string(path.join("page.html")).unwrap();
    assert_eq!(page.matches("<figure>").count(), 2);
    assert!(page.contains("<title>Cats &amp; dogs</title>") && page.contains("<h2>a cat</h2>"));
    for (name, value) in [("Seed", "7"), ("Guidance", "2"), ("Negative prompt", "a dog"), ("Number", "0")] {
        assert!(page.contains(&format!("<dt>{name}</dt><dd>{value}</dd>")), "{name}");
    }
    // Prompts are escaped, and the page loads nothing from other sites.
    assert!(page.contains("<h2>{{title}} &lt;i&gt;</h2>") && !page.contains("<script"));
    assert!(!page.contains("http://") && !page.contains("https://"));
}

#[test]
fn gallery_of_a_folder_without_drawings_is_an_error() {
    let dir = folder();
    fs::create_dir(dir.path().join("empty")).unwrap();
    image::RgbImage::new(4, 4).save(dir.path().join("empty/other.png")).unwrap();
    for (args, wanted) in [
        (["gallery", "empty"], "holds no drawing: wanted PNGs that `tessera draw` wrote, found 1 other PNG"),
        (["gallery", "none"], "cannot read the folder none"),
    ] {
        let error = mistake(dir.path(), &args);
        assert!(error.contains(wanted), "{error}");
    }
    assert_eq!(entries(dir.path()), ["empty"]);
}
