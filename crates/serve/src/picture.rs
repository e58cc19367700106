//! A drawing as the bytes that clients get: enlarged, in the format that they ask for.

use anyhow::{Context, Result};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use tessera_data::picture::enlarge;
use tessera_data::png_text::{self, Effort};
use tessera_model::{Parameters, Picture};

/// How a picture is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// With a text that says how it was made.
    Png,
    /// Of a quality from 1 to 100.
    Jpeg(u8),
    /// Without loss.
    WebP,
}

impl Encoding {
    /// Its name in requests, answers, addresses and, after `image/`, types.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Png => "png",
            Encoding::Jpeg(_) => "jpeg",
            Encoding::WebP => "webp",
        }
    }
}

/// What all pictures of a request have in common.
#[derive(Clone)]
pub struct Style {
    /// Side in pixels.
    pub size: u32,
    pub encoding: Encoding,
    /// As for a file that holds all of them.
    pub parameters: Parameters,
}

impl Style {
    /// The file of a finished picture, or of one that is still being drawn.
    ///
    /// # Errors
    /// If it cannot be encoded.
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

    /// How the picture was made.
    fn made(&self, picture: &Picture) -> Result<String> {
        let parameters = self.parameters.of_picture(picture, 0);
        Ok(serde_json::to_string(&parameters)?)
    }
}
