//! Reconstructs a picture from its tokens, to show how much stage 1 preserves (paper §2.1,
//! figure 1).

use anyhow::{Result, ensure};
use burn::tensor::{Int, Tensor, TensorData};
use image::RgbImage;
use tessera_base::Internal;
use tessera_base::pixels::{from_floats, psnr, to_floats};
use tessera_data::picture::{ResizeFilter, Square, resize};
use tessera_model::dvae::{Dvae, DvaeConfig};

/// A picture, its tokens and its reconstruction.
pub struct Reconstruction {
    /// The centre square of the picture at the model's size: the encoder's input.
    pub original: RgbImage,
    /// The decoder's output.
    pub restored: RgbImage,
    /// The rows of tokens.
    pub tokens: Vec<Vec<u32>>,
    /// The peak signal-to-noise ratio between the two pictures in dB, at most 100.
    pub psnr_db: f64,
}

/// Encodes and decodes the centre square of `image`. It is resized to the model's size as in
/// OpenAI's notebook (Lanczos).
///
/// # Errors
/// If the picture is smaller than the model's size.
pub fn reconstruct(dvae: &Dvae, config: &DvaeConfig, image: &RgbImage) -> Result<Reconstruction> {
    let side = config.image_size as u32;
    let (width, height) = image.dimensions();
    ensure!(
        width.min(height) >= side,
        "a picture of {width}x{height} pixels; wanted at least {side} on its short side"
    );
    let original = resize(image, Square::centre(image), side, ResizeFilter::Lanczos)?;
    let shape = [1, 3, config.image_size, config.image_size];
    let x: Tensor<4> = Tensor::from_data(TensorData::new(to_floats(&original), shape), &dvae.device());
    let codes: Tensor<3, Int> = dvae.encode(x);
    let flat: Vec<u32> = codes.to_data().iter::<i64>().map(|code| code as u32).collect();
    let restored = dvae.decode(codes).into_data();
    let restored = restored.try_to_vec::<f32>().map_err(Internal::debug)?;
    let restored = from_floats(&restored, side);
    Ok(Reconstruction {
        tokens: flat.chunks(config.grid()).map(<[u32]>::to_vec).collect(),
        psnr_db: psnr(&original, &restored),
        original,
        restored,
    })
}
