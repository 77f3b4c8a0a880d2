use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use http::{Method, Request, Response};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::node;
use crate::api::Access;
use crate::events::{EventType, Recorder, Source};
use crate::services::{self, Progress};
use crate::settings::{Command, Flags, Machine, ProxySettings, ProxyTask, Surroundings};

const MANIFEST: &str = include_str!("../../../xtask/deploy/orlop-proxy.yaml");
const ROLE: &str = "system:node-proxier";
/// What upstream's role of that name allows: API group, resource, verbs.
const RIGHTS: [(&str, &str, &[&str]); 4] = [
    ("", "services", &["list", "watch"]),
    ("discovery.k8s.io", "endpointslices", &["list", "watch"]),
    ("", "nodes", &["get", "list", "watch"]),
    ("", "events", &["create", "patch", "update"]),
];

type Asked = Arc<Mutex<Vec<(String, String, String)>>>;

/// The group, the resource and the verb of a request, as an authorizer sees them.
fn asked(request: &Request<Body>) -> (String, String, String) {
    let parts: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    let (group, rest) = match parts.as_slice() {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        other => panic!("{other:?}"),
    };
    let rest = if let ["namespaces", _, rest @ ..] = rest { rest } else { rest };
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let verb = match (request.method(), rest.len() > 1) {
        (&Method::GET, _) if is_watch => "watch",
        (&Method::GET, false) => "list",
        (&Method::GET, true) => "get",
        (&Method::POST, _) => "create",
        (&Method::PATCH, _) => "patch",
        (&Method::PUT, _) => "update",
        other => panic!("{other:?}"),
    };
    (group.to_owned(), rest[0].to_owned(), verb.to_owned())
}

/// An API server that has the Node alone, and notes what it is asked.
fn client(log: Asked, queries: Arc<Mutex<Vec<String>>>) -> kube::Client {
    let server = tower::service_fn(move |request: Request<Body>| {
        let (group, resource, verb) = asked(&request);
        queries.lock().unwrap().push(format!("{resource} {}", request.uri().query().unwrap_or_default()));
        log.lock().unwrap().push((group, resource.clone(), verb.clone()));
        let node = json!({"metadata": {"name": "node-a", "resourceVersion": "1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
        let (kind, version, items) = match resource.as_str() {
            "services" => ("ServiceList", "v1", json!([])),
            "nodes" => ("NodeList", "v1", json!([node])),
            _ => ("EndpointSliceList", "discovery.k8s.io/v1", json!([])),
        };
        let answer = match verb.as_str() {
            "list" => {
                json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items})
            }
            _ => json!({"metadata": {"name": "event", "namespace": "default"}, "involvedObject": {}}),
        };
        let answer = Response::new(Body::from(answer.to_string().into_bytes()));
        let answered: Pin<Box<dyn Future<Output = Result<_, Infallible>> + Send>> =
            if verb == "watch" { Box::pin(std::future::pending()) } else { Box::pin(ready(Ok(answer))) };
        answered
    });
    kube::Client::new(server, "default")
}

#[tokio::test]
async fn nothing_is_asked_that_kube_proxy_may_not_ask() {
    let (log, queries) = (Asked::default(), Arc::default());
    let client = client(log.clone(), Arc::clone(&queries));
    let shutdown = CancellationToken::new();
    let recorder = Recorder::start(client.clone(), Source::kube_proxy("node-a".into()), shutdown.clone());
    let (own, node_task) = node::watch(client.clone(), "node-a".into(), shutdown.clone());
    assert_eq!(node::registered(&own).await, [std::net::IpAddr::from([192, 0, 2, 1])]);
    let (cache, departures, service_task) = services::start(services::Context {
        client,
        node_name: "node-a".into(),
        node: own,
        node_addresses: Vec::new(),
        dataplane: None,
        bypass: None,
        directory: services::Directory::default(),
        recorder: recorder.clone(),
        progress: Progress::default(),
        shutdown: shutdown.clone(),
    });
    departures.caught_up();
    cache.synced().await;
    for _ in 0..2 {
        recorder.record(Default::default(), EventType::Warning, "FailedToProgram", "no room".into());
    }
    let wanted = |resource: &str, verb: &str| {
        log.lock().unwrap().iter().any(|(_, found, how)| found == resource && how == verb)
    };
    let all = [
        ("services", "watch"),
        ("endpointslices", "watch"),
        ("nodes", "watch"),
        ("events", "create"),
        ("events", "patch"),
    ];
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !all.iter().all(|(resource, verb)| wanted(resource, verb)) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", log.lock().unwrap());
        tokio::task::yield_now().await;
    }
    shutdown.cancel();
    node_task.await.unwrap();
    service_task.await.unwrap();
    for (group, resource, verb) in log.lock().unwrap().iter() {
        let right = RIGHTS.iter().find(|(g, r, _)| g == group && r == resource);
        assert!(right.is_some_and(|(_, _, verbs)| verbs.contains(&verb.as_str())), "{verb} {resource}");
    }
    let queries = queries.lock().unwrap();
    let mut nodes = queries.iter().filter(|query| query.starts_with("nodes "));
    assert!(nodes.all(|query| query.contains("fieldSelector=metadata.name%3Dnode-a")), "{queries:?}");
}

fn documents() -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(MANIFEST)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

/// The object of a kind; what its type does not know is an error, so a field that is misspelt is.
fn object<K: DeserializeOwned + serde::Serialize>(kind: &str) -> K {
    let all = documents();
    let found: Vec<&Value> = all.iter().filter(|document| document["kind"] == kind).collect();
    let [document] = found.as_slice() else { panic!("one {kind}, not {}", found.len()) };
    let object: K = serde_json::from_value((*document).clone()).unwrap();
    assert_eq!(&serde_json::to_value(&object).unwrap(), *document, "{kind}");
    object
}

