//! Counts a model's multiplications by weights from its sizes. Each takes two operations in the
//! forward pass and four more in the backward pass.
//!
//! Nothing else is counted: no attention over keys and values, no norms, losses or optimizer.

use tessera_model::dvae::DvaeConfig;

/// The kernel sizes of the four convolutions of a block in the dVAE's encoder (paper §A.1).
const ENCODER: [usize; 4] = [3, 3, 3, 1];
/// The kernel sizes of a block in the decoder: those of the encoder in reverse order.
const DECODER: [usize; 4] = [1, 3, 3, 3];

/// Returns the multiplications for one position in `n_layers` layers of width `d`: 3 D² for the
/// inputs of attention, D² for its output, and 2 · 4 D² for the MLP.
pub fn layers(n_layers: usize, d: usize) -> usize {
    12 * n_layers * d * d
}

/// Returns the multiplications for one picture in the dVAE's encoder: those of its first
/// convolution, and those of the others.
pub fn encoder(config: &DvaeConfig) -> [usize; 2] {
    let (side, grid, n_hid) = (config.image_size, config.grid(), config.n_hid);
    let groups = (0..config.groups).map(|group| [side >> group, n_hid << group]);
    let output = grid * grid * (n_hid << (config.groups - 1)) * config.vocab;
    [side * side * 7 * 7 * 3 * n_hid, blocks(config, n_hid, groups, ENCODER) + output]
}

/// Returns the multiplications for one picture in the dVAE's decoder: those of its first
/// convolution, and those of the others.
pub fn decoder(config: &DvaeConfig) -> [usize; 2] {
    let (side, grid, n_hid, n_init) = (config.image_size, config.grid(), config.n_hid, config.n_init);
    let groups = (0..config.groups).map(|group| [grid << group, n_hid << (config.groups - 1 - group)]);
    let output = side * side * n_hid * 6;
    [grid * grid * config.vocab * n_init, blocks(config, n_init, groups, DECODER) + output]
}

/// Returns the multiplications of all blocks. Each group is given by its side in cells and its
/// channels.
fn blocks(
    config: &DvaeConfig,
    mut n_in: usize,
    groups: impl Iterator<Item = [usize; 2]>,
    kernels: [usize; 4],
) -> usize {
    let mut sum = 0;
    for [side, n_out] in groups {
        for _ in 0..config.blocks_per_group {
            sum += side * side * block([std::mem::replace(&mut n_in, n_out), n_out], kernels);
        }
    }
    sum
}

/// Returns the multiplications for one cell in a block: its four convolutions, and a fifth if the
/// number of channels changes.
fn block([n_in, n_out]: [usize; 2], kernels: [usize; 4]) -> usize {
    let hidden = n_out / 4;
    let widths = [[n_in, hidden], [hidden, hidden], [hidden, hidden], [hidden, n_out]];
    let path = kernels.iter().zip(widths).map(|(k, [before, after])| k * k * before * after);
    path.sum::<usize>() + if n_in == n_out { 0 } else { n_in * n_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(image_size: usize, n_hid: usize) -> DvaeConfig {
        DvaeConfig { image_size, n_hid, ..DvaeConfig::released() }
    }

    /// The expected values were counted by PyTorch, with `benches/peers` on the path:
    ///
    /// ```python
    /// from torch.utils.flop_counter import FlopCounterMode
    /// with FlopCounterMode(display=False) as counter:
    ///     torch_dvae.Dvae(64).encoder(torch.rand(1, 3, 128, 128))
    ///     # or: .decoder(torch.rand(1, 8192, 16, 16))
    ///     # or: torch_dvae.Decoder(256).from_tokens(torch.zeros(1, 32, 32, dtype=torch.long))
    /// counter.get_total_flops()
    /// ```
    #[test]
    fn dvae_operations_equal_those_counted_by_pytorch() {
        let twice = |[first, others]: [usize; 2]| 2 * (first + others);
        assert_eq!(twice(encoder(&config(128, 64))), 6_096_420_864);
        assert_eq!(twice(decoder(&config(128, 64))), 5_356_126_208);
        assert_eq!(2 * decoder(&config(256, 256))[1], 305_815_093_248);
    }
}
