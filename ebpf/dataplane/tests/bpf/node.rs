//! The place where these tests run: a node with an uplink to an outside host and a pod, each in its own namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, Queue};
use dataplane::{
    Acceleration, Dataplane, Frontend, Masquerade, OpenError, Options, Origin, Protocol, Target, UplinkHook,
};
use dataplane_abi::{
    Affinity, AffinityKey, Backend, Ended, LAYOUT_VERSION, NatKey, NatValue, ShownPeer, map, nat,
};

pub const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

/// The addresses of the place in one family.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub pod: IpAddr,
    /// The node, as the pod sees it.
    pub gateway: IpAddr,
    pub node: IpAddr,
    pub outside: IpAddr,
    /// Another host there.
    pub neighbour: IpAddr,
    /// A pod of another node.
    pub remote: IpAddr,
    pub any: IpAddr,
    pub localhost: IpAddr,
    pub cluster_ip: IpAddr,
    /// The pods of this node, and all.
    pods: &'static str,
    all_pods: &'static str,
}

pub const V4: Place = Place {
    pod: IpAddr::V4(POD),
    gateway: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)),
    node: IpAddr::V4(NODE),
    outside: IpAddr::V4(OUTSIDE),
    neighbour: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
    remote: IpAddr::V4(Ipv4Addr::new(10, 244, 7, 7)),
    any: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    localhost: IpAddr::V4(Ipv4Addr::LOCALHOST),
    cluster_ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    pods: "10.244.0.0/24",
    all_pods: "10.244.0.0/16",
};

pub const V6: Place = Place {
    pod: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 2)),
    gateway: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1)),
    node: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    outside: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)),
    neighbour: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10)),
    remote: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 7, 0, 0, 0, 7)),
    any: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    localhost: IpAddr::V6(Ipv6Addr::LOCALHOST),
    cluster_ip: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10)),
    pods: "fd00:244::/64",
    all_pods: "fd00:244::/48",
};

pub const PLACES: [Place; 2] = [V4, V6];

impl Place {
    /// Pods show the node's address, but to other pods.
    pub fn masquerade(&self) -> Masquerade {
        Masquerade {
            pods: self.pods.parse().unwrap(),
            address: self.node,
            excluded: vec![self.all_pods.parse().unwrap()],
            overlay: None,
        }
    }
}

pub fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

pub const LIMIT: Duration = Duration::from_secs(5);

fn options(uplinks: &[&str]) -> Options {
    harness::private_host::require();
    Options {
        pin_root: "/sys/fs/bpf/orlop".into(),
        cgroup: Node::cgroup_root(),
        uplinks: uplinks.iter().map(|name| (*name).to_owned()).collect(),
        uplink_hook: UplinkHook::Newest,
        uplink_acceleration: Acceleration::Disabled,
    }
}

/// A program on an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// What holds it there: a link with its number, or a filter with its handle.
    pub held_by: String,
    pub program: u64,
}

type Flows = HashMap<MapData, [u8; size_of::<NatKey>()], [u8; size_of::<NatValue>()]>;

/// An opened dataplane that leaves nothing behind.
pub struct Node {
    pub dataplane: Option<Dataplane>,
    options: Options,
}

impl Node {
    /// Sockets of this test are translated.
    pub fn open() -> Self {
        Self::with(options(&[]))
    }

    /// Only packets on `uplink` are translated: all the namespaces of this test share its cgroup, so the socket programs
    /// are given an empty one.
    pub fn with_uplink() -> Self {
        Self::with_hook(UplinkHook::Newest)
    }

    pub fn with_hook(uplink_hook: UplinkHook) -> Self {
        Self::with_uplinks(&["uplink"], uplink_hook)
    }

    pub fn with_uplinks(uplinks: &[&str], uplink_hook: UplinkHook) -> Self {
        Self::on_uplink(Options { uplink_hook, ..options(uplinks) })
    }

    /// By XDP too. Where the links are pairs, whoever sends by the other end makes whole checksums.
    pub fn accelerating(uplink_acceleration: Acceleration, uplinks: &[&str]) -> Self {
        Self::on_uplink(Options { uplink_acceleration, ..options(uplinks) })
    }

