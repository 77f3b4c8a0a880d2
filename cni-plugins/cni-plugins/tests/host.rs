//! The plugins' executables in a private host: real namespaces, links, addresses and packets.

mod host {
    mod bridge;
    mod chain;
    mod loopback;
    mod macvlan;
    mod node;
    mod ptp;
    mod stacked;
    mod static_ipam;
    mod teardown;
}
