//! Programs, links, filters and pins.
//!
//! Maps are pinned by name in `<pin_root>/v<layout>`, links as `link_<program>[_<interface>]` (`links`). On kernels without
//! TCX those of uplinks and of pods' links are filters of a clsact qdisc, which have no pins (`filters`). Either way a program that is
//! attached already is one of: the same program on the same maps -> left alone; another program or other maps -> replaced in
//! place. What has no place any more, because its interface is no longer an uplink, is removed. XDP is a link on every kernel (`xdp`).
//!
//! One process at a time works on a pin root: the open folder is locked, and the kernel drops the lock with the process.

mod filters;
mod links;
mod migrate;
mod pods;
mod xdp;

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapInfo};
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, ProgramError, ProgramFd, ProgramInfo,
    SchedClassifier, SockOps, TcAttachType, Xdp,
};
use aya::{Ebpf, EbpfError, EbpfLoader};
use dataplane_abi::{LAYOUT_VERSION, map};

use crate::sys::TcxPlace;
use crate::{MapError, Options, UplinkHook};
use links::Target;
use migrate::Migration;
pub use pods::PodPrograms;
pub use xdp::Refusal;

/// The object that `cargo xtask build-ebpf` made; empty without one.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dataplane.o"));

const SOCKET_PROGRAMS: &[&str] = &[
    "orlop_connect4",
    "orlop_connect6",
    "orlop_sendmsg4",
    "orlop_sendmsg6",
    "orlop_recvmsg4",
    "orlop_recvmsg6",
    "orlop_getpeername4",
    "orlop_getpeername6",
];
const RELEASE_PROGRAM: &str = "orlop_release";
/// Attached while a service sets failing backends aside: the kernel calls it several times for each connection.
const TRIED_PROGRAM: &str = "orlop_tried";
const UPLINK_PROGRAMS: &[(Layer, LinkProgram)] = &[
    (Layer::Ethernet, LinkProgram::new("orlop_ingress", TcAttachType::Ingress, Order::Last)),
    (Layer::Ethernet, LinkProgram::new("orlop_egress", TcAttachType::Egress, Order::Last)),
    (Layer::Ip, LinkProgram::new("orlop_ingress_l3", TcAttachType::Ingress, Order::Last)),
    (Layer::Ip, LinkProgram::new("orlop_egress_l3", TcAttachType::Egress, Order::Last)),
];
/// On the links of pods that NetworkPolicies select. What is a pod's way in is the link's way out, at the node's end. Policies are about
/// backends: they judge what a pod sends to a service behind its translation, and the answers before.
const POLICY_PROGRAMS: &[LinkProgram] = &[
    LinkProgram::new("orlop_to_pod", TcAttachType::Egress, Order::First),
    LinkProgram::new("orlop_from_pod", TcAttachType::Ingress, Order::Last),
];
/// On the links of pods that reach services by packets.
const BYPASS_PROGRAMS: &[LinkProgram] = &[
    LinkProgram::new("orlop_vip_in", TcAttachType::Ingress, Order::First),
    LinkProgram::new("orlop_vip_out", TcAttachType::Egress, Order::Last),
];

/// On the links of all other pods, while there is a service of SCTP.
const SCTP_PROGRAMS: &[LinkProgram] = &[
    LinkProgram::new("orlop_sctp_in", TcAttachType::Ingress, Order::First),
    LinkProgram::new("orlop_sctp_out", TcAttachType::Egress, Order::Last),
];

/// What of a pod's packets is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packets {
    All,
    Sctp,
}

impl Packets {
    fn programs(self) -> &'static [LinkProgram] {
        match self {
            Self::All => BYPASS_PROGRAMS,
            Self::Sctp => SCTP_PROGRAMS,
        }
    }
}

/// A program for links.
#[derive(Clone, Copy)]
struct LinkProgram {
    name: &'static str,
    direction: TcAttachType,
    order: Order,
}

impl LinkProgram {
    const fn new(name: &'static str, direction: TcAttachType, order: Order) -> Self {
        Self { name, direction, order }
    }
}

