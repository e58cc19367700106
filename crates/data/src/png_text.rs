//! PNG files that say in a text chunk how they were made.

use std::io::{BufRead, Seek};

use anyhow::{Context, Result};
use image::RgbImage;

use crate::picture;

/// The chunk's keyword.
const KEYWORD: &str = "tessera";

/// How much time a PNG may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// 0.1 ms for an enlarged drawing.
    Quick,
    /// 10 ms, for a file an eighth to a quarter smaller.
    Small,
}

/// The bytes of a PNG that carries `text`.
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

/// The text that a PNG carries, if it has any.
///
/// # Errors
/// If it is not a whole PNG.
pub fn read(file: impl BufRead + Seek) -> Result<Option<String>> {
    let reader =
        picture::png::decoder(file, png::Limits::default()).read_info().context("not a whole PNG")?;
    let chunk = reader.info().utf8_text.iter().find(|chunk| chunk.keyword == KEYWORD);
    chunk.map(|chunk| chunk.get_text().context("its text chunk is damaged")).transpose()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 9]));
        let text = "{\"prompt\":\"ein grüner Apfel\"}";
        let bytes = encode(&image, text.into(), Effort::Quick).unwrap();
        assert_eq!(read(Cursor::new(&bytes)).unwrap().unwrap(), text);
        assert_eq!(crate::picture::decode(&bytes).unwrap(), image);
        let plain = crate::picture::encode_png(&image).unwrap();
        assert_eq!(read(Cursor::new(&plain)).unwrap(), None);
        assert!(read(Cursor::new(&bytes[..40])).is_err());
    }
}
