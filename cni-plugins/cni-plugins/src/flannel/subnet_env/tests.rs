//! Tables for `subnet.env`.

use super::SubnetEnv;

const COMPLETE: &str = "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
                        FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:17::1/64\nFLANNEL_MTU=1450\n\
                        FLANNEL_IPMASQ=true\nOTHER=1\n";

#[test]
fn a_complete_file_is_read() {
    let read = SubnetEnv::parse(COMPLETE).expect("a file");
    let texts = |networks: &mut dyn Iterator<Item = ipnetwork::IpNetwork>| -> Vec<String> {
        networks.map(|network| network.to_string()).collect()
    };
    assert_eq!(texts(&mut read.networks()), ["10.1.0.0/16", "10.2.0.0/16", "fd00::/48"]);
    assert_eq!(texts(&mut read.subnets()), ["10.1.17.0/24", "fd00:0:0:17::/64"]);
    assert_eq!((read.mtu, read.masquerades), (1450, true));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    for (text, message) in [
        (
            "",
            "missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        (
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.1.0/24\nFLANNEL_IPMASQ=false",
            "missing FLANNEL_MTU",
        ),
        ("FLANNEL_MTU=big", "invalid FLANNEL_MTU \"big\""),
        (
            "FLANNEL_SUBNET=10.1.1.1",
            "invalid FLANNEL_SUBNET \"10.1.1.1\": expected an address with a prefix length",
        ),
        ("FLANNEL_NETWORK=10.1.0.0/16,", "invalid FLANNEL_NETWORK \"\""),
    ] {
        let error = SubnetEnv::parse(text).expect_err(message);
        assert!(error.starts_with(message), "{error}");
    }
}
