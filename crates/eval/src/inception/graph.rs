//! The architecture of Inception v3 (Szegedy et al. 2015) as a table with torchvision's names, and
//! its forward pass.
//!
//! The network is a sequence of layers; parallel branches are one layer that concatenates their
//! channels. The two published sets of weights differ only in a few pooling layers.

use anyhow::Result;
use burn::tensor::Tensor;
use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};

use super::Kind;

/// A layer. `C` represents a convolution: [`Spec`] in the table, or its weights in the network.
#[derive(Debug)]
pub enum Layer<C> {
    /// A convolution with batch norm and ReLU.
    Conv(C),
    /// 3×3 max pooling.
    MaxPool(Steps),
    /// 3×3 average pooling with stride 1.
    AvgPool(Border),
    /// Branches with the same input. Their outputs are concatenated in this order.
    Branches(Vec<Vec<Layer<C>>>),
}

/// The stride and padding of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// Stride 1, padded such that the output has the size of the input.
    Same,
    /// Stride 1 without padding.
    Inside,
    /// Stride 2 without padding.
    Halve,
}

impl Steps {
    /// The stride in pixels.
    pub fn stride(self) -> usize {
        match self {
            Steps::Same | Steps::Inside => 1,
            Steps::Halve => 2,
        }
    }

    /// The padding in pixels on each side, for a window of `k` pixels.
    pub fn padding(self, k: usize) -> usize {
        match self {
            Steps::Same => k / 2,
            Steps::Inside | Steps::Halve => 0,
        }
    }
}

/// Whether average pooling includes the zeros of the padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Border {
    /// The mean includes them, as in torchvision.
    Counts,
    /// The mean excludes them, as in TensorFlow.
    Ignored,
}

/// The name and shape of a convolution.
#[derive(Debug)]
pub struct Spec {
    /// The prefix of the names of its weights.
    pub name: String,
    /// The number of output channels.
    pub n_out: usize,
    /// The height and width of the kernel.
    pub kernel: [usize; 2],
    /// The stride and padding.
    pub steps: Steps,
}

type Table = Vec<Layer<Spec>>;

/// The table of Inception v3 from `[B, 3, 299, 299]` to `[B, 2048, 8, 8]`. The means of these 2048
/// feature maps are the features.
pub fn inception(kind: Kind) -> Table {
    let border = match kind {
        Kind::Tf2015 => Border::Ignored,
        Kind::Torchvision => Border::Counts,
    };
    // The last block of TensorFlow's graph of 2015 uses max pooling instead of average pooling.
    let last_pool = match kind {
        Kind::Tf2015 => Layer::MaxPool(Steps::Same),
        Kind::Torchvision => Layer::AvgPool(border),
    };
    vec![
        conv("Conv2d_1a_3x3", 32, [3, 3], Steps::Halve),
        conv("Conv2d_2a_3x3", 32, [3, 3], Steps::Inside),
        conv("Conv2d_2b_3x3", 64, [3, 3], Steps::Same),
        Layer::MaxPool(Steps::Halve),
        conv("Conv2d_3b_1x1", 80, [1, 1], Steps::Inside),
        conv("Conv2d_4a_3x3", 192, [3, 3], Steps::Inside),
        Layer::MaxPool(Steps::Halve),
        block_5("Mixed_5b", 32, border),
        block_5("Mixed_5c", 64, border),
        block_5("Mixed_5d", 64, border),
        block_6a("Mixed_6a"),
        block_6("Mixed_6b", 128, border),
        block_6("Mixed_6c", 160, border),
        block_6("Mixed_6d", 160, border),
        block_6("Mixed_6e", 192, border),
        block_7a("Mixed_7a"),
        block_7("Mixed_7b", Layer::AvgPool(border)),
        block_7("Mixed_7c", last_pool),
    ]
}

fn conv(name: &str, n_out: usize, kernel: [usize; 2], steps: Steps) -> Layer<Spec> {
    Layer::Conv(Spec { name: name.to_string(), n_out, kernel, steps })
}

/// torchvision's `InceptionA`, at 35×35 pixels. The branch with the pooling layer has `pooled`
/// output channels.
fn block_5(name: &str, pooled: usize, border: Border) -> Layer<Spec> {
    let same = |branch: &str, n_out, k| conv(&format!("{name}.{branch}"), n_out, [k, k], Steps::Same);
    Layer::Branches(vec![
        vec![same("branch1x1", 64, 1)],
        vec![same("branch5x5_1", 48, 1), same("branch5x5_2", 64, 5)],
        vec![same("branch3x3dbl_1", 64, 1), same("branch3x3dbl_2", 96, 3), same("branch3x3dbl_3", 96, 3)],
        vec![Layer::AvgPool(border), same("branch_pool", pooled, 1)],
    ])
}

/// torchvision's `InceptionB`, from 35×35 to 17×17 pixels.
fn block_6a(name: &str) -> Layer<Spec> {
    let same = |branch: &str, n_out, k| conv(&format!("{name}.{branch}"), n_out, [k, k], Steps::Same);
    let halve = |branch: &str, n_out| conv(&format!("{name}.{branch}"), n_out, [3, 3], Steps::Halve);
    Layer::Branches(vec![
        vec![halve("branch3x3", 384)],
        vec![same("branch3x3dbl_1", 64, 1), same("branch3x3dbl_2", 96, 3), halve("branch3x3dbl_3", 96)],
        vec![Layer::MaxPool(Steps::Halve)],
    ])
}

