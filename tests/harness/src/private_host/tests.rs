use super::*;

#[test]
fn only_leaves_of_ours_without_their_maker_are_swept() {
    let alive = |pid: &str| pid == "7";
    assert!(abandoned("orlop-test-8", alive));
    assert!(!abandoned("orlop-test-7", alive));
    assert!(!abandoned("orlop-test-x", alive));
    assert!(!abandoned("orlop-up", alive));
    assert!(!abandoned("user.slice", alive));
}
