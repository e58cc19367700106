//! The memory of a GPU, which graphics APIs that hide the hardware do not report.

use burn::tensor::wgpu::wgpu::{Adapter, hal::api::Vulkan};

/// The bit of a heap in the memory of the device itself (`VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`).
const DEVICE_LOCAL: u32 = 1;

/// Returns the bytes of memory of an adapter: its largest heap in the memory of the device. It is
/// `None` unless Vulkan drives the adapter.
pub fn gpu_memory_bytes(adapter: &Adapter) -> Option<u64> {
    // SAFETY: the adapter is neither destroyed nor changed, and its instance outlives both
    // references.
    #[allow(unsafe_code)]
    let heaps = unsafe {
        let adapter = adapter.as_hal::<Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = &heaps.memory_heaps[..heaps.memory_heap_count as usize];
    let local = heaps.iter().filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
    local.map(|heap| heap.size).max()
}
