//! A file with the features of a set of pictures. Large sets do not have to fit into memory, and an
//! interrupted extraction continues after the last stored picture.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tessera_base::fnv1a;

use crate::features::{FeatureExtractor, Features};
use crate::{Gaussian, InceptionScore, Report, Vectors};

/// The batch size of feature extraction.
const BATCH: usize = 32;
/// The number of rows that are read together.
const READ: usize = 512;

/// The first line of the file. It identifies the network and the set of pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Header {
    network: String,
    dims: usize,
    classes: usize,
    source: String,
}

/// A file with one row per picture: its features, then its logits.
pub struct Store {
    header: Header,
    file: File,
    /// The offset of the first row: the size of the first line in bytes.
    begin: u64,
    /// The number of complete rows.
    len: usize,
}

impl Store {
    /// Opens or creates the file for the set `source` in the folder `work`. Without a folder it
    /// creates a temporary file. `source` must differ for different sets of pictures.
    ///
    /// # Errors
    /// If the file cannot be written, or belongs to another network or set.
    pub fn open(work: Option<&Path>, source: &str, network: &dyn FeatureExtractor) -> Result<Store> {
        let (network, dims, classes) = (network.name(), network.dims(), network.classes());
        let header = Header { network, dims, classes, source: source.to_string() };
        let mut file = match work {
            None => tempfile::tempfile().context("cannot create a temporary file")?,
            Some(work) => {
                std::fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
                let path = header.path(work)?;
                let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
                open.with_context(|| format!("cannot write {}", path.display()))?
            }
        };
        let line = serde_json::to_string(&header)? + "\n";
        let begin = line.len() as u64;
        let size = file.metadata()?.len();
        if size < begin {
            file.set_len(0)?;
            file.write_all(line.as_bytes())?;
        } else {
            let mut found = vec![0; line.len()];
            file.read_exact(&mut found)?;
            ensure!(
                found == line.as_bytes(),
                "the feature file belongs to another network or set of pictures; choose another --work"
            );
        }
        let row = header.row() as u64;
        let len = size.saturating_sub(begin) / row;
        file.set_len(begin + len * row)?; // An interrupted write leaves an incomplete last row.
        Ok(Store { header, file, begin, len: len as usize })
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the file has no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The name of the feature extractor.
    pub fn network(&self) -> &str {
        &self.header.network
    }

    /// Extracts the features of `pictures` and appends them. `pictures` must start after the first
    /// [`Store::len`] pictures of the set. After each batch it passes the total number of rows to
    /// `progress`.
    ///
    /// # Errors
    /// If a picture cannot be read, or the file cannot be written.
    pub fn extract(
        &mut self,
        network: &dyn FeatureExtractor,
        pictures: impl Iterator<Item = Result<RgbImage>>,
        mut progress: impl FnMut(usize),
    ) -> Result<()> {
        let mut pictures = pictures.peekable();
        self.file.seek(SeekFrom::End(0))?;
        while pictures.peek().is_some() {
            let batch = pictures.by_ref().take(BATCH).collect::<Result<Vec<_>>>()?;
            let Features { features, logits } = network.extract(&batch)?;
            let mut bytes = Vec::with_capacity(batch.len() * self.header.row());
            for i in 0..batch.len() {
                let row = |all: &[f32], width: usize| all[i * width..(i + 1) * width].to_vec();
                for value in row(&features, self.header.dims).iter().chain(&row(&logits, self.header.classes))
                {
                    bytes.extend(value.to_le_bytes());
                }
            }
            self.file.write_all(&bytes).context("cannot write features")?;
            self.len += batch.len();
            progress(self.len);
        }
        Ok(())
    }

    /// Passes all rows to `take`, in order and in batches.
    ///
    /// # Errors
    /// If the file cannot be read or `take` fails.
    pub fn read(&self, mut take: impl FnMut(Features) -> Result<()>) -> Result<()> {
        let mut file = BufReader::new(&self.file);
        file.seek(SeekFrom::Start(self.begin))?;
        let (dims, row) = (self.header.dims, self.header.row());
        for first in (0..self.len).step_by(READ) {
            let mut bytes = vec![0; row * READ.min(self.len - first)];
            file.read_exact(&mut bytes).context("a feature file is truncated")?;
            let mut batch = Features::default();
            for row in bytes.chunks(row) {
                let mut values = row.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                batch.features.extend(values.by_ref().take(dims));
                batch.logits.extend(values);
            }
            take(batch)?;
        }
        Ok(())
    }

    /// Returns the mean and covariance of the features.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn gaussian(&self) -> Result<Gaussian> {
        self.gaussian_of(self.len)
    }

    /// Returns the mean and covariance of the features of the first `n` pictures.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn gaussian_of(&self, n: usize) -> Result<Gaussian> {
        let d = self.header.dims;
        let mut gaussian = Gaussian::new(&self.header.network, d);
        self.read(|batch| {
            let missing = d * (n - gaussian.len());
            gaussian.push_all(&batch.features[..missing.min(batch.features.len())])
        })?;
        Ok(gaussian)
    }

    /// Returns the Inception Score. `None` if the network has no classifier or there are fewer
    /// pictures than splits.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn inception_score(&self) -> Result<Option<Report>> {
        if self.header.classes < 2 || self.len < InceptionScore::SPLITS {
            return Ok(None);
        }
        let Header { network, classes, .. } = &self.header;
        let mut score = InceptionScore::new(network, self.len, *classes, InceptionScore::SPLITS)?;
        self.read(|batch| score.push_all(&batch.logits))?;
        score.report().map(Some)
    }

    /// Reads all features into memory.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn vectors(&self) -> Result<Vectors> {
        let mut vectors = Vectors::new(&self.header.network, self.header.dims);
        self.read(|batch| vectors.push_all(&batch.features))?;
        Ok(vectors)
    }
}

