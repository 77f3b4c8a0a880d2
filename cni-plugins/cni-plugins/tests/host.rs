//! The plugins' executables in a private host: real namespaces, links, addresses and packets.

mod host {
    mod bridge;
    mod chain;
    mod delegate;
    mod host_device;
    mod loopback;
    mod macvlan;
    mod node;
    mod ptp;
    mod sbr;
    mod stacked;
    mod static_ipam;
    mod teardown;
    mod tuning;
    mod vrf;
}
