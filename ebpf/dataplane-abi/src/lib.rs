//! The map keys and values that the BPF programs and the user space share.
//!
//! Layouts are fixed: no padding, no bool, enum or Option in a value (I7), and a name that ends in `_be` holds network
//! byte order as the bytes stand in a packet. A change of any layout raises [`LAYOUT_VERSION`], which names the pin folder.
//! [`select`] is the reader's half of the protocol by which services change.
#![no_std]

pub mod crc32c;
pub mod select;

/// Part of the pin path: programs of different layouts never work on one map that is not the same to both.
///
/// An agent with a newer layout carries over what the maps of the older one hold, by the names of maps and fields alone (`dataplane`'s `attach::migrate`).
/// So whoever changes a layout keeps to this:
///
/// - What means something else gets another name, be it a field, or a map whose elements do.
/// - A new field that is zero means what was so before it was there.
/// - A number may get another width, but for one in network byte order, and keeps its sign. A flow whose number does not fit any more is lost.
/// - A field that was filled up with `reserved…` is made of it: such bytes are never copied.
/// - Keys of networks ([`NetworkKey`], [`PortKey`]) do not change, and neither do the values that sockets store ([`SocketRecord`], [`Counted`], [`Tried`]): sockets that
///   are open at the upgrade lose those.
pub const LAYOUT_VERSION: u32 = 9;

/// Names of the maps, as the kernel shows them (15 characters at most). The loader takes a map's name from its type
/// information, which is the name of the Rust static: hence capitals.
pub mod map {
    pub const FRONTENDS: &str = "ORLOP_FRONTENDS";
    pub const SERVICES: &str = "ORLOP_SERVICES";
    pub const COUNTS: &str = "ORLOP_COUNTS";
    pub const TABLES: &str = "ORLOP_TABLES";
    pub const BACKENDS: &str = "ORLOP_BACKENDS";
    pub const AFFINITY: &str = "ORLOP_AFFINITY";
    pub const AFFINITY_OUTSIDE: &str = "ORLOP_AFF_OUT";
    pub const SOURCES: &str = "ORLOP_SOURCES";
    pub const CLIENTS: &str = "ORLOP_CLIENTS";
    pub const CONNECTED: &str = "ORLOP_CONNECTED";
    pub const NAT: &str = "ORLOP_NAT";
    pub const INBOUND: &str = "ORLOP_INBOUND";
    pub const FLOWS: &str = "ORLOP_FLOWS";
    pub const SOCKETS: &str = "ORLOP_SOCKETS";
    pub const COUNTED: &str = "ORLOP_COUNTED";
    pub const TRIED: &str = "ORLOP_TRIED";
    pub const PEERS: &str = "ORLOP_PEERS";
    pub const CONFIG: &str = "ORLOP_CONFIG";
    pub const COUNTERS: &str = "ORLOP_COUNTERS";
    pub const PODS: &str = "ORLOP_PODS";
    pub const RULES: &str = "ORLOP_RULES";
    pub const PORTS: &str = "ORLOP_PORTS";
    pub const ALLOWED: &str = "ORLOP_ALLOWED";
    pub const FRAGMENTS: &str = "ORLOP_FRAGMENTS";
    pub const ENDED: &str = "ORLOP_ENDED";
    pub const DOUBTED: &str = "ORLOP_DOUBTED";
    pub const ENDING: &str = "ORLOP_ENDING";
    pub const PATHS: &str = "ORLOP_PATHS";
    pub const HOLD: &str = "ORLOP_HOLD";
}