/// Where a program stands among those of its link and direction when it is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    First,
    Last,
}

/// The names of all programs for links.
fn link_programs() -> impl Iterator<Item = &'static str> {
    let uplinks = UPLINK_PROGRAMS.iter().map(|(_, program)| program);
    uplinks.chain(POLICY_PROGRAMS).chain(BYPASS_PROGRAMS).chain(SCTP_PROGRAMS).map(|program| program.name)
}
const PINNED_MAPS: &[&str] = &[
    map::FRONTENDS,
    map::SERVICES,
    map::COUNTS,
    map::TABLES,
    map::BACKENDS,
    map::AFFINITY,
    map::AFFINITY_OUTSIDE,
    map::SOURCES,
    map::CLIENTS,
    map::CONNECTED,
    map::NAT,
    map::INBOUND,
    map::FLOWS,
    map::SOCKETS,
    map::COUNTED,
    map::TRIED,
    map::PEERS,
    map::CONFIG,
    map::COUNTERS,
    map::PODS,
    map::RULES,
    map::PORTS,
    map::ALLOWED,
    map::FRAGMENTS,
    map::ENDED,
    map::DOUBTED,
    map::ENDING,
    map::PATHS,
    map::HOLD,
];
/// `bpf_set_retval` is from 5.18; cgroup links alone from 5.7.
const CGROUP_LINKS_SINCE: &str = "5.18";
const TCX_SINCE: &str = "6.6";

/// Why the dataplane could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "this executable was built without the BPF programs: run `cargo xtask build-ebpf` and build it again"
    )]
    NotEmbedded,
    #[error("{operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("load the BPF programs and maps")]
    Load(#[source] EbpfError),
    #[error("load program {program}")]
    Program { program: String, source: Box<ProgramError> },
    #[error("attach {program} to {target}: needs root and a kernel from {since} on")]
    Attach { program: String, target: String, since: &'static str, source: Box<ProgramError> },
    #[error(
        "the pinned map {path} has another shape than the programs need: drain the node and remove its folder"
    )]
    Shape { path: PathBuf },
    #[error("read the pinned map {path}")]
    PinnedMap { path: PathBuf, source: Box<aya::maps::MapError> },
    #[error("{operation} link {path}")]
    Link { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the BPF object has no {kind} {name}")]
    Missing { kind: &'static str, name: String },
    #[error(
        "another process has {path} open: one dataplane works on a pin root, end it or choose another pin root"
    )]
    InUse { path: PathBuf },
    #[error("attach by traffic control: needs root, and the kernel's clsact qdisc and BPF classifier")]
    Filter { source: Box<linux::netlink::Error> },
    #[error(
        "{interface} has an ingress qdisc (on a pod's link, of the bandwidth plugin), in whose place kernels before {TCX_SINCE} \
         need a clsact qdisc: remove it (tc qdisc del dev {interface} ingress)"
    )]
    IngressQdisc { interface: String },
    #[error("uplink {name} does not exist")]
    NoUplink { name: String, source: io::Error },
    #[error("attach {program} to {interface}: needs root and a kernel from {TCX_SINCE} on")]
    AttachTcx { program: String, interface: String, source: io::Error },
    #[error("accelerate uplink {interface} (`best-effort` leaves out what cannot be, `disabled` all)")]
    NoAcceleration { interface: String, source: Refusal },
    #[error("open the maps")]
    Maps(#[source] MapError),
    #[error("know the node's network namespace: needs root and a kernel from 5.14 on")]
    Namespace(#[source] linux::netns::Error),
}

/// The programs for pods' links, loaded.
pub struct ForPods {
    pub policy: PodPrograms,
    /// By [`Packets`], where a pod has them: they are not loaded for nobody.
    pub packets: [Option<PodPrograms>; 2],
}

/// The maps that user space works with.
pub struct Maps {
    pub frontends: Map,
    pub sources: Map,
    pub clients: Map,
    pub connected: Map,
    /// By [`Origin`](dataplane_abi::Origin), as the flows.
    pub affinity: [Map; 2],
    pub flows: [Map; 2],
    pub services: MapData,
    pub counts: MapData,
    pub tables: MapData,
    pub backends: MapData,
    pub config: Map,
    pub counters: Map,
    pub pods: Map,
    pub rules: Map,
    pub ports: Map,
}

/// What an uplink's packets begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Ethernet,
    Ip,
}

