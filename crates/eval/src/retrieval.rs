//! Whether pictures and captions find each other among others, by the cosine of their embeddings: recall both ways, and R-precision
//! (Xu et al. 2018). What makes a contrastive model fit to order drawings (paper §2.6).
//!
//! A tie counts against: embeddings that are all alike find nothing. Pairs with the same caption are one group, and finding any
//! of them is finding it.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use crate::vectors::{Block, dot, for_blocks, unit};
use crate::{Report, Vectors};

/// Captions among which a picture's own must be the closest, in R-precision.
const R: usize = 100;
/// Ranks within which recall is reported.
const KS: [usize; 3] = [1, 5, 10];
/// Cosines as close as this are a tie: products are summed in other orders at the edge of a block.
const TIE: f64 = 1e-9;

/// Shares of `n` pairs that find each other, for every `k` that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Recall {
    /// Pictures whose caption is among the `k` closest captions.
    pub text_of_image: Vec<f64>,
    /// Captions whose picture is among the `k` closest pictures.
    pub image_of_text: Vec<f64>,
}

/// Recall within each of `ks` both ways; pair `i` is `images[i]` and `texts[i]`, each `[n, dims]` of any length.
///
/// # Errors
/// If the sets differ in size or are empty, or an embedding is 0 or not finite.
pub fn recall_at(images: &[f32], texts: &[f32], dims: usize, ks: &[usize]) -> Result<Recall> {
    let groups: Vec<usize> = (0..texts.len() / dims.max(1)).collect();
    grouped_recall(images, texts, dims, &groups, ks)
}

/// Recall within 1, 5 and 10, both ways, in percent. `groups[i]` says what pair `i` shows, so that pairs with the same caption do not
/// have to be told apart; none if all differ.
///
/// # Errors
/// As [`recall_at`]; or if the embeddings are of two models or there is not one group a pair.
pub fn retrieval(images: &Vectors, texts: &Vectors, groups: Option<&[usize]>) -> Result<Vec<Report>> {
    images.comparable(texts, 1)?;
    let all: Vec<usize> = (0..images.len()).collect();
    let groups = groups.unwrap_or(&all);
    let recall = grouped_recall(images.values(), texts.values(), images.dims(), groups, &KS)?;
    let reports = |name: &str, shares: &[f64]| -> Vec<Report> {
        let report = |(k, &share): (&usize, &f64)| proportion(&format!("{name} R@{k}"), share, images);
        KS.iter().zip(shares).map(report).collect()
    };
    let mut found = reports("caption of picture", &recall.text_of_image);
    found.extend(reports("picture of caption", &recall.image_of_text));
    Ok(found)
}

/// R-precision: pictures whose own caption is the closest of 100, in percent. The 100 are consecutive pairs; the last pictures choose
/// among the last 100. Pairs with the same caption share a group, as for [`retrieval`].
///
/// # Errors
/// As [`retrieval`]; or if there are fewer than 100 pairs.
pub fn r_precision(images: &Vectors, texts: &Vectors, groups: Option<&[usize]>) -> Result<Report> {
    images.comparable(texts, R)?;
    let (n, dims) = (images.len(), images.dims());
    let all: Vec<usize> = (0..n).collect();
    let groups = groups.unwrap_or(&all);
    let (pictures, captions) = pairs(images.values(), texts.values(), dims, groups)?;
    let mut first = 0;
    for start in (0..n).step_by(R) {
        // The last block is filled up with pictures before it, which have had their turn.
        let from = start.min(n - R);
        let block = |vectors: &[f32]| vectors[from * dims..][..R * dims].to_vec();
        let ranks = ranks(&block(&pictures), &block(&captions), dims, &groups[from..][..R]);
        first += ranks[start - from..].iter().filter(|&&rank| rank == 0).count();
    }
    Ok(proportion("R-precision", first as f64 / n as f64, images))
}

