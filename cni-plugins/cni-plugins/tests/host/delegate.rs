//! IPAM plugins that misbehave, under `ptp`: what was made is gone, and what could not be undone is told. And our own, which are
//! called within the process where they are the same executable, or a copy of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::node::{Call, Container, EXECUTABLE, Node, host_state};

/// A plugin `fake` that writes its verbs down, and does for each what this shell script says.
fn ipam(node: &Node, script: &str) -> String {
    plugin(node, "fake", script)
}

/// As [`ipam`], under another name. The folder that it is in.
pub fn plugin(node: &Node, name: &str, script: &str) -> String {
    let folder = node.path("bin");
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join(name);
    let calls = node.path("calls");
    let text = format!("#!/bin/sh\necho $CNI_COMMAND >> {}\ncat > /dev/null\n{script}\n", calls.display());
    fs::write(&file, text).expect("a script");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("it may run");
    folder.to_str().expect("a path of letters").to_owned()
}

fn add(node: &Node, container: &Container, path: &str) -> Value {
    let config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "ptp", "ipam": {"type": "fake"}});
    let before = (host_state(), container.state());
    let call = Call { path, ..Call::new("ADD", &config, container) };
    let error = call.run("ptp").expect_err("a failure");
    assert_eq!((host_state(), container.state()), before);
    let calls = fs::read_to_string(node.path("calls")).expect("its calls");
    fs::remove_file(node.path("calls")).expect("its calls");
    json!([calls.split_whitespace().collect::<Vec<_>>(), error["code"], error["msg"], error["details"]])
}

#[test]
fn addresses_that_cannot_be_read_or_used_are_released() {
    let node = Node::new();
    let a = Container::new("a");
    let path = ipam(&node, "[ $CNI_COMMAND = DEL ] || echo '{\"cniVersion\": \"1.0.0\", \"ips\": 7}'");
    let unreadable = "result of plugin \"fake\": result: key \"ips\": expected an array, found 7";
    assert_eq!(add(&node, &a, &path), json!([["ADD", "DEL"], 6, unreadable, null]));
    let path = ipam(&node, "[ $CNI_COMMAND = DEL ] || echo '{\"cniVersion\": \"1.0.0\"}'");
    assert_eq!(
        add(&node, &a, &path),
        json!([["ADD", "DEL"], 999, "IPAM plugin returned missing IP config", null])
    );
    let none = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.97.0.2/24"}]}"#;
    let path = ipam(&node, &format!("[ $CNI_COMMAND = DEL ] || echo '{none}'"));
    let message = "IPAM plugin gave 10.97.0.2/24 without a gateway, which ptp needs";
    assert_eq!(add(&node, &a, &path), json!([["ADD", "DEL"], 999, message, null]));
}

#[test]
fn addresses_in_a_result_that_names_no_version_are_used() {
    let node = Node::new();
    let a = Container::new("a");
    let given = r#"{"ips": [{"address": "10.97.0.2/24", "gateway": "10.97.0.1"}]}"#;
    let path = ipam(&node, &format!("[ $CNI_COMMAND = DEL ] || echo '{given}'"));
    let config = json!({"cniVersion": "1.1.0", "name": "pods", "type": "ptp", "ipam": {"type": "fake"}});
    let call = |verb| Call { path: &path, ..Call::new(verb, &config, &a) }.run("ptp");
    assert_eq!(call("ADD").expect("an attachment")["ips"][0]["address"], "10.97.0.2/24");
    assert!(a.state().contains(&"address 10.97.0.2/24 on eth0".to_owned()));
    assert_eq!(call("DEL"), Ok(Value::Null));
}

#[test]
fn a_plugin_that_gave_nothing_is_asked_to_release_nothing() {
    let node = Node::new();
    let a = Container::new("a");
    // A lease of an earlier attachment would be lost.
    let path = ipam(&node, "echo '{\"code\": 11, \"msg\": \"later\"}'; exit 1");
    assert_eq!(add(&node, &a, &path), json!([["ADD"], 11, "later", null]));
}

