use std::time::Duration;

use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::*;

fn pages(node: Option<serde_json::Value>) -> Pages {
    let node = node.map(|node| Arc::new(serde_json::from_value::<Node>(node).unwrap()));
    Pages::new(watch::channel(node).1, Progress::default(), Recorder::discarding())
}

async fn body(answer: Answer) -> (StatusCode, String) {
    let (status, body) = (answer.status(), answer.into_body().collect().await.unwrap().to_bytes());
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn health(pages: &Pages, path: &str) -> (StatusCode, serde_json::Value) {
    let (status, text) = body(pages.health(path)).await;
    (status, serde_json::from_str(&text).unwrap())
}

const OK: StatusCode = StatusCode::OK;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

#[tokio::test]
async fn a_node_that_is_about_to_go_is_no_place_for_traffic_and_no_reason_to_restart() {
    let tainted =
        json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    let other =
        json!({"spec": {"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}});
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    for (node, eligible) in [
        (None, true),
        (Some(json!({})), true),
        (Some(other), true),
        (Some(tainted), false),
        (Some(deleted), false),
    ] {
        let pages = pages(node);
        let (status, body) = health(&pages, "/healthz").await;
        assert_eq!(
            (status, &body["nodeEligible"]),
            (if eligible { OK } else { UNAVAILABLE }, &json!(eligible))
        );
        let (status, body) = health(&pages, "/livez").await;
        assert_eq!((status, &body["nodeEligible"]), (OK, &serde_json::Value::Null));
        assert_eq!(body["lastUpdated"], body["currentTime"], "one that is healthy is up to date");
    }
}

#[test]
fn times_are_shown_as_kube_proxy_shows_them() {
    let at = |millis| shown(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
    assert_eq!(at(1_700_000_000_250), "2023-11-14 22:13:20.25 +0000 UTC");
    assert_eq!(at(1_700_000_000_000), "2023-11-14 22:13:20 +0000 UTC");
}

#[tokio::test]
async fn figures_have_kube_proxys_names() {
    let pages = pages(None);
    pages.progress.service_changed();
    pages.progress.written(Duration::from_millis(2), true);
    health(&pages, "/healthz").await;
    health(&pages, "/livez").await;
    let (status, text) = body(pages.figures("/metrics")).await;
    assert_eq!(status, OK);
    for line in [
        "kubeproxy_sync_proxy_rules_service_changes_total 1",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
        "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        "orlop_events_dropped_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let stamp =
        text.lines().find_map(|line| line.strip_prefix("kubeproxy_sync_proxy_rules_last_timestamp_seconds "));
    assert!(stamp.and_then(|stamp| stamp.parse::<f64>().ok()).is_some_and(|stamp| stamp > 1.7e9), "{text}");
    assert_eq!(body(pages.figures("/proxyMode")).await, (OK, "ebpf".to_owned()));
    assert_eq!(pages.figures("/nothing").status(), StatusCode::NOT_FOUND);
    assert_eq!(pages.health("/metrics").status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn each_port_answers_its_own_pages_until_the_end() {
    let here = |listener: &Option<TcpListener>| listener.as_ref().unwrap().local_addr().unwrap();
    let any = Some(([127, 0, 0, 1], 0).into());
    let ports = Ports::bind(any, any).unwrap();
    let (healthz, metrics) = (here(&ports.healthz), here(&ports.metrics));
    let taken = Ports::bind(Some(healthz), None).map(drop).unwrap_err().to_string();
    assert_eq!(taken, format!("listen on {healthz} (--healthz-bind-address)"));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(ports.run(pages(None), shutdown.clone()));
    let ask = async |address: SocketAddr, path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    for path in ["/healthz", "/livez"] {
        let text = ask(healthz, path).await;
        assert!(
            text.starts_with("HTTP/1.1 200 OK\r\n")
                && text.contains("\r\ncontent-type: application/json\r\n"),
            "{text}"
        );
    }
    assert!(ask(metrics, "/metrics").await.contains("openmetrics-text"));
    assert!(ask(metrics, "/livez").await.starts_with("HTTP/1.1 404 "));
    shutdown.cancel();
    running.await.unwrap();
    assert!(TcpStream::connect(healthz).await.is_err());
}
