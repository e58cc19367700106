//! The device that a command computes on: the CPU, or a GPU.
//!
//! A GPU needs a build with one of the features `vulkan` (NVIDIA, AMD and Intel), `metal` (Apple),
//! `webgpu` (any graphics driver, without 16-bit matrix units) or `cuda` (docs/devices.md).

use std::fmt::{Display, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::nn::Compute;
use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, FloatDType};
use serde::{Deserialize, Serialize};
use tessera_base::DeviceFailed;
use tessera_kernels::{Cpu, Precision};

/// The device of tensors and operations (`--device`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The CPU, with this program's own kernels.
    #[default]
    Cpu,
    /// The GPU with this index in the list of adapters.
    Gpu(usize),
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// If this program was built without support for GPUs, or this machine has no such device.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::flex()),
            DeviceChoice::Gpu(index) => {
                let device = gpu::open(index)?;
                GPU_OPEN.store(true, Ordering::Relaxed);
                Ok(device)
            }
        }
    }

    /// Runs `work`, which computes on this device. Tensor libraries panic if a GPU fails; this returns
    /// an error instead.
    ///
    /// # Errors
    /// Those of `work`, and [`DeviceFailed`].
    pub fn run<T>(self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self == DeviceChoice::Cpu {
            return work();
        }
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Err(DeviceFailed(format!("{self}: {text}")).into())
        })
    }

    /// Returns whether the device computes with f16.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn has_f16(self) -> Result<bool> {
        Ok(self != DeviceChoice::Cpu && self.open()?.supports_dtype(FloatDType::F16))
    }

    /// Returns the bytes of memory of a GPU, if the driver reports them.
    ///
    /// # Errors
    /// If this program was built without support for GPUs.
    pub fn memory_bytes(self) -> Result<Option<u64>> {
        Ok(match self {
            DeviceChoice::Cpu => None,
            // Only graphics APIs list adapters.
            DeviceChoice::Gpu(_)
                if cfg!(feature = "cuda")
                    && !cfg!(any(feature = "vulkan", feature = "metal", feature = "webgpu")) =>
            {
                None
            }
            DeviceChoice::Gpu(index) => {
                let adapters = adapters().with_context(|| format!("--device {self}"))?;
                adapters.get(index).and_then(|adapter| adapter.memory_bytes)
            }
        })
    }

    /// Opens the device, for models whose matrix products have this precision.
    ///
    /// # Errors
    /// If the device cannot be opened, or it or the CPU does not compute with this precision.
    pub fn with_precision(self, precision: Precision) -> Result<Compute> {
        let (on_cpu, dtype) = match (self, precision) {
            (DeviceChoice::Cpu, _) => (precision, DeviceDtype::Auto),
            (DeviceChoice::Gpu(_), Precision::Auto) => (Precision::Auto, DeviceDtype::Auto),
            (DeviceChoice::Gpu(_), Precision::F32) => (Precision::F32, DeviceDtype::F32),
            (DeviceChoice::Gpu(_), Precision::Bf16) => (Precision::Auto, DeviceDtype::Bf16),
        };
        self.compute(Cpu::new(on_cpu).map_err(anyhow::Error::msg)?, dtype)
    }

    /// Opens the device, for models whose products on it are of `dtype`. On the CPU, `cpu` decides.
    ///
    /// # Errors
    /// If the device cannot be opened, or does not compute with `dtype`.
    pub fn compute(self, cpu: Cpu, dtype: DeviceDtype) -> Result<Compute> {
        let device = self.open()?;
        let has = |dtype| self == DeviceChoice::Cpu || device.supports_dtype(dtype);
        let wanted = match dtype {
            DeviceDtype::Auto if has(FloatDType::BF16) => cpu.elsewhere(),
            DeviceDtype::Auto | DeviceDtype::F32 => FloatDType::F32,
            DeviceDtype::Bf16 => FloatDType::BF16,
            DeviceDtype::F16 => FloatDType::F16,
        };
        ensure!(
            wanted == FloatDType::F32 || has(wanted),
            "{self} does not compute with {}; use f32, or leave the choice to the program",
            format!("{wanted:?}").to_lowercase()
        );
        Ok(Compute { device, cpu: cpu.with_elsewhere(wanted) })
    }
}

/// Precision on devices other than the CPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// What matrix products multiply. The residual stream, layer norms, softmax, logits, the loss
    /// and the weights are f32 in any case (paper §D.2).
    pub dtype: DeviceDtype,
}

