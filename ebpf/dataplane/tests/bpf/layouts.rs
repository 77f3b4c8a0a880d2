//! An upgrade that changes the maps' layout: what an older build left goes on with this one's programs.
//!
//! The older build's maps are those of this build under an earlier number. Where a test wants one that changed, it makes it from our own
//! object, whose type information it alters as if structures had fewer fields, or gives it other room.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::num::{NonZeroU8, NonZeroU32};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aya::EbpfLoader;
use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use dataplane::Protocol::{Tcp, Udp};
use dataplane::policy::Protocol;
use dataplane::{Origin, Target, UplinkHook};
use dataplane_abi::{
    Affinity, AffinityKey, Allowed, AllowedKey, Backend, Connected, LAYOUT_VERSION, NatKey, NatValue,
    ShownPeer, capacity, counter, map,
};

use crate::earlier;
use crate::hooks::rename_filters;
use crate::node::{
    LIMIT, Links, NODE, Node, OUTSIDE, POD, V4, ask_tcp, at, frontend, inside, ip, link, serve_tcp, serve_udp,
};
use crate::policy::{Policed, allow, pod_link, port, ruleset};
use crate::uplink::ANY;

const NAT_KEY: usize = size_of::<NatKey>();
const NAT_VALUE: usize = size_of::<NatValue>();
const OLDER_VALUE: usize = NAT_VALUE - size_of::<u32>();
const _: () = assert!(std::mem::offset_of!(NatValue, link) == OLDER_VALUE, "another field is the last");
/// What the older build's backends do not have.
const MISSING: std::ops::Range<usize> =
    std::mem::offset_of!(Backend, failures)..std::mem::offset_of!(Backend, generation);
const OLDER_BACKEND: usize = size_of::<Backend>() - (MISSING.end - MISSING.start);
const CONNECTIONS: usize = std::mem::offset_of!(Backend, connections);
const _: () = assert!(CONNECTIONS < MISSING.start, "it stands elsewhere in the older build's");

/// For what is not answered.
const SHORT: Duration = Duration::from_millis(500);

/// A connection with both its ends.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    /// From one namespace to a listener in another, by whatever address leads there.
    fn open(listener: &TcpListener, from: &str, to: std::net::SocketAddr) -> Self {
        let client = inside(from, move || TcpStream::connect_timeout(&to, LIMIT)).join().unwrap().unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(LIMIT)).unwrap();
        }
        Self { client, server }
    }

    /// Whether both ends still hear each other.
    fn exchange(&mut self) {
        let mut heard = [0];
        self.client.write_all(b"?").unwrap();
        self.server.read_exact(&mut heard).unwrap();
        self.server.write_all(b"!").unwrap();
        self.client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, *b"!");
    }
}

fn listen(namespace: &str, port: u16) -> TcpListener {
    inside(namespace, move || TcpListener::bind(at(ANY, port)).unwrap()).join().unwrap()
}

fn older(node: &Node) -> PathBuf {
    earlier::folder(&node.pins())
}

/// Makes what the node has what a build of the layout before left.
fn make_older(node: &mut Node) {
    node.crash();
    make_filters_older(node);
    std::fs::rename(node.pins(), older(node)).unwrap();
}

fn make_filters_older(node: &Node) {
    if node.attachments().values().any(|attachment| attachment.held_by.starts_with("filter")) {
        rename_filters(&older(node));
    }
}

/// Our own object.
fn object() -> Vec<u8> {
    include_bytes!(concat!(env!("OUT_DIR"), "/dataplane.o")).to_vec()
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(*bytes[offset..].first_chunk().unwrap())
}

