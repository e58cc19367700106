//! Byte-level BPE (paper §2.2): training, encoding, decoding, and BPE dropout (also written
//! BPE-dropout; Provilkov et al., 10% on training captions).
//!
//! The `tokenizers` crate trains the merges and encodes without dropout. Its own dropout uses a
//! hidden thread-local random generator, so a resumed run could not reproduce it. The dropout in
//! this file takes the generator as an argument. The alphabet is the 256 bytes, so every string in
//! any script can be encoded.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rand_chacha::rand_core::Rng;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

use crate::Prompt;

/// The end of the error messages for an inconsistent vocabulary.
const DAMAGED: &str = "the tokenizer is damaged; make it again with `tessera train bpe`";

/// A trained byte-level BPE vocabulary.
#[derive(Clone)]
pub struct Bpe {
    tokenizer: Tokenizer,
    vocab: HashMap<String, u32>,
    /// (left id, right id) → (rank, merged id).
    merges: HashMap<(u32, u32), (usize, u32)>,
}

/// The part of a caption that fits into a model's text positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readable {
    /// The normalised text, cut to the tokens that fit.
    pub text: String,
    /// The number of characters beyond [`MAX_PROMPT_CHARS`](crate::MAX_PROMPT_CHARS), which are
    /// ignored.
    pub dropped_chars: usize,
    /// The number of tokens of the remaining text that exceed the model's text positions.
    pub dropped_tokens: usize,
}

impl std::fmt::Debug for Bpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bpe({} tokens)", self.vocab_size())
    }
}

impl Bpe {
    /// Learns at most `vocab_size` tokens from `captions`; 256 of them are the single bytes.
    ///
    /// # Errors
    /// If `vocab_size` is below 256.
    pub fn train<S: AsRef<str> + Send>(
        captions: impl Iterator<Item = S> + Send,
        vocab_size: usize,
    ) -> Result<Bpe> {
        if vocab_size < 256 {
            bail!("BPE vocabulary of {vocab_size}: a byte-level vocabulary needs at least 256 tokens");
        }
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(byte_level())).with_decoder(Some(byte_level()));
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
            .into();
        tokenizer.train(&mut trainer, captions).map_err(|e| anyhow!("BPE training failed: {e}"))?;
        Bpe::from_json(&tokenizer.to_string(false).map_err(|e| anyhow!("{e}"))?)
    }

    /// Reads a vocabulary in the Hugging Face `tokenizer.json` format.
    ///
    /// # Errors
    /// If the format is different, a byte token is missing, or the ids or merges are inconsistent
    /// with the tokens.
    pub fn from_json(json: &str) -> Result<Bpe> {
        let tokenizer: Tokenizer = json.parse().map_err(|e| anyhow!("not a tokenizer JSON: {e}"))?;
        let vocab = tokenizer.get_vocab(false);
        check_vocab(&vocab)?;
        let merges = read_merges(json, &vocab)?;
        Ok(Bpe { tokenizer, vocab, merges })
    }

    /// Returns the vocabulary in the Hugging Face `tokenizer.json` format.
    pub fn to_json(&self) -> Result<String> {
        self.tokenizer.to_string(false).map_err(|e| anyhow!("{e}"))
    }

    /// Returns the number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// Returns the token ids of `text`, which should be [normalised](crate::normalise).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| anyhow!("{e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Normalises a caption and cuts it to at most `most` tokens. Callers apply BPE-dropout to the
    /// cut text only, because its time grows with the square of a word's length.
    pub fn readable(&self, caption: &str, most: usize) -> Result<Readable> {
        let Prompt { text, dropped_chars } = Prompt::new(caption);
        // Each token covers at least one byte, and encoding prepends a space: there are at most
        // `text.len() + 1` tokens.
        if text.len() < most {
            return Ok(Readable { text, dropped_chars, dropped_tokens: 0 });
        }
        let mut tokens = self.encode(&text)?;
        let dropped_tokens = tokens.len().saturating_sub(most);
        if dropped_tokens == 0 {
            return Ok(Readable { text, dropped_chars, dropped_tokens });
        }
        tokens.truncate(most);
        // The cut may split a multi-byte character.
        let text = self.decode(&tokens)?.trim_end_matches(char::REPLACEMENT_CHARACTER).to_string();
        Ok(Readable { text, dropped_chars, dropped_tokens })
    }

    /// Returns the token ids of `text` under BPE-dropout: at every merge step, each applicable
    /// merge is skipped with probability `dropout`.
    ///
    /// `dropout = 0` equals [`Bpe::encode`]; `dropout = 1` gives single bytes. Every result decodes
    /// to `text`.
    pub fn encode_with_dropout(&self, text: &str, dropout: f32, rng: &mut impl Rng) -> Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        byte_level().pre_tokenize(&mut pieces).map_err(|e| anyhow!("{e}"))?;
        let mut ids = Vec::new();
        for (piece, _, _) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            let mut symbols = self.symbols(piece)?;
            while let Some((at, merged)) = self.next_merge(&symbols, dropout, rng) {
                symbols[at] = merged;
                symbols.remove(at + 1);
            }
            ids.extend(symbols);
        }
        Ok(ids)
    }

    /// Returns the text of `ids`. Ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(ids, true).map_err(|e| anyhow!("{e}"))?;
        Ok(text.strip_prefix(' ').map(str::to_owned).unwrap_or(text))
    }

    fn symbols(&self, piece: &str) -> Result<Vec<u32>> {
        piece
            .chars()
            .map(|c| self.vocab.get(c.encode_utf8(&mut [0; 4]) as &str).copied())
            .collect::<Option<Vec<u32>>>()
            .context("the vocabulary lacks some of the 256 byte tokens")
    }

    /// Returns the position and the result of the best-ranked merge that dropout does not skip.
    fn next_merge(&self, symbols: &[u32], dropout: f32, rng: &mut impl Rng) -> Option<(usize, u32)> {
        let mut best: Option<(usize, usize, u32)> = None;
        for (at, pair) in symbols.windows(2).enumerate() {
            let Some(&(rank, merged)) = self.merges.get(&(pair[0], pair[1])) else { continue };
            let dropped = dropout > 0.0 && unit(rng) < dropout;
            if !dropped && best.is_none_or(|(best_rank, _, _)| rank < best_rank) {
                best = Some((rank, at, merged));
            }
        }
        best.map(|(_, at, merged)| (at, merged))
    }
}

