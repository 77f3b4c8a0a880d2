//! Limits of a group and the files of both versions that they end up in.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Group, read, write};
use crate::Error;

/// Limits; `None` and empty leave the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CFS period, microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota, microseconds; negative: none.
    pub cpu_quota: Option<i64>,
    /// v1 shares, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// CPUs in list format.
    pub cpuset_cpus: String,
    /// Memory nodes in list format.
    pub cpuset_mems: String,
    /// Bytes; negative: none.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; negative: none.
    pub memory_and_swap: Option<i64>,
    /// Tasks; negative: none.
    pub pids: Option<i64>,
    /// Huge pages: size (`2MB`) and bytes.
    pub hugepages: Vec<(String, u64)>,
    /// v2 files and their contents.
    pub unified: BTreeMap<String, String>,
}

/// cpu.weight for v1 shares: the curve that OCI runtimes use since 2025, which maps 1024 to 100 (opencontainers/cgroups, `ConvertCPUSharesToCgroupV2Value`).
pub fn weight_from_shares(shares: u64) -> u64 {
    if shares == 0 {
        return 0;
    }
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let logarithm = (shares as f64).log2();
    let exponent = (logarithm * logarithm + 125.0 * logarithm) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

pub(super) fn apply(group: &Group, limits: &Limits) -> Result<(), Error> {
    if group.layout.is_v1() { apply_v1(group, limits) } else { apply_v2(group, limits) }
}

fn apply_v1(group: &Group, limits: &Limits) -> Result<(), Error> {
    if let Some(file) = limits.unified.keys().next() {
        return Err(Error::new("set unified limit on a v1 machine", file, rustix::io::Errno::OPNOTSUPP));
    }
    let set =
        |controller: &str, file: &str, value: Option<String>| match (group.v1_directory(controller), value) {
            (_, None) => Ok(()),
            (Some(directory), Some(value)) => write(&directory.join(file), &value),
            (None, Some(_)) => {
                Err(Error::new("find v1 controller", controller, rustix::io::Errno::OPNOTSUPP))
            }
        };
    set("cpu", "cpu.shares", limits.cpu_shares.map(|value| value.to_string()))?;
    set("cpu", "cpu.cfs_period_us", limits.cpu_period.map(|value| value.to_string()))?;
    set("cpu", "cpu.cfs_quota_us", limits.cpu_quota.map(|value| value.to_string()))?;
    set("cpuset", "cpuset.cpus", filled(&limits.cpuset_cpus))?;
    set("cpuset", "cpuset.mems", filled(&limits.cpuset_mems))?;
    if let Some(directory) = group.v1_directory("memory") {
        apply_v1_memory(&directory, limits)?;
    } else {
        set("memory", "memory.limit_in_bytes", limits.memory.map(|value| value.to_string()))?;
    }
    set("pids", "pids.max", limits.pids.map(or_max))?;
    for (size, bytes) in &limits.hugepages {
        set("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), Some(bytes.to_string()))?;
    }
    Ok(())
}

/// The kernel keeps `limit <= memsw.limit` at every moment: whichever grows is written first.
fn apply_v1_memory(directory: &Path, limits: &Limits) -> Result<(), Error> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    let memory = limits.memory.map(|value| (LIMIT, value.to_string()));
    // Without swap accounting the file is absent, and then there is nothing to limit.
    let both = limits
        .memory_and_swap
        .filter(|_| directory.join(BOTH).exists())
        .map(|value| (BOTH, value.to_string()));
    let grows = limits.memory_and_swap.is_some_and(|wanted| {
        let now =
            read(&directory.join(BOTH)).ok().and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(0);
        wanted < 0 || wanted > now
    });
    let order = if grows { [both, memory] } else { [memory, both] };
    order.into_iter().flatten().try_for_each(|(file, value)| write(&directory.join(file), &value))
}

fn apply_v2(group: &Group, limits: &Limits) -> Result<(), Error> {
    let Some(directory) = group.unified_directory() else { return Ok(()) };
    for (file, value) in v2_files(limits) {
        match write(&directory.join(&file), &value) {
            Err(error) if error.is_not_found() && asks_nothing_of_swap(&file, &value) => {}
            written => written?,
        }
    }
    Ok(())
}

/// A kernel that cannot swap, or does not account for it, has no such file: there is nothing to forbid or to lift.
fn asks_nothing_of_swap(file: &str, value: &str) -> bool {
    file == "memory.swap.max" && matches!(value, "0" | "max")
}

/// The files of a v2 group that carry the limits, in the order in which they are written.
pub(super) fn v2_files(limits: &Limits) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut set = |file: &str, value: Option<String>| {
        if let Some(value) = value {
            files.push((file.to_owned(), value));
        }
    };
    set(
        "cpu.weight",
        limits.cpu_shares.filter(|shares| *shares > 0).map(|shares| weight_from_shares(shares).to_string()),
    );
    if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        let quota =
            limits.cpu_quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
        let period = limits.cpu_period.filter(|period| *period > 0).unwrap_or(100_000);
        set("cpu.max", Some(format!("{quota} {period}")));
    }
    set("cpuset.cpus", filled(&limits.cpuset_cpus));
    set("cpuset.mems", filled(&limits.cpuset_mems));
    set("memory.max", limits.memory.map(or_max));
    set(
        "memory.swap.max",
        limits.memory_and_swap.map(|both| match limits.memory {
            _ if both < 0 => "max".to_owned(),
            Some(memory) if memory >= 0 => (both - memory).max(0).to_string(),
            _ => both.to_string(),
        }),
    );
    set("pids.max", limits.pids.map(or_max));
    for (size, bytes) in &limits.hugepages {
        set(&format!("hugetlb.{size}.max"), Some(bytes.to_string()));
    }
    for (file, value) in &limits.unified {
        set(file, Some(value.clone()));
    }
    files
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
