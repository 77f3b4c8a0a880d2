//! Objects: create, read, update, patch, delete, lists, tables, errors, services, namespaces.

use apiserver::auth::User;
use apiserver::pki::Identity;
use apiserver::verbs::Target;
use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::client::{Server, options_in, request, server, server_in};
use super::watches::Events;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SERVICES: &str = "/api/v1/namespaces/default/services";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

pub fn deployment() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}})
}

#[tokio::test]
async fn only_health_is_open_to_clients_without_a_certificate() {
    let server = server().await;
    for (path, code) in
        [("/readyz", 200), ("/livez", 200), ("/healthz", 200), ("/api", 401), ("/version", 401)]
    {
        let answer = server.send(None, request("GET", path, "", Bytes::new())).await;
        assert_eq!(answer.code, code, "{path}");
    }
}

#[tokio::test]
async fn an_object_lives() {
    let server = server().await;
    let created = server.post(MAPS, &map("m")).await;
    assert_eq!(created.code, 201, "{}", created.body);
    let uid = created.body["metadata"]["uid"].clone();
    assert_eq!(server.post(MAPS, &map("m")).await.reason(), (409, "AlreadyExists"));
    let path = format!("{MAPS}/m");
    let read = server.get(&path).await.body;
    assert_eq!(
        (&read["metadata"]["uid"], &read["data"]["a"], &read["kind"]),
        (&uid, &json!("1"), &json!("ConfigMap"))
    );
    let mut changed = read.clone();
    changed["data"]["a"] = "2".into();
    assert_eq!(server.put(&path, &changed).await.code, 200);
    changed["data"]["a"] = "3".into();
    let conflict = server.put(&path, &changed).await;
    assert_eq!(conflict.reason(), (409, "Conflict"));
    assert_eq!(
        conflict.message(),
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to \
         the latest version and try again"
    );
    let same = server.patch(&path, "merge", &json!({"data": {"a": "2"}})).await.body;
    let again = server.get(&path).await.body;
    assert_eq!(same["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"], "nothing changed");
    let deleted = server.delete(&path).await;
    assert_eq!((deleted.code, &deleted.body["status"]), (200, &json!("Success")));
    let gone = server.get(&path).await;
    assert_eq!((gone.reason(), gone.message()), ((404, "NotFound"), "configmaps \"m\" not found"));
}

