//! Exec with and without a terminal, attach, and their failures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::{
    ContainerConfig, ContainerId, Error, ExecConfig, Mount, Runtime, SecurityContext, SecurityProfile,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{Host, chain, container, program_calling, start, until};

fn command(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn exec_sync_collects_output_and_code() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let id = start(&runtime, &pod, container("c", "exec sleep 1000")).await;
    let result = runtime.exec_sync(&id, command(&["sh", "-c", "echo out; echo err >&2; exit 5"]), None).await;
    let result = result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(
        (result.exit_code, result.stdout.as_slice(), result.stderr.as_slice()),
        (5, &b"out\n"[..], &b"err\n"[..])
    );
    // It is as confined as the container, and in the same place. Its shell becomes `sleep` in its own time.
    let script = "until grep -q sleep /proc/1/comm; do :; done; grep -E '^(Seccomp:|CapBnd)' /proc/self/status | tr -d '\\t '; cat /proc/1/comm; cat /proc/self/cgroup | sed s/.*://";
    let result = runtime.exec_sync(&id, command(&["busybox", "sh", "-c", script]), None).await.unwrap();
    let text = String::from_utf8(result.stdout).unwrap();
    assert!(text.starts_with("CapBnd:00000000a80425fb\nSeccomp:2\nsleep\n"), "{text}");
    // On pure v2 the container's own group is the root of what it sees.
    let v1 = linux::cgroup::Layout::detect(&host.config.cgroup_root).unwrap().is_v1();
    let own = |path: &str| if v1 { path.contains(id.as_str()) } else { path == "/" };
    assert!(text.lines().skip(3).all(own), "{text}");
    let stats = runtime.container_stats(&id).await.unwrap();
    assert!(stats.pids == 1 && stats.memory_usage > 0 && stats.timestamp > 0, "{stats:?}");
    let error = runtime.exec_sync(&id, command(&["no-such"]), None).await.unwrap_err();
    assert!(
        matches!(&error, Error::Start { message } if message.contains("executable file not found in $PATH")),
        "{error}"
    );
    let error = runtime
        .exec_sync(&id, command(&["sleep", "1000"]), Some(Duration::from_millis(100)))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn exec_as_another_user_is_filtered_without_no_new_privs() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let security = SecurityContext { run_as_username: "web".into(), ..SecurityContext::default() };
    let config = ContainerConfig { security, ..container("c", "exec sleep 1000") };
    let id = start(&runtime, &pod, config).await;
    let script =
        "id -u; grep -E '^(NoNewPrivs|Seccomp|CapEff):' /proc/self/status | tr -d '\\t '; echo $HOME";
    let result = runtime.exec_sync(&id, command(&["sh", "-c", script]), None).await;
    let result = result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let text = String::from_utf8(result.stdout).unwrap();
    assert_eq!(text, "33\nCapEff:0000000000000000\nNoNewPrivs:0\nSeccomp:2\n/srv\n");
}

/// What starting a process takes of us, and what busybox needs for neither `sleep` nor `true`.
const OURS: &str = "capget capset chdir close_range faccessat faccessat2 fchdir fstat getcwd getdents64 mmap openat \
                    read seccomp setgroups setresgid setresuid setsid socket statx umask write";

#[tokio::test]
async fn a_profile_need_not_allow_what_starts_a_process() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let names: Vec<_> = OURS.split_whitespace().collect();
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": names, "action": "SCMP_ACT_KILL_PROCESS" }],
    });
    let file = host.directory.path().join("profile.json");
    std::fs::write(&file, profile.to_string()).unwrap();
    for (name, user, no_new_privs) in [("root", "root", false), ("web", "web", false), ("nnp", "root", true)]
    {
        let security = SecurityContext {
            run_as_username: user.into(),
            seccomp: SecurityProfile::Localhost(file.display().to_string()),
            no_new_privs,
            ..SecurityContext::default()
        };
        let command = |words: &[&str]| command(&[&["/bin/busybox"], words].concat());
        let config =
            ContainerConfig { security, command: command(&["sleep", "1000"]), ..container(name, "") };
        let id = start(&runtime, &pod, config).await;
        let result = runtime.exec_sync(&id, command(&["true"]), None).await;
        let result = result.unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert_eq!(result.exit_code, 0, "{name}");
        // The filter is there, and nothing of what loading it took.
        let pid = runtime.container_status(&id).unwrap().pid.unwrap_or_else(|| panic!("{name} ended"));
        let held = if user == "root" { "00000000a80425fb" } else { "0000000000000000" };
        let lines =
            ["Name:\tbusybox", "Seccomp:\t2", &format!("CapPrm:\t{held}"), &format!("CapEff:\t{held}")];
        until(&format!("{name}: {lines:?}"), || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            lines.iter().all(|line| status.lines().any(|other| other == *line))
        })
        .await;
        let result = runtime.exec_sync(&id, command(&["cat", "/kept"]), None).await.unwrap();
        assert_eq!(result.exit_code, 128 + 31, "{name}: SIGSYS");
    }
}

