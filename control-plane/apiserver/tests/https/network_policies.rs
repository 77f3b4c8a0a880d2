//! NetworkPolicies: as written, as stored, as listed, and who may do what.

use apiserver::pki::Identity;
use bytes::Bytes;
use serde_json::{Value, json};

use super::client::{request, server};

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";

fn policy(name: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "api"}}, "namespaceSelector": {}}, {"ipBlock":
                {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80, "endPort": 90}]}]}})
}

#[tokio::test]
async fn a_policy_counts_the_changes_of_its_spec() {
    let server = server().await;
    let created = server.post(POLICIES, &policy("a.b")).await;
    assert_eq!(created.code, 201, "{}", created.body);
    let created = created.body;
    assert_eq!(created["metadata"]["generation"], 1);
    let mut expected = policy("a.b")["spec"].clone();
    expected["ingress"][0]["ports"][0]["protocol"] = "TCP".into();
    expected["policyTypes"] = json!(["Ingress"]);
    assert_eq!(created["spec"], expected);
    let path = format!("{POLICIES}/a.b");
    let labelled = server.patch(&path, "merge", &json!({"metadata": {"labels": {"a": "b"}}})).await.body;
    assert_eq!(labelled["metadata"]["generation"], 1);
    // Every list is replaced as a whole, also by a strategic merge patch.
    let ingress = json!([{"from": [{"podSelector": {}}]}, {}]);
    let patch = json!({"spec": {"ingress": ingress, "egress": []}});
    let patched = server.patch(&path, "strategic-merge", &patch).await.body;
    assert_eq!(patched["metadata"]["generation"], 2);
    assert_eq!((&patched["spec"]["ingress"], patched["spec"].get("egress")), (&ingress, None));
    let status = server.get(&format!("{path}/status")).await;
    assert_eq!(status.reason(), (404, "NotFound"), "there is no status");
}

#[tokio::test]
async fn bad_policies_get_upstreams_words() {
    let server = server().await;
    let refused = server.post(POLICIES, &policy("A")).await;
    assert!(
        refused.message().starts_with("NetworkPolicy.networking.k8s.io \"A\" is invalid: metadata.name: ")
    );
    let mut bad = policy("p");
    bad["spec"]["ingress"][0]["from"] = json!([null]);
    let refused = server.post(POLICIES, &bad).await;
    assert_eq!(refused.reason(), (422, "Invalid"));
    assert_eq!(
        refused.message(),
        "NetworkPolicy.networking.k8s.io \"p\" is invalid: spec.ingress[0].from[0]: Required value: must specify a peer"
    );
    let mut statusful = policy("p");
    statusful["status"] = json!({});
    let warned = server.post(POLICIES, &statusful).await;
    let warning = "299 - \"unknown field \\\"status\\\"\"";
    assert_eq!((warned.code, warned.headers["warning"].to_str().unwrap()), (201, warning));
}

#[tokio::test]
async fn policies_are_described_and_printed() {
    let server = server().await;
    let mut all = policy("all");
    all["spec"]["podSelector"] = json!({});
    for policy in [&policy("web"), &all] {
        assert_eq!(server.post(POLICIES, policy).await.code, 201);
    }
    let group = server.get("/apis/networking.k8s.io/v1").await.body;
    assert_eq!(
        group["resources"],
        json!([{"name": "networkpolicies", "singularName": "networkpolicy", "namespaced": true, "kind": "NetworkPolicy",
            "shortNames": ["netpol"], "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update",
            "watch"]}])
    );
    let document = server.get("/openapi/v3/apis/networking.k8s.io/v1").await.body;
    let peer = &document["components"]["schemas"]["io.k8s.api.networking.v1.NetworkPolicyPeer"]["properties"];
    assert!(peer["ipBlock"].is_object(), "{peer}");
    let mut table = request("GET", POLICIES, "", Bytes::new());
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    table.headers_mut().insert("accept", accept.parse().unwrap());
    let table = server.send(Some(Identity::Admin), table).await.body;
    let names: Vec<&Value> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(names, ["Name", "Pod-Selector", "Age"]);
    let cells = |row: usize| [&table["rows"][row]["cells"][0], &table["rows"][row]["cells"][1]];
    assert_eq!((cells(0), cells(1)), ([&json!("all"), &json!("<none>")], [&json!("web"), &json!("app=web")]));
}

#[tokio::test]
async fn nodes_read_policies_and_the_namespace_controller_removes_them() {
    let server = server().await;
    assert_eq!(server.post(POLICIES, &policy("p")).await.code, 201);
    let send = async |identity: Identity<'static>, method: &str, path: &str| {
        server.send(Some(identity), request(method, path, "", Bytes::new())).await
    };
    let node = Identity::Node("n1");
    let everywhere = "/apis/networking.k8s.io/v1/networkpolicies";
    assert_eq!(send(node, "GET", everywhere).await.body["items"][0]["metadata"]["name"], "p");
    assert_eq!(send(node, "DELETE", &format!("{POLICIES}/p")).await.reason(), (403, "Forbidden"));
    let deleted = send(Identity::Controllers, "DELETE", POLICIES).await;
    assert_eq!(deleted.code, 200, "{}", deleted.body);
    assert_eq!(server.get(&format!("{POLICIES}/p")).await.code, 404);
}
