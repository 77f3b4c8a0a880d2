use super::*;

#[test]
fn every_counter_is_of_drops_or_of_others() {
    let mut all: Vec<u32> = DROPS.iter().map(|drop| drop.counter).chain(OTHERS.iter().copied()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..counter::COUNT).collect::<Vec<_>>());
}

#[test]
fn each_says_in_one_line_what_it_means_and_what_to_do() {
    for DropReason { meaning, remedy, .. } in DROPS {
        assert!(!meaning.contains('\n') && !remedy.contains('\n'));
        assert!(meaning.len() + remedy.len() < 240, "{meaning}: {remedy}");
    }
}
