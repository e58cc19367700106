//! Tests of the towers: parameter counts, initialisation, attention, independence of the batch,
//! gradients.

use burn::tensor::TensorData;

use super::*;
use crate::finite_differences::{Tolerance, check, exact, stirred};

/// A config with two layers per tower and four patches of 4 × 4 pixels.
pub(super) fn small() -> ClipConfig {
    let tower = |width, n_heads| TowerConfig { width, n_layers: 2, n_heads };
    ClipConfig {
        image_size: 8,
        patch: 4,
        image: tower(32, 2),
        context: 7,
        text_vocab: 20,
        text: tower(24, 3),
        embed: 16,
        gelu: Gelu::Quick,
        cleaning: Cleaning::Tessera,
        mean: [0.5; 3],
        deviation: [0.25; 3],
    }
}

fn clip() -> Clip {
    Clip::new(&small(), 5, &Device::flex())
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter().collect()
}

fn pictures(b: usize) -> Tensor<3> {
    let values: Vec<f32> = (0..b * 4 * 48).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, [b, 4, 48]), &Device::flex())
}

#[test]
fn openais_architectures_have_their_parameter_counts() {
    let tower = |width, n_layers, n_heads| TowerConfig { width, n_layers, n_heads };
    let vit = |patch, image, text, embed| ClipConfig {
        image_size: 224,
        patch,
        image,
        context: 77,
        text_vocab: 49_408,
        text,
        embed,
        ..small()
    };
    // From sum(p.numel() for p in open_clip.create_model("ViT-B-32").parameters()), and likewise.
    for (config, wanted) in [
        (vit(32, tower(768, 12, 12), tower(512, 12, 8), 512), 151_277_313),
        (vit(16, tower(768, 12, 12), tower(512, 12, 8), 512), 149_620_737),
        (vit(14, tower(1024, 24, 16), tower(768, 12, 12), 768), 427_616_513),
    ] {
        assert_eq!(config.n_parameters(), wanted);
    }
    let counted: usize = crate::nn::export(&clip()).iter().map(|tensor| tensor.values.len()).sum();
    assert_eq!(counted as u128, small().n_parameters());
}

#[test]
fn embeddings_have_length_one_in_a_batch_of_any_size() {
    let clip = clip();
    let all = values(clip.embed_images(pictures(3)));
    assert!(all.chunks(16).all(|row| (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5));
    assert_eq!(values(clip.embed_images(pictures(2))), all[..32]);
}

#[test]
fn ids_after_the_end_token_have_no_effect() {
    let clip = clip();
    let (mut ids, dropped) = small().slots(&[3, 1, 4]);
    assert_eq!((&ids[..], dropped), (&[18, 3, 1, 4, 19, 0, 0][..], 0));
    let before = values(clip.embed_texts(&ids));
    ids[6] = 7;
    assert_eq!(values(clip.embed_texts(&ids)), before);
    ids[1] = 7;
    assert_ne!(values(clip.embed_texts(&ids)), before);
    let (cut, dropped) = small().slots(&[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!((&cut[..], dropped), (&[18, 1, 2, 3, 4, 5, 19][..], 2));
}

#[test]
fn caption_embedding_does_not_depend_on_longer_captions() {
    let clip = clip();
    let ids = |tokens: &[u32]| small().slots(tokens).0;
    let alone = values(clip.embed_texts(&ids(&[3])));
    let together = values(clip.embed_texts(&[ids(&[3]), ids(&[1, 5, 9, 2, 6])].concat()));
    assert_eq!(alone, together[..16]);
}

#[test]
fn initial_weights_have_clips_deviations() {
    let config = ClipConfig { text_vocab: 2000, ..small() };
    let clip = Clip::new(&config, 1, &Device::flex());
    let deviation = |name: &str| {
        let weights = crate::nn::export(&clip);
        let weight = weights.iter().find(|weight| weight.name == name).expect(name);
        (weight.values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / weight.values.len() as f64).sqrt()
    };
    for (name, wanted) in [
        ("text.tokens", 0.02),
        ("text.positions", 0.01),
        ("text.projection", 24f64.powf(-0.5)),
        ("image.projection", 32f64.powf(-0.5)),
        ("image.blocks.1.qkv.weight", 32f64.powf(-0.5)),
        ("image.blocks.1.mlp_in.weight", 64f64.powf(-0.5)),
        ("image.blocks.1.mlp_out.weight", 128f64.powf(-0.5)),
        ("text.blocks.0.attn_out.weight", 96f64.powf(-0.5)),
    ] {
        let found = deviation(name);
        assert!((found / wanted - 1.0).abs() < 0.15, "{name}: {found}, wanted {wanted}");
    }
    assert!((values(clip.scale())[0] - 1.0 / 0.07).abs() < 1e-4);
}

#[test]
fn exact_and_quick_gelu_differ_slightly() {
    let embeddings =
        |gelu| values(Clip::new(&ClipConfig { gelu, ..small() }, 5, exact()).embed_images(pictures(1)));
    let (quick, exact) = (embeddings(Gelu::Quick), embeddings(Gelu::Exact));
    assert_ne!(quick, exact);
    assert!(quick.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 0.02));
}

#[test]
fn loss_gradient_matches_finite_differences() {
    let model = stirred(Clip::new(&small(), 5, exact()), 0.02);
    let captions: Vec<u32> =
        [[3, 1, 4], [1, 5, 9], [2, 6, 5]].iter().flat_map(|t| small().slots(t).0).collect();
    let loss = |model: &Clip| {
        let x = pictures(3);
        let x = if model.device().is_autodiff() { x.autodiff() } else { x };
        contrastive(model.embed_images(x), model.embed_texts(&captions), model.scale()).loss
    };
    check(model, loss, 1e-2, Tolerance { absolute: 3e-3, relative: 3e-2 });
}
