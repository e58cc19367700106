//! Reads what the weights of a CLIP do not show from the configuration file beside them: heads,
//! activation function, colours. Also checks that the model has no feature that this program cannot
//! run.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::{DEVIATION, MEAN};
use crate::rerank::Gelu;

/// A CLIP as described by its configuration.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Described {
    /// The name of the configuration file.
    pub source: &'static str,
    /// The sizes, which must be those of the weights.
    pub sizes: Sizes,
    /// The number of heads of the image and the text tower.
    pub heads: [usize; 2],
    /// The activation function.
    pub gelu: Gelu,
    /// The mean and the standard deviation of the colours.
    pub colours: [[f32; 3]; 2],
}

/// The sizes that both the weights and their configuration show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The height and width of the pictures in pixels.
    pub image_size: usize,
    /// The height and width of a patch in pixels.
    pub patch: usize,
    /// The width and the number of layers of the image tower.
    pub image: [usize; 2],
    /// The maximum number of tokens of a text.
    pub context: usize,
    /// The number of tokens of the vocabulary.
    pub vocab: usize,
    /// The width and the number of layers of the text tower.
    pub text: [usize; 2],
    /// The dimension of the embeddings that the towers share.
    pub embed: usize,
}

/// The shapes of published models (patch; width and layers of the image tower; width and layers of
/// the text tower; embedding) and their numbers of heads. All have OpenAI's vocabulary of 49,408
/// tokens, 77 positions, a class token, and a causal text tower.
const PUBLISHED: [([usize; 6], [usize; 2]); 5] = [
    ([32, 768, 12, 512, 12, 512], [12, 8]),     // ViT-B/32
    ([16, 768, 12, 512, 12, 512], [12, 8]),     // ViT-B/16
    ([16, 896, 12, 640, 12, 640], [14, 10]),    // ViT-B/16+
    ([14, 1024, 24, 768, 12, 768], [16, 12]),   // ViT-L/14
    ([14, 1280, 32, 1024, 24, 1024], [16, 16]), // ViT-H/14
];

impl Sizes {
    /// The number of heads of the image and the text tower, if these are the sizes of a published
    /// model.
    pub fn published_heads(&self) -> Option<[usize; 2]> {
        let Sizes { patch, image: [d, n], text: [w, m], embed, .. } = *self;
        let known = PUBLISHED.iter().find(|(shape, _)| *shape == [patch, d, n, w, m, embed]);
        known.filter(|_| (self.vocab, self.context) == (49_408, 77)).map(|(_, heads)| *heads)
    }
}

/// Reads Hugging Face's `config.json`, and the colours from `preprocessor_config.json` if there is
/// one.
///
/// # Errors
/// If the configuration is that of another kind of model, or of a CLIP that this program cannot
/// run.
pub(super) fn hugging_face(config: &str, preprocessor: Option<&str>) -> Result<Described> {
    let source = "config.json";
    let config = object(config).context(source)?;
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("none");
    ensure!(kind == "clip", "{source} beside the weights is of a model of type {kind:?}; wanted \"clip\"");
    let tower = |name: &'static str| {
        let [mut tower, over] = [name.to_string(), format!("{name}_dict")]
            .map(|key| config.get(&key).and_then(Value::as_object).cloned().unwrap_or_default());
        tower.extend(over);
        ClipSettings { source, name, values: tower }
    };
    let (image, text) = (tower("vision_config"), tower("text_config"));
    let whole = ClipSettings { source, name: "", values: config.clone() };
    let vocab = text.size("vocab_size", 49_408)?;
    for tower in [&image, &text] {
        tower.expect("layer_norm_eps", &[json!(1e-5)])?;
        tower.expect("hidden_act", &[json!("quick_gelu"), json!("gelu")])?;
    }
    // Old files have 2, which means that the embedding is the state at the largest id.
    text.expect("eos_token_id", &[json!(2), json!(vocab - 1)])?;
    let act = |tower: &ClipSettings| tower.values.get("hidden_act").and_then(Value::as_str) == Some("gelu");
    ensure!(act(&image) == act(&text), "{source}: hidden_act differs between the towers");
    let colours = preprocessor.map_or(Ok([MEAN, DEVIATION]), |text| {
        let source = "preprocessor_config.json";
        let values = ClipSettings { source, name: "", values: object(text).context(source)? };
        values.expect("resample", &[json!(3)])?;
        values.expect("do_center_crop", &[json!(true)])?;
        anyhow::Ok([values.colour("image_mean", MEAN)?, values.colour("image_std", DEVIATION)?])
    })?;
    Ok(Described {
        source,
        sizes: Sizes {
            image_size: image.size("image_size", 224)?,
            patch: image.size("patch_size", 32)?,
            image: [image.size("hidden_size", 768)?, image.size("num_hidden_layers", 12)?],
            context: text.size("max_position_embeddings", 77)?,
            vocab,
            text: [text.size("hidden_size", 512)?, text.size("num_hidden_layers", 12)?],
            embed: whole.size("projection_dim", 512)?,
        },
        heads: [image.size("num_attention_heads", 12)?, text.size("num_attention_heads", 8)?],
        gelu: if act(&image) { Gelu::Exact } else { Gelu::Quick },
        colours,
    })
}

/// The keys of a tower in open_clip's configuration whose values do not matter here.
const HARMLESS: [&str; 9] = [
    "patch_dropout",
    "output_tokens",
    "output_dim",
    "pad_id",
    "eos_id",
    "bos_id",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_model_pretrained",
];

