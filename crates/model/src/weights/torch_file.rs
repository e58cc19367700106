//! Files of `torch.save`: the tensors of a pickled module or state dictionary, by their names. Nothing in a file is run.
//!
//! Two containers exist: a ZIP archive with an entry for each storage and, before PyTorch 1.6, pickles followed by the
//! storages one after another.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};

use super::HostTensor;
use super::pickle::{self, Value};

/// How a file from before PyTorch 1.6 begins: the pickle of a number of 10 bytes.
const OLD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// The tensors in the bytes of a file, in its order; names of parameters inside of modules are joined by dots.
///
/// # Errors
/// If it is none of the two containers, damaged, or holds numbers other than f32, f16 and bf16.
pub fn read(bytes: &[u8]) -> Result<Vec<HostTensor>> {
    let (root, storages) = match (bytes.starts_with(b"PK"), bytes.strip_prefix(OLD)) {
        (true, _) => zipped(bytes)?,
        (_, Some(rest)) => old(rest)?,
        _ => bail!(
            "no file of PyTorch: it begins neither like a ZIP archive nor like one from before PyTorch 1.6"
        ),
    };
    let views = views(&root)?;
    ensure!(!views.is_empty(), "the file holds no tensors");
    views.into_iter().map(|view| view.read(&storages)).collect()
}

/// Bytes of storages by their keys.
type Storages = HashMap<String, Vec<u8>>;

fn zipped(bytes: &[u8]) -> Result<(Value, Storages)> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).context("a damaged ZIP archive")?;
    let (mut root, mut storages) = (None, Storages::new());
    for i in 0..archive.len() {
        let entry = archive.by_index(i)?;
        let name = entry.name()?.to_string();
        let mut content = Vec::new();
        // An archive of PyTorch is not compressed: no entry is larger than the file.
        entry
            .take(bytes.len() as u64)
            .read_to_end(&mut content)
            .with_context(|| format!("cannot read {name} of the archive"))?;
        match name.rsplit_once('/') {
            Some((_, "data.pkl")) => root = Some(pickle::read(&content)?.0),
            Some((folder, key)) if folder.ends_with("/data") => {
                drop(storages.insert(key.to_string(), content))
            }
            _ => {}
        }
    }
    Ok((root.context("a ZIP archive without data.pkl: no file of PyTorch")?, storages))
}

/// What follows the first number: the protocol, facts about the system, the object, the keys of its storages, the storages.
fn old(bytes: &[u8]) -> Result<(Value, Storages)> {
    let mut rest = bytes;
    let mut next = || -> Result<Value> {
        let (value, len) = pickle::read(rest)?;
        rest = &rest[len..];
        Ok(value)
    };
    let [_, _, root, keys] = [next()?, next()?, next()?, next()?];
    let widths: HashMap<String, usize> =
        views(&root)?.into_iter().map(|view| (view.storage.clone(), view.numbers.width())).collect();
    let mut storages = Storages::new();
    for key in keys.elements() {
        let key = key.as_str().context("a storage without a name")?.to_string();
        let width = *widths.get(&key).with_context(|| format!("storage {key} belongs to no tensor"))?;
        let (count, after) = rest.split_first_chunk::<8>().context("the file is cut short")?;
        let len = usize::try_from(u64::from_le_bytes(*count))?.checked_mul(width);
        let (content, after) =
            len.and_then(|len| after.split_at_checked(len)).context("the file is cut short")?;
        storages.insert(key, content.to_vec());
        rest = after;
    }
    Ok((root, storages))
}

/// Kinds of numbers.
#[derive(Debug, Clone, Copy)]
enum Numbers {
    F32,
    F16,
    Bf16,
}

impl Numbers {
    fn of(storage: &Value) -> Result<Numbers> {
        match storage {
            Value::Global(name) => match &**name {
                "torch FloatStorage" => Ok(Numbers::F32),
                "torch HalfStorage" => Ok(Numbers::F16),
                "torch BFloat16Storage" => Ok(Numbers::Bf16),
                other => bail!("numbers of {other}; wanted FloatStorage, HalfStorage or BFloat16Storage"),
            },
            _ => bail!("a storage without a kind"),
        }
    }

    fn width(self) -> usize {
        match self {
            Numbers::F32 => 4,
            Numbers::F16 | Numbers::Bf16 => 2,
        }
    }