/// Sizes the maps are compiled with. A map that is pinned already must have the same.
pub mod capacity {
    /// Virtual addresses with a port: cluster IPs, node ports on each node address.
    pub const FRONTENDS: usize = 65_536;
    /// Backend numbers over all selection tables, those that are looked up by hash among them.
    pub const TABLE_ENTRIES: usize = 2_097_152;
    /// Of these, those for looking up by hash, at most.
    pub const LOOKUP_ENTRIES: usize = 1_572_864;
    pub const BACKENDS: usize = 262_144;
    /// Pairs of a client and a frontend with session affinity that are remembered, inside, and as many outside; beyond, those not seen
    /// for long go.
    pub const AFFINITY: usize = 32_768;
    /// TCP sockets that connected to a virtual address; beyond, those that did so longest ago show the backend's as their peer.
    pub const PEERS: usize = 131_072;
    /// UDP sockets that connected to a virtual address; those that did so longest ago are forgotten, and not told when their backend goes.
    pub const CONNECTED: usize = 65_536;
    /// Networks that may ask services with source ranges.
    pub const SOURCES: usize = 65_536;
    /// Network namespaces of this node whose addresses are known; what source ranges say is not asked for others.
    pub const CLIENTS: usize = 4096;
    /// How many addresses of one are known: a pod has one of each family, the node may have more.
    pub const CLIENT_ADDRESSES: usize = 8;
    /// Translations of what pods send to the outside, and to services by packets, two for each flow.
    pub const NAT: usize = 131_072;
    /// Flows that hosts outside begin, two entries for each of a node port. A map of their own: they cannot evict ours.
    pub const INBOUND: usize = NAT;
    /// Connections that ended in the last seconds and still have their entries, over both maps.
    pub const ENDED: usize = 32_768;
    /// Those that may have ended, and have been silent for longer.
    pub const DOUBTED: usize = ENDED;
    /// Unconnected UDP sockets that talk to several virtual addresses, two for each pair.
    pub const FLOWS: usize = 16_384;
    /// Destinations that pods reach under their own address.
    pub const UNMASQUERADED: usize = 8;
    /// More than there are, so that a new counter leaves the layout as it is.
    pub const COUNTERS: usize = 64;
    /// Pods of this node that a NetworkPolicy selects.
    pub const PODS: usize = 4096;
    /// Networks over all rulesets: a pod counts once in each ruleset that names it.
    pub const RULES: usize = 524_288;
    /// Ports over all lists; a range is as many as it has aligned parts, 30 at most.
    pub const PORTS: usize = 65_536;
    /// Flows of pods that a policy selects. Beyond, those silent for longest are judged anew.
    pub const ALLOWED: usize = 65_536;
    /// Datagrams in several fragments that are on their way at a time.
    pub const FRAGMENTS: usize = 4096;
    /// Endpoints on other nodes whose path is narrower than the link to there. Beyond, those not asked for long are found out again.
    pub const PATHS: usize = 4096;
}

/// IP protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;

    /// Whether its packets say where a connection begins and ends.
    #[inline(always)]
    pub const fn has_connections(protocol: u8) -> bool {
        matches!(protocol, TCP | SCTP)
    }
}

/// An IPv6 address as its bytes stand in a packet, or an IPv4 address mapped into one (`::ffff:a.b.c.d`): the tables and the programs
/// know one kind of address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    pub words_be: [u32; 4],
}

impl Address {
    /// The third word of a mapped address; the two before it are zero.
    const MAPPED_BE: u32 = 0xffff_u32.to_be();
    /// The bits before the IPv4 address in a mapped one.
    pub const MAPPED_BITS: u32 = 96;
    pub const BITS: u32 = 128;
    /// `::1`
    const LOOPBACK: Self = Self { words_be: [0, 0, 0, 1_u32.to_be()] };
    pub const NONE: Self = Self { words_be: [0; 4] };

    #[inline(always)]
    pub const fn from_v4(addr_be: u32) -> Self {
        Self { words_be: [0, 0, Self::MAPPED_BE, addr_be] }
    }

    /// The IPv4 address, if it is one.
    #[inline(always)]
    pub const fn to_v4(self) -> Option<u32> {
        match self.words_be {
            [0, 0, Self::MAPPED_BE, addr_be] => Some(addr_be),
            _ => None,
        }
    }

    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.to_v4().is_some()
    }

    /// As `==`, word by word: of the whole as one number the compiler for BPF may make what it cannot translate itself.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words_be, other.words_be);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }

    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        match self.to_v4() {
            Some(addr_be) => u32::from_be(addr_be) >> 24 == 127,
            None => self == Self::LOOPBACK,
        }
    }
}

/// A virtual address that a service answers at.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    pub address: Address,
    pub port_be: u16,
    pub protocol: u8,
    pub reserved: u8,
}

/// Where the traffic of a client comes from: a service may have other backends for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A socket on this node, or a pod of this node whose packets are led.
    Inside,
    /// A packet that came in by an uplink.
    Outside,
}

impl Origin {
    pub const ALL: [Self; 2] = [Self::Inside, Self::Outside];
}

/// What a service slot holds. The key stands here again, because a hash element may be reused under a reader: a reader that
/// finds another key in the slot has lost that race and treats the lookup as a miss.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    pub key: FrontendKey,
    /// The set of networks whose addresses may ask; 0: everybody may.
    pub sources: u32,
    /// A [`Selection`] for clients of each [`Origin`], read and written whole: one such word switches a service to a new table.
    pub inside: u64,
    pub outside: u64,
    /// 0 is an empty slot, otherwise [`service_flag`]s. Changed in one store together with `affinity_seconds`.
    pub flags: u32,
    /// How long after its last choice a client stays with its backend; 0: it does not.
    pub affinity_seconds: u32,
    /// How many choices were made in turn for clients of each [`Origin`], which may have other backends. Programs count; user space
    /// writes it once, with the slot.
    pub turns: [u32; 2],
}

/// What became of the new flows that asked for the service of a slot, since the slot is its. Of all processors together: with an array for
/// each of them, 128 would take 192 MiB.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounts {
    /// Led to a backend: sockets that connected, pairs of an unconnected socket and an address, and flows of packets.
    pub led: u64,
    /// Refused or dropped, because there is no backend: calls and packets, each time.
    pub no_backend: u64,
    /// Calls that were refused and packets that were dropped, because no source range holds the client.
    pub forbidden: u64,
}

