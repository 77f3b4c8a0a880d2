//! The configuration of `host-device`: which link, by the reference plugin's keys.

use std::path::{Path, PathBuf};

use cni::{Dns, ErrorReply, json::Object};
use linux::netlink::MacAddress;

use super::find;
use crate::{
    delegate,
    plugin::{Request, decoding},
};

const DEVICES: &str = "/sys/devices/";

/// What to lend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// An error where nothing, or nothing that is there, is named. Only ADD and CHECK need it: GC and STATUS are not told
    /// `runtimeConfig`, and a DEL may come after the device has gone.
    selector: Result<Selector, ErrorReply>,
    pub(super) dns: Dns,
    pub(super) ipam: Option<String>,
}

/// How the link is named; of several keys the first counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    /// `device`.
    Name(String),
    /// `hwaddr`.
    Hardware(MacAddress),
    /// `kernelpath`, below `/sys/devices`.
    KernelPath(PathBuf),
    /// `pciBusID`, or `runtimeConfig.deviceID` of a PCI device.
    Pci(String),
    /// `runtimeConfig.deviceID` of a device on the auxiliary bus.
    Auxiliary(String),
}

impl Config {
    pub(crate) fn read(request: &Request) -> Result<Self, ErrorReply> {
        let root = request.root();
        Ok(Self {
            selector: selector(&root),
            dns: Dns::read(&root).map_err(decoding)?,
            ipam: delegate::ipam_type(request)?,
        })
    }

    pub(super) fn selector(&self) -> Result<&Selector, ErrorReply> {
        self.selector.as_ref().map_err(Clone::clone)
    }
}

fn selector(root: &Object<'_>) -> Result<Selector, ErrorReply> {
    let text = |key: &str| -> Result<Option<String>, ErrorReply> {
        let text = root.string(key).map_err(decoding)?;
        Ok(text.filter(|text| !text.is_empty()).map(str::to_owned))
    };
    let (device, hardware) = (text("device")?, text("hwaddr")?);
    let (kernel_path, pci) = (text("kernelpath")?, text("pciBusID")?);
    let given = of_runtime(root)?;
    if let Some(name) = device {
        cni::interface_name(&name).map_err(|error| ErrorReply::config(format!("key \"device\": {error}")))?;
        return Ok(Selector::Name(name));
    }
    if let Some(hardware) = hardware {
        return hardware.parse().map(Selector::Hardware).map_err(ErrorReply::config);
    }
    if let Some(path) = kernel_path {
        return kernel_path_of(&path);
    }
    if let Some(given) = given {
        return Ok(given);
    }
    match pci {
        Some(pci) => one_name("pciBusID", pci).map(Selector::Pci),
        None => Err(ErrorReply::config(r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#)),
    }
}

/// What a device plugin allotted to the container, on whichever bus it is.
fn of_runtime(root: &Object<'_>) -> Result<Option<Selector>, ErrorReply> {
    let Some(runtime) = root.object("runtimeConfig").map_err(decoding)? else { return Ok(None) };
    let id = runtime.string("deviceID").map_err(decoding)?.filter(|id| !id.is_empty());
    let Some(id) = id else { return Ok(None) };
    let id = one_name("runtimeConfig.deviceID", id.to_owned())?;
    if Path::new(find::PCI).join(&id).exists() {
        Ok(Some(Selector::Pci(id)))
    } else if Path::new(find::AUXILIARY).join(&id).exists() {
        Ok(Some(Selector::Auxiliary(id)))
    } else {
        Err(ErrorReply::config(format!("runtime config DeviceID {id} not found or unsupported")))
    }
}

fn kernel_path_of(path: &str) -> Result<Selector, ErrorReply> {
    if path.starts_with(DEVICES) && !path.split('/').any(|part| part == "..") {
        return Ok(Selector::KernelPath(PathBuf::from(path)));
    }
    let message = format!("kernel device path {path:?} must be absolute and begin with {DEVICES}");
    Err(ErrorReply::config(message))
}

/// The name of a folder on a bus of sysfs, and no way out of it.
fn one_name(key: &str, name: String) -> Result<String, ErrorReply> {
    if name.contains('/') || name == "." || name == ".." {
        let message = format!("key {key:?}: {name:?}: expected the name of a device such as 0000:3b:00.1");
        return Err(ErrorReply::config(message));
    }
    Ok(name)
}

#[cfg(test)]
mod tests;
