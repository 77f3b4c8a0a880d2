use std::net::Ipv4Addr;

use super::*;

fn endpoints(numbers: impl Iterator<Item = u32>) -> Vec<SocketAddr> {
    numbers.map(|number| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 8080))).collect()
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

/// Of the places that lead to endpoints that stay: how many lead elsewhere, in thousandths of all.
fn moved(before: &[SocketAddr], after: &[SocketAddr], size: u32) -> usize {
    let (old, new) = (table(before, size), table(after, size));
    let moved = old.iter().zip(&new).filter(|(old, new)| {
        let was = before[**old as usize];
        after.contains(&was) && after[**new as usize] != was
    });
    moved.count() * 1000 / size as usize
}

#[test]
fn when_an_endpoint_goes_few_places_of_the_others_change() {
    for (count, limit) in [(3, 1), (10, 6), (50, 11), (102, 13)] {
        let all = endpoints(0..count);
        for gone in [0, count / 3, count - 1] {
            let mut rest = all.clone();
            rest.remove(gone as usize);
            let moved = moved(&all, &rest, LOOKUP_SIZES[0]);
            assert!(moved <= limit, "{moved} of 1000 when {gone} of {count} goes");
        }
    }
}

#[test]
fn the_table_is_the_same_in_every_build() {
    let found = table(&endpoints(0..3), LOOKUP_SIZES[0]);
    let digest = found.iter().fold(0_u64, |digest, endpoint| mix(digest ^ u64::from(*endpoint)));
    assert_eq!(format!("{digest:x}"), "3089bff9d4cfd710", "flows of other nodes are led by this");
}