/// An uplink, looked up.
struct Uplink<'a> {
    name: &'a str,
    index: u32,
    layer: Layer,
    /// What Linux calls its kind of hardware.
    hardware: u32,
}

/// Tells whether an attached program is the one we loaded: its instructions, and the very maps it works on.
#[derive(PartialEq, Eq)]
struct Identity {
    /// The kernel's digest of the instructions.
    tag: u64,
    maps: BTreeSet<u32>,
}

impl Identity {
    fn of(info: &ProgramInfo) -> Result<Self, ProgramError> {
        let maps = info.map_ids()?.unwrap_or_default().into_iter().collect();
        Ok(Self { tag: info.tag(), maps })
    }

    /// Whether the loaded program of this id is the one.
    fn is_of(&self, program: u32) -> bool {
        aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .find(|loaded| loaded.id() == program)
            .is_some_and(|loaded| Self::of(&loaded).is_ok_and(|identity| identity == *self))
    }
}

/// Holds a pin root as long as it lives.
pub struct PinRoot {
    _locked: File,
}

/// The maps, and the lock that goes with them.
pub fn open(options: &Options) -> Result<(PinRoot, Maps, ForPods), OpenError> {
    if OBJECT.is_empty() {
        return Err(OpenError::NotEmbedded);
    }
    let pins = pin_folder(&options.pin_root);
    create_folder(&options.pin_root)?;
    let root = lock(&options.pin_root)?;
    let (mut programs, mut migration) = prepare(options, &pins)?;
    let mut wanted = Attached::default();
    attach_sockets(&mut programs, options, &pins, &mut wanted)?;
    xdp::attach(&mut programs, options, &pins, &mut wanted)?;
    let policy = PodPrograms::load(&mut programs, options, &pins, POLICY_PROGRAMS)?;
    let mut packets = [None, None];
    for which in [Packets::All, Packets::Sctp] {
        if pods::are_attached(&pins, which.programs())? {
            packets[which as usize] =
                Some(PodPrograms::load(&mut programs, options, &pins, which.programs())?);
        }
    }
    // What begins flows before what answers them: an answer that is not known would leave under the backend's address.
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        attach_uplinks(&mut programs, options, &pins, direction, &mut wanted)?;
        for pods in [Some(&policy)].into_iter().chain(packets.each_ref().map(Option::as_ref)).flatten() {
            pods.adopt(direction, &mut wanted)?;
        }
        if let Some(migration) = &mut migration {
            migration.catch_up();
        }
    }
    let pods = ForPods { policy, packets };
    if let Some(migration) = migration {
        migration.finish();
    }
    links::remove_stale(&pins, &wanted.links)?;
    filters::remove(|place| place.folder == pins && !wanted.filters.contains(place))?;
    Ok((root, take_maps(&mut programs)?, pods))
}

/// The programs on the maps that are pinned, with what an older layout's hold.
fn prepare(options: &Options, pins: &Path) -> Result<(Ebpf, Option<Migration>), OpenError> {
    if let Some((mut migration, mut programs)) = migrate::stage(&options.pin_root, pins)? {
        // Beforehand, so that the earlier programs and ours run on maps that differ for as short as can be.
        load_all(&mut programs, options, &[migration.older(), pins])?;
        if migration.carry()? {
            migration.take_over();
            return Ok((programs, Some(migration)));
        }
    }
    create_folder(pins)?;
    Ok((load_object(pins)?, None))
}