#[tokio::test]
async fn bad_bodies_get_upstreams_words() {
    let server = server().await;
    let unknown =
        json!({"metadata": {"name": "p"}, "spec": {"foo": 1, "containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    let strict = server.post(&format!("{pods}?fieldValidation=Strict"), &unknown).await;
    assert_eq!(strict.reason(), (400, "BadRequest"));
    assert_eq!(
        strict.message(),
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.foo\""
    );
    let warned = server.post(pods, &unknown).await;
    assert_eq!(
        (warned.code, &warned.headers["warning"]),
        (201, &"299 - \"unknown field \\\"spec.foo\\\"\"".parse().unwrap())
    );
    let mut other = unknown.clone();
    other["metadata"]["name"] = "q".into();
    let silent = server.post(&format!("{pods}?fieldValidation=Ignore&dryRun=All"), &other).await;
    assert!(silent.headers.get("warning").is_none());
    let mut invalid = deployment();
    invalid["spec"]["template"]["spec"]["containers"][0]["image"] = Value::Null;
    let answer = server.post(DEPLOYMENTS, &invalid).await;
    assert_eq!(answer.reason(), (422, "Invalid"));
    let expected =
        "Deployment.apps \"web\" is invalid: spec.template.spec.containers[0].image: Required value";
    assert_eq!(answer.message(), expected);
    assert_eq!(answer.body["details"]["causes"][0]["field"], "spec.template.spec.containers[0].image");
    let mut wrong = deployment();
    wrong["spec"]["replicas"] = "two".into();
    assert_eq!(server.post(DEPLOYMENTS, &wrong).await.reason(), (400, "BadRequest"));
    let yaml = request("POST", MAPS, "application/yaml", Bytes::from_static(b"a: b"));
    assert_eq!(server.send(Some(Identity::Admin), yaml).await.reason(), (415, "UnsupportedMediaType"));
    let large = request("POST", MAPS, "application/json", vec![b' '; (3 << 20) + 1].into());
    assert_eq!(server.send(Some(Identity::Admin), large).await.reason(), (413, "RequestEntityTooLarge"));
    assert_eq!(server.get("/api/v1/nothing").await.reason(), (404, "NotFound"));
    assert_eq!(server.get(&format!("{MAPS}?fieldSelector=spec.x=1")).await.reason(), (400, "BadRequest"));
}

#[tokio::test]
async fn deployments_scale_and_keep_their_selector() {
    let server = server().await;
    let created = server.post(DEPLOYMENTS, &deployment()).await.body;
    assert_eq!((&created["spec"]["replicas"], &created["metadata"]["generation"]), (&json!(1), &json!(1)));
    let path = format!("{DEPLOYMENTS}/web");
    let scaled =
        server.patch(&format!("{path}/scale"), "merge", &json!({"spec": {"replicas": 4}})).await.body;
    assert_eq!(
        (&scaled["kind"], &scaled["spec"]["replicas"], &scaled["status"]["selector"]),
        (&json!("Scale"), &json!(4), &json!("app=web"))
    );
    let read = server.get(&path).await.body;
    assert_eq!((&read["spec"]["replicas"], &read["metadata"]["generation"]), (&json!(4), &json!(2)));
    let patch = json!({"spec": {"selector": {"matchLabels": {"app": "api"}}, "template": {"metadata": {"labels": {"app": "api"}}}}});
    let refused = server.patch(&path, "strategic-merge", &patch).await;
    assert_eq!(refused.reason(), (422, "Invalid"));
    assert!(refused.message().ends_with("field is immutable"), "{}", refused.message());
    let status = json!({"status": {"replicas": 4}, "spec": {"replicas": 9}});
    let read = server.patch(&format!("{path}/status"), "merge", &status).await.body;
    assert_eq!((&read["spec"]["replicas"], &read["status"]["replicas"]), (&json!(4), &json!(4)));
}

#[tokio::test]
async fn bad_options_are_named_as_the_verbs_options() {
    let server = server().await;
    server.post(MAPS, &map("m")).await;
    let bad = |path: &str| format!("{path}?dryRun=Some");
    let one = format!("{MAPS}/m");
    for (answer, kind) in [
        (server.post(&bad(MAPS), &map("n")).await, "CreateOptions"),
        (server.put(&bad(&one), &map("m")).await, "UpdateOptions"),
        (server.patch(&bad(&one), "merge", &json!({})).await, "PatchOptions"),
        (server.delete(&bad(&one)).await, "DeleteOptions"),
        (server.delete(&bad(MAPS)).await, "DeleteOptions"),
    ] {
        let expected = format!(
            "{kind}.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\""
        );
        assert_eq!((answer.reason(), answer.message()), ((422, "Invalid"), expected.as_str()));
    }
    let validation = server.patch(&format!("{one}?fieldValidation=x"), "merge", &json!({})).await;
    assert!(validation.message().starts_with("PatchOptions.meta.k8s.io \"\" is invalid: fieldValidation: "));
}

#[tokio::test]
async fn a_body_is_about_the_object_of_its_path() {
    let server = server().await;
    server.post(MAPS, &map("m")).await;
    server.post(DEPLOYMENTS, &deployment()).await;
    let (path, scale) = (format!("{MAPS}/m"), format!("{DEPLOYMENTS}/web/scale"));
    let sent = "the namespace of the provided object does not match the namespace sent on the request";
    let url = "the name of the object (n) does not match the name on the URL";
    let request = "the namespace of the object (y) does not match the namespace on the request (default)";
    let of = |name: &str, namespace: &str| json!({"metadata": {"name": name, "namespace": namespace}});
    for (answer, message) in [
        (server.put(&path, &of("m", "y")).await, sent.to_owned()),
        (server.put(&path, &of("n", "default")).await, format!("{url} (m)")),
        (
            server.put(&path, &of("", "")).await,
            "the name of the object (m based on URL) was undeterminable: name must be provided".into(),
        ),
        (server.patch(&path, "merge", &json!({"metadata": {"name": "n"}})).await, format!("{url} (m)")),
        (
            server.patch(&path, "strategic-merge", &json!({"metadata": {"namespace": "y"}})).await,
            request.into(),
        ),
        (server.put(&scale, &of("web", "y")).await, sent.to_owned()),
        (server.put(&scale, &of("n", "default")).await, format!("{url} (web)")),
        (server.patch(&scale, "merge", &json!({"metadata": {"namespace": "y"}})).await, request.into()),
    ] {
        assert_eq!((answer.reason(), answer.message()), ((400, "BadRequest"), message.as_str()));
    }
    assert_eq!(server.put(&path, &of("m", "")).await.code, 200);
    assert_eq!(server.put(&scale, &of("web", "default")).await.code, 200);
}

#[tokio::test]
async fn lists_are_paged_selected_and_printed() {
    let server = server().await;
    for name in ["a", "b", "c"] {
        let mut map = map(name);
        map["metadata"]["labels"] = json!({"name": name});
        server.post(MAPS, &map).await;
    }
    let first = server.get(&format!("{MAPS}?limit=2")).await.body;
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["a".into(), "b".into()], &json!(1))
    );
    server.delete(&format!("{MAPS}/c")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = server.get(&format!("{MAPS}?limit=2&continue={token}")).await.body;
    assert_eq!(names(&rest), ["c"], "the second page is of the first one's revision");
    let selected = server.get(&format!("{MAPS}?labelSelector=name+in+(b,c)")).await.body;
    assert_eq!(names(&selected), ["b"]);
    let one = server.get(&format!("{MAPS}?fieldSelector=metadata.name%3Da")).await.body;
    assert_eq!(names(&one), ["a"]);
    let future = server.get(&format!("{MAPS}?resourceVersion=999999")).await;
    assert_eq!(future.reason(), (504, "Timeout"));
    let mut table = request("GET", MAPS, "", Bytes::new());
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    table.headers_mut().insert("accept", accept.parse().unwrap());
    let table = server.send(Some(Identity::Admin), table).await.body;
    assert_eq!((&table["kind"], &table["columnDefinitions"][1]["name"]), (&json!("Table"), &json!("Data")));
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let deleted = server.delete(&format!("{MAPS}?labelSelector=name")).await.body;
    assert_eq!(names(&deleted), ["a", "b"]);
}

#[tokio::test]
async fn services_get_addresses_and_ports() {
    let server = server().await;
    let service = |name: &str, port: u64| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}});
    let first = server.post(SERVICES, &service("a", 30005)).await.body;
    let address = first["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.96.0.") && address != "10.96.0.1", "{address}");
    let taken = server.post(SERVICES, &service("b", 30005)).await;
    assert_eq!(taken.reason(), (422, "Invalid"));
    assert!(taken.message().ends_with("provided port is already allocated"), "{}", taken.message());
    let mut kubernetes = service("c", 0);
    kubernetes["spec"]["clusterIP"] = "10.96.0.1".into();
    let taken = server.post(SERVICES, &kubernetes).await;
    assert!(taken.message().contains("provided IP is already allocated"), "{}", taken.message());
    let kept = server.put(&format!("{SERVICES}/a"), &service("a", 0)).await.body;
    assert_eq!(
        (&kept["spec"]["clusterIP"], &kept["spec"]["ports"][0]["nodePort"]),
        (&json!(address), &json!(30005))
    );
    server.delete(&format!("{SERVICES}/a")).await;
    assert_eq!(server.post(SERVICES, &service("b", 30005)).await.code, 201);
}