#[test]
fn a_plugin_that_dies_half_way_is_asked_to_release() {
    let node = Node::new();
    let a = Container::new("a");
    for (end, message) in [
        ("exit 3", "exit status: 3 without an error document"),
        ("kill -9 $$", "signal: 9 (SIGKILL) without an error document"),
        ("echo hello", "output: not JSON: expected value at line 1 column 1"),
        ("exec cat /dev/zero", "more than 1048576 bytes on standard output, killed"),
    ] {
        let path = ipam(&node, &format!("[ $CNI_COMMAND = ADD ] || exit 0; {end}"));
        let expected = format!("ADD of {path}/fake: {message}");
        assert_eq!(add(&node, &a, &path), json!([["ADD", "DEL"], 999, expected, null]), "{end}");
    }
}

#[test]
fn what_could_not_be_undone_is_told() {
    let node = Node::new();
    let a = Container::new("a");
    let refusal = "echo '{\"code\": 999, \"msg\": \"stuck\"}'; exit 1";
    let path = ipam(&node, &format!("[ $CNI_COMMAND = ADD ] && echo '{{}}' && exit 0; {refusal}"));
    let message = "IPAM plugin returned missing IP config";
    assert_eq!(add(&node, &a, &path), json!([["ADD", "DEL"], 999, message, "undo: stuck"]));
}

#[test]
fn what_could_not_be_undone_is_told_with_its_details() {
    let node = Node::new();
    let a = Container::new("a");
    let refusal = r#"echo '{"code": 11, "msg": "stuck", "details": "soon"}'; exit 1"#;
    let path = ipam(&node, &format!("[ $CNI_COMMAND = ADD ] && exit 3; {refusal}"));
    let subnet =
        "FLANNEL_NETWORK=10.96.0.0/12\nFLANNEL_SUBNET=10.97.1.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n";
    fs::write(node.path("subnet.env"), subnet).expect("a file");
    let config = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "flannel", "delegate": {"type": "fake"},
        "subnetFile": node.path("subnet.env"), "dataDir": node.path("kept"),
    });
    let call = Call { path: &path, ..Call::new("ADD", &config, &a) };
    let error = call.run("flannel").expect_err("a failure");
    assert_eq!(error["details"], "undo: stuck; soon", "{error}");
}

/// An executable under a name that it cannot be started by: whoever calls it all the same does so within the process.
struct Unstartable(PathBuf);

impl Unstartable {
    fn new(executable: &Path, path: PathBuf) -> Self {
        fs::write(&path, "").expect("a file");
        let mount = |arguments: &[&Path]| {
            let status =
                Command::new("mount").arg("-n").args(arguments).arg(&path).status().expect("mount starts");
            assert!(status.success(), "mount {arguments:?}");
        };
        mount(&[Path::new("--bind"), executable]);
        mount(&[Path::new("-o"), Path::new("remount,bind,noexec")]);
        Self(path)
    }
}

impl Drop for Unstartable {
    fn drop(&mut self) {
        linux::mount::detach(&self.0).expect("it is unmounted");
    }
}

