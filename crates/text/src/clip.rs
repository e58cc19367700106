//! CLIP's captions (Radford et al. 2021): how they are cleaned, and the published vocabulary as a tokenizer of ours.

mod clean;
mod entities;

use std::io::Read;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::decode_text;

pub use clean::clean_for_clip;

/// Merges of the published vocabulary that are used; ids are 256 bytes, 256 bytes that end words, these, and two marks.
const MERGES: usize = 49_152 - 256 - 2;
/// The two marks, last among the ids.
const MARKS: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];
/// What a vocabulary unpacks to at most.
const MAX_BYTES: u64 = 64 << 20;
/// How words are told apart: contractions, runs of letters, single digits, runs of other signs.
/// U+0345, a Greek accent, is in none: where case is ignored, as it is there, Python's `regex` finds it neither among letters nor the rest.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+";

/// Where a vocabulary can be had.
const WHERE: &str = "wanted bpe_simple_vocab_16e6.txt.gz of https://github.com/openai/CLIP, or a tokenizer.json of Hugging Face";

/// CLIP's vocabulary as the JSON that [`Bpe::from_json`](crate::Bpe::from_json) reads. `vocabulary` is OpenAI's list of merges, packed or not,
/// or Hugging Face's `tokenizer.json`.
///
/// # Errors
/// If it is neither, or damaged.
pub fn clip_tokenizer(vocabulary: &[u8]) -> Result<String> {
    let unpacked = match vocabulary.starts_with(&[0x1f, 0x8b]) {
        true => unpack(vocabulary)?,
        false => vocabulary.to_vec(),
    };
    let text = decode_text(&unpacked).map_err(|error| anyhow!("no vocabulary of CLIP: {error}; {WHERE}"))?;
    let unknown = |error: &dyn std::fmt::Display| anyhow!("no vocabulary of CLIP: {error}; {WHERE}");
    let mut json = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).map_err(|error| unknown(&error))?,
        false => of_merges(&text)?,
    };
    // Marks are set by the model alone: a caption that spells one has no power over it.
    json["added_tokens"] = json!([]);
    // Read and written again, since older files have other forms of the same.
    let tokenizer: Tokenizer = json.to_string().parse().map_err(|error| unknown(&error))?;
    let words = tokenizer.get_vocab_size(true);
    let marks = MARKS.map(|mark| tokenizer.token_to_id(mark));
    let [begin, end] = [2, 1].map(|back| words.checked_sub(back).and_then(|id| u32::try_from(id).ok()));
    ensure!(marks == [begin, end], "no vocabulary of CLIP: its marks are {marks:?} of {words} ids; {WHERE}");
    tokenizer.to_string(false).map_err(|error| anyhow!("{error}"))
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let read = flate2::read::GzDecoder::new(bytes).take(MAX_BYTES + 1).read_to_end(&mut unpacked);
    read.context("the vocabulary is a damaged gzip file")?;
    ensure!(unpacked.len() as u64 <= MAX_BYTES, "the vocabulary unpacks to more than {MAX_BYTES} bytes");
    Ok(unpacked)
}

/// The tokenizer of a list of merges: the first line is a title, and there are more than are used.
fn of_merges(text: &str) -> Result<Value> {
    let lines: Vec<&str> = text.lines().skip(1).take(MERGES).collect();
    ensure!(lines.len() == MERGES, "{} merges; {WHERE}", lines.len());
    let merge = |(number, line): (usize, &&str)| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [a, b] => Ok([a.to_string(), b.to_string()]),
        _ => bail!("line {} of the vocabulary is {line:?}; wanted two parts of a word", number + 2),
    };
    let merges = lines.iter().enumerate().map(merge).collect::<Result<Vec<_>>>()?;
    let bytes: Vec<String> = byte_signs().collect();
    let ends = bytes.iter().map(|sign| format!("{sign}</w>"));
    let words = bytes.iter().cloned().chain(ends).chain(merges.iter().map(|[a, b]| format!("{a}{b}")));
    let vocab: Map<String, Value> = words
        .chain(MARKS.map(String::from))
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

/// The signs that stand for bytes, in CLIP's order: those that can be printed as they are, then the others from U+0100 on.
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

    /// `fixtures/clip/tokens.py` has them from open_clip.
    #[test]
    fn captions_have_the_ids_that_they_have_in_open_clip() {
        let bpe = Bpe::from_json(&clip_tokenizer(&fixture("vocabulary.txt.gz")).unwrap()).unwrap();
        assert_eq!(bpe.vocab_size(), 49_408);
        let golden: Vec<Golden> = serde_json::from_slice(&fixture("tokens.json")).unwrap();
        assert!(golden.len() >= 300);
        for Golden { caption, cleaned, ids } in golden {
            assert_eq!(clean_for_clip(&caption), cleaned, "{caption:?}");
            let found = bpe.encode(&cleaned).unwrap();
            // open_clip takes its marks' names in a caption for the marks; here they are text.
            match ids.iter().any(|id| *id >= 49_406) {
                true => assert!(found.iter().all(|id| *id < 49_406), "{caption:?}"),
                false => assert_eq!(found, ids, "{caption:?}"),
            }
        }
    }

    #[test]
    fn a_vocabulary_in_the_form_of_hugging_face_is_the_same() {
        let ours = clip_tokenizer(&fixture("vocabulary.txt.gz")).unwrap();
        // The older form: a merge is one string.
        let mut json: Value = serde_json::from_str(&ours).unwrap();
        for merge in json["model"]["merges"].as_array_mut().unwrap() {
            *merge = format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()).into();
        }
        assert_eq!(clip_tokenizer(json.to_string().as_bytes()).unwrap(), ours);
    }

    #[test]
    fn what_is_no_vocabulary_says_where_one_can_be_had() {
        for (bytes, wanted) in [
            (&b"\x1f\x8b\x08\x00"[..], "damaged gzip"),
            (b"\xff\xfd", "not UTF-8"),
            (b"title\na b\nc d\n", "2 merges"),
            (b"{\"model\": 1}", "no vocabulary of CLIP"),
        ] {
            let error = format!("{:#}", clip_tokenizer(bytes).unwrap_err());
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn html_is_unpacked_twice_and_what_is_none_stays() {
        for (caption, wanted) in [
            ("Fish &amp; Chips", "fish & chips"),
            ("a &amp;lt;b&amp;gt;", "a <b>"),
            ("&#39;x&#x27; &nbsp; & &unknown; &", "'x' & &unknown; &"),
            ("  A\t“red”\u{7}  ﬁg ＡＢ ", "a \"red\" fig ab"),
        ] {
            assert_eq!(clean_for_clip(caption), wanted);
        }
    }
}
