//! How programs get onto an uplink, stay there, are taken over and go: every case by both ways of attaching.

use std::net::UdpSocket;
use std::path::Path;

use crate::earlier;
use crate::node::{Links, NODE, Node, OUTSIDE, POD, ask_tcp, at, frontend, inside, run, serve_tcp, tc_json};
use crate::uplink::{ANY, wait_until};
use dataplane::Protocol::{Tcp, Udp};
use dataplane::{Dataplane, OpenError, Target, UplinkHook};
use dataplane_abi::{LAYOUT_VERSION, counter};

macro_rules! both_ways {
    ($($case:ident)+) => {
        mod newest {
            $(#[test] fn $case() { super::$case(super::UplinkHook::Newest); })+
        }
        mod clsact {
            $(#[test] fn $case() { super::$case(super::UplinkHook::Clsact); })+
        }
    };
}

both_ways! {
    traffic_is_translated
    what_is_attached_outlives_the_process_and_is_left_alone
    programs_of_other_maps_are_replaced_in_place
    an_uplink_that_is_none_any_more_is_left
    a_link_that_was_made_anew_gets_the_programs
    what_others_attached_stays_and_runs
    removal_leaves_nothing_on_the_uplink
    another_way_takes_the_place_of_the_first
    a_newer_layouts_programs_go_after_the_first_sync
    a_vlan_may_be_an_uplink
}

/// The dot in its name stands in no pin's.
fn a_vlan_may_be_an_uplink(hook: UplinkHook) {
    const VLAN: &str = "uplink.100";
    let _links = Links::make();
    run("ip", &format!("link set uplink down name {VLAN}"));
    run("ip", &format!("link set {VLAN} up"));
    let mut node = Node::with_uplinks(&[VLAN], hook);
    serve(&mut node);
    assert_eq!(ask(), "pod saw 192.0.2.9");
    let attached =
        |node: &Node| ["ingress", "egress"].map(|way| node.attachment(&format!("orlop_{way}"), VLAN, way));
    let before = attached(&node);
    assert!(before.iter().all(Option::is_some));
    node.reopen();
    assert_eq!(attached(&node), before);
    node.options().uplinks.clear();
    node.reopen();
    assert_eq!(attached(&node), [None, None]);
    node.remove();
    run("ip", &format!("link set {VLAN} down name uplink"));
}

/// The node port of a server in the pod, asked from outside.
fn ask() -> String {
    inside("outside", || ask_tcp(at(NODE, 30080))).join().unwrap().unwrap()
}

fn serve(node: &mut Node) {
    inside("pod", || serve_tcp(at(ANY, 8080), "pod")).join().unwrap();
    publish(node);
}

fn publish(node: &mut Node) {
    node.set(frontend(NODE, 30080, Tcp), &[at(POD, 8080)]);
}

fn qdiscs() -> Vec<String> {
    let kinds = tc_json("qdisc show dev uplink").into_iter();
    kinds.map(|qdisc| qdisc["kind"].as_str().unwrap().to_owned()).collect()
}

/// The kinds of filters on the uplink's way in, with their priorities.
fn filters() -> Vec<(String, u64)> {
    let filters = tc_json("filter show dev uplink ingress").into_iter();
    let each = filters.filter(|filter| filter["options"].is_object());
    each.map(|filter| (filter["kind"].as_str().unwrap().to_owned(), filter["pref"].as_u64().unwrap()))
        .collect()
}

/// A filter of somebody else: classic BPF that matches everything.
fn add_foreign_filter(priority: u16) {
    let match_all = "1,6 0 0 4294967295,";
    let status = std::process::Command::new("tc")
        .args(["filter", "add", "dev", "uplink", "ingress", "prio", &priority.to_string()])
        .args(["protocol", "all", "bpf", "bytecode", match_all, "flowid", "1:1"])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn the_newest_way_is_tcx_where_the_kernel_has_it() {
    let _links = Links::make();
    let node = Node::with_uplink();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let by_link = node.attachments().values().all(|attachment| attachment.held_by.starts_with("link"));
    assert_eq!(by_link, version >= (6, 6), "{release}: {:?}", node.attachments());
}

fn traffic_is_translated(hook: UplinkHook) {
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    node.masquerade();
    serve(&mut node);
    inside("outside", || serve_tcp(at(ANY, 7000), "out")).join().unwrap();
    assert_eq!(ask(), "pod saw 192.0.2.9");
    let answer = inside("pod", || ask_tcp(at(OUTSIDE, 7000))).join().unwrap();
    assert_eq!(answer.unwrap(), "out saw 192.0.2.1");
}

fn what_is_attached_outlives_the_process_and_is_left_alone(hook: UplinkHook) {
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    serve(&mut node);
    let before = node.attachments();
    assert_eq!(before.len(), 2);
    node.crash();
    assert_eq!(ask(), "pod saw 192.0.2.9");
    assert_eq!(node.reopen(), 1);
    assert_eq!(node.attachments(), before);
    assert_eq!(ask(), "pod saw 192.0.2.9");
}

fn programs_of_other_maps_are_replaced_in_place(hook: UplinkHook) {
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    serve(&mut node);
    let before = node.attachments();
    node.crash();
    for entry in std::fs::read_dir(node.pins()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("ORLOP_") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(node.reopen(), 0);
    for (program, after) in node.attachments() {
        assert_eq!(after.held_by, before[program].held_by);
        assert_ne!(after.program, before[program].program);
    }
    publish(&mut node);
    assert_eq!(ask(), "pod saw 192.0.2.9");
}

fn an_uplink_that_is_none_any_more_is_left(hook: UplinkHook) {
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    let before = qdiscs();
    node.options().uplinks = vec!["pod0".into()];
    node.reopen();
    assert!(node.attachments().is_empty());
    if hook == UplinkHook::Clsact {
        assert_eq!((before.len(), qdiscs()), (2, vec!["noqueue".to_owned()]));
    }
}

fn a_link_that_was_made_anew_gets_the_programs(hook: UplinkHook) {
    let mut links = Some(Links::make());
    let mut node = Node::with_hook(hook);
    drop(links.take());
    let _links = Links::make();
    assert!(node.attachments().values().all(|attachment| attachment.held_by.starts_with("link")));
    node.reopen();
    serve(&mut node);
    assert_eq!(ask(), "pod saw 192.0.2.9");
}

fn what_others_attached_stays_and_runs(hook: UplinkHook) {
    let _links = Links::make();
    let mut before = Node::of_somebody(hook);
    let kept = before.attachments();
    let mut node = Node::with_hook(hook);
    if hook == UplinkHook::Clsact {
        add_foreign_filter(60_000);
        assert_eq!(filters().len(), 3);
    }
    // Each counts what it leaves to the node, and so to the next program.
    let nobody = Target { own_address: true, ..Target::default() };
    for node in [&mut before, &mut node] {
        node.lead(frontend(NODE, 9, Udp), &nobody);
    }
    let datagram = || {
        let send = || UdpSocket::bind(at(ANY, 0))?.send_to(&[0], at(NODE, 9));
        inside("outside", send).join().unwrap().unwrap();
    };
    let seen = |node: &Node| node.counter(counter::NODE_PORT_NO_BACKEND);
    datagram();
    wait_until(|| seen(&node) > 0 && seen(&before) > 0);
    node.reopen();
    assert_eq!(before.attachments(), kept);
    node.remove();
    assert_eq!(before.attachments(), kept);
    if hook == UplinkHook::Clsact {
        assert_eq!(filters(), [("bpf".to_owned(), 1000), ("bpf".to_owned(), 60_000)]);
    }
    let count = seen(&before);
    datagram();
    wait_until(|| seen(&before) > count);
    before.remove();
    if hook == UplinkHook::Clsact {
        assert_eq!(filters(), [("bpf".to_owned(), 60_000)], "and so does the qdisc that holds it");
    }
}

fn removal_leaves_nothing_on_the_uplink(hook: UplinkHook) {
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    serve(&mut node);
    node.remove();
    assert!(node.attachments().is_empty());
    assert_eq!(qdiscs(), ["noqueue"]);
    serve_tcp(at(ANY, 30080), "node");
    assert_eq!(ask(), "node saw 192.0.2.9");
}

fn another_way_takes_the_place_of_the_first(hook: UplinkHook) {
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    serve(&mut node);
    let other = if hook == UplinkHook::Clsact { UplinkHook::Newest } else { UplinkHook::Clsact };
    node.options().uplink_hook = other;
    assert_eq!(node.reopen(), 1);
    assert_eq!(node.attachments().len(), 2);
    assert_eq!(ask(), "pod saw 192.0.2.9");
}

fn a_newer_layouts_programs_go_after_the_first_sync(hook: UplinkHook) {
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    serve(&mut node);
    // What a build with a newer layout left is what this one attached under another name.
    let other = node.pins().with_file_name(format!("v{}", LAYOUT_VERSION + 1));
    node.crash();
    let by_filter = node.attachments().values().all(|attachment| attachment.held_by.starts_with("filter"));
    if by_filter {
        rename_filters(&other);
    }
    std::fs::rename(node.pins(), &other).unwrap();
    assert_eq!(node.reopen(), 0);
    assert_eq!(ask(), "pod saw 192.0.2.9", "the earlier one goes on until the new one is complete");
    publish(&mut node);
    let dataplane = node.dataplane.as_mut().unwrap();
    dataplane.retain(&[frontend(NODE, 30080, Tcp)].into()).unwrap();
    assert!(other.exists(), "policies may be known later than services");
    dataplane.retain_policies().unwrap();
    assert!(!other.exists());
    assert_eq!(filters().len(), usize::from(by_filter));
    assert_eq!(ask(), "pod saw 192.0.2.9");
    node.remove();
    assert_eq!(qdiscs(), ["noqueue"]);
}

/// Gives the filters on all links the name of another layout.
pub fn rename_filters(folder: &Path) {
    earlier::replace_filters(|name, program| (format!("{name}:{}", folder.display()), program));
}

#[test]
fn an_ingress_qdisc_of_somebody_is_named_and_stays() {
    let _links = Links::make();
    run("tc", "qdisc add dev uplink ingress");
    let mut node = Node::open();
    node.options().uplinks = vec!["uplink".into()];
    node.options().uplink_hook = UplinkHook::Clsact;
    let error = node.try_reopen().unwrap_err();
    assert!(matches!(error, OpenError::IngressQdisc { .. }), "{error:?}");
    assert!(error.to_string().ends_with("remove it (tc qdisc del dev uplink ingress)"), "{error}");
    assert_eq!(qdiscs(), ["noqueue", "ingress"]);
}

#[test]
fn what_attaching_needs_is_said_for_each_hook() {
    let mut node = Node::open();
    node.options().cgroup = "/proc/self".into();
    let error = node.try_reopen().unwrap_err().to_string();
    assert_eq!(error, "attach orlop_connect4 to /proc/self: needs root and a kernel from 5.18 on");
    node.options().cgroup = Node::cgroup_root();
    node.options().uplinks = vec!["nowhere".into()];
    assert_eq!(node.try_reopen().unwrap_err().to_string(), "uplink nowhere does not exist");
}

#[test]
fn two_dataplanes_on_one_pin_root_are_refused() {
    let mut node = Node::open();
    let options = node.options().clone();
    let error = Dataplane::open(&options).err().expect("a second one");
    assert!(error.to_string().starts_with("another process has /sys/fs/bpf/orlop open"), "{error}");
    assert!(matches!(dataplane::remove_all(&options.pin_root), Err(OpenError::InUse { .. })));
    assert!(node.pins().exists());
    node.crash();
    drop(Dataplane::open(&options).unwrap());
}
