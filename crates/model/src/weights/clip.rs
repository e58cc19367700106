//! Published contrastive models: OpenAI's CLIP, Hugging Face's copies and open_clip's, all vision transformers, as a model file.
//!
//! Which of them a file is, is told by the names in it, and all sizes are read off its shapes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{HostTensor, ModelConfig, ModelFile, torch_file};
use crate::rerank::{Cleaning, ClipConfig, Gelu, LOG_SCALE, TowerConfig};

/// Width of a head in all published models.
const HEAD: usize = 64;
/// Mean and deviation of the colours that all of them were trained with.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The contrastive model in the bytes of a file: a TorchScript archive, a state dictionary of PyTorch, or safetensors. `tokenizer` is CLIP's
/// vocabulary as JSON. Weights do not say which nonlinearity they were trained with; OpenAI's own archives are known to be quick.
///
/// # Errors
/// If it is damaged, another kind of model, or `gelu` is not given where it cannot be known.
pub fn read_clip(bytes: &[u8], tokenizer: String, gelu: Option<Gelu>) -> Result<ModelFile> {
    let (tensors, is_script) = match bytes.starts_with(b"PK") || bytes.starts_with(b"\x80\x02") {
        true => (torch_file::read(bytes)?, torch_file::is_script(bytes)),
        false => (safetensors(bytes)?, false),
    };
    let gelu = match (gelu, is_script) {
        (Some(gelu), _) => gelu,
        (None, true) => Gelu::Quick,
        (None, false) => bail!(
            "weights do not say which GELU they want: --gelu quick for OpenAI's, here or at Hugging Face, --gelu exact for most of open_clip's"
        ),
    };
    let weights = renamed(tensors)?;
    let config = config(&weights, gelu)?;
    config.check()?;
    let config = ModelConfig { rerank: Some(config), ..ModelConfig::default() };
    let rerank = weights.into_values().collect();
    let file = ModelFile { config, tokenizer: Some(tokenizer), rerank, ..ModelFile::default() };
    file.clip(&Device::default())?;
    Ok(file)
}

/// The tensors of a safetensors file whose numbers have a fraction; whole numbers are sizes and places, which are known.
fn safetensors(bytes: &[u8]) -> Result<Vec<HostTensor>> {
    let file =
        SafeTensors::deserialize(bytes).context("neither a file of PyTorch nor a whole safetensors file")?;
    let read = |(name, view): (String, TensorView<'_>)| {
        let data = view.data();
        let pairs = || data.as_chunks::<2>().0.iter();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::I64 | Dtype::I32 => return None,
            other => {
                return Some(Err(anyhow::anyhow!("weight {name} is {other:?}; wanted F32, F16 or BF16")));
            }
        };
        Some(Ok(HostTensor { name, shape: view.shape().to_vec(), values }))
    };
    file.tensors().into_iter().filter_map(read).collect()
}

/// How a published weight becomes one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it is.
    Same,
    /// `[d_out, d_in]` → `[d_in, d_out]`
    Transposed,
    /// `[D, 3, P, P]` → `[3·P², D]`
    Patches,
    /// Queries, keys or values (0, 1, 2), to be put side by side.
    Third(usize),
}

/// All weights by our names.
fn renamed(tensors: Vec<HostTensor>) -> Result<BTreeMap<String, HostTensor>> {
    let (mut weights, mut thirds) = (BTreeMap::new(), BTreeMap::<String, [Option<HostTensor>; 3]>::new());
    for tensor in tensors {
        let theirs = tensor.name.rsplit_once("state_dict.").map_or(tensor.name.as_str(), |(_, name)| name);
        let theirs = theirs.strip_prefix("module.").unwrap_or(theirs);
        if is_known(theirs) {
            continue;
        }
        let (ours, form) = our_name(theirs).with_context(|| {
            format!("the weight {theirs} is of no CLIP with a vision transformer, which is what can be read")
        })?;
        let tensor = in_our_form(HostTensor { name: ours.clone(), ..tensor }, form)
            .with_context(|| format!("the weight {ours}"))?;
        match form {
            Form::Third(which) => thirds.entry(ours).or_default()[which] = Some(tensor),
            _ => drop(weights.insert(ours, tensor)),
        }
    }
    for (ours, thirds) in thirds {
        let [Some(q), Some(k), Some(v)] = thirds else {
            bail!("queries, keys or values of {ours} are missing")
        };
        weights.insert(ours.clone(), side_by_side(ours, [q, k, v])?);
    }
    ensure!(!weights.is_empty(), "the file holds no weights of a CLIP");
    Ok(weights)
}

