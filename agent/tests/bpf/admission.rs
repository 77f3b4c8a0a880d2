//! Pods that start: each waits until policies hold for it, and one for which they cannot does not start.

use std::future::{Future, ready};
use std::net::UdpSocket;
use std::path::PathBuf;
use std::pin::Pin;

use agent::events::Recorder;
use agent::policies::{self, Guard};
use agent::services;
use dataplane::{Dataplane, counter};
use http::{Request, Response};
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::client::Body;
use runtime::SandboxId;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::place::{Cgroup, LIMIT, PORTS, Place, Pod};

/// An API server with one policy: nobody comes in to pods of the namespace `shut`. It answers lists, and watches bring nothing.
fn client() -> kube::Client {
    let list = |kind: &str, version: &str, items: Value| json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items});
    let server = tower::service_fn(move |request: Request<Body>| {
        let policy =
            json!({"metadata": {"namespace": "shut", "name": "nobody"}, "spec": {"podSelector": {}}});
        let answer = match request.uri().path() {
            "/api/v1/namespaces" => list("NamespaceList", "v1", json!([])),
            "/api/v1/pods" => list("PodList", "v1", json!([])),
            _ => list("NetworkPolicyList", "networking.k8s.io/v1", json!([policy])),
        };
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let answer = Response::new(Body::from(answer.to_string().into_bytes()));
        let answered: Pin<Box<dyn Future<Output = Result<_, std::convert::Infallible>> + Send>> =
            if is_watch { Box::pin(std::future::pending()) } else { Box::pin(ready(Ok(answer))) };
        answered
    });
    kube::Client::new(server, "default")
}

fn api_pod(namespace: &str, number: usize) -> ApiPod {
    let metadata =
        json!({"namespace": namespace, "name": format!("pod-{number}"), "uid": format!("uid-{number}")});
    serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": []}})).unwrap()
}

async fn admit(guard: &Guard, namespace: &str, number: usize, netns: &str) -> Result<(), String> {
    let ips = [Pod::address(number, true)];
    let netns = PathBuf::from("/run/netns").join(netns);
    guard.admit(&api_pod(namespace, number), &sandbox(number), &ips, netns).await
}

fn sandbox(number: usize) -> SandboxId {
    SandboxId::from(format!("sandbox-{number}"))
}

/// Whether a datagram of the last pod arrives; what does not was dropped by a policy.
fn arrives(place: &Place, client: &UdpSocket, dataplane: &services::Dataplane, to: usize) -> bool {
    let denied =
        || dataplane.with(|dataplane| dataplane.counters()).unwrap()[counter::POLICY_INGRESS_DENIED as usize];
    let before = denied();
    client.send_to(b"?", (Pod::address(to, true), PORTS[0])).unwrap();
    harness::wait::until("the datagram arrives or is dropped", LIMIT, || {
        let arrived = place.pods[to].datagrams[0][0].recv(&mut [0; 1]).is_ok();
        if arrived || denied() > before { Ok(arrived) } else { Err("neither".to_owned()) }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_starts_when_policies_hold_for_it() {
    let place = Place::make();
    let cgroup = Cgroup::make();
    let options = cgroup.options();
    let dataplane = services::Dataplane::new(Dataplane::open(&options).unwrap());
    let shutdown = CancellationToken::new();
    let (guard, task) = policies::start(policies::Context {
        client: client(),
        dataplane: dataplane.clone(),
        sandboxes: Vec::new(),
        recorder: Recorder::discarding(),
        shutdown: shutdown.clone(),
    });
    let sender = place.pods[8].datagram_client(true);
    assert!(arrives(&place, &sender, &dataplane, 0));

    admit(&guard, "shut", 0, "pod-0").await.unwrap();
    assert!(!arrives(&place, &sender, &dataplane, 0));
    admit(&guard, "shut", 0, "pod-0").await.unwrap();

    // Its network cannot be filtered: it does not start, however often that is tried, until it can.
    for _ in 0..2 {
        let refused = admit(&guard, "shut", 1, "nowhere").await.unwrap_err();
        assert!(refused.starts_with("NetworkPolicies cannot be enforced: "), "{refused}");
    }
    // No policy is about it.
    admit(&guard, "open", 2, "nowhere").await.unwrap();
    assert!(arrives(&place, &sender, &dataplane, 2));

    let shown = serde_json::to_value(guard.list().await.unwrap()).unwrap();
    let row = |number: usize| (shown[number]["pod"].clone(), shown[number]["ingress"].clone());
    assert_eq!([row(0), row(1)], [0, 1].map(|number| (json!(format!("pod-{number}")), json!(["nobody"]))));
    assert_eq!((&shown[0]["link"], &shown[0]["problem"]), (&json!("pod-0"), &Value::Null));
    assert!(shown[1]["problem"].is_string() && shown[2].is_null(), "{shown}");

    // An end of an earlier sandbox is none of this one.
    guard.ended("uid-0", &sandbox(7)).await;
    guard.list().await.unwrap();
    assert!(!arrives(&place, &sender, &dataplane, 0));
    guard.ended("uid-0", &sandbox(0)).await;
    guard.list().await.unwrap();
    assert!(arrives(&place, &sender, &dataplane, 0));

    shutdown.cancel();
    task.await.unwrap();
    drop(dataplane);
    dataplane::remove_all(&options.pin_root).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_policies_to_others_takes_back_what_was_enforced() {
    let place = Place::make();
    let cgroup = Cgroup::make();
    let options = cgroup.options();
    let sender = place.pods[8].datagram_client(true);
    let open = || services::Dataplane::new(Dataplane::open(&options).unwrap());
    let dataplane = open();
    let rules = dataplane.with(|dataplane| dataplane.first_ruleset());
    let isolation = dataplane::policy::Isolation { ingress: Some(rules), egress: None };
    dataplane.with(|dataplane| dataplane.isolate(&place.pods[0].link, isolation)).unwrap();
    assert!(!arrives(&place, &sender, &dataplane, 0));
    drop(dataplane);
    let dataplane = open();
    policies::give_up(&dataplane).unwrap();
    assert!(arrives(&place, &sender, &dataplane, 0));
    drop(dataplane);
    dataplane::remove_all(&options.pin_root).unwrap();
}
