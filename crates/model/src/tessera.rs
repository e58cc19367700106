//! A whole model, ready to draw: the library's front door.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Tensor, TensorData};
use image::RgbImage;
use tessera_kernels::Cpu;
use tessera_kernels::decode::Weights;
use tessera_text::{Bpe, Prompt, Unknown, unknown_words};

use crate::dvae::Dvae;
use crate::nn::{Compute, check_count, import};
use crate::prior::{Prior, PriorConfig};
use crate::rerank::{Clip, Reranker};
use crate::sample::{
    Batch, Drawing, Job, Parameters, Ranking, Request, Sampler, Sampling, default_guidance, mosaics,
    trained_for_guidance,
};
use crate::weights::ModelFile;

/// dVAE, tokenizer, prior and perhaps reranker of one model file.
///
/// ```
/// use tessera_model::{Event, Request, Tessera};
///
/// let tessera = Tessera::embedded()?;
/// let request = Request { prompt: "a red apple".into(), n: 2, ..Request::default() };
/// for event in tessera.draw(request)? {
///     match event? {
///         Event::Tokens { done, total, .. } => assert!(done <= total),
///         Event::Preview(growing) => assert_eq!(growing.len(), 2),
///         Event::Picture(picture) => assert_eq!(picture.image.width(), 48), // picture.image.save("apple.png")?
///     }
/// }
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Tessera {
    /// Picture ↔ tokens.
    pub dvae: Dvae,
    /// Caption → tokens, its matrices as drawing keeps them.
    pub prior: Prior,
    /// The caption's tokenizer.
    pub bpe: Bpe,
    /// The prior, packed for drawing.
    pub sampler: Sampler,
    /// Ranks what is drawn, if the model has one.
    pub reranker: Option<Reranker>,
    /// Side of its pictures in pixels.
    pub image_size: usize,
    /// The share of captions that were dropped in training, if the file says it.
    pub caption_drop: Option<f32>,
    /// The words of its training captions, if the file lists them.
    pub words: Option<BTreeSet<String>>,
}

/// A caption as the model will read it, and what was lost on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPrompt {
    /// BPE tokens that fit the text positions.
    pub tokens: Vec<u32>,
    /// The text of those tokens.
    pub text: String,
    /// Whether anything was cut off behind `text`.
    pub truncated: bool,
}

impl Tessera {
    /// The model inside this library.
    pub fn embedded() -> Result<Tessera> {
        let file = ModelFile::from_bytes(tessera_pretrained::MODEL).context("the embedded model")?;
        Tessera::new(&file, Cpu::best())
    }

    /// The model in a file.
    pub fn open(path: &Path) -> Result<Tessera> {
        Tessera::new(&ModelFile::read(path)?, Cpu::best()).with_context(|| path.display().to_string())
    }

    /// The model of an already read file. It draws with weights in 8 bits if the file says what that changes, else with those
    /// that the processor multiplies.
    ///
    /// # Errors
    /// If the file lacks a part that drawing needs, or its weights do not fit its config.
    pub fn new(file: &ModelFile, compute: impl Into<Compute>) -> Result<Tessera> {
        let measured = file.int8.is_known();
        Tessera::with_weights(file, compute, if measured { Weights::Int8 } else { Weights::Full })
    }

    /// The same with a choice of how the prior's weights are kept.
    ///
    /// # Errors
    /// As for [`Tessera::new`], and for 8 bits if the file does not say what they change.
    pub fn with_weights(file: &ModelFile, compute: impl Into<Compute>, weights: Weights) -> Result<Tessera> {
        let compute = &compute.into();
        let tokenizer = file.tokenizer.as_ref().context("the file holds no tokenizer")?;
        let dvae = file.dvae(compute)?;
        let prior = match weights {
            Weights::Full => file.prior(compute)?,
            Weights::Int8 => {
                ensure!(
                    file.int8.is_known(),
                    "the model file does not say what weights in 8 bits change in its drawings; `tessera pack` measures it"
                );
                file.prior(compute)?.in_int8()
            }
        };
        let sampler = Sampler::new(&prior, weights)?;
        let reranker = file.config.rerank.as_ref().map(|_| file.reranker(compute)).transpose()?;
        let image_size = file.config.dvae.as_ref().map_or(0, |config| config.image_size);
        let bpe = Bpe::from_json(tokenizer)?;
        let (caption_drop, words) = (file.caption_drop, file.words.clone());
        let tessera = Tessera { dvae, prior, bpe, sampler, reranker, image_size, caption_drop, words };
        if let (Some(dvae), Some(prior)) = (&file.config.dvae, &file.config.prior) {
            ensure!(
                (dvae.vocab, dvae.grid()) == (prior.image_vocab, prior.grid),
                "the dVAE has {0} codes on a {1}×{1} grid, the prior {2} on {3}×{3}",
                dvae.vocab,
                dvae.grid(),
                prior.image_vocab,
                prior.grid
            );
            let words = tessera.bpe.vocab_size();
            ensure!(
                words <= prior.text_vocab,
                "the tokenizer has {words} tokens, the prior {}",
                prior.text_vocab
            );
        }
        Ok(tessera)
    }

