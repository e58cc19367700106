//! Decodes PNG pictures. Colour profiles are never decompressed, because 1 MB of one can expand to
//! 1 GB.

use std::borrow::Cow;
use std::io::{BufRead, Cursor, Seek};

use ::png::{BitDepth, ColorType, Decoder, Info, Limits, Transformations};
use anyhow::{Context, Result, bail};
use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, Pixel};

use super::decode::{DAMAGED, check_size};
use super::exif;

/// The keyword of the text chunk in which ImageMagick stores EXIF as hexadecimal digits.
const RAW_PROFILE: &str = "Raw profile type exif";
/// The maximum size of an EXIF block in a text chunk.
const MAX_PROFILE_BYTES: usize = 1 << 20;

/// Creates a decoder that ignores colour profiles.
pub(crate) fn decoder<R: BufRead + Seek>(file: R, limits: Limits) -> Decoder<R> {
    let mut decoder = Decoder::new_with_limits(file, limits);
    decoder.set_ignore_iccp_chunk(true);
    decoder
}

/// Decodes a picture with its original channels and bit depth, and returns its EXIF orientation.
pub(super) fn decode(bytes: &[u8], max_pixels: u64) -> Result<(DynamicImage, Orientation)> {
    let limits = Limits { bytes: usize::try_from(16 * max_pixels).unwrap_or(usize::MAX) };
    let mut decoder = decoder(Cursor::new(bytes), limits);
    check_size(decoder.read_header_info().context(DAMAGED)?.size(), max_pixels)?;
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().context(DAMAGED)?;
    let size = reader.info().size();
    let mut pixels = vec![0; reader.output_buffer_size().context("the picture needs too much memory")?];
    reader.next_frame(&mut pixels).context(DAMAGED)?;
    // EXIF may follow the pixels. Damage after the pixels is ignored.
    let _ = reader.finish();
    Ok((picture(size, reader.output_color_type(), pixels)?, orientation(reader.info())))
}

fn picture(size: (u32, u32), kind: (ColorType, BitDepth), pixels: Vec<u8>) -> Result<DynamicImage> {
    match kind {
        (ColorType::Grayscale, BitDepth::Eight) => buffer(size, pixels).map(DynamicImage::ImageLuma8),
        (ColorType::GrayscaleAlpha, BitDepth::Eight) => buffer(size, pixels).map(DynamicImage::ImageLumaA8),
        (ColorType::Rgb, BitDepth::Eight) => buffer(size, pixels).map(DynamicImage::ImageRgb8),
        (ColorType::Rgba, BitDepth::Eight) => buffer(size, pixels).map(DynamicImage::ImageRgba8),
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            buffer(size, words(&pixels)).map(DynamicImage::ImageLuma16)
        }
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => {
            buffer(size, words(&pixels)).map(DynamicImage::ImageLumaA16)
        }
        (ColorType::Rgb, BitDepth::Sixteen) => buffer(size, words(&pixels)).map(DynamicImage::ImageRgb16),
        (ColorType::Rgba, BitDepth::Sixteen) => buffer(size, words(&pixels)).map(DynamicImage::ImageRgba16),
        (color, depth) => bail!("a PNG of {color:?} at {depth:?} bits per channel cannot be read"),
    }
}

fn buffer<P: Pixel>(
    (width, height): (u32, u32),
    values: Vec<P::Subpixel>,
) -> Result<ImageBuffer<P, Vec<P::Subpixel>>> {
    ImageBuffer::from_raw(width, height, values).context("the picture's pixels do not fit its size")
}

/// Converts bytes to 16-bit numbers, which PNG stores in big-endian order.
fn words(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair)).collect()
}

/// Returns the orientation from an eXIf chunk or from ImageMagick's text chunk.
fn orientation(info: &Info) -> Orientation {
    let exif = info.exif_metadata.clone().or_else(|| raw_profile(info).map(Cow::Owned));
    exif.map_or(Orientation::NoTransforms, |exif| exif::orientation(&exif))
}

