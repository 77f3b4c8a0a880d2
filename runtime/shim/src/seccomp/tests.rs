use oci_spec::runtime::LinuxSeccomp;
use serde_json::json;

use super::*;

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const DENIED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

fn profile(architectures: &[&str], rules: serde_json::Value) -> LinuxSeccomp {
    let text = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": architectures, "syscalls": rules,
    });
    serde_json::from_value(text).unwrap()
}

fn native() -> u32 {
    let token = ScmpArch::native() as u32;
    let numbers = [(ScmpArch::X8664 as u32, 0xc000_003e), (ScmpArch::Aarch64 as u32, 0xc000_00b7)];
    numbers.iter().find(|(arch, _)| *arch == token).unwrap().1
}

/// What the kernel would do: the part of classic BPF that libseccomp writes.
fn decide(filter: &Filter, arch: u32, call: i64, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend((call as u32).to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0_u64.to_ne_bytes());
    data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let step = &filter.instructions[at];
        at += 1;
        let mut jump = |taken: bool| at += usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => accumulator = u32::from_ne_bytes(data[step.k as usize..][..4].try_into().unwrap()),
            0x05 => at += step.k as usize,
            0x15 => jump(accumulator == step.k),
            0x25 => jump(accumulator > step.k),
            0x35 => jump(accumulator >= step.k),
            0x45 => jump(accumulator & step.k != 0),
            0x54 => accumulator &= step.k,
            0x06 => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

#[test]
fn lists_decide_by_number() {
    let names = [
        "read",
        "write",
        "openat",
        "close",
        "execve",
        "exit_group",
        "futex",
        "mmap",
        "ppoll",
        "no_such_call",
    ];
    let allowed = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_openat,
        libc::SYS_close,
        libc::SYS_execve,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_mmap,
        libc::SYS_ppoll,
    ];
    let rules = json!([{ "names": names, "action": "SCMP_ACT_ALLOW" }, { "names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }]);
    let filter = Filter::of(&profile(&[], rules), None).unwrap();
    for call in 0..500 {
        let expected = match call {
            libc::SYS_ptrace => libc::SECCOMP_RET_ERRNO | 38,
            call if allowed.contains(&call) => ALLOWED,
            _ => DENIED,
        };
        assert_eq!(decide(&filter, native(), call, [0; 6]), expected, "call {call}");
    }
    assert_ne!(decide(&filter, 0x4000_0003, libc::SYS_read, [0; 6]), ALLOWED, "another architecture");
}

#[test]
fn masks_come_before_values() {
    let argument =
        json!({ "index": 0, "value": libc::CLONE_NEWUSER, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" });
    let rules = json!([{ "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [argument] }]);
    let filter = Filter::of(&profile(&[], rules), None).unwrap();
    let clone = |flags: i32| decide(&filter, native(), libc::SYS_clone, [flags as u64, 0, 0, 0, 0, 0]);
    assert_eq!(clone(libc::SIGCHLD), ALLOWED);
    assert_eq!(clone(libc::CLONE_NEWUSER | libc::SIGCHLD), DENIED);
}

#[test]
fn comparisons_of_one_argument_are_alternatives() {
    let value = |value: u64| json!({ "index": 0, "value": value, "op": "SCMP_CMP_EQ" });
    let both = json!({ "index": 1, "value": 2, "op": "SCMP_CMP_NE" });
    let rules = json!([
        { "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [value(0), value(8)] },
        { "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [value(1), both] },
    ]);
    let filter = Filter::of(&profile(&[], rules), None).unwrap();
    let call = |call: i64, arguments: [u64; 2]| {
        decide(&filter, native(), call, [arguments[0], arguments[1], 0, 0, 0, 0])
    };
    assert_eq!([0, 8, 4].map(|value| call(libc::SYS_personality, [value, 0])), [ALLOWED, ALLOWED, DENIED]);
    assert_eq!([1, 2].map(|kind| call(libc::SYS_socket, [1, kind])), [ALLOWED, DENIED]);
}

#[test]
fn a_profile_is_compiled_once() {
    let directory = std::env::temp_dir().join(format!("orlop-seccomp-{}", std::process::id()));
    let rules = |name: &str| json!([{ "names": [name], "action": "SCMP_ACT_ALLOW" }]);
    let first = profile(&[], rules("read"));
    let compiled = Filter::of(&first, Some(&directory)).unwrap();
    let path = std::fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read(&path).unwrap();
    assert_eq!(Filter::of(&first, Some(&directory)).unwrap(), compiled);

    // What is there is used, when it is of this profile.
    let length = text.len();
    let mut shorter = text[..length - INSTRUCTION_BYTES].to_vec();
    std::fs::write(&path, &shorter).unwrap();
    let kept = Filter::of(&first, Some(&directory)).unwrap();
    assert_eq!(kept.instructions.len() + 1, compiled.instructions.len());
    shorter[20] ^= 1;
    std::fs::write(&path, &shorter).unwrap();
    assert_eq!(Filter::of(&first, Some(&directory)).unwrap(), compiled);

    // A file that was cut off is no program.
    std::fs::write(&path, &text[..length - 3]).unwrap();
    assert_eq!(Filter::of(&first, Some(&directory)).unwrap(), compiled);

    for number in 0..2 * MAX_FILES {
        let name = ["write", "close", "openat"][number % 3];
        let other =
            profile(&[], json!([{ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": number + 2 }]));
        Filter::of(&other, Some(&directory)).unwrap();
    }
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), MAX_FILES);
    std::fs::remove_dir_all(&directory).unwrap();
}