/// Loads every program that is going to be attached at once, also those that only some need and that are attached in a layout, where it is there.
fn load_all(programs: &mut Ebpf, options: &Options, layouts: &[&Path]) -> Result<(), OpenError> {
    for name in SOCKET_PROGRAMS {
        ensure_loaded(get::<CgroupSockAddr>(programs, name)?.load(), name)?;
    }
    ensure_loaded(get::<CgroupSock>(programs, RELEASE_PROGRAM)?.load(), RELEASE_PROGRAM)?;
    if layouts.iter().any(|pins| links::pin(pins, TRIED_PROGRAM, None).exists()) {
        ensure_loaded(get::<SockOps>(programs, TRIED_PROGRAM)?.load(), TRIED_PROGRAM)?;
    }
    let uplinks = uplinks(options)?;
    if xdp::is_wanted(options, &uplinks) {
        ensure_loaded(get::<Xdp>(programs, xdp::PROGRAM)?.load(), xdp::PROGRAM)?;
    }
    let concerned = |layer: Layer| uplinks.iter().any(|uplink| uplink.layer == layer);
    let of_uplinks =
        UPLINK_PROGRAMS.iter().filter(|(layer, _)| concerned(*layer)).map(|(_, program)| program);
    let mut of_pods: Vec<&LinkProgram> = POLICY_PROGRAMS.iter().collect();
    for table in [BYPASS_PROGRAMS, SCTP_PROGRAMS] {
        for pins in layouts.iter().filter(|pins| pins.exists()) {
            if pods::are_attached(pins, table)? {
                of_pods.extend(table);
            }
        }
    }
    for LinkProgram { name, .. } in of_uplinks.chain(of_pods) {
        ensure_loaded(get::<SchedClassifier>(programs, name)?.load(), name)?;
    }
    Ok(())
}

fn ensure_loaded(loaded: Result<(), ProgramError>, name: &str) -> Result<(), OpenError> {
    match loaded {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        loaded => loaded.map_err(|source| load_error(name, source)),
    }
}

fn create_folder(path: &Path) -> Result<(), OpenError> {
    fs::create_dir_all(path).map_err(|source| OpenError::File {
        operation: "create",
        path: path.into(),
        source,
    })
}

/// The programs, not loaded yet, on the maps that are pinned.
fn load_object(pins: &Path) -> Result<Ebpf, OpenError> {
    let mut loader = EbpfLoader::new();
    for name in PINNED_MAPS {
        check_shape(pins, name)?;
        loader.map_pin_path(name, pins.join(name));
    }
    loader.load(OBJECT).map_err(OpenError::Load)
}

/// The programs for services by packets, of a dataplane that is open.
pub fn load_packets(options: &Options, which: Packets) -> Result<PodPrograms, OpenError> {
    let pins = pin_folder(&options.pin_root);
    PodPrograms::load(&mut load_object(&pins)?, options, &pins, which.programs())
}

/// What is attached and stays.
#[derive(Default)]
struct Attached {
    /// Pins.
    links: HashSet<PathBuf>,
    filters: HashSet<filters::Place>,
}

/// How a program is held on a link.
enum Attachment {
    /// By the pin of its link.
    Link(PathBuf),
    Filter(filters::Place),
}

impl Attached {
    fn insert(&mut self, attachment: Attachment) {
        match attachment {
            Attachment::Link(pin) => drop(self.links.insert(pin)),
            Attachment::Filter(place) => drop(self.filters.insert(place)),
        }
    }
}

/// Takes a pin root for this process.
fn lock(pin_root: &Path) -> Result<PinRoot, OpenError> {
    let failed = |operation| move |source| OpenError::File { operation, path: pin_root.into(), source };
    let folder = File::open(pin_root).map_err(failed("open"))?;
    match folder.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: pin_root.into() }),
        Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
    }
    // Whoever had it may have removed the folder between our opening and our locking it.
    let (ours, present) = (folder.metadata(), fs::metadata(pin_root));
    if ours.map_err(failed("read"))?.ino() != present.map_err(failed("read"))?.ino() {
        return Err(OpenError::InUse { path: pin_root.into() });
    }
    Ok(PinRoot { _locked: folder })
}

