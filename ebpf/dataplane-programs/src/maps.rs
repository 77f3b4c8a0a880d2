//! Every map of the programs. Names and layouts are `dataplane-abi`'s; user space pins them by name.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, SkStorage};
use aya_ebpf::macros::btf_map;
use dataplane_abi::{
    Address, Affinity, AffinityKey, Allowed, AllowedKey, Backend, ClientAddresses, Config, Connected,
    Counted, Ended, FlowKey, FlowValue, FragmentKey, FragmentPorts, FrontendKey, NatKey, NatValue, PathMtu,
    PodPolicy, Service, ServiceCounts, ShownPeer, SocketRecord, Tried, capacity,
};

/// User space writes these through memory instead of system calls.
const MMAPABLE: usize = 1 << 10;
/// Elements are allocated on demand: 65,536 mostly empty ones would cost megabytes.
const NO_PREALLOC: usize = 1;

#[btf_map]
pub static ORLOP_FRONTENDS: HashMap<FrontendKey, u32, { capacity::FRONTENDS }, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static ORLOP_SERVICES: Array<Service, { capacity::FRONTENDS }, MMAPABLE> = Array::new();

/// By slot, as the services.
#[btf_map]
pub static ORLOP_COUNTS: Array<ServiceCounts, { capacity::FRONTENDS }, MMAPABLE> = Array::new();

#[btf_map]
pub static ORLOP_TABLES: Array<u32, { capacity::TABLE_ENTRIES }, MMAPABLE> = Array::new();

#[btf_map]
pub static ORLOP_BACKENDS: Array<Backend, { capacity::BACKENDS }, MMAPABLE> = Array::new();

#[btf_map]
pub static ORLOP_AFFINITY: LruHashMap<AffinityKey, Affinity, { capacity::AFFINITY }> = LruHashMap::new();

/// The clients outside: what they flood evicts nothing of the pods'.
#[btf_map]
pub static ORLOP_AFF_OUT: LruHashMap<AffinityKey, Affinity, { capacity::AFFINITY }> = LruHashMap::new();

/// The number of the set, and an address.
#[btf_map]
pub static ORLOP_SOURCES: LpmTrie<[u32; 5], u32, { capacity::SOURCES }> = LpmTrie::new();

/// By the cookie of a network namespace.
#[btf_map]
pub static ORLOP_CLIENTS: HashMap<u64, ClientAddresses, { capacity::CLIENTS }, NO_PREALLOC> = HashMap::new();

/// Translated flows, two entries for each.
pub type Flows = LruHashMap<NatKey, NatValue, { capacity::NAT }>;

#[btf_map]
pub static ORLOP_NAT: Flows = Flows::new();

/// The flows that hosts outside begin: what they flood evicts nothing of the pods'.
#[btf_map]
pub static ORLOP_INBOUND: Flows = Flows::new();

/// Flows that are over, in the order of their ends.
#[btf_map]
pub static ORLOP_ENDED: Queue<Ended, { capacity::ENDED }> = Queue::new();

/// Flows that may be over, in the order of what made one think so.
#[btf_map]
pub static ORLOP_DOUBTED: Queue<Ended, { capacity::DOUBTED }> = Queue::new();

/// The one whose end the packet at hand is.
#[btf_map]
pub static ORLOP_ENDING: PerCpuArray<Ended, 1> = PerCpuArray::new();

#[btf_map]
pub static ORLOP_FLOWS: LruHashMap<FlowKey, FlowValue, { capacity::FLOWS }> = LruHashMap::new();

#[btf_map]
pub static ORLOP_SOCKETS: SkStorage<SocketRecord> = SkStorage::new();

#[btf_map]
pub static ORLOP_COUNTED: SkStorage<Counted> = SkStorage::new();

#[btf_map]
pub static ORLOP_TRIED: SkStorage<Tried> = SkStorage::new();

#[btf_map]
pub static ORLOP_PEERS: LruHashMap<u64, ShownPeer, { capacity::PEERS }> = LruHashMap::new();

#[btf_map]
pub static ORLOP_CONNECTED: LruHashMap<u64, Connected, { capacity::CONNECTED }> = LruHashMap::new();

/// By the index of the pod's link.
#[btf_map]
pub static ORLOP_PODS: HashMap<u32, PodPolicy, { capacity::PODS }, NO_PREALLOC> = HashMap::new();

/// The number of a ruleset and an address; the number of a list of ports.
#[btf_map]
pub static ORLOP_RULES: LpmTrie<[u32; 5], u32, { capacity::RULES }> = LpmTrie::new();

/// The number of a list, a protocol and a port.
#[btf_map]
pub static ORLOP_PORTS: LpmTrie<[u32; 2], u32, { capacity::PORTS }> = LpmTrie::new();

#[btf_map]
pub static ORLOP_ALLOWED: LruHashMap<AllowedKey, Allowed, { capacity::ALLOWED }> = LruHashMap::new();

#[btf_map]
pub static ORLOP_FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { capacity::FRAGMENTS }> =
    LruHashMap::new();

/// By the endpoint's address.
#[btf_map]
pub static ORLOP_PATHS: LruHashMap<Address, PathMtu, { capacity::PATHS }> = LruHashMap::new();

/// Until when no packet begins a flow, by `bpf_ktime_get_coarse_ns`: those of an older layout may know it.
#[btf_map]
pub static ORLOP_HOLD: Array<u64, 1> = Array::new();

#[btf_map]
pub static ORLOP_CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
static ORLOP_COUNTERS: PerCpuArray<u64, { capacity::COUNTERS }> = PerCpuArray::new();

/// Adds one to a counter of `dataplane_abi::counter`.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(value) = ORLOP_COUNTERS.get_ptr_mut(index) {
        // SAFETY: the element is this processor's own, and a program is not preempted by another that counts here and loses more than one.
        unsafe { *value += 1 };
    }
}

/// Adds as one, whatever other processors do, and gives what was there before.
///
/// # Safety
/// `value` belongs to an element of a map.
#[inline(always)]
pub unsafe fn fetch_add<T: Copy>(value: *mut T, change: T) -> T {
    // A relaxed one this compiler turns into the instruction that gives nothing back.
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<T, T, { AtomicOrdering::AcqRel }>(value, change) }
}
