//! Reads how much memory this machine has, on systems with `/proc`.

use std::fs;

/// Returns the bytes that a process may use: main memory and swap, or the limit of its container.
pub fn present_bytes() -> Option<f64> {
    let installed = installed(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits = limits.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    Some(limits.fold(installed, f64::min))
}

/// Returns the sum of main memory and swap in bytes, from the text of `/proc/meminfo`.
fn installed(meminfo: &str) -> Option<f64> {
    let kib = |key: &str| -> Option<f64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(1024.0 * (kib("MemTotal:")? + kib("SwapTotal:").unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_memory_and_swap_are_added() {
        let text = "MemTotal:       24644068 kB\nMemFree:        1 kB\nSwapTotal:      100 kB\n";
        assert_eq!(installed(text), Some(1024.0 * 24_644_168.0));
        assert_eq!(installed("MemFree: 1 kB\n"), None);
    }
}
