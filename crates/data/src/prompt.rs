//! Picture prompts (paper §3.3): fits a picture of any size to the model's size and selects the
//! cells that are kept.
//!
//! A cell is the part of the picture that one image token covers. Cells are in raster order. The
//! paper keeps the top rows; here any other cells can be kept as well, and the rest is drawn around
//! them.

use anyhow::{Result, ensure};
use image::{DynamicImage, RgbImage, imageops};

use crate::picture::{ResizeFilter, Square, resize, scale};

/// The minimum brightness at which a pixel of a mask counts as white, so that its cell is redrawn.
const WHITE: u8 = 128;

/// The method that makes a picture square.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fit {
    /// Only the middle square is used.
    #[default]
    Crop,
    /// The complete picture is used, with borders.
    Pad,
}

impl Fit {
    /// Fits `image` to a square of `side` pixels. Borders have the grey value `border`.
    ///
    /// # Errors
    /// If the picture is empty.
    pub fn apply(self, image: &RgbImage, side: u32, border: u8) -> Result<RgbImage> {
        let (width, height) = image.dimensions();
        ensure!(width > 0 && height > 0, "the picture is empty ({width}x{height})");
        // Training resizes by averaging as well; only pixels at the edges differ. Enlarging uses
        // another filter, because averaging would show the pixels as squares.
        let filter = |length: u32| if length >= side { ResizeFilter::Mean } else { ResizeFilter::Lanczos };
        match self {
            Fit::Crop => {
                let square = Square::centre(image);
                resize(image, square, side, filter(square.side))
            }
            Fit::Pad => {
                let longest = width.max(height);
                let part = |length: u32| {
                    let scaled = u64::from(length) * u64::from(side);
                    (scaled.div_ceil(u64::from(longest)) as u32).clamp(1, side)
                };
                let to = [part(width), part(height)];
                let inner = scale(image, [0, 0, width, height], to, filter(longest))?;
                let mut square = RgbImage::from_pixel(side, side, image::Rgb([border; 3]));
                let [left, top] = to.map(|length| i64::from((side - length) / 2));
                imageops::replace(&mut square, &inner, left, top);
                Ok(square)
            }
        }
    }

    /// Describes for the user how a picture of this size is fitted. Returns `None` if it already
    /// fits.
    pub fn rule(self, (width, height): (u32, u32), side: u32) -> Option<String> {
        let short = width.min(height);
        let used = match self {
            _ if width == height => String::new(),
            Fit::Crop => format!(", its middle {short}x{short}"),
            Fit::Pad => ", all of it with white borders".to_string(),
        };
        ((width, height) != (side, side))
            .then(|| format!("{width}x{height} pixels{used}, scaled to {side}x{side}"))
    }
}

/// A user's specification of the part of a picture that is kept.
#[derive(Debug, Clone)]
pub enum Keep {
    /// The given number of top rows, as in the paper.
    Rows(usize),
    /// A rectangle, `[x, y, width, height]` in cells.
    Rectangle([usize; 4]),
    /// The part that is not white in a mask of the picture's size. If the mask has transparent
    /// pixels, the part that is not transparent.
    Mask(DynamicImage),
    /// The part of the picture itself that is not transparent.
    Opaque,
    /// The complete picture.
    All,
}

impl Keep {
    /// Returns the cells of `picture` that are kept after it is fitted.
    ///
    /// # Errors
    /// If nothing is left to draw, the rows or the rectangle do not fit the grid, or the mask and
    /// the picture have different sizes.
    pub fn of(&self, picture: &DynamicImage, grid: usize, fit: Fit) -> Result<Kept> {
        match self {
            Keep::Rows(rows) => Kept::rows(grid, *rows),
            Keep::Rectangle(rectangle) => Kept::rectangle(grid, *rectangle),
            Keep::Mask(mask) => {
                let [found, expected] =
                    [mask, picture].map(|image| format!("{}x{}", image.width(), image.height()));
                ensure!(
                    found == expected,
                    "the mask has {found} pixels: wanted {expected}, as large as the picture"
                );
                Kept::under(mask, grid, fit)
            }
            Keep::Opaque => Kept::under(picture, grid, fit),
            Keep::All => Ok(Kept::new(grid, |_, _| true)),
        }
    }
}

