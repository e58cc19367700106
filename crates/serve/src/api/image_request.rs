//! Validates the parameters of a request: what to draw, and how to return it.

use axum::http::StatusCode;
use tessera_model::sample::random_seed;
use tessera_model::{Request, Sampling};
use tessera_prompt::{Model, PicturePrompt, parameters};

use super::fields::{Fields, shortened};
use super::{ApiError, Kind, expect_model};
use crate::App;
use crate::limits::{ANSWER_PIXELS, BEST_OF, N, PARTIAL_IMAGES, PROMPT_CHARS, SIZE};
use crate::picture::{Encoding, Style};

/// The default number of candidates per picture, if they can be ranked.
const CANDIDATES: usize = 4;
/// The default enlargement of a picture.
const SCALE: u32 = 4;
/// The largest integer that every JSON reader represents exactly.
const LARGEST: u64 = (1 << 53) - 1;

/// OpenAI's parameters that are accepted but have no effect.
const IGNORED: [&str; 6] = ["user", "quality", "style", "background", "moderation", "input_fidelity"];

/// How an answer contains pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The encoded file.
    Base64,
    /// A URL at which the server stores the file for a limited time.
    Url,
}

/// How an answer is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// All pictures together.
    Whole,
    /// As a stream of events.
    Stream(Shown),
    /// As a log that clients read at another URL.
    Log(Shown),
}

/// What a stream shows of a picture before it is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// The number of partial pictures per candidate.
    pub partial_images: usize,
    /// Whether each sampled token is sent.
    pub tokens: bool,
}

/// A validated request.
pub struct ImageRequest {
    /// The kind of the request.
    pub kind: Kind,
    /// The request to the model.
    pub request: Request,
    /// Whether the prompt is longer than the model reads.
    pub truncated: bool,
    /// How the pictures are rendered from tokens.
    pub style: Style,
    /// The format of the pictures in the answer.
    pub format: Format,
    /// How the pictures are sent.
    pub delivery: Delivery,
}

impl ImageRequest {
    /// Reads all parameters except those of the picture prompt, which is given with the fraction of
    /// its cells to redraw.
    pub fn read(
        mut fields: Fields,
        kind: Kind,
        app: &App,
        picture: Option<(PicturePrompt, f64)>,
    ) -> Result<ImageRequest, ApiError> {
        let model = model(&mut fields, app)?;
        let prompt = prompt(&mut fields, kind)?
            .or_else(|| picture.as_ref().and_then(|(picture, _)| picture.drawn_from.clone()))
            .unwrap_or_default();
        let negative = text(&mut fields, "negative_prompt")?.unwrap_or_default();
        let read = app
            .tessera
            .read_prompt(&prompt)
            .map_err(|error| ApiError::invalid("prompt", error.to_string()))?;
        let ranks = app.model.ranks && !read.text.is_empty();
        let n = fields.whole("n", 1, N as u64)?.unwrap_or(1) as usize;
        let of = fields.whole("best_of", 1, BEST_OF as u64)?.map(|of| of as usize);
        let of = match of {
            Some(of) if of < n => {
                return Err(ApiError::invalid(
                    "best_of",
                    format!("'best_of' is {of}: wanted at least 'n', which is {n}."),
                ));
            }
            Some(of) if of > n && !ranks => {
                return Err(ApiError::invalid(
                    "best_of",
                    "'best_of' is larger than 'n': that requires a prompt and a model with a reranker.",
                ));
            }
            Some(of) => of,
            None if ranks => (n * CANDIDATES).min(BEST_OF),
            None => n,
        };
        let seed = fields.whole("seed", 0, LARGEST)?.unwrap_or_else(random_seed);
        let sampling = sampling(&mut fields, app)?;
        let size = size(&mut fields, app)?;
        let (encoding, delivery) = (encoding(&mut fields)?, delivery(&mut fields)?);
        let format = format(&mut fields)?.unwrap_or_else(|| usual_format(kind, model.as_deref(), delivery));
        bounded(size, n, of, delivery, app)?;
        fields.ignore(&IGNORED);
        fields.finish()?;
        let request = Request {
            prompt,
            negative,
            n: of,
            // If the model can rank, pictures are also scored when all of them are returned.
            best: ranks.then_some(n),
            seed,
            sampling,
            previews: matches!(delivery, Delivery::Stream(shown) | Delivery::Log(shown) if shown.partial_images > 0),
            given: picture.as_ref().map_or_else(Vec::new, |(picture, _)| picture.tokens.clone()),
            strength: picture.as_ref().map_or(0.0, |(_, strength)| *strength),
        };
        let truncated = read.truncated;
        let texts = [vec![request.prompt.clone()], vec![read.text]];
        let named = Model { name: &app.model.name, id: &app.model.fingerprint };
        let picture = picture.as_ref().map(|(picture, _)| picture);
        let parameters = parameters(&request, texts, n, named, picture, kind == Kind::Variation);
        let style = Style { size, encoding, parameters };
        Ok(ImageRequest { kind, request, truncated, style, format, delivery })
    }
}

/// Returns the model's name, if the request contains one.
fn model(fields: &mut Fields, app: &App) -> Result<Option<String>, ApiError> {
    let named = fields.text("model")?;
    named.as_deref().map_or(Ok(()), |name| expect_model(app, name))?;
    Ok(named)
}

