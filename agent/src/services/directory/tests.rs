use dataplane::Protocol;

use super::*;

fn key(name: &str) -> Key {
    Key { namespace: "default".into(), name: name.into() }
}

fn known() -> Known {
    let port = Port { name: "http".into(), port: 80, protocol: Protocol::Tcp, node_port: Some(30080) };
    let service = Service {
        cluster_ips: vec![[10, 96, 0, 10].into()],
        balancer_ips: vec![[203, 0, 113, 5].into()],
        external_ips: vec![[203, 0, 113, 5].into(), [203, 0, 113, 6].into()],
        ports: vec![port],
        ..Service::default()
    };
    Known { kind: Type::LoadBalancer, service: service.into() }
}

fn at(address: [u8; 4], port: u16) -> Frontend {
    Frontend { address: address.into(), port, protocol: Protocol::Tcp }
}

#[test]
fn a_frontend_is_known_by_what_it_is_of_its_service() {
    let directory = Directory::default();
    directory.set(&key("web"), known());
    let kinds = [
        (at([10, 96, 0, 10], 80), AddressKind::ClusterIp),
        (at([203, 0, 113, 5], 80), AddressKind::LoadBalancer),
        (at([203, 0, 113, 6], 80), AddressKind::ExternalIp),
        (at([192, 0, 2, 1], 30080), AddressKind::NodePort),
    ];
    for (frontend, kind) in kinds {
        assert!(directory.owner(frontend).is_none(), "nobody has claimed it");
        directory.own(frontend, &key("web"));
        let owner = directory.owner(frontend).unwrap();
        assert_eq!((owner.key.to_string().as_str(), owner.kind), ("default/web", kind));
        assert_eq!(owner.port.name, "http");
    }
    assert_eq!(directory.frontends(&key("web")).len(), 4);
    directory.disown(at([192, 0, 2, 1], 30080));
    assert_eq!(directory.frontends(&key("web")).len(), 3);
    directory.remove(&key("web"));
    assert!(directory.owner(at([10, 96, 0, 10], 80)).is_none(), "the Service is gone");
}

#[test]
fn a_frontend_goes_over_to_another_service() {
    let directory = Directory::default();
    let frontend = at([10, 96, 0, 10], 80);
    // Whoever counts begins anew where it was another's, and only there.
    for (name, was_anothers) in [("web", false), ("web", false), ("other", true), ("other", false)] {
        directory.set(&key(name), known());
        assert_eq!(directory.own(frontend, &key(name)), was_anothers, "{name}");
    }
    assert_eq!(directory.owner(frontend).unwrap().key.name, "other");
    assert!(directory.frontends(&key("web")).is_empty());
}

#[test]
fn types_have_the_apis_names() {
    for name in ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] {
        assert_eq!(Type::named(Some(name)).as_str(), name);
    }
    assert_eq!(Type::named(None), Type::ClusterIp);
}
