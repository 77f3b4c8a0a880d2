//! Many pods at once, and what a container's end looks like.

use e2e::cluster::Cluster;

#[test]
fn fifty_pods_start_at_once() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("fifty");
    kubectl.apply(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: many}\nspec:\n  replicas: 50\n  \
         selector: {matchLabels: {app: many}}\n  template:\n    metadata: {labels: {app: many}}\n    spec:\n      \
         terminationGracePeriodSeconds: 0\n      containers: [{name: a, image: 'localhost/busybox:v1', command: [sleep, infinity]}]\n",
    );
    kubectl.run(&["rollout", "status", "deployment/many", "--timeout=90s"]);
    let addresses: std::collections::BTreeSet<String> = kubectl
        .list(&["pods"])
        .iter()
        .map(|pod| pod["status"]["podIP"].as_str().expect("an address").to_owned())
        .collect();
    assert_eq!(addresses.len(), 50, "every pod has an address of its own");
}

#[test]
fn exit_codes_logs_and_restarts_are_reported() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("exits");
    let script = "echo out; echo err >&2; exit 7";
    kubectl.run(&[
        "run",
        "once",
        "--image=localhost/busybox:v1",
        "--restart=Never",
        "--",
        "sh",
        "-c",
        script,
    ]);
    kubectl.wait("the pod has failed", || {
        let phase = kubectl.get("pod/once", "{.status.phase}");
        if phase == "Failed" { Ok(()) } else { Err(phase) }
    });
    assert_eq!(kubectl.get("pod/once", "{.status.containerStatuses[0].state.terminated.exitCode}"), "7");
    let logs = kubectl.run(&["logs", "once"]);
    assert!(logs.contains("out\n") && logs.contains("err\n"), "{logs}");
    kubectl.run(&["run", "again", "--image=localhost/busybox:v1", "--", "sh", "-c", "exit 3"]);
    kubectl.wait("it was restarted", || {
        let count = kubectl.get("pod/again", "{.status.containerStatuses[0].restartCount}");
        if count.parse::<u32>().is_ok_and(|count| count > 0) { Ok(()) } else { Err(count) }
    });
    kubectl.wait("it backs off", || {
        let reason = kubectl.get("pod/again", "{.status.containerStatuses[0].state.waiting.reason}");
        if reason == "CrashLoopBackOff" { Ok(()) } else { Err(reason) }
    });
}

#[test]
fn exec_passes_input_output_and_the_exit_code() {
    let cluster = Cluster::get();
    let kubectl = cluster.namespace("exec");
    kubectl.run_idle("a");
    let echoed = kubectl.try_with_input(&["exec", "-i", "a", "--", "cat"], "through\n").expect("cat");
    assert_eq!(echoed, "through\n");
    let error = kubectl.fail(&["exec", "a", "--", "sh", "-c", "exit 42"]);
    assert!(error.contains("exit code 42"), "{error}");
    // A pod's host name and environment are its own.
    assert_eq!(kubectl.run(&["exec", "a", "--", "hostname"]), "a\n");
    let address = kubectl.run(&["exec", "a", "--", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST"]);
    assert_eq!(
        address.trim(),
        kubectl.run(&["get", "-n", "default", "service/kubernetes", "-o", "jsonpath={.spec.clusterIP}"])
    );
}
