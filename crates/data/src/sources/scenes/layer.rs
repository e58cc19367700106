//! Layers with transparency, and the sprites from which they are composed.

use anyhow::{Context, Result, ensure};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x4;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg;

/// A colour: red, green and blue from 0 to 1.
pub(super) type Rgb = [f32; 3];

/// The weights of red, green and blue in the brightness (ITU-R BT.601).
const LUMA: Rgb = [0.299, 0.587, 0.114];

/// A picture with transparency. Its pixels are premultiplied red, green, blue and alpha, from 0 to
/// 1.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<[f32; 4]>,
}

impl Layer {
    /// Creates a fully transparent layer.
    pub(super) fn clear(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![[0.0; 4]; width * height] }
    }

    /// Creates a layer of one opaque colour.
    pub(super) fn filled(width: usize, height: usize, [r, g, b]: Rgb) -> Self {
        Self { width, height, pixels: vec![[r, g, b, 1.0]; width * height] }
    }

    /// Blends `other` over this layer with its upper left corner at (`left`, `top`), which may be
    /// outside.
    pub(super) fn lay(&mut self, other: &Layer, left: i32, top: i32) {
        for y in 0..other.height {
            for x in 0..other.width {
                let (to_x, to_y) = (x as i32 + left, y as i32 + top);
                let is_inside =
                    (0..self.width as i32).contains(&to_x) && (0..self.height as i32).contains(&to_y);
                if is_inside {
                    let under = &mut self.pixels[to_y as usize * self.width + to_x as usize];
                    *under = over(other.pixels[y * other.width + x], *under);
                }
            }
        }
    }

    /// Applies `change` to each pixel's colour, which is not premultiplied for this.
    pub(super) fn recoloured(mut self, change: impl Fn(Rgb) -> Rgb) -> Self {
        for pixel in &mut self.pixels {
            let [r, g, b, a] = *pixel;
            if a > 0.0 {
                let [r, g, b] = change([r / a, g / a, b / a]);
                *pixel = [r * a, g * a, b * a, a];
            }
        }
        self
    }

    /// Returns the alpha of each pixel.
    pub(super) fn alpha(&self) -> Plane {
        Plane { width: self.width, height: self.height, values: self.pixels.iter().map(|p| p[3]).collect() }
    }

    /// Returns the brightness of each pixel on a white background.
    pub(super) fn brightness(&self) -> Plane {
        let value = |&[r, g, b, a]: &[f32; 4]| luma([r, g, b]) + 1.0 - a;
        Plane { width: self.width, height: self.height, values: self.pixels.iter().map(value).collect() }
    }

    /// Returns the layer flipped vertically.
    pub(super) fn upside_down(&self) -> Self {
        let rows = self.pixels.chunks_exact(self.width).rev();
        Self { pixels: rows.flatten().copied().collect(), ..*self }
    }

    /// Returns the layer flipped horizontally.
    pub(super) fn mirrored(&self) -> Self {
        let rows = self.pixels.chunks_exact(self.width);
        Self { pixels: rows.flat_map(|row| row.iter().rev()).copied().collect(), ..*self }
    }

    /// Multiplies each pixel by the value of `mask`, a plane of the same size.
    pub(super) fn within(mut self, mask: &Plane) -> Self {
        for (pixel, share) in self.pixels.iter_mut().zip(&mask.values) {
            *pixel = pixel.map(|value| value * share);
        }
        self
    }

    /// Returns the smallest rectangle around the visible pixels as left, top, right, bottom. The
    /// last two are exclusive.
    pub(super) fn bounds(&self) -> Option<[usize; 4]> {
        let mut bounds: Option<[usize; 4]> = None;
        for (index, pixel) in self.pixels.iter().enumerate() {
            if pixel[3] > 0.1 {
                let (x, y) = (index % self.width, index / self.width);
                let [left, top, right, bottom] = bounds.unwrap_or([x, y, x + 1, y + 1]);
                bounds = Some([left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1)]);
            }
        }
        bounds
    }

    /// Converts the layer to an opaque picture on a white background.
    pub(super) fn into_image(self) -> Result<RgbImage> {
        let byte = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
        let pixels = self.pixels.iter().map(|&pixel| over(pixel, [1.0; 4]));
        let bytes = pixels.flat_map(|[r, g, b, _]| [byte(r), byte(g), byte(b)]).collect();
        RgbImage::from_raw(self.width as u32, self.height as u32, bytes).context("a layer of the wrong size")
    }
}

/// Blends `front` over `back`.
fn over(front: [f32; 4], back: [f32; 4]) -> [f32; 4] {
    std::array::from_fn(|c| front[c] + back[c] * (1.0 - front[3]))
}

/// Returns the brightness of a colour, from 0 to 1.
pub(super) fn luma(colour: Rgb) -> f32 {
    colour.iter().zip(LUMA).map(|(value, weight)| value * weight).sum()
}

/// Interpolates between the colours `from` (`t` = 0) and `to` (`t` = 1).
pub(super) fn mix(from: Rgb, to: Rgb, t: f32) -> Rgb {
    std::array::from_fn(|c| from[c] + (to[c] - from[c]) * t)
}

/// One number per pixel.
#[derive(Debug, Clone)]
pub(super) struct Plane {
    width: usize,
    height: usize,
    pub(super) values: Vec<f32>,
}