/// Detaches and removes everything below `pin_root`.
pub fn remove_all(pin_root: &Path) -> Result<(), OpenError> {
    let _root = match lock(pin_root) {
        Err(OpenError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        locked => Some(locked?),
    };
    filters::remove(|place| place.folder.parent() == Some(pin_root))?;
    for layout in layouts(pin_root)? {
        remove_layout(&layout)?;
    }
    remove_folder(pin_root)
}

/// Detaches and removes what builds with other layouts left below `pin_root`.
pub fn remove_other_layouts(pin_root: &Path) -> Result<(), OpenError> {
    let ours = pin_folder(pin_root);
    filters::remove(|place| place.folder.parent() == Some(pin_root) && place.folder != ours)?;
    for layout in layouts(pin_root)?.into_iter().filter(|layout| *layout != ours) {
        tracing::info!(path = %layout.display(), "removing an earlier layout");
        remove_layout(&layout)?;
    }
    Ok(())
}

/// Links, and filters before them, go first: a process that dies in the middle leaves maps without programs, which is a
/// dataplane that does nothing, and never programs that work on maps which the next process cannot find.
fn remove_layout(folder: &Path) -> Result<(), OpenError> {
    links::remove_stale(folder, &HashSet::new())?;
    remove_folder(folder)
}

fn remove_folder(folder: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(folder) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::File { operation: "remove", path: folder.into(), source })
        }
        _ => Ok(()),
    }
}

/// The folders `v<number>` of a pin root; none if that is not there.
fn layouts(pin_root: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let failed = |source| OpenError::File { operation: "read", path: pin_root.into(), source };
    let entries = match fs::read_dir(pin_root) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut layouts = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix('v'));
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
            layouts.push(entry.path());
        }
    }
    Ok(layouts)
}

/// Key and value sizes and the number of elements of each pinned map. Socket storage is not counted.
fn shape(name: &str) -> (u32, u32, u32) {
    use dataplane_abi::{Address, ShownPeer, SocketRecord, Tried, capacity};
    use dataplane_abi::{
        Affinity, AffinityKey, Backend, ClientAddresses, Config, Connected, Counted, Ended, FlowKey,
        FlowValue, FrontendKey, NatKey,
    };
    use dataplane_abi::{
        Allowed, AllowedKey, FragmentKey, FragmentPorts, NatValue, NetworkKey, PathMtu, PodPolicy, PortKey,
        Service, ServiceCounts,
    };
    let (key, value, elements) = match name {
        map::FRONTENDS => (size_of::<FrontendKey>(), 4, capacity::FRONTENDS),
        map::SERVICES => (4, size_of::<Service>(), capacity::FRONTENDS),
        map::COUNTS => (4, size_of::<ServiceCounts>(), capacity::FRONTENDS),
        map::TABLES => (4, 4, capacity::TABLE_ENTRIES),
        map::BACKENDS => (4, size_of::<Backend>(), capacity::BACKENDS),
        map::AFFINITY | map::AFFINITY_OUTSIDE => {
            (size_of::<AffinityKey>(), size_of::<Affinity>(), capacity::AFFINITY)
        }
        map::SOURCES => (size_of::<NetworkKey>(), 4, capacity::SOURCES),
        map::CLIENTS => (8, size_of::<ClientAddresses>(), capacity::CLIENTS),
        map::CONNECTED => (8, size_of::<Connected>(), capacity::CONNECTED),
        map::NAT => (size_of::<NatKey>(), size_of::<NatValue>(), capacity::NAT),
        map::INBOUND => (size_of::<NatKey>(), size_of::<NatValue>(), capacity::INBOUND),
        map::FLOWS => (size_of::<FlowKey>(), size_of::<FlowValue>(), capacity::FLOWS),
        map::PEERS => (8, size_of::<ShownPeer>(), capacity::PEERS),
        map::SOCKETS => (4, size_of::<SocketRecord>(), 0),
        map::COUNTED => (4, size_of::<Counted>(), 0),
        map::TRIED => (4, size_of::<Tried>(), 0),
        map::CONFIG => (4, size_of::<Config>(), 1),
        map::COUNTERS => (4, size_of::<u64>(), capacity::COUNTERS),
        map::PODS => (4, size_of::<PodPolicy>(), capacity::PODS),
        map::RULES => (size_of::<NetworkKey>(), 4, capacity::RULES),
        map::PORTS => (size_of::<PortKey>(), 4, capacity::PORTS),
        map::FRAGMENTS => (size_of::<FragmentKey>(), size_of::<FragmentPorts>(), capacity::FRAGMENTS),
        map::ENDED => (0, size_of::<Ended>(), capacity::ENDED),
        map::DOUBTED => (0, size_of::<Ended>(), capacity::DOUBTED),
        map::PATHS => (size_of::<Address>(), size_of::<PathMtu>(), capacity::PATHS),
        map::ENDING => (4, size_of::<Ended>(), 1),
        map::HOLD => (4, size_of::<u64>(), 1),
        map::ALLOWED => (size_of::<AllowedKey>(), size_of::<Allowed>(), capacity::ALLOWED),
        other => unreachable!("{other} is no pinned map"),
    };
    (key as u32, value as u32, elements as u32)
}

