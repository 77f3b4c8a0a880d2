//! Which table a new VRF gets.

use linux::netlink::{Link, LinkKind};

use super::free_table;

#[test]
fn a_vrf_gets_the_first_table_that_no_other_has() {
    let vrf = |table| Link { settings: Some(LinkKind::Vrf { table }), ..Link::default() };
    assert_eq!(free_table(&[]), 1);
    assert_eq!(free_table(&[Link::default(), vrf(1), vrf(3)]), 2);
    assert_eq!(free_table(&[vrf(2), vrf(1), vrf(3)]), 4);
}
