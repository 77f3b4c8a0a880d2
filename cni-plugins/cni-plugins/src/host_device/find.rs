//! Finding the link that is to be lent, by netlink or through sysfs.

use std::{fs, io, path::Path};

use linux::netlink::{Link, Netlink};

use super::config::Selector;

pub(super) const PCI: &str = "/sys/bus/pci/devices";
pub(super) const AUXILIARY: &str = "/sys/bus/auxiliary/devices";
/// Drivers that hand a network device to a process, which then is no link.
const USERSPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// The link, which must be on the host.
pub(super) async fn device(host: &Netlink, selector: &Selector) -> Result<Link, String> {
    let name = match selector {
        Selector::Name(name) => name.clone(),
        Selector::Hardware(mac) => {
            let links = host.links().await.map_err(|error| error.to_string())?;
            let found = links.into_iter().find(|link| link.mac == Some(*mac));
            return found.ok_or_else(|| format!("no link has the hardware address {mac}"));
        }
        Selector::KernelPath(path) => first_in(&path.join("net"))?,
        Selector::Pci(address) => of_pci(&Path::new(PCI).join(address))?,
        Selector::Auxiliary(name) => first_in(&Path::new(AUXILIARY).join(name).join("net"))?,
    };
    host.link(&name).await.map_err(|error| error.to_string())
}

/// Whether a PCI device's driver is one of those that leave no link.
pub(super) fn has_userspace_driver(selector: &Selector) -> Result<bool, String> {
    let Selector::Pci(address) = selector else { return Ok(false) };
    let link = Path::new(PCI).join(address).join("driver");
    let driver = fs::read_link(&link).map_err(|error| format!("{}: {error}", link.display()))?;
    let name = driver.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(USERSPACE_DRIVERS.contains(&name))
}

/// A device behind virtio has its links one folder further down.
fn of_pci(device: &Path) -> Result<String, String> {
    let own = device.join("net");
    if own.exists() {
        return first_in(&own);
    }
    let behind = names(device).unwrap_or_default().into_iter().filter(|name| name.starts_with("virtio"));
    let folder = behind.map(|name| device.join(name).join("net")).find(|folder| folder.exists());
    match folder {
        Some(folder) => first_in(&folder),
        None => Err(format!("no net directory under pci device {}", device.display())),
    }
}

fn first_in(folder: &Path) -> Result<String, String> {
    let names = names(folder).map_err(|error| format!("read {}: {error}", folder.display()))?;
    let first = names.into_iter().min();
    first.ok_or_else(|| format!("no network device in {}", folder.display()))
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