#[tokio::test]
async fn a_service_of_a_cluster_with_one_family_has_that() {
    let server = server().await;
    let service = json!({"metadata": {"name": "a"}, "spec": {"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]}});
    let created = server.post(SERVICES, &service).await.body;
    assert_eq!(created["spec"]["ipFamilies"], json!(["IPv4"]));
    let required = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    let refused = server.patch(&format!("{SERVICES}/a"), "merge", &required).await;
    let words = "this cluster is not configured for dual-stack services";
    assert!(refused.message().ends_with(words), "{}", refused.message());
}

#[tokio::test]
async fn a_service_has_addresses_of_the_families_that_it_asks_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options_in(directory.path());
    options.service_ranges.push("fd00:96::/112".parse().unwrap());
    let stop = CancellationToken::new();
    let running = apiserver::bootstrap::start(&options, stop.clone()).await.unwrap();
    let server = Server::of(running, stop, directory.path());
    let path = format!("{SERVICES}/a");
    let service = json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}});
    let created = server.post(SERVICES, &service).await.body;
    assert_eq!(created["spec"]["ipFamilies"], json!(["IPv4"]));
    let first = created["spec"]["clusterIP"].clone();
    let policy = |policy: &str| json!({"spec": {"ipFamilyPolicy": policy}});
    let dual = server.patch(&path, "merge", &policy("RequireDualStack")).await.body;
    let second = dual["spec"]["clusterIPs"][1].as_str().unwrap().to_owned();
    assert_eq!(dual["spec"]["clusterIPs"], json!([first, second]));
    assert_eq!(dual["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert!(second.starts_with("fd00:96::") && second != "fd00:96::1", "{second}");
    let mut other =
        json!({"metadata": {"name": "b"}, "spec": {"clusterIP": second, "ports": [{"port": 80}]}});
    let taken = server.post(SERVICES, &other).await;
    assert!(taken.message().ends_with("provided IP is already allocated"), "{}", taken.message());
    // A PUT of what the user knows changes nothing.
    assert_eq!(server.put(&path, &service).await.body, dual);
    let spelled =
        json!({"metadata": {"name": "d"}, "spec": {"clusterIP": "FD00:96::7", "ports": [{"port": 80}]}});
    let stored = server.post(SERVICES, &spelled).await.body;
    assert_eq!(stored["spec"]["clusterIPs"], json!(["FD00:96::7"]), "as the user spells it");
    assert_eq!(server.put(&format!("{SERVICES}/d"), &spelled).await.body, stored);
    let single = server.patch(&path, "merge", &policy("SingleStack")).await.body;
    assert_eq!(
        (&single["spec"]["clusterIPs"], &single["spec"]["ipFamilies"]),
        (&json!([first]), &json!(["IPv4"]))
    );
    let created = server.post(SERVICES, &other).await;
    assert_eq!(created.body["spec"]["ipFamilies"], json!(["IPv6"]), "the second address is free again");
    // Into a name, and back.
    let name = json!({"spec": {"type": "ExternalName", "externalName": "a.example"}});
    let named = server.patch(&path, "merge", &name).await.body;
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        assert_eq!(named["spec"].get(field), None, "{}", named["spec"]);
    }
    other["metadata"]["name"] = "c".into();
    other["spec"]["clusterIP"] = first;
    assert_eq!(server.post(SERVICES, &other).await.code, 201, "a name has no address");
    let back = json!({"spec": {"type": "ClusterIP", "externalName": null}});
    let back = server.patch(&path, "merge", &back).await.body;
    assert_eq!(back["spec"]["ipFamilies"], json!(["IPv4"]), "{back}");
}

