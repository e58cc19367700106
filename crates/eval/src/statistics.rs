//! Published statistics of a set of pictures: the `.npz` files of pytorch-fid and of DM-GAN's code, with the mean of the features
//! as `mu` and their covariance as `sigma`. The files do not say whose features they are.

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use zip::ZipArchive;

use crate::Gaussian;
use crate::features::FeatureExtractor;

/// How an array of NumPy begins.
const MAGIC: &[u8] = b"\x93NUMPY";
/// Most bytes of an array's description.
const MOST_HEADER: usize = 1 << 16;

/// Reads the statistics of a set of pictures, which are taken to be by the features of `network`.
///
/// # Errors
/// If the file is missing or damaged, or has other features.
pub fn read_statistics(path: &Path, network: &dyn FeatureExtractor) -> Result<Gaussian> {
    let shown = path.display();
    // Not piece by piece: standard input and pipes are read only once, from front to back.
    let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let mut archive = ZipArchive::new(Cursor::new(bytes.as_slice()))
        .with_context(|| format!("{shown} is no .npz file; wanted one with mu and sigma"))?;
    let d = network.dims();
    let mut array = |name: &str, shape: &[usize]| {
        array(&mut archive, name, shape).with_context(|| format!("{shown}, {name}"))
    };
    let (mean, covariance) = (array("mu", &[d])?, array("sigma", &[d, d])?);
    Gaussian::of_statistics(&network.name(), mean, &covariance).with_context(|| shown.to_string())
}

/// The values of the array `name` of an archive, which has to have the `wanted` shape.
fn array(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str, wanted: &[usize]) -> Result<Vec<f64>> {
    let entry = archive.by_name(&format!("{name}.npy")).context("there is no such array")?;
    let n: usize = wanted.iter().product();
    let mut bytes = Vec::new();
    let most = n * size_of::<f64>() + MOST_HEADER;
    entry.take(most as u64).read_to_end(&mut bytes).context("cannot be unpacked")?;
    let (header, values) = split(&bytes).context("no array of NumPy")?;
    let shape = shape(header).with_context(|| format!("no shape in {header:?}"))?;
    ensure!(shape == wanted, "shape {shape:?}; wanted {wanted:?}, the features of the network");
    let values = match field(header, "descr") {
        Some("<f8") => values.as_chunks::<8>().0.iter().map(|x| f64::from_le_bytes(*x)).collect::<Vec<_>>(),
        Some("<f4") => values.as_chunks::<4>().0.iter().map(|x| f64::from(f32::from_le_bytes(*x))).collect(),
        other => bail!("numbers of type {}; wanted <f8 or <f4", other.unwrap_or("unknown")),
    };
    ensure!(values.len() == n, "{} numbers; wanted {n}", values.len());
    Ok(values)
}

/// The description and the bytes of an array.
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

/// What follows `'name': ` in a description, without quotes.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = header.split_once(&format!("'{name}':"))?;
    after.trim_start().strip_prefix('\'')?.split('\'').next()
}

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

    /// A network of so many features, which never looks.
    struct Blind(usize);

    impl FeatureExtractor for Blind {
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

    /// `fixtures/eval/statistics.py` wrote the files: three vectors of two features.
    #[test]
    fn files_of_pytorch_fid_and_of_dm_gan_are_the_set_itself() {
        let set = |vectors: &[[f32; 2]]| {
            let mut set = Gaussian::new("a formula", 2);
            vectors.iter().for_each(|vector| set.push(vector).unwrap());
            set
        };
        let [real, other] = [[[0.0, 1.0], [2.0, 5.0], [4.0, 0.0]], [[1.0, 1.0], [2.0, 3.0], [7.0, 8.0]]];
        let wanted = fid(&set(&real), &set(&other)).unwrap().value;
        for name in ["statistics.npz", "statistics-f4.npz"] {
            let read = read_statistics(&fixture(name), &Blind(2)).unwrap();
            let got = fid(&read, &set(&other)).unwrap();
            assert!((got.value - wanted).abs() < 1e-6, "{name}: {}, wanted {wanted}", got.value);
            assert!(fid(&read, &set(&real)).unwrap().value.abs() < 1e-6);
        }
    }

    #[test]
    fn other_files_are_refused_in_one_line() {
        let error = |name: &str, d| format!("{:#}", read_statistics(&fixture(name), &Blind(d)).unwrap_err());
        assert!(error("statistics.npz", 3).contains("mu: shape [2]; wanted [3]"));
        assert!(error("nowhere.npz", 2).contains("cannot read"));
        assert!(error("sheet.png", 2).contains("is no .npz file; wanted one with mu and sigma"));
        assert!(error("batch_norm.pth", 2).contains("mu: there is no such array"));
    }
}