fn prompt(fields: &mut Fields, kind: Kind) -> Result<Option<String>, ApiError> {
    match text(fields, "prompt")? {
        None if kind != Kind::Variation => Err(ApiError {
            code: "missing_required_parameter",
            ..ApiError::invalid("prompt", "There is no 'prompt': say what to draw.")
        }),
        prompt => Ok(prompt),
    }
}

fn text(fields: &mut Fields, name: &str) -> Result<Option<String>, ApiError> {
    let text = fields.prose(name)?;
    let chars = text.as_ref().map_or(0, |text| text.chars().count());
    match chars > PROMPT_CHARS {
        true => Err(ApiError::invalid(
            name,
            format!("'{name}' has {chars} characters: wanted {PROMPT_CHARS} at most."),
        )),
        false => Ok(text),
    }
}

fn sampling(fields: &mut Fields, app: &App) -> Result<Sampling, ApiError> {
    let default = app.tessera.sampling();
    let sampling = Sampling {
        temperature: fields.number("temperature")?.unwrap_or(default.temperature),
        top_k: fields.whole("top_k", 1, LARGEST)?.map(|k| k as usize),
        top_p: fields.number("top_p")?.or(default.top_p),
        guidance: fields.number("guidance")?.unwrap_or(default.guidance),
    };
    match sampling.check().and_then(|()| app.tessera.guidance(Some(sampling.guidance))) {
        Ok(_) => Ok(sampling),
        Err(error) => Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", format!("{error}."))),
    }
}

fn size(fields: &mut Fields, app: &App) -> Result<u32, ApiError> {
    let native = app.model.side as u32;
    let given = fields.text("size")?.filter(|given| given != "auto");
    let size = match &given {
        None => (SCALE * native).min(SIZE.max(native)),
        Some(given) => {
            let square = given.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
            let side = square.filter(|(w, h): &(u32, u32)| w == h).map(|(w, _)| w);
            side.filter(|side| (native..=SIZE.max(native)).contains(side)).ok_or_else(|| {
                let most = SIZE.max(native);
                let wanted = format!("wanted a square from {native}x{native} to {most}x{most}");
                ApiError::invalid("size", format!("'size' is {}: {wanted}.", shortened(given)))
            })?
        }
    };
    Ok(size)
}

/// Refuses an answer that would need too much memory: `n` pictures, and the partial pictures of
/// `of` candidates.
fn bounded(size: u32, n: usize, of: usize, delivery: Delivery, app: &App) -> Result<(), ApiError> {
    let partial = match delivery {
        Delivery::Whole => 0,
        Delivery::Stream(shown) | Delivery::Log(shown) => of * shown.partial_images.min(app.model.grid),
    };
    match (n + partial).saturating_mul(size as usize * size as usize) > ANSWER_PIXELS {
        true => {
            let got = format!("{n} pictures and {partial} partial ones of {size}x{size}");
            Err(ApiError::invalid("size", format!("{got}: wanted {ANSWER_PIXELS} pixels at most in all.")))
        }
        false => Ok(()),
    }
}

/// Reads the file format. OpenAI's `output_compression` is the quality of a JPEG; PNG and WebP are
/// always lossless.
fn encoding(fields: &mut Fields) -> Result<Encoding, ApiError> {
    let quality = fields.whole("output_compression", 0, 100)?.unwrap_or(100).max(1);
    match fields.text("output_format")?.as_deref() {
        None | Some("png") => Ok(Encoding::Png),
        Some("jpeg") => Ok(Encoding::Jpeg(quality as u8)),
        Some("webp") => Ok(Encoding::WebP),
        Some(other) => Err(ApiError::invalid(
            "output_format",
            format!("'output_format' is {}: wanted png, jpeg or webp.", shortened(other)),
        )),
    }
}

/// Returns the default format, which is that of OpenAI's model of this name: URLs for DALL·E and
/// otherwise the pictures. Variations without a model name count as DALL·E, because OpenAI has no
/// other model for them. Streams and logs always contain the pictures.
fn usual_format(kind: Kind, model: Option<&str>, delivery: Delivery) -> Format {
    let dall_e = match model {
        Some(name) => name.starts_with("dall-e"),
        None => kind == Kind::Variation,
    };
    match delivery {
        Delivery::Whole if dall_e => Format::Url,
        Delivery::Whole | Delivery::Stream(_) | Delivery::Log(_) => Format::Base64,
    }
}

fn format(fields: &mut Fields) -> Result<Option<Format>, ApiError> {
    match fields.text("response_format")?.as_deref() {
        None => Ok(None),
        Some("b64_json") => Ok(Some(Format::Base64)),
        Some("url") => Ok(Some(Format::Url)),
        Some(other) => Err(ApiError::invalid(
            "response_format",
            format!("'response_format' is {}: wanted b64_json or url.", shortened(other)),
        )),
    }
}

fn delivery(fields: &mut Fields) -> Result<Delivery, ApiError> {
    let partial_images = fields.whole("partial_images", 0, PARTIAL_IMAGES as u64)?.unwrap_or(0) as usize;
    let shown = Shown { partial_images, tokens: fields.flag("stream_tokens")? };
    match (fields.flag("stream")?, fields.flag("async")?) {
        (true, true) => {
            Err(ApiError::invalid("async", "'stream' and 'async' are both true: wanted one of them."))
        }
        (true, false) => Ok(Delivery::Stream(shown)),
        (false, true) => Ok(Delivery::Log(shown)),
        (false, false) => Ok(Delivery::Whole),
    }
}
