//! `encode`: encodes random crops of each training picture (paper §B.2, listing 2) and the centre
//! crop of each held-out picture, and writes the codes as shards.
//!
//! It also copies the dVAE to the output folder, because codes are useless without it.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use rayon::prelude::*;
use tessera_base::pixels::to_floats;
use tessera_base::{Progress, Reporter};
use tessera_base::{atomic, random::Purpose, random::item_rng};
use tessera_container::{Origin, hash};
use tessera_data::{Augment, CodeLayout, CodeWriter, IndexedSample, ReadSample, Sample, Split, augment};
use tessera_eval::{code_item, codes_of};
use tessera_model::dvae::{Dvae, DvaeConfig};
use tessera_model::nn::Compute;

use crate::config::DataConfig;
use crate::run_dir::read_model;
use crate::samples::{ensure_large_enough, index_dataset};

/// The number of pictures that are encoded together.
const BATCH: usize = 32;

/// The file name of the dVAE in a folder of codes.
pub(crate) const DVAE_FILE: &str = "dvae.tessera.safetensors";

/// The inputs of `encode`.
#[derive(Debug, Clone, Copy)]
pub struct EncodeInputs<'a> {
    /// The data set.
    pub data: &'a Path,
    /// A model file that contains the dVAE.
    pub dvae: &'a Path,
    /// The seed of the random crops.
    pub seed: u64,
    /// The device that the dVAE computes on.
    pub compute: &'a Compute,
}

/// Encodes both splits of a data set and writes the codes to `out`. Returns the numbers of pictures
/// and of tokens.
pub fn encode(
    data_config: &DataConfig,
    EncodeInputs { data, dvae, seed, compute }: EncodeInputs,
    out: &Path,
    reporter: &dyn Reporter,
) -> Result<(usize, usize)> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let file = read_model(dvae, reporter)?;
    let config = file.config.dvae.clone();
    let config = config.with_context(|| {
        format!("{} has no dVAE; use a file of `train dvae` or `train prior`", dvae.display())
    })?;
    let dvae = file.dvae(compute)?;
    ensure!(config.vocab <= 1 << 16, "code shards hold 16-bit codes; this dVAE has {}", config.vocab);
    let dataset = index_dataset(data, reporter)?;
    Split::ALL
        .iter()
        .try_for_each(|&split| ensure_large_enough(dataset.split(split), config.image_size as u32))?;
    let (mut pictures, mut tokens) = (0, 0);
    let origin =
        Origin { config: hash(&toml::to_string(data_config)?), data: dataset.fingerprint().to_string() };
    for split in Split::ALL {
        let samples = dataset.split(split);
        let views = match split {
            Split::Train if data_config.copies > 0 => {
                Views { copies: data_config.copies, crop: Augment::Stage2, seed }
            }
            Split::Train | Split::Val => Views::CENTRES,
        };
        let layout = CodeLayout {
            grid: config.grid(),
            vocab: config.vocab,
            copies: views.copies,
            dvae: file.fingerprint()?,
            origin: Some(origin.clone()),
        };
        let mut writer = CodeWriter::create(&out.join(split.name()), layout)?;
        tokens += views.write_codes(samples, &dvae, &config, &mut writer, reporter)?;
        writer.finish()?;
        pictures += samples.len();
    }
    atomic::write(&out.join(DVAE_FILE), &file.to_bytes()?)?;
    Ok((pictures, tokens))
}

/// How pictures are cropped before they are encoded.
#[derive(Clone, Copy)]
struct Views {
    /// The number of crops of each picture.
    copies: usize,
    crop: Augment,
    seed: u64,
}

impl Views {
    const CENTRES: Views = Views { copies: 1, crop: Augment::CentreOnly, seed: 0 };

    /// Returns a crop of picture `item`: `[3·S·S]` with values in [0, 1].
    fn crop(self, sample: &Sample, item: usize, copy: usize, side: u32) -> Result<Vec<f32>> {
        let mut rng = item_rng(self.seed, Purpose::Augment, copy as u64, item as u64);
        let view = augment(&sample.image, side, self.crop, &mut rng);
        Ok(to_floats(&view.with_context(|| format!("picture {}", sample.key))?))
    }

    /// Encodes all crops of `samples`, [`BATCH`] at a time, and writes them with their items.
    /// Returns the number of codes.
    fn write_codes(
        self,
        samples: &[IndexedSample],
        dvae: &Dvae,
        config: &DvaeConfig,
        writer: &mut CodeWriter,
        reporter: &dyn Reporter,
    ) -> Result<usize> {
        let total = samples.len() * self.copies;
        for first in (0..total).step_by(BATCH) {
            let done = total.min(first + BATCH);
            // Crops are counted picture by picture, so a batch may begin with any copy of a picture.
            let (from, to) = (first / self.copies, done.div_ceil(self.copies));
            let read = samples[from..to].par_iter().map(ReadSample::sample).collect::<Result<Vec<_>>>()?;
            let crops = (first..done).into_par_iter().map(|crop| {
                let (item, copy) = (crop / self.copies, crop % self.copies);
                self.crop(&read[item - from], item, copy, config.image_size as u32)
            });
            writer.add_codes(&codes_of(dvae, config, &crops.collect::<Result<Vec<_>>>()?))?;
            let new = read.iter().skip(usize::from(first % self.copies > 0));
            new.map(|sample| code_item(sample)).try_for_each(|item| writer.add_item(&item))?;
            let [done, total] = [done, total].map(|count| count as u64);
            reporter.progress(Progress { task: "encoding", done, total, detail: "" });
        }
        Ok(total * config.grid() * config.grid())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use tessera_base::Silent;
    use tessera_data::{CodeSet, Dataset};

    use super::*;
    use crate::config::Config;
    use crate::samples::index_dataset;

    /// 25 pictures with three crops each are three batches, of which two end within a picture.
    #[test]
    fn every_crop_is_encoded_once_and_in_order() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/emoji");
        let (index, set) = (index_dataset(&data, &Silent).unwrap(), Dataset::open(&data).unwrap());
        let config = Config::resolve("tiny", &[]).unwrap().dvae;
        let dvae = Dvae::new(&config, 1, &Device::flex());
        let views = Views { copies: 3, crop: Augment::Stage2, seed: 5 };
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("train");
        let (grid, vocab) = (config.grid(), config.vocab);
        let layout = CodeLayout { grid, vocab, copies: 3, ..CodeLayout::default() };
        let mut writer = CodeWriter::create(&stem, layout).unwrap();
        let n = views.write_codes(&index.train[..25], &dvae, &config, &mut writer, &Silent).unwrap();
        assert_eq!(n, 75 * grid * grid);
        writer.finish().unwrap();
        let codes = CodeSet::open(&stem).unwrap();
        assert!(codes.items.iter().eq(&set.train[..25].iter().map(code_item).collect::<Vec<_>>()));
        for (item, sample) in set.train[..25].iter().enumerate() {
            for copy in 0..3 {
                let crop = views.crop(sample, item, copy, config.image_size as u32).unwrap();
                let expected = codes_of(&dvae, &config, &[crop]);
                assert_eq!(codes.tokens(item, copy).unwrap(), expected, "copy {copy} of picture {item}");
            }
        }
    }
}
