//! CPU time of everything in the cluster's machines: server, agent, shims, their short-lived workers and the containers themselves.
//!
//! In: the counter of the control group that all machines are below. Work that the kernel does in threads of its own is nobody's there.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use linux::cgroup::Layout;

use crate::up::state::CGROUP;

/// CPU time so far.
pub fn spent() -> Result<Duration> {
    let layout = Layout::detect(Path::new("/sys/fs/cgroup")).context("find the control groups")?;
    let stats = layout.group(CGROUP)?.stats().context("read the CPU time of the cluster's machines")?;
    Ok(Duration::from_nanos(stats.cpu_usage_nanos))
}
