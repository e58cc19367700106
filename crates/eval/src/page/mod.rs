//! A report of figures, plots and pictures as one self-contained HTML file, for archives and for
//! sending to others.

use std::fmt::Write;
use std::io::Cursor;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};

use crate::report::Report;

/// The style sheet for light and dark mode, small screens and print.
const STYLE: &str = include_str!("page.css");

/// A page. Content is appended at the end.
#[derive(Debug, Clone, Default)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// Creates an empty page.
    pub fn new(title: &str) -> Page {
        Page { title: title.to_string(), body: String::new() }
    }

    /// Appends a heading and a note that explains the following content.
    pub fn section(&mut self, heading: &str, note: &str) {
        let _ = write!(self.body, "<h2>{}</h2>\n<p>{}</p>\n", escaped(heading), escaped(note));
    }

    /// Appends a table of figures with their errors.
    pub fn figures(&mut self, reports: &[Report]) {
        // The column of feature extractors is omitted if no figure needs one.
        let has_features = reports.iter().any(|report| !report.features.is_empty());
        let head =
            ["figure", "value", "±", "n"].into_iter().chain(has_features.then_some("feature extractor"));
        let head: String = head.map(|name| format!("<th>{name}</th>")).collect();
        let _ = writeln!(self.body, "<div class=\"wide\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>");
        for report in reports {
            let unit = if report.unit.is_empty() { String::new() } else { format!(" {}", report.unit) };
            let error = report.plus_minus.map(|error| number(error, report.value)).unwrap_or_default();
            let value = format!("{}{}", number(report.value, report.value), escaped(&unit));
            let numbers = [value, error, report.counted()];
            let numbers: String =
                numbers.iter().map(|number| format!("<td class=\"number\">{number}</td>")).collect();
            let features = if has_features {
                format!("<td class=\"by\">{}</td>", escaped(&report.features))
            } else {
                String::new()
            };
            let _ = writeln!(
                self.body,
                "<tr><td class=\"name\">{}</td>{numbers}{features}</tr>",
                escaped(&report.name)
            );
        }
        self.body += "</tbody></table></div>\n";
    }

    /// Appends a plot of this crate, an SVG text, with a caption.
    pub fn plot(&mut self, svg: &str, caption: &str) {
        let image = format!("data:image/svg+xml;base64,{}", STANDARD.encode(svg));
        self.figure(&image, caption, "plot");
    }

    /// Appends a picture with a caption.
    ///
    /// # Errors
    /// If the picture has no pixels.
    pub fn picture(&mut self, picture: &RgbImage, caption: &str) -> Result<()> {
        self.figure(&png_url(picture)?, caption, "picture");
        Ok(())
    }

    fn figure(&mut self, url: &str, caption: &str, class: &str) {
        let caption = escaped(caption);
        let _ = writeln!(
            self.body,
            "<figure class=\"{class}\"><img src=\"{url}\" alt=\"{caption}\"><figcaption>{caption}</figcaption></figure>"
        );
    }

    /// Returns the HTML text of the page.
    pub fn to_html(&self) -> String {
        let title = escaped(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
            <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
            <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{}</main>\n</body>\n</html>\n",
            self.body
        )
    }
}

/// Returns a data URL that contains the picture as PNG.
///
/// # Errors
/// If the picture has no pixels.
pub(crate) fn png_url(picture: &RgbImage) -> Result<String> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).context("cannot encode a picture")?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes.into_inner())))
}

/// Escapes `text` for HTML, in text and in quoted attributes.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// Formats `value` with the number of decimals that shows about four digits of `like`.
fn number(value: f64, like: f64) -> String {
    let decimals = match like.abs() {
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 0.1 => 3,
        _ => 5,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_self_contained_and_escapes_all_text() {
        let mut page = Page::new("a <b> & \"c\"");
        page.section("Sets", "<script>alert(1)</script>");
        let report =
            Report { unit: "%".into(), plus_minus: Some(1.26), ..Report::new("R@1 'x'", 61.25, 100) };
        page.figures(&[report, Report::new("FID", 0.01234, 5)]);
        page.plot("<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "a curve");
        page.picture(&RgbImage::new(2, 2), "two by \"two\"").unwrap();
        let html = page.to_html();
        for text in [
            "<title>a &lt;b&gt; &amp; &quot;c&quot;</title>",
            "&lt;script&gt;",
            "R@1 &#39;x&#39;",
            ">61.25 %<",
            ">1.26<",
            ">0.01234<",
            "data:image/svg+xml;base64,PHN2",
            "data:image/png;base64,iVBOR",
            "alt=\"two by &quot;two&quot;\"",
        ] {
            assert!(html.contains(text), "{text} is missing");
        }
        let external = html.matches("src=").count() - html.matches("src=\"data:").count();
        assert!(external == 0 && !html.contains("<script") && !html.contains("url("));
    }
}
