//! Questions about Services whose clients are pods, answered from maps that real sockets have filled.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use agent::admin::{Client, Desk, Pods};
use agent::services::plan::{Key, Port, Service};
use agent::services::{self, Directory, Known, Type};
use dataplane::{Acceleration, Dataplane, Frontend, Options, Protocol, Target, UplinkHook};
use runtime::{SandboxConfig, SandboxId, SandboxState, SandboxStatus};
use serde_json::{Value, json};

use crate::place::{LIMIT, PORTS, Place, Pod};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const FRONTEND: Frontend = Frontend { address: IpAddr::V4(VIP), port: 80, protocol: Protocol::Tcp };

fn sandbox(number: usize) -> SandboxStatus {
    let (namespace, name) = ("default".to_owned(), format!("pod-{number}"));
    SandboxStatus {
        id: SandboxId::from(format!("sandbox-{number}")),
        config: SandboxConfig { namespace, name, ..SandboxConfig::default() },
        state: SandboxState::Ready,
        created_at: 0,
        ips: vec![Pod::address(number, true)],
        netns: Some(format!("/run/netns/pod-{number}").into()),
        shim_pid: None,
    }
}

/// With the sockets of this test led, wherever they are.
fn options() -> Options {
    let unified = PathBuf::from("/sys/fs/cgroup/unified");
    let cgroup = if unified.is_dir() { unified } else { "/sys/fs/cgroup".into() };
    let pin_root = "/sys/fs/bpf/orlop".into();
    Options {
        pin_root,
        cgroup,
        uplinks: Vec::new(),
        uplink_hook: UplinkHook::Newest,
        uplink_acceleration: Acceleration::Disabled,
    }
}

/// A Service of that address, led to two pods.
fn serve(dataplane: &services::Dataplane, directory: &Directory) -> [SocketAddr; 2] {
    let key = Key { namespace: "default".into(), name: "web".into() };
    let port = Port { name: "http".into(), port: FRONTEND.port, protocol: Protocol::Tcp, node_port: None };
    let service = Service { cluster_ips: vec![VIP.into()], ports: vec![port], ..Service::default() };
    directory.set(&key, Known { kind: Type::ClusterIp, service: Arc::new(service) });
    let endpoints = [1, 2].map(|number| SocketAddr::new(Pod::address(number, true), PORTS[0]));
    let target = Target { affinity_seconds: NonZeroU32::new(60), ..Target::all(endpoints) };
    dataplane.with(|dataplane| dataplane.set(FRONTEND, &target)).unwrap();
    directory.own(FRONTEND, &key);
    endpoints
}

/// Connects from a pod, and tells which of the endpoints took it.
fn connect(place: &Place, endpoints: &[SocketAddr; 2]) -> SocketAddr {
    let client = place.pods[0].clients(1, true).remove(0);
    // Nothing here waits for an answer.
    let _in_progress = client.connect(&SocketAddr::new(VIP.into(), FRONTEND.port).into());
    harness::wait::until("an endpoint takes the connection", LIMIT, || {
        let listeners = [1, 2].map(|number| &place.pods[number].listeners[0][0]);
        let taken = listeners.iter().position(|listener| listener.accept().is_ok());
        taken.map(|place| endpoints[place]).ok_or("none yet".to_owned())
    })
}

#[test]
fn people_are_told_of_pods_by_their_names_and_where_these_are_led() {
    let place = Place::make();
    let options = options();
    let dataplane = services::Dataplane::new(Dataplane::open(&options).unwrap());
    let directory = Directory::default();
    let endpoints = serve(&dataplane, &directory);
    let pods = Pods::new(Some(vec![sandbox(0), sandbox(1)]));
    let desk = Desk { directory: &directory, dataplane: &dataplane, pods: &pods };
    let to = "10.96.0.10:80".parse().unwrap();
    let trace = |from: &str| desk.trace(&to, &from.parse::<Client>().unwrap());

    assert_eq!(trace("pod:default/pod-0").unwrap()["verdict"], "one of");
    let taken = connect(&place, &endpoints).to_string();
    let told = trace("pod:default/pod-0").unwrap();
    assert_eq!((&told["verdict"], &told["endpoint"]["address"]), (&json!("led"), &json!(taken)), "{told}");
    assert_eq!(told["service"], "default/web");
    // By its address it is the same pod, and another pod is another client.
    assert_eq!(trace("10.9.0.10").unwrap(), told);
    assert_eq!(trace("pod:default/pod-1").unwrap()["verdict"], "one of");
    assert_eq!(trace("node").unwrap()["verdict"], "one of");
    let none = trace("pod:default/pod-7").unwrap_err();
    assert!(none.contains("no pod default/pod-7 runs on this node"), "{none}");
    assert!(trace("127.0.0.1").unwrap_err().contains("ask as `node`"));

    let clients = desk.affinity(None).unwrap();
    let [one] = clients["items"].as_array().unwrap().as_slice() else { panic!("{clients}") };
    assert_eq!((&one["client"], &one["endpoint"]["address"]), (&json!("pod:default/pod-0"), &json!(taken)));
    assert!((55..=60).contains(&one["seconds_left"].as_u64().unwrap()), "{one}");
    let of_web = desk.affinity(Some(&"default/web".parse().unwrap())).unwrap();
    assert_eq!(of_web, clients);

    let listed = desk.list(None).unwrap();
    let row = json!({
        "namespace": "default", "name": "web", "type": "ClusterIP", "cluster_ips": ["10.96.0.10"], "external_ips": [],
        "ports": ["80/TCP"], "scheduler": "random", "endpoints": 2, "flows": 1, "refused": 0,
    });
    assert_eq!(listed, json!({"total": 1, "items": [row]}));
    let got: Value = desk.get(&"10.96.0.10:80".parse().unwrap()).unwrap();
    let frontend = &got["frontends"][0];
    assert_eq!(
        (&got["name"], &frontend["flows"], &frontend["port"]),
        (&json!("web"), &json!(1), &json!("80/TCP"))
    );
    assert_eq!(frontend["endpoints"][1]["inside"], "1/2");
    drop(dataplane);
    dataplane::remove_all(&options.pin_root).unwrap();
}