/// The object of a build in whose structure of this name a field is missing.
fn without(mut object: Vec<u8>, structure: &str, field: &str) -> Vec<u8> {
    const HEADER: usize = 24;
    const TYPE: usize = 12;
    const FIELD: usize = 12;
    let magic = [0x9f, 0xeb, 1, 0, HEADER as u8, 0, 0, 0];
    let start = object.windows(magic.len()).position(|bytes| bytes == magic).unwrap();
    let information = &mut object[start..];
    let [types, strings, strings_length] = [12, 16, 20].map(|offset| word(information, offset) as usize);
    let string = |wanted: &str| {
        let all = &information[HEADER + strings..][..strings_length];
        let bytes = [b"\0", wanted.as_bytes(), b"\0"].concat();
        all.windows(bytes.len()).position(|found| found == bytes).unwrap() as u32 + 1
    };
    let (structure, field) = (string(structure), string(field));
    let is_structure =
        |at: &usize| word(information, *at) == structure && word(information, at + 4) >> 24 == 4;
    let found = (HEADER..HEADER + types).step_by(4).find(is_structure).unwrap();
    let (says, size) = (word(information, found + 4), word(information, found + 8));
    let fields = found + TYPE..found + TYPE + FIELD * (says & 0xffff) as usize;
    let all: Vec<usize> = fields.step_by(FIELD).collect();
    let index = all.iter().position(|at| word(information, *at) == field).unwrap();
    let place = |index: usize| all.get(index).map_or(size * 8, |at| word(information, at + 8));
    let bits = place(index + 1) - place(index);
    let later: Vec<(usize, u32)> =
        (index + 1..all.len()).map(|index| (all[index] + 8, place(index) - bits)).collect();
    let mut set = |at: usize, number: u32| information[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    later.into_iter().for_each(|(at, bits)| set(at, bits));
    set(found + 4, says - 1);
    set(found + 8, size - bits / 8);
    set(12, (types - FIELD) as u32);
    set(16, (strings - FIELD) as u32);
    set(20, (strings_length + FIELD) as u32);
    let end = HEADER + strings + strings_length;
    information.copy_within(all[index] + FIELD..end, all[index]);
    information[end - FIELD..end].fill(0);
    object
}

/// The object of the older build: flows have no link, backends no failures.
fn older_object() -> Vec<u8> {
    let fields = [("NatValue", "link"), ("Backend", "failures"), ("Backend", "aside_until")];
    fields.into_iter().fold(object(), |object, (structure, field)| without(object, structure, field))
}

fn entries<const KEY: usize, const VALUE: usize>(pin: &Path) -> Vec<([u8; KEY], [u8; VALUE])> {
    typed(pin).iter().collect::<Result<_, _>>().unwrap()
}

fn typed<const KEY: usize, const VALUE: usize>(pin: &Path) -> HashMap<MapData, [u8; KEY], [u8; VALUE]> {
    HashMap::try_from(Map::LruHashMap(MapData::from_pin(pin).unwrap())).unwrap()
}

/// Puts a map of another object, and of other room, in the place of an older one; it holds the same, as far as its values go.
fn replace<const KEY: usize, const VALUE: usize, const OLDER: usize>(
    node: &Node,
    name: &str,
    object: &[u8],
    room: usize,
) {
    let pin = older(node).join(name);
    let found = entries::<KEY, VALUE>(&pin);
    std::fs::remove_file(&pin).unwrap();
    EbpfLoader::new().map_pin_path(name, &pin).map_max_entries(name, room as u32).load(object).unwrap();
    let mut map = typed::<KEY, OLDER>(&pin);
    for (key, value) in found {
        map.insert(key, value.first_chunk().unwrap(), 0).unwrap();
    }
}

/// Puts the older build's backends in the place of ours.
fn replace_backends(node: &Node, object: &[u8]) {
    const SIZE: usize = size_of::<Backend>();
    let pin = older(node).join(map::BACKENDS);
    let open = || Map::Array(MapData::from_pin(&pin).unwrap());
    let found: Array<MapData, [u8; SIZE]> = Array::try_from(open()).unwrap();
    let found: Vec<_> = found.iter().collect::<Result<_, _>>().unwrap();
    std::fs::remove_file(&pin).unwrap();
    EbpfLoader::new().map_pin_path(map::BACKENDS, &pin).load(object).unwrap();
    let mut backends: Array<MapData, [u8; OLDER_BACKEND]> = Array::try_from(open()).unwrap();
    for (index, backend) in (0..).zip(found).filter(|(_, backend)| *backend != [0; SIZE]) {
        let older = [&backend[..MISSING.start], &backend[MISSING.end..]].concat();
        backends.set(index, <[u8; OLDER_BACKEND]>::try_from(older).unwrap(), 0).unwrap();
    }
}

/// The number that no other map has.
fn id(pins: &Path, name: &str) -> u32 {
    MapInfo::from_pin(pins.join(name)).unwrap().id()
}

/// What there is of connections on a node, and what it takes to see that they go on.
struct Busy {
    node: Node,
    inbound: Connection,
    outbound: Connection,
    /// The endpoint that the host outside stays with.
    name: String,
}

impl Busy {
    fn make(hook: UplinkHook) -> Self {
        let mut node = Node::with_hook(hook);
        node.masquerade();
        let listener = listen("pod", 8080);
        node.set(frontend(NODE, 30080, Tcp), &[at(POD, 8080)]);
        let inbound = Connection::open(&listener, "outside", at(NODE, 30080));
        let outbound = Connection::open(&listen("outside", 7000), "pod", at(OUTSIDE, 7000));
        inside("pod", || {
            for (port, name) in [(8081, "a"), (8082, "b"), (8083, "c"), (8084, "d")] {
                serve_tcp(at(ANY, port), name);
            }
        })
        .join()
        .unwrap();
        let endpoints = [8081, 8082, 8083, 8084].map(|port| at(POD, port));
        let affinity_seconds = NonZeroU32::new(3600);
        node.lead(frontend(NODE, 30081, Tcp), &Target { affinity_seconds, ..Target::all(endpoints) });
        let name = ask();
        let mut busy = Self { node, inbound, outbound, name };
        busy.go_on();
        busy
    }

    fn go_on(&mut self) {
        self.inbound.exchange();
        self.outbound.exchange();
        assert!((0..8).all(|_| ask() == self.name));
    }

    /// Changes the layout while both connections are in use.
    fn change_under_way(&mut self) {
        let Self { node, inbound, outbound, .. } = self;
        let is_over = AtomicBool::new(false);
        let use_it = |connection: &mut Connection| {
            while !is_over.load(Ordering::Relaxed) {
                connection.exchange();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| use_it(inbound));
            scope.spawn(|| use_it(outbound));
            let adopted = node.try_reopen();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(adopted.unwrap(), 2);
        });
    }

    fn sync(&mut self) {
        let dataplane = self.node.dataplane.as_mut().unwrap();
        let keep = [30080, 30081].map(|port| frontend(NODE, port, Tcp));
        assert_eq!(dataplane.retain(&keep.into()).unwrap(), 0);
        dataplane.retain_policies().unwrap();
    }
}

