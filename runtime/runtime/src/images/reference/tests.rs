//! The table of names that the distribution reference grammar gives.

use super::*;

#[test]
fn names_are_normalised() {
    let digest = format!("sha256:{}", "a".repeat(64));
    for (text, canonical) in [
        ("busybox", "docker.io/library/busybox:latest".to_owned()),
        ("index.docker.io/library/busybox:1", "docker.io/library/busybox:1".to_owned()),
        ("user/app:v1.2-x_y", "docker.io/user/app:v1.2-x_y".to_owned()),
        ("localhost/app", "localhost/app:latest".to_owned()),
        ("127.0.0.1:5000/a/b__c:t", "127.0.0.1:5000/a/b__c:t".to_owned()),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10".to_owned()),
        (&format!("quay.io/a/b@{digest}"), format!("quay.io/a/b@{digest}")),
        (&format!("quay.io/a/b:tag@{digest}"), format!("quay.io/a/b@{digest}")),
    ] {
        assert_eq!(Name::parse(text).unwrap().canonical(), canonical, "{text}");
    }
}

#[test]
fn nonsense_is_refused() {
    for text in [
        "",
        ":",
        "/",
        "a//b",
        "Busybox",
        "a:b:c/d:",
        "a@sha256:12",
        "a@md5:x",
        "a:-tag",
        "a..b",
        "-a",
        "a b",
        "a/",
        "http://x/y",
    ] {
        assert!(Name::parse(text).is_err(), "{text}");
    }
    assert!(Name::parse("a/".repeat(130).trim_end_matches('/')).is_err());
}

#[test]
fn image_ids() {
    assert_eq!(as_image_id("sha256:0123456789ab"), Some("0123456789ab"));
    assert_eq!(as_image_id("0123456789AB"), None);
    assert_eq!(as_image_id("busybox"), None);
}
