//! `train rerank`: training of the contrastive model that ranks drawings (paper §2.6; Radford et
//! al. 2021).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use image::RgbImage;
use rayon::prelude::*;
use tessera_base::Reporter;
use tessera_base::label::labelled_sheet;
use tessera_base::pixels::{from_floats, to_floats};
use tessera_base::random::{below, chance};
use tessera_base::{random::Purpose, random::item_rng};
use tessera_container::hash;
use tessera_data::{ReadSample, Sample, augment, batch_indices, decode_text, evenly};
use tessera_eval::{centre_crop, recall_at};
use tessera_kernels::{Cpu, dot};
use tessera_model::dvae::Dvae;
use tessera_model::nn::{Compute, GradientSink, Part, take_gradients};
use tessera_model::rerank::{
    Cleaning, Clip, ClipConfig, ContrastiveLoss, LOG_SCALE, MAX_LOG_SCALE, Reranker, contrastive,
    cosine_similarity, patches, square,
};
use tessera_model::weights::{ModelConfig, ModelFile, export, model_bytes};
use tessera_text::Bpe;

use crate::capacity::Stage;
use crate::captions::{cut_captions, training_tokens, unread_figure};
use crate::config::Config;
use crate::control::Control;
use crate::dist::lane::Lane;
use crate::fit::{Outcome, Task, Update, Validation};
use crate::gradient::{Loss, Sums, differentiate};
use crate::params::{ParamStore, Which};
use crate::prior::LABEL_LINES;
use crate::run_dir::{RunOptions, read_model};
use crate::samples::{TrainSamples, ensure_large_enough, index_dataset, warn_about};
use crate::slots::Slots;
use crate::stage::{StageTask, ensure_same_architecture, train};

/// The number of held-out captions on the sample sheet, and the number of pictures for each.
const SHOWN: [usize; 2] = [12, 8];

/// The number of held-out pairs among which retrieval is measured. It is fixed, so that metrics of
/// data sets of different sizes can be compared.
const AMONG: usize = 100;

struct RerankTask {
    config: Config,
    seed: u64,
    bpe: Bpe,
    /// The tokenizer file.
    tokenizer: String,
    train: TrainSamples,
    /// The dVAE that reconstructs some of the pictures, and the side of its pictures in pixels.
    dvae: Option<(Dvae, u32)>,
    /// Held-out pictures at the model's size, with their first captions.
    val: Vec<(RgbImage, String)>,
    compute: Compute,
}

/// The inputs of the training of a contrastive model.
#[derive(Debug, Clone, Copy)]
pub struct RerankInputs<'a> {
    /// The data set.
    pub data: &'a Path,
    /// The tokenizer that `train bpe` wrote.
    pub bpe: &'a Path,
    /// A model file with the dVAE that reconstructs a fraction of the pictures
    /// (`data.reconstructed`).
    pub dvae: Option<&'a Path>,
}

/// Trains a contrastive model. Writes `RUN/rerank.tessera.safetensors` when the run finishes or is
/// stopped.
///
/// # Errors
/// If the tokenizer and the config disagree on sizes, or `data.reconstructed` needs a dVAE and
/// there is none.
pub fn train_rerank(
    config: &Config,
    RerankInputs { data, bpe, dvae }: RerankInputs,
    options: &RunOptions,
    control: Control,
) -> Result<Outcome> {
    let (bpe, json) = read_tokenizer(bpe)?;
    let (words, vocab) = (bpe.vocab_size(), config.rerank.text_vocab);
    ensure!(
        words + 2 <= vocab,
        "the tokenizer has {words} tokens; rerank.text_vocab is {vocab}, which includes a begin and an end token"
    );
    ensure!(
        config.rerank.cleaning == Cleaning::Tessera,
        "rerank.cleaning = \"clip\" is for published weights; training reads captions as the prior does: wanted \"tessera\""
    );
    let mut dataset = index_dataset(data, control.reporter)?;
    let fingerprint = dataset.fingerprint().to_string();
    let captions = dataset.train.iter_mut().flat_map(|sample| &mut sample.captions);
    cut_captions(captions, &bpe, config.rerank.max_caption(), control.reporter)?;
    let side = config.rerank.image_size as u32;
    ensure_large_enough(&dataset.val, side)?;
    let val = dataset.val.iter().map(|sample| pair(&*sample.sample()?, side));
    let val = val.collect::<Result<Vec<_>>>()?;
    let compute = config.training_compute(options.device, Stage::Rerank)?;
    let share = config.data.reconstructed;
    ensure!(
        share == 0.0 || dvae.is_some(),
        "data.reconstructed = {share} reconstructs pictures with a dVAE: wanted --dvae FILE"
    );
    let (dvae, through) = match dvae.map(|path| read_dvae(path, &compute, control.reporter)).transpose()? {
        Some((dvae, fingerprint)) => (Some(dvae), Some(("dVAE", fingerprint))),
        None => (None, None),
    };
    let captions = dataset.train.iter().flat_map(|sample| &sample.captions).cloned().collect();
    let samples = TrainSamples::open(config.data.scenes.as_ref(), dataset.train, side)?;
    warn_about(samples.len(), val.len(), &captions, control.reporter);
    let mut inputs = vec![("data", fingerprint), samples.scenes()?, ("tokenizer", hash(&json))];
    inputs.extend(through);
    let task = RerankTask {
        config: config.clone(),
        seed: options.seed,
        bpe,
        tokenizer: json,
        train: samples,
        dvae,
        val,
        compute,
    };
    train(task, inputs, options, control)
}