/// The answers to calls of `bridge` with IPAM plugins that are looked for in `path` first, without what is another each time.
fn answers(node: &Node, container: &Container, path: &Path) -> Vec<Value> {
    let call = |verb: &str, config: &Value, args: &str| {
        let path = path.to_str().expect("a path of letters");
        let answer = Call { path, args, ..Call::new(verb, config, container) }.run("bridge");
        answer.map_or_else(|error| error, |result| json!([result["ips"], result["routes"], result["dns"]]))
    };
    let lan = |ipam: Value| json!({"cniVersion": "1.1.0", "name": "lan", "type": "bridge", "bridge": "cni0", "ipam": ipam});
    let leases = node.path("leases");
    let host_local = |ranges: Value| lan(json!({"type": "host-local", "dataDir": leases, "ranges": ranges}));
    let fixed = |address: &str| lan(json!({"type": "static", "addresses": [{"address": address}]}));
    let mut seen = Vec::new();
    for mut config in [host_local(json!([[{"subnet": "10.97.0.0/30"}]])), fixed("10.97.0.9/24")] {
        config["cni.dev/valid-attachments"] = json!([]);
        seen.extend(["STATUS", "ADD", "STATUS"].map(|verb| call(verb, &config, "")));
        config["prevResult"] = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.97.0.2/30"}]});
        seen.extend(["CHECK", "DEL", "DEL", "GC", "CHECK"].map(|verb| call(verb, &config, "")));
    }
    for (config, args) in [
        (host_local(json!([])), ""),
        (host_local(json!([[{"subnet": "10.97.0.0"}]])), ""),
        (host_local(json!([[{"subnet": "10.97.0.0/24"}]])), "COLOUR=blue"),
        (host_local(json!([[{"subnet": "10.97.0.0/24"}]])), "IP=10.97.0.1"),
        (host_local(json!([[{"subnet": "10.97.0.0/24"}]])), "IP=10.98.0.1"),
        (host_local(json!([[{"subnet": "10.97.0.0/24"}]])), "IP"),
        (fixed("10.97.0.9"), ""),
        (fixed("10.97.0.9/24"), "IP=10.97.0.9"),
        (fixed("10.97.0.9/24"), "COLOUR=blue"),
    ] {
        seen.extend(["ADD", "STATUS", "DEL"].map(|verb| call(verb, &config, args)));
    }
    seen
}

#[test]
fn ours_answer_within_the_process_as_by_execution() {
    let node = Node::new();
    let a = Container::new("a");
    let [linked, copied, rebuilt, apart] = ["linked", "copied", "rebuilt", "apart"].map(|name| {
        let folder = node.path(name);
        fs::create_dir(&folder).expect("a folder");
        folder
    });
    let copy = node.path("copy");
    fs::copy(EXECUTABLE, &copy).expect("a copy");
    let other = node.path("other");
    fs::write(&other, with_another_build_id(fs::read(EXECUTABLE).expect("an executable"))).expect("a file");
    let _names: Vec<_> = [(Path::new(EXECUTABLE), &linked), (&copy, &copied), (&other, &rebuilt)]
        .into_iter()
        .flat_map(|(executable, folder)| {
            ["host-local", "static"].map(|name| Unstartable::new(executable, folder.join(name)))
        })
        .collect();
    for name in ["host-local", "static"] {
        let started = node.path(&format!("started-{name}"));
        fs::create_dir(&started).expect("a folder");
        let started = started.join(name);
        fs::copy(EXECUTABLE, &started).expect("a copy");
        let script = apart.join(name);
        fs::write(&script, format!("#!/bin/sh\nexec {}\n", started.display())).expect("a script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it may run");
    }
    let expected = answers(&node, &a, &apart);
    assert_eq!(answers(&node, &a, &linked), expected);
    assert_eq!(answers(&node, &a, &copied), expected);
    let errors = expected.iter().filter(|answer| answer["code"].is_number()).count();
    assert!(errors > 15 && errors < expected.len(), "{expected:#?}");

    let refused = &answers(&node, &a, &rebuilt)[0];
    let message = refused["msg"].as_str().unwrap_or_default();
    assert!(message.starts_with("start STATUS of ") && message.contains("Permission denied"), "{refused}");
}

/// The executable as if something else had been linked, of the same length.
fn with_another_build_id(mut executable: Vec<u8>) -> Vec<u8> {
    let note = b"\x14\0\0\0\x03\0\0\0GNU\0";
    let at = executable.windows(note.len()).position(|bytes| bytes == note).expect("a build id");
    executable[at + note.len()] ^= 1;
    executable
}