#[tokio::test]
async fn a_call_that_is_newer_than_the_default_profile_is_not_there() {
    use std::os::unix::fs::PermissionsExt;
    const NEWER: u16 = 4000;
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let programs = host.directory.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    // keyctl with zeroes is EINVAL or a key to whoever may call it.
    let denied = if cfg!(target_arch = "aarch64") { 219 } else { 250 };
    for (name, call) in [("newer", NEWER), ("denied", denied)] {
        let program = programs.join(name);
        std::fs::write(&program, program_calling(call)).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mount =
        Mount { container_path: "/p".into(), host_path: programs, readonly: true, ..Mount::default() };
    let config = ContainerConfig { mounts: vec![mount], ..container("c", "exec sleep 1000") };
    let id = start(&runtime, &pod, config).await;
    for (program, error) in [("/p/newer", rustix::io::Errno::NOSYS), ("/p/denied", rustix::io::Errno::PERM)] {
        let result = runtime.exec_sync(&id, command(&[program]), None).await;
        let result = result.unwrap_or_else(|error| panic!("{program}: {}", chain(&error)));
        assert_eq!(result.exit_code, error.raw_os_error(), "{program}");
    }
}

/// The directory of a running container in the unified hierarchy.
fn unified_directory(host: &Host, runtime: &Runtime, id: &ContainerId) -> PathBuf {
    let layout = linux::cgroup::Layout::detect(&host.config.cgroup_root).unwrap();
    let pid = runtime.container_status(id).unwrap().pid.expect("it runs");
    let group = layout.unified_group_of(pid).unwrap().expect("a group of its own");
    group.unified_directory().unwrap()
}

/// Moves the container's first process into a new group.
fn move_first(runtime: &Runtime, id: &ContainerId, into: &Path) {
    let pid = runtime.container_status(id).unwrap().pid.expect("it runs");
    std::fs::create_dir(into).unwrap();
    std::fs::write(into.join("cgroup.procs"), pid.to_string()).unwrap();
}

#[tokio::test]
async fn exec_in_a_container_that_hands_controllers_down_joins_its_first_process() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let id = start(&runtime, &pod, container("c", "exec sleep 1000")).await;
    let own = unified_directory(&host, &runtime, &id);
    let controllers = std::fs::read_to_string(own.join("cgroup.controllers")).unwrap();
    let Some(controller) = controllers.split_whitespace().next() else {
        return harness::skip::skip("the unified hierarchy hands no controller down to containers here");
    };
    // As a systemd or a container engine inside would.
    move_first(&runtime, &id, &own.join("inner"));
    std::fs::write(own.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let result = runtime.exec_sync(&id, command(&["cat", "/proc/self/cgroup"]), None).await;
    let result = result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let text = String::from_utf8(result.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with("/inner")), "{text}");
    runtime.remove_sandbox(&pod).await.unwrap();
    runtime.idle().await;
    assert!(!own.exists());
}

#[tokio::test]
async fn exec_in_a_container_that_moved_away_joins_its_first_process() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let id = start(&runtime, &pod, container("c", "exec sleep 1000")).await;
    let own = unified_directory(&host, &runtime, &id);
    let elsewhere = own.with_file_name("elsewhere");
    move_first(&runtime, &id, &elsewhere);
    std::fs::remove_dir(&own).unwrap();
    let result = runtime.exec_sync(&id, command(&["cat", "/proc/self/cgroup"]), None).await;
    let result = result.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let text = String::from_utf8(result.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with("/elsewhere")), "{text}");
    runtime.remove_sandbox(&pod).await.unwrap();
    runtime.idle().await;
    std::fs::remove_dir(&elsewhere).unwrap();
}