/// Returns the contrastive model in a model file.
///
/// # Errors
/// If its architecture is not that of `config`, or its tokenizer is not the one in `json`.
fn trained_clip(file: &ModelFile, config: &ClipConfig, json: &str, compute: &Compute) -> Result<Clip> {
    ensure_same_architecture("contrastive model", "rerank", file.config.rerank.as_ref(), config)?;
    ensure!(
        file.tokenizer.as_deref() == Some(json),
        "--init was trained with another tokenizer; give its file to --bpe too"
    );
    file.clip(compute)
}

/// Reads the dVAE in a model file. Returns it with the side of its pictures in pixels, and its
/// fingerprint.
fn read_dvae(path: &Path, compute: &Compute, reporter: &dyn Reporter) -> Result<((Dvae, u32), String)> {
    let file = read_model(path, reporter)?;
    let sizes = file.config.dvae.as_ref().with_context(|| {
        format!("--dvae {} has no dVAE; use a file of `train dvae` or `train prior`", path.display())
    })?;
    let side = sizes.image_size as u32;
    Ok(((file.dvae(compute)?, side), file.fingerprint()?))
}

/// Reads the tokenizer in a tokenizer file or a model file. Returns it with its JSON.
pub(crate) fn read_tokenizer(path: &Path) -> Result<(Bpe, String)> {
    let shown = path.display();
    let bytes = model_bytes(path)
        .with_context(|| format!("no tokenizer at {shown}; make one with `tessera train bpe`"))?;
    let json = match ModelFile::is_one(&bytes) {
        true => {
            let file = ModelFile::from_file(&bytes, path)?;
            file.tokenizer.with_context(|| {
                format!(
                    "the model file {shown} has no tokenizer; use a file of `train bpe`, `train prior` or `train rerank`, or \
                     `embedded`"
                )
            })?
        }
        false => decode_text(&bytes).with_context(|| shown.to_string())?,
    };
    let bpe = Bpe::from_json(&json).with_context(|| shown.to_string())?;
    Ok((bpe, json))
}

/// Returns the centre crop of a picture, `side` pixels wide and high, and its first caption.
fn pair(sample: &Sample, side: u32) -> Result<(RgbImage, String)> {
    Ok((centre_crop(sample, side)?, sample.caption()?.to_string()))
}

/// A batch of pictures with their captions.
struct Pairs {
    /// The patches of the pictures, `[B, n, 3·P²]`, on the host until they are embedded.
    patches: TensorData,
    /// The token ids of the captions, `[B, context]`, flattened.
    captions: Vec<u32>,
    /// The number of caption tokens for which there was no slot.
    unread: usize,
}

impl RerankTask {
    fn on_device(&self, patches: TensorData) -> Tensor<3> {
        Tensor::from_data(patches, &self.compute.device)
    }

