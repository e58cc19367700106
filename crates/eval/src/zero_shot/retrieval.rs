//! Retrieval: whether the right picture is the nearest of 50 to a drawing, by the cosine of the
//! judge's embeddings.

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::vectors::{dot, unit};

/// Cosines that differ by less than this are a tie, which counts against the drawing.
const TIE: f64 = 1e-9;

/// The rank of the right picture among the pictures that the query was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Found {
    /// The number of wrong pictures that are at least as near. 0 if the right one is the nearest.
    pub rank: usize,
    /// The cosine with the right picture minus the cosine with the nearest wrong one.
    pub margin: f64,
    /// The index of the nearest wrong picture.
    pub nearest_wrong: usize,
}

/// Compares the embedding `query` with that of the `right` picture and those of the `wrong` ones.
/// All have the same number of dimensions.
///
/// # Errors
/// If there is no wrong picture, or an embedding is 0, not finite or of another size.
pub(super) fn find(query: &[f32], right: &[f32], wrong: &[Vec<f32>]) -> Result<Found> {
    ensure!(!wrong.is_empty(), "no wrong pictures; wanted at least 1");
    let query = unit(query, query.len())?;
    let cosine_similarity = |other: &[f32]| -> Result<f64> { Ok(dot(&query, &unit(other, query.len())?)) };
    let own = cosine_similarity(right)?;
    let others = wrong.iter().map(|other| cosine_similarity(other)).collect::<Result<Vec<f64>>>()?;
    let rank = others.iter().filter(|&&other| other > own - TIE).count();
    let mut nearest_wrong = 0;
    for (n, other) in others.iter().enumerate() {
        if *other > others[nearest_wrong] {
            nearest_wrong = n;
        }
    }
    Ok(Found { rank, margin: own - others[nearest_wrong], nearest_wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_and_margin_depend_only_on_directions() {
        let wrong = [vec![0.0, 1.0], vec![0.8, 0.6]];
        let found = find(&[3.0, 0.0], &[5.0, 0.0], &wrong).unwrap();
        assert_eq!((found.rank, found.nearest_wrong), (0, 1));
        assert!((found.margin - 0.2).abs() < 1e-6, "{found:?}");
        let lost = find(&[0.0, 1.0], &[5.0, 0.0], &wrong).unwrap();
        assert_eq!((lost.rank, lost.nearest_wrong), (2, 0));
        assert!((lost.margin + 1.0).abs() < 1e-6, "{lost:?}");
    }

    #[test]
    fn tie_counts_against_the_drawing() {
        let found = find(&[1.0, 0.0], &[1.0, 0.0], &[vec![2.0, 0.0], vec![0.0, 1.0]]).unwrap();
        assert_eq!((found.rank, found.margin), (1, 0.0));
    }

    #[test]
    fn invalid_embeddings_are_refused() {
        let error =
            |right: &[f32], wrong: &[Vec<f32>]| find(&[1.0, 0.0], right, wrong).unwrap_err().to_string();
        assert!(error(&[1.0, 0.0], &[]).contains("no wrong pictures"));
        assert!(error(&[0.0, 0.0], &[vec![1.0, 0.0]]).contains("a length of 0"));
        assert!(error(&[1.0, 0.0, 0.0], &[vec![1.0, 0.0]]).contains("whole number of vectors"));
    }
}
