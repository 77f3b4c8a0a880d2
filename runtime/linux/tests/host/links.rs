//! Links of every kind: made in one message in another namespace, read back, changed, moved.

use std::{os::fd::AsFd, path::Path};

use linux::{
    netlink::{
        BridgeOptions, IpVlanMode, Link, LinkChange, LinkKind, MacAddress, MacVlanMode, Netlink, NewLink,
        Parent,
    },
    netns::{self, Netns},
};

pub const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 7]);

/// A namespace with a name, and one without links of this host.
pub struct Place(pub Netns);

impl Place {
    pub fn new(name: &str) -> Self {
        harness::private_host::require();
        Self(netns::create(Path::new("/run/netns").join(name)).expect("a namespace"))
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.0).expect("a socket")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        netns::remove(self.0.path()).expect("its name is removed");
        let _ = std::fs::remove_dir("/run/netns");
    }
}

pub fn block_on<R>(work: impl Future<Output = R>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

/// A link that others can stand on, in `place`.
async fn parent(place: &Netlink) -> Link {
    let bridge = BridgeOptions { name: "parent0".to_owned(), ..BridgeOptions::default() };
    place.add_bridge(&bridge).await.expect("a bridge");
    place.link("parent0").await.expect("it is there")
}

/// Makes the link in `child` on a parent that is in `host`, unless the kernel does not have its kind.
async fn made(host: &Place, child: &Place, new: NewLink) -> Option<Link> {
    let (host, inside) = ((host.netlink(), host.0.as_fd()), child.netlink());
    let on = parent(&host.0).await;
    let netns = Some(inside.netns_id(host.1).await.expect("a number"));
    let name = new.name.clone();
    match inside.add_link(&NewLink { parent: Some(Parent { index: on.index, netns }), ..new }).await {
        Err(error) if error.is_unsupported() => {
            harness::skip::skip(&format!("the kernel does not have this kind of link: {error}"));
            return None;
        }
        added => added.expect("a link"),
    }
    assert_eq!(host.0.find_link(&name).await.expect("an answer"), None, "it was never on the host");
    let link = inside.link(&name).await.expect("it is there");
    let seen = host.0.find_link_in(child.0.as_fd(), &name).await.expect("an answer");
    assert_eq!(seen.map(|seen| (seen.index, seen.peer)), Some((link.index, link.peer)));
    assert_eq!(host.0.find_link_in(child.0.as_fd(), "other").await.expect("an answer"), None);
    assert_eq!((link.peer, link.peer_netns), (Some(on.index), netns));
    Some(link)
}

#[test]
fn a_macvlan_of_every_mode_is_born_inside_with_all_its_properties() {
    for mode in [
        MacVlanMode::Private,
        MacVlanMode::Vepa,
        MacVlanMode::Bridge,
        MacVlanMode::Passthrough,
        MacVlanMode::Source,
    ] {
        let (host, child) = (Place::new("host"), Place::new("child"));
        let kind = LinkKind::Macvlan { mode, broadcast_queue: Some(500) };
        let new = NewLink { mtu: Some(1400), mac: Some(MAC), ..NewLink::new("eth0", kind) };
        let Some(link) = block_on(made(&host, &child, new)) else { return };
        assert!(link.is_kind("macvlan") && !link.up);
        assert_eq!((link.settings, link.mtu), (Some(kind), 1400));
        // Passing everything through, it is its parent to others.
        assert_eq!(link.mac == Some(MAC), mode != MacVlanMode::Passthrough);
    }
}

#[test]
fn an_ipvlan_of_every_mode_is_born_inside() {
    for mode in [IpVlanMode::L2, IpVlanMode::L3, IpVlanMode::L3S] {
        let (host, child) = (Place::new("host"), Place::new("child"));
        let kind = LinkKind::Ipvlan { mode };
        let Some(link) = block_on(made(&host, &child, NewLink::new("eth0", kind))) else { return };
        assert!(link.is_kind("ipvlan"));
        assert_eq!(link.settings, Some(kind));
    }
}

#[test]
fn a_vlan_is_born_inside() {
    let (host, child) = (Place::new("host"), Place::new("child"));
    let kind = LinkKind::Vlan { id: 7 };
    let new = NewLink { mtu: Some(1400), ..NewLink::new("eth0", kind) };
    let Some(link) = block_on(made(&host, &child, new)) else { return };
    assert!(link.is_kind("vlan"));
    assert_eq!((link.settings, link.mtu), (Some(kind), 1400));
}

#[test]
fn links_without_a_parent_are_made_and_joined() {
    let place = Place::new("place");
    block_on(async {
        let netlink = place.netlink();
        let dummy = NewLink { up: true, mac: Some(MAC), ..NewLink::new("dummy0", LinkKind::Dummy) };
        match netlink.add_link(&dummy).await {
            Err(error) if error.is_unsupported() => {
                return harness::skip::skip("the kernel has no dummy links");
            }
            added => added.expect("a dummy"),
        }
        let dummy = netlink.link("dummy0").await.expect("it is there");
        assert!(dummy.is_kind("dummy") && dummy.up && dummy.mac == Some(MAC));
        let kind = LinkKind::Vrf { table: 1000 };
        match netlink.add_link(&NewLink::new("blue", kind)).await {
            Err(error) if error.is_unsupported() => return harness::skip::skip("the kernel has no VRFs"),
            added => added.expect("a VRF"),
        }
        let vrf = netlink.link("blue").await.expect("it is there");
        assert_eq!(vrf.settings, Some(kind));
        let join = LinkChange { master: Some(Some(vrf.index)), ..LinkChange::default() };
        netlink.change_link(dummy.index, &join).await.expect("it joins");
        assert_eq!(netlink.link("dummy0").await.expect("it is there").master, Some(vrf.index));
    });
}

#[test]
fn a_link_changes_its_flags_queue_name_and_namespace() {
    let (from, to) = (Place::new("from"), Place::new("to"));
    block_on(async {
        let (inside, other) = (from.netlink(), to.netlink());
        let link = parent(&inside).await;
        assert!(!link.all_multicast);
        let change =
            LinkChange { all_multicast: Some(true), tx_queue_len: Some(77), ..LinkChange::default() };
        inside.change_link(link.index, &change).await.expect("a change");
        let changed = inside.link("parent0").await.expect("it is there");
        assert!(changed.all_multicast);
        assert_eq!(changed.tx_queue_len, 77);

        // A bridge stays where it is; a macvlan may move, even where its name is taken.
        let kind = LinkKind::Macvlan { mode: MacVlanMode::Bridge, broadcast_queue: None };
        let on = Some(Parent { index: link.index, netns: None });
        inside.add_link(&NewLink { parent: on, ..NewLink::new("lower0", kind) }).await.expect("a macvlan");
        other
            .add_bridge(&BridgeOptions { name: "lower0".to_owned(), ..BridgeOptions::default() })
            .await
            .expect("a bridge");
        let lower = inside.link("lower0").await.expect("it is there");
        let change = LinkChange {
            netns: Some(to.0.as_fd()),
            name: Some("moved0".to_owned()),
            alias: Some("lower0".to_owned()),
            ..LinkChange::default()
        };
        inside.change_link(lower.index, &change).await.expect("it moves");
        assert_eq!(inside.find_link("lower0").await.expect("an answer"), None);
        let moved = other.link("moved0").await.expect("it arrived");
        assert_eq!(moved.alias.as_deref(), Some("lower0"));
    });
}

#[test]
fn a_link_goes_by_its_name() {
    let place = Place::new("named");
    block_on(async {
        let inside = place.netlink();
        parent(&inside).await;
        inside.del_link_named("parent0").await.expect("it goes");
        assert_eq!(inside.find_link("parent0").await.expect("an answer"), None);
        let error = inside.del_link_named("parent0").await.expect_err("it is gone");
        assert!(error.is_gone(), "{error}");
        assert!(error.to_string().starts_with("delete link \"parent0\": "), "{error}");
        assert!(inside.find_link("lo").await.expect("an answer").is_some());
    });
}

#[test]
fn a_redirect_to_no_link_says_so_and_leaves_its_place_to_the_caller() {
    let place = Place::new("place");
    block_on(async {
        let netlink = place.netlink();
        let link = parent(&netlink).await.index;
        netlink.add_ingress(link).await.expect("a place");
        assert!(netlink.add_ingress(link).await.expect_err("it is there").is_exists());
        let error = netlink.redirect_ingress(link, 999).await.expect_err("no such link");
        assert!(error.to_string().contains("to link index 999: No such device"), "{error}");
        netlink.del_ingress(link).await.expect("it goes");
        assert!(netlink.del_ingress(link).await.is_err());
    });
}
