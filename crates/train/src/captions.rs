//! Cuts captions to the length that a model reads, and reports once how much is lost.

use anyhow::Result;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use tessera_base::Reporter;
use tessera_text::{Bpe, MAX_PROMPT_CHARS, Prompt};

/// The parts of the captions of a data set that the model does not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// The number of captions that were cut.
    captions: usize,
    /// The number of tokens that were cut.
    tokens: usize,
    /// The number of characters that were cut before tokenization.
    chars: usize,
}

impl Lost {
    fn of_caption(chars: usize, tokens: usize) -> Lost {
        Lost { captions: usize::from(chars + tokens > 0), tokens, chars }
    }

    fn and(self, other: Lost) -> Lost {
        let Lost { captions, tokens, chars } = other;
        Lost { captions: self.captions + captions, tokens: self.tokens + tokens, chars: self.chars + chars }
    }

    /// Returns a message for the user, or `None` if nothing was cut. `most` is the maximum number
    /// of tokens of a caption, if there is one.
    fn message(&self, most: Option<usize>) -> Option<String> {
        let tokens = most.filter(|_| self.tokens > 0).map(|most| {
            format!("{} tokens after the first {most}, which are all that the model reads", self.tokens)
        });
        let chars =
            (self.chars > 0).then(|| format!("{} characters after the first {MAX_PROMPT_CHARS}", self.chars));
        let lost: Vec<String> = tokens.into_iter().chain(chars).collect();
        (self.captions > 0).then(|| format!("cut {} captions: {}", self.captions, lost.join(", ")))
    }
}

/// Cuts captions to the at most `most` tokens that the model reads, and reports what is lost.
pub(crate) fn cut_captions<'a>(
    captions: impl Iterator<Item = &'a mut String>,
    bpe: &Bpe,
    most: usize,
    reporter: &dyn Reporter,
) -> Result<()> {
    let cut = |caption: &mut String| -> Result<Lost> {
        let readable = bpe.readable(caption, most)?;
        *caption = readable.text;
        Ok(Lost::of_caption(readable.dropped_chars, readable.dropped_tokens))
    };
    let mut captions: Vec<&mut String> = captions.collect();
    let lost: Result<Vec<Lost>> = captions.par_iter_mut().map(|caption| cut(caption)).collect();
    let lost = lost?.into_iter().fold(Lost::default(), Lost::and);
    lost.message(Some(most)).iter().for_each(|message| reporter.note(message));
    Ok(())
}

/// Returns the at most `most` tokens of a caption that training reads, and the number of its other
/// tokens.
///
/// Captions of scenes are cut only here. Other captions were cut before training, and only BPE
/// dropout can make them longer.
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

/// Returns the name and the value of the metric for tokens that were not read.
pub(crate) fn unread_figure(unread: usize, captions: usize) -> (&'static str, f64) {
    ("unread_tokens_per_caption", unread as f64 / captions as f64)
}

/// Returns normalised captions of bounded length, from which a vocabulary is learned. Reports what
/// is lost.
pub(crate) fn bounded_captions<'a>(
    captions: impl Iterator<Item = &'a String>,
    reporter: &dyn Reporter,
) -> Vec<String> {
    let mut lost = Lost::default();
    let bounded = |caption: &String| {
        let Prompt { text, dropped_chars } = Prompt::new(caption);
        lost = lost.and(Lost::of_caption(dropped_chars, 0));
        text
    };
    let captions = captions.map(bounded).collect();
    lost.message(None).iter().for_each(|message| reporter.note(message));
    captions
}

#[cfg(test)]
mod tests {
    use tessera_base::{random::Purpose, random::item_rng};

    use super::*;
    use tessera_base::Silent;

    #[test]
    fn tokens_that_training_does_not_read_are_counted() {
        let bpe = Bpe::train(["a red apple"; 9].iter(), 300).unwrap();
        let read = |caption: &str, dropout| {
            training_tokens(caption, &bpe, 4, dropout, &mut item_rng(0, Purpose::BpeDropout, 0, 0)).unwrap()
        };
        let tokens = bpe.encode("a red apple").unwrap();
        assert_eq!(read("A red  apple", 0.0), (tokens.clone(), 0));
        assert_eq!(tokens.len(), 3);
        // This caption has three more tokens than the model has positions.
        let (tokens, unread) = read("a red apple a red apple red", 0.0);
        assert_eq!((tokens.len(), unread), (4, 3));
        // One token per byte: 12, including the space before the first word.
        let (tokens, unread) = read("a red apple", 1.0);
        assert_eq!((tokens.len(), unread), (4, 8));
        assert_eq!(unread_figure(8, 4), ("unread_tokens_per_caption", 2.0));
    }

    #[test]
    fn cut_captions_are_counted_and_reported_once() {
        let bpe = Bpe::train(["a red apple"; 9].iter(), 300).unwrap();
        let (long, longer) = ("a red apple ".repeat(20), "x".repeat(2_100));
        let mut captions = ["A red apple", "", &*longer, &*long].map(String::from);
        let before = captions.clone();
        cut_captions(captions.iter_mut(), &bpe, 16, &Silent).unwrap();
        assert_eq!([captions[0].as_str(), captions[1].as_str()], ["a red apple", ""]);
        assert!(captions.iter().all(|caption| bpe.encode(caption).unwrap().len() <= 16));
        assert_eq!(bounded_captions(before.iter(), &Silent)[2].len(), MAX_PROMPT_CHARS);
        let lost = Lost::of_caption(100, 7).and(Lost::of_caption(0, 0)).and(Lost::of_caption(0, 3));
        let message = lost.message(Some(16)).unwrap();
        assert!(message.starts_with("cut 2 captions: 10 tokens after the first 16"), "{message}");
        assert!(message.ends_with("100 characters after the first 2000"), "{message}");
        assert_eq!(Lost::default().message(Some(16)), None);
    }
}
