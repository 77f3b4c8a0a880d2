//! Bad input: one clear error each, in upstream's words, and nothing half-made.

use std::fs;
use std::path::PathBuf;

use e2e::cluster::Cluster;
use e2e::kubectl::Kubectl;

fn apply_fails(kubectl: &Kubectl, manifest: &str) -> String {
    kubectl.try_with_input(&["apply", "-f", "-"], manifest).expect_err("the manifest is bad")
}

#[test]
fn manifests_that_are_wrong_are_refused_with_the_reason() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("bad-manifests");
    let unknown = apply_fails(
        &kubectl,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: b, imagee: c}]}\n",
    );
    assert!(unknown.contains("unknown field \"spec.containers[0].imagee\""), "{unknown}");
    let missing =
        apply_fails(&kubectl, "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n");
    assert!(missing.contains("spec.containers: Required value"), "{missing}");
    let name = apply_fails(&kubectl, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n");
    assert!(name.contains("Invalid value: \"Not_A_Name\""), "{name}");
    let kind = apply_fails(&kubectl, "apiVersion: v1\nkind: Nothing\nmetadata: {name: a}\n");
    assert!(kind.contains("no matches for kind \"Nothing\" in version \"v1\""), "{kind}");
    assert!(kubectl.list(&["pods"]).is_empty());
}

#[test]
fn a_wrong_resource_version_is_a_conflict() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("conflicts");
    kubectl.run(&["create", "configmap", "a", "--from-literal=k=v"]);
    let stale = kubectl.run(&["get", "configmap", "a", "-o", "json"]);
    kubectl.run(&["patch", "configmap", "a", "--type=merge", "-p", "{\"data\":{\"k\":\"w\"}}"]);
    let error = kubectl.try_with_input(&["replace", "-f", "-"], &stale).expect_err("the version is old");
    assert!(error.contains("the object has been modified"), "{error}");
    assert_eq!(kubectl.get("configmap/a", "{.data.k}"), "w");
}

#[test]
fn an_image_that_does_not_exist_is_said_in_the_status() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("no-image");
    kubectl.run(&["run", "a", "--image=127.0.0.1:1/nothing:v1"]);
    let (reason, message) = kubectl.wait("the pull fails", || {
        let waiting = kubectl.get("pod/a", "{.status.containerStatuses[0].state.waiting}");
        let waiting: serde_json::Value = serde_json::from_str(&waiting).map_err(|_| waiting)?;
        let reason = waiting["reason"].as_str().unwrap_or_default().to_owned();
        let failed = reason == "ErrImagePull" || reason == "ImagePullBackOff";
        if failed { Ok((reason, waiting["message"].to_string())) } else { Err(waiting.to_string()) }
    });
    assert!(message.contains("127.0.0.1:1/nothing:v1"), "{reason}: {message}");
}

/// A file that is removed again, whatever becomes of the test.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn an_image_archive_whose_digest_lies_is_refused_and_changes_nothing() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("lying-image");
    let mut bytes = fs::read(cluster.file("target/images/busybox.tar")).expect("the test images");
    // The middle of the archive is inside of its only layer.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    let lying = Temporary(PathBuf::from(cluster.file("target/images/lying.tar")));
    fs::write(&lying.0, bytes).expect("write the archive");
    // The agent imports archives when it starts.
    let old = cluster.kill("orlop-agent");
    cluster.wait_restarted("orlop-agent", old);
    cluster.wait_agent_log(&["lying.tar", "unexpected digest of"]);
    kubectl.run_idle("a");
}

/// A file of the node's machine that is removed again.
struct InMachine<'a>(&'a Cluster, &'static str);

impl Drop for InMachine<'_> {
    fn drop(&mut self) {
        let removed = self.0.try_in_machine(&format!("rm -f {}", self.1));
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

#[test]
fn a_network_configuration_that_does_not_parse_is_named_and_the_good_one_used() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("broken-network");
    // The first by name would be the one to use.
    let broken = InMachine(&cluster, "/etc/cni/net.d/00-broken.conflist");
    cluster.try_in_machine(&format!("echo '{{' > {}", broken.1)).expect("write the configuration");
    kubectl.run_idle("a");
    cluster.wait_agent_log(&["skipping a network configuration", "00-broken.conflist"]);
    assert!(!kubectl.get("pod/a", "{.status.podIP}").is_empty());
}

#[test]
fn a_node_port_in_use_is_refused() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("port-in-use");
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{type: NodePort, ports: [{{port: 80, nodePort: 31999}}]}}\n"
        )
    };
    kubectl.apply(&service("first"));
    let error = apply_fails(&kubectl, &service("second"));
    assert!(error.contains("31999") && error.contains("provided port is already allocated"), "{error}");
    assert_eq!(kubectl.list(&["services"]).len(), 1);
}