/// Refuses a pinned map that a build of another shape left under our layout's name.
fn check_shape(pins: &Path, name: &str) -> Result<(), OpenError> {
    let path = pins.join(name);
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&path)
        .map_err(|source| OpenError::PinnedMap { path: path.clone(), source: Box::new(source) })?;
    if (info.key_size(), info.value_size(), info.max_entries()) == shape(name) {
        return Ok(());
    }
    Err(OpenError::Shape { path })
}

fn pin_folder(pin_root: &Path) -> PathBuf {
    pin_root.join(format!("v{LAYOUT_VERSION}"))
}

fn attach_sockets(
    programs: &mut Ebpf,
    options: &Options,
    pins: &Path,
    wanted: &mut Attached,
) -> Result<(), OpenError> {
    let cgroup = Cgroup::open(options)?;
    for name in SOCKET_PROGRAMS {
        attach_socket(get::<CgroupSockAddr>(programs, name)?, cgroup.target(pins, name), &cgroup, wanted)?;
    }
    let release = get::<CgroupSock>(programs, RELEASE_PROGRAM)?;
    attach_socket(release, cgroup.target(pins, RELEASE_PROGRAM), &cgroup, wanted)?;
    // Where an earlier process had it.
    if links::pin(pins, TRIED_PROGRAM, None).exists() {
        attach_tried(programs, &cgroup, pins, wanted)?;
    }
    Ok(())
}

fn attach_tried(
    programs: &mut Ebpf,
    cgroup: &Cgroup,
    pins: &Path,
    wanted: &mut Attached,
) -> Result<(), OpenError> {
    let tried = get::<SockOps>(programs, TRIED_PROGRAM)?;
    attach_socket(tried, cgroup.target(pins, TRIED_PROGRAM), cgroup, wanted)
}

/// Makes a dataplane that is open hear how connections to backends end, or not any more.
pub fn watch_tries(options: &Options, watch: bool) -> Result<(), OpenError> {
    let pins = pin_folder(&options.pin_root);
    if !watch {
        return links::remove(&links::pin(&pins, TRIED_PROGRAM, None)).map(drop);
    }
    attach_tried(&mut load_object(&pins)?, &Cgroup::open(options)?, &pins, &mut Attached::default())
}

/// The cgroup whose sockets are translated.
struct Cgroup {
    shown: String,
    folder: File,
    /// Its number: the inode number of its folder.
    id: u64,
}

impl Cgroup {
    fn open(options: &Options) -> Result<Self, OpenError> {
        let path = &options.cgroup;
        let failed = |source| OpenError::File { operation: "open cgroup", path: path.clone(), source };
        let folder = File::open(path).map_err(failed)?;
        let id = folder.metadata().map_err(failed)?.ino();
        Ok(Self { shown: path.display().to_string(), folder, id })
    }