/// The cells of a grid that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    grid: usize,
    /// Whether each cell is kept, in raster order.
    cells: Vec<bool>,
}

impl Kept {
    /// Keeps the cells for which `keep(x, y)` is true.
    fn new(grid: usize, keep: impl Fn(usize, usize) -> bool) -> Kept {
        Kept { grid, cells: (0..grid * grid).map(|at| keep(at % grid, at / grid)).collect() }
    }

    /// Keeps the cells of the top `rows` rows, as in the paper.
    fn rows(grid: usize, rows: usize) -> Result<Kept> {
        ensure!((1..grid).contains(&rows), "keep {rows} rows: wanted 1 to {}, of {grid}", grid - 1);
        Ok(Kept::new(grid, |_, y| y < rows))
    }

    /// Keeps the cells of a rectangle.
    fn rectangle(grid: usize, [x, y, width, height]: [usize; 4]) -> Result<Kept> {
        let inside = |from: usize, length: usize| length > 0 && from.saturating_add(length) <= grid;
        ensure!(
            inside(x, width) && inside(y, height),
            "keep {x},{y},{width},{height}: wanted a rectangle X,Y,WIDTH,HEIGHT within {grid}x{grid} cells"
        );
        ensure!(width * height < grid * grid, "keep {x},{y},{width},{height}: nothing is left to draw");
        Ok(Kept::new(grid, |cx, cy| (x..x + width).contains(&cx) && (y..y + height).contains(&cy)))
    }

    /// Keeps the cells without a white pixel in `mask`, which is fitted like its picture. If the
    /// mask has transparent pixels, these are used instead of white ones.
    fn under(mask: &DynamicImage, grid: usize, fit: Fit) -> Result<Kept> {
        let side = 8 * grid as u32;
        let white = fit.apply(&white_where_redrawn(mask), side, 0)?;
        let cell = side / grid as u32;
        let kept = Kept::new(grid, |x, y| {
            let (left, top) = (x as u32 * cell, y as u32 * cell);
            let inside = (0..cell * cell).map(|at| (left + at % cell, top + at / cell));
            inside.into_iter().all(|(x, y)| white.get_pixel(x, y).0[0] < WHITE)
        });
        ensure!(kept.drawn() > 0, "nothing of the mask is white or transparent: there is nothing to draw");
        Ok(kept)
    }

    /// Returns the number of cells along a side of the grid.
    pub fn grid(&self) -> usize {
        self.grid
    }

    /// Returns the number of cells that are drawn, that is, not kept.
    pub fn drawn(&self) -> usize {
        self.cells.iter().filter(|kept| !**kept).count()
    }

    /// Returns one entry per token of a picture in raster order: the token if its cell is kept,
    /// `None` if not.
    pub fn of(&self, tokens: &[u32]) -> Vec<Option<u32>> {
        tokens.iter().zip(&self.cells).map(|(&token, &kept)| kept.then_some(token)).collect()
    }
}

/// Whether a picture has transparent pixels.
pub fn is_transparent(image: &DynamicImage) -> bool {
    image.color().has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel.0[3] < WHITE)
}

