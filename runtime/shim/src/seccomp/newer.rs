//! The beginning of a filter: system calls that are newer than its profile answer ENOSYS, whatever the profile's default says.
//!
//! Input: a profile; output: instructions to put before the compiled ones. C libraries try a new system call and fall back to an older one when they
//! hear that the kernel does not have it; EPERM they take for the answer. Who wrote a profile could not name what came after it, so what is above the
//! highest number that it names, allowed or denied, counts as unknown. These are runc's rules (its `patchbpf`): each architecture by itself, only those
//! of the profile and the native one, and nothing where the default lets calls through. Holes below the highest number stay the default's.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

use super::{Result, architectures};

/// An architecture as a filter sees it.
struct Abi {
    arch: ScmpArch,
    /// The kernel's number (AUDIT_ARCH_…).
    number: u32,
    /// Instructions to pass over for a call with [`X32_BIT`], and for one without.
    jumps: [u8; 2],
}

/// Those whose calls reach the kernels that this program is built for.
const ABIS: [Abi; 5] = [
    Abi { arch: ScmpArch::X8664, number: 0xc000_003e, jumps: [2, 0] },
    Abi { arch: ScmpArch::X32, number: 0xc000_003e, jumps: [0, 2] },
    Abi { arch: ScmpArch::X86, number: 0x4000_0003, jumps: [0, 0] },
    Abi { arch: ScmpArch::Aarch64, number: 0xc000_00b7, jumps: [0, 0] },
    Abi { arch: ScmpArch::Arm, number: 0x4000_0028, jumps: [0, 0] },
];
/// Set in the numbers of x32's calls, and so tells it from x86-64 (__X32_SYSCALL_BIT).
const X32_BIT: u32 = 1 << 30;
/// Places in `struct seccomp_data`.
const CALL: u32 = 0;
const ARCHITECTURE: u32 = 4;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const IF_BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const NOT_THERE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The instructions as bytes; they go on with what comes after them for every other call.
pub fn answer(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let lets_through = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    if lets_through {
        return Ok(Vec::new());
    }
    let mut named = vec![ScmpArch::native()];
    for arch in architectures(profile) {
        named.push(arch?);
    }
    let of_profile = ABIS.iter().filter(|abi| named.contains(&abi.arch));
    let sections = of_profile.map(|abi| match highest(profile, abi.arch) {
        0 => Vec::new(),
        highest => section(abi, highest),
    });
    Ok(sections.flatten().collect())
}

/// The highest number that a profile names, 0 for none.
fn highest(profile: &LinuxSeccomp, arch: ScmpArch) -> u32 {
    let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
    // libseccomp has negative numbers for calls that an architecture does not have.
    let numbers = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok());
    numbers.filter_map(|call| u32::try_from(i32::from(call)).ok()).max().unwrap_or(0)
}

/// Passes over the rest of itself for a call that it is not about, to where the next one begins.
fn section(abi: &Abi, highest: u32) -> Vec<u8> {
    let [with_bit, without] = abi.jumps;
    [
        instruction(LOAD, [0, 0], ARCHITECTURE),
        instruction(IF_EQUAL, [0, 4], abi.number),
        instruction(LOAD, [0, 0], CALL),
        instruction(IF_BITS, [with_bit, without], X32_BIT),
        instruction(IF_GREATER, [0, 1], highest),
        instruction(RETURN, [0, 0], NOT_THERE),
    ]
    .concat()
}

/// `struct sock_filter`: the jumps count instructions to pass over, when something holds and when not.
fn instruction(code: u32, jumps: [u8; 2], value: u32) -> Vec<u8> {
    [&(code as u16).to_ne_bytes()[..], &jumps, &value.to_ne_bytes()].concat()
}
