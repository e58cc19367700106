//! Converts published contrastive models with vision transformers (OpenAI's CLIP, its copies at
//! Hugging Face, and models of open_clip) to a model file.
//!
//! The names of the weights show which of them a file is, and their shapes give all sizes. What the
//! weights do not show comes from a configuration (`described.rs`) or from the user; it is never
//! guessed.

mod described;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use self::described::{Described, Sizes};
use super::stand_in::refuse_stand_in;
use super::torch_file::{self, TorchFile};
use super::{HostTensor, ModelConfig, ModelFile};
use crate::rerank::{Cleaning, ClipConfig, Gelu, LOG_SCALE, TowerConfig};

/// The width of a head in all of OpenAI's models.
const OPENAI_HEAD: usize = 64;
/// The mean and the standard deviation of the colours in OpenAI's and most other models.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// What is known about a contrastive model in addition to its weights.
#[derive(Debug, Clone, Default)]
pub struct ClipHints {
    /// The contents of Hugging Face's `config.json`.
    pub hugging_face: Option<String>,
    /// The contents of Hugging Face's `preprocessor_config.json`.
    pub preprocessor: Option<String>,
    /// The contents of `open_clip_config.json`.
    pub open_clip: Option<String>,
    /// The activation function, if the user gives it.
    pub gelu: Option<Gelu>,
    /// The number of heads of the image and the text tower, if the user gives it.
    pub heads: Option<[usize; 2]>,
}

/// Reads a contrastive model from the bytes of a file: a TorchScript archive, a state dictionary of
/// PyTorch, or safetensors. `tokenizer` is CLIP's vocabulary as JSON.
///
/// # Errors
/// If the file is damaged or another kind of model, or its number of heads or its activation
/// function is not known.
pub fn read_clip(bytes: &[u8], tokenizer: String, hints: &ClipHints) -> Result<ModelFile> {
    refuse_stand_in(bytes)?;
    let tensors = match bytes.starts_with(b"PK") || bytes.starts_with(b"\x80\x02") {
        true => torch_weights(TorchFile::open(bytes)?)?,
        false => safetensors(bytes)?,
    };
    let is_openais = torch_file::is_script(bytes) && tensors.has_openais_sizes;
    let described = describe(hints, tensors.is_hugging_faces)?;
    let weights = renamed(tensors.weights)?;
    let config = config(&weights, described.as_ref(), hints, is_openais)?;
    config.check()?;
    let config = ModelConfig { rerank: Some(config), ..ModelConfig::default() };
    let rerank = weights.into_values().collect();
    let file = ModelFile { config, tokenizer: Some(tokenizer), rerank, ..ModelFile::default() };
    file.clip(&Device::flex())?;
    Ok(file)
}

/// Reads the configuration in the format that the names of the weights suggest, or the other one if
/// that is missing.
fn describe(hints: &ClipHints, is_hugging_faces: bool) -> Result<Option<Described>> {
    let hugging_face = || {
        let config = hints.hugging_face.as_deref();
        config.map(|config| described::hugging_face(config, hints.preprocessor.as_deref())).transpose()
    };
    let open_clip = || hints.open_clip.as_deref().map(described::open_clip).transpose();
    match is_hugging_faces {
        true => Ok(hugging_face()?.or(open_clip()?)),
        false => Ok(match open_clip()? {
            Some(described) => Some(described),
            None => hugging_face()?,
        }),
    }
}

/// The weights of a file by their published names, without prefixes that wrap them.
struct Tensors {
    weights: Vec<HostTensor>,
    /// Whether the names are those of Hugging Face.
    is_hugging_faces: bool,
    /// Whether the file also stores the sizes, as OpenAI's archives do.
    has_openais_sizes: bool,
}

impl Tensors {
    /// Reads the tensors of a file that contains `names`. `read` gets a predicate that selects the
    /// needed tensors by their name and by whether their dtype is a float, and returns these.
    fn new(
        names: &[String],
        read: impl FnOnce(&dyn Fn(&str, bool) -> bool) -> Result<Vec<HostTensor>>,
    ) -> Result<Tensors> {
        // A training checkpoint has the weights in one of its entries.
        let wrapped = names.iter().any(|name| name.starts_with(WRAP));
        let theirs = |name: &str| -> Option<String> {
            let name = if wrapped { name.strip_prefix(WRAP)? } else { name };
            Some(name.strip_prefix("module.").unwrap_or(name).to_string())
        };
        let needed = |name: &str, is_float: bool| {
            theirs(name).is_some_and(|name| !is_known(&name) && (is_float || our_name(&name).is_some()))
        };
        let mut weights = read(&needed)?;
        for weight in &mut weights {
            weight.name = theirs(&weight.name).unwrap_or_default();
        }
        let has = |wanted: &str| names.iter().filter_map(|name| theirs(name)).any(|name| name == wanted);
        Ok(Tensors {
            is_hugging_faces: weights.iter().any(|weight| weight.name.starts_with("vision_model.")),
            has_openais_sizes: OPENAIS_SIZES.iter().all(|name| has(name)),
            weights,
        })
    }
}

