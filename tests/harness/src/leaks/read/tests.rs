use super::*;

#[test]
fn what_is_the_kernels_or_a_zombie_is_no_program() {
    let stat = |state: &str, flags: u64| format!("17 (a (b) c) {state} 1 17 17 0 -1 {flags} 96 0 0 0");
    assert_eq!(program(&stat("S", 0x40_0000)), Some(Program { name: "a (b) c", exits: false }));
    assert_eq!(program(&stat("R", 0x40_0004)), Some(Program { name: "a (b) c", exits: true }));
    assert_eq!(program(&stat("I", 0x20_8040)), None);
    assert_eq!(program(&stat("Z", 0x40_0000)), None);
}

#[test]
fn a_process_on_its_way_out_is_waited_for_and_one_that_stays_is_not_gone() {
    let soon = || Instant::now() + Duration::from_millis(20);
    assert!(!is_gone_by(soon(), std::process::id()));
    let mut child = Command::new("true").spawn().unwrap();
    assert!(is_gone_by(Instant::now() + EXIT_LIMIT, child.id()), "a zombie has ended");
    child.wait().unwrap();
    assert!(is_gone_by(soon(), child.id()));
}