    /// What it computes with.
    pub fn cpu(&self) -> Cpu {
        self.sampler.cpu()
    }

    /// The guidance to draw with: as `wanted`, or what suits the model. Guidance compares with drawing without a caption, which a model has
    /// learnt only if captions were dropped in its training.
    ///
    /// # Errors
    /// If guidance is wanted that the file does not say the model was trained for.
    pub fn guidance(&self, wanted: Option<f64>) -> Result<f64> {
        let trained = trained_for_guidance(self.caption_drop);
        let guidance = wanted.unwrap_or(default_guidance(self.caption_drop));
        let why = match self.caption_drop {
            Some(_) => {
                "the model was trained without dropping captions (data.caption_drop = 0), so it has not learnt to draw without one"
            }
            None => {
                "the model file does not say that captions were dropped in training; if they were, `tessera pack MODEL --dtype exact \
                 --caption-drop SHARE --out NEW` writes a file that does"
            }
        };
        ensure!(trained || guidance == 1.0, "guidance {guidance}: {why}; wanted 1");
        Ok(guidance)
    }

    /// How it picks tokens unless told otherwise.
    pub fn sampling(&self) -> Sampling {
        Sampling { guidance: default_guidance(self.caption_drop), ..Sampling::default() }
    }

    /// What the model reads of `prompt`: its normalised tokens, cut to the text positions.
    pub fn read_prompt(&self, prompt: &str) -> Result<ReadPrompt> {
        let prompt = Prompt::new(prompt);
        let mut tokens = self.bpe.encode(&prompt.text)?;
        let truncated = prompt.dropped_chars > 0 || tokens.len() > self.prior.config().max_caption();
        tokens.truncate(self.prior.config().max_caption());
        // A cut may fall inside a character of several bytes.
        let text = self.bpe.decode(&tokens)?.trim_end_matches(char::REPLACEMENT_CHARACTER).to_string();
        Ok(ReadPrompt { tokens, text, truncated })
    }

    /// The words of `prompt` that no caption of its training has; nothing if the model file does not list those words.
    pub fn unknown_words(&self, prompt: &str) -> Option<Vec<Unknown>> {
        self.words.as_ref().map(|words| unknown_words(&Prompt::new(prompt).text, words))
    }

    /// Tokens of a picture, `[G²]` in raster order: what a picture prompt is made of (paper §3.3).
    ///
    /// # Errors
    /// If it has not the model's size; [`Tessera::image_size`] says it.
    pub fn encode(&self, picture: &RgbImage) -> Result<Vec<u32>> {
        let side = self.image_size;
        let (width, height) = picture.dimensions();
        ensure!(
            (width as usize, height as usize) == (side, side),
            "a picture of {width}x{height} pixels: wanted {side}x{side}"
        );
        let values: Vec<f32> = picture.as_raw().iter().map(|&value| f32::from(value) / 255.0).collect();
        let x: Tensor<4> =
            Tensor::from_data(TensorData::new(values, [1, side, side, 3]), &self.dvae.device());
        let codes = self.dvae.encode(x.permute([0, 3, 1, 2])).into_data();
        Ok(codes.iter::<i64>().map(|code| code as u32).collect())
    }

