//! What a config computes with: the processor's kernels, and the dtype on a device.

use anyhow::{Result, ensure};
use tessera_kernels::Cpu;
use tessera_model::DeviceChoice;
use tessera_model::device::DeviceDtype;
use tessera_model::nn::Compute;

use super::{Config, TrainingDtype};
use crate::capacity::Stage;

impl Config {
    /// Returns the kernels of the configured precision.
    ///
    /// # Errors
    /// If this CPU does not support it.
    pub fn cpu(&self) -> Result<Cpu> {
        Cpu::new(self.cpu.precision).map_err(|why| anyhow::anyhow!("cpu.{why}"))
    }

    /// Returns the device and the kernels for models on `device`.
    ///
    /// # Errors
    /// As for [`Config::cpu`], and if there is no such device or it lacks the configured dtype.
    pub fn compute(&self, device: DeviceChoice) -> Result<Compute> {
        device.compute(self.cpu()?, self.device.dtype)
    }

    /// Returns the device and the kernels for training `stage` on `device`. Storage in f16 is real on
    /// a device that multiplies f16, and emulated elsewhere.
    ///
    /// # Errors
    /// As for [`Config::compute`], and if f16 is configured without gradient scales.
    pub(crate) fn training_compute(&self, device: DeviceChoice, stage: Stage) -> Result<Compute> {
        let stores_f16 = self.fit(stage).storage == TrainingDtype::F16;
        let is_f16 = device != DeviceChoice::Cpu && self.device.dtype == DeviceDtype::F16;
        ensure!(
            stores_f16 || !is_f16,
            "device.dtype = \"f16\" needs gradient scales: wanted cpu.precision = \"f32\" and storage = \"f16\" for the {stage}"
        );
        let dtype = match self.device.dtype {
            DeviceDtype::Auto if stores_f16 && device.has_f16()? => DeviceDtype::F16,
            dtype => dtype,
        };
        device.compute(self.cpu()?, dtype)
    }
}
