use super::*;

const NOW: u64 = 1_000_000;

fn part(name: &str, pid: Option<i32>, age: u64, ends: u32, failures: u32) -> Status {
    Status { name: name.into(), pid, since: NOW - age, ends, failures, last_exit: Some("exit 1".into()) }
}

#[test]
fn parts_that_run_are_healthy_and_unknown_ones_are_waited_for() {
    assert_eq!(
        judge(&[], &[part("server", Some(2), 0, 0, 0), part("agent", Some(3), 0, 4, 0)], NOW),
        Verdict::Healthy
    );
    assert_eq!(
        judge(&[], &[part("server", Some(2), 0, 0, 0), part("agent", None, 0, 1, 0)], NOW),
        Verdict::Wait
    );
    assert_eq!(judge(&[], &[], NOW), Verdict::Wait);
}

#[test]
fn a_part_that_keeps_dying_is_not_healthy_while_it_happens_to_run() {
    assert_eq!(judge(&[], &[part("agent", Some(3), 100, 3, 3)], NOW), Verdict::Wait);
    assert_eq!(judge(&[], &[part("agent", Some(3), 2_500, 3, 3)], NOW), Verdict::Healthy);
}

#[test]
fn it_gives_up_after_ends_that_it_saw_itself() {
    let failing = [part("server", Some(2), 9_000, 0, 0), part("agent", None, 0, 20, 20)];
    assert_eq!(judge(&[part("agent", None, 0, 19, 19)], &failing, NOW), Verdict::Wait);
    let verdict = judge(&[part("agent", None, 0, 12, 12)], &failing, NOW);
    assert_eq!(verdict, Verdict::GiveUp { name: "agent".into(), last_exit: "exit 1".into() });
    assert!(matches!(judge(&[], &failing, NOW), Verdict::GiveUp { .. }));
}

#[test]
fn a_part_inherits_no_blocked_signal_and_pid_1_keeps_it_blocked() {
    let signals = child_signal();
    signals.thread_block().unwrap();
    let mut command = Command::new("grep");
    let output = unblocked(|| command.args(["SigBlk", "/proc/self/status"]).output()).unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let blocked = u64::from_str_radix(line.trim_start_matches("SigBlk:").trim(), 16).unwrap();
    let bit: u64 = 1 << (nix::sys::signal::Signal::SIGCHLD as u64 - 1);
    assert_eq!(blocked & bit, 0, "{line}");
    let mask = nix::sys::signal::SigSet::thread_get_mask().unwrap();
    assert!(mask.contains(nix::sys::signal::Signal::SIGCHLD));
    signals.thread_unblock().unwrap();
}
