//! CLIP's tokenizer (Radford et al. 2021): converts the published vocabulary to our tokenizer
//! format and cleans captions as CLIP does.

mod clean;
mod entities;

use std::io::Read;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::decode_text;

pub use clean::clean_for_clip;

/// The number of merges of the published vocabulary that are used. The ids are 256 bytes, 256 bytes
/// at the end of a word, these merges, and the start and end tokens.
const MERGES: usize = 49_152 - 256 - 2;
/// The start and end tokens, which have the last two ids.
const SPECIAL_TOKENS: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];
/// The maximum size of an unpacked vocabulary.
const MAX_BYTES: u64 = 64 << 20;
/// The pattern of a word: contractions, runs of letters, single digits, runs of other signs.
///
/// The Greek accent U+0345 is excluded, because CLIP's pattern ignores case, and then Python's
/// `regex` matches it neither as a letter nor as another sign.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+";

/// The end of the error messages: which files are accepted.
const WHERE: &str = "wanted bpe_simple_vocab_16e6.txt.gz of https://github.com/openai/CLIP, or a tokenizer.json of Hugging Face";

/// Converts CLIP's vocabulary to the JSON that [`Bpe::from_json`](crate::Bpe::from_json) reads.
/// `vocabulary` is OpenAI's list of merges, gzip-compressed or not, or Hugging Face's
/// `tokenizer.json`.
///
/// # Errors
/// If it is neither of these or is damaged.
pub fn clip_tokenizer(vocabulary: &[u8]) -> Result<String> {
    let unpacked = match vocabulary.starts_with(&[0x1f, 0x8b]) {
        true => unpack(vocabulary)?,
        false => vocabulary.to_vec(),
    };
    let text = decode_text(&unpacked).map_err(|error| anyhow!("not a CLIP vocabulary: {error}; {WHERE}"))?;
    let unknown = |error: &dyn std::fmt::Display| anyhow!("not a CLIP vocabulary: {error}; {WHERE}");
    let mut json = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).map_err(|error| unknown(&error))?,
        false => from_merges(&text)?,
    };
    // Only the model inserts the start and end tokens. A caption that spells one is ordinary text.
    json["added_tokens"] = json!([]);
    // Parsing and serializing again converts older file formats to the current one.
    let tokenizer: Tokenizer = json.to_string().parse().map_err(|error| unknown(&error))?;
    let words = tokenizer.get_vocab_size(true);
    let special = SPECIAL_TOKENS.map(|token| tokenizer.token_to_id(token));
    let [begin, end] = [2, 1].map(|back| words.checked_sub(back).and_then(|id| u32::try_from(id).ok()));
    ensure!(
        special == [begin, end],
        "not a CLIP vocabulary: {SPECIAL_TOKENS:?} have the ids {special:?} of {words}; {WHERE}"
    );
    tokenizer.to_string(false).map_err(|error| anyhow!("{error}"))
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let read = flate2::read::GzDecoder::new(bytes).take(MAX_BYTES + 1).read_to_end(&mut unpacked);
    read.context("the vocabulary is a damaged gzip file")?;
    ensure!(unpacked.len() as u64 <= MAX_BYTES, "the vocabulary unpacks to more than {MAX_BYTES} bytes");
    Ok(unpacked)
}

/// Builds the tokenizer from a list of merges. The first line is a title, and the list is longer
/// than the part that is used.
fn from_merges(text: &str) -> Result<Value> {
    let lines: Vec<&str> = text.lines().skip(1).take(MERGES).collect();
    ensure!(lines.len() == MERGES, "the vocabulary has {} merges, not {MERGES}; {WHERE}", lines.len());
    let merge = |(number, line): (usize, &&str)| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [a, b] => Ok([a.to_string(), b.to_string()]),
        _ => bail!("line {} of the vocabulary is {line:?}; wanted two parts of a word", number + 2),
    };
    let merges = lines.iter().enumerate().map(merge).collect::<Result<Vec<_>>>()?;
    let bytes: Vec<String> = byte_signs().collect();
    let ends = bytes.iter().map(|sign| format!("{sign}</w>"));
    let words = bytes.iter().cloned().chain(ends).chain(merges.iter().map(|[a, b]| format!("{a}{b}")));
    let vocab: Map<String, Value> = words
        .chain(SPECIAL_TOKENS.map(String::from))
        .zip(0..)
        .map(|(word, id): (String, usize)| (word, id.into()))
        .collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
        ]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges
        }
    }))
}

/// Returns the characters that represent bytes, in CLIP's order: printable bytes represent
/// themselves and come first; the others are mapped to U+0100 and up.
fn byte_signs() -> impl Iterator<Item = String> {
    let printed = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..256_u32).filter(move |byte| !printed(byte)).zip(256..).map(|(_, sign)| sign);
    (0..256_u32).filter(printed).chain(others).filter_map(char::from_u32).map(String::from)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Bpe;

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/clip").join(name)).unwrap()
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        caption: String,
        cleaned: String,
        ids: Vec<u32>,
    }

    /// The expected ids come from open_clip; `fixtures/clip/tokens.py` wrote them.
    #[test]
    fn clip_captions_have_the_token_ids_of_open_clip() {
        let bpe = Bpe::from_json(&clip_tokenizer(&fixture("vocabulary.txt.gz")).unwrap()).unwrap();
        assert_eq!(bpe.vocab_size(), 49_408);
        let golden: Vec<Golden> = serde_json::from_slice(&fixture("tokens.json")).unwrap();
        assert!(golden.len() >= 300);
        for Golden { caption, cleaned, ids } in golden {
            assert_eq!(clean_for_clip(&caption), cleaned, "{caption:?}");
            let found = bpe.encode(&cleaned).unwrap();
            // open_clip turns "<|endoftext|>" in a caption into the special token; here it is text.
            match ids.iter().any(|id| *id >= 49_406) {
                true => assert!(found.iter().all(|id| *id < 49_406), "{caption:?}"),
                false => assert_eq!(found, ids, "{caption:?}"),
            }
        }
    }

    #[test]
    fn hugging_face_vocabulary_gives_the_same_tokenizer() {
        let ours = clip_tokenizer(&fixture("vocabulary.txt.gz")).unwrap();
        // In the older format, a merge is one string.
        let mut json: Value = serde_json::from_str(&ours).unwrap();
        for merge in json["model"]["merges"].as_array_mut().unwrap() {
            *merge = format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()).into();
        }
        assert_eq!(clip_tokenizer(json.to_string().as_bytes()).unwrap(), ours);
    }

    #[test]
    fn invalid_vocabulary_is_an_error_with_advice() {
        for (bytes, expected) in [
            (&b"\x1f\x8b\x08\x00"[..], "damaged gzip"),
            (b"\xff\xfd", "not UTF-8"),
            (b"title\na b\nc d\n", "2 merges"),
            (b"{\"model\": 1}", "not a CLIP vocabulary"),
        ] {
            let error = format!("{:#}", clip_tokenizer(bytes).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn html_entities_are_resolved_twice_and_other_text_stays() {
        for (caption, expected) in [
            ("Fish &amp; Chips", "fish & chips"),
            ("a &amp;lt;b&amp;gt;", "a <b>"),
            ("&#39;x&#x27; &nbsp; & &unknown; &", "'x' & &unknown; &"),
            ("  A\t“red”\u{7}  ﬁg ＡＢ ", "a \"red\" fig ab"),
        ] {
            assert_eq!(clean_for_clip(caption), expected);
        }
    }
}