/// Which of the [`ServiceCounts`] is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    Led = 0,
    NoBackend = 1,
    Forbidden = 2,
}

pub mod service_flag {
    pub const IN_USE: u32 = 1;
    /// The address is the node's own: its kernel refuses what nobody translates.
    pub const OWN_ADDRESS: u32 = 2;
    /// Answers of backends on other nodes to clients outside go past this one.
    pub const DIRECT_RETURN: u32 = 4;
    /// From this bit on stands the service's [`super::Scheduler`].
    pub const SCHEDULER_SHIFT: u32 = 8;
    /// From this bit on stands after how many failed connections in a row a backend is set aside, in 8 bits; 0: never.
    pub const SET_ASIDE_SHIFT: u32 = 16;

    /// Of a service with these flags.
    #[inline(always)]
    pub const fn set_aside_after(flags: u32) -> u32 {
        (flags >> SET_ASIDE_SHIFT) & 0xff
    }
}

/// How a service's backend is chosen for a new flow, with IPVS' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Scheduler {
    #[default]
    Random = 0,
    /// `rr`: each place of the table in turn.
    RoundRobin = 1,
    /// `lc`: the one with the fewest sockets of this node connected to it through such a service.
    LeastConnection = 2,
    /// `sh`: by the client's address, through a lookup table.
    SourceHash = 3,
    /// `mh`: by the client's address and port, through a lookup table. A client on the node has no port yet: for it any.
    Maglev = 4,
}

impl Scheduler {
    const MASK: u32 = 7;

    /// Its bits among the [`service_flag`]s.
    #[inline(always)]
    pub const fn flags(self) -> u32 {
        (self as u32) << service_flag::SCHEDULER_SHIFT
    }

    /// What the flags name; random for a number that no scheduler has.
    #[inline(always)]
    pub const fn of(flags: u32) -> Self {
        match (flags >> service_flag::SCHEDULER_SHIFT) & Self::MASK {
            1 => Self::RoundRobin,
            2 => Self::LeastConnection,
            3 => Self::SourceHash,
            4 => Self::Maglev,
            _ => Self::Random,
        }
    }

    /// Whether it needs a lookup table.
    pub const fn is_hashed(self) -> bool {
        matches!(self, Self::SourceHash | Self::Maglev)
    }
}

/// The sizes of lookup tables, primes. Two, far apart: where the number of backends passes the border between them, new flows are led anew.
pub const LOOKUP_SIZES: [u32; 2] = [16_381, 131_071];

/// A network of a set, as a key of the kernel's longest prefix match: `prefix` counts the bits of what follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkKey {
    pub prefix: u32,
    pub set: u32,
    pub address: Address,
}

impl NetworkKey {
    /// The bits of a set's number, which match whole.
    pub const SET_BITS: u32 = u32::BITS;
    /// The key that looks an address up.
    pub const WHOLE: u32 = Self::SET_BITS + Address::BITS;
}

/// A client of a service with session affinity. There is a map for each [`Origin`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityKey {
    /// Outside: its address. Inside: the cookie of its network namespace in two words of an address, since a socket that connects may
    /// have none yet.
    pub client: Address,
    /// The service's slot.
    pub slot: u32,
}

/// The addresses of a client on this node, by the cookie of its network namespace: a socket that connects may have none yet. Those that it has not are
/// [`Address::NONE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientAddresses {
    pub addresses: [Address; capacity::CLIENT_ADDRESSES],
}

/// Which backend a client was led to last.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// As in [`SocketRecord`].
    pub selection: u64,
    /// When it was chosen last, in nanoseconds since boot.
    pub used: u64,
    pub backend: u32,
    pub generation: u32,
}

/// Where a service's backends stand: `length` numbers from `offset` on in the tables map, and behind them a lookup table, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Of 28 bits.
    pub offset: u32,
    pub length: u16,
    /// 0: no lookup table; else its size is the one of [`LOOKUP_SIZES`] that comes in this place, from 1. Of 4 bits.
    pub lookup: u8,
    /// Counts up with each change, so that two tables at one place are told apart.
    pub generation: u16,
}

impl Selection {
    const OFFSET_BITS: u32 = 28;
    const OFFSET_MASK: u32 = (1 << Self::OFFSET_BITS) - 1;

    #[inline(always)]
    pub const fn pack(self) -> u64 {
        let place = ((self.lookup as u32) << Self::OFFSET_BITS) | (self.offset & Self::OFFSET_MASK);
        ((self.generation as u64) << 48) | ((self.length as u64) << 32) | place as u64
    }

    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        let place = word as u32;
        Self {
            offset: place & Self::OFFSET_MASK,
            length: (word >> 32) as u16,
            lookup: (place >> Self::OFFSET_BITS) as u8,
            generation: (word >> 48) as u16,
        }
    }

    /// How many places the lookup table has.
    #[inline(always)]
    pub const fn lookup_size(self) -> u32 {
        let [small, large] = LOOKUP_SIZES;
        match self.lookup {
            1 => small,
            2 => large,
            _ => 0,
        }
    }
}

