//! What a model computes on: its device, and the kernels on the processor. A model gets both when
//! it is built and keeps them.

use burn::tensor::Device;
use tessera_kernels::Cpu;

/// A device, and the instructions and the precision of the kernels on the processor.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The device of the weights.
    pub device: Device,
    /// The instructions and the precision of the kernels.
    pub cpu: Cpu,
}

impl Compute {
    /// Whether models compute on the processor, with the kernels of this project.
    pub fn is_on_cpu(&self) -> bool {
        self.device == Device::flex()
    }
}

impl From<Cpu> for Compute {
    /// The processor, with these instructions and this precision.
    fn from(cpu: Cpu) -> Compute {
        Compute { device: Device::flex(), cpu }
    }
}

impl From<&Device> for Compute {
    /// A device, with the best instructions and precision of this processor.
    fn from(device: &Device) -> Compute {
        Compute { device: device.clone(), cpu: Cpu::best() }
    }
}

impl From<&Compute> for Compute {
    fn from(compute: &Compute) -> Compute {
        compute.clone()
    }
}
