//! Why the dataplane refuses or drops, in the words of those who run it: each reason, what it means, what to do.
//!
//! Pure. A reason has the name of its counter (`kubelet_api::DATAPLANE_COUNTERS`).

use dataplane::counter;

#[cfg(test)]
mod tests;

/// A counter that counts what did not get where it was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropReason {
    pub counter: u32,
    pub meaning: &'static str,
    pub remedy: &'static str,
}

const fn reason(counter: u32, meaning: &'static str, remedy: &'static str) -> DropReason {
    DropReason { counter, meaning, remedy }
}

/// In the order of the counters.
pub const DROPS: &[DropReason] = &[
    reason(
        counter::CONNECT_NO_BACKEND,
        "a socket connected to a Service without an endpoint, and was refused",
        "orlopctl service ls shows who has no endpoint: are its pods ready, does its selector match, does its traffic policy or a weight of 0 leave none?",
    ),
    reason(
        counter::SENDMSG_NO_BACKEND,
        "a socket sent a datagram to a Service without an endpoint, and was refused",
        "orlopctl service ls shows who has no endpoint: are its pods ready, does its selector match, does its traffic policy or a weight of 0 leave none?",
    ),
    reason(
        counter::NODE_PORT_NO_BACKEND,
        "a packet from outside asked for a Service that has no endpoint for it here",
        "with externalTrafficPolicy Local, ask nodes that have an endpoint; else see the Service's pods",
    ),
    reason(
        counter::MASQUERADE_NO_PORT,
        "a pod's packet to the outside found none of 16 ports free towards that peer",
        "too many connections to one address and port: spread them, or reuse connections",
    ),
    reason(
        counter::FRAGMENT,
        "a fragment came whose packet's first one was not seen, or one of SCTP: not led on its way in, dropped on its way out",
        "fragments overtake each other or get lost: lower the MTU, or the size of datagrams",
    ),
    reason(
        counter::REWRITE_FAILED,
        "the kernel refused to change a packet's headers",
        "not to be expected: report it, with the kernel's version",
    ),
    reason(
        counter::NODE_PORT_NO_FLOW,
        "a packet of TCP or SCTP from outside is of no known connection to its Service, and the node refuses it",
        "usual after a restart of the node, or when a balancer moves connections between nodes",
    ),
    reason(
        counter::NODE_PORT_COLLISION,
        "one client reached one endpoint by several ways at once from one port, and no other port was free for it there",
        "too many flows between the two: let the client choose ports itself, or use fewer Services of one endpoint",
    ),
    reason(
        counter::MASQUERADE_NO_FLOW,
        "a pod's packet of TCP or SCTP to the outside is of no known connection",
        "the connection was silent for longer than 2 h 4 min, or began before this node's agent: use keep-alives",
    ),
    reason(
        counter::MASQUERADE_IMPOSSIBLE,
        "a pod's packet to the outside has no port to be told by, such as a late fragment's",
        "such protocols leave only towards networks that are not masqueraded",
    ),
    reason(
        counter::NAT_INSERT_FAILED,
        "the kernel had no room for a flow's entry for a moment",
        "rare under load, and tried again by the sender; if it grows, this node has too many flows",
    ),
    reason(
        counter::SOURCE_REFUSED,
        "a client is in none of its Service's loadBalancerSourceRanges",
        "add the client's network to the Service's loadBalancerSourceRanges, or let it be refused",
    ),
    reason(
        counter::POLICY_INGRESS_DENIED,
        "no NetworkPolicy lets a packet in to its pod",
        "orlopctl policies shows who selects the pod: allow the peer and port in one of them",
    ),
    reason(
        counter::POLICY_EGRESS_DENIED,
        "no NetworkPolicy lets a pod's packet out",
        "orlopctl policies shows who selects the pod: allow the peer and port in one of them",
    ),
    reason(
        counter::PACKET_NO_BACKEND,
        "a pod's packet asked for a Service without an endpoint",
        "orlopctl service ls shows who has no endpoint: are its pods ready, does its selector match, does its traffic policy or a weight of 0 leave none?",
    ),
    reason(
        counter::PACKET_NO_FLOW,
        "a pod's packet of TCP or SCTP is of no known connection to its Service",
        "the connection was silent for too long, or its endpoint went: the client connects again",
    ),
    reason(
        counter::PACKET_HAIRPIN,
        "a pod's packet was led to the pod itself, which could not answer it",
        "let the pod ask itself by its own address, or by a socket",
    ),
    reason(
        counter::CLIENT_PORT_NO_FLOW,
        "a packet of a flow whose client has another port at its endpoint came, and the flow is not known (any more)",
        "usual when tables are full or an old connection goes on: the client has to connect again",
    ),
    reason(
        counter::HELD,
        "a packet of a flow that was not known came while an upgrade changed the layout of the maps",
        "none: its sender sends it again, and then it is led",
    ),
];

/// Counters of what went well, and of what is nobody's flow.
#[cfg(test)]
const OTHERS: &[u32] = &[
    counter::CONNECT_TRANSLATED,
    counter::SENDMSG_TRANSLATED,
    counter::NODE_PORT_TRANSLATED,
    counter::MASQUERADED,
    counter::ICMP_ERROR_TRANSLATED,
    counter::PACKET_TRANSLATED,
    counter::BACKEND_SET_ASIDE,
    counter::DIRECT_RETURN,
    counter::ACCELERATED,
    counter::PATH_NARROW,
    counter::ENDED_HURRIED,
];