/// Converts a mask to grey. Transparent pixels become white; if the mask has none, its brightness
/// is used.
fn white_where_redrawn(mask: &DynamicImage) -> RgbImage {
    if !is_transparent(mask) {
        return DynamicImage::from(mask.to_luma8()).into_rgb8();
    }
    let rgba = mask.to_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| image::Rgb([255 - rgba.get_pixel(x, y).0[3]; 3]))
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma, Rgb, RgbaImage};

    use super::*;

    fn cells(kept: &Kept) -> String {
        kept.cells.iter().map(|kept| if *kept { '#' } else { '.' }).collect()
    }

    #[test]
    fn rows_and_rectangles_are_checked_against_the_grid() {
        assert_eq!(cells(&Kept::rows(3, 2).unwrap()), "######...");
        assert_eq!(cells(&Kept::rectangle(3, [1, 0, 2, 2]).unwrap()), ".##.##...");
        assert_eq!(Kept::rows(3, 2).unwrap().of(&[7; 9])[5..7], [Some(7), None]);
        for rows in [0, 3, 4] {
            let error = Kept::rows(3, rows).unwrap_err().to_string();
            assert!(error.contains("wanted 1 to 2, of 3"), "{error}");
        }
        for (rectangle, expected) in [
            ([0, 0, 0, 1], "within 3x3 cells"),
            ([2, 0, 2, 1], "within 3x3 cells"),
            ([usize::MAX, 0, 2, 1], "within 3x3 cells"),
            ([0, 0, 3, 3], "nothing is left to draw"),
        ] {
            let error = Kept::rectangle(3, rectangle).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn cell_with_any_white_pixel_is_redrawn() {
        // A dot in the middle of the second cell and a line in the bottom row.
        let mask = GrayImage::from_fn(48, 48, |x, y| {
            let dot = (20..24).contains(&x) && (6..10).contains(&y);
            Luma([if dot || y == 40 { 255 } else { 20 }])
        });
        let kept = Kept::under(&mask.into(), 3, Fit::Crop).unwrap();
        assert_eq!(cells(&kept), "#.####...");
        assert_eq!(kept.drawn(), 4);
        let black: DynamicImage = GrayImage::new(48, 48).into();
        assert!(Kept::under(&black, 3, Fit::Crop).unwrap_err().to_string().contains("nothing to draw"));
        let other_size =
            Keep::Mask(GrayImage::new(47, 47).into()).of(&black, 3, Fit::Crop).unwrap_err().to_string();
        assert_eq!(other_size, "the mask has 47x47 pixels: wanted 48x48, as large as the picture");
    }

    #[test]
    fn transparency_is_used_instead_of_white() {
        let mask =
            RgbaImage::from_fn(30, 30, |x, _| image::Rgba([255, 255, 255, if x < 10 { 0 } else { 255 }]));
        assert!(is_transparent(&mask.clone().into()));
        assert_eq!(cells(&Kept::under(&mask.into(), 3, Fit::Crop).unwrap()), ".##.##.##");
        assert!(!is_transparent(&RgbaImage::from_pixel(3, 3, image::Rgba([0, 0, 0, 255])).into()));
    }

    #[test]
    fn mask_is_fitted_like_its_picture() {
        // A wide mask is white on the left. Cropping cuts the white part off; padding makes it the
        // left third, with black above and below.
        let mask: DynamicImage =
            GrayImage::from_fn(60, 20, |x, _| Luma([if x < 20 { 255 } else { 0 }])).into();
        assert!(Kept::under(&mask, 3, Fit::Crop).is_err());
        assert_eq!(cells(&Kept::under(&mask, 3, Fit::Pad).unwrap()), "###.#####");
    }

    #[test]
    fn pictures_of_any_shape_become_squares() {
        let picture = RgbImage::from_fn(40, 20, |x, _| Rgb([if x < 20 { 200 } else { 0 }, 0, 0]));
        let crop = Fit::Crop.apply(&picture, 10, 255).unwrap();
        assert_eq!((crop.dimensions(), crop.get_pixel(0, 5)[0], crop.get_pixel(9, 5)[0]), ((10, 10), 200, 0));
        let pad = Fit::Pad.apply(&picture, 10, 255).unwrap();
        assert_eq!([pad.get_pixel(0, 0).0, pad.get_pixel(0, 5).0], [[255; 3], [200, 0, 0]]);
        // A side that would be scaled to less than one pixel becomes one pixel.
        let line = RgbImage::from_pixel(5000, 1, Rgb([0; 3]));
        assert_eq!(Fit::Pad.apply(&line, 10, 255).unwrap().pixels().filter(|p| p[0] == 0).count(), 10);
        assert_eq!(Fit::Crop.apply(&line, 10, 255).unwrap().dimensions(), (10, 10));
        assert_eq!(
            Fit::Crop.rule((640, 480), 48).unwrap(),
            "640x480 pixels, its middle 480x480, scaled to 48x48"
        );
        assert_eq!(Fit::Pad.rule((10, 10), 48).unwrap(), "10x10 pixels, scaled to 48x48");
        assert_eq!(Fit::Pad.rule((48, 48), 48), None);
    }
}
