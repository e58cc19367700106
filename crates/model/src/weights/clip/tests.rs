//! Tests of reading published models: every kind of file gives the embeddings of open_clip
//! (`fixtures/clip/weights.py`).

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;
use crate::finite_differences::exact;
use crate::rerank::Clip;
use crate::weights::StorageDtype;

/// The largest allowed difference from a value of open_clip's embeddings.
const CLOSE: f32 = 1e-4;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/clip").join(name)).unwrap()
}

#[derive(Deserialize)]
struct Golden {
    ids: Vec<Vec<u32>>,
    images: Vec<Vec<f32>>,
    texts: Vec<Vec<f32>>,
}

/// The pseudo-random number `i` of `name` in [−1, 1): splitmix64 of FNV-1a, as in the script.
fn noise(name: &str, i: usize) -> f32 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f32 / 8_388_608.0 - 1.0
}

/// The pixels of the script, `[n, 3, S, S]`, as patches `[n, grid², 3·P²]`.
fn patches(n: usize, config: &ClipConfig) -> Tensor<3> {
    let (side, p) = (config.image_size, config.patch);
    let grid = side / p;
    let mut values = Vec::new();
    for image in 0..n {
        for cell in 0..grid * grid {
            for inside in 0..3 * p * p {
                let (channel, y, x) =
                    (inside / (p * p), cell / grid * p + inside / p % p, cell % grid * p + inside % p);
                values.push(2.0 * noise("pixels", ((image * 3 + channel) * side + y) * side + x));
            }
        }
    }
    let data = TensorData::new(values, [n, grid * grid, 3 * p * p]);
    Tensor::from_data(data, &Device::flex())
}

/// Checks the embeddings of `clip` against those of open_clip.
fn check_embeddings(clip: &Clip, golden: &Golden) {
    let close = |found: Tensor<2>, wanted: &[Vec<f32>]| {
        let found: Vec<f32> = found.into_data().iter().collect();
        let off = found.iter().zip(wanted.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == wanted.len() * wanted[0].len() && off < CLOSE, "off by {off}");
    };
    close(clip.embed_images(patches(golden.images.len(), clip.config())), &golden.images);
    close(clip.embed_texts(&golden.ids.concat()), &golden.texts);
}

/// Reads a file of the small fixtures, whose towers have one head of width 64.
fn read(bytes: &[u8], gelu: Option<Gelu>) -> Result<ModelFile> {
    read_clip(bytes, "{}".into(), &ClipHints { gelu, heads: Some([1, 1]), ..ClipHints::default() })
}

/// Writes the model to a file and reads it again.
fn through_a_file(file: &ModelFile) -> Clip {
    ModelFile::from_bytes(&file.to_bytes().unwrap()).unwrap().clip(exact()).unwrap()
}

#[test]
fn every_kind_of_file_gives_open_clips_embeddings() {
    let golden: Golden = serde_json::from_slice(&fixture("small.json")).unwrap();
    let quick = Some(Gelu::Quick);
    for (name, gelu) in [("small-script.pt", None), ("small.pt", quick), ("small-hf.safetensors", quick)] {
        let file = read(&fixture(name), gelu).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let config = file.config.rerank.as_ref().unwrap();
        assert_eq!(
            (config.image_size, config.patch, config.context, config.text_vocab),
            (32, 8, 12, 90),
            "{name}"
        );
        let clip = through_a_file(&file);
        check_embeddings(&clip, &golden);
        assert!((clip.scale().into_scalar::<f32>() - 2.5_f32.exp()).abs() < 1e-3, "{name}");
    }
}

/// Reads the fixture `heads/` with another value of `key` in `part` of its configuration.
fn heads_with(part: &str, key: &str, value: Value) -> Result<ModelFile> {
    let mut config: Value = serde_json::from_slice(&fixture("heads/open_clip_config.json")).unwrap();
    config["model_cfg"][part][key] = value;
    let hints = ClipHints { open_clip: Some(config.to_string()), ..ClipHints::default() };
    read_clip(&fixture("heads/model.safetensors"), "{}".into(), &hints)
}