    /// Returns a crop of picture `item`, the slots of one of its captions, and the number of the
    /// caption's tokens for which there is no slot.
    fn example(&self, item: usize, step: u64, slot: u64) -> Result<(RgbImage, (Vec<u32>, usize))> {
        let rng = |purpose| item_rng(self.seed, purpose, step, slot);
        let (sample, clip) = (self.train.get(item)?, &self.config.rerank);
        let crop = self.config.data.rerank_crop;
        let image = augment(&sample.image, clip.image_size as u32, crop, &mut rng(Purpose::Augment))
            .with_context(|| format!("picture {}", sample.key))?;
        let caption = below(&mut rng(Purpose::CaptionChoice), sample.captions.len() as u64) as usize;
        let caption = sample.captions.get(caption).context("a picture has no caption")?;
        let (most, dropout) = (clip.max_caption(), self.config.data.rerank_bpe_dropout);
        let (tokens, unread) =
            training_tokens(caption, &self.bpe, most, dropout, &mut rng(Purpose::BpeDropout))?;
        Ok((image, (clip.slots(&tokens).0, unread)))
    }

    /// Computes the gradient of a batch in parts by gradient caching (Gao et al. 2021). First, all
    /// parts are embedded, on all ranks. Then the loss is differentiated with respect to the
    /// embeddings. Finally, each part is embedded again, and the gradient of its embeddings is
    /// propagated to the weights.
    fn over_parts(
        &self,
        model: &Clip,
        parts: Vec<Pairs>,
        ranks: &Lane,
        sink: &mut dyn GradientSink,
    ) -> Result<Sums> {
        let (mut images, mut texts) = (Vec::new(), Vec::new());
        for pairs in &parts {
            images.push(model.embed_images(self.on_device(pairs.patches.clone())));
            texts.push(model.embed_texts(&pairs.captions));
        }
        let share = self.config.train_rerank.batch / (parts.len() * ranks.size());
        let first = ranks.rank() * parts.len() * share;
        let of_all_ranks = |own| Ok(of_all_ranks(Tensor::cat(own, 0), ranks)?.autodiff().require_grad());
        let [images, texts]: [Result<Tensor<2>>; 2] = [images, texts].map(of_all_ranks);
        let (images, texts) = (images?, texts?);
        let tracked = model.clone().train();
        let loss = loss_of(contrastive(images.clone(), texts.clone(), tracked.scale()));
        let (value, metrics) = loss.values();
        let mut backward = loss.total.backward();
        let mut gradient_of = |leaf: Tensor<2>| leaf.grad_remove(&mut backward).context("no gradient");
        // The gradients of ranks are averaged, but each rank has only a part of this one.
        let (images, texts) =
            (gradient_of(images)? * ranks.size() as f64, gradient_of(texts)? * ranks.size() as f64);
        // So far only that of the temperature.
        sink.take(Part::Model, take_gradients(&tracked, &mut backward), None)?;
        for (part, pairs) in parts.into_iter().enumerate() {
            let rows = |all: &Tensor<2>| all.clone().narrow(0, first + part * share, share);
            let through = dot(
                self.cpu(),
                tracked.embed_images(self.on_device(pairs.patches).autodiff()),
                rows(&images),
            ) + dot(self.cpu(), tracked.embed_texts(&pairs.captions), rows(&texts));
            sink.take(Part::Model, take_gradients(&tracked, &mut through.backward()), None)?;
        }
        Ok(Sums::of_part(value, metrics))
    }

    /// Computes the embeddings of pictures and of their captions, with unit length.
    fn embeddings(&self, model: &Clip, pairs: &[&(RgbImage, String)]) -> Result<(Rows, Rows)> {
        let reranker = Reranker { clip: model.clone(), bpe: self.bpe.clone() };
        let (pictures, captions): (Vec<RgbImage>, Vec<&str>) =
            pairs.iter().map(|(picture, caption)| (picture.clone(), caption.as_str())).unzip();
        let texts = reranker.captions(&captions)?.into_iter().map(|read| read.embedding).collect();
        Ok((reranker.pictures(&pictures)?, texts))
    }
}

