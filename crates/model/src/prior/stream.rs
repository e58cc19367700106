//! The token ids of the stream (paper §B.1): the text slots of a caption, with one learned pad per
//! position, then the picture tokens.

use anyhow::{Result, ensure};

use super::PriorConfig;

/// The text slots of a caption: its tokens, then the pad of each unused position, whose id is
/// `text_vocab + position`.
///
/// Returns the slots and the number of tokens that did not fit: at most
/// [`PriorConfig::max_caption`] do. An empty caption gives only pads, which makes the stream
/// unconditional.
pub fn caption_slots(tokens: &[u32], config: &PriorConfig) -> (Vec<u32>, usize) {
    let kept = tokens.len().min(config.max_caption());
    let pads = (kept..config.text_len).map(|position| (config.text_vocab + position) as u32);
    (tokens[..kept].iter().copied().chain(pads).collect(), tokens.len() - kept)
}

/// A batch of streams: the tokens that each position should predict, and those that the model
/// reads.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Number of streams, `B`.
    pub batch: usize,
    /// Text slots, `[B, text_len]`, row by row.
    pub text: Vec<u32>,
    /// Picture tokens to predict, `[B, n]`, in raster order; `n` is at most `grid²`.
    pub image: Vec<u32>,
    /// Picture tokens that the later positions read, `[B, n]`: those of `image`, unless training
    /// replaces some of them.
    pub seen: Vec<u32>,
}

impl Stream {
    /// A batch of streams in which the model reads the true tokens: `seen` equals `image`.
    ///
    /// # Errors
    /// If a slot or a token is outside its vocabulary, or a length does not fit `config`.
    pub fn new(batch: usize, text: Vec<u32>, image: Vec<u32>, config: &PriorConfig) -> Result<Stream> {
        let slots = config.text_vocab + config.text_len;
        ensure!(
            text.len() == batch * config.text_len,
            "{} text slots for {batch} streams: wanted {} per stream",
            text.len(),
            config.text_len
        );
        ensure!(
            image.len().is_multiple_of(batch) && image.len() <= batch * config.image_len(),
            "{} picture tokens for {batch} streams: wanted equally many per stream, at most {}",
            image.len(),
            config.image_len()
        );
        if let Some(id) = text.iter().find(|&&id| id as usize >= slots) {
            anyhow::bail!("text id {id}: wanted less than {slots}");
        }
        if let Some(id) = image.iter().find(|&&id| id as usize >= config.image_vocab) {
            anyhow::bail!("picture token {id}: wanted less than {}", config.image_vocab);
        }
        Ok(Stream { batch, text, seen: image.clone(), image })
    }

    /// The same targets, predicted from the picture tokens `seen`.
    ///
    /// # Errors
    /// If `seen` has another length than the targets, or a token is outside the vocabulary.
    pub fn seeing(self, seen: Vec<u32>, config: &PriorConfig) -> Result<Stream> {
        let length = self.image.len();
        ensure!(seen.len() == length, "{} picture tokens to read, wanted {length}", seen.len());
        let Stream { seen, .. } = Stream::new(self.batch, self.text.clone(), seen, config)?;
        Ok(Stream { seen, ..self })
    }

    /// The number of picture tokens per stream.
    pub fn image_len(&self) -> usize {
        self.image.len() / self.batch
    }
}

/// The inputs that predict `targets`: each row is shifted to the right by one and begins with
/// `start`.
pub(super) fn shifted(targets: &[u32], row: usize, start: u32) -> Vec<u32> {
    let rows = targets.chunks(row.max(1));
    rows.flat_map(|row| std::iter::once(start).chain(row[..row.len() - 1].iter().copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifted_targets_begin_with_the_start_token() {
        assert_eq!(shifted(&[1, 2, 3, 4, 5, 6], 3, 9), [9, 1, 2, 9, 4, 5]);
        assert!(shifted(&[], 0, 9).is_empty());
    }
}
