//! What rules mean: by v1 words, and by running the v2 program in a small interpreter.

use super::program::{
    AND_32, EXIT, Instruction, JUMP_32_NOT_EQUAL, LOAD_WORD, MOVE_32_REGISTER, MOVE_64, SHIFT_RIGHT_32,
    assemble,
};
use super::*;

fn rule(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
    DeviceRule { kind, major, minor, access: DeviceAccess::parse(access).unwrap() }
}

#[test]
fn rules_in_v1_words() {
    let null = rule(DeviceKind::Character, Some(1), Some(3), "rw");
    assert_eq!(v1_line(&null), "c 1:3 rw");
    assert_eq!(v1_line(&rule(DeviceKind::Any, None, None, "rwm")), "a *:* rwm");
    assert_eq!(v1_line(&rule(DeviceKind::Block, Some(8), None, "m")), "b 8:* m");
    assert_eq!(DeviceAccess::parse("rx"), None);
}

/// Runs a program as the kernel would. Panics where the kernel's verifier would refuse it.
fn run(program: &[Instruction], context: [u32; 3]) -> bool {
    let mut registers = [0_u64; 11];
    let mut next = 0;
    loop {
        let step = program[next];
        let (destination, source) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
        let low = registers[destination] as u32;
        next += 1;
        match step.code {
            LOAD_WORD => registers[destination] = context[usize::try_from(step.offset / 4).unwrap()].into(),
            MOVE_32_REGISTER => registers[destination] = u64::from(registers[source] as u32),
            MOVE_64 => registers[destination] = i64::from(step.immediate).cast_unsigned(),
            AND_32 => registers[destination] = u64::from(low & step.immediate.cast_unsigned()),
            SHIFT_RIGHT_32 => registers[destination] = u64::from(low >> step.immediate),
            JUMP_32_NOT_EQUAL if low != step.immediate.cast_unsigned() => {
                next = next.strict_add_signed(step.offset.into());
            }
            JUMP_32_NOT_EQUAL => {}
            EXIT => return registers[0] == 1,
            other => panic!("opcode {other:#x}"),
        }
    }
}

/// `b 8:0 rw` as the kernel asks: the word of kind and access, major, minor.
fn request(kind: char, major: u32, minor: u32, access: &str) -> [u32; 3] {
    let kind = if kind == 'b' { 1 } else { 2 };
    let access = DeviceAccess::parse(access).unwrap().bits().cast_unsigned();
    [access << 16 | kind, major, minor]
}

#[test]
fn the_program_allows_what_a_rule_names_and_nothing_else() {
    use DeviceKind::{Any, Block, Character};
    let rules = [
        rule(Character, None, None, "m"),
        rule(Character, Some(1), Some(3), "rwm"),
        rule(Character, Some(136), None, "rw"),
        rule(Character, Some(1), Some(9), "r"),
        rule(Block, Some(8), Some(1), "r"),
        rule(Block, Some(8), Some(1), "w"),
        rule(Any, Some(200), Some(u32::MAX), "r"),
    ];
    let program = assemble(&rules);
    for (asked, allowed) in [
        (request('c', 1, 3, "rw"), true),
        (request('c', 1, 3, "rwm"), true),
        (request('c', 1, 5, "r"), false),
        (request('c', 1, 5, "m"), true),
        (request('c', 136, 7, "rw"), true),
        // Wanted together, allowed by no single rule.
        (request('c', 136, 7, "rwm"), false),
        (request('c', 1, 9, "r"), true),
        (request('c', 1, 9, "w"), false),
        (request('c', 1, 9, "rw"), false),
        (request('b', 1, 3, "r"), false),
        (request('b', 8, 0, "r"), false),
        (request('b', 8, 0, "m"), false),
        (request('c', 8, 1, "r"), false),
        (request('b', 8, 1, "r"), true),
        (request('b', 8, 1, "rw"), false),
        (request('b', 200, u32::MAX, "r"), true),
        (request('c', 200, u32::MAX, "r"), true),
        (request('c', 200, 7, "r"), false),
        (request('c', 0, 0, "rw"), false),
    ] {
        assert_eq!(run(&program, asked), allowed, "{asked:?}");
    }
    assert!(!run(&assemble(&[]), request('c', 1, 3, "r")));
}

#[test]
fn a_rule_for_everything_is_the_programs_end() {
    let rules = [
        rule(DeviceKind::Block, Some(8), None, "r"),
        rule(DeviceKind::Any, None, None, "rwm"),
        rule(DeviceKind::Character, Some(1), Some(3), "r"),
    ];
    let program = assemble(&rules);
    assert!(run(&program, request('b', 254, 0, "rwm")) && run(&program, request('c', 10, 1, "w")));
    assert_eq!(program.iter().filter(|step| step.code == EXIT).count(), 2, "nothing behind it");
}
