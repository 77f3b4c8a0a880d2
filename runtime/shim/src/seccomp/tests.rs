use oci_spec::runtime::LinuxSeccomp;
use serde_json::json;

use super::*;

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const DENIED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NOT_THERE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

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
    let newest = allowed.into_iter().chain([libc::SYS_ptrace]).max().unwrap();
    for call in 0..500 {
        let expected = match call {
            libc::SYS_ptrace => NOT_THERE,
            call if allowed.contains(&call) => ALLOWED,
            call if call > newest => NOT_THERE,
            _ => DENIED,
        };
        assert_eq!(decide(&filter, native(), call, [0; 6]), expected, "call {call}");
    }
    assert_ne!(decide(&filter, 0x4000_0003, libc::SYS_read, [0; 6]), ALLOWED, "another architecture");
}

/// The profile names `openat` as its newest call: 257 on x86-64 and x32, 295 on x86, 56 on aarch64, 322 on arm.
#[test]
fn calls_that_are_newer_than_a_profile_are_not_there() {
    const X32_BIT: i64 = 1 << 30;
    let (x86_64, x86) = (0xc000_003e, 0x4000_0003);
    let (aarch64, arm) = (0xc000_00b7, 0x4000_0028);
    let rules = json!([
        { "names": ["dup", "no_such_call"], "action": "SCMP_ACT_ALLOW" },
        { "names": ["openat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 },
    ]);
    for (names, numbers) in [
        (
            &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"][..],
            &[(x86_64, 0, 257), (x86, 0, 295), (x86_64, X32_BIT, 257)][..],
        ),
        (&["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"], &[(aarch64, 0, 56), (arm, 0, 322)]),
    ] {
        let filter = Filter::of(&profile(names, rules.clone()), None).unwrap();
        for (arch, bit, highest) in numbers {
            let call = |number: i64| decide(&filter, *arch, bit | number, [0; 6]);
            let answers = [*highest, highest + 1, 9999].map(call);
            assert_eq!(answers, [DENIED, NOT_THERE, NOT_THERE], "{arch:#x} {bit:#x}");
        }
    }
    // The native architecture belongs to every profile, and calls of x32 do not with it.
    let native_only = Filter::of(&profile(&[], rules), None).unwrap();
    assert_eq!(decide(&native_only, native(), 9999, [0; 6]), NOT_THERE);
    assert_ne!(decide(&native_only, native(), X32_BIT | 9999, [0; 6]), NOT_THERE);
}

#[test]
fn a_default_decides_whether_newer_calls_are_there() {
    for (action, expected) in [
        ("SCMP_ACT_ALLOW", ALLOWED),
        ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG),
        ("SCMP_ACT_TRACE", libc::SECCOMP_RET_TRACE | 1),
        ("SCMP_ACT_ERRNO", NOT_THERE),
        ("SCMP_ACT_KILL_PROCESS", NOT_THERE),
    ] {
        let text = json!({
            "defaultAction": action, "defaultErrnoRet": 1,
            "syscalls": [{ "names": ["openat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2 }],
        });
        let filter = Filter::of(&serde_json::from_value(text).unwrap(), None).unwrap();
        assert_eq!(decide(&filter, native(), 9999, [0; 6]), expected, "{action}");
    }
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

    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_profile_that_was_not_used_for_the_longest_time_makes_room() {
    let directory = std::env::temp_dir().join(format!("orlop-seccomp-room-{}", std::process::id()));
    let numbered = |number: usize| {
        profile(&[], json!([{ "names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": number + 2 }]))
    };
    let path_of = |number| directory.join(name(&serde_json::to_vec(&numbered(number)).unwrap()));
    let count = || std::fs::read_dir(&directory).unwrap().count();
    let start = SystemTime::now() - std::time::Duration::from_secs(10_000);
    for number in 0..MAX_FILES {
        Filter::of(&numbered(number), Some(&directory)).unwrap();
        let used = start + std::time::Duration::from_secs(number as u64);
        File::open(path_of(number)).unwrap().set_modified(used).unwrap();
    }
    assert_eq!(count(), MAX_FILES);
    // The oldest is used again, so the second one is the first to go.
    Filter::of(&numbered(0), Some(&directory)).unwrap();
    Filter::of(&numbered(MAX_FILES), Some(&directory)).unwrap();
    let there = [0, 1, 2, MAX_FILES].map(|number| path_of(number).exists());
    assert_eq!((there, count()), ([true, false, true, true], MAX_FILES));
    // What others put there in the same moment goes with the next one; a half-written file, too.
    for number in 0..3 {
        let path = directory.join(format!("new-{number}"));
        File::create(path).unwrap().set_modified(start).unwrap();
    }
    Filter::of(&numbered(MAX_FILES + 1), Some(&directory)).unwrap();
    assert_eq!(count(), MAX_FILES);
    assert!((0..3).all(|number| !directory.join(format!("new-{number}")).exists()));
    std::fs::remove_dir_all(&directory).unwrap();
}
