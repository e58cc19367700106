//! Writes samples to tars. Members are in a fixed order with owner and time 0, and each tar is
//! written completely or not at all.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Sample;
use crate::picture;
use tessera_base::atomic::WholeFile;

/// A sample as the encoded bytes of its members. Encoding is the slow part of writing, and several
/// threads can do it in parallel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    key: String,
    png: Vec<u8>,
    txt: Vec<u8>,
    json: Vec<u8>,
}

impl Packed {
    /// Encodes the picture, the captions and the metadata of a sample.
    pub fn new(sample: &Sample) -> Result<Self> {
        ensure!(!sample.captions.is_empty(), "sample {} has no caption", sample.key);
        let mut txt = sample.captions.join("\n");
        txt.push('\n');
        Ok(Self {
            key: sample.key.clone(),
            png: picture::encode_png(&sample.image).with_context(|| format!("sample {}", sample.key))?,
            txt: txt.into_bytes(),
            json: serde_json::to_vec(&sample.meta).with_context(|| format!("sample {}", sample.key))?,
        })
    }
}

/// Writes `DIR/00000.tar`, `DIR/00001.tar`, ..., starting a new one every `per_shard` samples.
pub struct ShardWriter {
    dir: PathBuf,
    per_shard: usize,
    n_shards: usize,
    in_shard: usize,
    open: Option<tar::Builder<WholeFile>>,
}

impl ShardWriter {
    /// The default number of samples per tar.
    pub const PER_SHARD: usize = 1000;

    /// Creates a writer for the folder `dir`. The folder is created with the first sample.
    pub fn new(dir: &Path, per_shard: usize) -> Self {
        Self { dir: dir.to_path_buf(), per_shard: per_shard.max(1), n_shards: 0, in_shard: 0, open: None }
    }

    /// Adds one sample.
    pub fn write(&mut self, sample: &Packed) -> Result<()> {
        if self.in_shard == self.per_shard {
            self.close_shard()?;
        }
        let path = self.shard_path();
        let builder = match &mut self.open {
            Some(builder) => builder,
            None => self.open.insert(tar::Builder::new(WholeFile::create(&path)?)),
        };
        for (extension, bytes) in [("png", &sample.png), ("txt", &sample.txt), ("json", &sample.json)] {
            append(builder, &format!("{}.{extension}", sample.key), bytes)
                .with_context(|| format!("cannot write sample {} to {}", sample.key, path.display()))?;
        }
        self.in_shard += 1;
        Ok(())
    }

    /// Closes the last tar. Without this call its samples are lost; earlier tars are already
    /// complete.
    pub fn finish(mut self) -> Result<()> {
        self.close_shard()
    }

    fn close_shard(&mut self) -> Result<()> {
        let path = self.shard_path();
        if let Some(builder) = self.open.take() {
            let file = builder.into_inner().with_context(|| format!("cannot finish {}", path.display()))?;
            file.keep()?;
            self.n_shards += 1;
            self.in_shard = 0;
        }
        Ok(())
    }

    fn shard_path(&self) -> PathBuf {
        self.dir.join(format!("{:05}.tar", self.n_shards))
    }
}

/// Appends a member without any trace of the machine or the current time.
fn append(builder: &mut tar::Builder<WholeFile>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    builder.append_data(&mut header, name, bytes)
}