    fn target<'a>(&self, pins: &Path, program: &'a str) -> Target<'a> {
        Target {
            shown: self.shown.clone(),
            id: self.id,
            pin: links::pin(pins, program, None),
            program,
            since: CGROUP_LINKS_SINCE,
        }
    }
}

fn attach_socket(
    program: &mut impl CgroupProgram,
    target: Target<'_>,
    cgroup: &Cgroup,
    wanted: &mut Attached,
) -> Result<(), OpenError> {
    ensure_loaded(program.load(), target.program)?;
    let (fd, loaded) = program.identity(target.program)?;
    if !links::adopt(&target, fd.as_fd(), &loaded)? {
        let link = program.attach(&cgroup.folder).map_err(|source| attach_error(&target, source))?;
        links::pin_new(link, &target)?;
    }
    wanted.links.insert(target.pin);
    Ok(())
}

/// What programs of a cgroup have in common.
trait CgroupProgram {
    fn load(&mut self) -> Result<(), ProgramError>;
    fn identity(&self, name: &str) -> Result<(ProgramFd, Identity), OpenError>;
    fn attach(&mut self, cgroup: &File) -> Result<FdLink, ProgramError>;
}

macro_rules! cgroup_program {
    ($($kind:ty)+) => { $(
        impl CgroupProgram for $kind {
            fn load(&mut self) -> Result<(), ProgramError> {
                self.load()
            }

            fn identity(&self, name: &str) -> Result<(ProgramFd, Identity), OpenError> {
                identity(self.fd(), self.info(), name)
            }

            fn attach(&mut self, cgroup: &File) -> Result<FdLink, ProgramError> {
                let id = self.attach(cgroup, CgroupAttachMode::Single)?;
                let link = self.take_link(id)?;
                FdLink::try_from(link).map_err(|source| ProgramError::IOError(io::Error::other(source)))
            }
        }
    )+ };
}

cgroup_program! { CgroupSockAddr CgroupSock SockOps }

fn attach_uplinks(
    programs: &mut Ebpf,
    options: &Options,
    pins: &Path,
    direction: TcAttachType,
    wanted: &mut Attached,
) -> Result<(), OpenError> {
    let uplinks = uplinks(options)?;
    for (layer, program) in UPLINK_PROGRAMS.iter().filter(|(_, program)| program.direction == direction) {
        let concerned: Vec<&Uplink<'_>> = uplinks.iter().filter(|uplink| uplink.layer == *layer).collect();
        if concerned.is_empty() {
            continue;
        }
        let program = Classifier::load(programs, *program, options.uplink_hook)?;
        for uplink in concerned {
            wanted.insert(program.attach(uplink.name, uplink.index, pins)?);
        }
    }
    Ok(())
}

fn uplinks(options: &Options) -> Result<Vec<Uplink<'_>>, OpenError> {
    options.uplinks.iter().map(|name| Uplink::of(name)).collect()
}

/// A loaded program for links.
struct Classifier {
    program: LinkProgram,
    hook: UplinkHook,
    fd: ProgramFd,
    identity: Identity,
}

impl Classifier {
    fn load(programs: &mut Ebpf, program: LinkProgram, hook: UplinkHook) -> Result<Self, OpenError> {
        let name = program.name;
        let loaded: &mut SchedClassifier = get(programs, name)?;
        ensure_loaded(loaded.load(), name)?;
        let (fd, identity) = identity(loaded.fd(), loaded.info(), name)?;
        Ok(Self { program, hook, fd, identity })
    }

    fn name(&self) -> &'static str {
        self.program.name
    }

    /// Makes a link run it, whatever ran there of ours.
    fn attach(&self, link: &str, index: u32, pins: &Path) -> Result<Attachment, OpenError> {
        let LinkProgram { name, direction, order } = self.program;
        if self.hook == UplinkHook::Newest && has_tcx(link, direction) {
            let pin = links::pin(pins, name, Some(link));
            let (shown, id) = (link.to_owned(), u64::from(index));
            let target = Target { shown, id, pin, program: name, since: TCX_SINCE };
            let place =
                TcxPlace { is_egress: direction == TcAttachType::Egress, is_first: order == Order::First };
            links::attach_tcx(&target, self.fd.as_fd(), &self.identity, place)?;
            return Ok(Attachment::Link(target.pin));
        }
        let filter = filters::Wanted {
            interface: link,
            link: index,
            program: self.program,
            pins,
            fd: &self.fd,
            identity: &self.identity,
        };
        filters::attach(&filter)?;
        Ok(Attachment::Filter(filter.place()))
    }
}

