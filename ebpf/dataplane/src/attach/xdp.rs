//! XDP on the uplinks, where it is wanted: pinned links like the others, by a driver's own hook alone.
//!
//! An uplink is one of: a tunnel, or no Ethernet -> left out, for there is no driver; refused -> an error or a line of the log, as is wanted; attached, or
//! adopted where an earlier process attached it. What is not wanted any more, or cannot be given our program, goes with the stale links.

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya::Ebpf;
use aya::programs::Xdp;

use super::links::{self, Target};
use super::{Attached, OpenError, Uplink, ensure_loaded, get, identity, uplinks};
use crate::sys;
use crate::{Acceleration, Options};

pub const PROGRAM: &str = "orlop_xdp";
/// Programs for packets in several buffers; links of XDP programs are older.
const SINCE: &str = "5.18";

const VETH: &str = "veth";
const BOND: &str = "bonding";
/// Links that put packets into others, and the overlay among them.
const TUNNELS: &[&str] = &["vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan"];

/// Why an uplink has no XDP.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("its driver cannot be told")]
    Unknown(#[source] io::Error),
    #[error(
        "it is a veth link: the checksums of its packets may have to be made yet, and XDP would spoil them"
    )]
    PartialChecksums,
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
        Ok(driver) if TUNNELS.contains(&driver.as_str()) => return Ok(Ok(())),
        Ok(driver) if driver == VETH && acceleration != Acceleration::EvenVeth => {
            return Ok(Err(Refusal::PartialChecksums));
        }
        Ok(driver) if driver == BOND => return Ok(Err(Refusal::Bond)),
        Ok(driver) => driver,
        Err(error) => return Ok(Err(Refusal::Unknown(error))),
    };
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

fn refusal(source: io::Error, interface: &str, driver: String) -> Refusal {
    match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Refusal::NoXdp { driver },
        Some(libc::EBUSY) => Refusal::Taken { interface: interface.to_owned() },
        _ => Refusal::Refused { driver, source },
    }
}
