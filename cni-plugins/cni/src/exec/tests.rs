//! Running executables that behave well and badly: shell scripts in a temporary folder.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Call, ExecError, Group, Verb, find_plugin};

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
            group: Group::Own,
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
async fn an_error_document_need_not_have_a_code() {
    let error = Plugin::new(r#"echo '{"msg": "busy"}'; exit 1"#).call().run().await.expect_err("it fails");
    assert_eq!(error.reply().map(|reply| (reply.code, reply.msg.as_str())), Some((0, "busy")));
    assert!(!error.is_cut_off());
}

#[tokio::test]
async fn a_failure_without_document_quotes_the_end_of_the_output() {
    // The last is a result, which says nothing of the failure.
    for (output, end) in [
        ("echo it broke", "it broke"),
        ("head -c 100000 /dev/zero | tr '\\0' x; echo the end", "xxxthe end"),
        (r#"echo '{"ips": []}'"#, r#"{"ips": []}"#),
    ] {
        let error = Plugin::new(&format!("{output}; exit 3")).call().run().await.expect_err("it fails");
        let text = error.to_string();
        assert!(error.is_cut_off() && text.contains("exit status: 3") && text.ends_with(end), "{text}");
        assert!(text.contains("standard output: ") && text.len() < 20_000, "{text}");
    }
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

/// Starts a child that would go on after it, and waits for that.
const PARENT: &str = "sh -c 'echo $$ > \"$1\".new; mv \"$1\".new \"$1\"; exec tail -f /dev/null > /dev/null 2> /dev/null' sh \"$0.child\" & wait";

impl Plugin {
    /// The id of the child that [`PARENT`] started, once it is there.
    fn child(&self) -> Option<u32> {
        let text = fs::read_to_string(self.dir.path().join("plugin.child")).ok()?;
        Some(text.trim().parse().expect("a number"))
    }
}

/// A zombie has ended, too: whoever is to reap it may take its time.
fn is_running(process: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat"));
    stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|state| !state.starts_with('Z')))
}

async fn ends(process: u32) {
    let begin = Instant::now();
    while is_running(process) {
        assert!(begin.elapsed() < Duration::from_secs(20), "process {process} goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_stuck_plugin_is_killed_with_what_it_started() {
    let plugin = Plugin::new(PARENT);
    // A busy machine may take long to start it.
    for limit in [1, 5, 25].map(Duration::from_secs) {
        let call = Call { time_limit: limit, ..plugin.call() };
        let error = call.run().await.expect_err("it never answers");
        assert!(matches!(error, ExecError::TimedOut { .. }), "{error}");
        if let Some(child) = plugin.child() {
            return ends(child).await;
        }
    }
    panic!("it never started its child");
}

#[tokio::test]
async fn a_plugin_that_nobody_waits_for_is_killed_with_what_it_started() {
    let plugin = Plugin::new(PARENT);
    let call = plugin.call();
    let started = async {
        loop {
            match plugin.child() {
                Some(child) => return child,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let child = tokio::select! {
        answer = call.run() => panic!("it never answers: {answer:?}"),
        child = started => child,
    };
    ends(child).await;
}

#[tokio::test]
async fn what_a_plugin_leaves_behind_goes_on() {
    let plugin = Plugin::new(
        "sh -c 'exec tail -f /dev/null' < /dev/null > /dev/null 2> /dev/null & echo $! > \"$0.child\"",
    );
    assert!(matches!(plugin.call().run().await, Ok(None)));
    let child = plugin.child().expect("its child");
    assert!(is_running(child));
    let child = rustix::process::Pid::from_raw(child.cast_signed()).expect("a process");
    rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("it is there");
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
