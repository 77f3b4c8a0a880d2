//! The plugins' executables in a private host: real namespaces, links, addresses and packets.

mod host {
    mod bridge;
    mod chain;
    mod loopback;
    mod node;
    mod teardown;
}
