//! The map keys and values that the BPF programs and the user space share.
//!
//! Layouts are fixed: no padding, no bool, enum or Option in a value (I7), and a name that ends in `_be` holds network
//! byte order as the bytes stand in a packet. A change of any layout raises [`LAYOUT_VERSION`], which names the pin folder.
//! [`select`] is the reader's half of the protocol by which services change.
#![no_std]

pub mod select;

/// Part of the pin path: maps of different layouts never meet.
pub const LAYOUT_VERSION: u32 = 2;

/// Names of the maps, as the kernel shows them (15 characters at most). The loader takes a map's name from its type
/// information, which is the name of the Rust static: hence capitals.
pub mod map {
    pub const FRONTENDS: &str = "ORLOP_FRONTENDS";
    pub const SERVICES: &str = "ORLOP_SERVICES";
    pub const TABLES: &str = "ORLOP_TABLES";
    pub const BACKENDS: &str = "ORLOP_BACKENDS";
    pub const NAT: &str = "ORLOP_NAT";
    pub const FLOWS: &str = "ORLOP_FLOWS";
    pub const SOCKETS: &str = "ORLOP_SOCKETS";
    pub const CONFIG: &str = "ORLOP_CONFIG";
    pub const COUNTERS: &str = "ORLOP_COUNTERS";
}

/// Sizes the maps are compiled with; user space may lower or raise them when it loads.
pub mod capacity {
    /// Virtual addresses with a port: cluster IPs, node ports on each node address.
    pub const FRONTENDS: usize = 65_536;
    /// Backend numbers over all selection tables.
    pub const TABLE_ENTRIES: usize = 524_288;
    pub const BACKENDS: usize = 262_144;
    /// Translations, two for each connection from outside or to the outside.
    pub const NAT: usize = 131_072;
    /// Unconnected UDP sockets that talk to several virtual addresses, two for each pair.
    pub const FLOWS: usize = 16_384;
    /// Destinations that pods reach under their own address.
    pub const UNMASQUERADED: usize = 8;
}

/// IP protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
}

/// A virtual address that a service answers at.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    pub addr_be: u32,
    pub port_be: u16,
    pub protocol: u8,
    /// Always 0; internal and external traffic policies will need their own tables here.
    pub scope: u8,
}

/// What a service slot holds. The key stands here again, because a hash element may be reused under a reader: a reader that
/// finds another key in the slot has lost that race and treats the lookup as a miss.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    pub key: FrontendKey,
    /// A [`Selection`], read and written whole: this one word switches a service to a new table.
    pub selection: u64,
    /// 0 is an empty slot, otherwise [`service_flag`]s.
    pub flags: u32,
    pub reserved: u32,
}

pub mod service_flag {
    pub const IN_USE: u32 = 1;
}

/// Where a service's backends stand: `length` numbers from `offset` on in the tables map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    pub offset: u32,
    pub length: u16,
    /// Counts up with each change, so that two tables at one place are told apart.
    pub generation: u16,
}

impl Selection {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        ((self.generation as u64) << 48) | ((self.length as u64) << 32) | self.offset as u64
    }

    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { offset: word as u32, length: (word >> 32) as u16, generation: (word >> 48) as u16 }
    }
}

/// One endpoint that traffic can be sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub addr_be: u32,
    pub port_be: u16,
    pub reserved: u16,
    /// 0 is a free number. A flow remembers the generation and notices when its backend is gone.
    pub generation: u32,
    /// The generation that this number has, or had before it was freed: it stays in the kernel, so that no later process
    /// gives a number the generation of an earlier backend.
    pub last_generation: u32,
}

/// What a socket that was translated remembers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRecord {
    pub vip_be: u32,
    pub backend_be: u32,
    pub vip_port_be: u16,
    pub backend_port_be: u16,
    pub backend: u32,
    pub generation: u32,
    /// 0: the record is void.
    pub in_use: u32,
}

/// An unconnected UDP socket and one peer of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    pub cookie: u64,
    pub addr_be: u32,
    pub port_be: u16,
    /// [`flow::TO_BACKEND`] or [`flow::TO_VIP`].
    pub direction: u16,
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
    pub addr_be: u32,
    pub port_be: u16,
    pub reserved: u16,
    pub backend: u32,
    pub generation: u32,
}

/// A packet's addresses as it crosses an uplink, before translation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatKey {
    pub source_be: u32,
    pub destination_be: u32,
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

    /// A node port: towards a backend and back.
    pub const NODE_PORT: u16 = 1;
    /// A pod that talks to the outside under the node's address.
    pub const MASQUERADE: u16 = 2;
    /// A flow that reached a pod directly; its answers keep their source.
    pub const DIRECT: u16 = 3;

    /// Masqueraded flows get their ports here, above the range of the node's own sockets.
    pub const FIRST_PORT: u16 = 61_000;
    pub const LAST_PORT: u16 = 65_535;
    /// How many ports are tried before a packet is dropped.
    pub const PORT_TRIES: u32 = 16;
}

/// What takes the place of the address that the direction rewrites.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatValue {
    pub addr_be: u32,
    pub port_be: u16,
    /// One of [`nat`]'s kinds.
    pub kind: u16,
    pub backend: u32,
    pub generation: u32,
}

/// A network: an address belongs to it if `addr & mask == network`, all in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    pub network_be: u32,
    pub mask_be: u32,
}

/// Settings of the uplink programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Pods of this node; a zero mask turns masquerading off.
    pub pods: Network,
    /// The address that pods show outside.
    pub masquerade_be: u32,
    pub unmasqueraded_count: u32,
    pub unmasqueraded: [Network; capacity::UNMASQUERADED],
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
    pub const FRAGMENT: u32 = 8;
    pub const REWRITE_FAILED: u32 = 9;
    pub const COUNT: u32 = 10;
}

/// Values that may be shown to the kernel as bytes.
macro_rules! plain {
    ($($kind:ty: $size:literal),+ $(,)?) => { $(
        const _: () = assert!(size_of::<$kind>() == $size);
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
    FrontendKey: 8, Service: 24, Backend: 16, SocketRecord: 24, FlowKey: 16, FlowValue: 16, NatKey: 16, NatValue: 16,
    Config: 80,
}
