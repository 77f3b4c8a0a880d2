//! The allocator: tables, and a property over random takes and releases.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use super::allocator::{Allocator, Allocators, Error};

fn range(text: &str) -> IpNetwork {
    text.parse().expect("the test's range reads")
}

#[test]
fn parts_come_in_order_and_the_last_freed_comes_last() {
    let mut allocator = Allocator::new(range("10.42.0.0/22"), 24).unwrap();
    let all: Vec<String> = std::iter::from_fn(|| allocator.allocate()).map(|part| part.to_string()).collect();
    assert_eq!(all, ["10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"]);
    allocator.release(&range("10.42.1.0/24"));
    allocator.release(&range("10.42.0.0/24"));
    assert_eq!(allocator.allocate(), Some(range("10.42.0.0/24")));
    assert_eq!(allocator.allocate(), Some(range("10.42.1.0/24")));
    assert_eq!(allocator.allocate(), None);
}

#[test]
fn a_freed_part_is_not_used_again_at_once() {
    let mut allocator = Allocator::new(range("10.42.0.0/16"), 24).unwrap();
    let first = allocator.allocate().unwrap();
    allocator.release(&first);
    assert_eq!(allocator.allocate(), Some(range("10.42.1.0/24")));
}

#[test]
fn ranges_of_nodes_are_occupied_whatever_their_size() {
    for (occupied, left) in [
        ("10.42.1.0/24", 3),
        ("10.42.0.0/23", 2),
        ("10.42.2.128/25", 3),
        ("10.0.0.0/8", 0),
        ("192.168.0.0/24", 4),
        ("fd00::/64", 4),
    ] {
        let mut allocator = Allocator::new(range("10.42.0.0/22"), 24).unwrap();
        allocator.occupy_all(&[range(occupied)]);
        assert_eq!(allocator.free(), left, "{occupied}");
    }
}

#[test]
fn six_works_as_four_does() {
    let mut allocator = Allocator::new(range("fd00:1::/56"), 64).unwrap();
    assert_eq!(allocator.allocate(), Some(range("fd00:1::/64")));
    assert_eq!(allocator.allocate(), Some(range("fd00:1:0:1::/64")));
    assert_eq!(allocator.free(), 254);
}

#[test]
fn senseless_ranges_are_refused() {
    let length = |text: &str, length: u8| Allocator::new(range(text), length).map(drop);
    assert!(matches!(length("10.0.0.0/24", 16), Err(Error::Length { .. })));
    assert!(matches!(length("10.0.0.0/24", 40), Err(Error::Length { .. })));
    assert!(matches!(length("10.0.0.0/8", 30), Err(Error::TooMany { .. })));
    assert!(length("10.0.0.0/8", 24).is_ok());
}

#[test]
fn no_part_is_given_out_twice() {
    for seed in 1..20_u64 {
        let mut random = seed;
        let mut allocator = Allocator::new(range("10.42.0.0/20"), 24).unwrap();
        let mut held: BTreeSet<IpNetwork> = BTreeSet::new();
        for _ in 0..400 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if (random >> 33) % 3 > 0 {
                match allocator.allocate() {
                    Some(part) => assert!(held.insert(part), "seed {seed}: {part} was given out twice"),
                    None => assert_eq!(held.len(), 16, "seed {seed}: none left only when all are held"),
                }
            } else if let Some(part) = held.pop_first() {
                allocator.release(&part);
            }
            assert_eq!(allocator.free(), 16 - held.len(), "seed {seed}");
        }
    }
}

#[test]
fn a_node_gets_a_part_of_each_range_or_none() {
    let ranges = [(range("10.42.0.0/23"), 24), (range("fd00:1::/62"), 64)];
    let mut allocators = Allocators::new(ranges).unwrap();
    assert_eq!(allocators.allocate(), Some(vec![range("10.42.0.0/24"), range("fd00:1::/64")]));
    allocators.occupy_all(&[range("10.42.1.0/24")]);
    assert_eq!(allocators.allocate(), None);
    allocators.release_all(&[range("10.42.1.0/24")]);
    assert_eq!(
        allocators.allocate(),
        Some(vec![range("10.42.1.0/24"), range("fd00:1:0:1::/64")]),
        "nothing was lost"
    );
}
