//! Watches over HTTP.

use apiserver::pki::Identity;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::client::{Server, request, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    async fn open(server: &Server, query: &str) -> Events {
        Self::of(server, &format!("{MAPS}?watch=true&{query}")).await
    }

    pub async fn of(server: &Server, path: &str) -> Events {
        let response = server.open(Some(Identity::Admin), request("GET", path, "", Bytes::new())).await;
        assert_eq!(response.status(), 200);
        Events { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event; none at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(frame.data_ref()?);
        }
    }

    async fn summary(&mut self) -> String {
        let event = self.next().await.unwrap();
        let object = &event["object"];
        format!("{} {}", event["type"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap_or(""))
    }
}

async fn create(server: &Server, name: &str, label: &str) -> String {
    let map = json!({"metadata": {"name": name, "labels": {"l": label}}});
    let answer = server.post(MAPS, &map).await;
    answer.body["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_watch_continues_from_a_revision() {
    let server = server().await;
    let revision = create(&server, "a", "x").await;
    create(&server, "b", "y").await;
    let mut events = Events::open(&server, &format!("resourceVersion={revision}")).await;
    assert_eq!(events.summary().await, "ADDED b");
    server.patch(&format!("{MAPS}/b"), "merge", &json!({"data": {"k": "v"}})).await;
    server.delete(&format!("{MAPS}/a")).await;
    assert_eq!(events.summary().await, "MODIFIED b");
    assert_eq!(events.summary().await, "DELETED a");
    let mut state = Events::open(&server, "").await;
    assert_eq!(state.summary().await, "ADDED b");
}

#[tokio::test]
async fn a_selector_decides_what_is_added_and_deleted() {
    let server = server().await;
    let mut events = Events::open(&server, "labelSelector=l%3Dx").await;
    create(&server, "a", "y").await;
    server.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"l": "x"}}})).await;
    server.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"l": "y"}}})).await;
    assert_eq!(events.summary().await, "ADDED a");
    assert_eq!(events.summary().await, "DELETED a");
}

#[tokio::test]
async fn a_watch_list_ends_with_its_bookmark() {
    let server = server().await;
    create(&server, "a", "x").await;
    let query = "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut events = Events::open(&server, query).await;
    assert_eq!(events.summary().await, "ADDED a");
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn a_watch_ends_in_time_and_a_future_one_is_refused() {
    let server = server().await;
    let mut events = Events::open(&server, "timeoutSeconds=1").await;
    assert!(events.next().await.is_none());
    let mut events = Events::open(&server, "resourceVersion=99999").await;
    assert_eq!(events.next().await.unwrap()["object"]["code"], 504);
    let longest = format!("timeoutSeconds={}", u64::MAX);
    let mut events = Events::open(&server, &longest).await;
    create(&server, "a", "x").await;
    assert_eq!(events.summary().await, "ADDED a");
}
