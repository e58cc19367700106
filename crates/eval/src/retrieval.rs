//! Retrieval between pictures and captions by the cosine of their embeddings: recall in both
//! directions, and R-precision (Xu et al. 2018). These metrics show whether a contrastive model can
//! rank drawings (paper §2.6).
//!
//! A tie counts as a failure, so equal embeddings retrieve nothing. Pairs with the same caption
//! form a group, and retrieving any member of the own group counts as a success.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use crate::vectors::{Block, dot, for_blocks, unit};
use crate::{Report, Vectors};

/// The number of captions among which a picture's own caption must be the nearest, in R-precision.
const R: usize = 100;
/// The values of `k` for which recall is reported.
const KS: [usize; 3] = [1, 5, 10];
/// Cosines that differ by less than this are a tie: the order of summation differs at the edges of
/// blocks.
const TIE: f64 = 1e-9;

/// The fractions of pairs that are retrieved, one for each `k`.
#[derive(Debug, Clone, PartialEq)]
pub struct Recall {
    /// The fraction of pictures whose caption is among the `k` nearest captions.
    pub text_of_image: Vec<f64>,
    /// The fraction of captions whose picture is among the `k` nearest pictures.
    pub image_of_text: Vec<f64>,
}

/// Returns the recall at each of `ks` in both directions. Pair `i` consists of row `i` of `images`
/// and of `texts`, both `[n, dims]`. The embeddings may have any length above 0.
///
/// # Errors
/// If the sets differ in size or are empty, or an embedding has length 0 or is not finite.
pub fn recall_at(images: &[f32], texts: &[f32], dims: usize, ks: &[usize]) -> Result<Recall> {
    let groups: Vec<usize> = (0..texts.len() / dims.max(1)).collect();
    grouped_recall(images, texts, dims, &groups, ks)
}

/// Returns the recall at 1, 5 and 10 in both directions, in percent. Pairs with the same caption
/// have the same value in `groups`, so that they do not have to be distinguished. `None` means that
/// all captions differ.
///
/// # Errors
/// As for [`recall_at`], and if the embeddings come from two models or the number of groups is not
/// that of the pairs.
pub fn retrieval(images: &Vectors, texts: &Vectors, groups: Option<&[usize]>) -> Result<Vec<Report>> {
    images.comparable(texts, 1)?;
    let all: Vec<usize> = (0..images.len()).collect();
    let groups = groups.unwrap_or(&all);
    let recall = grouped_recall(images.values(), texts.values(), images.dims(), groups, &KS)?;
    let reports = |name: &str, shares: &[f64]| -> Vec<Report> {
        let report = |(k, &share): (&usize, &f64)| proportion(&format!("{name} R@{k}"), share, images);
        KS.iter().zip(shares).map(report).collect()
    };
    let mut figures = reports("caption of picture", &recall.text_of_image);
    figures.extend(reports("picture of caption", &recall.image_of_text));
    Ok(figures)
}

/// Returns the R-precision: the percentage of pictures whose own caption is the nearest of 100. The
/// captions are those of 100 consecutive pairs; the last pictures are compared with the last 100
/// captions. `groups` is as for [`retrieval`].
///
/// # Errors
/// As for [`retrieval`], and if there are fewer than 100 pairs.
pub fn r_precision(images: &Vectors, texts: &Vectors, groups: Option<&[usize]>) -> Result<Report> {
    images.comparable(texts, R)?;
    let (n, dims) = (images.len(), images.dims());
    let all: Vec<usize> = (0..n).collect();
    let groups = groups.unwrap_or(&all);
    let (pictures, captions) = pairs(images.values(), texts.values(), dims, groups)?;
    let mut first = 0;
    for start in (0..n).step_by(R) {
        // The last block also contains earlier pairs, to have 100. They are not counted again.
        let from = start.min(n - R);
        let block = |vectors: &[f32]| vectors[from * dims..][..R * dims].to_vec();
        let ranks = ranks(&block(&pictures), &block(&captions), dims, &groups[from..][..R]);
        first += ranks[start - from..].iter().filter(|&&rank| rank == 0).count();
    }
    Ok(proportion("R-precision", first as f64 / n as f64, images))
}