#[tokio::test]
async fn a_namespace_ends_in_two_steps() {
    let server = server().await;
    assert_eq!(server.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.code, 201);
    assert_eq!(
        server.post("/api/v1/namespaces/y/configmaps", &map("m")).await.message(),
        "namespaces \"y\" not found"
    );
    let marked = server.delete("/api/v1/namespaces/x").await.body;
    assert_eq!(
        (&marked["status"]["phase"], &marked["spec"]["finalizers"]),
        (&json!("Terminating"), &json!(["kubernetes"]))
    );
    let refused = server.post("/api/v1/namespaces/x/configmaps", &map("m")).await;
    assert_eq!(refused.reason(), (403, "Forbidden"));
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let finalized = json!({"metadata": {"name": "x"}, "spec": {"finalizers": []}});
    assert_eq!(server.put("/api/v1/namespaces/x/finalize", &finalized).await.code, 200);
    assert_eq!(server.get("/api/v1/namespaces/x").await.code, 404);
    assert_eq!(server.delete("/api/v1/namespaces/default").await.reason(), (403, "Forbidden"));
}

#[tokio::test]
async fn events_have_two_groups_and_one_storage() {
    let server = server().await;
    let event = json!({"metadata": {"name": "e"}, "regarding": {"name": "p", "namespace": "default"}, "note": "hello",
        "eventTime": "2024-01-01T00:00:00.000000Z", "action": "A", "reason": "R", "type": "Normal",
        "reportingController": "c", "reportingInstance": "i"});
    let created = server.post("/apis/events.k8s.io/v1/namespaces/default/events", &event).await;
    assert_eq!(created.code, 201, "{}", created.body);
    let core = server.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name=p").await.body;
    assert_eq!(
        (&core["items"][0]["message"], &core["items"][0]["apiVersion"]),
        (&json!("hello"), &json!("v1"))
    );
    let list = server.get("/apis/events.k8s.io/v1/namespaces/default/events").await.body;
    assert_eq!(
        (&list["items"][0]["note"], &list["items"][0]["apiVersion"]),
        (&json!("hello"), &json!("events.k8s.io/v1"))
    );
}

