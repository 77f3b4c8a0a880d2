//! How a namespace goes.

use std::time::{Duration, Instant};

use e2e::cluster::Cluster;

/// How long the controllers may take to notice. Far below what a namespace would wait that is looked at from time to time.
const NOTICE_LIMIT: Duration = Duration::from_secs(4);

#[test]
fn a_namespace_says_what_keeps_it_and_goes_when_the_last_finalizer_does() {
    let cluster = Cluster::get();
    let kubectl = cluster.kubectl();
    kubectl.run(&["create", "namespace", "kept"]);
    kubectl.apply(
        "apiVersion: v1\nkind: ConfigMap\n\
         metadata: {name: a, namespace: kept, finalizers: [example.com/keep]}\n",
    );
    kubectl.run(&["delete", "namespace", "kept", "--wait=false"]);
    let expected = "Some content in the namespace has finalizers remaining: \
                    example.com/keep in 1 resource instances";
    kubectl.wait("the namespace says what keeps it", || {
        let path = "{.status.conditions[?(@.type=='NamespaceFinalizersRemaining')].message}";
        let message = kubectl.get("namespace/kept", path);
        if message == expected { Ok(()) } else { Err(message) }
    });
    let freed = Instant::now();
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    kubectl.run(&["patch", "-n", "kept", "configmap/a", "--type=merge", "-p", patch]);
    kubectl.wait("the namespace is gone", || match kubectl.try_run(&["get", "namespace/kept"]) {
        Ok(found) => Err(found),
        Err(error) if error.contains("namespaces \"kept\" not found") => Ok(()),
        Err(error) => Err(error),
    });
    assert!(freed.elapsed() < NOTICE_LIMIT, "it took {:?}", freed.elapsed());
}
