//! Switches under `/proc/sys/net`, in the network namespace of the calling thread.

use std::{fs, io, path::PathBuf};

use ipnetwork::IpNetwork;

/// Sets a switch, unless it has the value already (the file may be read-only then).
pub(crate) fn set(name: &str, value: &str) -> io::Result<()> {
    let path = path(name);
    if fs::read_to_string(&path)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value)
}

/// Reads a switch.
pub(crate) fn get(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(name))?.trim().to_owned())
}

/// Sets a switch that is a wish: a kernel without IPv6 does not have it, and a container's may be read-only.
pub(crate) fn wish(name: &str, value: &str) {
    if let Err(error) = set(name, value) {
        eprintln!("set sysctl {name} to {value}: {error}");
    }
}

/// Lets the host forward packets of the families of these addresses. The error names the switch.
pub(crate) fn forward(addresses: &[IpNetwork]) -> Result<(), String> {
    for (is_ipv4, switch) in [(true, "ipv4/ip_forward"), (false, "ipv6/conf/all/forwarding")] {
        if addresses.iter().any(|address| address.is_ipv4() == is_ipv4) {
            set(switch, "1").map_err(|error| format!("set sysctl {switch}: {error}"))?;
        }
    }
    Ok(())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}
