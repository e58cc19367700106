//! Selects the held-out combinations: a concept in a style, or a person in a skin tone.
//!
//! Holding out random pictures would say little about generalisation, because similar pictures are
//! in the training set. Holding out *combinations* tests what the paper asks (§3.3): can the model
//! draw a known concept in a style in which it has not seen it?

use crate::share::Share;
use tessera_base::fnv1a;
use tessera_base::random::{Purpose, item_rng};

use super::style::Style;

/// A concept with at least this many styles keeps at least [`KEPT_STYLES`] of them for training.
const MANY_STYLES: usize = 4;
/// The minimum number of training styles of a concept with many styles.
const KEPT_STYLES: usize = 3;

/// The random choice of held-out combinations. It depends only on the seed and the names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holdout {
    /// The probability that a combination is held out.
    pub(super) share: Share,
    /// The seed of the choice.
    pub(super) seed: u64,
}

impl Holdout {
    /// Returns the styles in which `concept` is held out.
    ///
    /// A concept with fewer than three styles is never held out; with three styles, at most one is
    /// held out.
    pub(super) fn styles(self, concept: &str, present: &[Style]) -> Vec<Style> {
        let most = match present.len() {
            0..=2 => 0,
            n if n < MANY_STYLES => 1,
            n => n - KEPT_STYLES,
        };
        let is_held = |style: &&Style| self.draws(&format!("{concept}/{}", style.name()));
        present.iter().filter(is_held).take(most).copied().collect()
    }

    /// Returns the skin tone in which `concept` is held out in all styles, if any. At most one tone
    /// is held out, and only if there are at least three.
    pub(super) fn tone(self, concept: &str, tones: &[u8]) -> Option<u8> {
        let is_held = |tone: &&u8| self.draws(&format!("{concept}/tone {tone}"));
        if tones.len() < 3 { None } else { tones.iter().find(is_held).copied() }
    }

    fn draws(self, combination: &str) -> bool {
        let mut rng = item_rng(self.seed, Purpose::Split, 0, fnv1a(combination.as_bytes()));
        self.share.draws(&mut rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDOUT: Holdout = Holdout { share: Share::percent(8), seed: 0 };

    #[test]
    fn every_concept_keeps_enough_styles() {
        for percent in [8, 50, 100] {
            let holdout = Holdout { share: Share::percent(percent), seed: 3 };
            for n_styles in 0..=6 {
                for concept in 0..50 {
                    let present = &Style::ALL[..n_styles];
                    let held = holdout.styles(&concept.to_string(), present);
                    assert!(held.iter().all(|style| present.contains(style)));
                    assert!(n_styles - held.len() >= n_styles.min(if n_styles == 3 { 2 } else { 3 }));
                }
            }
        }
    }

    #[test]
    fn about_the_given_share_is_held_out() {
        let held: usize = (0..1000).map(|n| HOLDOUT.styles(&n.to_string(), &Style::ALL).len()).sum();
        assert!((400..560).contains(&held), "{held} of 6000");
        assert!(Holdout { share: Share::percent(0), seed: 0 }.styles("red apple", &Style::ALL).is_empty());
    }

    #[test]
    fn choice_depends_only_on_seed_and_name() {
        let all = |holdout: Holdout| {
            (0..99).map(|n| holdout.styles(&n.to_string(), &Style::ALL)).collect::<Vec<_>>()
        };
        assert_eq!(all(HOLDOUT), all(HOLDOUT));
        assert_ne!(all(HOLDOUT), all(Holdout { seed: 1, ..HOLDOUT }));
    }

    #[test]
    fn at_most_one_tone_is_held_out() {
        let tones = [1, 2, 3, 4, 5];
        let held = (0..300).filter(|n| HOLDOUT.tone(&n.to_string(), &tones).is_some()).count();
        assert!((60..140).contains(&held), "{held} of 300");
        assert_eq!(Holdout { share: Share::percent(100), seed: 0 }.tone("woman", &tones[..2]), None);
    }
}
