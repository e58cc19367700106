//! Losses, and one backward pass over the graph of a complete model.

use anyhow::Result;
use burn::module::Module;
use burn::tensor::Tensor;
use tessera_model::nn::{GradientSink, Part, take_gradients};

use crate::dist::lane::Lane;
use crate::log::Metrics;

/// A loss to differentiate, and other metrics to log.
pub struct Loss {
    /// The loss, `[1]`.
    pub total: Tensor<1>,
    /// The name and value of each metric; values are `[1]`.
    pub figures: Vec<(&'static str, Tensor<1>)>,
}

impl Loss {
    /// Returns the loss and the metrics as numbers.
    pub fn values(&self) -> (f64, Metrics) {
        let value = |x: &Tensor<1>| x.clone().without_autodiff().into_scalar::<f64>();
        (value(&self.total), self.figures.iter().map(|(name, figure)| (*name, value(figure))).collect())
    }
}

/// Sums over micro-batches of equal size: of their losses and metrics and, in a [`GradientSink`], of
/// their gradients.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    /// The number of micro-batches.
    pub parts: usize,
    /// The sum of their losses.
    pub loss: f64,
    /// The sum of each metric.
    pub metrics: Metrics,
    /// The resblocks in which a value is not finite, in the order in which they were found.
    pub overflowed: Vec<usize>,
    /// For each resblock of the first micro-batch: log₂ of the root mean square of the gradient of
    /// its output, before scaling. Empty if the backward pass does not compute it.
    pub gradient_log2: Vec<f64>,
    /// The first of several ranks whose loss is not finite.
    pub nonfinite_rank: Option<usize>,
}

impl Sums {
    /// The loss and the metrics of one micro-batch.
    pub fn of_part(loss: f64, metrics: Metrics) -> Sums {
        Sums { parts: 1, loss, metrics, ..Sums::default() }
    }

    /// Adds the sums of more micro-batches.
    pub fn add(&mut self, more: Sums) {
        if self.parts == 0 {
            *self = more;
            return;
        }
        self.parts += more.parts;
        self.loss += more.loss;
        self.metrics.iter_mut().zip(more.metrics).for_each(|(sum, (_, value))| sum.1 += value);
        self.overflowed.extend(more.overflowed);
    }

    /// Adds up the sums of all ranks.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn of_all_ranks(own: Sums, ranks: &Lane) -> Result<Sums> {
        if ranks.size() == 1 {
            return Ok(own);
        }
        // Metrics have the same names everywhere.
        let values: Vec<f64> = own.metrics.iter().map(|(_, value)| *value).collect();
        let overflowed: Vec<f64> = own.overflowed.iter().map(|&i| i as f64).collect();
        let sent = [&[own.parts as f64, own.loss, values.len() as f64][..], &values, &overflowed].concat();
        let received = ranks.run("losses", move |comm| comm.all_gather(&sent))?;
        let mut all = Sums::default();
        for sums in &received {
            let (numbers, rest) = sums.split_at(3);
            let (values, overflowed) = rest.split_at(numbers[2] as usize);
            let metrics = own.metrics.iter().zip(values).map(|((name, _), &value)| (*name, value)).collect();
            let overflowed = overflowed.iter().map(|&i| i as usize).collect();
            let (parts, loss) = (numbers[0] as usize, numbers[1]);
            all.add(Sums {
                parts,
                loss,
                metrics,
                overflowed,
                gradient_log2: own.gradient_log2.clone(),
                ..Sums::default()
            });
        }
        all.nonfinite_rank = received.iter().position(|sums| !sums[1].is_finite());
        Ok(all)
    }

    /// The factor that turns the sums into means.
    pub fn share(&self) -> f64 {
        1.0 / self.parts.max(1) as f64
    }
}

/// Computes the loss of a micro-batch, and passes its gradient to `sink`, with one backward pass over
/// the complete graph.
///
/// If there is a gradient scale, the loss is multiplied by it before the backward pass, and the
/// gradient is divided by it afterwards. The complete graph then counts as one resblock (paper
/// §A.2: ordinary loss scaling).
///
/// # Errors
/// If `sink` fails.
pub fn differentiate<M: Module>(
    model: &M,
    scale: Option<f32>,
    sink: &mut dyn GradientSink,
    loss: impl FnOnce(&M) -> Loss,
) -> Result<Sums> {
    let model = model.clone().train();
    let loss = loss(&model);
    let (value, metrics) = loss.values();
    let total = match scale {
        Some(scale) => loss.total * scale,
        None => loss.total,
    };
    let gradients = take_gradients(&model, &mut total.backward());
    let is_finite = sink.take(Part::Model, gradients, scale)?;
    let overflowed = if is_finite { Vec::new() } else { vec![0] };
    Ok(Sums { overflowed, ..Sums::of_part(value, metrics) })
}
