//! [`Tessera`], a complete model that is ready to draw: the entry point of the library.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Tensor, TensorData};
use image::RgbImage;
use tessera_base::pixels::to_floats;
use tessera_kernels::Cpu;
use tessera_kernels::decode::Weights;
use tessera_text::{Bpe, Prompt, Unknown, normalise, unknown_words};

use crate::dvae::Dvae;
use crate::error::Error;
use crate::nn::{Compute, check_count, import};
use crate::prior::{Prior, PriorConfig};
use crate::rerank::{Clip, Reranker};
use crate::sample::{
    Batch, CANDIDATES_EACH, DEFAULT_N, Drawing, Job, Parameters, Picture, Ranking, Request, Sampler,
    Sampling, default_guidance, mosaics, random_seed, trained_for_guidance,
};
use crate::weights::ModelFile;

/// A complete model: the dVAE, the tokenizer, the prior and optionally the reranker of a model
/// file.
///
/// [`Tessera::draw_all`] draws a prompt as the command `tessera draw` does. For other settings,
/// change the request; to see the pictures form, go through its events:
///
/// ```
/// use tessera_model::{Event, Request, Tessera};
///
/// let tessera = Tessera::embedded()?;
/// let request = Request { n: 2, best: None, seed: 1, ..tessera.request("a red apple") };
/// for event in tessera.draw(request)? {
///     match event? {
///         Event::Tokens { done, total, .. } => assert!(done <= total),
///         Event::Preview(_) => {} // only with `previews: true`
///         Event::Picture(picture) => assert_eq!(picture.image.width(), 48),
///     }
/// }
/// # Ok::<(), tessera_model::Error>(())
/// ```
pub struct Tessera {
    /// Converts pictures to tokens and back.
    pub dvae: Dvae,
    /// Predicts picture tokens from a caption. If the sampler uses 8-bit weights, these weights are
    /// rounded to the same values.
    pub prior: Prior,
    /// The tokenizer of captions.
    pub bpe: Bpe,
    /// The prior with its weights packed for sampling.
    pub sampler: Sampler,
    /// Scores how well a picture fits its caption; `None` if the file has no reranker.
    pub reranker: Option<Reranker>,
    /// The side of the model's pictures in pixels.
    pub image_size: usize,
    /// The fraction of captions that were dropped in training; `None` if the file does not say.
    pub caption_drop: Option<f32>,
    /// The words of the training captions; `None` if the file does not list them.
    pub words: Option<BTreeSet<String>>,
}

/// A caption as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPrompt {
    /// The BPE tokens that fit the text positions.
    pub tokens: Vec<u32>,
    /// The text of these tokens.
    pub text: String,
    /// Whether the caption is longer than `text`, so that its end was cut off.
    pub truncated: bool,
}

impl Tessera {
    /// Loads the model that is embedded in this library.
    ///
    /// # Errors
    /// Only [`Error::Internal`].
    #[cfg(feature = "embedded")]
    pub fn embedded() -> Result<Tessera, Error> {
        let file = ModelFile::from_bytes(tessera_pretrained::MODEL).context("the embedded model");
        file.and_then(|file| Tessera::new(&file, Cpu::best())).map_err(Error::internal)
    }

    /// Loads the model of the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not a model file, is damaged, is of a newer version, or has
    /// no complete model.
    pub fn open(path: impl AsRef<Path>) -> Result<Tessera, Error> {
        let path = path.as_ref();
        let file = ModelFile::read(path).map_err(|error| Error::file(path, error))?;
        let unusable = |error| Error::UnusableModel(format!("{}: {error:#}", path.display()));
        Tessera::new(&file, Cpu::best()).map_err(unusable)
    }

    /// Builds the model of a file that was already read. Sampling uses 8-bit weights if the file
    /// says how much they change the model's predictions, else weights in f32 or bf16, whichever
    /// the processor multiplies.
    ///
    /// # Errors
    /// If the file lacks a part that drawing needs, or its weights do not fit its config.
    pub fn new(file: &ModelFile, compute: impl Into<Compute>) -> Result<Tessera> {
        let measured = file.int8.is_known();
        Tessera::with_weights(file, compute, if measured { Weights::Int8 } else { Weights::Full })
    }