/// What is no weight: sizes, places and masks that follow from the sizes.
fn is_known(theirs: &str) -> bool {
    let sizes = ["input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias"];
    sizes.contains(&theirs) || theirs.ends_with(".position_ids")
}

fn our_name(theirs: &str) -> Option<(String, Form)> {
    use Form::{Patches, Same, Transposed};
    let (name, form) = match theirs {
        "logit_scale" => (LOG_SCALE, Same),
        "visual.conv1.weight" | "vision_model.embeddings.patch_embedding.weight" => ("image.patch", Patches),
        "visual.class_embedding" | "vision_model.embeddings.class_embedding" => ("image.class", Same),
        "visual.positional_embedding" | "vision_model.embeddings.position_embedding.weight" => {
            ("image.positions", Same)
        }
        "visual.proj" => ("image.projection", Same),
        "visual_projection.weight" => ("image.projection", Transposed),
        "token_embedding.weight" | "text_model.embeddings.token_embedding.weight" => ("text.tokens", Same),
        "positional_embedding" | "text_model.embeddings.position_embedding.weight" => {
            ("text.positions", Same)
        }
        "text_projection" => ("text.projection", Same),
        "text_projection.weight" => ("text.projection", Transposed),
        _ => return in_layer(theirs).or_else(|| norm(theirs).map(|name| (name, Same))),
    };
    Some((name.to_string(), form))
}

/// Norms outside of layers.
fn norm(theirs: &str) -> Option<String> {
    let (path, kind) = theirs.rsplit_once('.')?;
    let norm = match path {
        "visual.ln_pre" | "vision_model.pre_layrnorm" => "image.norm_in",
        "visual.ln_post" | "vision_model.post_layernorm" => "image.norm_out",
        "ln_final" | "text_model.final_layer_norm" => "text.norm_out",
        _ => return None,
    };
    Some(format!("{norm}.{}", gain_or_bias(kind)?))
}

fn gain_or_bias(kind: &str) -> Option<&'static str> {
    match kind {
        "weight" => Some("gain"),
        "bias" => Some("bias"),
        _ => None,
    }
}

/// `visual.transformer.resblocks.3.mlp.c_fc.weight`, `vision_model.encoder.layers.3.mlp.fc1.weight` → `image.blocks.3.mlp_in.weight`
fn in_layer(theirs: &str) -> Option<(String, Form)> {
    let towers = [
        ("visual.transformer.resblocks.", "image"),
        ("vision_model.encoder.layers.", "image"),
        ("transformer.resblocks.", "text"),
        ("text_model.encoder.layers.", "text"),
    ];
    let (rest, tower) =
        towers.iter().find_map(|(prefix, tower)| Some((theirs.strip_prefix(prefix)?, tower)))?;
    let (layer, part) = rest.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (path, kind) = match part {
        "attn.in_proj_weight" => ("attn.in_proj", "weight"),
        "attn.in_proj_bias" => ("attn.in_proj", "bias"),
        _ => part.rsplit_once('.')?,
    };
    let (name, third) = match path {
        "ln_1" | "layer_norm1" => ("attn_norm", None),
        "ln_2" | "layer_norm2" => ("mlp_norm", None),
        "attn.in_proj" => ("qkv", None),
        "self_attn.q_proj" => ("qkv", Some(0)),
        "self_attn.k_proj" => ("qkv", Some(1)),
        "self_attn.v_proj" => ("qkv", Some(2)),
        "attn.out_proj" | "self_attn.out_proj" => ("attn_out", None),
        "mlp.c_fc" | "mlp.fc1" => ("mlp_in", None),
        "mlp.c_proj" | "mlp.fc2" => ("mlp_out", None),
        _ => return None,
    };
    let (kind, form) = match (name.ends_with("norm"), kind, third) {
        (true, kind, _) => (gain_or_bias(kind)?, Form::Same),
        (_, "weight", Some(third)) => ("weight", Form::Third(third)),
        (_, "bias", Some(third)) => ("bias", Form::Third(third)),
        (_, "weight", None) => ("weight", Form::Transposed),
        (_, "bias", None) => ("bias", Form::Same),
        _ => return None,
    };
    Some((format!("{tower}.blocks.{layer}.{name}.{kind}"), form))
}

