//! The residual block of the dVAE (paper §A.1): `id(x) + post_gain · path(x)`, where the path has
//! four convolutions with a ReLU before each.
//!
//! The kernel sizes are 3, 3, 3, 1 in the encoder and, mirrored, 1, 3, 3, 3 in the decoder.

use burn::module::Module;
use burn::tensor::Tensor;
use tessera_kernels::{OutputDtype, SmallFloat};

use super::DvaeConfig;
use crate::nn::{Conv2d, Init};

/// One bottleneck block. Its hidden layers have a quarter of the output's channels.
#[derive(Module, Debug)]
pub struct ResBlock {
    id_path: Option<Conv2d>,
    conv_1: Conv2d,
    conv_2: Conv2d,
    conv_3: Conv2d,
    conv_4: Conv2d,
    #[module(skip)]
    post_gain: f64,
}

impl ResBlock {
    pub(super) fn new(
        config: &DvaeConfig,
        init: &mut Init,
        [n_in, n_out]: [usize; 2],
        kernels: [usize; 4],
    ) -> ResBlock {
        let n_hid = n_out / 4;
        let [k1, k2, k3, k4] = kernels;
        ResBlock {
            id_path: (n_in != n_out).then(|| Conv2d::new(init, [n_in, n_out], 1)),
            conv_1: Conv2d::new(init, [n_in, n_hid], k1),
            conv_2: Conv2d::new(init, [n_hid, n_hid], k2),
            conv_3: Conv2d::new(init, [n_hid, n_hid], k3),
            conv_4: Conv2d::new(init, [n_hid, n_out], k4),
            post_gain: config.post_gain(),
        }
    }

    /// Sets the 16-bit format of all convolutions in training.
    pub(super) fn store(&mut self, storage: Option<SmallFloat>) {
        let convs = [&mut self.conv_1, &mut self.conv_2, &mut self.conv_3, &mut self.conv_4];
        convs.into_iter().chain(&mut self.id_path).for_each(|conv| conv.storage = storage);
    }

    /// Runs the block: `[B, S, S, n_in]` → `[B, S, S, n_out]`, both in f32.
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.conv_1.after_relu(x.clone(), OutputDtype::Compute);
        let h = self.conv_2.after_relu(h, OutputDtype::Compute);
        let h = self.conv_3.after_relu(h, OutputDtype::Compute);
        let id = match &self.id_path {
            Some(conv) => conv.forward(x, OutputDtype::F32),
            None => x,
        };
        self.conv_4.add_to(id, h, self.post_gain)
    }
}
