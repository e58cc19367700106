//! Captions as a model can read them: cut once, before training, and what is lost is said once.

use anyhow::Result;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use tessera_base::Reporter;
use tessera_text::{Bpe, MAX_PROMPT_CHARS, Prompt};

/// What of the captions of a set no model reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Captions that were cut.
    captions: usize,
    tokens: usize,
    chars: usize,
}

impl Lost {
    fn of(chars: usize, tokens: usize) -> Lost {
        Lost { captions: usize::from(chars + tokens > 0), tokens, chars }
    }

    fn and(self, other: Lost) -> Lost {
        let Lost { captions, tokens, chars } = other;
        Lost { captions: self.captions + captions, tokens: self.tokens + tokens, chars: self.chars + chars }
    }

    /// The loss in words, if there is any: of captions that should have at most `most` tokens.
    fn told(&self, most: Option<usize>) -> Option<String> {
        let tokens = most.filter(|_| self.tokens > 0).map(|most| {
            format!("{} tokens behind the first {most}, which are all that the model reads", self.tokens)
        });
        let chars = (self.chars > 0)
            .then(|| format!("{} characters behind the first {MAX_PROMPT_CHARS}", self.chars));
        let lost: Vec<String> = tokens.into_iter().chain(chars).collect();
        (self.captions > 0).then(|| format!("cut {} captions: {}", self.captions, lost.join(", ")))
    }
}

/// Cuts captions to what a model of `most` positions reads of them, and says what is lost.
pub(crate) fn cut_captions<'a>(
    captions: impl Iterator<Item = &'a mut String>,
    bpe: &Bpe,
    most: usize,
    reporter: &dyn Reporter,
) -> Result<()> {
    let cut = |caption: &mut String| -> Result<Lost> {
        let readable = bpe.readable(caption, most)?;
        *caption = readable.text;
        Ok(Lost::of(readable.dropped_chars, readable.dropped_tokens))
    };
    let mut captions: Vec<&mut String> = captions.collect();
    let lost: Result<Vec<Lost>> = captions.par_iter_mut().map(|caption| cut(caption)).collect();
    let lost = lost?.into_iter().fold(Lost::default(), Lost::and);
    lost.told(Some(most)).iter().for_each(|told| reporter.note(told));
    Ok(())
}

/// The at most `most` tokens of a caption that training reads, and how many it has beyond them. Captions of scenes are cut only
/// here; others were before training, and only BPE-dropout can make them longer.
pub(crate) fn training_tokens(
    caption: &str,
    bpe: &Bpe,
    most: usize,
    dropout: f32,
    rng: &mut impl Rng,
) -> Result<(Vec<u32>, usize)> {
    let readable = bpe.readable(caption, most)?;
    let mut tokens = bpe.encode_with_dropout(&readable.text, dropout, rng)?;
    let beyond = tokens.len().saturating_sub(most);
    tokens.truncate(most);
    Ok((tokens, readable.dropped_tokens + beyond))
}

/// Name and value of the figure that says how many tokens of each caption were not read.
pub(crate) fn unread_figure(unread: usize, captions: usize) -> (&'static str, f64) {
    ("unread_tokens_per_caption", unread as f64 / captions as f64)
}

/// Captions as a vocabulary is learnt from them: normalised and bounded; what is lost is said.
pub(crate) fn bounded_captions<'a>(
    captions: impl Iterator<Item = &'a String>,
    reporter: &dyn Reporter,
) -> Vec<String> {
    let mut lost = Lost::default();
    let bounded = |caption: &String| {
        let Prompt { text, dropped_chars } = Prompt::new(caption);
        lost = lost.and(Lost::of(dropped_chars, 0));
        text
    };
    let captions = captions.map(bounded).collect();
    lost.told(None).iter().for_each(|told| reporter.note(told));
    captions
}

#[cfg(test)]
mod tests {
    use tessera_base::{random::Purpose, random::item_rng};

    use super::*;
    use tessera_base::Silent;

    /// Scenes' captions were neither cut nor counted, nor was what BPE-dropout pushes beyond the model's positions.
    #[test]
    fn tokens_that_training_does_not_read_are_counted() {
        let bpe = Bpe::train(["a red apple"; 9].iter(), 300).unwrap();
        let read = |caption: &str, dropout| {
            training_tokens(caption, &bpe, 4, dropout, &mut item_rng(0, Purpose::BpeDropout, 0, 0)).unwrap()
        };
        let whole = bpe.encode("a red apple").unwrap();
        assert_eq!(read("A red  apple", 0.0), (whole.clone(), 0));
        assert_eq!(whole.len(), 3);
        // Three more tokens than positions.
        let (tokens, unread) = read("a red apple a red apple red", 0.0);
        assert_eq!((tokens.len(), unread), (4, 3));
        // A token a byte: 12, with the space before the first word.
        let (tokens, unread) = read("a red apple", 1.0);
        assert_eq!((tokens.len(), unread), (4, 8));
        assert_eq!(unread_figure(8, 4), ("unread_tokens_per_caption", 2.0));
    }

    #[test]
    fn what_is_cut_is_said_once() {
        let bpe = Bpe::train(["a red apple"; 9].iter(), 300).unwrap();
        let (long, longer) = ("a red apple ".repeat(20), "x".repeat(2_100));
        let mut captions = ["A red apple", "", &*longer, &*long].map(String::from);
        let before = captions.clone();
        cut_captions(captions.iter_mut(), &bpe, 16, &Silent).unwrap();
        assert_eq!([captions[0].as_str(), captions[1].as_str()], ["a red apple", ""]);
        assert!(captions.iter().all(|caption| bpe.encode(caption).unwrap().len() <= 16));
        assert_eq!(bounded_captions(before.iter(), &Silent)[2].len(), MAX_PROMPT_CHARS);
        let lost = Lost::of(100, 7).and(Lost::of(0, 0)).and(Lost::of(0, 3));
        let told = lost.told(Some(16)).unwrap();
        assert!(told.starts_with("cut 2 captions: 10 tokens behind the first 16"), "{told}");
        assert!(told.ends_with("100 characters behind the first 2000"), "{told}");
        assert_eq!(Lost::default().told(Some(16)), None);
    }
}
