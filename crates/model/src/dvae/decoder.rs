//! The dVAE's decoder (paper §A.1): a 1×1 convolution over one-hot codes, groups of blocks with
//! nearest-neighbour upsampling between them, a ReLU, and a 1×1 convolution to three means and
//! three ln b.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use tessera_kernels::{Cpu, OutputDtype, SmallFloat, upsample2};

use super::{DvaeConfig, ResBlock};
use crate::nn::{Conv2d, Init};

/// Sizes of a block's four kernels.
pub(super) const KERNELS: [usize; 4] = [1, 3, 3, 3];

/// Maps (relaxed) one-hot codes to the parameters of the likelihood of the pixels.
#[derive(Module, Debug)]
pub struct Decoder {
    input: Conv2d,
    groups: Vec<Vec<ResBlock>>,
    output: Conv2d,
    #[module(skip)]
    cpu: Cpu,
}

impl Decoder {
    pub(super) fn new(config: &DvaeConfig, init: &mut Init) -> Decoder {
        let input = Conv2d::head(init, [config.vocab, config.n_init], 1);
        let mut n_in = config.n_init;
        let groups = (0..config.groups)
            .map(|group| {
                let n_out = config.n_hid << (config.groups - 1 - group);
                (0..config.blocks_per_group)
                    .map(|_| {
                        ResBlock::new(config, init, [std::mem::replace(&mut n_in, n_out), n_out], KERNELS)
                    })
                    .collect()
            })
            .collect();
        Decoder { input, groups, output: Conv2d::new(init, [n_in, 6], 1), cpu: init.cpu() }
    }

    /// Sets the 16-bit format of all convolutions in training, except the first, which keeps 32
    /// bits (paper §A.1).
    pub(super) fn store(&mut self, storage: Option<SmallFloat>) {
        self.output.storage = storage;
        self.groups.iter_mut().flatten().for_each(|block| block.store(storage));
    }

    /// Decodes relaxed one-hot codes: `[B, G, G, V]` → `[B, 6, S, S]`, three means, then three ln
    /// b. The first convolution multiplies f32 (paper §A.1).
    pub fn forward(&self, codes: Tensor<4>) -> Tensor<4> {
        self.blocks(self.input.forward(codes, OutputDtype::F32Exact))
    }

    /// Decodes codes: `[B, G, G]` → `[B, 6, S, S]`. The input convolution of a one-hot vector is a
    /// lookup of a row of its weights, the codebook.
    pub fn forward_codes(&self, codes: Tensor<3, Int>) -> Tensor<4> {
        let [b, g, _] = codes.dims();
        let [n_init, vocab, _, _] = self.input.weight.dims();
        let codebook = self.input.weight.val().reshape([n_init, vocab]).transpose(); // [V, n_init]
        let rows = codebook.select(0, codes.reshape([b * g * g])) + self.input.bias.val().unsqueeze();
        self.blocks(rows.reshape([b, g, g, n_init]))
    }

    fn blocks(&self, mut x: Tensor<4>) -> Tensor<4> {
        for (i, group) in self.groups.iter().enumerate() {
            x = group.iter().fold(x, |x, block| block.forward(x));
            if i + 1 < self.groups.len() {
                x = upsample2(self.cpu, x);
            }
        }
        self.output.after_relu(x, OutputDtype::F32).permute([0, 3, 1, 2])
    }
}
