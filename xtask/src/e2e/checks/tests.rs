use super::{CHECKS, chosen};

fn names(names: &[&str]) -> Vec<&'static str> {
    chosen(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), false)
}

#[test]
fn a_chosen_check_brings_what_it_needs_in_order() {
    assert_eq!(names(&["power cuts"]), ["boot", "install", "node ready", "power cuts"]);
    assert_eq!(names(&["host tests", "install"]), ["boot", "install", "host tests"]);
}

#[test]
fn what_a_check_needs_stands_before_it() {
    for (position, check) in CHECKS.iter().enumerate() {
        for needed in check.needs {
            assert!(CHECKS[..position].iter().any(|other| other.name == *needed), "{}", check.name);
        }
    }
}

#[test]
fn the_whole_run_and_the_fast_part_have_what_their_checks_need() {
    for smoke in [false, true] {
        let run = chosen(&[], smoke);
        for check in CHECKS.iter().filter(|check| run.contains(&check.name)) {
            assert!(check.needs.iter().all(|needed| run.contains(needed)), "{}", check.name);
        }
    }
    assert!(chosen(&[], false).contains(&"power cuts"));
    assert!(!chosen(&[], true).contains(&"power cuts"));
}
