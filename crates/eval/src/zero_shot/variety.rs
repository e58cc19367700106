//! Variety: how much the drawings of one caption differ. It is 0 if they are all equal.

use image::RgbImage;
use tessera_base::pixels::mean_squared_error;

/// The mean distance over all pairs: the root of the mean squared difference of values in 0 to 255.
/// `None` for fewer than two pictures.
pub(super) fn mean_pairwise_distance(pictures: &[RgbImage]) -> Option<f64> {
    let pairs = pictures.iter().enumerate().flat_map(|(n, a)| pictures[n + 1..].iter().map(move |b| (a, b)));
    let distances: Vec<f64> = pairs.map(|(a, b)| mean_squared_error(a, b).sqrt()).collect();
    (!distances.is_empty()).then(|| distances.iter().sum::<f64>() / distances.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pictures_have_no_variety() {
        let grey = |value| RgbImage::from_pixel(3, 2, image::Rgb([value; 3]));
        assert_eq!(mean_pairwise_distance(&[grey(7), grey(7), grey(7)]), Some(0.0));
        assert_eq!(mean_pairwise_distance(&[grey(0), grey(10), grey(40)]), Some((10.0 + 40.0 + 30.0) / 3.0));
        assert_eq!(mean_pairwise_distance(&[grey(1)]), None);
    }
}