fn ask() -> String {
    inside("outside", || ask_tcp(at(NODE, 30081))).join().unwrap().unwrap()
}

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
    maps_that_did_not_change_are_the_very_maps
    flows_whose_layout_changed_go_on
    a_change_that_was_interrupted_begins_anew
    a_change_that_was_interrupted_goes_on
    a_change_that_was_interrupted_goes_on_where_the_older_maps_cannot_be_read
    what_an_older_build_did_meanwhile_counts
    pods_stay_isolated_and_served_by_packets
    what_may_be_known_to_the_earlier_programs_waits
    connections_that_begin_during_a_change_come_about
}

fn maps_that_did_not_change_are_the_very_maps(hook: UplinkHook) {
    let _links = Links::make();
    let mut busy = Busy::make(hook);
    let attached = busy.node.attachments();
    let maps = [map::SERVICES, map::NAT, map::SOCKETS, map::CONFIG];
    let before = maps.map(|name| id(&busy.node.pins(), name));
    make_older(&mut busy.node);
    // What a process left that was killed before it had all.
    let next = older(&busy.node).with_file_name("next");
    std::fs::create_dir(&next).unwrap();
    MapData::from_pin(older(&busy.node).join(map::NAT)).unwrap().pin(next.join(map::INBOUND)).unwrap();
    assert_eq!(busy.node.reopen(), 2);
    assert_eq!(busy.node.attachments(), attached, "the programs and their maps are equal");
    assert_eq!(maps.map(|name| id(&busy.node.pins(), name)), before);
    let left = std::fs::read_dir("/sys/fs/bpf/orlop").unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(left.collect::<Vec<_>>(), [busy.node.pins()]);
    busy.go_on();
    busy.sync();
    busy.go_on();
}

fn flows_whose_layout_changed_go_on(hook: UplinkHook) {
    let _links = Links::make();
    let mut busy = Busy::make(hook);
    let attached = busy.node.attachments();
    make_older(&mut busy.node);
    let object = older_object();
    for name in [map::NAT, map::INBOUND] {
        replace::<NAT_KEY, NAT_VALUE, OLDER_VALUE>(&busy.node, name, &object, capacity::NAT);
    }
    const KEY: usize = size_of::<AffinityKey>();
    const VALUE: usize = size_of::<Affinity>();
    replace::<KEY, VALUE, VALUE>(&busy.node, map::AFFINITY_OUTSIDE, &object, capacity::AFFINITY / 2);
    replace_backends(&busy.node, &object);
    // One that the older build does not have.
    std::fs::remove_file(older(&busy.node).join(map::TRIED)).unwrap();
    busy.change_under_way();
    for (program, after) in busy.node.attachments() {
        assert_eq!(after.held_by, attached[program].held_by, "{program} was replaced in place");
        assert_ne!(after.program, attached[program].program, "{program} works on other maps");
    }
    assert!(!older(&busy.node).exists());
    busy.go_on();
    busy.sync();
    busy.go_on();
    assert!(!busy.node.rewrite_affinities(Origin::Outside, |_| {}).is_empty());
}

/// Until when flows wait, by the clock of the programs.
fn hold(node: &Node, until: u64) {
    let pin = MapData::from_pin(node.pins().join(map::HOLD)).unwrap();
    Array::<MapData, u64>::try_from(Map::Array(pin)).unwrap().set(0, until, 0).unwrap();
}