    /// Tokens of a picture as for [`Tessera::encode`]; or those that it is `claimed` to be made of, if they look like it, and then the
    /// claim as well. What was drawn by this model is so gone on with exactly.
    ///
    /// # Errors
    /// As for [`Tessera::encode`].
    pub fn tokens_of(
        &self,
        picture: &RgbImage,
        claimed: Option<Parameters>,
    ) -> Result<(Vec<u32>, Option<Parameters>)> {
        if let Some(claimed) = claimed
            && let Some(tokens) = &claimed.tokens
            && let Ok(made) = self.decode(&[tokens.iter().copied().map(Some).collect()])
            && looks_like(&made[0], picture, self.prior.config().grid)
        {
            return Ok((tokens.clone(), Some(claimed)));
        }
        Ok((self.encode(picture)?, None))
    }

    /// Pictures of tokens, each `[G²]` in raster order; cells without a token are white.
    ///
    /// # Errors
    /// If there is not an entry for each cell, or a token is unknown.
    pub fn decode(&self, tokens: &[Vec<Option<u32>>]) -> Result<Vec<RgbImage>> {
        let PriorConfig { grid, image_vocab, .. } = *self.prior.config();
        for tokens in tokens {
            ensure!(tokens.len() == grid * grid, "{} tokens: wanted {}", tokens.len(), grid * grid);
            let unknown = tokens.iter().flatten().find(|&&token| token as usize >= image_vocab);
            ensure!(unknown.is_none(), "token {unknown:?}: wanted less than {image_vocab}");
        }
        mosaics(&self.dvae, grid, tokens)
    }

    /// Draws; the pictures come as events. A prompt that is too long is cut as [`Tessera::read_prompt`] tells.
    ///
    /// # Errors
    /// If the request is none, or wants the best of a model that has no reranker.
    pub fn draw(&self, request: Request) -> Result<Drawing<'_>> {
        Drawing::of(&self.sampler, &self.dvae, self.job(request)?)
    }

    /// A batch that draws many requests together, each made a job by [`Tessera::job`]; at most `rows` rows step at once.
    pub fn batch(&self, rows: usize) -> Batch<'_> {
        Batch::new(&self.sampler, &self.dvae, rows)
    }

    /// The request with what the model reads of it.
    ///
    /// # Errors
    /// If it wants guidance that the model was not trained for, the best of a model that has no reranker, or of fewer than it draws.
    pub fn job(&self, request: Request) -> Result<Job<'_>> {
        let caption = self.read_prompt(&request.prompt)?;
        self.job_of(&caption, request)
    }

    /// The same for a prompt that [`Tessera::read_prompt`] has already read.
    ///
    /// # Errors
    /// As for [`Tessera::job`].
    pub fn job_of(&self, prompt: &ReadPrompt, request: Request) -> Result<Job<'_>> {
        self.guidance(Some(request.sampling.guidance))?;
        let caption = prompt.tokens.clone();
        let negative = self.read_prompt(&request.negative)?.tokens;
        let rank = |best: usize| {
            let reranker =
                self.reranker.as_ref().context("the model has no reranker to choose the best with")?;
            ensure!(best <= request.n, "the best {best} of {}: wanted no more than are drawn", request.n);
            Ranking::new(reranker, &request.prompt, best)
        };
        let ranking = request.best.map(rank).transpose()?;
        Ok(Job { caption, negative, request, ranking })
    }
}

/// How much the mean colour of a cell may change, of 255, when a drawing is enlarged and reduced again.
const SAME_COLOUR: f64 = 12.0;

/// Whether the cells of two pictures have the same mean colours.
fn looks_like(a: &RgbImage, b: &RgbImage, grid: usize) -> bool {
    let cell = a.width() / grid as u32;
    let mean = |image: &RgbImage, left: u32, top: u32, channel: usize| {
        let values = (0..cell * cell)
            .map(|at| f64::from(image.get_pixel(left + at % cell, top + at / cell).0[channel]));
        values.sum::<f64>() / f64::from(cell * cell)
    };
    a.dimensions() == b.dimensions()
        && (0..grid * grid * 3).all(|i| {
            let (at, channel) = ((i / 3) as u32, i % 3);
            let (left, top) = (at % grid as u32 * cell, at / grid as u32 * cell);
            (mean(a, left, top, channel) - mean(b, left, top, channel)).abs() < SAME_COLOUR
        })
}

impl ModelFile {
    /// The dVAE of the file.
    pub fn dvae(&self, compute: impl Into<Compute>) -> Result<Dvae> {
        let config = self.config.dvae.as_ref().context("the file holds no dVAE")?;
        config.check()?;
        check_count("dVAE", config.n_parameters().iter().sum(), &self.dvae)?;
        import(Dvae::blank(config, compute), &self.dvae).context("dVAE")
    }