    /// Like [`Tessera::new`], but the caller chooses how the prior's weights are stored for
    /// sampling.
    ///
    /// # Errors
    /// As for [`Tessera::new`]; also if 8-bit weights are chosen and the file does not say how much
    /// they change the model's predictions.
    pub fn with_weights(file: &ModelFile, compute: impl Into<Compute>, weights: Weights) -> Result<Tessera> {
        let compute = &compute.into();
        let tokenizer = file.tokenizer.as_ref().context("the file holds no tokenizer")?;
        let dvae = file.dvae(compute)?;
        let prior = match weights {
            Weights::Full => file.prior(compute)?,
            Weights::Int8 => {
                ensure!(
                    file.int8.is_known(),
                    "the model file does not say how much 8-bit weights change its predictions; `tessera pack` measures it"
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

    /// The instructions and the precision that the model computes with on the processor.
    pub fn cpu(&self) -> Cpu {
        self.sampler.cpu()
    }

    /// Returns the guidance to draw with: `requested`, or the model's default if that is `None`.
    ///
    /// Guidance compares the predictions with and without the caption. A model can predict without
    /// a caption only if captions were dropped in its training.
    ///
    /// # Errors
    /// If `requested` is not 1 and the file does not say that captions were dropped in training.
    pub fn guidance(&self, requested: Option<f64>) -> Result<f64> {
        let trained = trained_for_guidance(self.caption_drop);
        let guidance = requested.unwrap_or(default_guidance(self.caption_drop));
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

    /// The model's default sampling parameters.
    pub fn sampling(&self) -> Sampling {
        Sampling { guidance: default_guidance(self.caption_drop), ..Sampling::default() }
    }

    /// Normalises and tokenizes `prompt`, and cuts it to the text positions of the model.
    pub fn read_prompt(&self, prompt: &str) -> Result<ReadPrompt> {
        let prompt = Prompt::new(prompt);
        let mut tokens = self.bpe.encode(&prompt.text)?;
        let truncated = prompt.dropped_chars > 0 || tokens.len() > self.prior.config().max_caption();
        tokens.truncate(self.prior.config().max_caption());
        // The cut may split a character of several bytes.
        let text = self.bpe.decode(&tokens)?.trim_end_matches(char::REPLACEMENT_CHARACTER).to_string();
        Ok(ReadPrompt { tokens, text, truncated })
    }

    /// The words of `prompt` that occur in no training caption; `None` if the file does not list
    /// the words of the training captions.
    pub fn unknown_words(&self, prompt: &str) -> Option<Vec<Unknown>> {
        self.words.as_ref().map(|words| unknown_words(&Prompt::new(prompt).text, words))
    }

    /// Encodes a picture: its tokens, `[G²]` in raster order. Such tokens make a picture prompt
    /// (paper §3.3).
    ///
    /// # Errors
    /// If the sides of the picture are not [`Tessera::image_size`].
    pub fn encode(&self, picture: &RgbImage) -> Result<Vec<u32>> {
        let side = self.image_size;
        let (width, height) = picture.dimensions();
        ensure!(
            (width as usize, height as usize) == (side, side),
            "a picture of {width}x{height} pixels: wanted {side}x{side}"
        );
        let values = TensorData::new(to_floats(picture), [1, 3, side, side]);
        let codes = self.dvae.encode(Tensor::from_data(values, &self.dvae.device())).into_data();
        Ok(codes.iter::<i64>().map(|code| code as u32).collect())
    }

    /// Returns the tokens of a picture. `claimed` holds the parameters that are stored with it.
    ///
    /// If `claimed` has tokens, and they decode to a picture that looks like this one, returns
    /// these tokens together with `claimed`: a picture that this model drew is then continued from
    /// exactly the tokens that it was drawn with. Otherwise encodes the picture like
    /// [`Tessera::encode`].
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

    /// Decodes pictures from their tokens, each `[G²]` in raster order; cells without a token are
    /// white.
    ///
    /// # Errors
    /// If there is not one entry per cell, or a token is outside the vocabulary.
    pub fn decode(&self, tokens: &[Vec<Option<u32>>]) -> Result<Vec<RgbImage>> {
        let PriorConfig { grid, image_vocab, .. } = *self.prior.config();
        for tokens in tokens {
            ensure!(tokens.len() == grid * grid, "{} tokens: wanted {}", tokens.len(), grid * grid);
            if let Some(token) = tokens.iter().flatten().find(|&&token| token as usize >= image_vocab) {
                bail!("token {token}: wanted less than {image_vocab}");
            }
        }
        mosaics(&self.dvae, grid, tokens)
    }

    /// Returns the request that the command `tessera draw` makes of a prompt: with the model's
    /// default sampling, a random seed and no previews. It asks for the best 9 of 36 pictures, or
    /// for 9 pictures if they cannot be ranked because the model has no reranker or the prompt has
    /// no words.
    pub fn request(&self, prompt: &str) -> Request {
        let is_ranked = self.reranker.is_some() && !normalise(prompt).is_empty();
        Request {
            prompt: prompt.to_string(),
            n: if is_ranked { DEFAULT_N * CANDIDATES_EACH } else { DEFAULT_N },
            best: is_ranked.then_some(DEFAULT_N),
            seed: random_seed(),
            sampling: self.sampling(),
            previews: false,
            ..Request::default()
        }
    }

    /// Draws [`Tessera::request`] of `prompt` and returns the pictures, best first.
    ///
    /// # Errors
    /// Only [`Error::Internal`]: any text is a valid prompt.
    pub fn draw_all(&self, prompt: &str) -> Result<Vec<Picture>, Error> {
        self.draw(self.request(prompt))?.pictures()
    }

    /// Starts drawing a request. The pictures come as events of the returned iterator. A prompt
    /// that is too long is cut, see [`Tessera::read_prompt`].
    ///
    /// # Errors
    /// If the request is invalid, or asks for the best pictures and the model has no reranker.
    pub fn draw(&self, request: Request) -> Result<Drawing<'_>, Error> {
        Drawing::of(&self.sampler, &self.dvae, self.job(request).map_err(Error::request)?)
    }

    /// An empty batch that draws many requests together, about `rows` sequences at a time.
    /// [`Tessera::job`] makes a request a job for it.
    pub fn batch(&self, rows: usize) -> Batch<'_> {
        Batch::new(&self.sampler, &self.dvae, rows)
    }

    /// Prepares a request for a batch: tokenizes its prompts and encodes the caption for the
    /// reranker.
    ///
    /// # Errors
    /// If the request asks for guidance that the model was not trained for, for the best pictures
    /// although the model has no reranker, or for more of them than it draws.
    pub fn job(&self, request: Request) -> Result<Job<'_>> {
        let caption = self.read_prompt(&request.prompt)?;
        self.job_of(&caption, request)
    }

    /// Like [`Tessera::job`], for a prompt that [`Tessera::read_prompt`] has already read.
    ///
    /// # Errors
    /// As for [`Tessera::job`].
    pub fn job_of(&self, prompt: &ReadPrompt, request: Request) -> Result<Job<'_>> {
        self.guidance(Some(request.sampling.guidance))?;
        let caption = prompt.tokens.clone();
        let negative = self.read_prompt(&request.negative)?.tokens;
        let rank = |best: usize| {
            let reranker = self.reranker.as_ref().ok_or(Error::NoReranker)?;
            ensure!(best <= request.n, "the best {best} of {}: best must not exceed n", request.n);
            Ranking::new(reranker, &request.prompt, best)
        };
        let ranking = request.best.map(rank).transpose()?;
        Ok(Job { caption, negative, request, ranking })
    }
}

/// How far the mean colours of a cell, 0 to 255, may differ in two copies of a picture, of which
/// one was enlarged and reduced again.
const SAME_COLOUR: f64 = 12.0;

/// Whether all cells of two pictures have nearly the same mean colour.
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
    /// Builds the dVAE of the file.
    pub fn dvae(&self, compute: impl Into<Compute>) -> Result<Dvae> {
        let config = self
            .config
            .dvae
            .as_ref()
            .context("the file has no dVAE; use a file of `train dvae` or `train prior`")?;
        config.check()?;
        check_count("dVAE", config.n_parameters().iter().sum(), &self.dvae)?;
        import(Dvae::blank(config, compute), &self.dvae).context("dVAE")
    }

