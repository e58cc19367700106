//! Pictures in and out of bytes, and between sizes.
//!
//! Every picture from outside passes [`decode`], which looks at the claimed size before it allocates anything.

use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, Limits, RgbImage,
};

/// The largest picture that is decoded: 64 million pixels.
pub const MAX_PIXELS: u64 = 64_000_000;

/// How [`resize`] weighs the source pixels under a target pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The mean of the covered pixels: the paper's AREA (listings 1 and 2).
    Area,
    /// Sharper, for storing a picture once at a smaller size.
    Lanczos,
    /// Smooth, for showing a small picture large.
    CatmullRom,
}

/// A square within a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Square {
    /// Distance from the left edge.
    pub left: u32,
    /// Distance from the top edge.
    pub top: u32,
    /// Length of a side.
    pub side: u32,
}

impl Square {
    /// The largest square in the middle of the picture.
    pub fn centre(image: &RgbImage) -> Self {
        let side = image.width().min(image.height());
        Self { left: (image.width() - side) / 2, top: (image.height() - side) / 2, side }
    }
}

/// Decodes a PNG, JPEG or WebP: upright as its camera meant it, transparent parts white.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    decode_any(bytes, MAX_PIXELS).map(on_white)
}

/// Decodes a PNG, JPEG or WebP of at most `max_pixels`: upright as its camera meant it, with its transparency.
pub fn decode_any(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage> {
    let reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().context("cannot read the picture")?;
    let known = matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP));
    ensure!(known, "not a PNG, JPEG or WebP picture");
    let mut decoder = reader.into_decoder().context("not a PNG, JPEG or WebP picture")?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    ensure!(pixels > 0, "the picture is empty ({width}x{height})");
    ensure!(
        pixels <= max_pixels,
        "the picture claims {width}x{height} pixels, more than the {max_pixels} allowed"
    );
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 * max_pixels);
    decoder.set_limits(limits).context("the picture needs too much memory")?;
    let orientation = decoder.orientation().context("the picture's orientation cannot be read")?;
    let mut image = DynamicImage::from_decoder(decoder).context("the picture is damaged")?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Drops the alpha channel, if there is one, by laying the picture on white.
pub fn on_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0.map(u32::from);
        image::Rgb([r, g, b].map(|c| ((c * a + 255 * (255 - a) + 127) / 255) as u8))
    })
}

/// Encodes as PNG; the same pixels always give the same bytes.
pub fn encode_png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, PngFilter::Adaptive)
        .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .context("cannot encode the picture as PNG")?;
    Ok(bytes)
}

/// The square `from` of `image`, scaled to `side` x `side` pixels.
pub fn resize(image: &RgbImage, from: Square, side: u32, filter: Filter) -> Result<RgbImage> {
    let Square { left, top, side: length } = from;
    scale(image, [left, top, length, length], [side, side], filter)
}

/// The rectangle `from` of `image`, `[left, top, width, height]`, scaled to `[width, height]` pixels.
pub fn scale(image: &RgbImage, from: [u32; 4], to: [u32; 2], filter: Filter) -> Result<RgbImage> {
    ensure!(to[0] > 0 && to[1] > 0, "cannot resize a picture to 0 pixels");
    // Typed, because the untyped call compiles every pixel format there is.
    let source = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw())
        .context("the picture's pixels do not fit its size")?;
    let kernel = match filter {
        Filter::Area => FilterType::Box,
        Filter::Lanczos => FilterType::Lanczos3,
        Filter::CatmullRom => FilterType::CatmullRom,
    };
    let [left, top, width, height] = from.map(f64::from);
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(kernel)).crop(left, top, width, height);
    let mut target = TypedImage::<U8x3>::new(to[0], to[1]);
    Resizer::new().resize_typed(&source, &mut target, &options).with_context(|| {
        format!("cannot resize {from:?} of a {}x{} picture to {to:?}", image.width(), image.height())
    })?;
    let bytes = target.pixels().iter().flat_map(|pixel| pixel.0).collect();
    RgbImage::from_raw(to[0], to[1], bytes).context("the resized picture has the wrong size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn png_round_trip_is_exact_and_repeatable() {
        let image = RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 20, y as u8 * 30, 5]));
        let bytes = encode_png(&image).unwrap();
        assert_eq!(decode(&bytes).unwrap(), image);
        assert_eq!(encode_png(&image).unwrap(), bytes);
    }

    #[test]
    fn area_halving_takes_the_mean_of_four() {
        let image = RgbImage::from_fn(4, 4, |x, y| image::Rgb([((x + 4 * y) * 10) as u8; 3]));
        let half = resize(&image, Square::centre(&image), 2, Filter::Area).unwrap();
        assert_eq!(half.pixels().map(|p| p.0[0]).collect::<Vec<_>>(), [25, 45, 105, 125]);
    }

    #[test]
    fn damaged_and_huge_pictures_are_refused() {
        assert!(decode(b"not a picture").is_err());
        let mut bytes = encode_png(&RgbImage::new(4, 4)).unwrap();
        bytes.truncate(bytes.len() / 2);
        assert!(decode(&bytes).is_err());
        let error = decode(&png_claiming(60_000, 60_000)).unwrap_err();
        assert!(format!("{error:#}").contains("60000x60000"), "{error:#}");
    }

    /// A PNG whose header claims a size that its data does not have; the checksum of the header is right.
    fn png_claiming(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = encode_png(&RgbImage::new(1, 1)).unwrap();
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let checksum = crc32fast::hash(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    #[test]
    fn transparency_becomes_white() {
        let rgba = image::RgbaImage::from_pixel(2, 2, image::Rgba([10, 20, 30, 0]));
        assert_eq!(on_white(rgba.into()).get_pixel(0, 0).0, [255; 3]);
    }
}
