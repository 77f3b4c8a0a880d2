//! Puts a device program on a v2 group: loads it, and attaches it to the group's directory.
//!
//! The attachment is the group's: it needs no process of ours to stay, and goes with the group. A group has one program of
//! ours; the next one takes its place in the same moment. Programs that somebody attached above the group decide as well.

use std::fs::File;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::program::Instruction;
use crate::Error;

/// Makes `program` the group's device program.
pub fn replace(directory: &Path, program: &[Instruction]) -> Result<(), Error> {
    // A descriptor with O_PATH would be refused.
    let group = File::open(directory).map_err(|error| Error::new("open", directory.display(), error))?;
    let failed = |call| move |error| Error::new(call, directory.display(), error);
    let program = load(program, None).map_err(|error| {
        let mut log = vec![0_u8; LOG_SIZE];
        let _ = load(program, Some(&mut log));
        Error::new("bpf BPF_PROG_LOAD", directory.display(), with_log(error, &log))
    })?;
    let present = match present(group.as_fd()).map_err(failed("bpf BPF_PROG_QUERY"))? {
        Some(id) => Some(by_id(id).map_err(failed("bpf BPF_PROG_GET_FD_BY_ID"))?),
        None => None,
    };
    attach(group.as_fd(), program.as_fd(), present.as_ref()).map_err(failed("bpf BPF_PROG_ATTACH"))
}

/// The fields of `union bpf_attr` that BPF_PROG_LOAD reads here.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Of BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// Of BPF_PROG_QUERY.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;
/// Shown by bpftool.
const NAME: &[u8; 16] = b"orlop_devices\0\0\0";
/// Of the verifier's log, and how much of its end is told.
const LOG_SIZE: usize = 64 << 10;
const LOG_LINES: usize = 5;
/// Programs that a group can have (BPF_CGROUP_MAX_PROGS).
const MAX_PROGRAMS: usize = 64;

/// `log` takes what the verifier has to say.
fn load(program: &[Instruction], log: Option<&mut [u8]>) -> std::io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let (log_size, log_buffer) = log.map_or((0, 0), |log| (log.len() as u32, log.as_mut_ptr() as u64));
    let mut attributes = Load {
        log_level: u32::from(log_size > 0),
        log_size,
        log_buffer,
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        name: *NAME,
        ..Load::default()
    };
    bpf(BPF_PROG_LOAD, &mut attributes).map(owned)
}

/// The error, with the end of the verifier's log: there it says why.
fn with_log(error: std::io::Error, log: &[u8]) -> std::io::Error {
    let log = String::from_utf8_lossy(log);
    let lines: Vec<&str> = log.trim_end_matches('\0').lines().collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("; ");
    if end.is_empty() { error } else { std::io::Error::new(error.kind(), format!("{error}: {end}")) }
}

/// The id of the program that is attached to this very group.
fn present(group: BorrowedFd<'_>) -> std::io::Result<Option<u32>> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut attributes = Query {
        target: group.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
        padding: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    Ok((attributes.count > 0).then_some(ids[0]))
}

fn by_id(id: u32) -> std::io::Result<OwnedFd> {
    // Id, then two fields that stay 0.
    bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0]).map(owned)
}

fn attach(group: BorrowedFd<'_>, program: BorrowedFd<'_>, replaced: Option<&OwnedFd>) -> std::io::Result<()> {
    let mut attributes = Attach {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replaced: replaced.map_or(0, |program| program.as_raw_fd().cast_unsigned()),
    };
    bpf(BPF_PROG_ATTACH, &mut attributes).map(drop)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: both callers pass what a call has just returned as a new descriptor, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> std::io::Result<i32> {
    // SAFETY: `attributes` is the structure of this command, as large as we say; what it points to outlives the call and is as
    // long as it says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result as i32) }
}
