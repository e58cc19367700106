//! PNG files with a text chunk that records how they were made.

use std::io::{BufRead, Seek};

use anyhow::{Context, Result};
use image::RgbImage;

use crate::picture;

/// The chunk's keyword.
const KEYWORD: &str = "tessera";

/// The trade-off between encoding time and file size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Fast encoding: 0.1 ms for an enlarged drawing.
    Quick,
    /// Small files: 10 ms, for a file that is an eighth to a quarter smaller.
    Small,
}

/// Encodes a PNG with `text` in a text chunk.
pub fn encode(image: &RgbImage, text: String, effort: Effort) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(match effort {
        Effort::Quick => png::Compression::Fast,
        Effort::Small => png::Compression::Balanced,
    });
    encoder.add_itxt_chunk(KEYWORD.into(), text)?;
    encoder.write_header()?.write_image_data(image)?;
    Ok(bytes)
}

/// Reads the text of a PNG, if it has one: from a tEXt, zTXt or iTXt chunk, before or after the
/// pixels.
///
/// # Errors
/// If the file is not a complete PNG.
pub fn read(file: impl BufRead + Seek) -> Result<Option<String>> {
    let decoder = picture::png::decoder(file, png::Limits::default());
    let mut reader = decoder.read_info().context("not a complete PNG")?;
    if let Some(text) = text_of(reader.info())? {
        return Ok(Some(text));
    }
    // Programs that save a PNG again may move its text after the pixels.
    reader.finish().context("not a complete PNG")?;
    text_of(reader.info())
}

/// The maximum size of a decompressed text.
const MAX_TEXT_BYTES: usize = 2 << 20;

/// Returns the text of the first chunk with our keyword.
fn text_of(info: &png::Info) -> Result<Option<String>> {
    let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD).map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).and_then(|()| chunk.get_text())
    });
    let packed = || {
        let mut chunk = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == KEYWORD)?.clone();
        Some(chunk.decompress_text_with_limit(MAX_TEXT_BYTES).and_then(|()| chunk.get_text()))
    };
    let plain = || {
        let chunk = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEYWORD);
        chunk.map(|chunk| Ok(chunk.text.clone()))
    };
    utf8.or_else(packed).or_else(plain).transpose().context("its text chunk is damaged")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn text_over_the_size_limit_is_an_error() {
        for (length, is_read) in [(MAX_TEXT_BYTES / 2, true), (4 * MAX_TEXT_BYTES, false)] {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
            encoder.add_ztxt_chunk(KEYWORD.to_string(), "a".repeat(length)).unwrap();
            encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
            assert!(bytes.len() < 64 << 10);
            assert_eq!(read(Cursor::new(bytes)).is_ok(), is_read, "{length} bytes");
        }
    }

    #[test]
    fn written_text_is_read_back() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 9]));
        let text = "{\"prompt\":\"ein grüner Apfel\"}";
        let bytes = encode(&image, text.into(), Effort::Quick).unwrap();
        assert_eq!(read(Cursor::new(&bytes)).unwrap().unwrap(), text);
        assert_eq!(crate::picture::decode(&bytes).unwrap(), image);
        let plain = crate::picture::encode_png(&image).unwrap();
        assert_eq!(read(Cursor::new(&plain)).unwrap(), None);
        assert!(read(Cursor::new(&bytes[..40])).is_err());
    }

    /// Other programs change our files when they save them: PIL writes tEXt or zTXt, others move
    /// the text after the pixels.
    #[test]
    fn text_in_any_chunk_and_place_is_read() {
        let (image, text) = (RgbImage::new(5, 3), "{\"prompt\":\"ein grüner Apfel\"}");
        let png_with = |add: &dyn Fn(&mut png::Encoder<&mut Vec<u8>>)| {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, 5, 3);
            encoder.set_color(png::ColorType::Rgb);
            add(&mut encoder);
            encoder.write_header().unwrap().write_image_data(&image).unwrap();
            bytes
        };
        let plain = png_with(&|encoder| encoder.add_text_chunk(KEYWORD.into(), text.into()).unwrap());
        let packed = png_with(&|encoder| encoder.add_ztxt_chunk(KEYWORD.into(), text.into()).unwrap());
        let other = png_with(&|encoder| encoder.add_text_chunk("Comment".into(), "none".into()).unwrap());
        let mut after = Vec::new();
        let mut encoder = png::Encoder::new(&mut after, 5, 3);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&image).unwrap();
        writer.write_text_chunk(&png::text_metadata::ITXtChunk::new(KEYWORD, text)).unwrap();
        writer.finish().unwrap();
        for (place, bytes) in [("tEXt", plain), ("zTXt", packed), ("after the pixels", after)] {
            assert_eq!(read(Cursor::new(&bytes)).unwrap().as_deref(), Some(text), "{place}");
        }
        assert_eq!(read(Cursor::new(&other)).unwrap(), None);
    }
}
