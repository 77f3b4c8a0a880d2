//! What the machine itself knows and settings default to: host name, address, own folder, the control group trees.
//!
//! Reads only, and never fails: what cannot be read is `None`, and validation then asks for the flag.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use linux::cgroup::Layout;

/// Where control groups are mounted on every distribution.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Defaults that differ from machine to machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub hostname: Option<String>,
    /// As [`route_source`] tells it.
    pub address: Option<Ipv4Addr>,
    /// Where this program is.
    pub program_dir: Option<PathBuf>,
    /// Where the root of the unified control group tree is mounted.
    pub unified_hierarchy: Option<PathBuf>,
    /// Limits are set by controllers of cgroup v1.
    pub cgroup_v1: bool,
}

impl Machine {
    /// Asks a machine whose control groups are mounted at or below `cgroup_root`.
    pub fn read(cgroup_root: &Path) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            hostname: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()),
            address: route_source(),
            program_dir: std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned())),
            unified_hierarchy: unified_hierarchy(&mounts),
            cgroup_v1: Layout::detect(cgroup_root).is_ok_and(|layout| layout.is_v1()),
        }
    }
}

/// The address that the default route sends from. Connecting a UDP socket sends nothing; it only makes the kernel choose a route and with it the source address.
pub fn route_source() -> Option<Ipv4Addr> {
    // TEST-NET-1 of RFC 5737: only the default route leads there.
    const SOMEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(SOMEWHERE).ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(address) if !address.ip().is_loopback() => Some(*address.ip()),
        _ => None,
    }
}

/// The first cgroup2 mount (proc_pid_mountinfo(5): the type follows the separator ` - `).
pub(super) fn unified_hierarchy(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        (rest.split(' ').next()? == "cgroup2").then_some(())?;
        Some(PathBuf::from(fields.split(' ').nth(4)?))
    })
}