#[tokio::test]
async fn discovery_and_openapi_describe_what_is_served() {
    let server = server().await;
    let mut aggregated = request("GET", "/apis", "", Bytes::new());
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    aggregated.headers_mut().insert("accept", accept.parse().unwrap());
    let answer = server.send(Some(Identity::Admin), aggregated).await;
    assert_eq!(answer.body["kind"], "APIGroupDiscoveryList");
    let mut again: http::Request<Full<Bytes>> = request("GET", "/apis", "", Bytes::new());
    again.headers_mut().insert("accept", accept.parse().unwrap());
    again.headers_mut().insert("if-none-match", answer.headers["etag"].clone());
    assert_eq!(server.send(Some(Identity::Admin), again).await.code, 304);
    let index = server.get("/openapi/v3").await.body;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = server.get(url).await.body;
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    assert!(
        patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .any(|parameter| parameter["name"] == "fieldValidation")
    );
    let schemas = &document["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(server.get("/openapi/v2").await.body["swagger"], "2.0");
    let mut binary = request("GET", "/openapi/v2", "", Bytes::new());
    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    binary.headers_mut().insert("accept", accept.parse().unwrap());
    let answer = server.send(Some(Identity::Admin), binary).await;
    let wanted = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    assert_eq!((answer.code, answer.headers["content-type"].to_str().unwrap()), (200, wanted));
    let mut neither = request("GET", "/openapi/v2", "", Bytes::new());
    neither.headers_mut().insert("accept", "text/html".parse().unwrap());
    assert_eq!(server.send(Some(Identity::Admin), neither).await.reason(), (406, "NotAcceptable"));
}

#[tokio::test]
async fn an_object_does_not_outgrow_a_request() {
    let server = server().await;
    server.post(DEPLOYMENTS, &deployment()).await;
    let path = format!("{DEPLOYMENTS}/web");
    let grow = |field: &str| {
        let path = format!("/spec/template/spec/containers/0/{field}");
        json!([{"op": "add", "path": path, "value": ["x".repeat(2 << 20)]}])
    };
    assert_eq!(server.patch(&path, "json", &grow("args")).await.code, 200);
    let refused = server.patch(&path, "json", &grow("command")).await;
    assert_eq!(refused.reason(), (413, "RequestEntityTooLarge"));
    let third = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(server.patch(&path, "merge", &third).await.code, 200);
}

#[tokio::test]
async fn kinds_are_served_in_their_scope_with_their_verbs() {
    let server = server().await;
    let node = json!({"metadata": {"name": "n"}});
    assert_eq!(server.post("/api/v1/namespaces/default/nodes", &node).await.reason(), (404, "NotFound"));
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/namespaces/default/selfsubjectaccessreviews";
    assert_eq!(server.post(reviews, &review).await.reason(), (404, "NotFound"));
    assert_eq!(server.delete("/api/v1/namespaces").await.reason(), (405, "MethodNotAllowed"));
    let resources = server.get("/api/v1").await.body;
    let verbs = |name: &str| {
        let mut all = resources["resources"].as_array().unwrap().iter();
        all.find(|resource| resource["name"] == name).unwrap()["verbs"].clone()
    };
    assert_eq!(verbs("namespaces"), json!(["create", "delete", "get", "list", "patch", "update", "watch"]));
    assert!(verbs("pods").as_array().unwrap().contains(&json!("deletecollection")));
    let paths = &server.get("/openapi/v3/api/v1").await.body["paths"];
    assert!(
        paths["/api/v1/namespaces"].get("delete").is_none() && paths["/api/v1/nodes"]["delete"].is_object()
    );
}

#[tokio::test]
async fn a_restarted_server_has_what_it_had() {
    let directory = tempfile::tempdir().unwrap();
    let server: Server = server_in(directory.path()).await;
    let created = server
        .post(SERVICES, &json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 1}]}}))
        .await
        .body;
    server.stop.cancel();
    server.running.stopped().await;
    let server = loop {
        // The store's lock is free a moment after the last request's task has ended.
        if std::fs::File::open(directory.path().join("store.redb")).unwrap().try_lock().is_ok() {
            break server_in(directory.path()).await;
        }
        tokio::task::yield_now().await;
    };
    let read = server.get(&format!("{SERVICES}/a")).await.body;
    assert_eq!(read, created);
    let mut taken = json!({"metadata": {"name": "b"}, "spec": {"ports": [{"port": 1}]}});
    taken["spec"]["clusterIP"] = created["spec"]["clusterIP"].clone();
    assert_eq!(server.post(SERVICES, &taken).await.reason(), (422, "Invalid"), "allocators are rebuilt");
}