/// What matrix products on a device multiply (`device.dtype`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceDtype {
    /// bf16 if the device computes with it and `cpu.precision` is not `f32`, otherwise f32.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// f16. Training with it needs gradient scales, which `storage = "f16"` turns on (paper §D.1).
    F16,
}

/// An adapter of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adapter {
    /// The name that the driver reports.
    pub name: String,
    /// Discrete, integrated or virtual GPU, or a driver that computes on the processor.
    pub kind: String,
    /// The driver, with its version.
    pub driver: String,
    /// What it can do that matters here.
    pub features: String,
    /// Its memory in bytes; `None` if the driver does not report it.
    pub memory_bytes: Option<u64>,
}

/// Whether this process has opened a GPU. Tensor libraries panic if one fails.
pub fn is_gpu_open() -> bool {
    GPU_OPEN.load(Ordering::Relaxed)
}

static GPU_OPEN: AtomicBool = AtomicBool::new(false);

/// Returns the adapters of this machine, in the order of `--device gpu:N`.
///
/// # Errors
/// If this program was built without support for GPUs.
pub fn adapters() -> Result<Vec<Adapter>> {
    gpu::adapters()
}

/// A machine's adapters through a graphics API.
#[cfg(any(feature = "vulkan", feature = "metal", feature = "webgpu"))]
mod gpu {
    use std::collections::HashMap;
    use std::pin::pin;
    use std::sync::{Mutex, PoisonError};
    use std::task::{Context as TaskContext, Poll, Waker};

    use anyhow::{Context, Result, ensure};
    use burn::tensor::wgpu::{WgpuBackend, wgpu};
    use burn::tensor::{Device, DeviceKind};
    use wgpu::{DeviceType, Features};

    use super::{Adapter, DeviceChoice};

    /// The devices that were opened. A device can be initialized only once in a process.
    static OPEN: Mutex<Option<HashMap<usize, Device>>> = Mutex::new(None);

    /// The kinds of adapters, in the order in which they are numbered.
    const KINDS: [(DeviceType, &str); 4] = [
        (DeviceType::DiscreteGpu, "discrete GPU"),
        (DeviceType::IntegratedGpu, "integrated GPU"),
        (DeviceType::VirtualGpu, "virtual GPU"),
        (DeviceType::Cpu, "software driver"),
    ];

    /// The graphics API of this build. An adapter that several APIs offer is listed once.
    fn api() -> (WgpuBackend, wgpu::Backends) {
        if cfg!(feature = "vulkan") {
            (WgpuBackend::Vulkan, wgpu::Backends::VULKAN)
        } else if cfg!(feature = "metal") {
            (WgpuBackend::Metal, wgpu::Backends::METAL)
        } else if cfg!(target_os = "macos") {
            (WgpuBackend::Auto, wgpu::Backends::METAL)
        } else {
            (WgpuBackend::Auto, wgpu::Backends::VULKAN)
        }
    }

    /// Returns all adapters, each with its kind for the tensor library.
    fn found() -> Result<Vec<(wgpu::Adapter, DeviceKind)>> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let search = pin!(instance.enumerate_adapters(api().1));
        let Poll::Ready(all) = search.poll(&mut TaskContext::from_waker(Waker::noop())) else {
            anyhow::bail!("the search for adapters did not end");
        };
        let mut sorted = Vec::new();
        for (kind, _) in KINDS {
            let of_kind = all.iter().filter(|adapter| adapter.get_info().device_type == kind);
            for (index, adapter) in of_kind.enumerate() {
                let kind = match kind {
                    DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(index),
                    DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(index),
                    DeviceType::VirtualGpu => DeviceKind::VirtualGpu(index),
                    DeviceType::Cpu | DeviceType::Other => DeviceKind::Cpu,
                };
                sorted.push((adapter.clone(), kind));
            }
        }
        Ok(sorted)
    }

    /// See [`super::adapters`].
    pub fn adapters() -> Result<Vec<Adapter>> {
        let described = |(adapter, _): (wgpu::Adapter, DeviceKind)| {
            let info = adapter.get_info();
            let kind = KINDS.iter().find(|(kind, _)| *kind == info.device_type);
            let has = |feature, name| adapter.features().contains(feature).then_some(name);
            let features = [
                has(Features::SHADER_F16, "f16"),
                has(Features::SUBGROUP, "subgroups"),
                has(Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
            ];
            Adapter {
                name: info.name,
                kind: kind.map_or("other", |(_, name)| name).to_string(),
                driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
                features: features.into_iter().flatten().collect::<Vec<_>>().join(", "),
                memory_bytes: memory_bytes(&adapter),
            }
        };
        Ok(found()?.into_iter().map(described).collect())
    }

    fn memory_bytes(_adapter: &wgpu::Adapter) -> Option<u64> {
        #[cfg(all(any(feature = "vulkan", feature = "webgpu"), not(target_os = "macos")))]
        return tessera_kernels::gpu_memory_bytes(_adapter);
        #[cfg(not(all(any(feature = "vulkan", feature = "webgpu"), not(target_os = "macos"))))]
        None
    }

    /// Opens the adapter with this index.
    pub fn open(index: usize) -> Result<Device> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get_or_insert_default();
        if let Some(device) = open.get(&index) {
            return Ok(device.clone());
        }
        let choice = DeviceChoice::Gpu(index);
        let mut adapters = found()?;
        ensure!(
            !adapters.is_empty(),
            "--device {choice}: the graphics driver offers no adapter; install the driver of your card \
             (Debian: libvulkan1 and, without a card, mesa-vulkan-drivers), or leave --device out to use the processor"
        );
        ensure!(
            index < adapters.len(),
            "--device {choice}: wanted gpu:0 to gpu:{}, which `tessera inspect --devices` lists",
            adapters.len() - 1
        );
        let (adapter, kind) = adapters.swap_remove(index);
        let options = Device::wgpu_options().device_kind(kind).graphics_api(api().0);
        let device = options
            .init()
            .with_context(|| format!("--device {choice}: {} cannot be used", adapter.get_info().name))?;
        Ok(open.entry(index).or_insert(device).clone())
    }
}