    /// Somebody else's dataplane on the same uplink.
    pub fn of_somebody(uplink_hook: UplinkHook) -> Self {
        let pin_root = "/sys/fs/bpf/somebody".into();
        Self::on_uplink(Options { pin_root, uplink_hook, ..options(&["uplink"]) })
    }

    /// The dataplane of another node.
    pub fn of_another(name: &str, uplinks: &[&str]) -> Self {
        Self::on_uplink(Options { pin_root: format!("/sys/fs/bpf/{name}").into(), ..options(uplinks) })
    }

    fn on_uplink(mut options: Options) -> Self {
        options.cgroup.push(options.pin_root.file_name().unwrap());
        std::fs::create_dir(&options.cgroup).unwrap();
        Self::with(options)
    }

    fn with(options: Options) -> Self {
        Self { dataplane: Some(Dataplane::open(&options).unwrap_or_else(|e| panic!("{e:?}"))), options }
    }

    pub fn cgroup_root() -> PathBuf {
        let unified = PathBuf::from("/sys/fs/cgroup/unified");
        if unified.is_dir() { unified } else { "/sys/fs/cgroup".into() }
    }

    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// The folder of the pinned maps.
    pub fn pins(&self) -> PathBuf {
        self.options.pin_root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// What this dataplane has on its links, by program, as others' tools tell it.
    pub fn attachments(&self) -> BTreeMap<&'static str, Attachment> {
        let programs = [
            ("orlop_ingress", "uplink", "ingress"),
            ("orlop_egress", "uplink", "egress"),
            ("orlop_ingress_l3", "overlay", "ingress"),
            ("orlop_egress_l3", "overlay", "egress"),
            ("orlop_to_pod", "pod0", "egress"),
            ("orlop_from_pod", "pod0", "ingress"),
            ("orlop_vip_in", "pod0", "ingress"),
            ("orlop_vip_out", "pod0", "egress"),
            ("orlop_sctp_in", "pod0", "ingress"),
            ("orlop_sctp_out", "pod0", "egress"),
        ];
        let found =
            programs.map(|(program, link, direction)| (program, self.attachment(program, link, direction)));
        let found = found.into_iter().chain([("orlop_xdp", self.accelerator("uplink"))]);
        found.filter_map(|(program, attachment)| Some((program, attachment?))).collect()
    }

    /// The XDP program of a link.
    pub fn accelerator(&self, link_name: &str) -> Option<Attachment> {
        link(&self.pins().join(format!("link_orlop_xdp_{}", link_name.replace('.', ":"))))
    }

    /// What this dataplane has of a program on one link.
    pub fn attachment(&self, program: &str, link_name: &str, direction: &str) -> Option<Attachment> {
        let pins = self.pins();
        let name = format!("{program}:{}", pins.display());
        let by_link = link(&pins.join(format!("link_{program}_{}", link_name.replace('.', ":"))));
        let by_filter = filters(link_name, direction).into_iter().filter(|(filter, _)| *filter == name);
        let mut all: Vec<Attachment> =
            by_link.into_iter().chain(by_filter.map(|(_, attachment)| attachment)).collect();
        assert!(all.len() <= 1, "{program} is attached twice: {all:?}");
        all.pop()
    }

    /// Leads everybody to the same endpoints.
    pub fn set(&mut self, frontend: Frontend, endpoints: &[SocketAddr]) {
        self.lead(frontend, &Target::all(endpoints));
    }

    /// In every family.
    pub fn masquerade(&mut self) {
        let families = PLACES.map(|place| place.masquerade());
        self.dataplane.as_mut().unwrap().set_masquerade(&families).unwrap();
    }

    pub fn lead(&mut self, frontend: Frontend, target: &Target) {
        self.dataplane.as_mut().unwrap().set(frontend, target).unwrap();
    }

    pub fn counter(&self, index: u32) -> u64 {
        self.dataplane.as_ref().unwrap().counters().unwrap()[index as usize]
    }

