use super::*;

fn node(annotations: BTreeMap<String, String>) -> Node {
    let mut node = Node::default();
    node.metadata.annotations = Some(annotations);
    node
}

fn said(backend: &str, data: &str) -> Lease {
    let pairs = [(BACKEND_TYPE, backend), (BACKEND_DATA, data)];
    Lease::of(&node(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()))
}

#[test]
fn what_a_node_says_another_reads() {
    let mac = End::Vxlan("5e:11:22:33:44:55".parse().unwrap());
    let key = End::Wireguard("HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=".parse().unwrap());
    for (end, backend) in [(None, "host-gw"), (Some(mac), "vxlan"), (Some(key), "wireguard")] {
        let lease = Lease::of(&node(annotations(end, [192, 0, 2, 1].into())));
        assert_eq!(lease, Lease { backend: Some(backend.to_owned()), end });
    }
    assert_eq!(Lease::of(&Node::default()), Lease::default());
}

#[test]
fn the_annotations_are_flannels() {
    let mac = End::Vxlan("5e:11:22:33:44:55".parse().unwrap());
    let written: Vec<(String, String)> = annotations(Some(mac), [192, 0, 2, 1].into()).into_iter().collect();
    let expected = [
        ("flannel.alpha.coreos.com/backend-data", r#"{"VNI":1,"VtepMAC":"5e:11:22:33:44:55"}"#),
        ("flannel.alpha.coreos.com/backend-type", "vxlan"),
        ("flannel.alpha.coreos.com/kube-subnet-manager", "true"),
        ("flannel.alpha.coreos.com/public-ip", "192.0.2.1"),
    ];
    assert_eq!(written, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
}

#[test]
fn an_end_that_is_none_is_told_by_its_absence() {
    let cases = [
        ("vxlan", r#"{"VNI":1,"VtepMAC":"5e:11"}"#),
        ("vxlan", r#"{"VNI":2,"VtepMAC":"5e:11:22:33:44:55"}"#),
        ("vxlan", r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#),
        ("vxlan", r#"{"VNI":1,"VtepMAC":"5f:11:22:33:44:55"}"#),
        ("vxlan", "null"),
        ("vxlan", "{"),
        ("wireguard", r#"{"PublicKey":"short"}"#),
        ("udp", r#"{"VNI":1,"VtepMAC":"5e:11:22:33:44:55"}"#),
    ];
    for (backend, data) in cases {
        assert_eq!(said(backend, data), Lease { backend: Some(backend.to_owned()), end: None }, "{data}");
    }
}
