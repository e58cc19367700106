//! Picture prompts (paper §3.3): how a picture of any size is fitted to the model's, and which of its cells are kept.
//!
//! Cells are what a token covers, in raster order. The paper keeps the top rows; any other cells can be kept as well, since the
//! rest is drawn around them.

use anyhow::{Result, ensure};
use image::{DynamicImage, RgbImage, imageops};

use crate::picture::{ResizeFilter, Square, resize, scale};

/// How white a pixel of a mask must be to be redrawn.
const WHITE: u8 = 128;

/// How a picture that is no square is made one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fit {
    /// Its middle square is used.
    #[default]
    Crop,
    /// All of it is used, with borders.
    Pad,
}

impl Fit {
    /// `image` as a square of `side` pixels; borders have the grey `border`.
    ///
    /// # Errors
    /// If the picture is empty.
    pub fn apply(self, image: &RgbImage, side: u32, border: u8) -> Result<RgbImage> {
        let (width, height) = image.dimensions();
        ensure!(width > 0 && height > 0, "the picture is empty ({width}x{height})");
        // Averages are what training saw, but for a pixel at the edges; they would show an enlarged picture in squares.
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

    /// What becomes of a picture of this size, for people; nothing if it fits as it is.
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

/// What of a picture is kept, as people say it.
#[derive(Debug, Clone)]
pub enum Keep {
    /// So many of the top rows, as in the paper.
    Rows(usize),
    /// A rectangle, `[x, y, width, height]` in cells.
    Rectangle([usize; 4]),
    /// What is not white in a mask as large as the picture, or not transparent if anything of it is.
    Mask(DynamicImage),
    /// What is not transparent of the picture itself.
    Opaque,
    /// All of it.
    All,
}

impl Keep {
    /// The cells of `picture` that are kept, once it is fitted.
    ///
    /// # Errors
    /// If nothing is left to draw, the rows or the rectangle do not fit the grid, or the mask is not as large as the picture.
    pub fn of(&self, picture: &DynamicImage, grid: usize, fit: Fit) -> Result<Kept> {
        match self {
            Keep::Rows(rows) => Kept::rows(grid, *rows),
            Keep::Rectangle(rectangle) => Kept::rectangle(grid, *rectangle),
            Keep::Mask(mask) => {
                let [got, wanted] =
                    [mask, picture].map(|image| format!("{}x{}", image.width(), image.height()));
                ensure!(got == wanted, "the mask has {got} pixels: wanted {wanted}, as large as the picture");
                Kept::under(mask, grid, fit)
            }
            Keep::Opaque => Kept::under(picture, grid, fit),
            Keep::All => Ok(Kept::new(grid, |_, _| true)),
        }
    }
}

/// Which cells of a grid are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    grid: usize,
    /// In raster order.
    cells: Vec<bool>,
}

impl Kept {
    /// The cells of which `keep(x, y)` says so.
    fn new(grid: usize, keep: impl Fn(usize, usize) -> bool) -> Kept {
        Kept { grid, cells: (0..grid * grid).map(|at| keep(at % grid, at / grid)).collect() }
    }

    /// The cells of the top `rows` rows, as in the paper.
    fn rows(grid: usize, rows: usize) -> Result<Kept> {
        ensure!((1..grid).contains(&rows), "keep {rows} rows: wanted 1 to {}, of {grid}", grid - 1);
        Ok(Kept::new(grid, |_, y| y < rows))
    }

    /// The cells of a rectangle.
    fn rectangle(grid: usize, [x, y, width, height]: [usize; 4]) -> Result<Kept> {
        let inside = |from: usize, length: usize| length > 0 && from.saturating_add(length) <= grid;
        ensure!(
            inside(x, width) && inside(y, height),
            "keep {x},{y},{width},{height}: wanted a rectangle X,Y,WIDTH,HEIGHT within {grid}x{grid} cells"
        );
        ensure!(width * height < grid * grid, "keep {x},{y},{width},{height}: nothing is left to draw");
        Ok(Kept::new(grid, |cx, cy| (x..x + width).contains(&cx) && (y..y + height).contains(&cy)))
    }

    /// The cells in which no pixel of `mask` is white, once it is fitted like its picture. If any of it is transparent, that takes
    /// the place of white.
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

    /// Cells along a side of the grid.
    pub fn grid(&self) -> usize {
        self.grid
    }

    /// How many cells are drawn.
    pub fn drawn(&self) -> usize {
        self.cells.iter().filter(|kept| !**kept).count()
    }

    /// Of a picture's tokens those that are kept, by position in raster order.
    pub fn of(&self, tokens: &[u32]) -> Vec<Option<u32>> {
        tokens.iter().zip(&self.cells).map(|(&token, &kept)| kept.then_some(token)).collect()
    }
}

/// Whether anything of a picture is see-through.
pub fn is_transparent(image: &DynamicImage) -> bool {
    image.color().has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel.0[3] < WHITE)
}

/// A mask as grey: what is transparent is white, or if nothing is, what is white.
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
    fn rows_rectangles_and_their_mistakes() {
        assert_eq!(cells(&Kept::rows(3, 2).unwrap()), "######...");
        assert_eq!(cells(&Kept::rectangle(3, [1, 0, 2, 2]).unwrap()), ".##.##...");
        assert_eq!(Kept::rows(3, 2).unwrap().of(&[7; 9])[5..7], [Some(7), None]);
        for rows in [0, 3, 4] {
            let error = Kept::rows(3, rows).unwrap_err().to_string();
            assert!(error.contains("wanted 1 to 2, of 3"), "{error}");
        }
        for (rectangle, said) in [
            ([0, 0, 0, 1], "within 3x3 cells"),
            ([2, 0, 2, 1], "within 3x3 cells"),
            ([usize::MAX, 0, 2, 1], "within 3x3 cells"),
            ([0, 0, 3, 3], "nothing is left to draw"),
        ] {
            let error = Kept::rectangle(3, rectangle).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_cell_is_redrawn_if_any_of_it_is_white() {
        // A dot in the middle of the second cell, a line below.
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
    fn what_is_transparent_takes_the_place_of_white() {
        let mask =
            RgbaImage::from_fn(30, 30, |x, _| image::Rgba([255, 255, 255, if x < 10 { 0 } else { 255 }]));
        assert!(is_transparent(&mask.clone().into()));
        assert_eq!(cells(&Kept::under(&mask.into(), 3, Fit::Crop).unwrap()), ".##.##.##");
        assert!(!is_transparent(&RgbaImage::from_pixel(3, 3, image::Rgba([0, 0, 0, 255])).into()));
    }

    #[test]
    fn a_mask_is_fitted_like_its_picture() {
        // White on the left of a broad mask: cut off, or the left third with black above and below.
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
        // A pixel's breadth of a very long picture is still one pixel.
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
