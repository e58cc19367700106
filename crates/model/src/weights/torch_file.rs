//! Reads files of `torch.save`: the tensors of a pickled module or state dictionary, by name. No
//! code in a file is executed.
//!
//! There are two containers: a ZIP archive with one entry per storage and, before PyTorch 1.6,
//! several pickles followed by the storages one after another.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};

use super::HostTensor;
use super::pickle::{self, Pickle, Value};
use super::stand_in::refuse_stand_in;

/// The beginning of a file from before PyTorch 1.6: the pickle of a magic number of 10 bytes.
const OLD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// A file whose list of tensors was read, but not their values.
pub struct TorchFile {
    views: Vec<View>,
    storages: Storages,
    /// The length of the file in bytes.
    len: usize,
}

/// Reads the needed tensors from the bytes of a file, in the order of the file. The names of
/// modules and parameters are joined by dots. Tensors that are not needed may have any dtype.
///
/// # Errors
/// If the bytes are neither of the two containers, the file is damaged, or a needed tensor is not
/// f32, f16, bf16 or f64.
pub fn read(bytes: &[u8], is_needed: impl Fn(&str) -> bool) -> Result<Vec<HostTensor>> {
    TorchFile::open(bytes)?.read(|name, _| is_needed(name))
}

impl TorchFile {
    /// Reads the list of tensors from the bytes of a file.
    ///
    /// # Errors
    /// If the bytes are neither of the two containers, or the file is damaged.
    pub fn open(bytes: &[u8]) -> Result<TorchFile> {
        refuse_stand_in(bytes)?;
        let (root, storages) = match (bytes.starts_with(b"PK"), bytes.strip_prefix(OLD)) {
            (true, _) => zipped(bytes)?,
            (_, Some(rest)) => legacy(rest)?,
            _ => bail!(
                "not a PyTorch file: it begins neither like a ZIP archive nor like a file from before PyTorch 1.6"
            ),
        };
        let views = views(&root)?;
        ensure!(!views.is_empty(), "the file holds no tensors");
        Ok(TorchFile { views, storages, len: bytes.len() })
    }

    /// The names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.views.iter().map(|view| view.name.as_str())
    }

    /// Reads the tensors for which `is_needed` holds. It gets the name, and whether the dtype is a
    /// float.
    ///
    /// # Errors
    /// If one of them has an unsupported dtype, or reaches beyond the file.
    pub fn read(self, is_needed: impl Fn(&str, bool) -> bool) -> Result<Vec<HostTensor>> {
        let TorchFile { mut views, storages, len } = self;
        views.retain(|view| is_needed(&view.name, view.dtype.is_float()));
        // Tensors may share a storage, and those of some models do, but only to a limited extent.
        let n_values = views.iter().map(View::len).try_fold(0_usize, |sum, len| sum.checked_add(len?));
        let most = len.saturating_mul(MAX_SHARING);
        ensure!(
            n_values.is_some_and(|n_values| n_values <= most),
            "the tensors are many times larger than the file"
        );
        views.into_iter().map(|view| view.read(&storages)).collect()
    }
}

/// Whether the bytes are a TorchScript archive, which contains constants in addition to the
/// weights.
pub fn is_script(bytes: &[u8]) -> bool {
    let archive = zip::ZipArchive::new(Cursor::new(bytes));
    archive.is_ok_and(|archive| {
        archive.file_names().any(|name| name.is_ok_and(|name| name.ends_with("/constants.pkl")))
    })
}

/// The limit on the number of tensor values per byte of the file.
const MAX_SHARING: usize = 2;

/// The bytes of the storages by their keys.
type Storages = HashMap<String, Vec<u8>>;

/// Reads a ZIP archive: the pickled object and the storages.
fn zipped(bytes: &[u8]) -> Result<(Value, Storages)> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).context("a damaged ZIP archive")?;
    let (mut root, mut storages) = (None, Storages::new());
    // PyTorch does not compress its archives, so the entries together are at most as large as the
    // file.
    let mut left = bytes.len() as u64;
    for i in 0..archive.len() {
        let entry = archive.by_index(i)?;
        let name = entry.name()?.to_string();
        let part = match name.rsplit_once('/') {
            Some((_, part @ "data.pkl")) => part,
            Some((folder, key)) if folder.ends_with("/data") => key,
            _ => continue,
        };
        let mut content = Vec::new();
        let read = entry.take(left + 1).read_to_end(&mut content);
        read.with_context(|| format!("cannot read {name} of the archive"))?;
        left = left.checked_sub(content.len() as u64).context("the archive unpacks to more than it holds")?;
        match part {
            "data.pkl" => root = Some(pickle::read(&content)?.value),
            key => drop(storages.insert(key.to_string(), content)),
        }
    }
    Ok((root.context("a ZIP archive without data.pkl: not a PyTorch file")?, storages))
}

