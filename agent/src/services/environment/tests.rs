use super::super::{Entry, EntryPort, ServiceTable};
use super::variables;

fn port(name: Option<&str>, port: i32, protocol: &str) -> EntryPort {
    EntryPort { name: name.map(Into::into), port, protocol: protocol.into() }
}

fn table() -> ServiceTable {
    let mut table = ServiceTable::default();
    let master = Entry { cluster_ip: "10.96.0.1".into(), ports: vec![port(Some("https"), 443, "TCP")] };
    table.set("default", "kubernetes", master);
    let dns = vec![port(Some("dns-tcp"), 53, "TCP"), port(None, 53, "UDP")];
    table.set("team", "my-dns", Entry { cluster_ip: "10.96.0.10".into(), ports: dns });
    table.set("other", "web", Entry { cluster_ip: "fd00::7".into(), ports: vec![port(None, 80, "TCP")] });
    table
}

fn shown(namespace: &str, links: bool) -> String {
    variables(namespace, links, &table())
        .into_iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}

const MASTER: &str = "\
KUBERNETES_SERVICE_HOST=10.96.0.1
KUBERNETES_SERVICE_PORT=443
KUBERNETES_SERVICE_PORT_HTTPS=443
KUBERNETES_PORT=tcp://10.96.0.1:443
KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443
KUBERNETES_PORT_443_TCP_PROTO=tcp
KUBERNETES_PORT_443_TCP_PORT=443
KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1
";

#[test]
fn master_is_always_visible_others_only_with_links() {
    assert_eq!(shown("team", false), MASTER);
    assert_eq!(shown("empty", true), MASTER);
}

#[test]
fn own_namespace_with_two_protocols() {
    let own = "\
MY_DNS_SERVICE_HOST=10.96.0.10
MY_DNS_SERVICE_PORT=53
MY_DNS_SERVICE_PORT_DNS_TCP=53
MY_DNS_PORT=tcp://10.96.0.10:53
MY_DNS_PORT_53_TCP=tcp://10.96.0.10:53
MY_DNS_PORT_53_TCP_PROTO=tcp
MY_DNS_PORT_53_TCP_PORT=53
MY_DNS_PORT_53_TCP_ADDR=10.96.0.10
MY_DNS_PORT_53_UDP=udp://10.96.0.10:53
MY_DNS_PORT_53_UDP_PROTO=udp
MY_DNS_PORT_53_UDP_PORT=53
MY_DNS_PORT_53_UDP_ADDR=10.96.0.10
";
    assert_eq!(shown("team", true), format!("{MASTER}{own}"));
}

#[test]
fn own_kubernetes_service_hides_the_master() {
    let mut table = table();
    let own = Entry { cluster_ip: "10.96.9.9".into(), ports: vec![port(None, 1, "TCP")] };
    table.set("team", "kubernetes", own);
    let host = |links| variables("team", links, &table)[0].1.clone();
    assert_eq!((host(true).as_str(), host(false).as_str()), ("10.96.9.9", "10.96.0.1"));
}

#[test]
fn ipv6_addresses_are_bracketed_in_urls() {
    let all = variables("other", true, &table());
    assert!(all.contains(&("WEB_PORT".into(), "tcp://[fd00::7]:80".into())), "{all:?}");
}

#[test]
fn removal_empties_a_namespace() {
    let mut table = table();
    let before = table.clone();
    table.remove("team", "my-dns");
    table.remove("team", "my-dns");
    assert_eq!(table.namespace("team").count(), 0);
    assert_eq!(before.namespace("team").count(), 1, "a snapshot does not change");
}