/// A fraction of `vectors` in percent, with its standard error.
fn proportion(name: &str, share: f64, vectors: &Vectors) -> Report {
    let n = vectors.len();
    let error = (share * (1.0 - share) / n as f64).sqrt();
    Report {
        unit: "%".into(),
        plus_minus: Some(100.0 * error),
        features: vectors.features().into(),
        ..Report::new(name, 100.0 * share, n)
    }
}

fn grouped_recall(
    images: &[f32],
    texts: &[f32],
    dims: usize,
    groups: &[usize],
    ks: &[usize],
) -> Result<Recall> {
    let (images, texts) = pairs(images, texts, dims, groups)?;
    let shares = |ranks: &[usize]| -> Vec<f64> {
        let within = |&k: &usize| ranks.iter().filter(|&&rank| rank < k).count();
        ks.iter().map(|k| within(k) as f64 / ranks.len() as f64).collect()
    };
    let text_of_image = shares(&ranks(&images, &texts, dims, groups));
    let image_of_text = shares(&ranks(&texts, &images, dims, groups));
    Ok(Recall { text_of_image, image_of_text })
}

/// Checks the pairs and returns both sides scaled to length 1.
fn pairs(images: &[f32], texts: &[f32], dims: usize, groups: &[usize]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (images, texts) = (unit(images, dims)?, unit(texts, dims)?);
    let (n, m) = (images.len() / dims, texts.len() / dims);
    ensure!(n == m, "{n} pictures and {m} captions; wanted one caption per picture");
    ensure!(n > 0, "no pairs of picture and caption; wanted at least 1");
    ensure!(groups.len() == n, "{} groups for {n} pairs; wanted one per pair", groups.len());
    Ok((images, texts))
}

/// For each query, returns the number of keys of other groups that are at least as near as the
/// nearest key of its own group.
fn ranks(queries: &[f32], keys: &[f32], dims: usize, groups: &[usize]) -> Vec<usize> {
    let own = nearest_of_own_group(queries, keys, dims, groups);
    let mut ranks = vec![0; own.len()];
    for_blocks(queries, keys, dims, |block: Block<'_, f64>| {
        let rows = block.products.par_chunks(block.width);
        rows.zip(&mut ranks[block.row..]).enumerate().for_each(|(i, (row, rank))| {
            let i = block.row + i;
            let is_nearer = |&(j, &cosine_similarity): &(usize, &f64)| {
                cosine_similarity > own[i] - TIE && groups[block.column + j] != groups[i]
            };
            *rank += row.iter().enumerate().filter(is_nearer).count();
        });
    });
    ranks
}

