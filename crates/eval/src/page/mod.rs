//! A page of figures, plots and pictures in one file that needs nothing else: to be read years later, or sent to someone.

use std::fmt::Write;
use std::io::Cursor;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};

use crate::report::Report;

/// How the page looks, light and dark, on a phone and on paper.
const STYLE: &str = include_str!("page.css");

/// A page that grows from above.
#[derive(Debug, Clone, Default)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// An empty page.
    pub fn new(title: &str) -> Page {
        Page { title: title.to_string(), body: String::new() }
    }

    /// A heading, and what one should know to read what follows.
    pub fn section(&mut self, heading: &str, note: &str) {
        let _ = write!(self.body, "<h2>{}</h2>\n<p>{}</p>\n", escaped(heading), escaped(note));
    }

    /// A table of figures with their errors.
    pub fn figures(&mut self, reports: &[Report]) {
        // Where nothing was measured by a network, there is no column for one.
        let by = reports.iter().any(|report| !report.features.is_empty());
        let head = ["figure", "value", "±", "n"].into_iter().chain(by.then_some("measured by"));
        let head: String = head.map(|name| format!("<th>{name}</th>")).collect();
        let _ = writeln!(self.body, "<div class=\"wide\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>");
        for report in reports {
            let unit = if report.unit.is_empty() { String::new() } else { format!(" {}", report.unit) };
            let error = report.plus_minus.map(|error| number(error, report.value)).unwrap_or_default();
            let value = format!("{}{}", number(report.value, report.value), escaped(&unit));
            let numbers = [value, error, report.counted()];
            let numbers: String =
                numbers.iter().map(|number| format!("<td class=\"number\">{number}</td>")).collect();
            let by = if by {
                format!("<td class=\"by\">{}</td>", escaped(&report.features))
            } else {
                String::new()
            };
            let _ = writeln!(
                self.body,
                "<tr><td class=\"name\">{}</td>{numbers}{by}</tr>",
                escaped(&report.name)
            );
        }
        self.body += "</tbody></table></div>\n";
    }

    /// An SVG picture of our own making, with what it shows.
    pub fn plot(&mut self, svg: &str, caption: &str) {
        let image = format!("data:image/svg+xml;base64,{}", STANDARD.encode(svg));
        self.figure(&image, caption, "plot");
    }

    /// A picture, with what it shows.
    ///
    /// # Errors
    /// If it has no pixels.
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

    /// The file's text.
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

/// A picture inside an address.
///
/// # Errors
/// If it has no pixels.
pub(crate) fn png_url(picture: &RgbImage) -> Result<String> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).context("cannot encode a picture")?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes.into_inner())))
}

/// `text` as it may stand in HTML, inside of quotes too.
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

/// `value` with as many decimals as `like` needs to show four digits.
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
    fn a_page_holds_all_that_it_shows_and_nothing_breaks_out() {
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
        let from_elsewhere = html.matches("src=").count() - html.matches("src=\"data:").count();
        assert!(from_elsewhere == 0 && !html.contains("<script") && !html.contains("url("));
    }
}
