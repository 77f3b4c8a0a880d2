//! Writes the program that decides about devices on v2: raw instructions, from rules. Pure.
//!
//! The kernel runs it for each open and mknod with `struct bpf_cgroup_dev_ctx`: one word with the kind of device in the low
//! half and the wanted access in the high one, then major and minor. 1 allows, 0 refuses with EPERM.

use super::{DeviceAccess, DeviceKind, DeviceRule};

/// One instruction: opcode, registers (destination in the low half), offset, immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

// Opcodes (kernel Documentation/bpf/standardization/instruction-set.rst).
pub const LOAD_WORD: u8 = 0x61;
pub const MOVE_32_REGISTER: u8 = 0xbc;
pub const MOVE_64: u8 = 0xb7;
pub const AND_32: u8 = 0x54;
pub const SHIFT_RIGHT_32: u8 = 0x74;
pub const JUMP_32_NOT_EQUAL: u8 = 0x56;
pub const EXIT: u8 = 0x95;

/// `linux/bpf.h`: BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_DEV_CHAR.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
/// BPF_DEVCG_ACC_MKNOD, _READ and _WRITE together.
const EVERY_ACCESS: i32 = 7;

// Registers.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Allows on the first rule that holds, and refuses at the end.
pub fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_32_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND_32, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        let checks = checks(rule);
        let everything = checks.is_empty();
        program.extend(allow_if(checks));
        if everything {
            // The kernel refuses a program with instructions that nothing leads to.
            return program;
        }
    }
    program.extend(verdict(0));
    program
}

/// What must hold for a rule: each jump leaves the rule when it does not.
fn checks(rule: &DeviceRule) -> Vec<Instruction> {
    let unless = |register, value| instruction(JUMP_32_NOT_EQUAL, register, 0, 0, value);
    let mut checks = Vec::new();
    match rule.kind {
        DeviceKind::Any => {}
        DeviceKind::Block => checks.push(unless(KIND, BLOCK)),
        DeviceKind::Character => checks.push(unless(KIND, CHARACTER)),
    }
    if rule.access != DeviceAccess::ALL {
        let denied = !rule.access.bits() & EVERY_ACCESS;
        checks.push(instruction(MOVE_32_REGISTER, SCRATCH, ACCESS, 0, 0));
        checks.push(instruction(AND_32, SCRATCH, 0, 0, denied));
        checks.push(unless(SCRATCH, 0));
    }
    checks.extend(rule.major.map(|major| unless(MAJOR, major.cast_signed())));
    checks.extend(rule.minor.map(|minor| unless(MINOR, minor.cast_signed())));
    checks
}

/// The checks, with their jumps set to the end of the rule, and the verdict behind them.
fn allow_if(checks: Vec<Instruction>) -> Vec<Instruction> {
    let mut body = checks;
    body.extend(verdict(1));
    let length = body.len();
    for (index, step) in body.iter_mut().enumerate() {
        if step.code == JUMP_32_NOT_EQUAL {
            // A rule has at most nine instructions.
            step.offset = (length - index - 1) as i16;
        }
    }
    body
}

fn verdict(value: i32) -> [Instruction; 2] {
    [instruction(MOVE_64, RESULT, 0, 0, value), instruction(EXIT, 0, 0, 0, 0)]
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}
