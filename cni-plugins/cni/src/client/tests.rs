//! Chains of recording plugins: shell scripts that write down how they were called.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use serde_json::{Map, Value, json};

use super::{Attachment, Client, Error, Options, ValidAttachment};
use crate::args::CniArgs;

/// A folder with a configuration, plugins `one`, `two` and `three`, and the record of their calls.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new(version: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["net.d", "bin", "calls"] {
            fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        let node = Self { dir };
        for name in ["one", "two", "three"] {
            node.plugin(name, "");
        }
        let config = json!({
            "cniVersion": version, "name": "pods",
            "plugins": [
                {"type": "one", "capabilities": {"ips": true}},
                {"type": "two", "capabilities": {"portMappings": true}},
                {"type": "three"},
            ],
        });
        fs::write(node.path("net.d/10.conflist"), config.to_string()).expect("a file");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A plugin that appends to the record, runs `script`, and answers ADD.
    fn plugin(&self, name: &str, script: &str) {
        let calls = self.path("calls");
        let text = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND {name}\" >> {calls}/order\n\
             cat > {calls}/$CNI_COMMAND-{name}\n\
             echo \"$CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS\" > {calls}/$CNI_COMMAND-{name}.env\n{script}\n\
             if [ $CNI_COMMAND = ADD ]; then\n\
             echo '{{\"cniVersion\": \"1.0.0\", \"interfaces\": [{{\"name\": \"{name}\"}}], \"dns\": {{}}}}'; fi\n",
            calls = calls.display()
        );
        let path = self.path("bin").join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    fn client(&self) -> Client {
        Client::new(Options {
            conf_dir: self.path("net.d"),
            bin_dirs: vec![self.path("bin")],
            cache_dir: self.path("cache"),
            ..Options::default()
        })
    }

    /// The calls so far, forgotten afterwards.
    fn order(&self) -> Vec<String> {
        let path = self.path("calls/order");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }

    fn told(&self, call: &str) -> Map<String, Value> {
        let text = fs::read(self.path("calls").join(call)).expect("the plugin was called");
        crate::json::parse_object(&text).expect("an object")
    }

    fn cached(&self) -> usize {
        fs::read_dir(self.path("cache/results")).map_or(0, Iterator::count)
    }
}

fn attachment() -> Attachment {
    Attachment {
        container_id: "abc".to_owned(),
        netns: Some(PathBuf::from("/run/netns/abc")),
        ifname: "eth0".to_owned(),
        args: CniArgs::parse("K8S_POD_NAME=p").expect("pairs"),
        capability_args: Map::from_iter([
            ("ips".to_owned(), json!(["10.0.0.5"])),
            ("mac".to_owned(), json!("x")),
        ]),
    }
}