#[tokio::test]
async fn exec_with_stdin_is_a_pipe() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let id = start(&runtime, &pod, container("c", "exec sleep 1000")).await;
    let config =
        ExecConfig { command: command(&["wc", "-c"]), stdin: true, stdout: true, ..ExecConfig::default() };
    let mut session = runtime.exec(&id, config).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let writer = tokio::spawn(async move { stdin.write_all(&vec![b'x'; 300_000]).await });
    let mut output = String::new();
    session.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
    writer.await.unwrap().unwrap();
    assert_eq!((output.trim(), session.wait().await.unwrap()), ("300000", 0));
}

#[tokio::test]
async fn exec_with_a_terminal_has_a_size_and_a_controlling_tty() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let id = start(&runtime, &pod, container("c", "exec sleep 1000")).await;
    let config =
        ExecConfig { command: command(&["sh"]), stdin: true, stdout: true, stderr: false, tty: true };
    let mut session = runtime.exec(&id, config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    session.resizer().unwrap().unwrap().resize(123, 45).unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"stty size; echo $TERM; tty=$(ls -l /proc/self/fd/0); exit 9\n").await.unwrap();
    let mut output = String::new();
    session.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
    assert!(output.contains("45 123") && output.contains("xterm"), "{output}");
    assert_eq!(session.wait().await.unwrap(), 9);
}

#[tokio::test]
async fn attach_feeds_stdin_and_reads_output() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let config =
        ContainerConfig { stdin: true, stdin_once: true, ..container("c", "echo up; cat; echo end") };
    let id = start(&runtime, &pod, config).await;
    until("it is up", || !host.read_log("c.log").is_empty()).await;
    let mut session = runtime.attach(&id, true).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    drop(stdin);
    let mut output = String::new();
    session.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
    assert_eq!((output.as_str(), session.wait().await.unwrap()), ("hello\nend\n", 0));
    let log: Vec<String> = host.read_log("c.log").into_iter().map(|(_, text)| text).collect();
    assert_eq!(log, ["up", "hello", "end"]);
}

#[tokio::test]
async fn a_container_with_a_terminal() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let config =
        ContainerConfig { stdin: true, tty: true, ..container("c", "stty size; read line; echo got $line") };
    let id = runtime.create_container(&pod, config).await.unwrap();
    // Its socket is nowhere on the node, where the death of a worker would leave it: a name that is taken is in nobody's way.
    let shims = host.config.state.join("shim");
    std::fs::create_dir(shims.join(format!("{id}.tty"))).unwrap();
    runtime.start_container(&id).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut session = runtime.attach(&id, true).await.unwrap();
    assert!(session.resizer().unwrap().is_some());
    session.stdin.take().unwrap().write_all(b"word\n").await.unwrap();
    let mut output = String::new();
    session.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
    assert!(output.contains("got word"), "{output}");
    assert_eq!(session.wait().await.unwrap(), 0);
}

#[tokio::test]
async fn a_rotated_log_is_opened_anew() {
    let host = Host::new();
    let runtime = host.open_with_image().await;
    let pod = runtime.run_sandbox(host.pod()).await.unwrap();
    let id = start(
        &runtime,
        &pod,
        container("c", "trap 'echo second' USR2; echo first; while :; do sleep 0.05; done"),
    )
    .await;
    until("first line", || host.read_log("c.log").len() == 1).await;
    let logs = host.directory.path().join("logs");
    std::fs::rename(logs.join("c.log"), logs.join("c.log.1")).unwrap();
    runtime.reopen_log(&id).await.unwrap();
    runtime.exec_sync(&id, command(&["kill", "-USR2", "1"]), None).await.unwrap();
    until("second line", || host.read_log("c.log").len() == 1).await;
    assert_eq!(host.read_log("c.log")[0].1, "second");
    assert_eq!(host.read_log("c.log.1").len(), 1);
}