    /// Changes the entries of one of the translation maps behind the programs' back: `change` gives the new value, or
    /// `None` to remove the entry.
    pub fn rewrite_flows(&self, map: &str, change: impl Fn(NatValue) -> Option<NatValue>) {
        let mut flows = self.flows(map);
        let all: Vec<_> = flows.iter().collect::<Result<_, _>>().unwrap();
        for (key, value) in all {
            match change(NatValue::from_bytes(value)) {
                Some(value) => flows.insert(key, value.to_bytes(), 0).unwrap(),
                None => flows.remove(&key).unwrap(),
            }
        }
    }

    /// What one of the translation maps holds, by key.
    pub fn known_flows(&self, map: &str) -> BTreeMap<[u8; size_of::<NatKey>()], NatValue> {
        let all = self.flows(map);
        all.iter().map(Result::unwrap).map(|(key, value)| (key, NatValue::from_bytes(value))).collect()
    }

    /// Takes entries out of one of the translation maps, as an eviction would.
    pub fn forget_flows(&self, map: &str, which: impl Fn(NatKey) -> bool) {
        let mut flows = self.flows(map);
        let all: Vec<_> = flows.keys().collect::<Result<_, _>>().unwrap();
        for key in all.into_iter().filter(|key| which(NatKey::from_bytes(*key))) {
            flows.remove(&key).unwrap();
        }
    }

    /// As if no connection had ended yet.
    pub fn forget_ends(&self) {
        for map in [map::ENDED, map::DOUBTED] {
            let mut ended = self.ended(map);
            while ended.pop(0).is_ok() {}
        }
        let unnoted = |entry: NatValue| Some(NatValue { state: entry.state & !nat::DOUBTED, ..entry });
        [map::NAT, map::INBOUND].into_iter().for_each(|map| self.rewrite_flows(map, unnoted));
    }

    /// Everything was silent for a few seconds, and ended before them, if it ended.
    pub fn let_time_pass(&self) {
        self.let_ticks_pass(3);
    }

    pub fn let_ticks_pass(&self, ticks: u32) {
        let earlier = |entry: NatValue| Some(NatValue { used: entry.used.wrapping_sub(ticks), ..entry });
        [map::NAT, map::INBOUND].into_iter().for_each(|map| self.rewrite_flows(map, earlier));
        for map in [map::ENDED, map::DOUBTED] {
            let mut ended = self.ended(map);
            let all: Vec<_> = std::iter::from_fn(|| ended.pop(0).ok()).map(Ended::from_bytes).collect();
            for end in all {
                ended.push(Ended { at: end.at.wrapping_sub(ticks), ..end }.to_bytes(), 0).unwrap();
            }
        }
    }

    /// One of the queues of flows that ended.
    pub fn ended(&self, map: &str) -> Queue<MapData, [u8; size_of::<Ended>()]> {
        let data = MapData::from_pin(self.pins().join(map)).unwrap();
        Queue::try_from(Map::Queue(data)).unwrap()
    }

    /// The keys of one of the translation maps.
    pub fn flow_keys(&self, map: &str) -> Vec<NatKey> {
        self.flows(map).keys().map(|key| NatKey::from_bytes(key.unwrap())).collect()
    }

    /// Puts each entry under further keys too.
    pub fn copy_flows<K: Iterator<Item = NatKey>>(&self, map: &str, keys: impl Fn(NatKey) -> K) {
        let mut flows = self.flows(map);
        let all: Vec<_> = flows.iter().collect::<Result<_, _>>().unwrap();
        for (key, value) in all {
            for copy in keys(NatKey::from_bytes(key)) {
                flows.insert(copy.to_bytes(), value, 0).unwrap();
            }
        }
    }

    fn flows(&self, map: &str) -> Flows {
        Flows::try_from(Map::LruHashMap(MapData::from_pin(self.pins().join(map)).unwrap())).unwrap()
    }

    /// Clients that services with session affinity remember; `change` sees each and may alter it behind the programs' back.
    pub fn rewrite_affinities(&self, of: Origin, change: impl Fn(&mut Affinity)) -> Vec<AffinityKey> {
        let name = [map::AFFINITY, map::AFFINITY_OUTSIDE][of as usize];
        let data = MapData::from_pin(self.pins().join(name)).unwrap();
        let mut clients: HashMap<MapData, [u8; size_of::<AffinityKey>()], [u8; size_of::<Affinity>()]> =
            HashMap::try_from(Map::LruHashMap(data)).unwrap();
        let all: Vec<_> = clients.iter().collect::<Result<_, _>>().unwrap();
        let rewritten = all.into_iter().map(|(key, value)| {
            let mut affinity = Affinity::from_bytes(value);
            change(&mut affinity);
            clients.insert(key, affinity.to_bytes(), 0).unwrap();
            AffinityKey::from_bytes(key)
        });
        rewritten.collect()
    }