/// Reads `open_clip_config.json`.
///
/// # Errors
/// If the configuration is that of a CLIP that this program cannot run.
pub(super) fn open_clip(config: &str) -> Result<Described> {
    let source = "open_clip_config.json";
    let config = object(config).context(source)?;
    let part = |map: &Map<String, Value>, name: &'static str| {
        let values = map.get(name).and_then(Value::as_object).cloned();
        values.map(|values| ClipSettings { source, name, values })
    };
    let model =
        part(&config, "model_cfg").unwrap_or(ClipSettings { source, name: "", values: config.clone() });
    let image = part(&model.values, "vision_cfg").with_context(|| format!("{source} has no vision_cfg"))?;
    let text = part(&model.values, "text_cfg").with_context(|| format!("{source} has no text_cfg"))?;
    let shared = [
        ("mlp_ratio", json!(4.0)),
        ("act_kwargs", json!({})),
        ("norm_kwargs", json!({})),
        ("block_type", json!("default")),
    ];
    let of_image = [("pool_type", json!("tok")), ("pos_embed_type", json!("learnable"))];
    let of_text = [("pool_type", json!("argmax")), ("proj_type", json!("linear"))];
    image.only(
        &["image_size", "layers", "width", "patch_size", "head_width"],
        &[&shared[..], &of_image].concat(),
    )?;
    text.only(
        &["context_length", "vocab_size", "width", "heads", "layers"],
        &[&shared[..], &of_text].concat(),
    )?;
    let whole = ["embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "init_logit_scale", "preprocess_cfg"];
    model.only(&whole, &[])?;
    let width = image.size("width", 768)?;
    let colours = part(&config, "preprocess_cfg").map_or(Ok([MEAN, DEVIATION]), |values| {
        values.expect("resize_mode", &[json!("shortest")])?;
        values.expect("interpolation", &[json!("bicubic")])?;
        anyhow::Ok([values.colour("mean", MEAN)?, values.colour("std", DEVIATION)?])
    })?;
    Ok(Described {
        source,
        sizes: Sizes {
            image_size: image.size("image_size", 224)?,
            patch: image.size("patch_size", 16)?,
            image: [width, image.size("layers", 12)?],
            context: text.size("context_length", 77)?,
            vocab: text.size("vocab_size", 49_408)?,
            text: [text.size("width", 512)?, text.size("layers", 12)?],
            embed: model.size("embed_dim", 512)?,
        },
        heads: [width / image.size("head_width", 64)?.max(1), text.size("heads", 8)?],
        gelu: match model.values.get("quick_gelu") {
            Some(Value::Bool(true)) => Gelu::Quick,
            _ => Gelu::Exact,
        },
        colours,
    })
}

/// Parses a JSON object.
fn object(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text).context("it is not JSON")? {
        Value::Object(map) => Ok(map),
        _ => bail!("it is not a JSON object"),
    }
}

/// One part of a configuration file.
struct ClipSettings {
    source: &'static str,
    name: &'static str,
    values: Map<String, Value>,
}

impl ClipSettings {
    /// The full name of a key, for errors.
    fn key(&self, key: &str) -> String {
        let ClipSettings { source, name, .. } = self;
        if name.is_empty() { format!("{source}: {key}") } else { format!("{source}: {name}.{key}") }
    }

    /// The size at `key`; `default` if it is absent.
    fn size(&self, key: &str, default: usize) -> Result<usize> {
        let number = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
        let size = match self.values.get(key) {
            None | Some(Value::Null) => Some(default),
            // Height and width, which must be equal.
            Some(Value::Array(sides)) => match &sides[..] {
                [height, width] if height == width => number(height),
                _ => None,
            },
            Some(value) => number(value),
        };
        size.filter(|&size| size > 0).with_context(|| {
            format!(
                "{} = {}; wanted a size above 0",
                self.key(key),
                self.values.get(key).unwrap_or(&Value::Null)
            )
        })
    }

    /// The three colour values at `key`; `default` if they are absent.
    fn colour(&self, key: &str, default: [f32; 3]) -> Result<[f32; 3]> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => serde_json::from_value(value.clone())
                .with_context(|| format!("{} = {value}; wanted three numbers", self.key(key))),
        }
    }

    /// Returns an error if the value at `key` is present but not one of `wanted`.
    fn expect(&self, key: &str, wanted: &[Value]) -> Result<()> {
        let value = self.values.get(key).unwrap_or(&Value::Null);
        let fits = value.is_null() || wanted.iter().any(|wanted| same(value, wanted));
        let shown: Vec<String> = wanted.iter().map(Value::to_string).collect();
        ensure!(fits, "{} = {value}: this program can run only {}", self.key(key), shown.join(" or "));
        Ok(())
    }

    /// Returns an error if there is a key that is not `known`, unless its value is null or false,
    /// or the one that `neutral` gives for this key.
    fn only(&self, known: &[&str], neutral: &[(&str, Value)]) -> Result<()> {
        for (key, value) in &self.values {
            let off = matches!(value, Value::Null | Value::Bool(false));
            if off || known.contains(&key.as_str()) || HARMLESS.contains(&key.as_str()) {
                continue;
            }
            match neutral.iter().find(|(name, _)| name == key) {
                Some((_, wanted)) => self.expect(key, std::slice::from_ref(wanted))?,
                None => bail!("{} = {value}: not supported", self.key(key)),
            }
        }
        Ok(())
    }
}

/// Whether two values are equal. Numbers are compared by value, so that 4 equals 4.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs(),
        _ => a == b,
    }
}