    /// Builds the prior of the file.
    pub fn prior(&self, compute: impl Into<Compute>) -> Result<Prior> {
        let config =
            self.config.prior.as_ref().context("the file holds no prior; was it made by `train prior`?")?;
        config.check()?;
        check_count("prior", config.n_parameters(), &self.prior)?;
        import(Prior::blank(config, compute), &self.prior).context("prior")
    }

    /// Builds the contrastive model of the file.
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

    /// Builds the contrastive model of the file, with its tokenizer.
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
    fn guidance_without_dropped_captions_is_an_error() {
        let file = ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap();
        let mut tessera = Tessera::new(&file, Cpu::best()).unwrap();
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
    fn int8_weights_need_a_file_in_which_they_were_measured() {
        let cpu = Cpu::best();
        let file = ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap();
        let (exact, rounded) = (file.prior(cpu).unwrap(), file.prior(cpu).unwrap().in_int8());
        let [exact, rounded] = [exact, rounded].map(|prior| export(&prior));
        assert!(exact != rounded);
        let weights_of = |tessera: Result<Tessera>| export(&tessera.unwrap().prior);
        assert!(weights_of(Tessera::new(&file, cpu)) == rounded);
        assert!(weights_of(Tessera::with_weights(&file, cpu, Weights::Full)) == exact);
        let unmeasured = ModelFile { int8: Int8Change::Unknown, ..file };
        assert!(weights_of(Tessera::new(&unmeasured, cpu)) == exact);
        let error = Tessera::with_weights(&unmeasured, cpu, Weights::Int8).err().unwrap().to_string();
        assert!(error.contains("`tessera pack` measures it"), "{error}");
    }

    #[test]
    fn int8_change_is_small_unless_the_weights_are_damaged() {
        let file = ModelFile::from_bytes(tessera_pretrained::MODEL).unwrap();
        let prior = file.prior(Cpu::best()).unwrap();
        let found = int8_nats_per_token(&prior, prior.clone()).unwrap();
        assert!(found > 0.0 && found < 0.05, "{found} nats per token");
        // Zeros in one matrix change much more than rounding does.
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
