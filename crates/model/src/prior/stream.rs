//! The stream's integers (paper §B.1): caption slots with one learned pad per position, then picture tokens.

use anyhow::{Result, ensure};

use super::PriorConfig;

/// The text slots of a caption: its tokens, then the pad of each unused position, `text_vocab + position`.
///
/// Returns the slots and how many tokens did not fit ([`PriorConfig::max_caption`] do). An empty caption is all pads: the unconditional stream.
pub fn caption_slots(tokens: &[u32], config: &PriorConfig) -> (Vec<u32>, usize) {
    let kept = tokens.len().min(config.max_caption());
    let pads = (kept..config.text_len).map(|position| (config.text_vocab + position) as u32);
    (tokens[..kept].iter().copied().chain(pads).collect(), tokens.len() - kept)
}

/// A batch of streams, as targets: what each position should predict.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Number of streams, `B`.
    pub batch: usize,
    /// `[B, text_len]` text slots, row by row.
    pub text: Vec<u32>,
    /// `[B, n]` picture tokens in raster order, `n` at most `grid²`.
    pub image: Vec<u32>,
    /// `[B, n]` picture tokens as the positions behind them read them: `image`, unless training disturbs them.
    pub seen: Vec<u32>,
}

impl Stream {
    /// Checks lengths and ids against `config`.
    ///
    /// # Errors
    /// If a slot or a token lies outside its vocabulary, or a length does not fit.
    pub fn new(batch: usize, text: Vec<u32>, image: Vec<u32>, config: &PriorConfig) -> Result<Stream> {
        let slots = config.text_vocab + config.text_len;
        ensure!(text.len() == batch * config.text_len, "{} text slots for {batch} streams", text.len());
        ensure!(
            image.len().is_multiple_of(batch) && image.len() <= batch * config.image_len(),
            "{} picture tokens for {batch} streams of at most {}",
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

    /// The same targets, predicted from other picture tokens.
    ///
    /// # Errors
    /// If there are more or fewer of them, or one lies outside the vocabulary.
    pub fn seeing(self, seen: Vec<u32>, config: &PriorConfig) -> Result<Stream> {
        let length = self.image.len();
        ensure!(seen.len() == length, "{} picture tokens to read, wanted {length}", seen.len());
        let Stream { seen, .. } = Stream::new(self.batch, self.text.clone(), seen, config)?;
        Ok(Stream { seen, ..self })
    }

    /// Picture tokens a stream.
    pub fn image_len(&self) -> usize {
        self.image.len() / self.batch
    }
}

/// Shifts each row of `targets` one to the right behind `start`: the inputs that predict them.
pub(super) fn shifted(targets: &[u32], row: usize, start: u32) -> Vec<u32> {
    let rows = targets.chunks(row.max(1));
    rows.flat_map(|row| std::iter::once(start).chain(row[..row.len() - 1].iter().copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_targets_shifted_behind_the_start_token() {
        assert_eq!(shifted(&[1, 2, 3, 4, 5, 6], 3, 9), [9, 1, 2, 9, 4, 5]);
        assert!(shifted(&[], 0, 9).is_empty());
    }
}