const _: () = assert!(capacity::TABLE_ENTRIES <= 1 << Selection::OFFSET_BITS);
// A flow has 16 bits for its service's slot.
const _: () = assert!(capacity::FRONTENDS <= 1 << u16::BITS);

/// One endpoint that traffic can be sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: Address,
    pub port_be: u16,
    pub reserved: u16,
    /// Sockets that are connected to it through services that count (see [`Counted`]). Signed: one that was counted for an earlier
    /// backend of this number may take itself off.
    pub connections: i32,
    /// How many connections to it failed since one succeeded, as far as services that set backends aside tell.
    pub failures: u32,
    /// While it is set aside: until when, in ticks of [`nat::TICK_SHIFT`]. What is past says nothing.
    pub aside_until: u32,
    /// 0 is a free number. A flow remembers the generation and notices when its backend is gone.
    pub generation: u32,
    /// The generation that this number has, or had before it was freed: it stays in the kernel, so that no later process
    /// gives a number the generation of an earlier backend.
    pub last_generation: u32,
}

/// What a TCP socket shows as its peer, by the socket's cookie. Not in the socket's storage: of a connection on the loopback with
/// 20,000 services, making that took 5 % of the time, this takes 1 %.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownPeer {
    pub vip: Address,
    pub backend_address: Address,
    pub vip_port_be: u16,
    pub backend_port_be: u16,
}

/// What a UDP socket that was translated remembers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRecord {
    pub vip: Address,
    pub backend_address: Address,
    pub vip_port_be: u16,
    pub backend_port_be: u16,
    pub backend: u32,
    pub generation: u32,
    /// The service's slot, and its packed [`Selection`] when the backend was last known to belong to it.
    pub slot: u32,
    pub selection: u64,
    /// One of [`record`]'s states.
    pub state: u32,
    pub reserved: u32,
}

/// What user space has to know of a UDP socket that connected to a virtual address, by the socket's cookie: the kernel tells it
/// nothing when its backend goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The cookie of the socket's network namespace.
    pub netns: u64,
    pub backend_address: Address,
    pub backend_port_be: u16,
    pub reserved: u16,
    pub slot: u32,
    pub backend: u32,
    pub generation: u32,
}

/// That a socket counts among a backend's connections, in the socket's storage: that is there until the socket is closed, whereas a
/// full table would forget it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub backend: u32,
    /// 0: the socket does not count.
    pub generation: u32,
}

/// The backend that a TCP socket tries to connect to through a service that sets failing ones aside, in the socket's storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    pub backend: u32,
    pub generation: u32,
    /// The service's [`service_flag::set_aside_after`].
    pub set_aside_after: u32,
}

pub mod record {
    pub const VOID: u32 = 0;
    /// The socket talks to this virtual address alone.
    pub const ALONE: u32 = 1;
    /// The socket talks to further virtual addresses, which stand in the flows map, and so does which of them was sent to
    /// last by each backend.
    pub const SEVERAL: u32 = 2;
}

/// An unconnected UDP socket and one peer of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    pub cookie: u64,
    pub address: Address,
    pub port_be: u16,
    /// [`flow::TO_BACKEND`] or [`flow::TO_VIP`].
    pub direction: u16,
    pub reserved: u32,
}

pub mod flow {
    /// The key holds the virtual address, the value the backend.
    pub const TO_BACKEND: u16 = 0;
    /// The key holds the backend, the value the virtual address.
    pub const TO_VIP: u16 = 1;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowValue {
    pub address: Address,
    pub port_be: u16,
    pub reserved: u16,
    pub backend: u32,
    pub generation: u32,
    pub slot: u32,
    /// As in [`SocketRecord`].
    pub selection: u64,
}

/// A packet's addresses as it crosses an uplink, before translation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatKey {
    pub source: Address,
    pub destination: Address,
    pub source_port_be: u16,
    pub destination_port_be: u16,
    pub protocol: u8,
    /// [`nat::IN`] or [`nat::OUT`].
    pub direction: u8,
    pub reserved: u16,
}

pub mod nat {
    /// From outside: the destination is rewritten.
    pub const IN: u8 = 0;
    /// To the outside: the source is rewritten.
    pub const OUT: u8 = 1;

    /// A service's address: towards a backend and back.
    pub const NODE_PORT: u8 = 1;
    /// A pod that talks to the outside under the node's address.
    pub const MASQUERADE: u8 = 2;
    /// A flow that reached a pod directly; its answers keep their source.
    pub const DIRECT: u8 = 3;
    /// Such a flow whose client's port is another one at the pod, since a service's flow has the same ends.
    pub const STRAIGHT: u8 = 4;
    /// As [`NODE_PORT`], but a backend on another node answers from there.
    pub const DIRECT_RETURN: u8 = 5;
    /// The backend's half of that: what another node told of a flow to a backend here.
    pub const TOLD: u8 = 6;