fn what_may_be_known_to_the_earlier_programs_waits(hook: UplinkHook) {
    let _links = Links::make();
    ip("-n outside route add 10.244.0.0/24 via 192.0.2.1");
    let mut busy = Busy::make(hook);
    let listener = listen("pod", 8090);
    busy.node.set(frontend(NODE, 30090, Tcp), &[at(POD, 8090)]);
    busy.node.dataplane.as_mut().unwrap().set_peers(&[OUTSIDE.into()]).unwrap();
    serve_tcp(at(NODE, 7200), "node");
    hold(&busy.node, u64::MAX);
    let more_is_held = |busy: &mut Busy, what: &str, send: &dyn Fn(&mut Busy)| {
        let before = busy.node.counter(counter::HELD);
        send(busy);
        harness::wait::until(what, LIMIT, || {
            if busy.node.counter(counter::HELD) > before { Ok(()) } else { Err("nothing is held".to_owned()) }
        });
    };
    // All that has its flow goes on, and so does what needs none.
    busy.inbound.exchange();
    busy.outbound.exchange();
    assert_eq!(inside("outside", || ask_tcp(at(NODE, 7200))).join().unwrap().unwrap(), "node saw 192.0.2.9");
    let connect = |to| inside("outside", move || TcpStream::connect_timeout(&to, LIMIT));
    let connecting = Cell::new(Vec::new());
    for (what, to) in [("a new connection", at(NODE, 30090)), ("one straight to the pod", at(POD, 8090))] {
        more_is_held(&mut busy, what, &|_| {
            let mut all = connecting.take();
            all.push(connect(to));
            connecting.set(all);
        });
    }
    more_is_held(&mut busy, "what another node tells", &|_| {
        let tell = || UdpSocket::bind(at(OUTSIDE, 0)).unwrap().send_to(b"?", at(NODE, 6081)).unwrap();
        inside("outside", tell).join().unwrap();
    });
    // What the programs do not know yet is sent again: nobody refuses it meanwhile.
    let known = [map::NAT, map::INBOUND].map(|map| (map, busy.node.known_flows(map)));
    known.iter().for_each(|(map, _)| busy.node.forget_flows(map, |_| true));
    more_is_held(&mut busy, "a known client's packet", &|busy| {
        busy.inbound.client.write_all(b"?").unwrap();
    });
    more_is_held(&mut busy, "an answer to a pod", &|busy| {
        busy.outbound.server.write_all(b"!").unwrap();
    });
    for (map, flows) in known {
        let mut empty = typed::<NAT_KEY, NAT_VALUE>(&busy.node.pins().join(map));
        for (key, flow) in flows {
            empty.insert(key, flow.to_bytes(), 0).unwrap();
        }
    }
    // A moment that is over, as where the process died in whose time it lay.
    hold(&busy.node, 1);
    for (end, expected) in [(&mut busy.inbound.server, b'?'), (&mut busy.outbound.client, b'!')] {
        let mut heard = [0];
        end.read_exact(&mut heard).unwrap();
        assert_eq!(heard, [expected]);
    }
    for connecting in connecting.into_inner() {
        connecting.join().unwrap().unwrap();
        listener.accept().unwrap();
    }
    busy.go_on();
}