/// The cosine of each query with the nearest key of its group.
fn nearest_of_own_group(queries: &[f32], keys: &[f32], dims: usize, groups: &[usize]) -> Vec<f64> {
    let mut sorted: Vec<usize> = (0..groups.len()).collect();
    sorted.sort_by_key(|&i| groups[i]);
    let mut own = vec![f64::NEG_INFINITY; groups.len()];
    for members in sorted.chunk_by(|&i, &j| groups[i] == groups[j]) {
        for &i in members {
            let cosine_similarity = |&j: &usize| dot(&queries[i * dims..][..dims], &keys[j * dims..][..dims]);
            own[i] = members.iter().map(cosine_similarity).fold(f64::NEG_INFINITY, f64::max);
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` equally spaced directions on a circle, `[n, 2]`, rotated by `shift` steps.
    fn circle(n: usize, shift: f32) -> Vec<f32> {
        let angle = |i: usize| (i as f32 + shift) / n as f32 * std::f32::consts::TAU;
        (0..n).flat_map(|i| [angle(i).cos(), angle(i).sin()]).collect()
    }

    #[test]
    fn recall_of_three_pairs_matches_the_definition() {
        // The cosines of the pictures with the captions: 1, .6, 0 for picture 0; .8, .96, .6 for
        // picture 1; -.8, -.96, -.6 for picture 2.
        let images = [1.0, 0.0, 0.8, 0.6, -0.8, -0.6];
        let texts = [1.0, 0.0, 0.6, 0.8, 0.0, 1.0];
        let recall = recall_at(&images, &texts, 2, &[1, 2, 3]).unwrap();
        // The nearest caption of each picture is its own.
        assert_eq!(recall.text_of_image, [1.0, 1.0, 1.0]);
        // Picture 2 is the farthest from its caption: -.6, after .6 and 0.
        assert_eq!(recall.image_of_text, [2.0 / 3.0, 2.0 / 3.0, 1.0]);
    }

    #[test]
    fn rotated_circle_has_recall_0_at_1_and_recall_1_at_2() {
        // After a rotation by .6 of a step, the own caption is the second nearest.
        let n = 2_000;
        let recall = recall_at(&circle(n, 0.0), &circle(n, 0.6), 2, &[1, 2]).unwrap();
        assert_eq!(recall, Recall { text_of_image: vec![0.0, 1.0], image_of_text: vec![0.0, 1.0] });
        // After a rotation by .4 of a step it is the nearest. The lengths have no effect.
        let scaled: Vec<f32> = circle(n, 0.4).iter().map(|x| x * 7.0).collect();
        let first = recall_at(&circle(n, 0.0), &scaled, 2, &[1]).unwrap();
        assert_eq!((first.text_of_image[0], first.image_of_text[0]), (1.0, 1.0));
    }

    #[test]
    fn equal_embeddings_retrieve_nothing() {
        let equal = [0.3, -0.5, 0.2].repeat(1_500);
        let recall = recall_at(&equal, &equal, 3, &[1, 10, 1_499, 1_500]).unwrap();
        assert_eq!(recall.text_of_image, [0.0, 0.0, 0.0, 1.0]);
        let report = r_precision(&Vectors::of(&equal, 3), &Vectors::of(&equal, 3), None).unwrap();
        assert_eq!(report.value, 0.0);
    }

    #[test]
    fn pairs_of_one_group_need_not_be_distinguished() {
        // Two groups of two pairs. Each picture is nearest to the caption of the other pair of its
        // group.
        let images = [1.0, 0.0, 0.99, 0.1, 0.0, 1.0, 0.1, 0.99];
        let texts = [0.99, 0.1, 1.0, 0.0, 0.1, 0.99, 0.0, 1.0];
        let first =
            |groups| retrieval(&Vectors::of(&images, 2), &Vectors::of(&texts, 2), groups).unwrap()[0].clone();
        assert_eq!(first(None).value, 0.0);
        let grouped = first(Some(&[7, 7, 1, 1]));
        assert_eq!((grouped.value, grouped.plus_minus), (100.0, Some(0.0)));
        assert_eq!((&*grouped.name, &*grouped.unit, grouped.n), ("caption of picture R@1", "%", 4));
    }

    #[test]
    fn r_precision_compares_blocks_of_100_and_the_last_100_pairs() {
        // 150 matching pairs. Then the caption of picture 120 is replaced with that of picture 20,
        // which is in another block and therefore not affected.
        let n = 150;
        let (images, mut texts) = (circle(n, 0.0), circle(n, 0.1));
        let precision =
            |texts: &[f32]| r_precision(&Vectors::of(&images, 2), &Vectors::of(texts, 2), None).unwrap();
        assert_eq!((precision(&texts).value, precision(&texts).n), (100.0, 150));
        texts.copy_within(40..42, 240);
        assert!((precision(&texts).value - 100.0 * 149.0 / 150.0).abs() < 1e-9);
        // The caption of picture 60 is replaced with that of picture 10, which is in the same
        // block. Both fail.
        texts.copy_within(20..22, 120);
        assert!((precision(&texts).value - 100.0 * 147.0 / 150.0).abs() < 1e-9);
        let error =
            r_precision(&Vectors::of(&images[..180], 2), &Vectors::of(&images[..180], 2), None).unwrap_err();
        assert!(error.to_string().contains("90 and 90 feature vectors; wanted at least 100"), "{error}");
    }

    #[test]
    fn invalid_pairs_are_refused() {
        let error =
            |images: &[f32], texts: &[f32]| recall_at(images, texts, 2, &[1]).unwrap_err().to_string();
        assert!(error(&[1.0; 4], &[1.0; 2]).contains("2 pictures and 1 captions"));
        assert!(error(&[], &[]).contains("no pairs"));
        assert!(error(&[1.0; 3], &[1.0; 4]).contains("whole number of vectors"));
        assert!(error(&[0.0; 2], &[1.0; 2]).contains("a length of 0"));
        assert!(error(&[f32::INFINITY; 2], &[1.0; 2]).contains("not finite"));
        let groups =
            retrieval(&Vectors::of(&[1.0; 4], 2), &Vectors::of(&[1.0; 4], 2), Some(&[1])).unwrap_err();
        assert!(groups.to_string().contains("1 groups for 2 pairs"));
    }
}