    /// What was seen of a flow, as bits of [`super::NatValue::state`].
    pub const ANSWERED: u8 = 1;
    pub const FIN_IN: u8 = 2;
    pub const FIN_OUT: u8 = 4;
    /// By either side; which one it was is said beside it.
    pub const RESET: u8 = 8;
    /// The backend's node was told of the flow.
    pub const TOLD_OF: u8 = 16;
    pub const RESET_OUT: u8 = 32;
    pub const RESET_IN: u8 = 64;
    /// It waits among those that may be over.
    pub const DOUBTED: u8 = 128;

    const ENDED_IN: u8 = FIN_IN | RESET_IN;
    const ENDED_OUT: u8 = FIN_OUT | RESET_OUT;

    /// Masqueraded flows get their ports here, above the kernel's default range of ephemeral ports. Where
    /// `ip_local_port_range` reaches higher, the node's own sockets may collide with them: whoever sets the node up lists
    /// this range in `ip_local_reserved_ports`.
    pub const FIRST_PORT: u16 = 61_000;
    pub const LAST_PORT: u16 = 65_535;
    /// How many ports are tried before a packet is dropped.
    pub const PORT_TRIES: u32 = 16;
    /// The same for a client's port, which only flows between the same two addresses can hold.
    pub const CLIENT_PORT_TRIES: u32 = 8;

    /// Ticks of [`super::NatValue::used`]: 2^30 nanoseconds since boot, a little more than a second.
    pub const TICK_SHIFT: u32 = 30;

    /// After how many idle ticks a flow's port may be given to another one. TCP as RFC 5382 asks (an open connection two
    /// hours and four minutes, a half-open or half-closed one four), UDP as the kernel's own connection tracking. SCTP's ends ask for each
    /// other every half minute (RFC 9260, 8.3).
    pub const fn idle_limit(protocol: u8, state: u8) -> u32 {
        const FIN_BOTH: u8 = FIN_IN | FIN_OUT;
        if !super::protocol::has_connections(protocol) {
            return if state & ANSWERED == 0 { 30 } else { 120 };
        }
        if state & FIN_BOTH == FIN_BOTH {
            10
        } else if is_over(protocol, state) {
            2
        } else if was_reset(state) {
            DOUBTED_LIMIT
        } else if state & FIN_BOTH != 0 || state & ANSWERED == 0 || protocol == super::protocol::SCTP {
            HALF_CLOSED_LIMIT
        } else {
            7440
        }
    }

    /// After how many idle ticks a connection is over that may have ended. The kernel's own connection tracking waits as long for one that a side has
    /// closed.
    pub const DOUBTED_LIMIT: u32 = 112;
    /// After how many one that is half-open or half-closed.
    pub const HALF_CLOSED_LIMIT: u32 = 240;

    /// Whether a side was heard to reset the connection, and none to go on.
    pub const fn was_reset(state: u8) -> bool {
        state & RESET != 0
    }

    /// Whether a connection is over, but for packets that are sent again: both sides said so.
    pub const fn is_over(protocol: u8, state: u8) -> bool {
        super::protocol::has_connections(protocol) && state & ENDED_IN != 0 && state & ENDED_OUT != 0
    }

    /// Whether one may be over for all that is seen of it. A reset may be anybody's who knows addresses and ports: its receiver looks at its sequence number,
    /// and goes on in silence if that is a wrong one (RFC 5961). With [`DIRECT_RETURN`] a backend's last word goes past this node.
    pub const fn may_be_over(protocol: u8, kind: u8, state: u8) -> bool {
        let is_closed = was_reset(state) || (kind == DIRECT_RETURN && state & FIN_IN != 0);
        super::protocol::has_connections(protocol) && is_closed
    }

    /// The limit when ports are short: questions and answers are over sooner than [`idle_limit`] can know, and who was refused is.
    pub const fn scarce_idle_limit(protocol: u8, state: u8) -> u32 {
        if !super::protocol::has_connections(protocol) {
            5
        } else if was_reset(state) {
            2
        } else {
            idle_limit(protocol, state)
        }
    }
}

/// What one node tells another of a flow, before the flow's own packet: Geneve (RFC 8926) with one option.
pub mod geneve {
    /// The registered one.
    pub const PORT: u16 = 6081;
    /// The first word: version 0, the options' length in words, options that must be understood, and what the packet in it is.
    pub const HEADER_V4: u32 = 0x0340_0800;
    pub const HEADER_V6: u32 = 0x0640_86dd;
    /// The option's first word: a class of those for experiments, a kind that must be understood, the length of its data in words. Those are the
    /// service's address and port, and the client's own port if that is another one than the packet's.
    pub const OPTION_V4: u32 = 0xff4f_8102;
    pub const OPTION_V6: u32 = 0xff4f_8105;
    /// Both headers and the network's number, which is 0.
    pub const BEFORE_DATA: usize = 12;
    /// All that stands before the packet: IP, UDP, and these.
    pub const ROOM_V4: usize = 20 + 8 + BEFORE_DATA + 8;
    pub const ROOM_V6: usize = 40 + 8 + BEFORE_DATA + 20;

