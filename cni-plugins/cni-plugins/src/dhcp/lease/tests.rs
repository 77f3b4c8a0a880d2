//! Acknowledgements, times, routes.

use dhcproto::v4::{DhcpOption, Message};
use serde_json::json;

use super::{Lease, Next};

fn ack(options: Vec<DhcpOption>) -> Message {
    let mut message = Message::default();
    message.set_yiaddr([10, 0, 0, 9]);
    message.opts_mut().insert(DhcpOption::ServerIdentifier([10, 0, 0, 2].into()));
    message.opts_mut().insert(DhcpOption::SubnetMask([255, 255, 255, 0].into()));
    for option in options {
        message.opts_mut().insert(option);
    }
    message
}

#[test]
fn times_are_the_servers_or_shares_of_the_lifetime() {
    let lease = Lease::of(&ack(vec![DhcpOption::AddressLeaseTime(1000)]), 100).expect("a lease");
    assert_eq!(lease.next(100), Next::Wait(500));
    assert_eq!(lease.next(600), Next::Renew { pause: 175 });
    assert_eq!(lease.next(949), Next::Renew { pause: 1 });
    assert_eq!(lease.next(950), Next::Rebind { pause: 75 });
    assert_eq!(lease.next(1099), Next::Rebind { pause: 1 });
    assert_eq!((lease.next(1100), lease.left(1100)), (Next::LastTry, 0));
    let named = vec![DhcpOption::AddressLeaseTime(100), DhcpOption::Renewal(10), DhcpOption::Rebinding(500)];
    let lease = Lease::of(&ack(named), 0).expect("a lease");
    assert_eq!((lease.next(9), lease.next(10)), (Next::Wait(1), Next::Renew { pause: 60 }));
    assert_eq!(lease.next(100), Next::LastTry);
    let mut lease = lease;
    lease.expire();
    assert_eq!(lease.next(0), Next::LastTry);
    lease.end();
    assert_eq!((lease.next(0), lease.left(0)), (Next::Over, 0));
    assert_eq!(Lease::of(&ack(Vec::new()), 0).expect("a lease").next(0), Next::Wait(1800));
}

#[test]
fn a_try_that_failed_is_followed_by_a_pause() {
    let mut lease = Lease::of(&ack(vec![DhcpOption::AddressLeaseTime(1000)]), 0).expect("a lease");
    assert_eq!(lease.next(500), Next::Renew { pause: 175 });
    lease.retry_at(500 + 175);
    assert_eq!((lease.next(560), lease.next(674)), (Next::Wait(115), Next::Wait(1)));
    assert_eq!(lease.next(675), Next::Renew { pause: 87 });
    lease.expire();
    assert_eq!(lease.next(560), Next::LastTry);
}

#[test]
fn routes_are_classless_or_classful_with_a_default() {
    let routers = DhcpOption::Router(vec![[10, 0, 0, 1].into(), [10, 0, 0, 3].into()]);
    let classful = DhcpOption::StaticRoutingTable(vec![([172, 16, 0, 0].into(), [10, 0, 0, 4].into())]);
    let shown = |options: Vec<DhcpOption>| {
        let result = Lease::of(&ack(options), 0).expect("a lease").result(Some(5));
        result.to_json(cni::Version::V1_1_0).expect("a result")
    };
    assert_eq!(
        shown(vec![routers.clone(), classful.clone()]),
        json!({
            "cniVersion": "1.1.0",
            "ips": [{"address": "10.0.0.9/24", "gateway": "10.0.0.1"}],
            "routes": [
                {"dst": "172.16.0.0/16", "gw": "10.0.0.4", "priority": 5},
                {"dst": "0.0.0.0/0", "gw": "10.0.0.1", "priority": 5},
            ],
        })
    );
    let classless = DhcpOption::ClasslessStaticRoute(vec![
        ("192.168.0.0/20".parse().expect("a network"), [0, 0, 0, 0].into()),
        ("0.0.0.0/0".parse().expect("a network"), [10, 0, 0, 5].into()),
    ]);
    assert_eq!(
        shown(vec![routers, classful, classless])["routes"],
        json!([
            {"dst": "192.168.0.0/20", "gw": "0.0.0.0", "scope": 253, "priority": 5},
            {"dst": "0.0.0.0/0", "gw": "10.0.0.5", "priority": 5},
        ])
    );
}

#[test]
fn an_acknowledgement_without_a_mask_is_none() {
    let mut message = Message::default();
    let error = Lease::of(&message, 0).expect_err("nothing in it");
    assert_eq!(error, "DHCP option Subnet Mask not found in DHCPACK");
    message.opts_mut().insert(DhcpOption::SubnetMask([255, 0, 255, 0].into()));
    assert_eq!(Lease::of(&message, 0).expect_err("a bad mask"), "invalid subnet mask 255.0.255.0");
}

#[test]
fn a_server_cannot_make_its_client_spin() {
    let times = |lease: u32, renewal: u32, rebinding: u32| {
        let options = vec![
            DhcpOption::AddressLeaseTime(lease),
            DhcpOption::Renewal(renewal),
            DhcpOption::Rebinding(rebinding),
        ];
        Lease::of(&ack(options), 0)
    };
    let hour = times(3600, 0, 0).expect("a lease");
    assert_eq!((hour.next(0), hour.next(5)), (Next::Wait(5), Next::Rebind { pause: 1797 }));
    let shortest = times(10, 0, 10).expect("a lease");
    assert_eq!((shortest.next(0), shortest.next(5)), (Next::Wait(5), Next::Renew { pause: 5 }));
    for lease in [0, 9] {
        let error = times(lease, 0, 0).expect_err("too short");
        assert_eq!(error, format!("a lease of {lease} s: expected at least 10 s"));
    }
}