/// Replaces pictures by their reconstruction from the dVAE's tokens. The model ranks drawings,
/// which are also decoded from such tokens.
fn reconstructed(dvae: &Dvae, side: u32, mut pictures: Vec<&mut RgbImage>) -> Result<()> {
    if pictures.is_empty() {
        return Ok(());
    }
    let values: Vec<f32> = pictures.iter().flat_map(|picture| to_floats(&square(picture, side))).collect();
    let shape = [pictures.len(), 3, side as usize, side as usize];
    let x: Tensor<4> = Tensor::from_data(TensorData::new(values, shape), &dvae.device());
    let restored: Vec<f32> = dvae.decode(dvae.encode(x)).into_data().iter().collect();
    let size = 3 * (side * side) as usize;
    pictures
        .iter_mut()
        .zip(restored.chunks(size))
        .for_each(|(picture, values)| **picture = from_floats(values, side));
    Ok(())
}

/// Embeddings, one per row.
type Rows = Vec<Vec<f32>>;

/// Returns the rows of all ranks, in the order of the ranks.
fn of_all_ranks(own: Tensor<2>, ranks: &Lane) -> Result<Tensor<2>> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let ([_, width], device) = (own.dims(), own.device());
    let rows = ranks
        .run("embeddings", move |comm| comm.all_gather(&own.into_data().iter().collect::<Vec<f32>>()))?
        .concat();
    let shape = [rows.len() / width, width];
    Ok(Tensor::from_data(TensorData::new(rows, shape), &device))
}

fn loss_of(loss: ContrastiveLoss) -> Loss {
    let figures =
        vec![("image_to_text_nats", loss.image_to_text), ("text_to_image_nats", loss.text_to_image)];
    Loss { total: loss.loss, figures }
}

/// Returns the contrastive loss of pairs with these embeddings.
fn held_out_loss(model: &Clip, images: &Rows, texts: &Rows) -> f64 {
    let tensor = |rows: &Rows| {
        let shape = [rows.len(), model.config().embed];
        Tensor::<2>::from_data(TensorData::new(rows.concat(), shape), &model.scale().device())
    };
    let loss = contrastive(tensor(images), tensor(texts), model.scale());
    loss_of(loss).values().0
}

fn triple(values: &[f64]) -> Result<[f64; 3]> {
    values.try_into().context("recall at three ranks")
}

/// Returns `picture` with a border, which is red if the picture is marked.
fn framed(picture: &RgbImage, marked: bool) -> RgbImage {
    let colour = if marked { [220, 40, 40] } else { [255; 3] };
    let mut frame = RgbImage::from_pixel(picture.width() + 4, picture.height() + 4, image::Rgb(colour));
    image::imageops::replace(&mut frame, picture, 2, 2);
    frame
}

impl StageTask for RerankTask {
    const STAGE: Stage = Stage::Rerank;
    const SAME_INPUTS: &'static [&'static str] = &["tokenizer"];

    fn config(&self) -> &Config {
        &self.config
    }

    fn with_config(self, config: Config) -> RerankTask {
        RerankTask { config, ..self }
    }

    fn cpu(&self) -> Cpu {
        self.compute.cpu
    }

    fn batch(&self, step: u64, slots: Slots) -> Result<Pairs> {
        let (config, clip) = (&self.config.train_rerank, &self.config.rerank);
        let indices = batch_indices(self.train.len(), config.batch, step, self.seed);
        let examples =
            slots.range().into_par_iter().map(|slot| self.example(indices[slot], step, slot as u64));
        let (mut pictures, captions): (Vec<RgbImage>, Vec<_>) =
            examples.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let (captions, unread): (Vec<Vec<u32>>, Vec<usize>) = captions.into_iter().unzip();
        if let Some((dvae, side)) = &self.dvae {
            let chosen = |slot: usize| {
                let rng = &mut item_rng(self.seed, Purpose::Reconstruction, step, slot as u64);
                chance(rng, self.config.data.reconstructed)
            };
            let chosen: Vec<bool> = slots.range().map(chosen).collect();
            let through = pictures.iter_mut().zip(chosen).filter(|(_, chosen)| *chosen);
            reconstructed(dvae, *side, through.map(|(picture, _)| picture).collect())?;
        }
        let shape = [slots.len, clip.n_patches(), 3 * clip.patch * clip.patch];
        let data = TensorData::new(patches(&pictures, clip), shape);
        Ok(Pairs { patches: data, captions: captions.concat(), unread: unread.iter().sum() })
    }

    fn random(&self) -> Clip {
        Clip::new(&self.config.rerank, self.seed, &self.compute)
    }

    fn of_file(&mut self, file: ModelFile, _: Control) -> Result<Clip> {
        trained_clip(&file, &self.config.rerank, &self.tokenizer, &self.compute)
    }

    fn file(&self, model: &Clip) -> ModelFile {
        ModelFile {
            config: ModelConfig { rerank: Some(self.config.rerank.clone()), ..ModelConfig::default() },
            tokenizer: Some(self.tokenizer.clone()),
            rerank: export(model),
            ..ModelFile::default()
        }
    }
}

