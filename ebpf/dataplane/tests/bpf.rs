//! The load balancer against the real kernel: real sockets in this test's own cgroup, real packets between namespaces.

#[path = "bpf/accelerate.rs"]
mod accelerate;
#[path = "bpf/bypass.rs"]
mod bypass;
#[path = "bpf/direct_return.rs"]
mod direct_return;
#[path = "bpf/earlier.rs"]
mod earlier;
#[path = "bpf/hooks.rs"]
mod hooks;
#[path = "bpf/layouts.rs"]
mod layouts;
#[path = "bpf/mapped.rs"]
mod mapped;
#[path = "bpf/node.rs"]
mod node;
#[path = "bpf/observe.rs"]
mod observe;
#[path = "bpf/offloads.rs"]
mod offloads;
#[path = "bpf/orphans.rs"]
mod orphans;
#[path = "bpf/packets.rs"]
mod packets;
#[path = "bpf/policy.rs"]
mod policy;
#[path = "bpf/schedulers.rs"]
mod schedulers;
#[path = "bpf/sctp.rs"]
mod sctp;
#[path = "bpf/sockets.rs"]
mod sockets;
#[path = "bpf/tries.rs"]
mod tries;
#[path = "bpf/tun.rs"]
mod tun;
#[path = "bpf/uplink.rs"]
mod uplink;