/// Reads a file from before PyTorch 1.6. After the magic number it contains the protocol version,
/// information about the system, the object, the keys of its storages, and the storages.
fn legacy(bytes: &[u8]) -> Result<(Value, Storages)> {
    let mut rest = bytes;
    let mut next = || -> Result<Pickle> {
        let pickle = pickle::read(rest)?;
        rest = &rest[pickle.len..];
        Ok(pickle)
    };
    let [_, _, root, keys] = [next()?, next()?, next()?, next()?];
    // Refuse an object that contains itself before searching it for storages.
    views(&root.value)?;
    // The widths of all storages are needed, also of those that belong to no weight, such as
    // optimizer state: the storages follow one another.
    let mut widths = HashMap::new();
    for storage in root.outside.iter().filter_map(|outside| TorchStorage::new(outside)) {
        widths.insert(storage.key, storage.dtype.width()?);
    }
    let mut storages = Storages::new();
    for key in keys.value.elements() {
        let key = key.as_str().context("a storage without a name")?.to_string();
        let width = *widths.get(&key).with_context(|| format!("storage {key} has an unknown dtype"))?;
        let (count, after) = rest.split_first_chunk::<8>().context("the file is cut short")?;
        let len = usize::try_from(u64::from_le_bytes(*count))?.checked_mul(width);
        let (content, after) =
            len.and_then(|len| after.split_at_checked(len)).context("the file is cut short")?;
        storages.insert(key, content.to_vec());
        rest = after;
    }
    Ok((root.value, storages))
}

/// A reference from a pickle to a storage.
struct TorchStorage {
    key: String,
    dtype: TorchDtype,
}

impl TorchStorage {
    /// Parses the elements (`storage`, dtype, key, …). `None` if the reference is to something
    /// else, such as the source code of a module's class.
    fn new(outside: &Value) -> Option<TorchStorage> {
        match &outside.elements()[..] {
            [Value::Str(what), Value::Global(kind), Value::Str(key), ..] if &**what == "storage" => {
                Some(TorchStorage { key: key.to_string(), dtype: TorchDtype::from_class(kind) })
            }
            _ => None,
        }
    }
}

/// The dtype of a storage.
#[derive(Debug, Clone)]
enum TorchDtype {
    F64,
    F32,
    F16,
    Bf16,
    /// A dtype that weights cannot have: integer, boolean or complex.
    Other(Rc<str>),
}

impl TorchDtype {
    /// The dtype of a storage class, such as `torch FloatStorage`.
    fn from_class(kind: &Rc<str>) -> TorchDtype {
        match &**kind {
            "torch DoubleStorage" => TorchDtype::F64,
            "torch FloatStorage" => TorchDtype::F32,
            "torch HalfStorage" => TorchDtype::F16,
            "torch BFloat16Storage" => TorchDtype::Bf16,
            _ => TorchDtype::Other(Rc::clone(kind)),
        }
    }

    fn is_float(&self) -> bool {
        match self {
            TorchDtype::F64 | TorchDtype::F32 | TorchDtype::F16 | TorchDtype::Bf16 => true,
            TorchDtype::Other(_) => false,
        }
    }

    /// The size of a value in bytes.
    fn width(&self) -> Result<usize> {
        Ok(match self {
            TorchDtype::F64 => 8,
            TorchDtype::F32 => 4,
            TorchDtype::F16 | TorchDtype::Bf16 => 2,
            TorchDtype::Other(kind) => match &**kind {
                "torch BoolStorage" | "torch ByteStorage" | "torch CharStorage" => 1,
                "torch QInt8Storage" | "torch QUInt8Storage" => 1,
                "torch ShortStorage" => 2,
                "torch IntStorage" | "torch QInt32Storage" => 4,
                "torch LongStorage" | "torch ComplexFloatStorage" => 8,
                "torch ComplexDoubleStorage" => 16,
                other => bail!("a storage of the unknown class {other}"),
            },
        })
    }