impl Plane {
    /// Returns the value at a position. Outside the plane, it is the value of the nearest pixel
    /// inside.
    fn at(&self, x: i32, y: i32) -> f32 {
        let x = x.clamp(0, self.width as i32 - 1) as usize;
        let y = y.clamp(0, self.height as i32 - 1) as usize;
        self.values[y * self.width + x]
    }

    fn map(&self, value: impl Fn(i32, i32) -> f32) -> Plane {
        let places = (0..self.height as i32).flat_map(|y| (0..self.width as i32).map(move |x| (x, y)));
        Plane { values: places.map(|(x, y)| value(x, y)).collect(), ..*self }
    }

    /// Returns the magnitude of the gradient at each pixel (Sobel).
    pub(super) fn edges(&self) -> Plane {
        self.map(|x, y| {
            let [across, down] = self.slope(x, y);
            across.hypot(down)
        })
    }

    /// Returns the horizontal and vertical gradient at a pixel, in units per pixel (Sobel).
    pub(super) fn slope(&self, x: i32, y: i32) -> [f32; 2] {
        let at = |dx: i32, dy: i32| self.at(x + dx, y + dy);
        let across = at(1, -1) + 2.0 * at(1, 0) + at(1, 1) - at(-1, -1) - 2.0 * at(-1, 0) - at(-1, 1);
        let down = at(-1, 1) + 2.0 * at(0, 1) + at(1, 1) - at(-1, -1) - 2.0 * at(0, -1) - at(1, -1);
        [across / 8.0, down / 8.0]
    }

    /// Applies a box blur: the mean of `2 * radius + 1` values, first horizontally and then
    /// vertically.
    pub(super) fn blurred(&self, radius: i32) -> Plane {
        let share = 1.0 / (2 * radius + 1) as f32;
        let across = self.map(|x, y| (-radius..=radius).map(|d| self.at(x + d, y)).sum::<f32>() * share);
        across.map(|x, y| (-radius..=radius).map(|d| across.at(x, y + d)).sum::<f32>() * share)
    }
}

/// A drawing of one thing at the largest size that scenes use, cropped to its visible part.
#[derive(Debug)]
pub(super) struct Sprite {
    pub(super) width: u32,
    pub(super) height: u32,
    /// The premultiplied pixels.
    pixels: Vec<U8x4>,
}

impl Sprite {
    /// Renders `svg` so that its longer side has `side` pixels, then removes empty margins. Returns
    /// `None` if nothing is visible.
    pub(super) fn draw(svg: &str, side: u32) -> Result<Option<Self>> {
        let tree =
            usvg::Tree::from_str(svg, &usvg::Options::default()).context("the icon is not valid SVG")?;
        let (width, height) = (tree.size().width(), tree.size().height());
        let scale = side as f32 / width.max(height);
        ensure!(scale.is_finite() && scale > 0.0, "the icon has the size {width}x{height}");
        let size = |length: f32| (length * scale).ceil().max(1.0) as u32;
        let mut pixmap = Pixmap::new(size(width), size(height)).context("cannot draw an icon")?;
        resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
        Ok(Self::cut(&pixmap))
    }

    fn cut(pixmap: &Pixmap) -> Option<Self> {
        let visible = |x: u32, y: u32| pixmap.pixel(x, y).is_some_and(|pixel| pixel.alpha() > 12);
        let columns: Vec<u32> =
            (0..pixmap.width()).filter(|&x| (0..pixmap.height()).any(|y| visible(x, y))).collect();
        let rows: Vec<u32> =
            (0..pixmap.height()).filter(|&y| (0..pixmap.width()).any(|x| visible(x, y))).collect();
        let (left, right, top, bottom) = (*columns.first()?, *columns.last()?, *rows.first()?, *rows.last()?);
        let pixel = |x, y| pixmap.pixel(x, y).map(|p| U8x4::new([p.red(), p.green(), p.blue(), p.alpha()]));
        let pixels = (top..=bottom).flat_map(|y| (left..=right).filter_map(move |x| pixel(x, y))).collect();
        Some(Self { width: right - left + 1, height: bottom - top + 1, pixels })
    }

    /// Resizes the drawing to `width` x `height` pixels.
    pub(super) fn stretched(&self, width: usize, height: usize) -> Result<Layer> {
        let source = TypedImageRef::<U8x4>::new(self.width, self.height, &self.pixels)
            .context("a drawing of the wrong size")?;
        let mut target = TypedImage::<U8x4>::new(width.max(1) as u32, height.max(1) as u32);
        // Colours are already premultiplied, so all four channels are scaled in the same way.
        let options =
            ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false);
        Resizer::new().resize_typed(&source, &mut target, &options).context("cannot scale a drawing")?;
        let pixel = |pixel: &U8x4| {
            let [r, g, b, a] = pixel.0.map(|byte| f32::from(byte) / 255.0);
            [r.min(a), g.min(a), b.min(a), a]
        };
        let pixels = target.pixels().iter().map(pixel).collect();
        Ok(Layer { width: width.max(1), height: height.max(1), pixels })
    }

    /// Scales the drawing so that its longer side has `side` pixels.
    pub(super) fn scaled(&self, side: usize) -> Result<Layer> {
        let scale = side as f32 / self.width.max(self.height) as f32;
        let size = |length: u32| (length as f32 * scale).round().max(1.0) as usize;
        self.stretched(size(self.width), size(self.height))
    }
}
