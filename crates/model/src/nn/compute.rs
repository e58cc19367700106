//! Where a model is and what multiplies its numbers: chosen when it is made, and part of it from then on.

use burn::tensor::Device;
use tessera_kernels::Cpu;

/// A device and, on the processor, the instructions and numbers of the kernels.
#[derive(Debug, Clone)]
pub struct Compute {
    /// Where the weights are.
    pub device: Device,
    /// What kernels use.
    pub cpu: Cpu,
}

impl From<Cpu> for Compute {
    /// The processor, with this choice of instructions and numbers.
    fn from(cpu: Cpu) -> Compute {
        Compute { device: Device::flex(), cpu }
    }
}

impl From<&Device> for Compute {
    /// A device, with the best that this processor has.
    fn from(device: &Device) -> Compute {
        Compute { device: device.clone(), cpu: Cpu::best() }
    }
}

impl From<&Compute> for Compute {
    fn from(compute: &Compute) -> Compute {
        compute.clone()
    }
}