/// The earlier programs lead what begins until ours know it. Copying takes long enough here that some do so in that time.
fn connections_that_begin_during_a_change_come_about(hook: UplinkHook) {
    const CLIENTS: usize = 16;
    const ASKED: usize = 10 * CLIENTS;
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    node.masquerade();
    inside("pod", || serve_tcp(at(ANY, 8080), "pod")).join().unwrap();
    inside("outside", || serve_tcp(at(ANY, 7000), "outside")).join().unwrap();
    node.set(frontend(NODE, 30080, Tcp), &[at(POD, 8080)]);
    earlier::attach(&node.pins(), &["uplink"]);
    node.crash();
    make_filters_older(&node);
    earlier::leave(&node.pins());
    for map in [map::NAT, map::INBOUND] {
        fill::<NAT_VALUE>(&older(&node).join(map), capacity::NAT / 4);
    }
    let (asked, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let ways = [("outside", at(NODE, 30080)), ("pod", at(OUTSIDE, 7000))];
    let clients = std::iter::repeat_n(ways, CLIENTS).flatten().map(|(from, to)| {
        let (asked, is_over) = (asked.clone(), is_over.clone());
        inside(from, move || {
            while !is_over.load(Ordering::Relaxed) {
                ask_tcp(to).unwrap();
                asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let some_more = || {
        let enough = asked.load(Ordering::Relaxed) + ASKED;
        harness::wait::until("connections", LIMIT, || {
            let so_far = asked.load(Ordering::Relaxed);
            if so_far >= enough { Ok(()) } else { Err(format!("{so_far} of {enough}")) }
        });
    };
    some_more();
    assert_eq!(node.reopen(), 1);
    some_more();
    is_over.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    only_ours_is_left(&node);
}

/// Pins the maps of a folder in another; those that are there already stay.
fn pin_maps(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("ORLOP_") && !to.join(&name).exists() {
            MapData::from_pin(from.join(&name)).unwrap().pin(to.join(&name)).unwrap();
        }
    }
}

fn note(node: &Node) -> PathBuf {
    node.pins().join(format!("from_v{}", LAYOUT_VERSION - 1))
}

fn first_link(folder: &Path) -> String {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).find(|name| name.starts_with("link_")).unwrap()
}

fn only_ours_is_left(node: &Node) {
    let left = std::fs::read_dir("/sys/fs/bpf/orlop").unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(left.collect::<Vec<_>>(), [node.pins()]);
    assert!(!note(node).exists());
}

/// Killed when everything was ours, but for links and filters. The earlier programs went on, and so did an earlier build that changed services:
/// what was copied is of no use any more.
fn a_change_that_was_interrupted_begins_anew(hook: UplinkHook) {
    let _links = Links::make();
    let mut busy = Busy::make(hook);
    busy.node.rewrite_backends(|backend| backend.connections = 5);
    let connections = busy.node.connections();
    let attached = busy.node.attachments();
    make_older(&mut busy.node);
    let (older, ours) = (older(&busy.node), busy.node.pins());
    let copied = [map::INBOUND, map::BACKENDS];
    let flows = entries::<NAT_KEY, NAT_VALUE>(&older.join(map::INBOUND));
    let object = older_object();
    replace::<NAT_KEY, NAT_VALUE, OLDER_VALUE>(&busy.node, map::INBOUND, &object, capacity::INBOUND);
    replace_backends(&busy.node, &object);
    // Each flow leads elsewhere, there is one that ended, and no backend.
    std::fs::create_dir(&ours).unwrap();
    let mut ours_alone = EbpfLoader::new();
    for name in copied {
        ours_alone.map_pin_path(name, ours.join(name));
    }
    ours_alone.load(&self::object()).unwrap();
    pin_maps(&older, &ours);
    let before = copied.map(|name| id(&ours, name));
    let mut stale = typed::<NAT_KEY, NAT_VALUE>(&ours.join(map::INBOUND));
    for (key, value) in flows {
        let value = NatValue::from_bytes(value);
        let elsewhere = NatValue { port_be: 9_u16.to_be(), used: value.used + 1, ..value };
        stale.insert(key, elsewhere.to_bytes(), 0).unwrap();
    }
    stale.insert([7; NAT_KEY], [9; NAT_VALUE], 0).unwrap();
    // Of the links some are ours.
    let link = first_link(&older);
    std::fs::rename(older.join(&link), ours.join(&link)).unwrap();
    std::fs::create_dir(note(&busy.node)).unwrap();
    assert_eq!(busy.node.reopen(), 2);
    only_ours_is_left(&busy.node);
    for (program, after) in busy.node.attachments() {
        assert_eq!(after.held_by, attached[program].held_by, "{program} was replaced in place");
    }
    for (name, before) in copied.into_iter().zip(before) {
        assert_ne!(id(&ours, name), before, "{name} was copied anew");
    }
    assert_eq!(busy.node.connections(), connections);
    let found = entries::<NAT_KEY, NAT_VALUE>(&ours.join(map::INBOUND));
    assert!(found.iter().all(|(key, _)| *key != [7; NAT_KEY]));
    busy.go_on();
    busy.sync();
    busy.go_on();
    // A note of a layout that is gone says nothing.
    std::fs::create_dir(note(&busy.node)).unwrap();
    assert_eq!(busy.node.reopen(), 2);
    only_ours_is_left(&busy.node);
    busy.go_on();
}

/// Killed when programs of ours were at work already; `older` still has its maps and a link.
fn interrupt_at_work(busy: &mut Busy) {
    const KEPT: &str = "/sys/fs/bpf/kept";
    make_older(&mut busy.node);
    let object = older_object();
    replace::<NAT_KEY, NAT_VALUE, OLDER_VALUE>(&busy.node, map::INBOUND, &object, capacity::INBOUND);
    replace_backends(&busy.node, &object);
    pin_maps(&older(&busy.node), Path::new(KEPT));
    assert_eq!(busy.node.reopen(), 2);
    busy.node.crash();
    pin_maps(Path::new(KEPT), &older(&busy.node));
    std::fs::remove_dir_all(KEPT).unwrap();
    std::fs::create_dir(note(&busy.node)).unwrap();
    let link = first_link(&busy.node.pins());
    std::fs::rename(busy.node.pins().join(&link), older(&busy.node).join(&link)).unwrap();
}

fn a_change_that_was_interrupted_goes_on(hook: UplinkHook) {
    let _links = Links::make();
    let mut busy = Busy::make(hook);
    interrupt_at_work(&mut busy);
    let attached = busy.node.attachments();
    let (theirs, ours) = (older(&busy.node).join(map::INBOUND), busy.node.pins().join(map::INBOUND));
    let (mut of_older, mut of_ours) =
        (typed::<NAT_KEY, OLDER_VALUE>(&theirs), typed::<NAT_KEY, NAT_VALUE>(&ours));
    let value = |port: u16, used| {
        NatValue { port_be: port.to_be(), used, ..NatValue::from_bytes([0; NAT_VALUE]) }.to_bytes()
    };
    // By when each of the two used it last.
    let cases = [
        ([1; NAT_KEY], Some((1, 7)), Some((2, 8)), (2, 8)),
        ([2; NAT_KEY], Some((1, 8)), Some((2, 7)), (1, 8)),
        ([3; NAT_KEY], None, Some((2, 1)), (2, 1)),
        ([4; NAT_KEY], Some((1, 1)), None, (1, 1)),
    ];
    for (key, ours, theirs, _) in cases {
        if let Some((port, used)) = ours {
            of_ours.insert(key, value(port, used), 0).unwrap();
        }
        if let Some((port, used)) = theirs {
            of_older.insert(key, value(port, used).first_chunk::<OLDER_VALUE>().unwrap(), 0).unwrap();
        }
    }
    busy.node.rewrite_backends(|backend| backend.connections += 1);
    let (connections, maps) = (busy.node.connections(), id(&busy.node.pins(), map::BACKENDS));
    assert_eq!(busy.node.reopen(), 2);
    only_ours_is_left(&busy.node);
    assert_eq!(busy.node.attachments(), attached, "these programs were ours");
    assert_eq!(id(&busy.node.pins(), map::BACKENDS), maps, "nothing began anew");
    assert_eq!(busy.node.connections(), connections);
    for (key, _, _, (port, used)) in cases {
        assert_eq!(of_ours.get(&key, 0).unwrap(), value(port, used), "{key:?}");
    }
    busy.go_on();
    busy.sync();
    busy.go_on();
}

fn a_change_that_was_interrupted_goes_on_where_the_older_maps_cannot_be_read(hook: UplinkHook) {
    let _links = Links::make();
    let mut busy = Busy::make(hook);
    interrupt_at_work(&mut busy);
    let attached = busy.node.attachments();
    let name = first_link(&older(&busy.node));
    let held = link(&older(&busy.node).join(&name)).unwrap();
    spoil(&busy.node, map::SERVICES);
    assert_eq!(busy.node.reopen(), 2);
    only_ours_is_left(&busy.node);
    assert_eq!(busy.node.attachments(), attached);
    assert_eq!(link(&busy.node.pins().join(&name)), Some(held), "it was taken over");
    busy.go_on();
    busy.sync();
    busy.go_on();
}

/// An older build ran once more after the change was interrupted, and attached its own.
fn what_an_older_build_did_meanwhile_counts(hook: UplinkHook) {
    const KEPT: &str = "/sys/fs/bpf/kept";
    let _links = Links::make();
    let mut busy = Busy::make(hook);
    make_older(&mut busy.node);
    pin_maps(&older(&busy.node), Path::new(KEPT));
    spoil(&busy.node, map::SERVICES);
    assert_eq!(busy.node.reopen(), 0);
    let beside = busy.node.attachments();
    busy.node.crash();
    std::fs::remove_file(older(&busy.node).join(map::SERVICES)).unwrap();
    pin_maps(Path::new(KEPT), &older(&busy.node));
    std::fs::remove_dir_all(KEPT).unwrap();
    std::fs::create_dir(note(&busy.node)).unwrap();
    assert_eq!(busy.node.reopen(), 2);
    only_ours_is_left(&busy.node);
    for (program, after) in busy.node.attachments() {
        assert_ne!(after.held_by, beside[program].held_by, "{program} of the older layout was taken over");
    }
    busy.go_on();
    busy.sync();
    busy.go_on();
}

fn pods_stay_isolated_and_served_by_packets(hook: UplinkHook) {
    const OPEN: u16 = 8080;
    const CLOSED: u16 = 8082;
    let _links = Links::make();
    let mut node = Node::with_hook(hook);
    node.masquerade();
    node.dataplane.as_mut().unwrap().serve_packets(&pod_link()).unwrap();
    node.change(&[allow(ruleset(1), OUTSIDE.into(), port(Protocol::Tcp, OPEN))]);
    node.isolate(Some(1), None);
    for (node_port, pod_port) in [(30080, OPEN), (30082, CLOSED)] {
        node.set(frontend(NODE, node_port, Tcp), &[at(POD, pod_port)]);
    }
    node.set(frontend(V4.cluster_ip, 80, Tcp), &[at(OUTSIDE, 7000)]);
    let mut inbound = Connection::open(&listen("pod", OPEN), "outside", at(NODE, 30080));
    let mut by_packets = Connection::open(&listen("outside", 7000), "pod", at(V4.cluster_ip, 80));
    let _closed = listen("pod", CLOSED);
    let attached = node.attachments();
    assert_eq!(attached.len(), 6, "{attached:?}");
    make_older(&mut node);
    let object = older_object();
    replace::<NAT_KEY, NAT_VALUE, OLDER_VALUE>(&node, map::INBOUND, &object, capacity::INBOUND);
    const KEY: usize = size_of::<AllowedKey>();
    const VALUE: usize = size_of::<Allowed>();
    replace::<KEY, VALUE, VALUE>(&node, map::ALLOWED, &object, capacity::ALLOWED / 2);
    assert_eq!(node.reopen(), 3);
    for (program, after) in node.attachments() {
        assert_eq!(after.held_by, attached[program].held_by, "{program} was replaced in place");
    }
    inbound.exchange();
    by_packets.exchange();
    let before = node.denied();
    let ask = inside("outside", || TcpStream::connect_timeout(&at(NODE, 30082), SHORT));
    assert!(ask.join().unwrap().is_err());
    assert!(node.denied() > before);
    assert!(!entries::<KEY, VALUE>(&node.pins().join(map::ALLOWED)).is_empty());
}

#[test]
fn sockets_show_the_cluster_ip_across_a_change_of_the_layout() {
    let mut node = Node::open();
    let local = at(V4.localhost, 0);
    let (tcp, udp) = (at(V4.cluster_ip, 80), at(V4.cluster_ip, 53));
    node.set(frontend(V4.cluster_ip, 80, Tcp), &[serve_tcp(local, "tcp")]);
    node.set(frontend(V4.cluster_ip, 53, Udp), &[serve_udp(local, "udp")]);
    let stream = TcpStream::connect(tcp).unwrap();
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(udp).unwrap();
    make_older(&mut node);
    const PEER: usize = size_of::<ShownPeer>();
    replace::<8, PEER, PEER>(&node, map::PEERS, &object(), capacity::PEERS / 2);
    assert_eq!(node.reopen(), 2);
    assert!(!older(&node).exists());
    assert_eq!(stream.peer_addr().unwrap(), tcp);
    assert_eq!(socket.peer_addr().unwrap(), udp);
    const CONNECTED: usize = size_of::<Connected>();
    assert_eq!(entries::<8, CONNECTED>(&node.pins().join(map::CONNECTED)).len(), 1);
    assert_eq!(ask_tcp(tcp).unwrap(), "tcp saw 127.0.0.1");
    drop(stream);
    assert_eq!(node.keys(map::PEERS), 0, "a program of ours forgot it");
}

/// How connections end is heard on demand, by a program of its own.
#[test]
fn a_program_that_is_attached_on_demand_is_taken_over() {
    let mut node = Node::open();
    let pin = |node: &Node| node.pins().join("link_orlop_tried");
    let vip = frontend(V4.cluster_ip, 80, Tcp);
    let backend = serve_tcp(at(V4.localhost, 0), "tcp");
    let set_aside_after = NonZeroU8::new(1);
    node.lead(vip, &Target { set_aside_after, ..Target::all([backend]) });
    let before = link(&pin(&node)).unwrap();
    make_older(&mut node);
    replace_backends(&node, &older_object());
    assert_eq!(node.reopen(), 1);
    let after = link(&pin(&node)).unwrap();
    assert_eq!(after.held_by, before.held_by);
    assert_ne!(after.program, before.program, "it works on other maps");
    assert_eq!(ask_tcp(at(V4.cluster_ip, 80)).unwrap(), "tcp saw 127.0.0.1");
    // And where the process was killed when it was ours already.
    make_older(&mut node);
    let older = older(&node);
    pin_maps(&older, &node.pins());
    std::fs::create_dir(note(&node)).unwrap();
    std::fs::rename(older.join("link_orlop_tried"), pin(&node)).unwrap();
    assert_eq!(node.reopen(), 1);
    assert_eq!(link(&pin(&node)), Some(after));
    only_ours_is_left(&node);
}

/// The earlier programs, for which the test stands, go on counting and leading flows while others are copied, until ours take over.
#[test]
fn what_the_earlier_programs_write_during_a_change_counts() {
    const KEY: [u8; NAT_KEY] = [1; NAT_KEY];
    let mut node = Node::open();
    node.set(frontend(V4.cluster_ip, 80, Tcp), &[at(V4.localhost, 8080)]);
    make_older(&mut node);
    let object = older_object();
    replace_backends(&node, &object);
    replace::<NAT_KEY, NAT_VALUE, OLDER_VALUE>(&node, map::NAT, &object, capacity::NAT);
    fill::<OLDER_VALUE>(&older(&node).join(map::NAT), capacity::NAT / 2);
    let (mut flows, ours) = (typed::<NAT_KEY, OLDER_VALUE>(&older(&node).join(map::NAT)), node.pins());
    let pin = MapData::from_pin(older(&node).join(map::BACKENDS)).unwrap();
    let mut backends: Array<MapData, [u8; OLDER_BACKEND]> = Array::try_from(Map::Array(pin)).unwrap();
    let value = |selection: u64| NatValue { selection, ..NatValue::from_bytes([0; NAT_VALUE]) }.to_bytes();
    let is_used = |index: &u32| backends.get(index, 0).unwrap() != [0; OLDER_BACKEND];
    let index = (0..).find(is_used).unwrap();
    let written = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut written = 0_u32;
            while !ours.exists() {
                written += 1;
                let mut backend = backends.get(&index, 0).unwrap();
                backend[CONNECTIONS..][..4].copy_from_slice(&written.to_ne_bytes());
                backends.set(index, backend, 0).unwrap();
                flows.insert(KEY, value(written.into()).first_chunk().unwrap(), 0).unwrap();
            }
            written
        });
        assert_eq!(node.reopen(), 1);
        writing.join().unwrap()
    });
    assert_eq!(node.connections(), written.cast_signed());
    let flows = typed::<NAT_KEY, NAT_VALUE>(&ours.join(map::NAT));
    assert_eq!(flows.get(&KEY, 0).unwrap(), value(written.into()));
}

