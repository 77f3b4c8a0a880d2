//! The plugins' executables in a private host: real namespaces, links, addresses and packets.

mod host {
    mod bridge;
    mod chain;
    mod firewall;
    mod loopback;
    mod masquerade;
    mod node;
    mod outside;
    mod portmap;
    mod spoof;
    mod teardown;
}