    /// How many sockets one of the maps knows by cookie.
    pub fn keys(&self, map: &str) -> usize {
        let data = MapData::from_pin(self.pins().join(map)).unwrap();
        let sockets: HashMap<MapData, u64, [u8; size_of::<ShownPeer>()]> =
            HashMap::try_from(Map::LruHashMap(data)).unwrap();
        sockets.keys().map(Result::unwrap).count()
    }

    /// Connections that count, over all backends.
    pub fn connections(&self) -> i32 {
        self.backends().iter().map(|backend| Backend::from_bytes(backend.unwrap()).connections).sum()
    }

    /// Changes the backends that are in use behind the programs' back.
    pub fn rewrite_backends(&self, mut change: impl FnMut(&mut Backend)) {
        let mut backends = self.backends();
        let all: Vec<Backend> =
            backends.iter().map(|backend| Backend::from_bytes(backend.unwrap())).collect();
        for (id, mut backend) in (0..).zip(all).filter(|(_, backend)| backend.generation != 0) {
            change(&mut backend);
            backends.set(id, backend.to_bytes(), 0).unwrap();
        }
    }

    fn backends(&self) -> Array<MapData, [u8; size_of::<Backend>()]> {
        let data = MapData::from_pin(self.pins().join(map::BACKENDS)).unwrap();
        Array::try_from(Map::Array(data)).unwrap()
    }

    /// As after a kill: the process's descriptors close, pins stay.
    pub fn crash(&mut self) {
        self.dataplane = None;
    }

    /// Takes everything of this dataplane away.
    pub fn remove(&mut self) {
        self.dataplane = None;
        dataplane::remove_all(&self.options.pin_root).unwrap();
    }

    pub fn reopen(&mut self) -> usize {
        self.try_reopen().unwrap()
    }

    pub fn try_reopen(&mut self) -> Result<usize, OpenError> {
        self.dataplane = None;
        let dataplane = Dataplane::open(&self.options)?;
        let adopted = dataplane.adopted();
        self.dataplane = Some(dataplane);
        Ok(adopted)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.remove();
        if self.options.cgroup.file_name() == self.options.pin_root.file_name() {
            std::fs::remove_dir(&self.options.cgroup).unwrap();
        }
    }
}

/// The pinned link at a path, if there is one.
pub fn link(pin: &Path) -> Option<Attachment> {
    let output = Command::new("bpftool").args(["-j", "link", "show", "pinned"]).arg(pin).output().unwrap();
    let link: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let program = link["prog_id"].as_u64()?;
    Some(Attachment { held_by: format!("link {}", link["id"]), program })
}

/// The BPF filters of one direction of a link, by name.
fn filters(link: &str, direction: &str) -> Vec<(String, Attachment)> {
    let filters: Vec<serde_json::Value> = tc_json(&format!("filter show dev {link} {direction}"));
    let named = filters.into_iter().filter_map(|filter| {
        let options = &filter["options"];
        let held_by = format!("filter {} {}", filter["pref"], options["handle"]);
        let program = options["prog"]["id"].as_u64()?;
        Some((options["bpf_name"].as_str()?.to_owned(), Attachment { held_by, program }))
    });
    named.collect()
}

/// What `tc` prints about the uplink; nothing for a link that is gone or has nothing to show.
pub fn tc_json(arguments: &str) -> Vec<serde_json::Value> {
    let output = Command::new("tc").arg("-j").args(arguments.split(' ')).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
}

pub fn frontend(address: impl Into<IpAddr>, port: u16, protocol: Protocol) -> Frontend {
    Frontend { address: address.into(), port, protocol }
}

/// A server that answers each connection with its own name and the peer it sees.
pub fn serve_tcp(address: SocketAddr, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let bound = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(format!("{name} saw {peer}").as_bytes());
        }
    });
    bound
}

