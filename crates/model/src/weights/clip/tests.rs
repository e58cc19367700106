//! Published models against open_clip (`fixtures/clip/weights.py`): the same embeddings from every kind of file.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;
use tessera_kernels::parallel::*;

use super::*;
use crate::finite_differences::exactly;
use crate::rerank::Clip;

/// How far a number of an embedding may be from open_clip's.
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

/// Number `i` of `name` in [−1, 1): splitmix64 of FNV-1a, as in the script.
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
    Tensor::from_data(data, &Device::default())
}

fn hold(clip: &Clip, golden: &Golden) {
    let close = |found: Tensor<2>, wanted: &[Vec<f32>]| {
        let found: Vec<f32> = found.into_data().iter().collect();
        let off = found.iter().zip(wanted.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == wanted.len() * wanted[0].len() && off < CLOSE, "off by {off}");
    };
    exactly(|| {
        close(clip.embed_images(patches(golden.images.len(), clip.config())), &golden.images);
        close(clip.embed_texts(&golden.ids.concat()), &golden.texts);
    });
}

fn read(bytes: &[u8], gelu: Option<Gelu>) -> Result<ModelFile> {
    read_clip(bytes, "{}".into(), gelu)
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
        let clip = file.clip(&Device::default()).unwrap();
        hold(&clip, &golden);
        assert!((clip.scale().into_scalar::<f32>() - 2.5_f32.exp()).abs() < 1e-3, "{name}");
    }
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
fn the_whole_shape_of_vit_b_32_gives_open_clips_embeddings() {
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
    let config = config(&weights, Gelu::Quick).unwrap();
    assert_eq!(config.n_parameters(), 151_277_313);
    let clip = Clip::new(&config, 0, &Device::default());
    let clip = crate::nn::import(clip, &weights.into_values().collect::<Vec<_>>()).unwrap();
    hold(&clip, &serde_json::from_slice(&fixture("full.json")).unwrap());
}

#[test]
fn what_cannot_be_read_is_named() {
    let error = |bytes: &[u8], gelu| format!("{:#}", read(bytes, gelu).unwrap_err());
    let (hf, quick) = (fixture("small-hf.safetensors"), Some(Gelu::Quick));
    assert!(error(&hf, None).contains("weights do not say which GELU they want: --gelu quick"));
    assert!(
        error(&hf[..hf.len() / 2], quick).contains("neither a file of PyTorch nor a whole safetensors file")
    );
    assert!(error(b"hello", quick).contains("neither a file of PyTorch"));
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
        resnet.contains("visual.layer1.0.conv1.weight is of no CLIP with a vision transformer"),
        "{resnet}"
    );
    let alone = error(&with("visual.conv1.weight", &[64, 3, 8, 8]), quick);
    assert!(alone.contains("image.positions is missing"), "{alone}");
    let oblong = error(&with("visual.conv1.weight", &[64, 3, 8, 9]), quick);
    assert!(oblong.contains("image.patch") && oblong.contains("[64, 3, 8, 9]"), "{oblong}");
}