    fn read(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Numbers::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Numbers::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Numbers::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => f32::NAN,
        }
    }
}

/// A tensor as it lies in a storage.
struct View {
    name: String,
    storage: String,
    numbers: Numbers,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Of the arguments of `torch._utils._rebuild_tensor_v2`: storage, offset, size, stride.
    fn new(name: String, args: &[Value]) -> Result<View> {
        let [Value::Outside(storage), offset, size, stride, ..] = args else {
            bail!("a tensor without storage, offset, size and stride")
        };
        let storage = storage.elements();
        let [_, kind, key, ..] = &storage[..] else { bail!("a storage without kind and key") };
        let sizes = |value: &Value| -> Result<Vec<usize>> {
            value.elements().iter().map(|size| size.as_size().context("a size that is none")).collect()
        };
        Ok(View {
            name,
            storage: key.as_str().context("a storage without a key")?.to_string(),
            numbers: Numbers::of(kind)?,
            offset: offset.as_size().context("an offset that is none")?,
            shape: sizes(size)?,
            strides: sizes(stride)?,
        })
    }

    fn read(self, storages: &Storages) -> Result<HostTensor> {
        let name = &self.name;
        let storage = storages
            .get(&self.storage)
            .with_context(|| format!("{name}: storage {} is missing", self.storage))?;
        ensure!(self.shape.len() == self.strides.len(), "{name}: {:?} by {:?}", self.shape, self.strides);
        let len = self.shape.iter().try_fold(1_usize, |len, &size| len.checked_mul(size));
        let len = len.filter(|&len| len <= storage.len()).with_context(|| {
            format!("{name}: a shape of {:?} in a storage of {} bytes", self.shape, storage.len())
        })?;
        let mut values = Vec::with_capacity(len);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..len {
            let steps = index.iter().zip(&self.strides).map(|(i, stride)| i * stride);
            let at = (self.offset + steps.sum::<usize>()) * self.numbers.width();
            let bytes = storage.get(at..at + self.numbers.width());
            values.push(self.numbers.read(bytes.with_context(|| format!("{name}: the file is cut short"))?));
            for (i, size) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *size {
                    break;
                }
                *i = 0;
            }
        }
        Ok(HostTensor { name: self.name, shape: self.shape, values })
    }
}

/// All tensors of a module, or of a dictionary of them.
fn views(root: &Value) -> Result<Vec<View>> {
    let mut collector = Collector { views: Vec::new(), visits: 0 };
    collector.collect(root, "")?;
    Ok(collector.views)
}

/// Deepest nesting of modules, and most values on all paths to them.
const DEEPEST: usize = 64;
const MOST_VISITS: usize = 1 << 20;

struct Collector {
    views: Vec<View>,
    visits: usize,
}

impl Collector {
    fn collect(&mut self, value: &Value, path: &str) -> Result<()> {
        self.visits += 1;
        ensure!(
            path.matches('.').count() < DEEPEST && self.visits < MOST_VISITS,
            "modules lie deeper in each other than in any model"
        );
        match value {
            Value::Call(call) => match &*call.of {
                "torch._utils _rebuild_tensor_v2" => {
                    self.views.push(View::new(path.to_string(), &call.args.elements())?);
                }
                "torch._utils _rebuild_parameter" => {
                    let args = call.args.elements();
                    self.collect(args.first().context("a parameter without a tensor")?, path)?;
                }
                "collections OrderedDict" => self.entries(&value.entries(), path)?,
                _ => {
                    let state = call.state.borrow();
                    for part in ["_parameters", "_buffers", "_modules"] {
                        let entries = state.get(part).map(|part| part.entries()).unwrap_or_default();
                        self.entries(&entries, path)?;
                    }
                }
            },
            Value::Dict(_) => self.entries(&value.entries(), path)?,
            _ => {}
        }
        Ok(())
    }

    fn entries(&mut self, entries: &[(Value, Value)], path: &str) -> Result<()> {
        for (name, value) in entries {
            if let Some(name) = name.as_str() {
                let dot = if path.is_empty() { "" } else { "." };
                self.collect(value, &format!("{path}{dot}{name}"))?;
            }
        }
        Ok(())
    }
}