/// The weights of the fixture have 32 bits, so rounding them to f16 would be visible in the
/// embeddings.
#[test]
fn configuration_gives_heads_and_colours_and_weights_stay_exact() {
    let golden: Golden = serde_json::from_slice(&fixture("heads/golden.json")).unwrap();
    let file = heads_with("text_cfg", "pad_id", 0.into()).unwrap();
    let config = file.config.rerank.as_ref().unwrap();
    assert_eq!((config.image.n_heads, config.text.n_heads, config.gelu), (2, 4, Gelu::Exact));
    assert_eq!((config.mean, config.deviation), ([0.5; 3], [0.25; 3]));
    let largest_error = |clip: &Clip| {
        let found: Vec<f32> = clip.embed_images(patches(2, clip.config())).into_data().iter().collect();
        let wanted = golden.images.iter().flatten();
        found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    check_embeddings(&through_a_file(&file), &golden);
    let exact = largest_error(&through_a_file(&file));
    let rounded = largest_error(&through_a_file(&ModelFile { storage: StorageDtype::F16, ..file }));
    assert!(exact < 1e-6 && rounded > 1e-5, "{exact} exact, {rounded} in f16");
}

#[test]
fn error_names_the_key_of_an_unsupported_feature() {
    for (part, key, value, wanted) in [
        (
            "vision_cfg",
            "pool_type",
            json!("avg"),
            "vision_cfg.pool_type = \"avg\": this program can run only \"tok\"",
        ),
        ("vision_cfg", "final_ln_after_pool", json!(true), "vision_cfg.final_ln_after_pool = true"),
        ("vision_cfg", "no_ln_pre", json!(true), "vision_cfg.no_ln_pre = true"),
        ("vision_cfg", "act_kwargs", json!({"approximate": "tanh"}), "vision_cfg.act_kwargs"),
        ("vision_cfg", "layers", json!(3), "open_clip_config.json beside the weights is of another model"),
        ("text_cfg", "no_causal_mask", json!(true), "text_cfg.no_causal_mask = true"),
        ("text_cfg", "pool_type", json!("last"), "text_cfg.pool_type = \"last\""),
        ("text_cfg", "norm_kwargs", json!({"eps": 1e-6}), "text_cfg.norm_kwargs"),
        ("text_cfg", "heads", json!(0), "text_cfg.heads = 0; wanted a size above 0"),
        ("text_cfg", "something_new", json!(1), "text_cfg.something_new = 1: not supported"),
    ] {
        let error = format!("{:#}", heads_with(part, key, value).unwrap_err());
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn heads_without_configuration_must_be_published_or_given() {
    let bytes = fixture("heads/model.safetensors");
    let read = |hints: ClipHints| read_clip(&bytes, "{}".into(), &hints);
    let gelu = Some(Gelu::Exact);
    let error = format!("{:#}", read(ClipHints { gelu, ..ClipHints::default() }).unwrap_err());
    assert!(error.contains("how many heads") && error.contains("--image-heads and --text-heads"), "{error}");
    let file = read(ClipHints { gelu, heads: Some([2, 4]), ..ClipHints::default() }).unwrap();
    assert_eq!(file.config.rerank.unwrap().text.n_heads, 4);
    let open_clip = Some(String::from_utf8(fixture("heads/open_clip_config.json")).unwrap());
    let error = format!(
        "{:#}",
        read(ClipHints { open_clip, heads: Some([2, 2]), ..ClipHints::default() }).unwrap_err()
    );
    assert!(error.contains("--text-heads 2: open_clip_config.json has 2 and 4"), "{error}");
}

/// Hugging Face's `config.json` for the small fixture.
fn hugging_face() -> Value {
    json!({
        "model_type": "clip", "projection_dim": 24,
        "vision_config": {
            "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32, "patch_size": 8,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        "text_config": {
            "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 12, "vocab_size": 90,
            "eos_token_id": 2,
        },
    })
}

#[test]
fn hugging_face_configuration_is_read_and_checked() {
    let read = |config: Value, preprocessor: Option<&str>| {
        let preprocessor = preprocessor.map(str::to_string);
        let hints =
            ClipHints { hugging_face: Some(config.to_string()), preprocessor, ..ClipHints::default() };
        read_clip(&fixture("small-hf.safetensors"), "{}".into(), &hints)
    };
    let golden: Golden = serde_json::from_slice(&fixture("small.json")).unwrap();
    let grey = Some(r#"{"image_mean": [0.5, 0.5, 0.5], "resample": 3}"#);
    let file = read(hugging_face(), grey).unwrap();
    assert_eq!(file.config.rerank.as_ref().unwrap().mean, [0.5; 3]);
    check_embeddings(&through_a_file(&file), &golden);
    let with = |part: &str, key: &str, value: Value| {
        let mut config = hugging_face();
        config[part][key] = value;
        format!("{:#}", read(config, None).unwrap_err())
    };
    for (part, key, value, wanted) in [
        (
            "vision_config",
            "hidden_act",
            json!("gelu_new"),
            "hidden_act = \"gelu_new\": this program can run only",
        ),
        ("vision_config", "hidden_act", json!("gelu"), "hidden_act differs between the towers"),
        ("vision_config", "layer_norm_eps", json!(1e-6), "vision_config.layer_norm_eps"),
        ("text_config", "eos_token_id", json!(7), "text_config.eos_token_id = 7"),
        ("text_config", "hidden_size", json!(32), "config.json beside the weights is of another model"),
    ] {
        let error = with(part, key, value);
        assert!(error.contains(wanted), "{error}");
    }
    let error = format!("{:#}", read(json!({"model_type": "siglip"}), None).unwrap_err());
    assert!(error.contains("a model of type \"siglip\"; wanted \"clip\""), "{error}");
    let error = format!("{:#}", read(hugging_face(), Some(r#"{"resample": 2}"#)).unwrap_err());
    assert!(error.contains("preprocessor_config.json: resample = 2"), "{error}");
}

/// The names and shapes of open_clip's ViT-B/32.
fn vit_b_32() -> Vec<(String, Vec<usize>)> {
    let mut weights = vec![
        ("positional_embedding".to_string(), vec![77, 512]),
        ("text_projection".into(), vec![512, 512]),
        ("logit_scale".into(), vec![]),
        ("visual.class_embedding".into(), vec![768]),
        ("visual.positional_embedding".into(), vec![50, 768]),
        ("visual.proj".into(), vec![768, 512]),
        ("visual.conv1.weight".into(), vec![768, 3, 32, 32]),
        ("token_embedding.weight".into(), vec![49_408, 512]),
    ];
    let mut norm = |name: &str, d: usize| {
        weights.extend(["weight", "bias"].map(|kind| (format!("{name}.{kind}"), vec![d])));
    };
    norm("visual.ln_pre", 768);
    norm("visual.ln_post", 768);
    norm("ln_final", 512);
    for (tower, d) in [("visual.", 768), ("", 512)] {
        for layer in 0..12 {
            let path = format!("{tower}transformer.resblocks.{layer}");
            norm(&format!("{path}.ln_1"), d);
            norm(&format!("{path}.ln_2"), d);
        }
    }
    for (tower, d) in [("visual.", 768), ("", 512)] {
        for layer in 0..12 {
            let path = format!("{tower}transformer.resblocks.{layer}");
            let mut map = |weight: &str, bias: &str, rows: usize, columns: usize| {
                weights.push((format!("{path}.{weight}"), vec![rows, columns]));
                weights.push((format!("{path}.{bias}"), vec![rows]));
            };
            map("attn.in_proj_weight", "attn.in_proj_bias", 3 * d, d);
            map("attn.out_proj.weight", "attn.out_proj.bias", d, d);
            map("mlp.c_fc.weight", "mlp.c_fc.bias", 4 * d, d);
            map("mlp.c_proj.weight", "mlp.c_proj.bias", d, 4 * d);
        }
    }
    weights
}

#[test]
fn full_size_vit_b_32_gives_open_clips_embeddings() {
    let weight = |(name, shape): (String, Vec<usize>)| {
        let width = shape.last().copied().unwrap_or(1) as f32;
        let value = |i: usize| match (&*name, shape.len()) {
            ("logit_scale", _) => 2.5,
            (norm, _) if norm.contains("ln_") => {
                noise(norm, i) * 0.2 + if norm.ends_with("weight") { 1.0 } else { 0.0 }
            }
            (_, 1) => noise(&name, i) * 0.05,
            _ => noise(&name, i) * (1.7 / width.sqrt()),
        };
        let values = (0..shape.iter().product()).into_par_iter().map(value).collect();
        HostTensor { name, shape, values }
    };
    let weights = renamed(vit_b_32().into_iter().map(weight).collect()).unwrap();
    let hints = ClipHints { gelu: Some(Gelu::Quick), ..ClipHints::default() };
    let config = config(&weights, None, &hints, false).unwrap();
    assert_eq!((config.image.n_heads, config.text.n_heads), (12, 8));
    assert_eq!(config.n_parameters(), 151_277_313);
    let clip = Clip::new(&config, 0, exact());
    let clip = crate::nn::import(clip, &weights.into_values().collect::<Vec<_>>()).unwrap();
    check_embeddings(&clip, &serde_json::from_slice(&fixture("full.json")).unwrap());
}

#[test]
fn errors_name_what_cannot_be_read() {
    let error = |bytes: &[u8], gelu| format!("{:#}", read(bytes, gelu).unwrap_err());
    let (hf, quick) = (fixture("small-hf.safetensors"), Some(Gelu::Quick));
    assert!(
        error(&hf, None).contains("the weights do not record their GELU")
            && error(&hf, None).contains("--gelu quick")
    );
    assert!(
        error(&hf[..hf.len() / 2], quick).contains("neither a PyTorch file nor a complete safetensors file")
    );
    assert!(error(b"hello", quick).contains("neither a PyTorch file"));
    let script = fixture("small-script.pt");
    assert!(read(&script[..script.len() / 2], quick).is_err());
    let with = |name: &str, shape: &[usize]| {
        let values = vec![0.0_f32; shape.iter().product()];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).unwrap();
        safetensors::serialize([(name, view)], None).unwrap()
    };
    let resnet = error(&with("visual.layer1.0.conv1.weight", &[64, 64, 1, 1]), quick);
    assert!(
        resnet.contains("visual.layer1.0.conv1.weight does not belong to a CLIP with a vision transformer"),
        "{resnet}"
    );
    let alone = error(&with("visual.conv1.weight", &[64, 3, 8, 8]), quick);
    assert!(alone.contains("image.positions is missing"), "{alone}");
    let oblong = error(&with("visual.conv1.weight", &[64, 3, 8, 9]), quick);
    assert!(oblong.contains("image.patch") && oblong.contains("[64, 3, 8, 9]"), "{oblong}");
}
