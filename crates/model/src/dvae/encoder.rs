//! The dVAE's encoder (paper §A.1): conv 7×7, groups of bottleneck blocks with max-pool between them, ReLU, conv 1×1.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;

use super::DvaeConfig;
use crate::nn::{Conv2d, Init};

/// One residual block: `id(x) + post_gain · conv(3,3,3,1)(x)`, a ReLU before each convolution.
#[derive(Module, Debug)]
pub struct EncBlock {
    id_path: Option<Conv2d>,
    conv_1: Conv2d,
    conv_2: Conv2d,
    conv_3: Conv2d,
    conv_4: Conv2d,
    #[module(skip)]
    post_gain: f64,
}

impl EncBlock {
    fn new(config: &DvaeConfig, init: &mut Init, [n_in, n_out]: [usize; 2]) -> EncBlock {
        let n_hid = n_out / 4;
        EncBlock {
            id_path: (n_in != n_out).then(|| Conv2d::new(init, [n_in, n_out], 1)),
            conv_1: Conv2d::new(init, [n_in, n_hid], 3),
            conv_2: Conv2d::new(init, [n_hid, n_hid], 3),
            conv_3: Conv2d::new(init, [n_hid, n_hid], 3),
            conv_4: Conv2d::new(init, [n_hid, n_out], 1),
            post_gain: config.post_gain(),
        }
    }

    /// `[B, n_in, S, S]` → `[B, n_out, S, S]`
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.conv_1.forward(relu(x.clone()));
        let h = self.conv_2.forward(relu(h));
        let h = self.conv_3.forward(relu(h));
        let h = self.conv_4.forward(relu(h));
        let id = match &self.id_path {
            Some(conv) => conv.forward(x),
            None => x,
        };
        id + h * self.post_gain
    }
}

/// Picture → logits over codes.
#[derive(Module, Debug)]
pub struct Encoder {
    input: Conv2d,
    groups: Vec<Vec<EncBlock>>,
    output: Conv2d,
}

impl Encoder {
    pub(super) fn new(config: &DvaeConfig, init: &mut Init) -> Encoder {
        let input = Conv2d::new(init, [3, config.n_hid], 7);
        let mut n_in = config.n_hid;
        let groups = (0..config.groups)
            .map(|group| {
                let n_out = config.n_hid << group;
                (0..config.blocks_per_group)
                    .map(|_| EncBlock::new(config, init, [std::mem::replace(&mut n_in, n_out), n_out]))
                    .collect()
            })
            .collect();
        Encoder { input, groups, output: Conv2d::new(init, [n_in, config.vocab], 1) }
    }

    /// `[B, 3, S, S]` mapped by [`map_pixels`](super::map_pixels) → logits `[B, V, G, G]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.input.forward(x);
        for (i, group) in self.groups.iter().enumerate() {
            x = group.iter().fold(x, |x, block| block.forward(x));
            if i + 1 < self.groups.len() {
                x = max_pool2d(x, MaxPoolOptions::new([2, 2]).with_stride([2, 2]));
            }
        }
        self.output.forward(relu(x))
    }
}