/// The prefix of the weights in a training checkpoint.
const WRAP: &str = "state_dict.";

fn torch_weights(file: TorchFile) -> Result<Tensors> {
    let names: Vec<String> = file.names().map(str::to_string).collect();
    Tensors::new(&names, |needed| file.read(needed))
}

fn safetensors(bytes: &[u8]) -> Result<Tensors> {
    let file =
        SafeTensors::deserialize(bytes).context("neither a PyTorch file nor a complete safetensors file")?;
    let names: Vec<String> = file.names().into_iter().map(str::to_string).collect();
    Tensors::new(&names, |needed| {
        let views = file.tensors().into_iter();
        views.filter(|(name, view)| needed(name, is_float(view.dtype()))).map(host_tensor).collect()
    })
}

fn is_float(dtype: Dtype) -> bool {
    [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16].contains(&dtype)
}

fn host_tensor((name, view): (String, TensorView<'_>)) -> Result<HostTensor> {
    let data = view.data();
    let pairs = || data.as_chunks().0.iter();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        other => bail!("weight {name} is {other:?}; wanted F32, F16, BF16 or F64"),
    };
    Ok(HostTensor { name, shape: view.shape().to_vec(), values })
}

/// How the values of a published weight are converted to Tessera's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Unchanged.
    Same,
    /// `[d_out, d_in]` → `[d_in, d_out]`
    Transposed,
    /// `[D, 3, P, P]` → `[3·P², D]`
    Patches,
    /// The queries, keys or values (0, 1, 2) of a layer, which Tessera stores in one matrix.
    Third(usize),
}