fn in_our_form(tensor: HostTensor, form: Form) -> Result<HostTensor> {
    let HostTensor { name, shape, values } = tensor;
    let (rows, columns) = match (form, &shape[..]) {
        (Form::Same | Form::Third(_), []) => return Ok(HostTensor { name, shape: vec![1], values }),
        (Form::Same, _) | (Form::Third(_), [_]) => return Ok(HostTensor { name, shape, values }),
        (Form::Transposed | Form::Third(_), &[rows, columns]) => (rows, columns),
        (Form::Patches, &[rows, 3, p, q]) if p == q => (rows, 3 * p * q),
        (_, other) => bail!("has the shape {other:?}"),
    };
    let transposed = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
    let values = transposed.map(|at| values[at]).collect();
    Ok(HostTensor { name, shape: vec![columns, rows], values })
}

/// Rows of queries, keys and values behind each other: `[D, D]` three times → `[D, 3D]`, and `[D]` → `[3D]`.
fn side_by_side(name: String, thirds: [HostTensor; 3]) -> Result<HostTensor> {
    let mut shape = thirds[0].shape.clone();
    ensure!(
        thirds.iter().all(|third| third.shape == shape),
        "queries, keys and values of {name} have several shapes"
    );
    let width = shape.last().copied().unwrap_or(0).max(1);
    let rows = thirds[0].values.len() / width;
    let row = |row: usize| thirds.iter().flat_map(move |third| &third.values[row * width..(row + 1) * width]);
    let values = (0..rows).flat_map(row).copied().collect();
    if let Some(last) = shape.last_mut() {
        *last *= 3;
    }
    Ok(HostTensor { name, shape, values })
}

fn config(weights: &BTreeMap<String, HostTensor>, gelu: Gelu) -> Result<ClipConfig> {
    let shape = |name: &str| match weights.get(name).map(|weight| &weight.shape[..]) {
        Some(&[a, b]) => Ok([a, b]),
        Some(other) => bail!("{name} has the shape {other:?}; wanted two sizes"),
        None => bail!("{name} is missing"),
    };
    let tower = |name: &str, width: usize| {
        let has = |layer: &usize| weights.contains_key(&format!("{name}.blocks.{layer}.qkv.weight"));
        ensure!(width.is_multiple_of(HEAD), "{name}: a width of {width}; wanted a multiple of {HEAD}");
        Ok(TowerConfig { width, n_layers: (0..).take_while(has).count(), n_heads: width / HEAD })
    };
    let ([inputs, width], [places, _]) = (shape("image.patch")?, shape("image.positions")?);
    let ([text_vocab, text_width], [context, _]) = (shape("text.tokens")?, shape("text.positions")?);
    let patch = (inputs / 3).isqrt();
    let grid = places.saturating_sub(1).isqrt();
    ensure!(
        3 * patch * patch == inputs && grid * grid + 1 == places,
        "{places} positions of a picture; wanted a square of patches and one more"
    );
    let [_, embed] = shape("image.projection")?;
    Ok(ClipConfig {
        image_size: patch.saturating_mul(grid),
        patch,
        image: tower("image", width)?,
        context,
        text_vocab,
        text: tower("text", text_width)?,
        embed,
        gelu,
        cleaning: Cleaning::Clip,
        mean: MEAN,
        deviation: DEVIATION,
    })
}

#[cfg(test)]
mod tests;
