//! Published statistics of a set of pictures: the `.npz` files of pytorch-fid and of DM-GAN's code,
//! with the mean of the features as `mu` and their covariance as `sigma`. The files do not name the
//! feature extractor.

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use zip::ZipArchive;

use crate::Gaussian;
use crate::features::FeatureExtractor;

/// The first bytes of a `.npy` file.
const MAGIC: &[u8] = b"\x93NUMPY";
/// The maximum size of the header of a `.npy` file in bytes.
const MAX_HEADER: usize = 1 << 16;

/// Reads the statistics of a set of pictures. It assumes that they were computed from the features
/// of `network`.
///
/// # Errors
/// If the file is missing or damaged, or has another number of features.
pub fn read_statistics(path: &Path, network: &dyn FeatureExtractor) -> Result<Gaussian> {
    let shown = path.display();
    // The file is read completely first, because standard input and pipes do not support seeking.
    let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let mut archive = ZipArchive::new(Cursor::new(bytes.as_slice()))
        .with_context(|| format!("{shown} is not a .npz file; wanted one with mu and sigma"))?;
    let d = network.dims();
    let mut array = |name: &str, shape: &[usize]| {
        array(&mut archive, name, shape).with_context(|| format!("{shown}, {name}"))
    };
    let (mean, covariance) = (array("mu", &[d])?, array("sigma", &[d, d])?);
    Gaussian::of_statistics(&network.name(), mean, &covariance).with_context(|| shown.to_string())
}

/// Returns the values of the array `name` of an archive, which must have the `expected` shape.
fn array(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str, expected: &[usize]) -> Result<Vec<f64>> {
    let entry = archive.by_name(&format!("{name}.npy")).context("there is no such array")?;
    let n: usize = expected.iter().product();
    let mut bytes = Vec::new();
    let limit = n * size_of::<f64>() + MAX_HEADER;
    entry.take(limit as u64).read_to_end(&mut bytes).context("cannot be decompressed")?;
    let (header, values) = split(&bytes).context("not a NumPy array")?;
    let shape = shape(header).with_context(|| format!("no shape in {header:?}"))?;
    ensure!(shape == expected, "shape {shape:?}; wanted {expected:?}, the features of the network");
    let values = match field(header, "descr") {
        Some("<f8") => values.as_chunks::<8>().0.iter().map(|x| f64::from_le_bytes(*x)).collect::<Vec<_>>(),
        Some("<f4") => values.as_chunks::<4>().0.iter().map(|x| f64::from(f32::from_le_bytes(*x))).collect(),
        other => bail!("numbers of type {}; wanted <f8 or <f4", other.unwrap_or("unknown")),
    };
    ensure!(values.len() == n, "{} numbers; wanted {n}", values.len());
    Ok(values)
}

/// Splits a `.npy` file into its header and its values. `None` if it is not in this format.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    let (len, rest) = match version[0] {
        1 => {
            rest.split_first_chunk::<2>().map(|(len, rest)| (usize::from(u16::from_le_bytes(*len)), rest))?
        }
        2 | 3 => {
            rest.split_first_chunk::<4>().map(|(len, rest)| (u32::from_le_bytes(*len) as usize, rest))?
        }
        _ => return None,
    };
    let (header, values) = rest.split_at_checked(len)?;
    Some((std::str::from_utf8(header).ok()?, values))
}

/// Returns the text after `'name': ` in a header, without its quotes.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = header.split_once(&format!("'{name}':"))?;
    after.trim_start().strip_prefix('\'')?.split('\'').next()
}

/// Returns the shape in a header.
fn shape(header: &str) -> Option<Vec<usize>> {
    let (_, after) = header.split_once("'shape':")?;
    let inside = after.trim_start().strip_prefix('(')?.split(')').next()?;
    inside.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;
    use crate::features::Features;
    use crate::fid;

    /// A feature extractor that only defines its name and its number of features.
    struct Unused(usize);

    impl FeatureExtractor for Unused {
        fn name(&self) -> String {
            "a formula".into()
        }

        fn dims(&self) -> usize {
            self.0
        }

        fn classes(&self) -> usize {
            0
        }

        fn extract(&self, _: &[RgbImage]) -> Result<Features> {
            Ok(Features::default())
        }
    }

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/eval").join(name)
    }

    /// The files were written by `fixtures/eval/statistics.py`, from three vectors of two features.
    #[test]
    fn statistics_files_equal_the_set_they_were_computed_from() {
        let set = |vectors: &[[f32; 2]]| {
            let mut set = Gaussian::new("a formula", 2);
            vectors.iter().for_each(|vector| set.push(vector).unwrap());
            set
        };
        let [real, other] = [[[0.0, 1.0], [2.0, 5.0], [4.0, 0.0]], [[1.0, 1.0], [2.0, 3.0], [7.0, 8.0]]];
        let expected = fid(&set(&real), &set(&other)).unwrap().value;
        for name in ["statistics.npz", "statistics-f4.npz"] {
            let read = read_statistics(&fixture(name), &Unused(2)).unwrap();
            let got = fid(&read, &set(&other)).unwrap();
            assert!((got.value - expected).abs() < 1e-6, "{name}: {}, expected {expected}", got.value);
            assert!(fid(&read, &set(&real)).unwrap().value.abs() < 1e-6);
        }
    }

    #[test]
    fn invalid_files_are_refused() {
        let error = |name: &str, d| format!("{:#}", read_statistics(&fixture(name), &Unused(d)).unwrap_err());
        assert!(error("statistics.npz", 3).contains("mu: shape [2]; wanted [3]"));
        assert!(error("nowhere.npz", 2).contains("cannot read"));
        assert!(error("sheet.png", 2).contains("is not a .npz file; wanted one with mu and sigma"));
        assert!(error("batch_norm.pth", 2).contains("mu: there is no such array"));
    }
}
