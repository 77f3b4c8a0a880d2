//! The fate of maps that changed in one way or another.

use super::super::layout::Field;
use super::*;

const U32: Shape = Shape::Number { size: 4, is_signed: false };

fn with(fields: &[(&str, usize)]) -> Shape {
    let mut size = 0;
    let fields = fields.iter().map(|(name, width)| {
        let offset = size;
        size += width;
        Field { name: (*name).to_owned(), offset, shape: Shape::Number { size: *width, is_signed: false } }
    });
    let fields = fields.collect();
    Shape::Struct { size, fields }
}

fn map_of(kind: u32, value: Shape) -> Described {
    let value_size = value.size().unwrap() as u32;
    Described { kind, flags: 0, key_size: 4, value_size, capacity: 8, key: U32, value }
}

type Maps = BTreeMap<&'static str, Option<Described>>;

fn maps(of: impl IntoIterator<Item = (&'static str, Described)>) -> Maps {
    of.into_iter().map(|(name, map)| (name, Some(map))).collect()
}

fn fate_of(name: &'static str, old: Described, new: Described) -> Fate {
    fates(&maps([(name, old)]), &maps([(name, new)])).unwrap().remove(name).unwrap()
}

#[test]
fn a_map_that_did_not_change_is_kept() {
    for kind in [1, 2, 9, 11, 24] {
        let map = map_of(kind, with(&[("a", 4)]));
        assert_eq!(fate_of(map::NAT, map.clone(), map), Fate::Kept);
    }
}

#[test]
fn a_map_that_has_more_fields_or_more_room_is_copied() {
    let old = map_of(9, with(&[("a", 4)]));
    let grown = map_of(9, with(&[("a", 4), ("b", 4)]));
    let larger = Described { capacity: 16, ..old.clone() };
    for new in [grown, larger, map_of(1, with(&[("a", 4)]))] {
        let Fate::Copied(Recipe { key, value, .. }) = fate_of(map::NAT, old.clone(), new.clone()) else {
            panic!("{new:?} is not copied")
        };
        assert_eq!(key.unwrap().apply(&[1, 2, 3, 4]).unwrap(), [1, 2, 3, 4]);
        let converted = value.apply(&[5, 6, 7, 8]).unwrap();
        assert_eq!((&converted[..4], converted.len()), (&[5, 6, 7, 8][..], new.value_size as usize));
    }
}

#[test]
fn flows_that_cannot_be_carried_over_are_lost_alone() {
    let old = map_of(9, with(&[("a_be", 4)]));
    let new = map_of(9, with(&[("a_be", 8)]));
    let loss = Fate::Lost(Loss::Value(Mismatch::Width { path: "a_be".into() }));
    let table = map_of(2, with(&[("a", 4)]));
    let of = |flows: &Described| maps([(map::NAT, flows.clone()), (map::SERVICES, table.clone())]);
    let expected = BTreeMap::from([(map::NAT, loss), (map::SERVICES, Fate::Kept)]);
    assert_eq!(fates(&of(&old), &of(&new)), Ok(expected));
    assert_eq!(fate_of(map::NAT, old.clone(), map_of(2, U32)), Fate::Lost(Loss::Kind));
    let sockets = |size| map_of(24, with(&[("a", size)]));
    assert_eq!(fate_of(map::SOCKETS, sockets(4), sockets(8)), Fate::Lost(Loss::Unlisted));
}

#[test]
fn tables_are_carried_over_all_or_not_at_all() {
    for name in TABLES {
        let old = map_of(2, with(&[("a_be", 4)]));
        let new = map_of(2, with(&[("a_be", 8)]));
        let refused = fates(&maps([(*name, old.clone())]), &maps([(*name, new)])).unwrap_err();
        assert_eq!(refused.map, *name);
        let unknown = BTreeMap::from([(*name, None)]);
        assert_eq!(fates(&unknown, &maps([(*name, old)])).unwrap_err().source, Loss::Unknown);
    }
}

#[test]
fn what_was_never_complete_is_not_carried_over() {
    assert_eq!(check_complete(is_table), Ok(()));
    let refused = check_complete(|name| name != map::BACKENDS).unwrap_err();
    assert_eq!((refused.map.as_str(), refused.source), (map::BACKENDS, Loss::Missing));
}

#[test]
fn networks_whose_key_changed_are_not_converted() {
    let old = map_of(11, U32);
    let new = Described { key: with(&[("a", 4)]), ..old.clone() };
    let refused = fates(&maps([(map::RULES, old)]), &maps([(map::RULES, new)])).unwrap_err();
    assert_eq!(refused.source, Loss::Networks);
}

#[test]
fn backends_forget_connections_that_nobody_would_take_off() {
    let backends = map_of(2, with(&[("address", 4), ("connections", 4)]));
    let counted = |size| map_of(24, with(&[("backend", size)]));
    let of = |size| maps([(map::BACKENDS, backends.clone()), (map::COUNTED, counted(size))]);
    assert_eq!(fates(&of(4), &of(4)).unwrap()[map::BACKENDS], Fate::Kept);
    let Fate::Copied(Recipe { key: None, value, sums, .. }) = &fates(&of(4), &of(8)).unwrap()[map::BACKENDS]
    else {
        panic!("not copied")
    };
    assert_eq!(value.apply(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap(), [1, 2, 3, 4, 0, 0, 0, 0]);
    assert_eq!(sums, &[], "what sockets count that are open is forgotten too");
}

#[test]
fn what_is_counted_and_when_flows_were_used_is_found() {
    let recipe = |name, kind, fields: &[(&'static str, usize)]| {
        let old = map_of(kind, with(&[("address", 4)]));
        match fate_of(name, old, map_of(kind, with(fields))) {
            Fate::Copied(recipe) => {
                (recipe.used, recipe.sums.iter().map(|place| (place.start, place.end)).collect::<Vec<_>>())
            }
            fate => panic!("{fate:?}"),
        }
    };
    let backend = [("address", 4), ("connections", 4), ("failures", 4)];
    assert_eq!(recipe(map::BACKENDS, 2, &backend), (None, vec![(4, 8)]));
    assert_eq!(recipe(map::COUNTS, 2, &[("led", 8), ("no_backend", 8)]), (None, vec![(0, 8), (8, 16)]));
    assert_eq!(recipe(map::NAT, 9, &[("address", 4), ("used", 4)]), (Some(4..8), vec![]));
    // Nothing that is read at once.
    assert_eq!(recipe(map::NAT, 9, &[("address", 4), ("used", 8)]), (None, vec![]));
    assert_eq!(recipe(map::COUNTS, 2, &[("led", 2)]), (None, vec![]));
}

#[test]
fn maps_that_one_build_alone_has_are_nobodys() {
    let map = map_of(9, U32);
    let (old, new) = (maps([(map::FLOWS, map.clone())]), maps([(map::PEERS, map)]));
    assert_eq!(fates(&old, &new), Ok(BTreeMap::new()));
}
