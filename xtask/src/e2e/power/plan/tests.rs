use std::collections::BTreeSet;

use fastrand::Rng;

use super::{ANSWERS, CHANGED, Deed, content, round};

fn living() -> Vec<String> {
    (0..1000).map(|number| format!("old-{number}")).collect()
}

#[test]
fn a_seed_makes_the_same_round_again_and_another_one_does_not() {
    let of = |seed| round(3, living(), &mut Rng::with_seed(seed));
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

#[test]
fn no_object_is_in_two_jobs_and_the_power_goes_before_the_creators_are_through() {
    for seed in 0..50 {
        let round = round(2, living(), &mut Rng::with_seed(seed));
        let names: Vec<&String> = round.jobs.iter().flat_map(|job| &job.names).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        let changed = |deed| -> usize {
            round.jobs.iter().filter(|job| job.deed == deed).map(|job| job.names.len()).sum()
        };
        assert_eq!((changed(Deed::Replace), changed(Deed::Delete)), (CHANGED, CHANGED));
        assert!(ANSWERS.contains(&round.answers));
        assert!((round.answers as usize) < changed(Deed::Create));
    }
}

#[test]
fn the_first_round_only_creates() {
    let first = round(1, Vec::new(), &mut Rng::with_seed(1));
    assert!(first.jobs.iter().all(|job| job.deed == Deed::Create));
}

#[test]
fn contents_tell_objects_and_rounds_apart() {
    assert_ne!(content("a", 1), content("a", 2));
    assert_ne!(content("a", 1), content("b", 1));
    let lengths: BTreeSet<usize> = living().iter().map(|name| content(name, 1).len()).collect();
    assert!(lengths.len() > 40 && lengths.last() > Some(&1200), "{lengths:?}");
}