/// torchvision's `InceptionC`, at 17×17 pixels. It factorizes each 7×7 convolution into 1×7 and
/// 7×1, with `inner` channels between them.
fn block_6(name: &str, inner: usize, border: Border) -> Layer<Spec> {
    let same = |branch: &str, n_out, kernel| conv(&format!("{name}.{branch}"), n_out, kernel, Steps::Same);
    Layer::Branches(vec![
        vec![same("branch1x1", 192, [1, 1])],
        vec![
            same("branch7x7_1", inner, [1, 1]),
            same("branch7x7_2", inner, [1, 7]),
            same("branch7x7_3", 192, [7, 1]),
        ],
        vec![
            same("branch7x7dbl_1", inner, [1, 1]),
            same("branch7x7dbl_2", inner, [7, 1]),
            same("branch7x7dbl_3", inner, [1, 7]),
            same("branch7x7dbl_4", inner, [7, 1]),
            same("branch7x7dbl_5", 192, [1, 7]),
        ],
        vec![Layer::AvgPool(border), same("branch_pool", 192, [1, 1])],
    ])
}

/// torchvision's `InceptionD`, from 17×17 to 8×8 pixels.
fn block_7a(name: &str) -> Layer<Spec> {
    let same = |branch: &str, kernel| conv(&format!("{name}.{branch}"), 192, kernel, Steps::Same);
    let halve = |branch: &str, n_out| conv(&format!("{name}.{branch}"), n_out, [3, 3], Steps::Halve);
    Layer::Branches(vec![
        vec![same("branch3x3_1", [1, 1]), halve("branch3x3_2", 320)],
        vec![
            same("branch7x7x3_1", [1, 1]),
            same("branch7x7x3_2", [1, 7]),
            same("branch7x7x3_3", [7, 1]),
            halve("branch7x7x3_4", 192),
        ],
        vec![Layer::MaxPool(Steps::Halve)],
    ])
}

/// torchvision's `InceptionE`, at 8×8 pixels. Two of its branches end in two branches each.
fn block_7(name: &str, pool: Layer<Spec>) -> Layer<Spec> {
    let same = |branch: &str, n_out, kernel| conv(&format!("{name}.{branch}"), n_out, kernel, Steps::Same);
    let cross = |across: &str, down: &str| {
        Layer::Branches(vec![vec![same(across, 384, [1, 3])], vec![same(down, 384, [3, 1])]])
    };
    Layer::Branches(vec![
        vec![same("branch1x1", 320, [1, 1])],
        vec![same("branch3x3_1", 384, [1, 1]), cross("branch3x3_2a", "branch3x3_2b")],
        vec![
            same("branch3x3dbl_1", 448, [1, 1]),
            same("branch3x3dbl_2", 384, [3, 3]),
            cross("branch3x3dbl_3a", "branch3x3dbl_3b"),
        ],
        vec![pool, same("branch_pool", 192, [1, 1])],
    ])
}

/// Replaces each convolution of `table` with the result of `make`, which receives the convolution
/// and its number of input channels. `n_in` is the number of input channels of the first layer.
/// Returns the layers and the number of output channels.
///
/// # Errors
/// Returns the first error of `make`.
pub fn build<C>(
    table: Table,
    mut n_in: usize,
    make: &mut impl FnMut(Spec, usize) -> Result<C>,
) -> Result<(Vec<Layer<C>>, usize)> {
    let mut layers = Vec::with_capacity(table.len());
    for layer in table {
        layers.push(match layer {
            Layer::MaxPool(steps) => Layer::MaxPool(steps),
            Layer::AvgPool(border) => Layer::AvgPool(border),
            Layer::Conv(spec) => {
                let n_out = spec.n_out;
                let made = make(spec, n_in)?;
                n_in = n_out;
                Layer::Conv(made)
            }
            Layer::Branches(branches) => {
                let built = branches.into_iter().map(|branch| build(branch, n_in, make));
                let (branches, widths): (Vec<_>, Vec<usize>) =
                    built.collect::<Result<Vec<_>>>()?.into_iter().unzip();
                n_in = widths.iter().sum();
                Layer::Branches(branches)
            }
        });
    }
    Ok((layers, n_in))
}

/// Applies `layers` to `x`, `[B, C, S, S]`. `convolve` applies a convolution.
pub fn run<C>(
    layers: &[Layer<C>],
    x: Tensor<4>,
    convolve: &impl Fn(&C, Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    layers.iter().fold(x, |x, layer| match layer {
        Layer::Conv(conv) => convolve(conv, x),
        Layer::MaxPool(steps) => {
            let (stride, pad) = (steps.stride(), steps.padding(3));
            max_pool2d(x, MaxPoolOptions::new([3, 3]).with_stride([stride; 2]).with_padding([pad; 2]))
        }
        Layer::AvgPool(border) => {
            let options = AvgPoolOptions::new([3, 3]).with_stride([1, 1]).with_padding([1, 1]);
            avg_pool2d(x, options.with_count_include_pad(*border == Border::Counts))
        }
        Layer::Branches(branches) => {
            Tensor::cat(branches.iter().map(|branch| run(branch, x.clone(), convolve)).collect(), 1)
        }
    })
}
