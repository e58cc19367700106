//! Compares the three presets of the paper's model sizes with the paper: each value with its
//! source.

use toml::{Table, Value};

use crate::config::Config;
use crate::schedule::{Plateau, learning_rate};

/// A key, its value as TOML, and the source of the value.
type Row = (&'static str, &'static str, &'static str);

/// The paper has no such value. It is our choice; a comment may give the reason.
const OURS: &str = "ours";
/// Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021).
const CLIP: &str = "CLIP";

const TABLE: &[Row] = &[
    ("dvae.image_size", "256", "§2.1"),
    ("dvae.groups", "4", "§A.1 and the released code"),
    ("dvae.blocks_per_group", "2", "§A.1 and the released code"),
    ("dvae.n_hid", "256", "§A.1 and the released code"),
    ("dvae.n_init", "128", "§A.1 and the released code"),
    ("dvae.vocab", "8192", "§2.1"),
    ("dvae.min_log_b", "-20.0", OURS), // so low that it has no effect
    ("prior.text_len", "256", "§2.2"),
    ("prior.text_vocab", "16384", "§2.2"),
    ("prior.grid", "32", "§2.1"),
    ("prior.image_vocab", "8192", "§2.1"),
    ("prior.d_model", "3968", "§B.1, table 1"),
    ("prior.n_layers", "64", "§B.1"),
    ("prior.n_heads", "62", "§B.1"),
    ("prior.conv_kernel", "11", "§B.1, figure 11"),
    ("prior.conv_wrap", "'flat'", "§B.1, figure 11, in one of two readings"),
    ("prior.logits", "'f32'", "§D.2"),
    ("prior.layout.cycle", "['row', 'column', 'row', 'row']", "§B.1"),
    ("prior.layout.last", "'conv'", "§B.1"),
    ("data.dvae_crop", "'stage1'", "§A.2, listing 1"),
    ("data.bpe_dropout", "0.1", "§2.2"),
    ("data.caption_drop", "0.0", "§2.2: no caption is dropped"),
    ("data.token_noise", "0.0", "§2.2: tokens are read as they are"),
    ("data.rerank_crop", "'random-square'", CLIP),
    ("data.rerank_bpe_dropout", "0.0", CLIP),
    ("data.reconstructed", "0.0", CLIP),
    ("data.encode", "'online'", "§B.2, listing 2"),
    ("data.copies", "1", OURS), // has no effect with online encoding
    ("train_dvae.steps", "3000000", "§A.2"),
    ("train_dvae.batch", "512", "§A.2"),
    ("train_dvae.micro_batches", "1", OURS),
    ("train_dvae.schedule", "'cosine'", "§A.2"),
    ("train_dvae.lr", "1e-4", "§A.2"),
    ("train_dvae.lr_end", "1.25e-6", "§A.2"),
    ("train_dvae.lr_steps", "1200000", "§A.2"),
    ("train_dvae.warmup", "0", "§A.2: none is named"),
    ("train_dvae.beta1", "0.9", "§A.2"),
    ("train_dvae.beta2", "0.999", "§A.2"),
    ("train_dvae.epsilon", "1e-8", "§A.2"),
    ("train_dvae.weight_decay", "1e-4", "§A.2"),
    ("train_dvae.clip", "inf", "§A.2: none is named"),
    ("train_dvae.variance_clip", "inf", "§A.2: none is named"),
    ("train_dvae.storage", "'f16'", "§A.2"),
    ("train_dvae.moments", "'full'", "§D.2: small moments are the prior's"),
    ("train_dvae.ema", "0.999", "§A.2"),
    ("train_dvae.ema_every", "1", "§A.2"),
    ("train_dvae.ema_rise", "false", "§A.2"),
    ("train_dvae.eval_every", "10000", OURS),
    ("train_dvae.checkpoint_every", "1000", OURS),
    ("train_dvae.log_every", "50", OURS),
    ("relax.beta", "6.6", "§A.2"),
    ("relax.beta_steps", "5000", "§A.2"),
    ("relax.tau_end", "0.0625", "§A.2"),
    ("relax.tau_steps", "150000", "§A.2"),
    ("relax.split_every", "0", OURS),
    ("relax.split_until", "0", OURS),
    ("train_prior.steps", "430000", "§B.2"),
    ("train_prior.batch", "1024", "§B.2"),
    ("train_prior.micro_batches", "1", OURS),
    ("train_prior.schedule", "'plateau'", "§B.2"),
    ("train_prior.lr", "4.5e-4", "§B.2"),
    ("train_prior.lr_end", "1.40625e-5", "§B.2: halved five times"),
    ("train_prior.lr_steps", "430000", OURS), // only used by the cosine schedule
    ("train_prior.warmup", "5000", "§B.2"),
    ("train_prior.beta1", "0.9", "§B.2"),
    ("train_prior.beta2", "0.96", "§B.2"),
    ("train_prior.epsilon", "1e-8", "§B.2"),
    ("train_prior.weight_decay", "4.5e-2", "§B.2"),
    ("train_prior.clip", "4.0", "§B.2"),
    ("train_prior.variance_clip", "5.0", "§B.2"),
    ("train_prior.storage", "'f16'", "§2.4"),
    ("train_prior.moments", "'small'", "§D.2"),
    ("train_prior.ema", "0.99", "§B.2"),
    ("train_prior.ema_every", "25", "§B.2"),
    ("train_prior.ema_rise", "false", "§B.2"),
    ("train_prior.eval_every", "2500", OURS),
    ("train_prior.checkpoint_every", "1000", OURS),
    ("train_prior.log_every", "50", OURS),
    ("chain.activations", "'recompute'", "§2.4"),
    ("chain.scaling", "'resblock'", "§2.4"),
    ("chain.scale_first", "13.0", "§D.1"),
    ("chain.scale_doubling", "1000", "§D.1"),
    ("chain.scale_rest", "125", "§D.1"),
    ("rerank.image_size", "224", CLIP),
    ("rerank.patch", "32", CLIP),
    ("rerank.image.width", "768", CLIP),
    ("rerank.image.n_layers", "12", CLIP),
    ("rerank.image.n_heads", "12", CLIP),
    ("rerank.context", "77", CLIP),
    ("rerank.text_vocab", "49408", CLIP),
    ("rerank.text.width", "512", CLIP),
    ("rerank.text.n_layers", "12", CLIP),
    ("rerank.text.n_heads", "8", CLIP),
    ("rerank.embed", "512", CLIP),
    ("rerank.gelu", "'quick'", CLIP),
    ("rerank.cleaning", "'tessera'", OURS), // captions are cleaned in the same way as for the prior
    ("rerank.mean", "[0.48145466, 0.4578275, 0.40821073]", CLIP),
    ("rerank.deviation", "[0.26862954, 0.26130258, 0.27577711]", CLIP),
    ("train_rerank.steps", "390000", "CLIP: 32 epochs of 400 million pairs"),
    ("train_rerank.batch", "32768", CLIP),
    ("train_rerank.micro_batches", "32", OURS),
    ("train_rerank.schedule", "'cosine'", CLIP),
    ("powersgd.rank", "896", "§E.2, table 1"),
    ("powersgd.storage", "'small'", "§D.2"),
    ("powersgd.p_scale", "0.0009765625", OURS), // the paper names no value
    ("powersgd.q_scale", "0.0009765625", OURS),
    ("powersgd.resample", "false", "§E.2"),
    ("train_rerank.lr", "5e-4", CLIP),
    ("train_rerank.lr_end", "0.0", CLIP),
    ("train_rerank.lr_steps", "390000", CLIP),
    ("train_rerank.warmup", "2000", CLIP),
    ("train_rerank.beta1", "0.9", CLIP),
    ("train_rerank.beta2", "0.98", CLIP),
    ("train_rerank.epsilon", "1e-6", CLIP),
    ("train_rerank.weight_decay", "0.2", CLIP),
    ("train_rerank.clip", "inf", "CLIP: none is named"),
    ("train_rerank.variance_clip", "inf", "CLIP: none is named"),
    ("train_rerank.storage", "'full'", OURS),
    ("train_rerank.moments", "'full'", OURS),
    ("train_rerank.ema", "0.0", "CLIP: none is named"),
    ("train_rerank.ema_every", "1", OURS),
    ("train_rerank.ema_rise", "false", OURS),
    ("train_rerank.eval_every", "2500", OURS),
    ("train_rerank.checkpoint_every", "1000", OURS),
    ("train_rerank.log_every", "50", OURS),
    ("cpu.precision", "'f32'", OURS), // 16-bit storage is emulated in f32
    ("device.dtype", "'auto'", OURS),
];

/// The values of the two smaller sizes that differ from `TABLE`.
const SMALLER: [(&str, &[Row]); 2] = [
    (
        "5.6b",
        &[
            ("prior.d_model", "2688", "table 1"),
            ("prior.n_heads", "42", "table 1"),
            ("powersgd.rank", "640", "table 1"),
        ],
    ),
    (
        "2.8b",
        &[
            ("prior.d_model", "1920", "table 1"),
            ("prior.n_heads", "30", "table 1"),
            ("powersgd.rank", "512", "table 1"),
        ],
    ),
];

/// Appends the keys and values of nested tables to `into`, with their full paths as keys.
fn flatten(table: &Table, prefix: &str, into: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => flatten(inner, &format!("{path}."), into),
            value => into.push((path, value.clone())),
        }
    }
}

