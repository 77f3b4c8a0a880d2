//! Counters of a group, in one shape for both versions.

use std::path::Path;

use super::{Group, read as read_text};
use crate::Error;

/// Counters. What a kernel does not count is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nanoseconds of CPU time.
    pub cpu_usage_nanos: u64,
    /// Bytes of memory, page cache included.
    pub memory_usage: u64,
    /// Bytes of file pages that were not used lately.
    pub memory_inactive_file: u64,
    /// Bytes of anonymous memory.
    pub memory_rss: u64,
    /// Limit in bytes; `None`: none.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults with I/O.
    pub major_page_faults: u64,
    /// Tasks.
    pub pids: u64,
}

/// A v1 limit from here on means none: the kernel rounds "unlimited" to pages.
const V1_UNLIMITED: u64 = 1 << 62;

pub(super) fn read_number(file: &Path) -> Option<u64> {
    read_text(file).ok()?.trim().parse().ok()
}

/// The value of a line `key value`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

pub(super) fn read_stats_v2(directory: &Path) -> Result<Stats, Error> {
    let cpu = read_text(&directory.join("cpu.stat"))?;
    let memory = read_text(&directory.join("memory.stat")).unwrap_or_default();
    let key = |name| keyed(&memory, name).unwrap_or(0);
    Ok(Stats {
        cpu_usage_nanos: keyed(&cpu, "usage_usec").unwrap_or(0) * 1000,
        memory_usage: read_number(&directory.join("memory.current")).unwrap_or(0),
        memory_inactive_file: key("inactive_file"),
        memory_rss: key("anon"),
        memory_limit: read_number(&directory.join("memory.max")),
        page_faults: key("pgfault"),
        major_page_faults: key("pgmajfault"),
        pids: read_number(&directory.join("pids.current")).unwrap_or(0),
    })
}

pub(super) fn read(group: &Group) -> Result<Stats, Error> {
    if !group.layout.is_v1() {
        let directory = group.unified_directory().unwrap_or_default();
        return read_stats_v2(&directory);
    }
    let file =
        |controller: &str, name: &str| group.v1_directory(controller).map(|directory| directory.join(name));
    let number = |controller, name| file(controller, name).and_then(|path| read_number(&path));
    let memory = match file("memory", "memory.stat") {
        Some(path) => read_text(&path)?,
        None => String::new(),
    };
    let key = |name| keyed(&memory, name).unwrap_or(0);
    Ok(Stats {
        cpu_usage_nanos: number("cpuacct", "cpuacct.usage").unwrap_or(0),
        memory_usage: number("memory", "memory.usage_in_bytes").unwrap_or(0),
        memory_inactive_file: key("total_inactive_file"),
        memory_rss: key("total_rss"),
        memory_limit: number("memory", "memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED),
        page_faults: key("total_pgfault"),
        major_page_faults: key("total_pgmajfault"),
        pids: number("pids", "pids.current").unwrap_or(0),
    })
}