#[test]
fn the_manifest_is_of_kinds_that_every_cluster_has_and_binds_the_account_to_the_proxiers_rights() {
    let account: ServiceAccount = object("ServiceAccount");
    let binding: ClusterRoleBinding = object("ClusterRoleBinding");
    assert_eq!(documents().len(), 4);
    assert_eq!((binding.role_ref.kind.as_str(), binding.role_ref.name.as_str()), ("ClusterRole", ROLE));
    let subjects = binding.subjects.unwrap();
    let named: Vec<_> =
        subjects.iter().map(|subject| (Some(&subject.name), subject.namespace.as_ref())).collect();
    assert_eq!(named, [(account.metadata.name.as_ref(), account.metadata.namespace.as_ref())]);
    let pod = object::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.service_account_name, account.metadata.name);
}

/// What the DaemonSet's command line means.
fn deployed(daemon_set: &DaemonSet) -> ProxySettings {
    let pod = daemon_set.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let container = &pod.containers[0];
    let line = container.command.iter().chain(&container.args).flatten();
    let line = line.map(|argument| argument.replace("$(NODE_NAME)", "node-a"));
    let Some(Command::Proxy(flags)) = Flags::try_parse_from(line).unwrap().command else {
        panic!("not the proxy")
    };
    let machine = Machine { unified_hierarchy: Some("/sys/fs/cgroup".into()), ..Machine::default() };
    match flags.validate(&machine, &Surroundings::default()).unwrap() {
        ProxyTask::Serve(settings) => *settings,
        other @ ProxyTask::CleanUp { .. } => panic!("{other:?}"),
    }
}

#[test]
fn the_manifests_command_line_fits_its_mounts_and_probes() {
    let daemon_set: DaemonSet = object("DaemonSet");
    let settings = deployed(&daemon_set);
    assert_eq!(settings.node_name, "node-a");
    let pod = daemon_set.spec.unwrap().template.spec.unwrap();
    let container = &pod.containers[0];
    let mounts: Vec<&str> =
        container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.as_str()).collect();
    let Access::Kubeconfig { path, server: None } = &settings.access else { panic!("{:?}", settings.access) };
    let config: ConfigMap = object("ConfigMap");
    let (folder, file) =
        (path.parent().unwrap().to_str().unwrap(), path.file_name().unwrap().to_str().unwrap());
    assert!(config.data.unwrap().contains_key(file) && mounts.contains(&folder));
    assert!(mounts.iter().any(|mount| settings.bpf_pin_root.starts_with(mount)));
    assert!(mounts.contains(&settings.dataplane_cgroup.to_str().unwrap()));
    let probe = container.liveness_probe.as_ref().and_then(|probe| probe.http_get.as_ref()).unwrap();
    assert_eq!(probe.path.as_deref(), Some("/livez"));
    let ports = container.ports.as_ref().unwrap();
    assert_eq!(settings.healthz.map(|address| i32::from(address.port())), Some(ports[0].container_port));
    assert!(pod.host_network == Some(true) && pod.host_pid == Some(true));
}

/// A server that knows the field refuses an annotation that says something else.
#[test]
fn the_manifests_annotation_and_field_say_the_same_of_apparmor() {
    let template = object::<DaemonSet>("DaemonSet").spec.unwrap().template;
    let container = &template.spec.unwrap().containers[0];
    let security = container.security_context.as_ref().unwrap();
    let field = security.app_armor_profile.as_ref().map(|profile| profile.type_.to_lowercase());
    let key = format!("container.apparmor.security.beta.kubernetes.io/{}", container.name);
    let annotations = template.metadata.unwrap().annotations.unwrap();
    assert_eq!((annotations.get(&key), field.as_deref()), (field.as_ref(), Some("unconfined")));
}

#[tokio::test]
async fn the_manifests_kubeconfig_is_one_that_clients_are_made_from() {
    let config: ConfigMap = object("ConfigMap");
    let folder = tempfile::tempdir().unwrap();
    let account = folder.path().to_str().unwrap();
    let text = config.data.unwrap()["kubeconfig.conf"]
        .replace("/var/run/secrets/kubernetes.io/serviceaccount", account)
        .replace("CONTROL-PLANE", "192.0.2.10");
    std::fs::write(folder.path().join("kubeconfig.conf"), text).unwrap();
    std::fs::write(folder.path().join("token"), "secret").unwrap();
    let access = Access::Kubeconfig { path: folder.path().join("kubeconfig.conf"), server: None };
    let missing = crate::api::client_of(&access).await.map(drop).unwrap_err();
    assert!(crate::api::chain(&missing).contains("ca.crt"), "{missing:?}");
}

#[test]
fn the_units_command_line_is_one_of_the_proxy() {
    let unit = include_str!("../../../xtask/deploy/orlop-proxy.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let flags = value("Environment=ORLOP_PROXY_FLAGS=").trim_matches('"');
    let line = value("ExecStart=").replace("$ORLOP_PROXY_FLAGS", flags);
    assert!(Flags::try_parse_from(line.split(' ')).unwrap().command.is_some());
    // The same capabilities as the container's.
    let pod = object::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap();
    let security = pod.containers[0].security_context.clone().unwrap();
    let added = security.capabilities.and_then(|capabilities| capabilities.add).unwrap();
    let added: Vec<String> = added.iter().map(|name| format!("CAP_{name}")).collect();
    assert_eq!(value("CapabilityBoundingSet="), added.join(" "));
}
