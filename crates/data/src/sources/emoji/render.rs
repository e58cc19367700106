//! Renders an SVG icon to pixels.

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg;

/// The margin on each side as a fraction of the canvas. With it, a crop of 8/9 of the canvas does
/// not cut the drawing.
const MARGIN: f32 = 0.06;

/// Draws `svg` in the middle of a square of `side` pixels. Returns `None` if nothing is visible on
/// this background.
pub(super) fn render(svg: &str, side: u32, background: [u8; 3]) -> Result<Option<RgbImage>> {
    let tree = usvg::Tree::from_str(svg, &usvg::Options::default()).context("the icon is not valid SVG")?;
    let (width, height) = (tree.size().width(), tree.size().height());
    let canvas = side as f32;
    let scale = canvas * (1.0 - 2.0 * MARGIN) / width.max(height);
    ensure!(scale.is_finite() && scale > 0.0, "the icon has the size {width}x{height}");
    let (left, top) = ((canvas - width * scale) / 2.0, (canvas - height * scale) / 2.0);

    let mut pixmap = Pixmap::new(side, side).with_context(|| format!("cannot draw at {side} pixels"))?;
    let [r, g, b] = background;
    pixmap.fill(Color::from_rgba8(r, g, b, 255));
    resvg::render(&tree, Transform::from_row(scale, 0.0, 0.0, scale, left, top), &mut pixmap.as_mut());

    // The canvas is opaque, so premultiplied colours equal the plain colours.
    let rgb = pixmap.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    let image = RgbImage::from_raw(side, side, rgb).context("the drawing has the wrong size")?;
    Ok(is_visible(&image, background).then_some(image))
}

/// Whether at least one pixel in 500 differs clearly from the background.
fn is_visible(image: &RgbImage, background: [u8; 3]) -> bool {
    let differs = |pixel: &image::Rgb<u8>| pixel.0.iter().zip(background).any(|(&c, b)| c.abs_diff(b) > 12);
    let visible = image.pixels().filter(|pixel| differs(pixel)).count() as u64;
    visible * 500 >= u64::from(image.width()) * u64::from(image.height())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(colour: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 10 10\">\
             <rect width=\"10\" height=\"10\" fill=\"{colour}\"/></svg>"
        )
    }

    #[test]
    fn drawing_fills_the_canvas_except_the_margin() {
        let image = render(&svg("#00f"), 100, [255; 3]).unwrap().unwrap();
        let at = |x, y| image.get_pixel(x, y).0;
        assert_eq!(
            (at(5, 50), at(6, 50), at(93, 93), at(94, 94)),
            ([255; 3], [0, 0, 255], [0, 0, 255], [255; 3])
        );
    }

    #[test]
    fn invisible_drawing_gives_no_picture() {
        assert!(render(&svg("#fff"), 32, [255; 3]).unwrap().is_none());
        assert!(render(&svg("#fff"), 32, [0; 3]).unwrap().is_some());
    }

    #[test]
    fn invalid_svg_is_an_error() {
        assert!(render("<svg", 32, [255; 3]).is_err());
    }
}