impl Header {
    /// The size of a row in bytes.
    fn row(&self) -> usize {
        4 * (self.dims + self.classes)
    }

    /// The path of the file. Its name is the FNV-1a hash of the first line. [`Store::open`] also
    /// compares the line itself.
    fn path(&self, work: &Path) -> Result<PathBuf> {
        let name = fnv1a(serde_json::to_string(self)?.as_bytes());
        Ok(work.join(format!("{name:016x}.features")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Extracts the first pixel of a picture, and counts the pictures.
    struct FirstPixel {
        count: std::sync::atomic::AtomicUsize,
    }

    impl FeatureExtractor for FirstPixel {
        fn name(&self) -> String {
            "first pixel".into()
        }

        fn dims(&self) -> usize {
            2
        }

        fn classes(&self) -> usize {
            1
        }

        fn extract(&self, pictures: &[RgbImage]) -> Result<Features> {
            self.count.fetch_add(pictures.len(), std::sync::atomic::Ordering::Relaxed);
            let pixel = |picture: &RgbImage| picture.get_pixel(0, 0).0.map(f32::from);
            let features = pictures.iter().flat_map(|picture| pixel(picture)[..2].to_vec()).collect();
            Ok(Features { features, logits: pictures.iter().map(|picture| pixel(picture)[2]).collect() })
        }
    }

    fn network() -> FirstPixel {
        FirstPixel { count: 0.into() }
    }

    fn pictures(range: std::ops::Range<u8>) -> impl Iterator<Item = Result<RgbImage>> {
        range.map(|i| Ok(RgbImage::from_pixel(1, 1, image::Rgb([i, i + 1, i + 2]))))
    }

    fn rows(store: &Store) -> Features {
        let mut all = Features::default();
        let take = |batch: Features| {
            all.features.extend(batch.features);
            all.logits.extend(batch.logits);
            Ok(())
        };
        store.read(take).unwrap();
        all
    }

    #[test]
    fn interrupted_extraction_continues_with_the_same_rows() {
        let dir = tempfile::tempdir().unwrap();
        let mut complete = Store::open(None, "a", &network()).unwrap();
        complete.extract(&network(), pictures(0..100), |_| ()).unwrap();
        let mut first = Store::open(Some(dir.path()), "a", &network()).unwrap();
        first.extract(&network(), pictures(0..40), |_| ()).unwrap();
        // An incomplete row, as if the process had been killed while it wrote row 41.
        first.file.write_all(&[1, 2, 3]).unwrap();
        drop(first);
        let (mut second, network) = (Store::open(Some(dir.path()), "a", &network()).unwrap(), network());
        assert_eq!(second.len(), 40);
        second.extract(&network, pictures(40..100), |_| ()).unwrap();
        assert_eq!((second.len(), network.count.into_inner()), (100, 60));
        assert_eq!(rows(&second), rows(&complete));
        assert_eq!(rows(&complete).features[..4], [0.0, 1.0, 1.0, 2.0]);
    }

    #[test]
    fn different_sources_have_different_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(Some(dir.path()), "a", &network()).unwrap();
        store.extract(&network(), pictures(0..5), |_| ()).unwrap();
        assert!(Store::open(Some(dir.path()), "b", &network()).unwrap().is_empty());
        assert_eq!(Store::open(Some(dir.path()), "a", &network()).unwrap().len(), 5);
    }

    #[test]
    fn stored_features_have_distance_0_to_themselves() {
        let mut store = Store::open(None, "a", &network()).unwrap();
        store.extract(&network(), pictures(0..100), |_| ()).unwrap();
        let gaussian = store.gaussian().unwrap();
        assert!(crate::frechet_distance(&gaussian, &gaussian).unwrap().abs() < 1e-6);
        assert_eq!((store.vectors().unwrap().len(), store.network()), (100, "first pixel"));
    }

    #[test]
    fn dm_gan_ignores_an_incomplete_batch_of_64() {
        let store = |n: u8| {
            let mut store = Store::open(None, "a", &network()).unwrap();
            store.extract(&network(), pictures(0..n), |_| ()).unwrap();
            store
        };
        let (all, full_batches) = (store(200), store(192));
        let dm_gan = crate::DmGan::new(Vec::new()).unwrap();
        let distance = |store: &Store, protocol: crate::Protocol| {
            let reference = full_batches.gaussian().unwrap();
            crate::frechet_distance(&protocol.gaussian(store).unwrap(), &reference).unwrap()
        };
        assert!(distance(&all, crate::Protocol::DmGan(&dm_gan)).abs() < 1e-6);
        assert!(distance(&all, crate::Protocol::One(&network())) > 1.0);
    }
}
