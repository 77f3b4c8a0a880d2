use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use http::{Request, Response};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::client::Body;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Context, Holder, RENEWAL_TIMEOUT, desired, run};

const HOLDER: Holder<'_> = Holder { node_name: "node-a", uid: Some("uid-1"), duration_seconds: 40 };

#[test]
fn a_renewal_keeps_the_servers_version_and_moves_the_time() {
    let first_time = Timestamp::from_second(1000).expect("time");
    let mut first = desired(None, &HOLDER, first_time);
    first.metadata.resource_version = Some("7".into());
    let owner = &first.metadata.owner_references.as_ref().expect("owner")[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", "uid-1"));
    let spec = first.spec.as_ref().expect("spec");
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("node-a"), Some(40)));

    let later = Timestamp::from_second(1010).expect("time");
    let second = desired(Some(first), &Holder { uid: None, ..HOLDER }, later);
    assert_eq!(second.metadata.resource_version.as_deref(), Some("7"));
    assert_eq!(second.metadata.owner_references.expect("still owned").len(), 1);
    assert_eq!(second.spec.expect("spec").renew_time, Some(MicroTime(later)));
}

#[tokio::test]
async fn a_renewal_that_nobody_answers_is_repeated() {
    let (asked, mut requests) = mpsc::unbounded_channel();
    let server = tower::service_fn(move |_: Request<Body>| {
        asked.send(()).expect("the test waits");
        pending::<Result<Response<Body>, Infallible>>()
    });
    let (_node, node) = watch::channel(Some(Arc::new(Node::default())));
    let context = Context {
        client: kube::Client::new(server, "default"),
        node_name: "node-a".to_owned(),
        duration_seconds: 1,
        node,
        shutdown: CancellationToken::new(),
    };
    tokio::spawn(run(context));
    for _ in 0..2 {
        timeout(RENEWAL_TIMEOUT, requests.recv()).await.expect("a request").expect("a Lease that is renewed");
    }
}