/// Converts all weights to Tessera's names and layout.
fn renamed(tensors: Vec<HostTensor>) -> Result<BTreeMap<String, HostTensor>> {
    let (mut weights, mut thirds) = (BTreeMap::new(), BTreeMap::<String, [Option<HostTensor>; 3]>::new());
    for tensor in tensors {
        let (ours, form) = our_name(&tensor.name).with_context(|| {
            format!(
                "the weight {} does not belong to a CLIP with a vision transformer, the only kind that can be read",
                tensor.name
            )
        })?;
        let tensor = in_our_form(HostTensor { name: ours.clone(), ..tensor }, form)
            .with_context(|| format!("the weight {ours}"))?;
        match form {
            Form::Third(which) => thirds.entry(ours).or_default()[which] = Some(tensor),
            _ => {
                let twice = weights.insert(ours, tensor);
                ensure!(
                    twice.is_none(),
                    "the file has two weights for {}",
                    twice.map_or_else(String::new, |w| w.name)
                );
            }
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

/// The sizes that OpenAI's archives store in addition to the weights.
const OPENAIS_SIZES: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

/// Whether a tensor is known not to be a weight: sizes, and indices and masks that follow from
/// them.
fn is_known(theirs: &str) -> bool {
    let follows = theirs == "attn_mask" || theirs == "logit_bias" || theirs.ends_with(".position_ids");
    follows || OPENAIS_SIZES.contains(&theirs)
}

/// Translates the name of a published weight; `None` if it is unknown.
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

/// Translates the names of the norms outside of the layers.
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

/// Translates the names of weights in layers: `visual.transformer.resblocks.3.mlp.c_fc.weight` and
/// `vision_model.encoder.layers.3.mlp.fc1.weight` → `image.blocks.3.mlp_in.weight`.
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

/// Converts the values of a weight to Tessera's layout.
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

/// Concatenates queries, keys and values along the last dimension: three times `[D, D]` →
/// `[D, 3D]`, or `[D]` → `[3D]`.
fn side_by_side(name: String, thirds: [HostTensor; 3]) -> Result<HostTensor> {
    let mut shape = thirds[0].shape.clone();
    ensure!(
        thirds.iter().all(|third| third.shape == shape),
        "queries, keys and values of {name} have different shapes"
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

/// Reads the sizes of the model from the shapes of its weights.
fn sizes(weights: &BTreeMap<String, HostTensor>) -> Result<Sizes> {
    let shape = |name: &str| match weights.get(name).map(|weight| &weight.shape[..]) {
        Some(&[a, b]) => Ok([a, b]),
        Some(other) => bail!("{name} has the shape {other:?}; wanted two sizes"),
        None => bail!("{name} is missing"),
    };
    let layers = |name: &str| {
        let has = |layer: &usize| weights.contains_key(&format!("{name}.blocks.{layer}.qkv.weight"));
        (0..).take_while(has).count()
    };
    let ([inputs, width], [places, _]) = (shape("image.patch")?, shape("image.positions")?);
    let ([vocab, text_width], [context, _]) = (shape("text.tokens")?, shape("text.positions")?);
    let patch = (inputs / 3).isqrt();
    let grid = places.saturating_sub(1).isqrt();
    ensure!(
        3 * patch * patch == inputs && grid * grid + 1 == places,
        "{places} positions of a picture; wanted a square number of patches and one for the class token"
    );
    let [_, embed] = shape("image.projection")?;
    Ok(Sizes {
        image_size: patch.saturating_mul(grid),
        patch,
        image: [width, layers("image")],
        context,
        vocab,
        text: [text_width, layers("text")],
        embed,
    })
}

/// The config of the model, from its weights, its configuration and the user's hints.
fn config(
    weights: &BTreeMap<String, HostTensor>,
    described: Option<&Described>,
    hints: &ClipHints,
    is_openais: bool,
) -> Result<ClipConfig> {
    let sizes = sizes(weights)?;
    if let Some(Described { source, sizes: theirs, .. }) = described {
        ensure!(
            *theirs == sizes,
            "{source} beside the weights is of another model: it says {theirs:?}, and the weights are of {sizes:?}"
        );
    }
    let [image_heads, text_heads] = heads(&sizes, described, hints, is_openais)?;
    let [mean, deviation] = described.map_or([MEAN, DEVIATION], |described| described.colours);
    let tower = |[width, n_layers]: [usize; 2], n_heads| TowerConfig { width, n_layers, n_heads };
    Ok(ClipConfig {
        image_size: sizes.image_size,
        patch: sizes.patch,
        image: tower(sizes.image, image_heads),
        context: sizes.context,
        text_vocab: sizes.vocab,
        text: tower(sizes.text, text_heads),
        embed: sizes.embed,
        gelu: gelu(described, hints, is_openais)?,
        cleaning: Cleaning::Clip,
        mean,
        deviation,
    })
}

/// The number of heads of the image and the text tower, which the shapes do not show.
fn heads(
    sizes: &Sizes,
    described: Option<&Described>,
    hints: &ClipHints,
    is_openais: bool,
) -> Result<[usize; 2]> {
    let openais = is_openais.then(|| [sizes.image[0], sizes.text[0]].map(|width| width / OPENAI_HEAD));
    let known = described.map(|described| described.heads).or(openais).or_else(|| sizes.published_heads());
    match (known, hints.heads) {
        (Some(known), Some(given)) if known != given => bail!(
            "--image-heads {} --text-heads {}: {} has {} and {}",
            given[0],
            given[1],
            described.map_or("a model of this shape", |described| described.source),
            known[0],
            known[1]
        ),
        (Some(heads), _) | (None, Some(heads)) => Ok(heads),
        (None, None) => bail!(
            "weights do not say how many heads they have, and this is no published shape: put its config.json or open_clip_config.json \
             beside them, or, if it reads a class token and its text tower is causal, give --image-heads and --text-heads"
        ),
    }
}

/// The activation function, which the weights do not show.
fn gelu(described: Option<&Described>, hints: &ClipHints, is_openais: bool) -> Result<Gelu> {
    let openais = is_openais.then_some(Gelu::Quick);
    match (described.map(|described| described.gelu).or(openais), hints.gelu) {
        (Some(known), Some(given)) if known != given => bail!(
            "--gelu: {} says the other one",
            described.map_or("an archive of OpenAI's", |described| described.source)
        ),
        (Some(gelu), _) | (None, Some(gelu)) => Ok(gelu),
        (None, None) => bail!(
            "the weights do not record their GELU: pass --gelu quick (OpenAI) or exact (most of open_clip), or put the model's config.json \
             or open_clip_config.json in their folder"
        ),
    }
}

#[cfg(test)]
mod tests;
