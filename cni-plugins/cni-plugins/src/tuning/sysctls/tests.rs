//! Where a sysctl's file is, and which are refused.

use super::path;

#[test]
fn names_lead_to_files_below_net() {
    for (key, file) in [
        ("net.core.somaxconn", "/proc/sys/net/core/somaxconn"),
        ("net/core/somaxconn", "/proc/sys/net/core/somaxconn"),
        ("net.ipv4.conf.IFNAME.arp_filter", "/proc/sys/net/ipv4/conf/eth0.7/arp_filter"),
        ("..net..core...somaxconn", "/proc/sys/net/core/somaxconn"),
    ] {
        assert_eq!(path(key, "eth0.7").expect(key).to_str(), Some(file));
    }
}

#[test]
fn other_sysctls_are_refused() {
    for key in
        ["", "net", "kernel.panic", "../net.core.somaxconn/../../kernel.panic", "netx.core.a", "IFNAME.a"]
    {
        let refused = path(key, "eth0");
        assert!(refused.is_err() || key.starts_with("../net"), "{key}: {refused:?}");
        // Nothing leads out again: the dots are gone.
        assert!(
            refused.is_err() || refused.is_ok_and(|path| path.starts_with("/proc/sys/net/core")),
            "{key}"
        );
    }
    let error = path("kernel.panic", "eth0").expect_err("not of the network");
    assert_eq!((error.code, error.msg.as_str()), (7, r#"invalid net sysctl key: "kernel/panic""#));
}
