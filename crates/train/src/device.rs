//! The device that training computes on: the CPU, or a GPU through LibTorch.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

use anyhow::Result;
use burn::tensor::Device;

/// The device of tensors and operations (`--device`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The CPU, with this program's own kernels.
    #[default]
    Cpu,
    /// The CUDA device with this index.
    Gpu(usize),
    /// The CPU, with LibTorch. This tests the code for GPUs on a machine without one.
    LibTorch,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// If this program was built without support for it, or this machine has no such device.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceChoice::Cpu => Ok(Device::flex()),
            DeviceChoice::Gpu(_) | DeviceChoice::LibTorch => self.libtorch(),
        }
    }

    // Burn deprecates LibTorch in favour of its own CUDA backend. That backend cannot be built from
    // a package registry alone.
    #[cfg(feature = "libtorch")]
    #[allow(deprecated)]
    fn libtorch(self) -> Result<Device> {
        let DeviceChoice::Gpu(index) = self else { return Ok(Device::libtorch()) };
        let found = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        anyhow::ensure!(
            index < found,
            "--device {self}: LibTorch finds {found} CUDA devices; install NVIDIA's driver and a LibTorch with CUDA (docs/devices.md), or leave --device out to use the processor"
        );
        tch::Cuda::cudnn_set_benchmark(true);
        Ok(Device::libtorch_cuda(index))
    }

    #[cfg(not(feature = "libtorch"))]
    fn libtorch(self) -> Result<Device> {
        anyhow::bail!(
            "--device {self}: this program was built without LibTorch; build it with `--features libtorch` (docs/devices.md), or leave --device out to use the processor"
        )
    }
}

impl Display for DeviceChoice {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Gpu(index) => write!(f, "gpu:{index}"),
            DeviceChoice::LibTorch => f.write_str("libtorch"),
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
            "libtorch" => Some(DeviceChoice::LibTorch),
            other => other.strip_prefix("gpu:").and_then(number),
        };
        choice.ok_or_else(|| format!("got {text:?}, wanted cpu, gpu, gpu:N (from 0) or libtorch"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip() {
        for (text, choice) in [
            ("cpu", DeviceChoice::Cpu),
            ("gpu:3", DeviceChoice::Gpu(3)),
            ("libtorch", DeviceChoice::LibTorch),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("gpu".parse(), Ok(DeviceChoice::Gpu(0)));
        for wrong in ["", "cuda", "gpu:", "gpu:-1", "gpu:x", "GPU"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }

    #[cfg(not(feature = "libtorch"))]
    #[test]
    fn error_without_libtorch_says_how_to_get_it() {
        let error = DeviceChoice::Gpu(1).open().unwrap_err().to_string();
        assert!(error.starts_with("--device gpu:1: ") && error.contains("--features libtorch"), "{error}");
    }
}
