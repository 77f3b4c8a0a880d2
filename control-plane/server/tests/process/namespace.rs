//! The namespace controller with the rights that the API server gives it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};

use crate::server::{Server, client};

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_dying_namespace_takes_its_network_policies_along() {
    let directory = tempfile::tempdir().unwrap();
    let _server = Server::start(directory.path());
    let client = client(directory.path()).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some("x".into());
    let namespace = namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let policies: Api<NetworkPolicy> = Api::namespaced(client, "x");
    let mut policy = NetworkPolicy::default();
    policy.metadata.name = Some("p".into());
    let policy = policies.create(&PostParams::default(), &policy).await.unwrap();
    namespaces.delete("x", &DeleteParams::default()).await.unwrap();
    let uid = policy.metadata.uid.unwrap();
    let gone = await_condition(policies, "p", conditions::is_deleted(&uid));
    tokio::time::timeout(DEADLINE, gone).await.expect("the policy goes").unwrap();
    let uid = namespace.metadata.uid.unwrap();
    let gone = await_condition(namespaces, "x", conditions::is_deleted(&uid));
    tokio::time::timeout(DEADLINE, gone).await.expect("the namespace goes").unwrap();
}
