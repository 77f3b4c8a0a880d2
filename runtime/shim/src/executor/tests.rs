use serde_json::json;

use super::*;

fn spec(environment: &[&str], action: &str) -> Spec {
    let spec = json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs" },
        "process": {
            "cwd": "/", "args": ["sh"], "env": environment, "user": { "uid": 33, "gid": 44 },
            "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
        },
        "linux": { "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mount"], "action": action }],
        } },
    });
    serde_json::from_value(spec).unwrap()
}

fn environment(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().unwrap().env().clone().unwrap()
}

#[test]
fn confinement_is_taken_from_libcontainer() {
    let mut spec = spec(&["HOME=/srv"], "SCMP_ACT_ERRNO");
    let executor = ProcessExecutor::take_over(&mut spec, None).unwrap();
    assert!(executor.confinement.is_some() && executor.homeless.is_none());
    assert!(spec.process().as_ref().unwrap().capabilities().is_none());
    assert!(spec.linux().as_ref().unwrap().seccomp().is_none());
}

#[test]
fn a_listener_of_system_calls_is_left_to_libcontainer() {
    let mut spec = spec(&["HOME=/srv"], "SCMP_ACT_NOTIFY");
    let executor = ProcessExecutor::take_over(&mut spec, None).unwrap();
    assert!(executor.confinement.is_none());
    assert!(spec.process().as_ref().unwrap().capabilities().is_some());
    assert!(spec.linux().as_ref().unwrap().seccomp().is_some());
}

#[test]
fn libcontainer_never_looks_for_a_home() {
    for without in [&["PATH=/bin"][..], &["PATH=/bin", "HOME="]] {
        let mut spec = spec(without, "SCMP_ACT_ERRNO");
        let executor = ProcessExecutor::take_over(&mut spec, None).unwrap();
        assert_eq!(
            (environment(&spec), executor.homeless),
            (vec!["PATH=/bin".into(), "HOME=/".into()], Some(33))
        );
    }
}