impl Task for RerankTask {
    type Model = Clip;
    type Batch = Pairs;

    /// Compares every picture with every caption of the complete batch, also if the batch has
    /// several parts.
    fn accumulate(
        &self,
        model: &Clip,
        parts: Vec<Pairs>,
        Update { ranks, .. }: Update,
        sink: &mut dyn GradientSink,
    ) -> Result<Sums> {
        let unread = parts.iter().map(|pairs| pairs.unread).sum();
        let mut sums = match (<[Pairs; 1]>::try_from(parts), ranks.size()) {
            (Ok([pairs]), 1) => differentiate(model, None, sink, |model| {
                let images = model.embed_images(self.on_device(pairs.patches).autodiff());
                loss_of(contrastive(images, model.embed_texts(&pairs.captions), model.scale()))
            })?,
            (Ok(one), _) => self.over_parts(model, one.into(), ranks, sink)?,
            (Err(parts), _) => self.over_parts(model, parts, ranks, sink)?,
        };
        sums.metrics.push(unread_figure(unread, self.config.train_rerank.batch / ranks.size()));
        Ok(sums)
    }

    /// Enforces CLIP's bounds on the temperature.
    fn after_update(&self, _: u64, params: &mut ParamStore) -> Result<()> {
        params.change(LOG_SCALE, Which::Value, |values| {
            values.iter_mut().for_each(|value| *value = value.clamp(0.0, MAX_LOG_SCALE));
        });
        Ok(())
    }

    fn validate(&self, model: &Clip, _: u64) -> Result<Validation> {
        if self.val.len() < 2 {
            return Ok(Validation::default());
        }
        let among: Vec<&(RgbImage, String)> = evenly(AMONG, self.val.len()).map(|i| &self.val[i]).collect();
        let (images, texts) = self.embeddings(model, &among)?;
        let found = recall_at(&images.concat(), &texts.concat(), model.config().embed, &[1, 5, 10])?;
        let ([i1, i5, i10], [t1, t5, t10]) = (triple(&found.text_of_image)?, triple(&found.image_of_text)?);
        let loss = held_out_loss(model, &images, &texts);
        let metrics = vec![
            ("contrastive_nats", loss),
            ("image_to_text_recall_at_1", i1),
            ("image_to_text_recall_at_5", i5),
            ("image_to_text_recall_at_10", i10),
            ("text_to_image_recall_at_1", t1),
            ("text_to_image_recall_at_5", t5),
            ("text_to_image_recall_at_10", t10),
        ];
        Ok(Validation { metrics, loss: Some(loss), warning: None })
    }

    /// Shows held-out captions, one per row, by the pictures that the model ranks highest, best
    /// first. The right picture has a red frame.
    fn sample(&self, model: &Clip) -> Result<Option<RgbImage>> {
        let [captions, pictures] = SHOWN;
        let among: Vec<&(RgbImage, String)> = self.val.iter().collect();
        let (images, texts) = self.embeddings(model, &among)?;
        let mut groups = Vec::new();
        for row in (0..among.len()).step_by(among.len().div_ceil(captions).max(1)) {
            let score = |i: usize| cosine_similarity(&images[i], &texts[row]);
            let mut order: Vec<usize> = (0..among.len()).collect();
            order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
            let best = order.iter().take(pictures);
            let cells: Vec<RgbImage> = best.map(|&i| framed(&among[i].0, i == row)).collect();
            groups.push((among[row].1.as_str(), cells));
        }
        Ok(Some(labelled_sheet(
            groups.iter().map(|(caption, cells)| (*caption, &cells[..])),
            pictures,
            LABEL_LINES,
        )))
    }
}

#[cfg(test)]
mod tests;
