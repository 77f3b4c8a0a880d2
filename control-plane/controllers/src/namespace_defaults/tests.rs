//! Tables for the default objects.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{Action, plan};

fn namespace(phase: &str) -> Namespace {
    Namespace {
        metadata: ObjectMeta { name: Some("ns".into()), ..ObjectMeta::default() },
        status: Some(NamespaceStatus { phase: Some(phase.into()), ..NamespaceStatus::default() }),
        ..Namespace::default()
    }
}

fn map(certificate: &str) -> ConfigMap {
    ConfigMap { data: Some([("ca.crt".to_owned(), certificate.to_owned())].into()), ..ConfigMap::default() }
}

#[test]
fn what_is_missing_is_made() {
    let active = namespace("Active");
    let made = plan(&active, false, None, "pem");
    assert_eq!(made[0], Action::CreateAccount);
    let Action::CreateMap(created) = &made[1] else { panic!("a config map is made: {made:?}") };
    assert_eq!(created.metadata.namespace.as_deref(), Some("ns"));
    assert_eq!(created.data.as_ref().unwrap()["ca.crt"], "pem");
    assert!(plan(&active, true, Some(&map("pem")), "pem").is_empty());
    assert!(matches!(plan(&active, true, Some(&map("old")), "pem")[..], [Action::ReplaceMap(_)]));
    assert!(plan(&namespace("Terminating"), false, None, "pem").is_empty());
}
