use std::net::Ipv4Addr;

use super::*;

fn endpoints(numbers: impl Iterator<Item = u32>) -> Vec<Turn> {
    let address = |number| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 8080));
    turns(numbers.map(address).map(|address| (Identity::of_address(address), address)))
}

/// Pods of a StatefulSet.
fn pods(numbers: impl Iterator<Item = u32>) -> Vec<Turn> {
    let one = |number: u32| {
        let address = SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 8080));
        (Identity::of_pod("default", &format!("web-{number}")), address)
    };
    turns(numbers.map(one))
}

fn shares(table: &[u32], endpoints: usize) -> Vec<usize> {
    let mut shares = vec![0; endpoints];
    table.iter().for_each(|endpoint| shares[*endpoint as usize] += 1);
    shares
}

#[test]
fn a_size_has_enough_places_for_each_endpoint_while_there_is_one() {
    let cases = [(0, 0), (1, 1), (102, 1), (103, 2), (65_535, 2)];
    for (count, class) in cases {
        assert_eq!(size_class(count), class, "{count}");
    }
}

#[test]
fn every_endpoint_has_an_even_share() {
    for count in [1, 2, 3, 10, 100, 103] {
        let size = LOOKUP_SIZES[usize::from(size_class(count)) - 1];
        let shares = shares(&table(&endpoints(0..count as u32), size), count);
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        // All take turns: nobody is ahead by more than one.
        assert!(most - least <= 1, "{count}: {least} to {most}");
    }
    assert!(table(&[], 16_381).iter().all(|place| *place == FREE));
}

#[test]
fn one_that_stands_there_three_times_has_three_shares() {
    let one = endpoints(0..2);
    let shares = shares(&table(&[one[0], one[0], one[0], one[1]], 16_381), 4);
    assert_eq!(shares.iter().take(3).sum::<usize>(), 12_286);
    assert_eq!(shares[3], 4095);
}

#[test]
fn when_an_endpoint_goes_few_places_of_the_others_change() {
    let size = LOOKUP_SIZES[0];
    for (count, limit) in [(3, 70), (10, 100), (40, 130), (102, 170)] {
        for all in [pods(0..count), endpoints(0..count)] {
            let before = table(&all, size);
            for gone in 0..count {
                let mut rest = all.clone();
                rest.remove(gone as usize);
                let after = table(&rest, size);
                // Of places in the shorter list, but for those of the one that goes.
                let others = before.iter().zip(after).filter(|(old, _)| **old != gone);
                let moved =
                    others.clone().filter(|(old, new)| **old - u32::from(**old > gone) != *new).count();
                let moved = moved * 10_000 / others.count();
                assert!(moved <= limit, "{moved} of 10,000 when {gone} of {count} goes");
            }
        }
    }
}

#[test]
fn the_table_is_the_same_in_every_build() {
    let found = table(&endpoints(0..3), LOOKUP_SIZES[0]);
    let digest = found.iter().fold(0_u64, |digest, endpoint| mix(digest ^ u64::from(*endpoint)));
    assert_eq!(format!("{digest:x}"), "5b924ec86b530e25", "flows of other nodes are led by this");
}
