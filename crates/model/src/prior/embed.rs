//! The input embeddings of the stream (paper §B.1).
//!
//! A text position is the sum of a token (or pad) embedding and a position embedding; an image
//! position is the sum of a token, a row and a column embedding.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::stream::shifted;
use super::{PriorConfig, Stream};
use crate::nn::{Init, Role};

/// All embedding tables of the prior.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[text_vocab + text_len + 1, D]`: the text tokens, one pad per position, start-of-text.
    text: Param<Tensor<2>>,
    /// `[text_len, D]`
    text_position: Param<Tensor<2>>,
    /// `[image_vocab + 1, D]`: the picture tokens, start-of-image.
    pub(crate) image: Param<Tensor<2>>,
    /// `[grid, D]`
    row: Param<Tensor<2>>,
    /// `[grid, D]`
    column: Param<Tensor<2>>,
}

impl Embedding {
    /// Random tables: tokens N(0, 0.125/√D); position tables N(0, 0.125/√(D·n)), where n is the
    /// number of position tables that are summed (paper §B.1).
    pub(super) fn new(config: &PriorConfig, init: &mut Init) -> Embedding {
        let d = config.d_model;
        let std = |tables: usize| 0.125 / ((d * tables) as f64).sqrt();
        Embedding {
            text: init.normal(Role::Embedding, [config.text_vocab + config.text_len + 1, d], std(1)),
            text_position: init.normal(Role::Embedding, [config.text_len, d], std(1)),
            image: init.normal(Role::Embedding, [config.image_vocab + 1, d], std(1)),
            row: init.normal(Role::Embedding, [config.grid, d], std(2)),
            column: init.normal(Role::Embedding, [config.grid, d], std(2)),
        }
    }

    pub(super) fn device(&self) -> Device {
        self.text.val().device()
    }

    /// The embedded stream, `[B, text_len + n, D]`.
    pub(super) fn forward(&self, stream: &Stream) -> Tensor<3> {
        match stream.image_len() {
            0 => self.text(stream),
            _ => Tensor::cat(vec![self.text(stream), self.image(stream)], 1),
        }
    }

    /// The text part of the stream, `[B, text_len, D]`.
    pub(super) fn text(&self, stream: &Stream) -> Tensor<3> {
        let [slots, _] = self.text.dims();
        let [text_len, _] = self.text_position.dims();
        let ids = shifted(&stream.text, text_len, (slots - 1) as u32);
        self.lookup(&self.text, &ids, stream.batch) + self.text_position.val().unsqueeze()
    }

    /// The image part of the stream, `[B, n, D]`.
    fn image(&self, stream: &Stream) -> Tensor<3> {
        let n = stream.image_len();
        let ids = shifted(&stream.seen, n, self.start_of_image());
        self.lookup(&self.image, &ids, stream.batch) + self.image_positions().narrow(0, 0, n).unsqueeze()
    }

    fn start_of_image(&self) -> u32 {
        (self.image.dims()[0] - 1) as u32
    }

    /// The row plus the column embedding of every cell, `[grid², D]`.
    pub(crate) fn image_positions(&self) -> Tensor<2> {
        let [grid, d] = self.row.dims();
        let rows = self.row.val().reshape([grid, 1, d]);
        let columns = self.column.val().reshape([1, grid, d]);
        (rows + columns).reshape([grid * grid, d])
    }

    /// Looks up the rows `ids` of `table`: `[batch, ids / batch, D]`.
    fn lookup(&self, table: &Param<Tensor<2>>, ids: &[u32], batch: usize) -> Tensor<3> {
        let [_, d] = table.dims();
        let values: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let ids: Tensor<1, Int> = Tensor::from_data(TensorData::new(values, [ids.len()]), &self.device());
        let n = ids.dims()[0];
        table.val().select(0, ids).reshape([batch, n / batch, d])
    }
}
