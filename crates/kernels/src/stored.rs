//! Storage in 16 bits, emulated: numbers and their gradients are rounded as if they had been stored and read again.

use burn::backend::flex::FlexTensor;
use burn::tensor::{FloatDType, Tensor};
use rayon::prelude::*;

use crate::op::{Input, Op, apply, dims, floats, tensor};
use crate::small_float::SmallFloat;

/// `x`, in f32, as it is after being stored in `format`; on the way back its gradient is stored so too. What is too large for
/// the format becomes infinite, what is too small 0.
///
/// # Panics
/// On a device other than the processor, if `format` is not one of the hardware's.
pub fn stored<const D: usize>(x: Tensor<D>, format: SmallFloat) -> Tensor<D> {
    match Input::new(x.clone()) {
        Some(x) => apply(Stored { format }, [x]),
        None => stored_reference(x, format),
    }
}

/// [`stored`] in Burn's operations: the gradient of a cast is a cast.
///
/// # Panics
/// If `format` is not one of the hardware's.
pub fn stored_reference<const D: usize>(x: Tensor<D>, format: SmallFloat) -> Tensor<D> {
    let narrow = match format {
        SmallFloat::F16 => FloatDType::F16,
        SmallFloat::Bf16 => FloatDType::BF16,
        SmallFloat::OneSixNine | SmallFloat::ZeroSixTen => {
            panic!("no device has numbers of six bits of exponent; wanted f16 or bf16")
        }
    };
    x.cast(narrow).cast(FloatDType::F32)
}

#[derive(Debug, Clone)]
struct Stored {
    format: SmallFloat,
}

impl Op<1> for Stored {
    type Saved = ();

    fn forward(&self, [x]: [&FlexTensor; 1], keep: bool) -> (FlexTensor, Option<()>) {
        (self.round(x), keep.then_some(()))
    }

    fn backward(
        &self,
        _: [&FlexTensor; 1],
        _: &(),
        gradient: &FlexTensor,
        [wanted]: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        [wanted.then(|| self.round(gradient))]
    }
}

impl Stored {
    fn round(&self, x: &FlexTensor) -> FlexTensor {
        let rounded: Vec<f32> = floats(x).par_iter().map(|&value| self.format.round(value)).collect();
        tensor(rounded, &dims(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{grad, hold_equal, leaf};

    #[test]
    fn stored_is_its_reference() {
        for format in [SmallFloat::F16, SmallFloat::Bf16] {
            hold_equal(
                || leaf([3, 5, 7], 1),
                |x| stored(x.clone(), format),
                |x| stored_reference(x.clone(), format),
                |x, g| vec![grad(x, g)],
            );
        }
    }
}