    /// The least that a path has to take: of IPv6 as RFC 8200 has it, of IPv4 what the kernel believes (`ip_rt_min_pmtu`).
    pub const LEAST_MTU_V4: u32 = 552;
    pub const LEAST_MTU_V6: u32 = 1280;
    /// For how many ticks of [`super::nat::TICK_SHIFT`] a path stays narrow; the kernel looks again after ten minutes, too.
    pub const PATH_TICKS: u32 = 558;
}

/// How long a packet to an endpoint of which another node was told may be on its whole way.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    pub mtu: u32,
    /// In ticks of [`nat::TICK_SHIFT`].
    pub since: u32,
}

impl PathMtu {
    /// Nobody complained.
    pub const WHOLE: u32 = u32::MAX;
}

/// What takes the place of the address that the direction rewrites. What most entries do not have stands apart: for a longer row of zeros the
/// compiler calls a function that writes byte after byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatValue {
    pub address: Address,
    /// As in [`SocketRecord`].
    pub selection: u64,
    /// The last packet's time in ticks of [`nat::TICK_SHIFT`], kept like `state`.
    pub used: u32,
    pub slot: u16,
    /// Where the client's port is another one at the backend, since that talks to its own already: the one there with [`nat::IN`], the client's
    /// own with [`nat::OUT`]. 0: it is the same.
    pub client_port_be: u16,
    pub port_be: u16,
    /// Bits of [`nat`], kept where ports are contended: with a masqueraded flow's [`nat::IN`] and a node port's
    /// [`nat::OUT`] entry.
    pub state: u8,
    /// One of [`nat`]'s kinds.
    pub kind: u8,
    pub backend: u32,
    pub generation: u32,
    /// Index of the pod's link where a flow to a service began by packets; 0: elsewhere. On no other link it is the same flow, whatever
    /// addresses a pod sends under.
    pub link: u32,
}

/// A flow that is over, or may be, in the map of ORLOP_NAT (2) or ORLOP_INBOUND (1), by the entry that has its state; 0: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub key: NatKey,
    pub held: u32,
    /// When, in ticks of [`nat::TICK_SHIFT`].
    pub at: u32,
}

/// A network: an address belongs to it if its bits under the mask are the network's. No mask is no network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    pub network: Address,
    pub mask: Address,
}

impl Network {
    #[inline(always)]
    pub fn contains(&self, address: &Address) -> bool {
        let [a, b, c, d] = self.mask.words_be;
        let (wanted, found) = (&self.network.words_be, &address.words_be);
        let differs = ((found[0] & a) ^ wanted[0])
            | ((found[1] & b) ^ wanted[1])
            | ((found[2] & c) ^ wanted[2])
            | ((found[3] & d) ^ wanted[3]);
        (a | b | c | d) != 0 && differs == 0
    }
}

/// How pods appear outside, in one address family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// Pods of this node; no network turns masquerading off.
    pub pods: Network,
    /// The address that they show.
    pub shown: Address,
    /// What is masqueraded on the overlay shows this one.
    pub overlay: Address,
    /// Where pods go under their own address. Those that are not used are no networks.
    pub unmasqueraded: [Network; capacity::UNMASQUERADED],
}

/// What holds for the pod behind a link of this node: a ruleset for each direction, or [`policy::OPEN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodPolicy {
    pub ingress: u32,
    pub egress: u32,
    /// The pod's network namespace as the node's numbers it.
    pub netns: i32,
    pub reserved: u32,
}

/// Ports of a list, as a key of the kernel's longest prefix match: `prefix` counts the bits of what follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    pub prefix: u32,
    pub list: u32,
    pub protocol: u8,
    pub reserved: u8,
    pub port_be: u16,
}

impl PortKey {
    /// The key that looks a port up.
    pub const WHOLE: u32 = 64;
    /// The bits before the port's, which match whole.
    pub const BEFORE_PORT: u32 = 48;

    /// What follows the prefix, as the kernel's map takes it.
    #[inline(always)]
    pub const fn words(list: u32, protocol: u8, port_be: u16) -> [u32; 2] {
        let [first, second] = port_be.to_ne_bytes();
        [list, u32::from_ne_bytes([protocol, 0, first, second])]
    }
}

/// A flow of a pod that a policy selects.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedKey {
    pub pod: Address,
    pub peer: Address,
    /// An ICMP echo's identifier stands in for the port of the side that asked.
    pub pod_port_be: u16,
    pub peer_port_be: u16,
    pub protocol: u8,
    pub reserved: u8,
    pub reserved2: u16,
    /// Index of the pod's link.
    pub link: u32,
}

/// A packet that is on its way in several fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    /// The packet's identification; IPv4's has 16 bits.
    pub id_be: u32,
    pub protocol: u8,
    pub reserved: u8,
    pub reserved2: u16,
}