/// Whether the kernel has TCX: those before it do not know what they are asked for.
fn has_tcx(link: &str, direction: TcAttachType) -> bool {
    match SchedClassifier::query_tcx(link, direction) {
        Err(ProgramError::SyscallError(error)) => error.io_error.raw_os_error() != Some(libc::EINVAL),
        _ => true,
    }
}

fn get<'a, T>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut T, OpenError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = programs
        .program_mut(name)
        .ok_or_else(|| OpenError::Missing { kind: "program", name: name.to_owned() })?;
    program.try_into().map_err(|source| load_error(name, source))
}

/// A descriptor of the loaded program, and what it is told by.
fn identity(
    fd: Result<&ProgramFd, ProgramError>,
    info: Result<ProgramInfo, ProgramError>,
    name: &str,
) -> Result<(ProgramFd, Identity), OpenError> {
    let fd = fd.map_err(|source| load_error(name, source))?;
    let fd = fd.try_clone().map_err(|source| load_error(name, ProgramError::IOError(source)))?;
    let identity = info.and_then(|info| Identity::of(&info)).map_err(|source| load_error(name, source))?;
    Ok((fd, identity))
}

fn take_maps(programs: &mut Ebpf) -> Result<Maps, OpenError> {
    let mut take = |name: &str| {
        programs.take_map(name).ok_or_else(|| OpenError::Missing { kind: "map", name: name.to_owned() })
    };
    Ok(Maps {
        frontends: take(map::FRONTENDS)?,
        sources: take(map::SOURCES)?,
        clients: take(map::CLIENTS)?,
        connected: take(map::CONNECTED)?,
        affinity: [take(map::AFFINITY)?, take(map::AFFINITY_OUTSIDE)?],
        flows: [take(map::NAT)?, take(map::INBOUND)?],
        services: array(take(map::SERVICES)?, map::SERVICES)?,
        counts: array(take(map::COUNTS)?, map::COUNTS)?,
        tables: array(take(map::TABLES)?, map::TABLES)?,
        backends: array(take(map::BACKENDS)?, map::BACKENDS)?,
        config: take(map::CONFIG)?,
        counters: take(map::COUNTERS)?,
        pods: take(map::PODS)?,
        rules: take(map::RULES)?,
        ports: take(map::PORTS)?,
    })
}

fn array(found: Map, name: &str) -> Result<MapData, OpenError> {
    match found {
        Map::Array(data) => Ok(data),
        _ => Err(OpenError::Missing { kind: "array map", name: name.to_owned() }),
    }
}

impl<'a> Uplink<'a> {
    fn of(name: &'a str) -> Result<Self, OpenError> {
        let read = |file: &str| -> io::Result<u32> {
            let text = fs::read_to_string(format!("/sys/class/net/{name}/{file}"))?;
            text.trim().parse().map_err(io::Error::other)
        };
        let failed = |source| OpenError::NoUplink { name: name.to_owned(), source };
        let (index, hardware) = (read("ifindex").map_err(failed)?, read("type").map_err(failed)?);
        let layer = if hardware == u32::from(libc::ARPHRD_NONE) { Layer::Ip } else { Layer::Ethernet };
        Ok(Self { name, index, layer, hardware })
    }
}

fn load_error(name: &str, source: ProgramError) -> OpenError {
    OpenError::Program { program: name.to_owned(), source: Box::new(source) }
}

fn attach_error(target: &Target<'_>, source: ProgramError) -> OpenError {
    OpenError::Attach {
        program: target.program.to_owned(),
        target: target.shown.clone(),
        since: target.since,
        source: Box::new(source),
    }
}
