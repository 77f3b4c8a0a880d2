//! Pods: binding, graceful deletion, eviction, what a node may see.

use apiserver::pki::Identity;
use bytes::Bytes;
use serde_json::{Value, json};

use super::client::{Answer, Server, request, server};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, secret: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "s", "secret": {"secretName": secret}}]}})
}

async fn bind(server: &Server, name: &str, node: &str) -> Answer {
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}});
    let body = binding.to_string().into();
    let path = format!("{PODS}/{name}/binding");
    server.send(Some(Identity::Scheduler), request("POST", &path, "application/json", body)).await
}

#[tokio::test]
async fn a_pod_is_bound_once_and_ends_with_its_nodes_word() {
    let server = server().await;
    let created = server.post(PODS, &pod("p", "s")).await.body;
    assert_eq!(
        (&created["status"]["phase"], &created["status"]["qosClass"]),
        (&json!("Pending"), &json!("BestEffort"))
    );
    assert_eq!(created["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(bind(&server, "p", "n1").await.code, 201);
    let twice = bind(&server, "p", "n2").await;
    assert_eq!(twice.reason(), (409, "Conflict"));
    assert!(twice.message().ends_with("pod p is already assigned to node \"n1\""), "{}", twice.message());
    let bound = server.get(&format!("{PODS}/p")).await.body;
    assert_eq!(
        (&bound["spec"]["nodeName"], &bound["status"]["conditions"][0]["type"]),
        (&json!("n1"), &json!("PodScheduled"))
    );
    let marked = server.delete(&format!("{PODS}/p")).await.body;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(server.get(&format!("{PODS}/p")).await.code, 200);
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}}).to_string();
    let wrong = request("DELETE", &format!("{PODS}/p"), "application/json", options.into());
    assert_eq!(server.send(Some(Identity::Node("n1")), wrong).await.reason(), (409, "Conflict"));
    let options =
        json!({"gracePeriodSeconds": 0, "preconditions": {"uid": created["metadata"]["uid"]}}).to_string();
    let last = request("DELETE", &format!("{PODS}/p"), "application/json", options.into());
    assert_eq!(server.send(Some(Identity::Node("n1")), last).await.code, 200);
    assert_eq!(server.get(&format!("{PODS}/p")).await.code, 404);
}

#[tokio::test]
async fn an_unbound_pod_goes_at_once_and_an_evicted_one_gracefully() {
    let server = server().await;
    server.post(PODS, &pod("a", "s")).await;
    server.delete(&format!("{PODS}/a")).await;
    assert_eq!(server.get(&format!("{PODS}/a")).await.code, 404);
    server.post(PODS, &pod("b", "s")).await;
    bind(&server, "b", "n1").await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "b"}, "deleteOptions": {"gracePeriodSeconds": 5}});
    assert_eq!(server.post(&format!("{PODS}/b/eviction"), &eviction).await.code, 201);
    assert_eq!(server.get(&format!("{PODS}/b")).await.body["metadata"]["deletionGracePeriodSeconds"], 5);
}

#[tokio::test]
async fn a_node_sees_what_its_pods_need() {
    let server = server().await;
    for name in ["mine", "other"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"k": "v"}});
        assert_eq!(server.post("/api/v1/namespaces/default/secrets", &secret).await.code, 201);
        server.post(PODS, &pod(name, name)).await;
    }
    bind(&server, "mine", "n1").await;
    bind(&server, "other", "n2").await;
    let get = async |path: &str| {
        server.send(Some(Identity::Node("n1")), request("GET", path, "", Bytes::new())).await
    };
    assert_eq!(get("/api/v1/namespaces/default/secrets/mine").await.body["data"]["k"], "dg==");
    let denied = get("/api/v1/namespaces/default/secrets/other").await;
    assert_eq!(denied.reason(), (403, "Forbidden"));
    assert_eq!(
        denied.message(),
        "secrets \"other\" is forbidden: User \"system:node:n1\" cannot get resource \"secrets\" in API group \"\" in the \
         namespace \"default\""
    );
    assert_eq!(
        get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.body["items"].as_array().unwrap().len(),
        1
    );
    // Who enforces NetworkPolicies sees the labels and addresses of all pods; CNI agents have the same right elsewhere.
    assert_eq!(get("/api/v1/pods").await.body["items"].as_array().unwrap().len(), 2);
    assert_eq!(get("/api/v1/secrets").await.reason(), (403, "Forbidden"));
    let own = json!({"metadata": {"name": "n2"}}).to_string();
    let foreign = request("POST", "/api/v1/nodes", "application/json", own.into());
    assert_eq!(server.send(Some(Identity::Node("n1")), foreign).await.reason(), (403, "Forbidden"));
}

#[tokio::test]
async fn a_node_gets_at_no_secret_and_at_no_other_node_by_what_it_writes() {
    let server = server().await;
    let send = async |method: &str, path: &str, media: &str, body: Value| {
        let request = request(method, path, &format!("application/{media}json"), body.to_string().into());
        server.send(Some(Identity::Node("n1")), request).await
    };
    let mut own_pod = pod("p", "secret");
    own_pod["spec"]["nodeName"] = "n1".into();
    assert_eq!(send("POST", PODS, "", own_pod).await.reason(), (403, "Forbidden"));
    let node = |labels: Value| json!({"metadata": {"name": "n1", "labels": labels}});
    let label = "node-restriction.kubernetes.io/tier";
    let refused = send("POST", "/api/v1/nodes", "", node(json!({label: "a"}))).await;
    assert_eq!(refused.reason(), (403, "Forbidden"));
    assert_eq!(
        refused.message(),
        format!("nodes \"n1\" is forbidden: node \"n1\" is not allowed to set the following labels: {label}")
    );
    assert_eq!(send("POST", "/api/v1/nodes", "", node(json!({"kubernetes.io/os": "linux"}))).await.code, 201);
    let owner = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "v1", "kind": "Node", "name": "gone", "uid": "gone"}]}});
    for path in ["/api/v1/nodes/n1", "/api/v1/nodes/n1/status"] {
        let labels = send("PATCH", path, "merge-patch+", json!({"metadata": {"labels": {label: "a"}}})).await;
        assert_eq!(labels.reason(), (403, "Forbidden"), "{path}");
    }
    let owned = send("PATCH", "/api/v1/nodes/n1", "merge-patch+", owner).await;
    assert!(owned.message().ends_with("is not allowed to modify ownerReferences"), "{}", owned.message());
    server.post(PODS, &pod("q", "s")).await;
    bind(&server, "q", "n2").await;
    let foreign = request("DELETE", &format!("{PODS}/q"), "", Bytes::new());
    assert_eq!(server.send(Some(Identity::Node("n1")), foreign).await.code, 403);
}
