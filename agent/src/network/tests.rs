use super::*;

#[test]
fn the_node_is_as_ready_as_the_runtime_says() {
    assert_eq!(State::said(Ok(())), State::Ready);
    let error = runtime::Error::CniNotInitialized { reason: "no plugin named bridge".into() };
    let State::NotReady { message } = State::said(Err(error)) else { panic!("not ready") };
    assert_eq!(message, "Network plugin returns error: cni plugin not initialized: no plugin named bridge");
}

#[test]
fn a_network_that_is_not_ready_is_looked_at_again_soon() {
    assert_eq!(State::uninitialized().look_again_after(), RETRY_AFTER);
    assert!(State::Ready.look_again_after() > RETRY_AFTER);
}

#[test]
fn pods_show_the_nodes_address_of_their_family_and_none_of_the_other() {
    let network = |text: &str| text.parse::<IpNetwork>().unwrap();
    let settings = |node_ip: &str| {
        let nowhere = || Some("/nowhere".to_owned());
        let raw = crate::settings::Raw {
            node_name: Some("node".into()),
            node_ip: Some(node_ip.into()),
            cluster_cidr: Some("10.244.0.0/16,fd00:244::/48".into()),
            kubeconfig: nowhere(),
            tls_cert_file: nowhere(),
            tls_private_key_file: nowhere(),
            client_ca_file: nowhere(),
            dataplane_cgroup: nowhere(),
            ..Default::default()
        };
        Settings::validate(raw, &crate::settings::Machine::default()).unwrap()
    };
    let (v4, v6) = (network("10.244.1.0/24"), network("fd00:244:0:1::/64"));
    let of = |node_ip: &str, pods| masquerade(&settings(node_ip), None, pods);
    let shown = of("192.0.2.1,2001:db8::1", v6).unwrap();
    assert_eq!((shown.pods, shown.address), (v6, "2001:db8::1".parse::<IpAddr>().unwrap()));
    assert_eq!(shown.excluded, ["fd00:244::/48", "224.0.0.0/4", "ff00::/8", "fe80::/10"].map(network));
    assert_eq!(of("192.0.2.1,2001:db8::1", v4).unwrap().address, "192.0.2.1".parse::<IpAddr>().unwrap());
    assert_eq!(of("192.0.2.1", v4).unwrap().excluded[0], network("10.244.0.0/16"));
    assert_eq!(of("192.0.2.1", v6), None);
}
