//! A container's counters: its control group and its writable layer.

use std::path::Path;

use linux::cgroup::Layout;

use super::state::now;
use crate::container::ContainerStats;
use crate::error::Error;

/// Files of a writable layer that are counted; beyond, the sum is a lower bound.
const MAX_FILES: u64 = 2_000_000;

pub(super) fn read(layout: &Layout, cgroup: &str, upper: &Path) -> Result<ContainerStats, Error> {
    let system = |source| Error::System { operation: format!("read stats of {cgroup}"), source };
    let stats = layout.group(cgroup).map_err(system)?.stats().map_err(system)?;
    let mut usage = Usage::default();
    usage.add(upper);
    let working_set = stats.memory_usage.saturating_sub(stats.memory_inactive_file);
    Ok(ContainerStats {
        timestamp: now(),
        cpu_usage_nanos: stats.cpu_usage_nanos,
        memory_working_set: working_set,
        memory_usage: stats.memory_usage,
        memory_rss: stats.memory_rss,
        memory_available: stats.memory_limit.map(|limit| limit.saturating_sub(working_set)),
        page_faults: stats.page_faults,
        major_page_faults: stats.major_page_faults,
        pids: stats.pids,
        writable_layer_bytes: usage.bytes,
        writable_layer_inodes: usage.inodes,
    })
}

#[derive(Default)]
struct Usage {
    bytes: u64,
    inodes: u64,
}

impl Usage {
    fn add(&mut self, directory: &Path) {
        use std::os::unix::fs::MetadataExt;
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            if self.inodes >= MAX_FILES {
                return;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            self.inodes += 1;
            self.bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                self.add(&entry.path());
            }
        }
    }
}
