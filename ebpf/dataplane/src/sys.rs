//! The `bpf` and `membarrier` calls that aya does not offer, and what a driver is called.

#![expect(unsafe_code, reason = "raw system calls")]

pub mod maps;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use aya::maps::MapData;

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

const BPF_XDP: u32 = 37;
/// By the driver, and by nobody in its place.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Where on an interface a program runs.
#[derive(Debug, Clone, Copy)]
pub struct TcxPlace {
    pub is_egress: bool,
    /// Before all that are there, not behind them.
    pub is_first: bool,
}

/// What a link attaches, and to what.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkInfo {
    pub kind: u32,
    pub id: u32,
    pub program: u32,
    padding: u32,
    /// A cgroup link: the cgroup's id. A link of TCX or XDP: the interface's index in the low half.
    pub target: u64,
    rest: [u64; 4],
}

#[repr(C)]
struct ObjectPath {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct InterfaceLink {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct LookupBatch {
    position: u64,
    next_position: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Elements that one call reads: more than the kernel has in one of a hash map's buckets, which it gives whole.
const BATCH: usize = 4096;

/// Every element of a hash map, in few system calls; what comes or goes meanwhile may be there or not. Refused for a map whose
/// keys or values have another size.
pub fn read_hash<const KEY: usize, const VALUE: usize>(
    map: &MapData,
) -> io::Result<Vec<([u8; KEY], [u8; VALUE])>> {
    let info = map.info().map_err(io::Error::other)?;
    if (info.key_size(), info.value_size()) != (KEY as u32, VALUE as u32) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (mut keys, mut values) = (vec![[0; KEY]; BATCH], vec![[0; VALUE]; BATCH]);
    let (mut all, mut position, mut next, mut begun) = (Vec::new(), 0_u32, 0_u32, false);
    loop {
        let mut attributes = LookupBatch {
            position: if begun { (&raw const position) as u64 } else { 0 },
            next_position: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map: map.fd().as_fd().as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let read = bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes);
        let ended = match read {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            read => read.map(|_| false)?,
        };
        let count = attributes.count as usize;
        all.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if ended {
            return Ok(all);
        }
        (position, begun) = (next, true);
    }
}

/// Opens a pinned object.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = ObjectPath { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives an object a name on a BPF file system.
pub fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd() as u32;
    bpf(BPF_OBJ_PIN, &mut ObjectPath { path: path.as_ptr() as u64, fd, flags: 0 }).map(drop)
}

/// Makes an interface of the calling thread's network namespace run a program behind those that it has, for as long as the link
/// is open or pinned.
pub fn attach_tcx(program: BorrowedFd<'_>, interface: u32, place: TcxPlace) -> io::Result<OwnedFd> {
    let attach_type = if place.is_egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS };
    // Before or behind none in particular.
    let flags = if place.is_first { BPF_F_BEFORE } else { BPF_F_AFTER };
    link_create(program, interface, attach_type, flags)
}

/// The same for XDP: makes the driver of an interface run a program.
pub fn attach_xdp(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    link_create(program, interface, BPF_XDP, XDP_FLAGS_DRV_MODE)
}

fn link_create(program: BorrowedFd<'_>, interface: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let program = program.as_raw_fd() as u32;
    let mut attributes = InterfaceLink {
        program,
        interface,
        attach_type,
        flags,
        relative: 0,
        padding: 0,
        expected_revision: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let length = size_of::<LinkInfo>() as u32;
    let mut attributes = InfoByFd { fd: link.as_raw_fd() as u32, length, info: (&raw mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// Makes `link` run another program, without a moment in which it runs none.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdate {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Ends an attachment at once, whoever else has the link open. One whose target is gone is ended already.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    match bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd() as u32]) {
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
        _ => Ok(()),
    }
}

/// `struct ethtool_drvinfo` of `linux/ethtool.h`, of which the driver's name is read.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const ETHTOOL_GDRVINFO: u32 = 3;

/// What the driver of an interface of the calling thread's network namespace is called; the kind of a link that has none.
pub fn driver(interface: &str) -> io::Result<String> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let any = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        flags,
        None,
    )?;
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: all zeros is an `ifreq`: integers, and a union of integers and pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the call reads the `ifreq` and writes the structure that its command has; both outlive it.
    let asked = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if asked < 0 {
        return Err(io::Error::last_os_error());
    }
    let driver = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(driver).into_owned())
}

/// The clock by which programs note when a client was led, in nanoseconds.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// How long [`wait_for_readers`] waits where the kernel offers no grace period to user space. Programs run for microseconds
/// with preemption of their thread at most in between; a reader that is stopped for longer than this may see a reused slot.
const READERS_PAUSE: Duration = Duration::from_millis(250);

/// Returns when every program that was running at the call has ended: the kernel waits for a grace period. A kernel that
/// keeps processors free of ticks (`nohz_full`) refuses that with EINVAL; there a pause has to do.
pub fn wait_for_readers() -> io::Result<()> {
    // SAFETY: the call takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Err(error);
    }
    std::thread::sleep(READERS_PAUSE);
    Ok(())
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `attributes` is the structure of this command, as large as we say; pointers in it outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
