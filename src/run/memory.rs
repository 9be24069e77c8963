//! What the operating system says of memory: how much this process may have, and how much it has.

use std::path::Path;

use crate::config::MemoryLimit;

/// Taken where nothing tells.
const UNKNOWN_BYTES: u64 = 1 << 30;

/// The ceiling in bytes: as configured, or the share of what the control group allows, or of what the machine has.
#[must_use]
pub fn ceiling_bytes(limit: MemoryLimit) -> u64 {
    match limit {
        MemoryLimit::Bytes(bytes) => bytes,
        MemoryLimit::Percent(percent) => allowed_bytes() / 100 * percent,
    }
}

fn allowed_bytes() -> u64 {
    let machine = kib_of(Path::new("/proc/meminfo"), "MemTotal:").unwrap_or(UNKNOWN_BYTES);
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // Each level may have a limit; inside a container its own is at the root.
    let own = group.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or("/").trim_matches('/').to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let limits = root.join(own).ancestors().take_while(|p| p.starts_with(root)).map(|p| p.join("memory.max")).collect::<Vec<_>>();
    let old = root.join("memory/memory.limit_in_bytes");
    let told = limits.iter().chain([&old]).filter_map(|p| std::fs::read_to_string(p).ok()?.trim().parse::<u64>().ok());
    told.filter(|bytes| *bytes > 0).chain([machine]).min().unwrap_or(machine)
}

/// What this process has in memory.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    kib_of(Path::new("/proc/self/status"), "VmRSS:")
}

/// The line `NAME N kB` of a file, in bytes.
fn kib_of(file: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_less_than_it_may() {
        let resident = resident_bytes().unwrap();
        assert!(resident > 100_000);
        let all = ceiling_bytes(MemoryLimit::Percent(100));
        assert!(resident < all);
        assert_eq!(ceiling_bytes(MemoryLimit::Percent(50)), all / 100 * 50);
        assert_eq!(ceiling_bytes(MemoryLimit::Bytes(7)), 7);
    }
}