/// NVIDIA's cards through CUDA.
#[cfg(all(feature = "cuda", not(any(feature = "vulkan", feature = "metal", feature = "webgpu"))))]
mod gpu {
    use anyhow::Result;
    use burn::tensor::Device;

    use super::Adapter;

    /// See [`super::adapters`].
    pub fn adapters() -> Result<Vec<Adapter>> {
        anyhow::bail!("a build with the feature cuda cannot list adapters; use nvidia-smi")
    }

    /// Opens the adapter with this index.
    pub fn open(index: usize) -> Result<Device> {
        Ok(Device::cuda(index))
    }
}

#[cfg(not(any(feature = "vulkan", feature = "metal", feature = "webgpu", feature = "cuda")))]
mod gpu {
    use anyhow::Result;
    use burn::tensor::Device;

    use super::{Adapter, DeviceChoice};

    const HOW: &str = "this program was built without support for GPUs; build it with `--features vulkan` (docs/devices.md)";

    /// See [`super::adapters`].
    pub fn adapters() -> Result<Vec<Adapter>> {
        anyhow::bail!(HOW)
    }

    /// Opens the adapter with this index.
    pub fn open(index: usize) -> Result<Device> {
        let choice = DeviceChoice::Gpu(index);
        anyhow::bail!("--device {choice}: {HOW}, or leave --device out to use the processor")
    }
}

impl Display for DeviceChoice {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Gpu(index) => write!(f, "gpu:{index}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |index: &str| index.parse().ok().map(DeviceChoice::Gpu);
        let choice = match text {
            "cpu" => Some(DeviceChoice::Cpu),
            "gpu" => Some(DeviceChoice::Gpu(0)),
            other => other.strip_prefix("gpu:").and_then(number),
        };
        choice.ok_or_else(|| format!("got {text:?}, wanted cpu, gpu or gpu:N (from 0)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip() {
        for (text, choice) in [("cpu", DeviceChoice::Cpu), ("gpu:3", DeviceChoice::Gpu(3))] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("gpu".parse(), Ok(DeviceChoice::Gpu(0)));
        for wrong in ["", "cuda", "gpu:", "gpu:-1", "gpu:x", "GPU", "libtorch"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn failure_of_a_gpu_is_an_error() {
        let lost = DeviceChoice::Gpu(1).run(|| -> Result<()> { panic!("lost {}", 1 + 1) }).unwrap_err();
        assert_eq!(lost.to_string(), "the device failed: gpu:1: lost 2");
        assert_eq!(tessera_base::Fault::of(&lost), tessera_base::Fault::Machine);
        assert!(DeviceChoice::Cpu.run(|| Ok(())).is_ok() && DeviceChoice::Gpu(0).run(|| Ok(())).is_ok());
    }

    #[cfg(not(any(feature = "vulkan", feature = "metal", feature = "webgpu", feature = "cuda")))]
    #[test]
    fn error_without_support_for_gpus_says_how_to_get_it() {
        let error = DeviceChoice::Gpu(1).open().unwrap_err().to_string();
        assert!(error.starts_with("--device gpu:1: ") && error.contains("--features vulkan"), "{error}");
    }
}
