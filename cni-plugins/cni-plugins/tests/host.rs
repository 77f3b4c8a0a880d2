//! The plugins' executables in a private host: real namespaces, links, addresses and packets.

mod host {
    mod background;
    mod bandwidth;
    mod bridge;
    mod bridge_vlan;
    mod chain;
    mod containerd;
    mod delegate;
    mod dhcp;
    mod differential;
    mod firewall;
    mod flannel;
    mod host_device;
    mod killed;
    mod loopback;
    mod macvlan;
    mod masquerade;
    mod node;
    mod outside;
    mod portmap;
    mod ptp;
    mod sbr;
    mod spoof;
    mod stacked;
    mod static_ipam;
    mod teardown;
    mod tuning;
    mod vrf;
}