/// A server that answers each datagram with its own name and the peer it sees.
pub fn serve_udp(address: SocketAddr, name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind(address).unwrap();
    let bound = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} saw {}", peer.ip()).as_bytes(), peer);
        }
    });
    bound
}

pub fn ask_tcp(address: impl Into<SocketAddr>) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.into(), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub fn ask_udp(socket: &UdpSocket, address: impl Into<SocketAddr>) -> std::io::Result<(String, String)> {
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send_to(b"?", address.into())?;
    let mut buffer = [0; 64];
    let (length, peer) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), peer.to_string()))
}

/// Whether a datagram is answered that no link takes whole.
pub fn ask_long(socket: &UdpSocket, address: SocketAddr) -> bool {
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.send_to(&[b'?'; 5000], address).unwrap();
    socket.recv(&mut [0; 64]).is_ok()
}

pub fn ip(arguments: &str) {
    run("ip", arguments);
}

pub fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "{program} {arguments}");
}

/// The namespaces `pod` and `outside`, routed by this one, which is the node. Removed on drop.
pub struct Links;

impl Links {
    pub fn make() -> Self {
        harness::private_host::require();
        expect_no_duplicates();
        ["pod", "outside"].into_iter().for_each(make_namespace);
        for line in [
            "link add pod0 type veth peer name eth0 netns pod",
            "link add uplink type veth peer name eth0 netns outside",
            "addr add 10.244.0.1/24 dev pod0",
            "addr add 192.0.2.1/24 dev uplink",
            "addr add fd00:244::1/64 dev pod0 nodad",
            "addr add 2001:db8::1/64 dev uplink nodad",
            "link set pod0 up",
            "link set uplink up",
            "-n pod addr add 10.244.0.2/24 dev eth0",
            "-n pod addr add fd00:244::2/64 dev eth0 nodad",
            "-n pod link set eth0 up",
            "-n pod route add default via 10.244.0.1",
            "-n pod route add default via fd00:244::1",
            "-n outside addr add 192.0.2.9/24 dev eth0",
            "-n outside addr add 2001:db8::9/64 dev eth0 nodad",
            "-n outside link set eth0 up",
            "-n outside link set lo up",
        ] {
            ip(line);
        }
        for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{forwarding}"), "1").unwrap();
        }
        await_address(&[], V6.gateway);
        await_address(&[], V6.node);
        await_address(&["-n", "pod"], V6.pod);
        await_address(&["-n", "outside"], V6.outside);
        Self
    }

    /// One more address of the host outside.
    pub fn add_neighbour(&self, place: &Place) {
        let (length, flags) = if place.node.is_ipv4() { (24, "") } else { (64, " nodad") };
        ip(&format!("-n outside addr add {}/{length} dev eth0{flags}", place.neighbour));
        await_address(&["-n", "outside"], place.neighbour);
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for line in ["link del pod0", "link del uplink", "netns del pod", "netns del outside"] {
            ip(line);
        }
        // `ip netns` mounts its folder onto itself.
        nix::mount::umount("/run/netns").unwrap();
        std::fs::remove_dir("/run/netns").unwrap();
    }
}

/// One more network namespace.
pub fn make_namespace(name: &str) {
    ip(&format!("netns add {name}"));
    inside(name, expect_no_duplicates).join().unwrap();
}

/// Links of the thread's namespace that come later ask nobody whether their addresses are taken. For the second that this takes, a link has no address
/// to look for its neighbours from, and what it should forward to them is lost.
fn expect_no_duplicates() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
}

/// Waits until an IPv6 address takes packets: the kernel puts in the route that does later, in the background.
pub fn await_address(of: &[&str], address: IpAddr) {
    let route = format!("local {address} dev");
    harness::wait::until("the address's route", LIMIT, || {
        let family = if address.is_ipv4() { "-4" } else { "-6" };
        let mut command = Command::new("ip");
        command.args(of).args([family, "route", "show", "table", "local"]);
        let shown = String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned();
        if shown.contains(&route) { Ok(()) } else { Err(shown) }
    });
}

/// Runs `work` on a thread of its own inside the named namespace.
pub fn inside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}
