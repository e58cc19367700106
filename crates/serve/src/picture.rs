//! Turns a drawing into the file that clients get: enlarged, and in the format that they request.

use anyhow::{Context, Result};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use tessera_data::picture::enlarge;
use tessera_data::png_text::{self, Effort};
use tessera_model::{Parameters, Picture};

/// The file format of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// PNG, with the parameters of the drawing in a text chunk.
    Png,
    /// JPEG, with a quality from 1 to 100.
    Jpeg(u8),
    /// Lossless WebP.
    WebP,
}

impl Encoding {
    /// Returns the format's name in requests, answers, URLs and, after `image/`, content types.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Png => "png",
            Encoding::Jpeg(_) => "jpeg",
            Encoding::WebP => "webp",
        }
    }
}

/// What all picture files of a request have in common.
#[derive(Clone)]
pub struct Style {
    /// The side in pixels.
    pub size: u32,
    /// The file format.
    pub encoding: Encoding,
    /// The parameters of all pictures together.
    pub parameters: Parameters,
}

impl Style {
    /// Returns the file of a finished or a partial picture.
    ///
    /// # Errors
    /// If the picture cannot be encoded.
    pub fn file(&self, picture: &Picture) -> Result<Vec<u8>> {
        let image = enlarge(&picture.image, [self.size; 2])?;
        let mut bytes = Vec::new();
        let (width, height, kind) = (image.width(), image.height(), ExtendedColorType::Rgb8);
        match self.encoding {
            Encoding::Png => return png_text::encode(&image, self.made(picture)?, Effort::Quick),
            Encoding::Jpeg(quality) => {
                JpegEncoder::new_with_quality(&mut bytes, quality).encode(&image, width, height, kind)
            }
            Encoding::WebP => WebPEncoder::new_lossless(&mut bytes).encode(&image, width, height, kind),
        }
        .with_context(|| format!("cannot encode the picture as {}", self.encoding.name()))?;
        Ok(bytes)
    }

    /// Returns the parameters of one picture as JSON.
    fn made(&self, picture: &Picture) -> Result<String> {
        let parameters = self.parameters.of_picture(picture, 0);
        Ok(serde_json::to_string(&parameters)?)
    }
}