    /// Converts the bytes of one value.
    fn read(&self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (TorchDtype::F64, &[a, b, c, d, e, f, g, h]) => {
                f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32
            }
            (TorchDtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (TorchDtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (TorchDtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            _ => f32::NAN,
        }
    }
}

/// A tensor as a view of a storage.
struct View {
    name: String,
    /// The key of the storage.
    storage: String,
    dtype: TorchDtype,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Parses the arguments of `torch._utils._rebuild_tensor_v2`: storage, offset, size, stride.
    fn new(name: String, args: &[Value]) -> Result<View> {
        let [Value::Outside(storage), offset, size, stride, ..] = args else {
            bail!("a tensor without storage, offset, size and stride")
        };
        let TorchStorage { key, dtype } =
            TorchStorage::new(storage).context("a storage without dtype and key")?;
        let sizes = |value: &Value| -> Result<Vec<usize>> {
            value
                .elements()
                .iter()
                .map(|size| size.as_size().context("a size that is not a non-negative integer"))
                .collect()
        };
        Ok(View {
            name,
            storage: key,
            dtype,
            offset: offset.as_size().context("an offset that is not a non-negative integer")?,
            shape: sizes(size)?,
            strides: sizes(stride)?,
        })
    }

    /// The number of values; `None` if it overflows.
    fn len(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |len, &size| len.checked_mul(size))
    }

    /// The length of the storage that the tensor needs, in values; `None` if it overflows.
    fn reach(&self) -> Option<usize> {
        let steps = self
            .shape
            .iter()
            .zip(&self.strides)
            .map(|(size, stride)| size.checked_sub(1)?.checked_mul(*stride));
        steps.chain([Some(1)]).try_fold(self.offset, |sum, step| sum.checked_add(step?))
    }

    /// Copies the values from the storage.
    fn read(self, storages: &Storages) -> Result<HostTensor> {
        let name = &self.name;
        if let TorchDtype::Other(kind) = &self.dtype {
            bail!("weight {name} is stored in a {kind}; wanted f32, f16, bf16 or f64")
        }
        let width = self.dtype.width()?;
        let storage = storages
            .get(&self.storage)
            .with_context(|| format!("{name}: storage {} is missing", self.storage))?;
        ensure!(
            self.shape.len() == self.strides.len(),
            "{name}: the shape {:?} and the strides {:?} differ in length",
            self.shape,
            self.strides
        );
        let len = self.len().unwrap_or(usize::MAX);
        let reach = if len == 0 { Some(0) } else { self.reach() };
        ensure!(
            reach.and_then(|reach| reach.checked_mul(width)).is_some_and(|bytes| bytes <= storage.len()),
            "{name}: a shape of {:?} in a storage of {} bytes",
            self.shape,
            storage.len()
        );
        let mut values = Vec::with_capacity(len);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..len {
            let steps: usize = index.iter().zip(&self.strides).map(|(i, stride)| i * stride).sum();
            let at = (self.offset + steps) * width;
            values.push(self.dtype.read(&storage[at..at + width]));
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

/// Finds all tensors of a module, or of a dictionary of tensors or modules.
fn views(root: &Value) -> Result<Vec<View>> {
    let mut collector = Collector { views: Vec::new(), visits: 0 };
    collector.collect(root, "", 0)?;
    Ok(collector.views)
}

/// The limit on the nesting of modules.
const MAX_DEPTH: usize = 64;
/// The limit on the number of values that are visited in the search for tensors.
const MAX_VISITS: usize = 1 << 20;

/// The search for tensors in an object.
struct Collector {
    views: Vec<View>,
    visits: usize,
}

impl Collector {
    fn collect(&mut self, value: &Value, path: &str, depth: usize) -> Result<()> {
        self.visits += 1;
        ensure!(
            depth < MAX_DEPTH && self.visits < MAX_VISITS,
            "the modules are nested more deeply than in any model"
        );
        match value {
            Value::Call(call) => match &*call.of {
                "torch._utils _rebuild_tensor_v2" => {
                    self.views.push(View::new(path.to_string(), &call.args.elements())?);
                }
                "torch._utils _rebuild_parameter" => {
                    let args = call.args.elements();
                    self.collect(args.first().context("a parameter without a tensor")?, path, depth + 1)?;
                }
                "collections OrderedDict" => self.entries(&value.entries(), path, depth)?,
                // An object of TorchScript has its parameters, buffers and modules as attributes.
                script if script.starts_with("__torch__") => {
                    let entries = call.state.borrow().entries();
                    self.entries(&entries, path, depth)?;
                }
                _ => {
                    let state = call.state.borrow();
                    for part in ["_parameters", "_buffers", "_modules"] {
                        let entries = state.get(part).map(|part| part.entries()).unwrap_or_default();
                        self.entries(&entries, path, depth)?;
                    }
                }
            },
            Value::Dict(_) => self.entries(&value.entries(), path, depth)?,
            _ => {}
        }
        Ok(())
    }

    fn entries(&mut self, entries: &[(Value, Value)], path: &str, depth: usize) -> Result<()> {
        for (name, value) in entries {
            if let Some(name) = name.as_str() {
                let dot = if path.is_empty() { "" } else { "." };
                self.collect(value, &format!("{path}{dot}{name}"), depth + 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