/// As many as there is room for.
#[test]
fn full_tables_are_carried_over() {
    let mut node = Node::open();
    make_older(&mut node);
    let object = older_object();
    replace::<NAT_KEY, NAT_VALUE, OLDER_VALUE>(&node, map::NAT, &object, capacity::NAT);
    fill::<OLDER_VALUE>(&older(&node).join(map::NAT), capacity::NAT);
    let present = entries::<NAT_KEY, OLDER_VALUE>(&older(&node).join(map::NAT)).len();
    node.reopen();
    let carried = entries::<NAT_KEY, NAT_VALUE>(&node.pins().join(map::NAT));
    // A full map makes room by handfuls.
    assert!(carried.len() * 100 >= present * 99, "{} of {present}", carried.len());
    for (key, value) in carried {
        assert_eq!((&key[..4], &value[4..OLDER_VALUE]), (&value[..4], &[9; OLDER_VALUE - 4][..]));
        assert_eq!(value[OLDER_VALUE..], [0; 4]);
    }
}

/// Fills an older map of flows.
fn fill<const VALUE: usize>(pin: &Path, count: usize) {
    let mut flows = typed::<NAT_KEY, VALUE>(pin);
    for number in 0..count as u32 {
        let (mut key, mut value) = ([7; NAT_KEY], [9; VALUE]);
        key[..4].copy_from_slice(&number.to_ne_bytes());
        value[..4].copy_from_slice(&number.to_ne_bytes());
        flows.insert(key, value, 0).unwrap();
    }
}

