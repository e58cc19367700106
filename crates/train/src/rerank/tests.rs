//! Tests of the training of the contrastive model.

use tessera_data::{Augment, Dataset};
use tessera_model::nn::GradientSums;
use tessera_text::normalise;

use super::*;
use crate::optim::Moments;

fn config(parts: usize) -> Config {
    let sets = ["train_rerank.batch=12".to_string(), format!("train_rerank.micro_batches={parts}")];
    Config::resolve("tiny", &sets).unwrap()
}

fn with_task<T>(config: &Config, body: impl FnOnce(&mut RerankTask, &Clip) -> T) -> T {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji");
    let train = Dataset::open(&dir).unwrap().train;
    let captions = train.iter().flat_map(|sample| sample.captions.clone());
    let bpe = Bpe::train(captions.collect::<Vec<_>>().iter(), 400).unwrap();
    let train = TrainSamples::Stored(train);
    let mut task = RerankTask {
        config: config.clone(),
        seed: 3,
        bpe,
        tokenizer: String::new(),
        train,
        dvae: None,
        val: Vec::new(),
        compute: Cpu::best().in_f32().into(),
    };
    let model = Clip::new(&config.rerank, 1, &task.compute);
    body(&mut task, &model)
}

#[test]
fn batch_in_parts_has_the_gradient_of_one_part() {
    let gradient = |parts| {
        with_task(&config(parts), |task, model| {
            let batches = Slots::of_rank(12, parts, 0, 1)
                .into_iter()
                .map(|part| task.batch(5, part).unwrap())
                .collect();
            let mut gradients = GradientSums::new(task.cpu());
            let sums = task.accumulate(model, batches, Update::alone(5), &mut gradients).unwrap();
            assert_eq!(sums.parts, 1);
            (sums, gradients.to_host(model))
        })
    };
    let ((single, of_single), (parts, of_parts)) = (gradient(1), gradient(4));
    assert!((single.loss - parts.loss).abs() < 1e-5, "{} and {}", single.loss, parts.loss);
    for (single, parts) in of_single.iter().zip(&of_parts) {
        let largest = single.iter().fold(1e-6_f32, |most, value| most.max(value.abs()));
        let off = single.iter().zip(parts).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-3 * largest, "off by {off} where the largest is {largest}");
    }
    // If each part were compared only with itself, the initial loss would be ln 3, not ln 12.
    assert!(single.loss > 2.0, "{}", single.loss);
}

#[test]
fn configured_fraction_of_pictures_is_reconstructed() {
    let differing = |share: f32| {
        let mut config = config(1);
        config.data.reconstructed = share;
        with_task(&config, |task, _| {
            let pictures = |task: &RerankTask| -> Vec<f32> {
                task.batch(0, Slots { first: 0, len: 12 }).unwrap().patches.iter().collect()
            };
            let plain = pictures(task);
            task.dvae = Some((Dvae::new(&config.dvae, 1, &task.compute), 32));
            let through = pictures(task);
            let size = plain.len() / 12;
            (0..12).filter(|i| plain[i * size..(i + 1) * size] != through[i * size..(i + 1) * size]).count()
        })
    };
    assert_eq!((differing(0.0), differing(1.0)), (0, 12));
    assert!((2..11).contains(&differing(0.5)));
}

/// The fixture's pictures are square, so that a random square is the complete picture.
#[test]
fn clips_settings_use_the_examples_of_evaluation() {
    let examples = |crop: Augment, dropout: f32| {
        let mut config = config(1);
        config.rerank.image_size = 16; // half of the fixture's size, so that crops differ
        (config.data.rerank_crop, config.data.rerank_bpe_dropout) = (crop, dropout);
        with_task(&config, |task, _| {
            let side = config.rerank.image_size as u32;
            let (image, _) = pair(&task.train.get(0).unwrap(), side).unwrap();
            let plain = |caption: &String| task.bpe.encode(&normalise(caption)).unwrap();
            let sample = task.train.get(0).unwrap();
            let captions = sample.captions.iter();
            let plain: Vec<_> = captions.map(|caption| config.rerank.slots(&plain(caption)).0).collect();
            let examples = (0..50).map(|step| task.example(0, step, 0).unwrap());
            let alike = examples.map(|(crop, (slots, _))| (crop == image, plain.contains(&slots)));
            alike.collect::<Vec<_>>()
        })
    };
    let clip = Config::resolve("paper", &[]).unwrap().data;
    let same = examples(clip.rerank_crop, clip.rerank_bpe_dropout);
    assert!(same.iter().all(|same| *same == (true, true)));
    let differ = examples(Augment::Stage2, 0.1);
    assert!(differ.iter().any(|same| !same.0) && differ.iter().any(|same| !same.1));
}

#[test]
fn temperature_is_bounded() {
    with_task(&config(1), |task, model| {
        let mut params = ParamStore::new(model, Moments::Full);
        for (set, expected) in [(9.0, MAX_LOG_SCALE), (3.0, 3.0), (-1.0, 0.0)] {
            params.change(LOG_SCALE, Which::Value, |values| values[0] = set);
            task.after_update(0, &mut params).unwrap();
            let scale = params.params.iter().find(|param| param.name == LOG_SCALE).unwrap();
            assert_eq!(scale.value.clone().into_scalar::<f32>(), expected);
        }
    });
}
