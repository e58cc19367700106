//! The dVAE's encoder (paper §A.1): a 7×7 convolution, groups of bottleneck blocks with max-pooling
//! between them, a ReLU, and a 1×1 convolution to the logits.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tessera_kernels::{Cpu, OutputDtype, SmallFloat, max_pool2};

use super::{DvaeConfig, ResBlock};
use crate::nn::{Conv2d, Init};

/// Sizes of a block's four kernels.
pub(super) const KERNELS: [usize; 4] = [3, 3, 3, 1];

/// Maps a picture to logits over codes.
#[derive(Module, Debug)]
pub struct Encoder {
    input: Conv2d,
    groups: Vec<Vec<ResBlock>>,
    output: Conv2d,
    #[module(skip)]
    cpu: Cpu,
}

impl Encoder {
    pub(super) fn new(config: &DvaeConfig, init: &mut Init) -> Encoder {
        let input = Conv2d::new(init, [3, config.n_hid], 7);
        let mut n_in = config.n_hid;
        let groups = (0..config.groups)
            .map(|group| {
                let n_out = config.n_hid << group;
                (0..config.blocks_per_group)
                    .map(|_| {
                        ResBlock::new(config, init, [std::mem::replace(&mut n_in, n_out), n_out], KERNELS)
                    })
                    .collect()
            })
            .collect();
        Encoder { input, groups, output: Conv2d::head(init, [n_in, config.vocab], 1), cpu: init.cpu() }
    }

    /// Sets the 16-bit format of all convolutions in training, except the last, which keeps 32 bits
    /// (paper §A.1).
    pub(super) fn store(&mut self, storage: Option<SmallFloat>) {
        self.input.storage = storage;
        self.groups.iter_mut().flatten().for_each(|block| block.store(storage));
    }

    /// What the encoder computes with on the processor.
    pub(super) fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The device of the weights.
    pub(super) fn device(&self) -> Device {
        self.input.weight.val().device()
    }

    /// Encodes pictures mapped by [`map_pixels`](super::map_pixels): `[B, 3, S, S]` → logits
    /// `[B, G, G, V]`. The last convolution multiplies f32 (paper §A.1).
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.input.forward(x.permute([0, 2, 3, 1]), OutputDtype::F32);
        for (i, group) in self.groups.iter().enumerate() {
            x = group.iter().fold(x, |x, block| block.forward(x));
            if i + 1 < self.groups.len() {
                x = max_pool2(self.cpu, x);
            }
        }
        self.output.after_relu(x, OutputDtype::F32Exact)
    }
}