fn preset(name: &str) -> Vec<(String, Value)> {
    let toml = Config::resolve(name, &[]).unwrap().to_toml().unwrap();
    let mut values = Vec::new();
    flatten(&toml.parse().unwrap(), "", &mut values);
    values
}

fn value(text: &str) -> Value {
    format!("x = {text}").parse::<Table>().unwrap().remove("x").unwrap()
}

/// Returns whether two values are equal. Floats are also equal if they are the same in f32, because
/// f32 settings are printed with the rounding error of f32.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => a == b || *a as f32 == *b as f32,
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b,
    }
}

#[test]
fn every_value_of_the_papers_presets_has_its_source() {
    for (name, smaller) in [("paper", &[][..])].into_iter().chain(SMALLER) {
        let values = preset(name);
        for (key, got) in &values {
            let rows = smaller.iter().chain(TABLE);
            let row = rows.into_iter().find(|(known, ..)| known == key);
            let (_, expected, source) = row.unwrap_or_else(|| panic!("{name}: {key} = {got} has no source"));
            assert!(same(got, &value(expected)), "{name}: {key} = {got}, wanted {expected} ({source})");
        }
        assert_eq!(values.len(), TABLE.len(), "{name}: the table names keys that there are not");
    }
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} is not {b}");
}

