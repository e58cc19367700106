//! Decodes PNG, JPEG and WebP pictures and applies their EXIF orientation.
//!
//! The claimed size is checked before memory is allocated, and colour profiles are not
//! decompressed. A picture with missing data is an error here, because decoders would fill the
//! missing part with grey.

use std::io::Cursor;

use anyhow::{Context, Result, bail, ensure};
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, RgbImage};

use super::{exif, jpeg, png};

/// The maximum number of pixels of a picture.
pub const MAX_PIXELS: u64 = 64_000_000;

/// Decodes a PNG, JPEG or WebP picture, applies its EXIF orientation, and replaces transparency by
/// white.
///
/// # Errors
/// If the picture has another format, is too large, or is damaged.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    decode_any(bytes, MAX_PIXELS).map(on_white)
}

/// Decodes a PNG, JPEG or WebP picture of at most `max_pixels` and applies its EXIF orientation.
/// Transparency is kept.
///
/// # Errors
/// If the picture has another format, is too large, or is damaged.
pub fn decode_any(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage> {
    let (mut image, orientation) = match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => png::decode(bytes, max_pixels)?,
        Ok(ImageFormat::Jpeg) => jpeg::decode(bytes, max_pixels)?,
        Ok(ImageFormat::WebP) => webp(bytes, max_pixels)?,
        Ok(_) | Err(_) => bail!("not a PNG, JPEG or WebP picture"),
    };
    image.apply_orientation(orientation);
    Ok(image)
}

fn webp(bytes: &[u8], max_pixels: u64) -> Result<(DynamicImage, Orientation)> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).context(DAMAGED)?;
    check_size(decoder.dimensions(), max_pixels)?;
    let exif = decoder.exif_metadata().context(DAMAGED)?;
    let orientation = exif.map_or(Orientation::NoTransforms, |exif| exif::orientation(&exif));
    Ok((DynamicImage::from_decoder(decoder).context(DAMAGED)?, orientation))
}

/// The error text for a picture that cannot be decoded.
pub(super) const DAMAGED: &str = "the picture is damaged";

/// Returns an error if a picture is empty or claims too many pixels.
pub(super) fn check_size((width, height): (u32, u32), max_pixels: u64) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    ensure!(pixels > 0, "the picture is empty ({width}x{height})");
    ensure!(
        pixels <= max_pixels,
        "the picture claims {width}x{height} pixels, more than the {max_pixels} allowed"
    );
    Ok(())
}

/// Removes the alpha channel, if there is one, by blending the picture over white.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::encode_png;

    #[test]
    fn truncated_picture_is_an_error_at_any_length() {
        let image =
            RgbImage::from_fn(31, 17, |x, y| image::Rgb([(x * 8) as u8, (y * 15) as u8, (x * y) as u8]));
        let mut webp = Cursor::new(Vec::new());
        image.write_to(&mut webp, ImageFormat::WebP).unwrap();
        let png = encode_png(&image).unwrap();
        // The pixels of a PNG are followed by their checksum and the end chunk.
        for (bytes, until) in [(webp.get_ref(), webp.get_ref().len() - 1), (&png, png.len() - 16)] {
            assert_eq!(decode(bytes).unwrap(), image);
            for length in 0..until {
                assert!(decode(&bytes[..length]).is_err(), "cut at {length} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn other_formats_are_errors() {
        for bytes in [&b""[..], b"not a picture", b"GIF89a\0\0\0\0", b"BM\0\0\0\0"] {
            assert_eq!(decode(bytes).unwrap_err().to_string(), "not a PNG, JPEG or WebP picture");
        }
    }
}
