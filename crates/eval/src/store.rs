//! What a network saw in a set of pictures, in a file: thirty thousand pictures need not lie in memory, and a measurement that was
//! interrupted goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tessera_base::fnv1a;

use crate::features::{FeatureExtractor, Features};
use crate::{Gaussian, InceptionScore, Report, Vectors};

/// Pictures that a network is shown together.
const BATCH: usize = 32;
/// Vectors that are read together.
const READ: usize = 512;

/// The first line of the file; another network or another source is another file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Header {
    network: String,
    dims: usize,
    classes: usize,
    source: String,
}

/// Rows of features and scores of classes, one a picture.
pub struct Store {
    header: Header,
    file: File,
    /// Bytes of the first line.
    begin: u64,
    /// Whole rows.
    len: usize,
}

impl Store {
    /// Opens what was seen of `source`, a name of its pictures that is another where they are others, in the folder `work`; without one in
    /// a file that goes away.
    ///
    /// # Errors
    /// If the file cannot be written, or holds something else.
    pub fn open(work: Option<&Path>, source: &str, network: &dyn FeatureExtractor) -> Result<Store> {
        let (network, dims, classes) = (network.name(), network.dims(), network.classes());
        let header = Header { network, dims, classes, source: source.to_string() };
        let mut file = match work {
            None => tempfile::tempfile().context("no room for a temporary file")?,
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
                "a file of features holds something else; choose another --work"
            );
        }
        let row = header.row() as u64;
        let len = size.saturating_sub(begin) / row;
        file.set_len(begin + len * row)?; // what is behind the last whole row was cut off when it was written
        Ok(Store { header, file, begin, len: len as usize })
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whose features they are.
    pub fn network(&self) -> &str {
        &self.header.network
    }

    /// Looks at those of `pictures` that it has not seen yet, which are all but the first [`Store::len`]; `seen` hears of each batch how many
    /// are done.
    ///
    /// # Errors
    /// If a picture is none, or the file cannot be written.
    pub fn extract(
        &mut self,
        network: &dyn FeatureExtractor,
        pictures: impl Iterator<Item = Result<RgbImage>>,
        mut seen: impl FnMut(usize),
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
            seen(self.len);
        }
        Ok(())
    }

    /// Shows `take` all rows in their order, some at a time.
    pub fn read(&self, mut take: impl FnMut(Features) -> Result<()>) -> Result<()> {
        let mut file = BufReader::new(&self.file);
        file.seek(SeekFrom::Start(self.begin))?;
        let (dims, row) = (self.header.dims, self.header.row());
        for first in (0..self.len).step_by(READ) {
            let mut bytes = vec![0; row * READ.min(self.len - first)];
            file.read_exact(&mut bytes).context("a file of features is cut short")?;
            let mut seen = Features::default();
            for row in bytes.chunks(row) {
                let mut values = row.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                seen.features.extend(values.by_ref().take(dims));
                seen.logits.extend(values);
            }
            take(seen)?;
        }
        Ok(())
    }

    /// Mean and covariance of the features.
    pub fn gaussian(&self) -> Result<Gaussian> {
        self.gaussian_of(self.len)
    }

    /// Mean and covariance of the features of the first `n` pictures.
    pub fn gaussian_of(&self, n: usize) -> Result<Gaussian> {
        let d = self.header.dims;
        let mut gaussian = Gaussian::new(&self.header.network, d);
        self.read(|seen| {
            let wanted = d * (n - gaussian.len());
            gaussian.push_all(&seen.features[..wanted.min(seen.features.len())])
        })?;
        Ok(gaussian)
    }

    /// The inception score of the classes, if the network knows any.
    pub fn inception_score(&self) -> Result<Option<Report>> {
        if self.header.classes < 2 || self.len < InceptionScore::SPLITS {
            return Ok(None);
        }
        let Header { network, classes, .. } = &self.header;
        let mut score = InceptionScore::new(network, self.len, *classes, InceptionScore::SPLITS)?;
        self.read(|seen| score.push_all(&seen.logits))?;
        score.report().map(Some)
    }

    /// The features themselves, in memory.
    pub fn vectors(&self) -> Result<Vectors> {
        let mut vectors = Vectors::new(&self.header.network, self.header.dims);
        self.read(|seen| vectors.push_all(&seen.features))?;
        Ok(vectors)
    }
}

impl Header {
    /// Bytes of a picture.
    fn row(&self) -> usize {
        4 * (self.dims + self.classes)
    }