/// Draws a uniform number in [0, 1).
fn unit(rng: &mut impl Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

/// The pre-tokenizer. It prepends a space to the text, so that a word has the same tokens at every
/// position.
fn byte_level() -> ByteLevel {
    ByteLevel::new(true, false, true)
}

/// Checks that every byte has a token and that the ids are 0, 1, 2, … without gaps or duplicates.
fn check_vocab(vocab: &HashMap<String, u32>) -> Result<()> {
    let missing =
        ByteLevel::alphabet().into_iter().filter(|byte| !vocab.contains_key(&byte.to_string())).count();
    ensure!(missing == 0, "{missing} of the 256 byte tokens are missing: {DAMAGED}");
    let mut has_token = vec![false; vocab.len()];
    for (token, &id) in vocab {
        let slot = has_token.get_mut(id as usize);
        let is_free = slot.is_some_and(|slot| !std::mem::replace(slot, true));
        let last = vocab.len() - 1;
        ensure!(is_free, "token {token:?} has the id {id}: wanted 0 to {last}, once each: {DAMAGED}");
    }
    Ok(())
}

fn read_merges(json: &str, vocab: &HashMap<String, u32>) -> Result<HashMap<(u32, u32), (usize, u32)>> {
    #[derive(serde::Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(serde::Deserialize)]
    struct Model {
        merges: Vec<(String, String)>,
    }
    let file: File = serde_json::from_str(json).context("tokenizer JSON holds no BPE merges")?;
    let id = |token: &str| {
        vocab
            .get(token)
            .copied()
            .with_context(|| format!("a merge has the unknown token {token:?}: {DAMAGED}"))
    };
    let mut merges = HashMap::new();
    for (rank, (a, b)) in file.model.merges.iter().enumerate() {
        let merge = (rank, id(&format!("{a}{b}"))?);
        ensure!(
            merges.insert((id(a)?, id(b)?), merge).is_none(),
            "{a:?} and {b:?} are merged twice: {DAMAGED}"
        );
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    const CAPTIONS: [&str; 6] = [
        "a red apple, flat style",
        "a green apple, flat style",
        "a red heart, noto style",
        "an emoji of a red apple",
        "a blue heart, flat style",
        "a green heart, noto style",
    ];

    fn bpe() -> Bpe {
        Bpe::train(CAPTIONS.iter().cycle().take(60), 300).unwrap()
    }

    #[test]
    fn words_become_tokens_and_any_text_round_trips() {
        let bpe = bpe();
        assert!(bpe.vocab_size() <= 300);
        assert!(bpe.encode("a red apple").unwrap().len() <= 4);
        for text in ["a red apple", "苹果 🍎", "naïve — \"quoted\"", ""] {
            assert_eq!(bpe.decode(&bpe.encode(text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn json_round_trip() {
        let bpe = bpe();
        let again = Bpe::from_json(&bpe.to_json().unwrap()).unwrap();
        assert_eq!(bpe.encode(CAPTIONS[1]).unwrap(), again.encode(CAPTIONS[1]).unwrap());
        assert!(Bpe::from_json("{}").is_err());
    }

    #[test]
    fn inconsistent_vocabulary_is_an_error() {
        let json = bpe().to_json().unwrap();
        let n = bpe().vocab_size();
        let mut file: serde_json::Value = serde_json::from_str(&json).unwrap();
        let vocab = file["model"]["vocab"].as_object().unwrap().clone();
        let last = format!("the id {n}: wanted 0 to {}, once each", n - 1);
        let [first, second] = [&file["model"]["merges"][0], &file["model"]["merges"][1]].map(Clone::clone);
        let token = |pair: &serde_json::Value| [0, 1].map(|at| pair[at].as_str().unwrap()).concat();
        let byte = |file: &mut serde_json::Value| {
            let vocab = file["model"]["vocab"].as_object_mut().unwrap();
            let id = vocab.remove("~").unwrap();
            vocab.insert("~~".to_string(), id);
        };
        type Change<'a> = &'a dyn Fn(&mut serde_json::Value);
        let changes: [(Change, &str); 5] = [
            (&byte, "1 of the 256 byte tokens are missing"),
            (&|file| file["model"]["vocab"]["a"] = vocab["b"].clone(), "once each"),
            (&|file| file["model"]["vocab"]["a"] = n.into(), &last),
            (&|file| file["model"]["merges"][1] = first.clone(), "are merged twice"),
            (
                &|file| drop(file["model"]["vocab"].as_object_mut().unwrap().remove(&token(&second))),
                "vocabulary",
            ),
        ];
        for (change, expected) in changes {
            let original = file.clone();
            change(&mut file);
            let error = Bpe::from_json(&file.to_string()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}, expected {expected}");
            file = original;
        }
    }

    #[test]
    fn flipped_bit_is_an_error_or_has_no_effect() {
        let (bpe, json) = (bpe(), bpe().to_json().unwrap().into_bytes());
        let start = json.windows(7).position(|text| text == b"\"vocab\"").unwrap();
        for at in (start..json.len()).step_by(5) {
            let mut bytes = json.clone();
            bytes[at] ^= 1 << (at % 7);
            let Ok(text) = String::from_utf8(bytes) else { continue };
            if let Ok(read) = Bpe::from_json(&text) {
                let is_same = read.vocab == bpe.vocab && read.merges == bpe.merges;
                assert!(is_same, "byte {at}: {}", &text[at - 5..at + 5]);
            }
        }
    }

    #[test]
    fn dropout_changes_the_segmentation_but_not_the_text() {
        let bpe = bpe();
        let text = "a green apple, flat style";
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let plain = bpe.encode(text).unwrap();
        assert_eq!(bpe.encode_with_dropout(text, 0.0, &mut rng).unwrap(), plain);
        let single = bpe.encode_with_dropout(text, 1.0, &mut rng).unwrap();
        assert_eq!(single.len(), text.len() + 1); // one byte each, and the leading space
        let drawn: Vec<_> = (0..20).map(|_| bpe.encode_with_dropout(text, 0.1, &mut rng).unwrap()).collect();
        assert!(drawn.iter().any(|ids| *ids != plain));
        assert!(drawn.iter().all(|ids| bpe.decode(ids).unwrap() == text));
    }

    /// " a" is one merge of two bytes, so it is split exactly when that merge is skipped.
    #[test]
    fn merge_is_skipped_with_the_given_probability() {
        let bpe = bpe();
        assert_eq!(bpe.encode("a").unwrap().len(), 1);
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (dropout, expected) in [(0.1, 1_000), (0.5, 5_000)] {
            let mut split = || bpe.encode_with_dropout("a", dropout, &mut rng).unwrap().len() == 2;
            let splits = (0..10_000).filter(|_| split()).count();
            assert!(splits.abs_diff(expected) < 150, "{splits} of 10,000 split at {dropout}");
        }
    }

    #[test]
    fn long_captions_are_cut_and_dropped_parts_are_counted() {
        let bpe = bpe();
        let short = bpe.readable("A red\tapple", 16).unwrap();
        assert_eq!(short, Readable { text: "a red apple".into(), dropped_chars: 0, dropped_tokens: 0 });
        for caption in ["x".repeat(20_000), "苹".repeat(1_000), "a green apple ".repeat(100)] {
            let cut = bpe.readable(&caption, 16).unwrap();
            let all = bpe.encode(&Prompt::new(&caption).text).unwrap();
            assert_eq!(cut.dropped_tokens, all.len() - 16, "{}", &caption[..6]);
            assert_eq!(cut.dropped_chars, caption.chars().count().saturating_sub(2_000));
            assert!(Prompt::new(&caption).text.starts_with(&cut.text) && cut.text.len() <= 16 * 16);
            assert!(bpe.encode(&cut.text).unwrap().len() <= 16);
        }
    }

    #[test]
    fn same_generator_state_gives_the_same_dropout() {
        let bpe = bpe();
        let draw = || bpe.encode_with_dropout(CAPTIONS[0], 0.5, &mut ChaCha8Rng::seed_from_u64(3)).unwrap();
        assert_eq!(draw(), draw());
    }

    #[test]
    fn vocab_size_below_256_is_an_error() {
        assert!(Bpe::train(CAPTIONS.iter(), 10).unwrap_err().to_string().contains("256"));
    }
}
