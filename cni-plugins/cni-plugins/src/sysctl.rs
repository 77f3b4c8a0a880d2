//! Switches under `/proc/sys/net`, in the network namespace of the calling thread.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use ipnetwork::IpNetwork;

/// The kernel gives no value that is longer.
const VALUE_LIMIT: usize = 4096;

/// Sets a switch, unless it has the value already (the file may be read-only then).
pub(crate) fn set(name: &str, value: &str) -> io::Result<()> {
    // Opened once: the kernel looks for the name among those of all namespaces.
    match OpenOptions::new().read(true).write(true).open(path(name)) {
        Ok(file) if read(&file)? == value => Ok(()),
        Ok(file) => file.write_all_at(value.as_bytes(), 0),
        Err(error) => match get(name) {
            Ok(present) if present == value => Ok(()),
            _ => Err(error),
        },
    }
}

/// Reads a switch.
pub(crate) fn get(name: &str) -> io::Result<String> {
    read(&File::open(path(name))?)
}

fn read(file: &File) -> io::Result<String> {
    let mut value = [0; VALUE_LIMIT];
    let length = file.read_at(&mut value, 0)?;
    Ok(String::from_utf8_lossy(&value[..length]).trim().to_owned())
}

/// Sets a switch that is a wish: a kernel without IPv6 does not have it, and a container's may be read-only.
pub(crate) fn wish(name: &str, value: &str) {
    if let Err(error) = set(name, value) {
        eprintln!("set sysctl {name} to {value}: {error}");
    }
}

/// Lets a link of the host use its IPv6 addresses at once. The search for duplicates takes up to two seconds after a link's first
/// carrier, in which a gateway answers nobody, and without a link-local address finds no container that has not spoken yet.
pub(crate) fn skip_duplicate_detection(link: &str) {
    wish(&format!("ipv6/conf/{link}/accept_dad"), "0");
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
