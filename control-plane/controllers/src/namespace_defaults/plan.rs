//! What a namespace lacks of its default objects.
//!
//! Input: the namespace and what it has. Output: objects to make. Pure.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::caches::ROOT_CA_CONFIG_MAP;
use crate::ownership::is_deleting;

/// The key of the certificate in its ConfigMap.
pub const CERTIFICATE_KEY: &str = "ca.crt";

/// An object to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    CreateAccount,
    CreateMap(Box<ConfigMap>),
    ReplaceMap(Box<ConfigMap>),
}

/// Decides one pass; `account` tells whether the default ServiceAccount is there.
pub fn plan(namespace: &Namespace, account: bool, map: Option<&ConfigMap>, certificate: &str) -> Vec<Action> {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    if is_deleting(&namespace.metadata) || phase == Some("Terminating") {
        return Vec::new();
    }
    let mut actions = Vec::new();
    if !account {
        actions.push(Action::CreateAccount);
    }
    let data = Some([(CERTIFICATE_KEY.to_owned(), certificate.to_owned())].into());
    match map {
        None => actions.push(Action::CreateMap(Box::new(ConfigMap {
            metadata: ObjectMeta {
                name: Some(ROOT_CA_CONFIG_MAP.to_owned()),
                namespace: namespace.metadata.name.clone(),
                ..ObjectMeta::default()
            },
            data,
            ..ConfigMap::default()
        }))),
        Some(map) if map.data != data => {
            actions.push(Action::ReplaceMap(Box::new(ConfigMap { data, ..map.clone() })));
        }
        Some(_) => {}
    }
    actions
}