/// What only the first fragment tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    pub source_port_be: u16,
    pub destination_port_be: u16,
}

/// That a flow was allowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// [`Config::policy_generation`] when it was judged, or [`policy::ALWAYS`].
    pub generation: u32,
    /// The last packet's time in ticks of [`nat::TICK_SHIFT`].
    pub used: u32,
    /// Which direction's rules decide: [`policy::INGRESS`] if the peer began the flow, [`policy::EGRESS`] if the pod did.
    pub began: u32,
}

pub mod policy {
    /// Towards the pod.
    pub const INGRESS: u32 = 0;
    /// From the pod.
    pub const EGRESS: u32 = 1;

    /// In the place of a ruleset: everything may pass.
    pub const OPEN: u32 = 0;
    /// The ruleset that holds the node's own addresses.
    pub const NODE: u32 = u32::MAX;
    /// The ruleset that holds the addresses of the cluster's other nodes.
    pub const PEERS: u32 = u32::MAX - 1;

    /// In the place of a list of ports: all, and protocols without ports too.
    pub const ALL_PORTS: u32 = 0;
    /// In the place of a list of ports: none. No list has this number.
    pub const NO_PORTS: u32 = u32::MAX;

    /// The generation of a flow that the node itself began: no rule can refuse it.
    pub const ALWAYS: u32 = 0;

    /// After how many silent ticks a flow without connection is over. The kernel's own connection tracking waits as long for a
    /// UDP flow that was answered.
    pub const IDLE_LIMIT: i32 = 120;
}

/// Settings of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The cookie of the node's own network namespace.
    pub node_netns: u64,
    /// Index of the link that leads to other nodes' pods where that is no uplink; 0: none.
    pub overlay_link: u32,
    /// Counts up after each change of what policies allow, from 1: a flow that was judged before is judged again. Never
    /// [`policy::ALWAYS`].
    pub policy_generation: u32,
    pub v4: Masquerade,
    pub v6: Masquerade,
}

/// Per-CPU counters: packets or calls by what became of them.
pub mod counter {
    pub const CONNECT_TRANSLATED: u32 = 0;
    pub const CONNECT_NO_BACKEND: u32 = 1;
    pub const SENDMSG_TRANSLATED: u32 = 2;
    pub const SENDMSG_NO_BACKEND: u32 = 3;
    pub const NODE_PORT_TRANSLATED: u32 = 4;
    pub const NODE_PORT_NO_BACKEND: u32 = 5;
    pub const MASQUERADED: u32 = 6;
    pub const MASQUERADE_NO_PORT: u32 = 7;
    /// A fragment whose packet's first one was not seen.
    pub const FRAGMENT: u32 = 8;
    pub const REWRITE_FAILED: u32 = 9;
    /// A TCP or SCTP packet to a node port that belongs to no known connection: left to the node, which resets it.
    pub const NODE_PORT_NO_FLOW: u32 = 10;
    /// One client address and port talks to one backend by several ways at once, and no other port was free for the client there: the packet
    /// that would have begun a flow is dropped.
    pub const NODE_PORT_COLLISION: u32 = 11;
    /// A pod's TCP or SCTP packet to the outside whose connection is not known (any more): dropped.
    pub const MASQUERADE_NO_FLOW: u32 = 12;
    /// A pod's packet to the outside that has no port to translate, such as a fragment: dropped.
    pub const MASQUERADE_IMPOSSIBLE: u32 = 13;
    /// The kernel had no room for a flow's entry. A packet that would begin a flow, or that could not be answered, is dropped.
    pub const NAT_INSERT_FAILED: u32 = 14;
    /// A client that none of the service's source ranges holds: one on this node is refused, the packet of any other is dropped.
    pub const SOURCE_REFUSED: u32 = 15;
    /// An ICMP error was translated as the packet that it quotes.
    pub const ICMP_ERROR_TRANSLATED: u32 = 16;
    /// A packet that no NetworkPolicy lets in to its pod, or out.
    pub const POLICY_INGRESS_DENIED: u32 = 17;
    pub const POLICY_EGRESS_DENIED: u32 = 18;
    /// A flow of a pod's packets to a service began, at the pod's link.
    pub const PACKET_TRANSLATED: u32 = 19;
    pub const PACKET_NO_BACKEND: u32 = 20;
    /// A pod's TCP or SCTP packet to a service that belongs to no known connection: dropped.
    pub const PACKET_NO_FLOW: u32 = 21;
    /// A pod's packet to a service that was led to the very pod that sent it: dropped.
    pub const PACKET_HAIRPIN: u32 = 22;
    /// A backend was set aside.
    pub const BACKEND_SET_ASIDE: u32 = 23;
    /// A packet of a flow whose client has another port at the backend, which is not known any more: dropped.
    pub const CLIENT_PORT_NO_FLOW: u32 = 24;
    /// A packet went to its backend's node with what the client had asked.
    pub const DIRECT_RETURN: u32 = 25;
    /// A packet that XDP sent on.
    pub const ACCELERATED: u32 = 26;
    /// A packet of a flow that is not known, while the maps' layout changes: dropped, its sender tries again.
    pub const HELD: u32 = 27;
    /// A router said that what this node tells another one is too long for the path to an endpoint: datagrams of such a length show this node's address.
    pub const PATH_NARROW: u32 = 28;
    /// A queue of ended connections was full: its first ones had to leave without waiting for packets that are sent again.
    pub const ENDED_HURRIED: u32 = 29;
    pub const COUNT: u32 = 30;
}