/// Puts a map of another type in the place of an older one.
fn spoil(node: &Node, name: &str) {
    let pin = older(node).join(name);
    std::fs::remove_file(&pin).unwrap();
    MapData::from_pin(older(node).join(map::COUNTERS)).unwrap().pin(pin).unwrap();
}

#[test]
fn where_the_tables_cannot_be_carried_over_the_older_programs_go_on_until_the_first_sync() {
    let _links = Links::make();
    let mut busy = Busy::make(UplinkHook::Newest);
    make_older(&mut busy.node);
    spoil(&busy.node, map::SERVICES);
    assert_eq!(busy.node.reopen(), 0);
    busy.go_on();
    // And that is so for good: the next process finds maps of its own.
    assert_eq!(busy.node.reopen(), 0);
    busy.go_on();
    assert!(older(&busy.node).exists());
    busy.sync();
    assert!(!older(&busy.node).exists());
}

#[test]
fn flows_that_cannot_be_carried_over_are_lost_alone() {
    let _links = Links::make();
    let mut busy = Busy::make(UplinkHook::Newest);
    make_older(&mut busy.node);
    spoil(&busy.node, map::INBOUND);
    assert_eq!(busy.node.reopen(), 2);
    busy.outbound.exchange();
    assert_eq!(ask(), busy.name);
    assert!(!older(&busy.node).exists());
}
