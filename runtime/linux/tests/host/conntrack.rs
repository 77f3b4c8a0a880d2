//! Flows, forgotten by the port that they were begun to.

use std::net::UdpSocket;

use linux::{
    conntrack::{Conntrack, Flows},
    nftables::{
        BaseChain, Batch, ChainKind, ConnectionState, Family, Hook, Nftables, Rule, Table, Transport,
    },
};

/// The ports of the flows that the kernel remembers, from the list that it prints.
fn remembered() -> Vec<u16> {
    let text = std::fs::read_to_string("/proc/net/nf_conntrack").expect("the list");
    let port = |line: &str| {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix("dport="))?.parse().ok()
    };
    text.lines().filter(|line| line.contains(" udp ")).filter_map(port).collect()
}

#[test]
fn flows_to_a_port_are_forgotten() {
    harness::private_host::require();
    // From the first rule that asks for it on, the kernel remembers flows.
    let table = Table { family: Family::Inet, name: "t" };
    let mut batch = Batch::new();
    batch.add_table(table, None);
    let base = BaseChain { kind: ChainKind::Filter, hook: Hook::Output, priority: 0 };
    batch.add_base_chain(table.chain("output"), base);
    let rule = Rule::new(table.family).connection_state(&[ConnectionState::Established]).accept();
    batch.add_rule(table.chain("output"), &rule);
    Nftables::open().expect("a socket").commit(&batch).expect("a rule");

    let sockets = ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "[::1]:0"];
    let sockets = sockets.map(|any| UdpSocket::bind(any).expect("a socket"));
    let ports = sockets.each_ref().map(|socket| socket.local_addr().expect("its address").port());
    for to in &sockets {
        let to = to.local_addr().expect("its address");
        let sender = UdpSocket::bind((to.ip(), 0)).expect("a socket");
        sender.send_to(b"hello", to).expect("a datagram");
    }
    let [first, second, stays, of_ipv6] = ports;
    let left = || {
        let remembered = remembered();
        ports.map(|port| remembered.contains(&port))
    };
    assert_eq!(left(), [true; 4]);
    let conntrack = Conntrack::open().expect("a socket");
    let delete = |family, transport, destination_ports: &[u16]| {
        conntrack.delete(Flows { family, transport, destination_ports }).expect("a deletion");
    };
    delete(Family::Ip, Transport::Tcp, &ports);
    delete(Family::Ip, Transport::Udp, &[of_ipv6]);
    assert_eq!(left(), [true; 4]);
    delete(Family::Ip, Transport::Udp, &[first, second]);
    assert_eq!(left(), [false, false, true, true]);
    delete(Family::Ip6, Transport::Udp, &[of_ipv6, stays]);
    assert_eq!(left(), [false, false, true, false]);
}
