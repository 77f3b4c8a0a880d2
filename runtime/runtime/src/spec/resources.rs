//! CRI's resource fields as limits of a control group.

use shim_protocol::Limits;

use crate::container::Resources;
use crate::error::Error;

/// Zero and empty mean: not set.
pub fn limits(resources: &Resources, v1: bool) -> Result<Limits, Error> {
    if v1 && let Some(file) = resources.unified.keys().next() {
        return Err(Error::Unsupported {
            what: format!("unified resource \"{file}\": this machine has v1 controllers"),
        });
    }
    if let Some(file) = resources.unified.keys().find(|file| file.contains('/') || !file.contains('.')) {
        return Err(Error::InvalidArgument {
            field: "unified".into(),
            reason: format!("\"{file}\" is not the name of a control group file"),
        });
    }
    let number = |value: i64| (value != 0).then_some(value);
    Ok(Limits {
        cpu_period: (resources.cpu_period != 0).then_some(resources.cpu_period),
        cpu_quota: number(resources.cpu_quota),
        cpu_shares: (resources.cpu_shares != 0).then_some(resources.cpu_shares),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        memory: number(resources.memory_limit),
        memory_and_swap: number(resources.memory_swap_limit),
        pids: number(resources.pids_limit),
        hugepages: resources.hugepage_limits.clone(),
        unified: resources.unified.clone(),
    })
}
