//! How a model file stores weights: losslessly, rounded to f16, or in 8 bits.

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::HostTensor;

/// The number of values that share one scale in 8-bit storage.
const BLOCK: usize = 32;
/// The suffix of the names of tensors of scales.
pub(super) const SCALES: &str = "#scales";

/// How a file stores its weights. Reading a file gives `Int8` if it has matrices in 8 bits, else
/// `Exact`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StorageDtype {
    /// Lossless: each tensor in f16 if f16 represents all its values exactly, else in f32.
    #[default]
    Exact,
    /// Every tensor in f32.
    F32,
    /// Every tensor rounded to f16.
    F16,
    /// Matrices of the prior and of the contrastive model as signed bytes, with one f16 scale per
    /// block of 32; their other tensors rounded to f16. The dVAE is stored losslessly, because the
    /// prior has learnt the tokens of exactly these weights.
    Int8,
}

/// A tensor as it is stored in a file: name, dtype, shape, bytes.
pub(super) type Encoded = (String, Dtype, Vec<usize>, Vec<u8>);

impl StorageDtype {
    /// Encodes `tensor`, which belongs to `part` of the model. The result is one tensor, or in 8
    /// bits two: the scales and the bytes.
    ///
    /// # Errors
    /// If a value that should be stored in f16 is beyond its range.
    pub(super) fn encode(self, part: &str, tensor: &HostTensor) -> Result<Vec<Encoded>> {
        let HostTensor { name, shape, values } = tensor;
        let name = format!("{part}.{name}");
        let encoded = |dtype, bytes| vec![(name.clone(), dtype, shape.clone(), bytes)];
        let rounded =
            || Ok(encoded(Dtype::F16, f16_bytes(values).with_context(|| format!("weight {name}"))?));
        match (self, part) {
            (StorageDtype::F32, _) => Ok(encoded(Dtype::F32, f32_bytes(values))),
            (StorageDtype::Exact, _) | (StorageDtype::Int8, "dvae") => {
                Ok(match values.iter().all(|&v| is_f16(v)) {
                    true => rounded()?,
                    false => encoded(Dtype::F32, f32_bytes(values)),
                })
            }
            (StorageDtype::Int8, _) if shape.len() > 1 => {
                let (bytes, scales) = quantize(values);
                let scales = (format!("{name}{SCALES}"), Dtype::F16, vec![scales.len()], f16_bytes(&scales)?);
                Ok([vec![scales], encoded(Dtype::I8, bytes)].concat())
            }
            (StorageDtype::F16 | StorageDtype::Int8, _) => rounded(),
        }
    }
}

/// Decodes the values of the tensor `view`, whose name among `tensors` is `name`.
pub(super) fn decode(name: &str, view: &TensorView<'_>, tensors: &SafeTensors<'_>) -> Result<Vec<f32>> {
    match view.dtype() {
        Dtype::F32 => Ok(view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()),
        Dtype::F16 => Ok(halves(view.data())),
        Dtype::I8 => {
            let scales = tensors.tensor(&format!("{name}{SCALES}")).context("scales are missing")?;
            dequantize(view.data(), &halves(scales.data())).with_context(|| name.to_string())
        }
        other => bail!("weight {name} is {other:?}; wanted F32, F16 or I8"),
    }
}