/// Values that may be shown to the kernel as bytes: `repr(C)` integers whose sizes add up to the size of the whole.
macro_rules! plain {
    ($($kind:ident: $size:literal { $($field:ident: $type:ty),+ $(,)? })+) => { $(
        const _: () = assert!(size_of::<$kind>() == $size);
        // No padding: the fields fill the value. Taking it apart names every field and its type.
        const _: () = assert!(0 $(+ size_of::<$type>())+ == $size);
        const _: fn($kind) = |value| {
            let $kind { $($field),+ } = value;
            $(let _: $type = $field;)+
        };
        impl $kind {
            /// The value as it stands in the map.
            pub const fn to_bytes(self) -> [u8; $size] {
                // SAFETY: the type is plain integers without padding: its size is the sum of its fields' sizes.
                unsafe { core::mem::transmute::<$kind, [u8; $size]>(self) }
            }

            /// The value that a map holds.
            pub const fn from_bytes(bytes: [u8; $size]) -> Self {
                // SAFETY: every bit pattern is a value of a type that consists of integers alone.
                unsafe { core::mem::transmute::<[u8; $size], $kind>(bytes) }
            }
        }
    )+ };
}

plain! {
    Address: 16 { words_be: [u32; 4] }
    FrontendKey: 20 { address: Address, port_be: u16, protocol: u8, reserved: u8 }
    Service: 56 { key: FrontendKey, sources: u32, inside: u64, outside: u64, flags: u32, affinity_seconds: u32, turns: [u32; 2] }
    ServiceCounts: 24 { led: u64, no_backend: u64, forbidden: u64 }
    NetworkKey: 24 { prefix: u32, set: u32, address: Address }
    AffinityKey: 20 { client: Address, slot: u32 }
    ClientAddresses: 128 { addresses: [Address; capacity::CLIENT_ADDRESSES] }
    Affinity: 24 { selection: u64, used: u64, backend: u32, generation: u32 }
    Backend: 40 { address: Address, port_be: u16, reserved: u16, connections: i32, failures: u32, aside_until: u32, generation: u32, last_generation: u32 }
    ShownPeer: 36 { vip: Address, backend_address: Address, vip_port_be: u16, backend_port_be: u16 }
    SocketRecord: 64 { vip: Address, backend_address: Address, vip_port_be: u16, backend_port_be: u16, backend: u32, generation: u32, slot: u32, selection: u64, state: u32, reserved: u32 }
    Connected: 40 { netns: u64, backend_address: Address, backend_port_be: u16, reserved: u16, slot: u32, backend: u32, generation: u32 }
    Counted: 8 { backend: u32, generation: u32 }
    Tried: 12 { backend: u32, generation: u32, set_aside_after: u32 }
    FlowKey: 32 { cookie: u64, address: Address, port_be: u16, direction: u16, reserved: u32 }
    FlowValue: 40 { address: Address, port_be: u16, reserved: u16, backend: u32, generation: u32, slot: u32, selection: u64 }
    NatKey: 40 { source: Address, destination: Address, source_port_be: u16, destination_port_be: u16, protocol: u8, direction: u8, reserved: u16 }
    NatValue: 48 { address: Address, selection: u64, used: u32, slot: u16, client_port_be: u16, port_be: u16, state: u8, kind: u8, backend: u32, generation: u32, link: u32 }
    Ended: 48 { key: NatKey, held: u32, at: u32 }
    PathMtu: 8 { mtu: u32, since: u32 }
    PodPolicy: 16 { ingress: u32, egress: u32, netns: i32, reserved: u32 }
    PortKey: 12 { prefix: u32, list: u32, protocol: u8, reserved: u8, port_be: u16 }
    AllowedKey: 44 { pod: Address, peer: Address, pod_port_be: u16, peer_port_be: u16, protocol: u8, reserved: u8, reserved2: u16, link: u32 }
    FragmentKey: 40 { source: Address, destination: Address, id_be: u32, protocol: u8, reserved: u8, reserved2: u16 }
    FragmentPorts: 4 { source_port_be: u16, destination_port_be: u16 }
    Allowed: 12 { generation: u32, used: u32, began: u32 }
    Network: 32 { network: Address, mask: Address }
    Masquerade: 320 { pods: Network, shown: Address, overlay: Address, unmasqueraded: [Network; capacity::UNMASQUERADED] }
    Config: 656 { node_netns: u64, overlay_link: u32, policy_generation: u32, v4: Masquerade, v6: Masquerade }
}