    /// The file's name is a hash of the line (FNV-1a), which is compared when it is opened again.
    fn path(&self, work: &Path) -> Result<PathBuf> {
        let name = fnv1a(serde_json::to_string(self)?.as_bytes());
        Ok(work.join(format!("{name:016x}.features")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sees a picture's first pixel, and counts what it is asked.
    struct Eye {
        asked: std::sync::atomic::AtomicUsize,
    }

    impl FeatureExtractor for Eye {
        fn name(&self) -> String {
            "an eye".into()
        }

        fn dims(&self) -> usize {
            2
        }

        fn classes(&self) -> usize {
            1
        }

        fn extract(&self, pictures: &[RgbImage]) -> Result<Features> {
            self.asked.fetch_add(pictures.len(), std::sync::atomic::Ordering::Relaxed);
            let pixel = |picture: &RgbImage| picture.get_pixel(0, 0).0.map(f32::from);
            let features = pictures.iter().flat_map(|picture| pixel(picture)[..2].to_vec()).collect();
            Ok(Features { features, logits: pictures.iter().map(|picture| pixel(picture)[2]).collect() })
        }
    }

    fn eye() -> Eye {
        Eye { asked: 0.into() }
    }

    fn pictures(range: std::ops::Range<u8>) -> impl Iterator<Item = Result<RgbImage>> {
        range.map(|i| Ok(RgbImage::from_pixel(1, 1, image::Rgb([i, i + 1, i + 2]))))
    }

    fn rows(store: &Store) -> Features {
        let mut all = Features::default();
        let take = |seen: Features| {
            all.features.extend(seen.features);
            all.logits.extend(seen.logits);
            Ok(())
        };
        store.read(take).unwrap();
        all
    }

    #[test]
    fn what_was_interrupted_goes_on_with_the_same_rows() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = Store::open(None, "a", &eye()).unwrap();
        whole.extract(&eye(), pictures(0..100), |_| ()).unwrap();
        let mut first = Store::open(Some(dir.path()), "a", &eye()).unwrap();
        first.extract(&eye(), pictures(0..40), |_| ()).unwrap();
        // As if it had been killed while it wrote row 41.
        first.file.write_all(&[1, 2, 3]).unwrap();
        drop(first);
        let (mut again, eye) = (Store::open(Some(dir.path()), "a", &eye()).unwrap(), eye());
        assert_eq!(again.len(), 40);
        again.extract(&eye, pictures(40..100), |_| ()).unwrap();
        assert_eq!((again.len(), eye.asked.into_inner()), (100, 60));
        assert_eq!(rows(&again), rows(&whole));
        assert_eq!(rows(&whole).features[..4], [0.0, 1.0, 1.0, 2.0]);
    }

    #[test]
    fn another_source_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(Some(dir.path()), "a", &eye()).unwrap();
        store.extract(&eye(), pictures(0..5), |_| ()).unwrap();
        assert!(Store::open(Some(dir.path()), "b", &eye()).unwrap().is_empty());
        assert_eq!(Store::open(Some(dir.path()), "a", &eye()).unwrap().len(), 5);
    }

    #[test]
    fn a_set_and_itself_are_no_distance_apart() {
        let mut store = Store::open(None, "a", &eye()).unwrap();
        store.extract(&eye(), pictures(0..100), |_| ()).unwrap();
        let gaussian = store.gaussian().unwrap();
        assert!(crate::frechet_distance(&gaussian, &gaussian).unwrap().abs() < 1e-6);
        assert_eq!((store.vectors().unwrap().len(), store.network()), (100, "an eye"));
    }

    #[test]
    fn dm_gan_leaves_out_what_fills_no_batch_of_64() {
        let seen = |n: u8| {
            let mut store = Store::open(None, "a", &eye()).unwrap();
            store.extract(&eye(), pictures(0..n), |_| ()).unwrap();
            store
        };
        let (whole, cut) = (seen(200), seen(192));
        let own = crate::DmGan::new(Vec::new()).unwrap();
        let distance = |store: &Store, protocol: crate::Protocol| {
            crate::frechet_distance(&protocol.gaussian(store).unwrap(), &cut.gaussian().unwrap()).unwrap()
        };
        assert!(distance(&whole, crate::Protocol::DmGan(&own)).abs() < 1e-6);
        assert!(distance(&whole, crate::Protocol::One(&eye())) > 1.0);
    }
}