#[tokio::test]
async fn add_passes_results_along_and_del_goes_in_reverse() {
    let node = Node::new("1.0.0");
    let client = node.client();
    let result = client.add(&attachment()).await.expect("all plugins succeed");
    assert_eq!(result.interfaces[0].name, "three");
    assert_eq!(node.order(), ["ADD one", "ADD two", "ADD three"]);
    let first = node.told("ADD-one");
    assert_eq!(
        (first.get("prevResult"), &first["name"], &first["cniVersion"]),
        (None, &json!("pods"), &json!("1.0.0"))
    );
    assert_eq!(first["runtimeConfig"], json!({"ips": ["10.0.0.5"]}));
    assert_eq!(node.told("ADD-two")["prevResult"]["interfaces"][0]["name"], "one");
    assert_eq!(node.told("ADD-two").get("runtimeConfig"), None);
    let env = fs::read_to_string(node.path("calls/ADD-two.env")).expect("the record");
    assert_eq!(env.trim(), "abc /run/netns/abc eth0 K8S_POD_NAME=p");
    assert_eq!(node.cached(), 1);

    client.check(&attachment()).await.expect("a check");
    assert_eq!(node.order(), ["CHECK one", "CHECK two", "CHECK three"]);
    assert_eq!(node.told("CHECK-one")["prevResult"]["interfaces"][0]["name"], "three");

    fs::remove_file(node.path("net.d/10.conflist")).expect("the file");
    let without_netns = Attachment { netns: None, ..attachment() };
    client.del(&without_netns).await.expect("the cached configuration is enough");
    assert_eq!(node.order(), ["DEL three", "DEL two", "DEL one"]);
    assert_eq!(node.told("DEL-one")["prevResult"]["interfaces"][0]["name"], "three");
    assert_eq!(node.cached(), 0);
    client.del(&attachment()).await.expect("nothing to detach");
    assert_eq!(node.order(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_killed_process_left_of_an_entry_goes_with_the_attachment() {
    let node = Node::new("1.0.0");
    for added in [true, false] {
        if added {
            node.client().add(&attachment()).await.expect("all plugins succeed");
        }
        fs::write(node.path("cache/results/.pods-abc-eth0"), "{").expect("a file");
        node.client().del(&attachment()).await.expect("all plugins succeed");
        assert_eq!(node.cached(), 0, "{added}");
    }
}

#[tokio::test]
async fn a_result_that_names_no_version_has_the_configurations() {
    let node = Node::new("1.0.0");
    for (plugin, result) in [
        ("two", r#"{"cniVersion": "", "ips": [{"address": "10.0.0.4/24"}]}"#),
        ("three", r#"{"ips": [{"address": "10.0.0.5/24"}]}"#),
    ] {
        node.plugin(plugin, &format!("[ $CNI_COMMAND = ADD ] && echo '{result}' && exit 0"));
    }
    let result = node.client().add(&attachment()).await.expect("all plugins succeed");
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.5/24");
    node.client().check(&attachment()).await.expect("a check");
    // Passed on, and cached.
    for call in ["ADD-three", "CHECK-one"] {
        assert_eq!(node.told(call)["prevResult"]["cniVersion"], "1.0.0", "{call}");
    }
}

#[tokio::test]
async fn a_failed_add_is_undone_in_reverse() {
    let node = Node::new("1.0.0");
    node.plugin("two", "[ $CNI_COMMAND = ADD ] && echo '{\"code\": 100, \"msg\": \"no\"}' && exit 1");
    let error = node.client().add(&attachment()).await.expect_err("two fails");
    assert!(error.to_string().starts_with(r#"plugin type="two" name="pods" failed (add): "#), "{error}");
    assert_eq!(node.order(), ["ADD one", "ADD two", "DEL two", "DEL one"]);
    assert_eq!(node.cached(), 0);
}

#[tokio::test]
async fn an_add_that_cannot_be_remembered_is_undone() {
    let node = Node::new("1.0.0");
    let results = node.path("cache/results");
    let lose = format!("[ $CNI_COMMAND = ADD ] && rm -r {0} && touch {0}", results.display());
    node.plugin("three", &lose);
    let error = node.client().add(&attachment()).await.expect_err("no place for the result");
    assert!(matches!(error, Error::Cache(_)), "{error}");
    assert_eq!(node.order(), ["ADD one", "ADD two", "ADD three", "DEL three", "DEL two", "DEL one"]);
    assert_eq!(node.told("DEL-one")["prevResult"]["interfaces"][0]["name"], "three");
}

#[tokio::test]
async fn an_undo_that_fails_leaves_the_attachment_to_del() {
    let node = Node::new("1.0.0");
    node.plugin("one", "[ $CNI_COMMAND = DEL ] && exit 1");
    node.plugin("two", "[ $CNI_COMMAND = ADD ] && exit 1");
    node.client().add(&attachment()).await.expect_err("two fails");
    assert_eq!((node.order().len(), node.cached()), (4, 1));
    node.plugin("one", "");
    node.client().del(&attachment()).await.expect("one is whole again");
    assert_eq!(node.cached(), 0);
}

#[tokio::test]
async fn before_0_4_0_del_is_not_told_the_result() {
    let node = Node::new("0.3.1");
    node.client().add(&attachment()).await.expect("all plugins succeed");
    assert!(matches!(node.client().check(&attachment()).await, Err(Error::NotInVersion { .. })));
    node.client().del(&attachment()).await.expect("all plugins succeed");
    assert_eq!(node.told("DEL-one").get("prevResult"), None);
}

#[tokio::test]
async fn gc_detaches_what_is_not_valid_and_tells_the_plugins_what_is() {
    let node = Node::new("1.1.0");
    let client = node.client();
    for id in ["keep", "drop"] {
        client
            .add(&Attachment { container_id: id.to_owned(), ..attachment() })
            .await
            .expect("all plugins succeed");
    }
    node.order();
    let valid = [ValidAttachment { container_id: "keep".to_owned(), ifname: "eth0".to_owned() }];
    client.gc(&valid).await.expect("all plugins succeed");
    assert_eq!(node.order(), ["DEL three", "DEL two", "DEL one", "GC one", "GC two", "GC three"]);
    let kept = json!([{"containerID": "keep", "ifname": "eth0"}]);
    assert_eq!(node.told("GC-two")["cni.dev/valid-attachments"], kept);
    assert_eq!(node.cached(), 1);
    client.status().await.expect("all plugins are there");
    assert_eq!(node.order(), ["STATUS one", "STATUS two", "STATUS three"]);
    fs::remove_file(node.path("bin/two")).expect("the file");
    let error = client.status().await.expect_err("a plugin is missing").to_string();
    assert!(error.contains(r#"failed to find plugin "two""#), "{error}");
}

#[tokio::test]
async fn gc_leaves_an_attachment_alone_that_is_being_made() {
    let node = Node::new("1.1.0");
    let client = node.client();
    let gate = node.path("gate");
    assert!(std::process::Command::new("mkfifo").arg(&gate).status().expect("mkfifo starts").success());
    node.plugin("two", &format!("[ $CNI_COMMAND = ADD ] && cat {} > /dev/null", gate.display()));
    let attachment = attachment();
    let (added, collected, ()) = tokio::join!(client.add(&attachment), client.gc(&[]), async {
        // Opened when the plugin reads it: the ADD is half made, and GC has been asked for.
        let open = move || fs::write(gate, "");
        tokio::task::spawn_blocking(open).await.expect("a thread").expect("the gate opens");
    });
    added.expect("all plugins succeed");
    collected.expect("all plugins succeed");
    let order = node.order();
    assert_eq!(order[..3], ["ADD one", "ADD two", "ADD three"], "{order:?}");
    assert_eq!(node.cached(), 0, "it is collected once it is made");
}

#[tokio::test]
async fn names_that_are_no_file_names_are_refused_before_anything_runs() {
    let node = Node::new("1.0.0");
    for (id, ifname) in [("", "eth0"), ("../x", "eth0"), ("a", ""), ("a", "a/b"), ("a", "sixteen-bytes-xx")] {
        let bad = Attachment { container_id: id.to_owned(), ifname: ifname.to_owned(), ..attachment() };
        assert!(matches!(node.client().add(&bad).await, Err(Error::Name(_))), "{id:?} {ifname:?}");
    }
    assert_eq!(node.order(), Vec::<String>::new());
}

#[tokio::test]
async fn what_could_not_be_read_back_is_refused_before_anything_runs() {
    let node = Node::new("1.0.0");
    let large = Map::from_iter([("ips".to_owned(), json!("x".repeat(1 << 20)))]);
    let attachment = Attachment { capability_args: large, ..attachment() };
    let error = node.client().add(&attachment).await.expect_err("too large").to_string();
    assert!(error.contains("pods-abc-eth0") && error.ends_with("expected at most 1048576"), "{error}");
    assert_eq!((node.order().len(), node.cached()), (0, 0));
}
