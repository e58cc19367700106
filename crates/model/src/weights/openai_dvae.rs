//! Converts OpenAI's released dVAE, the pickled modules `encoder.pkl` and `decoder.pkl`, to a model
//! file.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;

use super::torch_file::TorchFile;
use super::{HostTensor, ModelConfig, ModelFile};
use crate::dvae::DvaeConfig;

/// Reads the dVAE from the bytes of the two files. The sizes follow from the shapes of the weights.
/// Pictures have 32 × 32 tokens, as in the released model.
///
/// # Errors
/// If a file is damaged or contains something else, or the two do not belong together.
pub fn read_openai_dvae(encoder: &[u8], decoder: &[u8]) -> Result<ModelFile> {
    let encoder = part(encoder, "encoder").context("the encoder's file")?;
    let decoder = part(decoder, "decoder").context("the decoder's file")?;
    let config = config(&encoder, &decoder)?;
    config.check()?;
    let dvae = [encoder, decoder].concat();
    let found: u128 = dvae.iter().map(|tensor| tensor.values.len() as u128).sum();
    let wanted: u128 = config.n_parameters().iter().sum();
    ensure!(found == wanted, "{found} weights; a dVAE of these sizes has {wanted}");
    let config = ModelConfig { dvae: Some(config), ..ModelConfig::default() };
    let file = ModelFile { config, dvae, ..ModelFile::default() };
    file.dvae(&Device::flex()).context("the weights are not those of a dVAE")?;
    Ok(file)
}

/// The weights of one file, renamed to Tessera's names.
fn part(bytes: &[u8], part: &str) -> Result<Vec<HostTensor>> {
    // Tensors of integers with an unknown name are not weights.
    let needed = |name: &str, is_float: bool| is_float || our_name(name).is_some();
    let renamed = |tensor: HostTensor| {
        let name = our_name(&tensor.name)
            .with_context(|| format!("the weight {} belongs to another model", tensor.name))?;
        Ok(HostTensor { name: format!("{part}.{name}"), ..tensor })
    };
    TorchFile::open(bytes)?.read(needed)?.into_iter().map(renamed).collect()
}

/// Translates a name: `blocks.group_2.block_1.res_path.conv_3.w` → `groups.1.0.conv_3.weight`.
fn our_name(theirs: &str) -> Option<String> {
    let (path, kind) = theirs.strip_prefix("blocks.")?.rsplit_once('.')?;
    let kind = match kind {
        "w" => "weight",
        "b" => "bias",
        _ => return None,
    };
    let parts: Vec<&str> = path.split('.').collect();
    let from_one =
        |part: &str, prefix: &str| part.strip_prefix(prefix)?.parse::<usize>().ok()?.checked_sub(1);
    match parts[..] {
        ["input"] => Some(format!("input.{kind}")),
        ["output", "conv"] => Some(format!("output.{kind}")),
        [group, block, ref rest @ ..] => {
            let conv = match rest {
                ["id_path"] => "id_path",
                ["res_path", conv] => conv,
                _ => return None,
            };
            let [group, block] = [from_one(group, "group_")?, from_one(block, "block_")?];
            Some(format!("groups.{group}.{block}.{conv}.{kind}"))
        }
        _ => None,
    }
}

/// The number of tokens along one side of a picture of the released model.
const GRID: usize = 32;

