//! XDP on the uplinks, where it is wanted: pinned links like the others, by a driver's own hook alone.
//!
//! An uplink is one of: a tunnel, or no Ethernet -> left out, for there is no driver; refused -> an error or a line of the log, as is wanted; attached, or
//! adopted where an earlier process attached it. What is not wanted any more, or cannot be given our program, goes with the stale links.

use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::Ebpf;
use aya::programs::Xdp;

use super::links::{self, Target};
use super::{Attached, OpenError, Uplink, ensure_loaded, get, identity, uplinks};
use crate::sys;
use crate::{Acceleration, Options};

#[cfg(test)]
mod tests;

pub const PROGRAM: &str = "orlop_xdp";
/// Programs for packets in several buffers; links of XDP programs are older.
const SINCE: &str = "5.18";

const VETH: &str = "veth";
/// TUN links without Ethernet have none of the hardware's kind that is asked for, so these are TAPs.
const TAP: &str = "tun";
/// Both sides of a link of Xen.
const XEN: &str = "vif";
const BOND: &str = "bonding";
/// Links that put packets into others, and the overlay among them.
const TUNNELS: &[&str] = &["vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan"];

/// Why an uplink has no XDP.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("its driver cannot be told")]
    Unknown(#[source] io::Error),
    #[error("it is {link}: the checksums of its packets may have to be made yet, and XDP would spoil them")]
    PartialChecksums { link: &'static str },
    #[error("it is a bond, whose packets are those of other links to XDP")]
    Bond,
    #[error("its driver, {driver}, has no XDP")]
    NoXdp { driver: String },
    #[error("it has another XDP program, which `ip link set dev {interface} xdp off` removes")]
    Taken { interface: String },
    #[error(
        "its driver, {driver}, refuses XDP: the kernel's log may say whether its MTU, queues or offloads are in the way"
    )]
    Refused { driver: String, source: io::Error },
}

/// Whether there is an uplink that may be accelerated.
pub fn is_wanted(options: &Options, uplinks: &[Uplink<'_>]) -> bool {
    options.uplink_acceleration != Acceleration::Disabled && uplinks.iter().any(is_ethernet)
}

fn is_ethernet(uplink: &Uplink<'_>) -> bool {
    uplink.hardware == u32::from(libc::ARPHRD_ETHER)
}

/// Makes the drivers of the uplinks run the program.
pub fn attach(
    programs: &mut Ebpf,
    options: &Options,
    pins: &Path,
    wanted: &mut Attached,
) -> Result<(), OpenError> {
    let uplinks = uplinks(options)?;
    if !is_wanted(options, &uplinks) {
        return Ok(());
    }
    for uplink in uplinks.iter().filter(|uplink| is_ethernet(uplink)) {
        match attach_one(programs, options.uplink_acceleration, uplink, pins, wanted)? {
            Ok(()) => {}
            Err(refusal) if options.uplink_acceleration == Acceleration::BestEffort => {
                let error = &refusal as &dyn Error;
                tracing::warn!(uplink = uplink.name, error, "packets of this uplink are not accelerated");
            }
            Err(source) => {
                return Err(OpenError::NoAcceleration { interface: uplink.name.to_owned(), source });
            }
        }
    }
    Ok(())
}

fn attach_one(
    programs: &mut Ebpf,
    acceleration: Acceleration,
    uplink: &Uplink<'_>,
    pins: &Path,
    wanted: &mut Attached,
) -> Result<Result<(), Refusal>, OpenError> {
    let driver = match sys::driver(uplink.name) {
        Ok(driver) => driver,
        Err(error) => return Ok(Err(Refusal::Unknown(error))),
    };
    match judge(&driver, || tun_flags(uplink.name), acceleration) {
        Ok(Place::Driver) => {}
        Ok(Place::Tunnel) => return Ok(Ok(())),
        Err(refusal) => return Ok(Err(refusal)),
    }
    let program: &mut Xdp = get(programs, PROGRAM)?;
    ensure_loaded(program.load(), PROGRAM)?;
    let (fd, loaded) = identity(program.fd(), program.info(), PROGRAM)?;
    let pin = links::pin(pins, PROGRAM, Some(uplink.name));
    let (shown, id) = (uplink.name.to_owned(), u64::from(uplink.index));
    let target = Target { shown, id, pin, program: PROGRAM, since: SINCE };
    let attached = links::attach(&target, fd.as_fd(), &loaded, |index| sys::attach_xdp(fd.as_fd(), index))?;
    if let Err(source) = attached {
        return Ok(Err(refusal(source, uplink.name, driver)));
    }
    wanted.links.insert(target.pin);
    Ok(Ok(()))
}

/// What an Ethernet link is to XDP.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Tunnel,
    /// The kernel knows whether it can.
    Driver,
}

/// What a driver's links are; `tun_flags` are those of a TAP, as far as they can be told. That the host leaves checksums to a guest `virtio_net` switches
/// off with the program, or refuses it.
fn judge(
    driver: &str,
    tun_flags: impl FnOnce() -> Option<u32>,
    acceleration: Acceleration,
) -> Result<Place, Refusal> {
    let link = match driver {
        _ if TUNNELS.contains(&driver) => return Ok(Place::Tunnel),
        BOND => return Err(Refusal::Bond),
        VETH if acceleration != Acceleration::EvenVeth => "a veth link",
        // Whoever writes a packet without such a header makes its checksum.
        TAP if tun_flags().is_none_or(|flags| flags & libc::IFF_VNET_HDR as u32 != 0) => {
            "a TAP link as virtual machines have (vnet_hdr)"
        }
        // A packet that another guest of the host made comes as that left it.
        XEN => "a link of Xen",
        _ => return Ok(Place::Driver),
    };
    Err(Refusal::PartialChecksums { link })
}

fn tun_flags(interface: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/tun_flags")).ok()?;
    u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

fn refusal(source: io::Error, interface: &str, driver: String) -> Refusal {
    match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Refusal::NoXdp { driver },
        Some(libc::EBUSY) => Refusal::Taken { interface: interface.to_owned() },
        _ => Refusal::Refused { driver, source },
    }
}
