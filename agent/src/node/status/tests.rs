use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use runtime::Image;

use super::super::facts::{self, Facts};
use super::{Inputs, build, differs, missing_annotations, missing_metadata, node};
use crate::network::State;
use crate::settings::{Machine, Raw, Settings};

fn settings() -> Settings {
    let raw = Raw {
        kubeconfig: Some("/k".into()),
        tls_cert_file: Some("/c".into()),
        tls_private_key_file: Some("/p".into()),
        client_ca_file: Some("/a".into()),
        node_name: Some("node-a".into()),
        node_ip: Some("10.0.0.5".into()),
        node_labels: vec!["zone=a".into()],
        dataplane_cgroup: Some("/sys/fs/cgroup".into()),
        system_reserved: vec!["cpu=250m".into(), "memory=100Mi".into()],
        ..Raw::default()
    };
    Settings::validate(raw, &Machine::default()).expect("valid")
}

fn facts() -> Facts {
    Facts {
        cpus: 2,
        memory_bytes: 4 << 30,
        disk_bytes: 1_000_000,
        hugepages: vec![(2 << 20, 8 << 20), (1 << 30, 0)],
        architecture: "amd64".into(),
        ..Facts::default()
    }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("time")
}

fn status_at(second: i64, network: &State, before: Option<&super::NodeStatus>) -> super::NodeStatus {
    let (settings, facts) = (settings(), facts());
    build(&Inputs { settings: &settings, facts: &facts, images: &[], network, now: time(second) }, before)
}

#[test]
fn amounts_are_written_as_the_kubelet_writes_them() {
    let status = status_at(0, &State::Ready, None);
    let shown = |amounts: &Option<std::collections::BTreeMap<String, super::Quantity>>| {
        let all = amounts.as_ref().expect("amounts");
        all.iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect::<Vec<_>>()
    };
    let capacity = [
        "cpu=2",
        "ephemeral-storage=1000000",
        "hugepages-1Gi=0",
        "hugepages-2Mi=8192Ki",
        "memory=4194304Ki",
        "pods=110",
    ];
    assert_eq!(shown(&status.capacity), capacity);
    // 4 GiB less 100 MiB less 8 MiB of huge pages.
    let allocatable = [
        "cpu=1750m",
        "ephemeral-storage=1000000",
        "hugepages-1Gi=0",
        "hugepages-2Mi=8192Ki",
        "memory=4083712Ki",
        "pods=110",
    ];
    assert_eq!(shown(&status.allocatable), allocatable);
}

#[test]
fn ready_follows_the_network_and_transition_times_only_move_on_transitions() {
    let first = status_at(100, &State::uninitialized(), None);
    let ready = |status: &super::NodeStatus| status.conditions.as_ref().expect("conditions")[3].clone();
    let condition = ready(&first);
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("False", Some("KubeletNotReady")));
    assert_eq!(
        condition.message.as_deref(),
        Some(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
             message:Network plugin returns error: cni plugin not initialized"
        )
    );
    let second = status_at(110, &State::uninitialized(), Some(&first));
    assert_eq!(ready(&second).last_transition_time.expect("time").0, time(100));
    assert_eq!(ready(&second).last_heartbeat_time.expect("time").0, time(110));
    assert!(!differs(Some(&first), &second), "a heartbeat alone is no news");
    let third = status_at(120, &State::Ready, Some(&second));
    assert_eq!(ready(&third).last_transition_time.expect("time").0, time(120));
    assert!(differs(Some(&second), &third));
    let types: Vec<String> = third
        .conditions
        .iter()
        .flatten()
        .map(|condition| format!("{}={}", condition.type_, condition.status))
        .collect();
    assert_eq!(types, ["MemoryPressure=False", "DiskPressure=False", "PIDPressure=False", "Ready=True"]);
}

#[test]
fn images_are_the_fifty_largest_with_five_names() {
    let image = |size: u64| Image {
        id: format!("sha256:{size}"),
        repo_tags: (0..7).map(|tag| format!("i{size}:{tag}")).collect(),
        repo_digests: vec![format!("i{size}@sha256:0")],
        size,
        uid: None,
        username: String::new(),
        pinned: false,
    };
    let images: Vec<Image> = (1..=60).map(image).collect();
    let (settings, facts) = (settings(), facts());
    let inputs =
        Inputs { settings: &settings, facts: &facts, images: &images, network: &State::Ready, now: time(0) };
    let listed = build(&inputs, None).images.expect("images");
    assert_eq!((listed.len(), listed[0].size_bytes, listed[49].size_bytes), (50, Some(60), Some(11)));
    let names = listed[0].names.as_ref().expect("names");
    assert_eq!((names.len(), names[0].as_str(), names[1].as_str()), (5, "i60@sha256:0", "i60:0"));
}

#[test]
fn registration_has_the_well_known_labels_and_corrects_them() {
    let annotations = BTreeMap::from([("told".to_owned(), "others".to_owned())]);
    let desired = node(&settings(), annotations.clone(), status_at(0, &State::Ready, None));
    let labels = desired.metadata.labels.clone().expect("labels");
    let expected = [
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/hostname", "node-a"),
        ("kubernetes.io/os", "linux"),
        ("zone", "a"),
    ];
    assert!(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected), "{labels:?}");
    assert_eq!(missing_metadata(&desired, &desired), None);
    let mut existing = desired.clone();
    let have = existing.metadata.labels.as_mut().expect("labels");
    have.insert("kubernetes.io/arch".into(), "arm64".into());
    have.insert("own".into(), "kept".into());
    existing.metadata.annotations = Some(BTreeMap::from([("own".to_owned(), "kept".to_owned())]));
    assert_eq!(missing_annotations(&existing, &annotations), Some(annotations.clone()));
    let missing = missing_metadata(&existing, &desired).expect("some differ");
    let expected =
        serde_json::json!({"labels": {"kubernetes.io/arch": "amd64"}, "annotations": {"told": "others"}});
    assert_eq!(serde_json::to_value(missing).expect("JSON"), expected);
}

#[test]
fn files_of_the_machine() {
    assert_eq!(facts::count_list("0-3,8"), Some(5));
    assert_eq!(facts::count_list("0"), Some(1));
    assert_eq!(facts::count_list(""), None);
    assert_eq!(facts::memory("MemTotal:       16384256 kB\nMemFree: 1 kB\n"), 16_384_256 * 1024);
    assert_eq!(facts::os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13\"\n"), "Debian GNU/Linux 13");
}