    /// The prior of the file.
    pub fn prior(&self, compute: impl Into<Compute>) -> Result<Prior> {
        let config =
            self.config.prior.as_ref().context("the file holds no prior; was it made by `train prior`?")?;
        config.check()?;
        check_count("prior", config.n_parameters(), &self.prior)?;
        import(Prior::blank(config, compute), &self.prior).context("prior")
    }

    /// The contrastive model of the file.
    pub fn clip(&self, compute: impl Into<Compute>) -> Result<Clip> {
        let config = self
            .config
            .rerank
            .as_ref()
            .context("the file holds no contrastive model; was it made by `train rerank`?")?;
        config.check()?;
        check_count("contrastive model", config.n_parameters(), &self.rerank)?;
        import(Clip::blank(config, compute), &self.rerank).context("contrastive model")
    }

    /// The contrastive model of the file with its tokenizer.
    ///
    /// # Errors
    /// If the file lacks one of the two, or they do not fit each other.
    pub fn reranker(&self, compute: impl Into<Compute>) -> Result<Reranker> {
        let tokenizer = self.tokenizer.as_ref().context("the file holds no tokenizer")?;
        Reranker::new(self.clip(compute)?, Bpe::from_json(tokenizer)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::int8_nats_per_token;
    use crate::weights::{HostTensor, Int8Change, export};

    #[test]
    fn guidance_takes_a_model_that_was_trained_for_it() {
        let mut tessera = Tessera::embedded().unwrap();
        assert_eq!((tessera.guidance(None).unwrap(), tessera.sampling().guidance), (1.5, 1.5));
        for (drop, why) in [(Some(0.0), "data.caption_drop = 0"), (None, "--caption-drop SHARE")] {
            tessera.caption_drop = drop;
            assert_eq!((tessera.guidance(None).unwrap(), tessera.sampling().guidance), (1.0, 1.0));
            assert_eq!(tessera.guidance(Some(1.0)).unwrap(), 1.0);
            let error = tessera.guidance(Some(1.5)).unwrap_err().to_string();
            assert!(error.starts_with("guidance 1.5: ") && error.contains(why), "{error}");
            let guided = Request { prompt: "a cat".into(), ..Request::default() };
            assert!(tessera.job(guided.clone()).is_err());
            assert!(tessera.job(Request { sampling: tessera.sampling(), ..guided }).is_ok());
        }
    }

    #[test]
    fn weights_in_8_bits_take_a_file_that_says_what_they_change() {
        let cpu = Cpu::best();
        let file = ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap();
        let (exact, rounded) = (file.prior(cpu).unwrap(), file.prior(cpu).unwrap().in_int8());
        let [exact, rounded] = [exact, rounded].map(|prior| export(&prior));
        assert!(exact != rounded);
        let of = |tessera: Result<Tessera>| export(&tessera.unwrap().prior);
        assert!(of(Tessera::new(&file, cpu)) == rounded);
        assert!(of(Tessera::with_weights(&file, cpu, Weights::Full)) == exact);
        let unmeasured = ModelFile { int8: Int8Change::Unknown, ..file };
        assert!(of(Tessera::new(&unmeasured, cpu)) == exact);
        let refused = Tessera::with_weights(&unmeasured, cpu, Weights::Int8).err().unwrap().to_string();
        assert!(refused.contains("`tessera pack` measures it"), "{refused}");
    }

    #[test]
    fn the_embedded_model_hardly_changes_in_8_bits_and_damage_shows() {
        let file = ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap();
        let prior = file.prior(Cpu::best()).unwrap();
        let found = int8_nats_per_token(&prior, prior.clone()).unwrap();
        assert!(found > 0.0 && found < 0.05, "{found} nats a token");
        // Other numbers in one matrix are more than rounding.
        let zeroed = |weight: &HostTensor| match &*weight.name {
            "blocks.0.mlp_out.weight" => {
                HostTensor { values: vec![0.0; weight.values.len()], ..weight.clone() }
            }
            _ => weight.clone(),
        };
        let other = ModelFile { prior: file.prior.iter().map(zeroed).collect(), ..file };
        let damaged = int8_nats_per_token(&prior, other.prior(Cpu::best()).unwrap()).unwrap();
        assert!(damaged > 10.0 * found, "{damaged} with a layer missing, {found} without");
    }
}
