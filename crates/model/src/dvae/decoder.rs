//! The dVAE's decoder (paper §A.1): conv 1×1 over one-hot codes, groups of blocks with nearest upsampling between
//! them, ReLU, conv 1×1 to three means and three ln b.

use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Int, Tensor};

use super::DvaeConfig;
use crate::nn::{Conv2d, Init};

/// One residual block: `id(x) + post_gain · conv(1,3,3,3)(x)`, a ReLU before each convolution.
#[derive(Module, Debug)]
pub struct DecBlock {
    id_path: Option<Conv2d>,
    conv_1: Conv2d,
    conv_2: Conv2d,
    conv_3: Conv2d,
    conv_4: Conv2d,
    #[module(skip)]
    post_gain: f64,
}

impl DecBlock {
    fn new(config: &DvaeConfig, init: &mut Init, [n_in, n_out]: [usize; 2]) -> DecBlock {
        let n_hid = n_out / 4;
        DecBlock {
            id_path: (n_in != n_out).then(|| Conv2d::new(init, [n_in, n_out], 1)),
            conv_1: Conv2d::new(init, [n_in, n_hid], 1),
            conv_2: Conv2d::new(init, [n_hid, n_hid], 3),
            conv_3: Conv2d::new(init, [n_hid, n_hid], 3),
            conv_4: Conv2d::new(init, [n_hid, n_out], 3),
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

/// (Relaxed) one-hot codes → the likelihood's parameters.
#[derive(Module, Debug)]
pub struct Decoder {
    input: Conv2d,
    groups: Vec<Vec<DecBlock>>,
    output: Conv2d,
}

impl Decoder {
    pub(super) fn new(config: &DvaeConfig, init: &mut Init) -> Decoder {
        let input = Conv2d::new(init, [config.vocab, config.n_init], 1);
        let mut n_in = config.n_init;
        let groups = (0..config.groups)
            .map(|group| {
                let n_out = config.n_hid << (config.groups - 1 - group);
                (0..config.blocks_per_group)
                    .map(|_| DecBlock::new(config, init, [std::mem::replace(&mut n_in, n_out), n_out]))
                    .collect()
            })
            .collect();
        Decoder { input, groups, output: Conv2d::new(init, [n_in, 6], 1) }
    }

    /// Relaxed one-hot `[B, V, G, G]` → `[B, 6, S, S]`: three means, then three ln b.
    pub fn forward(&self, codes: Tensor<4>) -> Tensor<4> {
        self.blocks(self.input.forward(codes))
    }

    /// Codes `[B, G, G]` → `[B, 6, S, S]`. The input convolution over a one-hot is a row lookup: the codebook.
    pub fn forward_codes(&self, codes: Tensor<3, Int>) -> Tensor<4> {
        let [b, g, _] = codes.dims();
        let [n_init, vocab, _, _] = self.input.weight.dims();
        let codebook = self.input.weight.val().reshape([n_init, vocab]).transpose(); // [V, n_init]
        let rows = codebook.select(0, codes.reshape([b * g * g])) + self.input.bias.val().unsqueeze();
        self.blocks(rows.reshape([b, g, g, n_init]).permute([0, 3, 1, 2]))
    }

    fn blocks(&self, mut x: Tensor<4>) -> Tensor<4> {
        for (i, group) in self.groups.iter().enumerate() {
            x = group.iter().fold(x, |x, block| block.forward(x));
            if i + 1 < self.groups.len() {
                let [_, _, h, w] = x.dims();
                let options =
                    InterpolateOptions::new(InterpolateMode::Nearest).with_output_size([2 * h, 2 * w]);
                x = interpolate(x, options);
            }
        }
        self.output.forward(relu(x))
    }
}
