use super::*;

#[test]
fn what_ends_or_is_the_kernels_is_no_live_program() {
    let stat = |state: &str, flags: u64| format!("17 (a (b) c) {state} 1 17 17 0 -1 {flags} 96 0 0 0");
    assert_eq!(live_program(&stat("S", 0x40_0000)), Some("a (b) c"));
    assert_eq!(live_program(&stat("R", 0x40_0004)), None);
    assert_eq!(live_program(&stat("I", 0x20_8040)), None);
    assert_eq!(live_program(&stat("Z", 0x40_0000)), None);
}
