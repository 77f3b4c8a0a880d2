//! Which devices a group may use: the v1 controller, or on v2 a BPF program of ours.
//!
//! The program (type CGROUP_DEVICE) gets access type, major and minor, compares them with each rule and allows on the first match.

use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{Group, write};
use crate::Error;

/// What kind of device a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Both.
    Any,
    /// Character devices.
    Character,
    /// Block devices.
    Block,
}

/// What a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAccess {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `m`
    pub mknod: bool,
}

impl DeviceAccess {
    /// Everything.
    pub const ALL: DeviceAccess = DeviceAccess { read: true, write: true, mknod: true };

    /// From letters `r`, `w`, `m`.
    pub fn parse(letters: &str) -> Option<DeviceAccess> {
        letters.chars().all(|letter| "rwm".contains(letter)).then(|| DeviceAccess {
            read: letters.contains('r'),
            write: letters.contains('w'),
            mknod: letters.contains('m'),
        })
    }

    fn letters(self) -> String {
        let pick = |wanted: bool, letter: &'static str| if wanted { letter } else { "" };
        format!("{}{}{}", pick(self.read, "r"), pick(self.write, "w"), pick(self.mknod, "m"))
    }

    /// BPF_DEVCG_ACC_MKNOD 1, READ 2, WRITE 4.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

/// Allows one device, or several where a number is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Kind.
    pub kind: DeviceKind,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Access.
    pub access: DeviceAccess,
}

pub(super) fn restrict(group: &Group, rules: &[DeviceRule]) -> Result<(), Error> {
    if let Some(directory) = group.v1_directory("devices") {
        write(&directory.join("devices.deny"), "a")?;
        return rules.iter().try_for_each(|rule| write(&directory.join("devices.allow"), &v1_line(rule)));
    }
    let Some(directory) = group.open_unified()? else { return Ok(()) };
    let program = load(&assemble(rules))?;
    attach(&directory, &program)
}

pub(super) fn v1_line(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |value| value.to_string());
    let kind = match rule.kind {
        DeviceKind::Any => "a",
        DeviceKind::Character => "c",
        DeviceKind::Block => "b",
    };
    format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access.letters())
}

/// One instruction: opcode, registers (destination in the low half), offset, immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

// Opcodes (kernel Documentation/bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const MOVE_32_REGISTER: u8 = 0xbc;
const MOVE_64: u8 = 0xb7;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers: 2 kind, 3 access, 4 major, 5 minor (struct bpf_cgroup_dev_ctx: access_type with the kind in the low half, major, minor).
pub(super) fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_32_REGISTER, 3, 2, 0, 0),
        instruction(AND_32, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        program.extend(assemble_rule(rule));
    }
    program.extend([instruction(MOVE_64, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// Every check jumps behind the rule when it does not hold; at its end the rule allows.
fn assemble_rule(rule: &DeviceRule) -> Vec<Instruction> {
    let mut checks: Vec<Vec<Instruction>> = Vec::new();
    // BPF_DEVCG_DEV_BLOCK 1, BPF_DEVCG_DEV_CHAR 2.
    match rule.kind {
        DeviceKind::Any => {}
        DeviceKind::Block => checks.push(vec![instruction(JUMP_NOT_EQUAL, 2, 0, 0, 1)]),
        DeviceKind::Character => checks.push(vec![instruction(JUMP_NOT_EQUAL, 2, 0, 0, 2)]),
    }
    if rule.access != DeviceAccess::ALL {
        let denied = !rule.access.bits() & 7;
        checks.push(vec![
            instruction(MOVE_32_REGISTER, 6, 3, 0, 0),
            instruction(AND_32, 6, 0, 0, denied),
            instruction(JUMP_NOT_EQUAL, 6, 0, 0, 0),
        ]);
    }
    if let Some(major) = rule.major {
        checks.push(vec![instruction(JUMP_NOT_EQUAL, 4, 0, 0, major.cast_signed())]);
    }
    if let Some(minor) = rule.minor {
        checks.push(vec![instruction(JUMP_NOT_EQUAL, 5, 0, 0, minor.cast_signed())]);
    }
    let mut body: Vec<Instruction> = checks.into_iter().flatten().collect();
    body.extend([instruction(MOVE_64, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    let length = body.len();
    for (index, step) in body.iter_mut().enumerate() {
        if step.code == JUMP_NOT_EQUAL {
            step.offset = (length - index - 1) as i16;
        }
    }
    body
}

/// The fields of `union bpf_attr` that BPF_PROG_LOAD reads here.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The fields of `union bpf_attr` that BPF_PROG_ATTACH reads here.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

fn load(program: &[Instruction]) -> Result<OwnedFd, Error> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes and what they point to outlive the call, and the kernel only reads them.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
    };
    if fd < 0 {
        return Err(Error::last("bpf BPF_PROG_LOAD", "device program"));
    }
    // SAFETY: the kernel just returned this descriptor to us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The attachment belongs to the group and goes with it. O_PATH descriptors are not accepted, so the directory is opened for reading.
fn attach(directory: &OwnedFd, program: &OwnedFd) -> Result<(), Error> {
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let readable = std::fs::File::open(&path).map_err(|error| Error::new("open", &path, error))?;
    let attributes = AttachAttributes {
        target: readable.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes outlive the call, and the kernel only reads them.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size_of::<AttachAttributes>())
    };
    if result < 0 { Err(Error::last("bpf BPF_PROG_ATTACH", "device program")) } else { Ok(()) }
}
