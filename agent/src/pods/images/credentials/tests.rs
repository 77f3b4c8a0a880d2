use k8s_openapi::ByteString;
use serde_json::json;

use super::*;

fn secret(auths: serde_json::Value) -> Secret {
    let json = json!({"auths": auths}).to_string().into_bytes();
    Secret { data: Some([(".dockerconfigjson".to_owned(), ByteString(json))].into()), ..Secret::default() }
}

#[test]
fn the_longest_fitting_key_wins() {
    let secret = secret(json!({
        "https://index.docker.io/v1/": {"username": "hub"},
        "quay.io": {"username": "quay"},
        "quay.io/team": {"username": "team"},
        "localhost:5000": {"auth": "eDp5"},
    }));
    let user = |reference| auth_for(reference, [&secret].into_iter()).map(|auth| auth.username);
    assert_eq!(user("busybox:1").as_deref(), Some("hub"));
    assert_eq!(user("quay.io/other/x@sha256:00").as_deref(), Some("quay"));
    assert_eq!(user("quay.io/team/x:2").as_deref(), Some("team"));
    assert_eq!(user("quay.io/teams/x").as_deref(), Some("quay"));
    assert_eq!(user("localhost:5000/x").as_deref(), Some(""));
    assert_eq!(user("ghcr.io/x/y"), None);
}
