//! Decodes complete or partial grids of tokens to pictures.

use anyhow::Result;
use burn::tensor::{Int, Tensor, TensorData};
use image::{RgbImage, imageops};
use rayon::prelude::*;
use tessera_base::Internal;
use tessera_base::pixels::from_floats;

use crate::dvae::Dvae;

/// The most pictures that are decoded in one batch.
const PICTURES: usize = 16;
/// The side, in tokens, of the picture from which a tile is cut. The decoder sees as far as about
/// three tokens, so the middle one is hardly affected by the edges.
const FIELD: usize = 7;

/// Decodes pictures of `grid` × `grid` tokens in raster order. Cells whose token is not known are
/// white.
///
/// # Errors
/// If the tensors cannot be read.
pub fn mosaics(dvae: &Dvae, grid: usize, known: &[Vec<Option<u32>>]) -> Result<Vec<RgbImage>> {
    // Each thread decodes pictures of its own, which is faster than dividing each convolution among
    // all threads.
    let together = known.len().div_ceil(rayon::current_num_threads()).clamp(1, PICTURES);
    let pictures: Result<Vec<Vec<RgbImage>>> =
        known.par_chunks(together).map(|known| decoded(dvae, grid, known)).collect();
    Ok(pictures?.into_iter().flatten().collect())
}

/// Decodes each of `codes` as a tile, a square with the side of a token: the middle of a picture
/// that is filled with this one code. A code has this look where its neighbours do not blend with
/// it, as in the even parts of a picture.
///
/// # Errors
/// If the tensors cannot be read.
pub fn tiles(dvae: &Dvae, codes: &[u32]) -> Result<Vec<RgbImage>> {
    let filled: Vec<_> = codes.iter().map(|&code| vec![Some(code); FIELD * FIELD]).collect();
    let middle = |picture: RgbImage| {
        let side = picture.width() / FIELD as u32;
        let start = FIELD as u32 / 2 * side;
        imageops::crop_imm(&picture, start, start, side, side).to_image()
    };
    Ok(mosaics(dvae, FIELD, &filled)?.into_iter().map(middle).collect())
}

fn decoded(dvae: &Dvae, grid: usize, known: &[Vec<Option<u32>>]) -> Result<Vec<RgbImage>> {
    let codes: Vec<i32> = known.iter().flatten().map(|code| code.unwrap_or(0) as i32).collect();
    let codes = TensorData::new(codes, [known.len(), grid, grid]);
    let codes: Tensor<3, Int> = Tensor::from_data(codes, &dvae.device());
    let mut pictures = to_images(dvae.decode(codes))?;
    pictures.iter_mut().zip(known).for_each(|(picture, known)| whiten(picture, known, grid));
    Ok(pictures)
}

/// Converts `[B, 3, S, S]` in [0, 1] to pictures.
fn to_images(x: Tensor<4>) -> Result<Vec<RgbImage>> {
    let [_, channels, side, _] = x.dims();
    let values = x.into_data().try_to_vec::<f32>().map_err(Internal::debug)?;
    Ok(values.chunks_exact(channels * side * side).map(|image| from_floats(image, side as u32)).collect())
}

/// Fills the cells whose token is not known with white.
fn whiten(image: &mut RgbImage, known: &[Option<u32>], grid: usize) {
    let (width, height) = image.dimensions();
    let cell = |at: u32, side: u32| (at * grid as u32 / side) as usize;
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        if known[cell(y, height) * grid + cell(x, width)].is_none() {
            *pixel = image::Rgb([255; 3]);
        }
    }
}

#[cfg(test)]
mod tests {
    use tessera_kernels::Cpu;

    use super::*;
    use crate::dvae::DvaeConfig;

    fn config() -> DvaeConfig {
        DvaeConfig {
            image_size: 16,
            groups: 2,
            blocks_per_group: 1,
            n_hid: 16,
            n_init: 16,
            vocab: 64,
            min_log_b: -3.0,
        }
    }

    fn floats(image: &RgbImage) -> Vec<f64> {
        image.as_raw().iter().map(|&byte| f64::from(byte)).collect()
    }

    /// In the middle of a picture of one code, the decoder returns the code's tile.
    #[test]
    fn tile_is_the_middle_of_a_picture_of_one_code() {
        let dvae = Dvae::new(&config(), 3, Cpu::best());
        let codes = [0, 1, 17, 40, 63];
        let grid = 11;
        let filled: Vec<_> = codes.map(|code| vec![Some(code); grid * grid]).into();
        for (tile, picture) in
            tiles(&dvae, &codes).unwrap().iter().zip(mosaics(&dvae, grid, &filled).unwrap())
        {
            let side = picture.width() / grid as u32;
            assert_eq!(tile.dimensions(), (side, side));
            let middle = imageops::crop_imm(&picture, 5 * side, 5 * side, side, side).to_image();
            let off =
                floats(tile).iter().zip(floats(&middle)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off <= 6.0, "a byte of the tile is off by {off}");
        }
    }

    /// The threads of the pool decode pictures with the precision that the dVAE was built with.
    #[test]
    fn pixels_have_the_models_precision_on_every_thread() {
        let known: Vec<Vec<Option<u32>>> =
            (0..8).map(|p| (0..64).map(|i| Some((p * 64 + i) * 7 % 64)).collect()).collect();
        let pixels = |cpu: Cpu| {
            let dvae = Dvae::new(&config(), 3, cpu);
            let here: Vec<RgbImage> =
                known.chunks(1).flat_map(|known| decoded(&dvae, 8, known).unwrap()).collect();
            assert_eq!(mosaics(&dvae, 8, &known).unwrap(), here, "{cpu}");
            here
        };
        let all: Vec<Vec<RgbImage>> = Cpu::all().into_iter().map(pixels).collect();
        if Cpu::all()[0].bf16() {
            assert!(
                all.iter().any(|pictures| *pictures != all[0]),
                "bf16 gives the same pixels as f32, so this test proves nothing"
            );
        }
    }
}