/// A share of `of`'s vectors in percent, with its standard error.
fn proportion(name: &str, share: f64, of: &Vectors) -> Report {
    let n = of.len();
    let error = (share * (1.0 - share) / n as f64).sqrt();
    Report {
        unit: "%".into(),
        plus_minus: Some(100.0 * error),
        features: of.features().into(),
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

/// Both sides of the pairs at a length of 1.
fn pairs(images: &[f32], texts: &[f32], dims: usize, groups: &[usize]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (images, texts) = (unit(images, dims)?, unit(texts, dims)?);
    let (n, m) = (images.len() / dims, texts.len() / dims);
    ensure!(n == m, "{n} pictures and {m} captions; wanted one caption a picture");
    ensure!(n > 0, "no pairs of picture and caption; wanted at least 1");
    ensure!(groups.len() == n, "{} groups for {n} pairs; wanted one a pair", groups.len());
    Ok((images, texts))
}

/// For each query, how many keys of other groups are as close as the closest of its own, or closer.
fn ranks(queries: &[f32], keys: &[f32], dims: usize, groups: &[usize]) -> Vec<usize> {
    let own = closest_of_own(queries, keys, dims, groups);
    let mut ranks = vec![0; own.len()];
    for_blocks(queries, keys, dims, |block: Block<'_, f64>| {
        let rows = block.products.par_chunks(block.width);
        rows.zip(&mut ranks[block.row..]).enumerate().for_each(|(i, (row, rank))| {
            let i = block.row + i;
            let closer = |&(j, &cosine_similarity): &(usize, &f64)| {
                cosine_similarity > own[i] - TIE && groups[block.column + j] != groups[i]
            };
            *rank += row.iter().enumerate().filter(closer).count();
        });
    });
    ranks
}

/// The cosine of each query with the closest key of its group.
fn closest_of_own(queries: &[f32], keys: &[f32], dims: usize, groups: &[usize]) -> Vec<f64> {
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

    fn set(values: &[f32], dims: usize) -> Vectors {
        let mut set = Vectors::new("a contrastive model", dims);
        set.push_all(values).unwrap();
        set
    }

    /// Directions around a circle, `[n, 2]`, `by` steps further each.
    fn circle(n: usize, by: f32) -> Vec<f32> {
        let angle = |i: usize| (i as f32 + by) / n as f32 * std::f32::consts::TAU;
        (0..n).flat_map(|i| [angle(i).cos(), angle(i).sin()]).collect()
    }

    #[test]
    fn three_pairs_by_hand() {
        // Cosines of picture and caption: picture 0 has 1, .6, 0; picture 1 has .8, .96, .6; picture 2 has -.8, 0, -.6.
        let images = [1.0, 0.0, 0.8, 0.6, -0.8, -0.6];
        let texts = [1.0, 0.0, 0.6, 0.8, 0.0, 1.0];
        let recall = recall_at(&images, &texts, 2, &[1, 2, 3]).unwrap();
        // Pictures 0 and 1 find theirs first; picture 2 has caption 1 (-.96) last, caption 0 (-.8) second, its own first.
        assert_eq!(recall.text_of_image, [1.0, 1.0, 1.0]);
        // Caption 2 is the furthest from its picture: -.6 behind .6 and 0.
        assert_eq!(recall.image_of_text, [2.0 / 3.0, 2.0 / 3.0, 1.0]);
    }

    #[test]
    fn a_turned_circle_finds_its_own_only_among_more() {
        // Turned by .6 of a step, the next caption is nearer than the own one, which is second.
        let n = 2_000;
        let recall = recall_at(&circle(n, 0.0), &circle(n, 0.6), 2, &[1, 2]).unwrap();
        assert_eq!(recall, Recall { text_of_image: vec![0.0, 1.0], image_of_text: vec![0.0, 1.0] });
        // Neither order, nor length of the embeddings matters.
        let scaled: Vec<f32> = circle(n, 0.4).iter().map(|x| x * 7.0).collect();
        let first = recall_at(&circle(n, 0.0), &scaled, 2, &[1]).unwrap();
        assert_eq!((first.text_of_image[0], first.image_of_text[0]), (1.0, 1.0));
    }

    #[test]
    fn embeddings_that_are_all_alike_find_nothing() {
        let alike = [0.3, -0.5, 0.2].repeat(1_500);
        let recall = recall_at(&alike, &alike, 3, &[1, 10, 1_499, 1_500]).unwrap();
        assert_eq!(recall.text_of_image, [0.0, 0.0, 0.0, 1.0]);
        let report = r_precision(&set(&alike, 3), &set(&alike, 3), None).unwrap();
        assert_eq!(report.value, 0.0);
    }

    #[test]
    fn pairs_of_one_caption_need_not_be_told_apart() {
        // Four pictures in two captions, and each picture is nearest to the caption of its twin.
        let images = [1.0, 0.0, 0.99, 0.1, 0.0, 1.0, 0.1, 0.99];
        let texts = [0.99, 0.1, 1.0, 0.0, 0.1, 0.99, 0.0, 1.0];
        let first = |groups| retrieval(&set(&images, 2), &set(&texts, 2), groups).unwrap()[0].clone();
        assert_eq!(first(None).value, 0.0);
        let grouped = first(Some(&[7, 7, 1, 1]));
        assert_eq!((grouped.value, grouped.plus_minus), (100.0, Some(0.0)));
        assert_eq!((&*grouped.name, &*grouped.unit, grouped.n), ("caption of picture R@1", "%", 4));
    }

    #[test]
    fn r_precision_ranks_among_a_hundred_and_the_last_among_the_last_hundred() {
        // 150 pairs that fit. Then picture 120's caption is picture 20's, which is judged in another block and keeps its own.
        let n = 150;
        let (images, mut texts) = (circle(n, 0.0), circle(n, 0.1));
        let precision = |texts: &[f32]| r_precision(&set(&images, 2), &set(texts, 2), None).unwrap();
        assert_eq!((precision(&texts).value, precision(&texts).n), (100.0, 150));
        texts.copy_within(40..42, 240);
        assert!((precision(&texts).value - 100.0 * 149.0 / 150.0).abs() < 1e-9);
        // Picture 60's caption becomes picture 10's, of the same block: neither finds its own before all others.
        texts.copy_within(20..22, 120);
        assert!((precision(&texts).value - 100.0 * 147.0 / 150.0).abs() < 1e-9);
        let error = r_precision(&set(&images[..180], 2), &set(&images[..180], 2), None).unwrap_err();
        assert!(error.to_string().contains("90 and 90 feature vectors; wanted at least 100"), "{error}");
    }

    #[test]
    fn pairs_that_do_not_fit_are_refused() {
        let error =
            |images: &[f32], texts: &[f32]| recall_at(images, texts, 2, &[1]).unwrap_err().to_string();
        assert!(error(&[1.0; 4], &[1.0; 2]).contains("2 pictures and 1 captions"));
        assert!(error(&[], &[]).contains("no pairs"));
        assert!(error(&[1.0; 3], &[1.0; 4]).contains("whole number of vectors"));
        assert!(error(&[0.0; 2], &[1.0; 2]).contains("a length of 0"));
        assert!(error(&[f32::INFINITY; 2], &[1.0; 2]).contains("not finite"));
        let groups = retrieval(&set(&[1.0; 4], 2), &set(&[1.0; 4], 2), Some(&[1])).unwrap_err();
        assert!(groups.to_string().contains("1 groups for 2 pairs"));
    }
}