fn is_f16(value: f32) -> bool {
    f16::from_f32(value).to_f32().to_bits() == value.to_bits()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f16_bytes(values: &[f32]) -> Result<Vec<u8>> {
    let too_large = values.iter().find(|value| value.is_finite() && f16::from_f32(**value).is_infinite());
    if let Some(value) = too_large {
        bail!("{value:?} is beyond the range of f16; store the model in f32")
    }
    Ok(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect())
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
}

/// Quantizes values to signed bytes with one scale per block: the largest magnitude of a block
/// becomes 127.
fn quantize(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let scale = |block: &[f32]| {
        let largest = block.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        f16::from_f32(largest / 127.0).to_f32()
    };
    let scales: Vec<f32> = values.chunks(BLOCK).map(scale).collect();
    let byte =
        |(v, scale): (&f32, f32)| (v / scale.max(f32::MIN_POSITIVE)).round().clamp(-127.0, 127.0) as i8 as u8;
    let blocks = values.chunks(BLOCK).zip(&scales);
    (blocks.flat_map(|(block, &scale)| block.iter().map(move |v| byte((v, scale)))).collect(), scales)
}

fn dequantize(bytes: &[u8], scales: &[f32]) -> Result<Vec<f32>> {
    ensure!(
        scales.len() == bytes.len().div_ceil(BLOCK),
        "{} scales for {} values",
        scales.len(),
        bytes.len()
    );
    let blocks = bytes.chunks(BLOCK).zip(scales);
    Ok(blocks.flat_map(|(block, &scale)| block.iter().map(move |&b| f32::from(b as i8) * scale)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::ModelFile;
    use super::*;

    fn tensor(name: &str, values: &[f32]) -> HostTensor {
        HostTensor { name: name.into(), shape: vec![2, values.len() / 2], values: values.to_vec() }
    }

    /// Writes and reads a file. Returns what was read, and the dtypes of the stored tensors.
    fn stored(file: ModelFile, storage: StorageDtype) -> Result<(ModelFile, Vec<(String, Dtype)>)> {
        let bytes = ModelFile { storage, ..file }.to_bytes()?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        let mut types: Vec<_> = tensors.iter().map(|(name, view)| (name.to_string(), view.dtype())).collect();
        types.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((ModelFile::from_bytes(&bytes)?, types))
    }

    fn two() -> ModelFile {
        let (half, full) = (tensor("half", &[0.5, -1.0]), tensor("full", &[0.1, f32::MIN_POSITIVE]));
        ModelFile { dvae: vec![half.clone(), full.clone()], prior: vec![half, full], ..ModelFile::default() }
    }

    #[test]
    fn storage_dtypes_are_used_and_exact_is_lossless() {
        use Dtype::{F16, F32, I8};
        let types = |storage| {
            let types = stored(two(), storage).unwrap().1.into_iter();
            types.filter(|(name, _)| !name.ends_with(SCALES)).map(|(_, dtype)| dtype).collect::<Vec<_>>()
        };
        // dvae.full, dvae.half, prior.full, prior.half
        assert_eq!(types(StorageDtype::Exact), [F32, F16, F32, F16]);
        assert_eq!(types(StorageDtype::F32), [F32; 4]);
        assert_eq!(types(StorageDtype::F16), [F16; 4]);
        assert_eq!(types(StorageDtype::Int8), [F32, F16, I8, I8]);
        for storage in [StorageDtype::Exact, StorageDtype::F32] {
            let read = stored(two(), storage).unwrap().0;
            let [read, wanted] = [read, two()].map(|file| {
                let mut tensors = [file.dvae, file.prior].concat();
                tensors.sort_by(|a, b| a.name.cmp(&b.name));
                tensors
            });
            assert_eq!(read, wanted, "{storage:?}");
        }
    }

    #[test]
    fn value_beyond_the_range_of_f16_is_an_error() {
        let file = || ModelFile { dvae: vec![tensor("w", &[70_000.0, 1.0])], ..ModelFile::default() };
        let error = format!("{:#}", stored(file(), StorageDtype::F16).unwrap_err());
        assert!(error.contains("dvae.w") && error.contains("70000.0") && error.contains("f32"), "{error}");
        assert_eq!(stored(file(), StorageDtype::Exact).unwrap().0.dvae, file().dvae);
    }

    #[test]
    fn int8_error_is_at_most_half_a_step() {
        let values: Vec<f32> =
            (0..100).map(|i| (i as f32 * 0.9).sin() * if i < 32 { 1e-3 } else { 5.0 }).collect();
        let weight = HostTensor { name: "w".into(), shape: vec![10, 10], values: values.clone() };
        let file = ModelFile { prior: vec![weight], ..ModelFile::default() };
        let again = stored(file, StorageDtype::Int8).unwrap().0;
        assert_eq!(again.storage, StorageDtype::Int8);
        for (i, (a, b)) in again.prior[0].values.iter().zip(&values).enumerate() {
            let largest =
                values[i / 32 * 32..(i / 32 * 32 + 32).min(100)].iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            assert!((a - b).abs() <= largest / 127.0 * 0.51, "{a} for {b}");
        }
    }
}