/// The sizes, read from the shapes of the weights.
fn config(encoder: &[HostTensor], decoder: &[HostTensor]) -> Result<DvaeConfig> {
    let shapes: HashMap<&str, &[usize]> =
        encoder.iter().chain(decoder).map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
    let shape = |name: &str| match shapes.get(name) {
        Some([a, b, c, d]) => Ok([*a, *b, *c, *d]),
        Some(other) => bail!("{name} has the shape {other:?}; wanted four sizes"),
        None => bail!("{name} is missing"),
    };
    let has = |name: String| shapes.contains_key(name.as_str());
    let groups = (0..).take_while(|group| has(format!("encoder.groups.{group}.0.conv_1.weight"))).count();
    let blocks_per_group =
        (0..).take_while(|block| has(format!("encoder.groups.0.{block}.conv_1.weight"))).count();
    ensure!(
        (1..=8).contains(&groups) && blocks_per_group > 0,
        "{groups} groups of {blocks_per_group} blocks: wanted 1 to 8 groups of at least 1 block"
    );
    let [n_hid, ..] = shape("encoder.input.weight")?;
    let [vocab, ..] = shape("encoder.output.weight")?;
    let [n_init, codes, ..] = shape("decoder.input.weight")?;
    ensure!(
        vocab == codes,
        "the encoder has {vocab} codes and the decoder {codes}: they do not belong together"
    );
    Ok(DvaeConfig {
        image_size: GRID << (groups - 1),
        groups,
        blocks_per_group,
        n_hid,
        n_init,
        vocab,
        min_log_b: f64::from(f32::MIN),
    })
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Tensor, TensorData};
    use safetensors::SafeTensors;
    use tessera_kernels::Cpu;

    use super::*;

    #[test]
    fn names_are_translated() {
        for (theirs, ours) in [
            ("blocks.input.w", "input.weight"),
            ("blocks.output.conv.b", "output.bias"),
            ("blocks.group_1.block_2.res_path.conv_4.w", "groups.0.1.conv_4.weight"),
            ("blocks.group_4.block_1.id_path.b", "groups.3.0.id_path.bias"),
        ] {
            assert_eq!(our_name(theirs).as_deref(), Some(ours));
        }
        for other in
            ["blocks.group_0.block_1.id_path.b", "input.w", "blocks.input.weight", "blocks.group_1.w"]
        {
            assert_eq!(our_name(other), None, "{other}");
        }
    }

    /// `fixtures/golden/make.py` made the files with OpenAI's package, the encoder and the decoder
    /// in different containers. The test writes them to a model file and reads it before it
    /// compares.
    #[test]
    fn openais_dvae_gives_the_outputs_of_pytorch() {
        let read = |name: &str| {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/golden/");
            std::fs::read(format!("{path}{name}")).unwrap()
        };
        let (encoder, decoder, golden) =
            (read("encoder.pkl"), read("decoder.pkl"), read("openai.safetensors"));
        let file = read_openai_dvae(&encoder, &decoder).unwrap();
        let read = ModelFile::from_bytes(&file.to_bytes().unwrap()).unwrap();
        let values = |file: &ModelFile| {
            file.dvae.iter().map(|w| (w.name.clone(), w.values.clone())).collect::<HashMap<_, _>>()
        };
        assert!(values(&read) == values(&file), "the file changes weights");
        let file = read;
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            golden
                .tensor(name)
                .unwrap()
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect()
        };
        let close = |what: &str, got: Vec<f32>, wanted: Vec<f32>| {
            assert_eq!(got.len(), wanted.len(), "{what}");
            let off = got.iter().zip(&wanted).map(|(got, wanted)| (got - wanted).abs()).fold(0.0, f32::max);
            assert!(off < 1e-4, "{what} is off by {off}");
        };
        let dvae = file.dvae(Cpu::best().in_f32()).unwrap();
        let x: Tensor<4> = Tensor::from_data(TensorData::new(floats("x"), [1, 3, 32, 32]), &dvae.device());
        let logits = dvae.encoder.forward(x); // channels last
        let values = |tensor: Tensor<4>| tensor.into_data().try_to_vec::<f32>().unwrap();
        close("logits", values(logits.clone().permute([0, 3, 1, 2])), floats("logits"));
        let stats = dvae.decoder.forward_codes(logits.argmax(3).squeeze_dim(3));
        close("likelihood", values(stats), floats("stats"));
    }

    #[test]
    fn missing_and_additional_weights_are_an_error() {
        let read = |name: &str| {
            std::fs::read(format!("{}/../../fixtures/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
        };
        let [encoder, decoder] = ["encoder.pkl", "decoder.pkl"].map(read);
        // Another block name of the same length.
        let at = decoder.windows(7).position(|window| window == b"block_2").unwrap();
        let other = [&decoder[..at], b"block_9", &decoder[at + 7..]].concat();
        let error = format!("{:#}", read_openai_dvae(&encoder, &other).unwrap_err());
        assert!(error.contains("not those of a dVAE"), "{error}");
    }

    #[test]
    fn files_of_another_kind_are_an_error() {
        let error = |bytes: &[u8]| format!("{:#}", read_openai_dvae(bytes, bytes).unwrap_err());
        assert!(error(b"hello").contains("not a PyTorch file"));
        assert!(error(b"PK\x03\x04").contains("damaged ZIP"));
    }
}