/// Returns the EXIF block in a text chunk. The text consists of an empty line, a name, a length,
/// and the bytes as hexadecimal digits.
fn raw_profile(info: &Info) -> Option<Vec<u8>> {
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == RAW_PROFILE);
    let packed = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == RAW_PROFILE);
    let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == RAW_PROFILE);
    let text = match (plain, packed.cloned(), utf8.cloned()) {
        (Some(plain), _, _) => plain.text.clone(),
        (None, Some(mut packed), _) => {
            packed.decompress_text_with_limit(MAX_PROFILE_BYTES).ok()?;
            packed.get_text().ok()?
        }
        (None, None, Some(mut utf8)) => {
            utf8.decompress_text_with_limit(MAX_PROFILE_BYTES).ok()?;
            utf8.get_text().ok()?
        }
        (None, None, None) => return None,
    };
    let digits: Vec<u32> =
        text.lines().skip(3).flat_map(str::chars).map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    Some(digits.as_chunks::<2>().0.iter().map(|[high, low]| (high << 4 | low) as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::{decode_any, encode_png};

    /// Returns a PNG of 5x3 pixels with additional chunks before and after its pixels.
    fn png_with(before: &[(&[u8; 4], Vec<u8>)], after: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
        let image = image::RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 50, y as u8 * 80, 9]));
        let plain = encode_png(&image).unwrap();
        let chunk = |(kind, data): &(&[u8; 4], Vec<u8>)| {
            let body = [&kind[..], data].concat();
            let sum = crc32fast::hash(&body);
            [&(data.len() as u32).to_be_bytes()[..], &body, &sum.to_be_bytes()].concat()
        };
        let [before, after] =
            [before, after].map(|chunks| chunks.iter().flat_map(chunk).collect::<Vec<u8>>());
        let (header, end) = (8 + 25, plain.len() - 12);
        [&plain[..header], &before, &plain[header..end], &after, &plain[end..]].concat()
    }

    fn is_rotated(bytes: &[u8]) -> bool {
        let image = decode_any(bytes, 1000).unwrap();
        (image.width(), image.height()) == (3, 5)
    }

    const EXIF: &[u8] = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

    #[test]
    fn exif_is_found_before_and_after_the_pixels_and_in_text() {
        let digits: String = EXIF.iter().map(|byte| format!("{byte:02x}")).collect();
        let profile = format!("\nexif\n{:8}\n{}\n{}\n", EXIF.len(), &digits[..40], &digits[40..]);
        let text = [RAW_PROFILE.as_bytes(), b"\0", profile.as_bytes()].concat();
        assert!(!is_rotated(&png_with(&[], &[])));
        assert!(is_rotated(&png_with(&[(b"eXIf", EXIF.to_vec())], &[])));
        assert!(is_rotated(&png_with(&[], &[(b"eXIf", EXIF.to_vec())])));
        assert!(is_rotated(&png_with(&[(b"tEXt", text.clone())], &[])));
        let broken = [RAW_PROFILE.as_bytes(), b"\0\nexif\n 3\nno digits"].concat();
        assert!(!is_rotated(&png_with(&[(b"tEXt", broken)], &[])));
        // Damage after the pixels is ignored.
        let bytes = png_with(&[(b"eXIf", EXIF.to_vec())], &[(b"tEXt", text)]);
        assert!(is_rotated(&bytes[..bytes.len() - 20]));
    }

    /// A profile that is decompressed would appear in the decoder's `Info`.
    #[test]
    fn colour_profiles_are_not_decompressed() {
        // One stored zlib block of 300 zero bytes.
        let packed = [b"\x78\x01\x01\x2c\x01\xd3\xfe", &[0; 300][..], b"\x01\x2c\0\x01"].concat();
        let bytes = png_with(&[(b"iCCP", [b"name\0\0", &packed[..]].concat())], &[]);
        let profile =
            |decoder: Decoder<Cursor<&Vec<u8>>>| decoder.read_info().unwrap().info().icc_profile.is_some();
        assert!(profile(Decoder::new(Cursor::new(&bytes))), "the test's profile cannot be read");
        assert!(!profile(decoder(Cursor::new(&bytes), Limits::default())));
        decode(&bytes, 1000).unwrap();
    }

    #[test]
    fn every_pixel_format_keeps_its_channels_and_depth() {
        use image::{ColorType as C, DynamicImage as D};
        for (kind, expected) in [
            (D::new_luma8(3, 2), C::L8),
            (D::new_luma_a8(3, 2), C::La8),
            (D::new_rgb8(3, 2), C::Rgb8),
            (D::new_rgba8(3, 2), C::Rgba8),
            (D::new_luma16(3, 2), C::L16),
            (D::new_luma_a16(3, 2), C::La16),
            (D::new_rgb16(3, 2), C::Rgb16),
            (D::new_rgba16(3, 2), C::Rgba16),
        ] {
            let mut bytes = Cursor::new(Vec::new());
            kind.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            let found = decode(bytes.get_ref(), 1000).unwrap().0;
            assert_eq!(found.color(), expected);
            assert_eq!(found, kind);
        }
        // 16 bits are scaled: 0x1234 of 0xFFFF is 18 of 255.
        let grey = image::ImageBuffer::<image::Luma<u16>, _>::from_pixel(2, 2, image::Luma([0x1234]));
        let mut bytes = Cursor::new(Vec::new());
        D::from(grey).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        assert_eq!(crate::picture::decode(bytes.get_ref()).unwrap().get_pixel(1, 1).0, [18; 3]);
    }
}
