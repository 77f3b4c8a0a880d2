//! The plugins' executables in a private host: real namespaces, links, addresses and packets.

mod host {
    mod bandwidth;
    mod bridge;
    mod chain;
    mod dhcp;
    mod differential;
    mod flannel;
    mod loopback;
    mod node;
    mod teardown;
}
