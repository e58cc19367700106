//! Drawing: tokens, and pixels of tokens.

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData};
use tessera_kernels::decode::Weights;
use tessera_model::dvae::{Decoder as DvaeDecoder, Dvae, DvaeConfig};
use tessera_model::prior::{Pattern, Prior, PriorConfig};
use tessera_model::sample::choose;
use tessera_model::{Decoder, Event, Request, Sampling, Tessera};

use super::Work;

/// All tokens of `lanes` pictures of `grid` × `grid`, behind 64 text positions: 6 layers of width 384 with 6 heads that
/// attend to everything before, 4096 codes. The likeliest token is drawn, so that only the model is timed.
/// Weights are kept in 8 bits, as `draw` keeps them.
pub fn decode(lanes: usize, grid: usize) -> Result<Work> {
    let config = PriorConfig {
        text_len: 64,
        text_vocab: 4096,
        grid,
        image_vocab: 4096,
        d_model: 384,
        n_layers: 6,
        n_heads: 6,
        conv_kernel: 3,
    };
    let prior = Prior::new(&config, 1, &Device::flex()).with_pattern(Pattern::Causal);
    let decoder = Decoder::new(&prior, Weights::Int8)?;
    let likeliest = Sampling { temperature: 0.0, ..Sampling::paper() };
    let run = move || {
        let captions = decoder.read(&[&[1, 2, 3]])?;
        let mut drawn = decoder.start(vec![0; lanes]);
        let mut tokens = Vec::new();
        for _ in 0..config.image_len() {
            let logits = decoder.step(&captions, &mut drawn, &tokens)?;
            tokens = logits.chunks(config.image_vocab).map(|row| choose(row, &likeliest, 0.0)).collect();
        }
        Ok(())
    };
    Ok(Work { run: Box::new(run), amount: (lanes * grid * grid) as f64, unit: "tokens/s", gflop: None })
}

/// 32 × 32 tokens to 256 × 256 pixels, by a decoder of the released size.
pub fn released_decoder() -> Result<Work> {
    let config = DvaeConfig {
        image_size: 256,
        groups: 4,
        blocks_per_group: 2,
        n_hid: 256,
        n_init: 128,
        vocab: 8192,
        min_log_b: -1.5,
    };
    let device = Device::flex();
    let Dvae { decoder, .. } = Dvae::new(&config, 1, &device);
    let tokens: Vec<i32> = (0..1024).map(|i| i * 7919 % 8192).collect();
    let tokens: Tensor<3, Int> = Tensor::from_data(TensorData::new(tokens, [1, 32, 32]), &device);
    let run = move || {
        DvaeDecoder::forward_codes(&decoder, tokens.clone()).into_data();
        Ok(())
    };
    Ok(Work { run: Box::new(run), amount: 1.0, unit: "pictures/s", gflop: None })
}

/// Nine pictures by the embedded model, reading it included.
pub fn draw_9() -> Result<Work> {
    let run = || {
        let tessera = Tessera::embedded()?;
        let request =
            Request { prompt: "a red apple".into(), n: 9, seed: 1, previews: false, ..Request::default() };
        for event in tessera.draw(request)? {
            if let Event::Picture(picture) = event? {
                drop(picture);
            }
        }
        Ok(())
    };
    Ok(Work { run: Box::new(run), amount: 9.0, unit: "pictures/s", gflop: None })
}
