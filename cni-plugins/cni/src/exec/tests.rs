//! Running executables that behave well and badly: shell scripts in a temporary folder.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use super::{Call, ExecError, Verb, find_plugin};

struct Plugin {
    dir: tempfile::TempDir,
}

impl Plugin {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("plugin");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        Self { dir }
    }

    fn call(&self) -> Call {
        Call {
            plugin: self.dir.path().join("plugin"),
            verb: Verb::Add,
            env: vec![("CNI_IFNAME", "eth0".into())],
            config: br#"{"name": "x"}"#.to_vec(),
            time_limit: Duration::from_secs(20),
        }
    }
}

#[tokio::test]
async fn environment_and_configuration_arrive() {
    let plugin = Plugin::new(
        r#"printf '{"verb": "%s", "ifname": "%s", "config": %s}' "$CNI_COMMAND" "$CNI_IFNAME" "$(cat)""#,
    );
    let document = plugin.call().run().await.expect("a document").expect("not empty");
    assert_eq!(document["verb"], "ADD");
    assert_eq!(document["ifname"], "eth0");
    assert_eq!(document["config"]["name"], "x");
}

#[tokio::test]
async fn silence_is_success() {
    assert!(matches!(Plugin::new("exit 0").call().run().await, Ok(None)));
}

#[tokio::test]
async fn an_error_document_is_passed_on() {
    let plugin = Plugin::new(r#"echo '{"code": 11, "msg": "busy", "details": "soon"}'; exit 1"#);
    let error = plugin.call().run().await.expect_err("it fails");
    assert_eq!(error.reply().map(|reply| reply.code), Some(11));
    assert!(error.to_string().ends_with("/plugin: busy; soon"), "{error}");
}

#[tokio::test]
async fn a_failure_without_document_tells_status_and_stderr() {
    let error = Plugin::new("echo it broke >&2; exit 3").call().run().await.expect_err("it fails");
    assert!(matches!(error, ExecError::Failed { .. }));
    let text = error.to_string();
    assert!(text.contains("exit status: 3") && text.ends_with("standard error: it broke"), "{text}");
}

#[tokio::test]
async fn output_that_is_no_object_is_an_error() {
    let error = Plugin::new("echo hello").call().run().await.expect_err("it is no JSON");
    assert!(matches!(error, ExecError::Output { .. }), "{error}");
}

#[tokio::test]
async fn endless_output_is_cut_off() {
    let error = Plugin::new("exec cat /dev/zero").call().run().await.expect_err("it never ends");
    assert!(matches!(error, ExecError::TooMuchOutput { .. }), "{error}");
}

#[tokio::test]
async fn a_stuck_plugin_is_killed() {
    let plugin = Plugin::new("exec tail -f /dev/null");
    let call = Call { time_limit: Duration::from_millis(200), ..plugin.call() };
    let error = call.run().await.expect_err("it never answers");
    assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
}

#[test]
fn plugins_are_found_in_order_and_never_by_path() {
    let first = Plugin::new("exit 0");
    let second = Plugin::new("exit 0");
    let dirs = [PathBuf::from("/nonexistent"), first.dir.path().to_owned(), second.dir.path().to_owned()];
    assert_eq!(find_plugin("plugin", &dirs).expect("it is there"), first.dir.path().join("plugin"));
    let error = find_plugin("other", &dirs[..1]).expect_err("it is not").to_string();
    assert_eq!(error, r#"failed to find plugin "other" in path [/nonexistent]"#);
    for name in ["", "../plugin", "/bin/sh", ".", ".."] {
        assert!(matches!(find_plugin(name, &dirs), Err(ExecError::InvalidName { .. })), "{name:?}");
    }
}
