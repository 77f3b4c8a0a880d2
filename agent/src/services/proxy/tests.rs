use tokio_util::sync::CancellationToken;

use super::*;
use crate::events::Recorder;
use crate::services::{Departure, cache};

/// Without a dataplane or a Node, and with both watches listed. The client is never asked.
fn listed() -> Proxy {
    let client = kube::Config::new("http://127.0.0.1:1".parse().unwrap()).try_into().unwrap();
    let context = Context {
        client,
        node_name: "n".into(),
        node: tokio::sync::watch::channel(None).1,
        node_addresses: Vec::new(),
        dataplane: None,
        bypass: None,
        directory: crate::services::Directory::default(),
        recorder: Recorder::discarding(),
        progress: crate::services::Progress::default(),
        shutdown: CancellationToken::new(),
    };
    let mut proxy = Proxy::new(context, cache().0);
    (proxy.services.listed_once, proxy.slices.listed_once, proxy.located) = (true, true, true);
    proxy
}

#[tokio::test]
async fn nothing_is_written_before_the_pods_that_were_ending_are_known() {
    let mut proxy = listed();
    proxy.on_notice(Notice::Departs { pod: "p".into(), stage: Departure::Gone, applied: None });
    proxy.flush();
    assert!(!proxy.running);
    proxy.on_notice(Notice::CaughtUp);
    proxy.flush();
    assert!(proxy.running);
}

#[tokio::test]
async fn nothing_is_written_before_the_zone_is_known() {
    let mut proxy = listed();
    let (sender, receiver) = tokio::sync::watch::channel(None);
    (proxy.context.node, proxy.located) = (receiver, false);
    proxy.on_notice(Notice::CaughtUp);
    proxy.on_node();
    proxy.flush();
    assert!(!proxy.running && proxy.catch_up_by.is_some());
    sender.send_replace(Some(std::sync::Arc::default()));
    proxy.on_node();
    proxy.flush();
    assert!(proxy.running);
}

#[tokio::test]
async fn pods_that_nobody_lists_hold_the_services_up_for_a_while_only() {
    let mut proxy = listed();
    proxy.slices.listed_once = false;
    proxy.flush();
    assert_eq!(proxy.catch_up_by, None);
    proxy.slices.listed_once = true;
    proxy.flush();
    assert!(proxy.catch_up_by.is_some_and(|by| by <= Instant::now() + CATCH_UP));
    proxy.wake();
    proxy.flush();
    assert!(proxy.running);
}

#[tokio::test]
async fn a_write_that_was_refused_is_no_sync() {
    let mut proxy = listed();
    proxy.caught_up = true;
    proxy.context.progress.service_changed();
    let frontend = Frontend { address: [10, 96, 0, 7].into(), port: 80, protocol: dataplane::Protocol::Tcp };
    proxy.failed.insert(frontend);
    proxy.flush();
    let progress = proxy.context.progress.clone();
    let synced = || {
        let mut registry = prometheus_client::registry::Registry::default();
        progress.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        !text.contains("\nkubeproxy_sync_proxy_rules_last_timestamp_seconds 0.0\n")
    };
    assert!(proxy.running && !synced());
    proxy.failed.clear();
    proxy.flush();
    assert!(synced());
}

#[tokio::test]
async fn sctp_is_led_beside_the_services_and_one_try_at_a_time() {
    let mut proxy = listed();
    proxy.caught_up = true;
    proxy.context.bypass = Some(std::sync::Arc::new(crate::services::Bypass::start(None, &[])));
    proxy.flush();
    assert!(proxy.running && proxy.leading.is_some() && proxy.sctp.is_none());
    let first = proxy.leading.as_ref().map(|(_, trying)| trying.id());
    proxy.flush();
    assert_eq!(proxy.leading.as_ref().map(|(_, trying)| trying.id()), first);
    let (leads, done) = led(&mut proxy.leading).await;
    assert_eq!((leads, done), (false, true));
    proxy.on_led(leads, done);
    proxy.flush();
    assert!(proxy.leading.is_none() && proxy.retry_at.is_none(), "it is as wanted");
    proxy.on_led(false, false);
    proxy.flush();
    assert!(proxy.leading.is_none() && proxy.retry_at.is_some());
    proxy.retry();
    assert!(proxy.leading.is_some());
}

/// `direct` asks for direct return.
fn api_service(name: &str, direct: bool) -> ApiService {
    let mode = if direct { "dsr" } else { "snat" };
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "namespace": "ns", "annotations": {"orlop.dev/forwarding-mode": mode}},
        "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
    }))
    .unwrap()
}

#[tokio::test]
async fn nodes_are_believed_while_a_service_asks_for_direct_return() {
    let mut proxy = listed();
    proxy.services.listed_once = false;
    let [plain, direct] = [false, true].map(|direct| api_service("web", direct));
    let other = api_service("other", true);
    let mut wanted_after = |event| {
        proxy.on_service(Ok(event));
        proxy.flush();
        proxy.wants_peers.get()
    };
    assert_eq!(wanted_after(Event::Init), None);
    assert_eq!(wanted_after(Event::InitApply(plain.clone())), None, "another may ask for it");
    assert_eq!(wanted_after(Event::InitDone), Some(false));
    assert_eq!(wanted_after(Event::Apply(direct.clone())), Some(true));
    assert_eq!(wanted_after(Event::Apply(plain.clone())), Some(false));
    assert_eq!(wanted_after(Event::Init), Some(false));
    assert_eq!(wanted_after(Event::InitApply(direct.clone())), Some(true));
    assert_eq!(wanted_after(Event::InitApply(other.clone())), Some(true));
    assert_eq!(wanted_after(Event::InitDone), Some(true));
    assert_eq!(wanted_after(Event::Delete(direct)), Some(true));
    assert_eq!(wanted_after(Event::Delete(other.clone())), Some(false));
    assert_eq!(wanted_after(Event::Apply(other)), Some(true));
    // It went while the watch was broken.
    assert_eq!(wanted_after(Event::Init), Some(true));
    assert_eq!(wanted_after(Event::InitDone), Some(false));
}
