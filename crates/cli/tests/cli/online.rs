//! Tests of random crops with pictures that are not square and larger than those of the model.
//! Crops are stored as tokens, or encoded during training.

use std::fs;
use std::path::Path;

use image::RgbImage;
use tessera_data::CodeSet;
use tessera_data::shard::{Meta, Packed, Sample, ShardWriter, Split};
use tessera_model::weights::ModelFile;

use super::pipeline::{metrics, pipeline};
use super::program::{arg, entries, folder, mistake, succeed};

/// Writes a data set `DIR/wide` with pictures of 56x44 and 40x60 pixels, for models of 32 pixels.
fn wide(dir: &Path) -> String {
    let data = dir.join("wide");
    for (split, numbers) in [(Split::Train, 0..20_u8), (Split::Val, 20..26)] {
        let mut writer = ShardWriter::new(&data.join(split.name()), 1000);
        for number in numbers {
            let (width, height) = if number % 2 == 0 { (56, 44) } else { (40, 60) };
            let image = RgbImage::from_fn(width, height, |x, y| {
                let edge = x.abs_diff(u32::from(number) + 10) < 6 || y.abs_diff(2 * u32::from(number)) < 4;
                image::Rgb([number * 9, (x * 4) as u8, if edge { 250 } else { (y * 3) as u8 }])
            });
            let captions = vec![format!("picture number {number}")];
            let meta = Meta { style: "wide".into(), split, ..Meta::default() };
            let sample = Sample { key: format!("{number:09}"), image, captions, meta };
            writer.write(&Packed::new(&sample).unwrap()).unwrap();
        }
        writer.finish().unwrap();
    }
    arg(&data).to_string()
}

/// Returns the paths of the pipeline's dVAE and tokenizer.
fn trained() -> (String, String) {
    let path = |name: &str| arg(&pipeline().dir.join(name)).to_string();
    (path("dvae/dvae.tessera.safetensors"), path("bpe/tokenizer.json"))
}

#[test]
fn encode_stores_random_crops_and_centre_crops_of_held_out() {
    let dir = folder();
    let (data, (dvae, _)) = (wide(dir.path()), trained());
    let codes = |copies: &str, seed: &str, split: &str| {
        let out = format!("codes-{copies}-{seed}");
        let set = format!("data.copies={copies}");
        let encode = ["encode", "--config", "tiny", "--data", &data, "--dvae", &dvae, "--out", &out];
        succeed(dir.path(), &[&encode[..], &["--set", &set, "--seed", seed]].concat());
        CodeSet::open(&dir.path().join(out).join(split)).unwrap()
    };
    let [centre, one, three] = ["0", "1", "3"].map(|copies| codes(copies, "0", "train"));
    assert_eq!([centre.copies, one.copies, three.copies], [1, 1, 3]);
    let equal = |a: &CodeSet, b: &CodeSet, [i, j]: [usize; 2]| {
        (0..a.len()).filter(|&item| a.tokens(item, i).unwrap() == b.tokens(item, j).unwrap()).count()
    };
    // The first of three copies is the copy of `one`. All copies differ, also from the centre.
    assert_eq!(equal(&one, &three, [0, 0]), 20);
    for [i, j] in [[0, 1], [0, 2], [1, 2]] {
        assert!(equal(&three, &three, [i, j]) < 10, "copies {i} and {j} are the same");
    }
    for copy in 0..3 {
        assert!(equal(&centre, &three, [0, copy]) < 10, "copy {copy} is the centre");
    }
    assert!(equal(&three, &codes("3", "1", "train"), [0, 0]) < 10, "two seeds have the same crops");
    let val = codes("3", "0", "val");
    assert_eq!((val.copies, val.len()), (1, 6));
    assert_eq!(equal(&val, &codes("0", "0", "val"), [0, 0]), 6);
}

#[test]
fn resumed_prior_with_online_encoding_ends_with_the_same_model() {
    let dir = folder();
    let (data, (dvae, bpe)) = (wide(dir.path()), trained());
    let train = |run: &str, more: &[&str]| {
        let train = ["train", "prior", "--config", "tiny", "--data", &data, "--bpe", &bpe, "--run", run];
        let online = ["--set", "data.encode='online'", "--dvae", &dvae];
        let short = ["--steps", "6", "--set", "train_prior.log_every=1"];
        let kept = ["--set", "train_prior.checkpoint_every=3", "--set", "train_prior.eval_every=3"];
        succeed(dir.path(), &[&train[..], &online, &short, &kept, more].concat());
        fs::read(dir.path().join(run).join("model.tessera.safetensors")).unwrap()
    };
    let whole = train("run", &[]);
    let words = ModelFile::from_bytes(&whole).unwrap().words.unwrap();
    assert!(words.iter().eq(["number", "picture"]), "{words:?}");
    let lines = metrics(&dir.path().join("run"));
    assert_eq!(lines.iter().filter(|line| line["split"] == "train").count(), 6);
    let val = lines.iter().rfind(|line| line["split"] == "val").unwrap();
    assert!(val["image_nats_per_token"].as_f64().unwrap().is_finite(), "{val}");
    fs::remove_dir_all(dir.path().join("run/checkpoints/step_000006")).unwrap();
    assert!(train("run", &["--resume"]) == whole, "a resumed run has another model");
    assert!(train("parts", &["--set", "data.token_noise=0"]) != whole);
    succeed(dir.path(), &["draw", "a", "-n", "1", "--model", "run/model.tessera.safetensors"]);
}

#[test]
fn training_data_of_another_encoding_is_an_error() {
    let dir = folder();
    let (data, (dvae, bpe)) = (wide(dir.path()), trained());
    let codes = arg(&pipeline().dir.join("codes")).to_string();
    let train = |data: &str, more: &[&str]| {
        let train = ["train", "prior", "--config", "tiny", "--data", data, "--bpe", &bpe, "--run", "run"];
        mistake(dir.path(), &[&train[..], more].concat())
    };
    let online = ["--set", "data.encode='online'"];
    let error = train(&data, &online);
    assert!(error.contains("wanted --data DATASET and --dvae FILE"), "{error}");
    let error = train(&codes, &["--dvae", &dvae]);
    assert!(error.contains("leave --dvae out, or encode pictures in training"), "{error}");
    let error = train(&codes, &[&online[..], &["--dvae", &dvae]].concat());
    assert!(error.contains("codes/train; make them with `tessera data"), "{error}");
    let error = train(&data, &[]);
    assert!(error.contains("make them with `tessera encode`"), "{error}");
    assert_eq!(entries(dir.path()), ["wide"]);
}

#[test]
fn dvae_crop_settings_change_the_loss() {
    let dir = folder();
    let data = wide(dir.path());
    let train = |run: &str, crop: &str| {
        let crop = format!("data.dvae_crop='{crop}'");
        let train = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", run, "--set", &crop];
        succeed(dir.path(), &[&train[..], &["--steps", "2", "--set", "train_dvae.log_every=1"]].concat());
        metrics(&dir.path().join(run))[0]["loss"].as_f64().unwrap()
    };
    let [stage1, stage2, centre] =
        [("one", "stage1"), ("two", "stage2"), ("none", "centre-only")].map(|(run, crop)| train(run, crop));
    assert!(stage1 != stage2 && stage2 != centre && stage1 != centre, "{stage1} {stage2} {centre}");
}