/// Checks each schedule of the preset at its start, middle and end (§A.2, §B.2). It fails if a
/// schedule reads the key of another one.
#[test]
fn schedules_follow_their_own_keys() {
    let config = Config::resolve("paper", &[]).unwrap();
    for (step, beta) in [(0, 0.0), (2_500, 3.3), (5_000, 6.6), (3_000_000, 6.6)] {
        close(config.relax.beta_at(step), beta);
    }
    for (step, tau) in [(0, 1.0), (75_000, 0.53125), (150_000, 0.0625), (3_000_000, 0.0625)] {
        close(config.relax.tau_at(step), tau);
    }
    let dvae = |step| learning_rate(&config.train_dvae, step, &Plateau::default());
    for (step, lr) in [(0, 1e-4), (600_000, 5.0625e-5), (1_200_000, 1.25e-6), (2_999_999, 1.25e-6)] {
        close(dvae(step), lr);
    }
    let prior = |step| learning_rate(&config.train_prior, step, &Plateau::default());
    for (step, lr) in [(0, 9e-8), (2_499, 2.25e-4), (4_999, 4.5e-4), (429_999, 4.5e-4)] {
        close(prior(step), lr);
    }
    let clip = |step| learning_rate(&config.train_rerank, step, &Plateau::default());
    for (step, lr) in [(0, 2.5e-7), (195_000, 2.5e-4), (390_000, 0.0)] {
        close(clip(step), lr);
    }
}