#[tokio::test]
async fn the_namespaces_of_every_cluster_come_back() {
    let server = server().await;
    let path = "/api/v1/namespaces/kube-node-lease";
    let before = server.get(path).await.body["metadata"]["uid"].clone();
    let watch = "/api/v1/namespaces?watch=1&fieldSelector=metadata.name%3Dkube-node-lease";
    let mut events = Events::of(&server, watch).await;
    server.delete(path).await;
    // No namespace controller runs here, so the test empties the namespace itself.
    let mut namespace = server.get(path).await.body;
    namespace["spec"]["finalizers"] = json!([]);
    server.put(&format!("{path}/finalize"), &namespace).await;
    loop {
        let event = events.next().await.unwrap();
        if event["type"] == "ADDED" && event["object"]["metadata"]["uid"] != before {
            break;
        }
    }
}

#[tokio::test]
async fn an_address_follows_its_service_when_the_client_goes_away() {
    let server = server().await;
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"clusterIP": "10.96.0.77", "ports": [{"port": 80}]}})
    };
    let user = User { name: "test".into(), groups: vec!["system:masters".into()] };
    let api = &server.running.api;
    let kind = api.registry.find("", "v1", "services").unwrap();
    let target = Target { kind, namespace: "default", name: "first", user: &user };
    // Polled once, the transaction is with the store; then the client is gone.
    let mut create = Box::pin(api.create_decoded(target, service("first"), false));
    assert!(futures::poll!(&mut create).is_pending());
    drop(create);
    let path = format!("{SERVICES}/first");
    let watch = format!("{SERVICES}?watch=1&fieldSelector=metadata.name%3Dfirst");
    let mut events = Events::of(&server, &watch).await;
    while events.next().await.unwrap()["type"] != "ADDED" {}
    let second = server.post(SERVICES, &service("second")).await;
    assert!(second.message().contains("provided IP is already allocated"), "{}", second.body);
    server.delete(&path).await;
    assert_eq!(server.post(SERVICES, &service("second")).await.code, 201);
}
