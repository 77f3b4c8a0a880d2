//! What the certificates say, and that they are made once.

use super::*;
use std::os::unix::fs::PermissionsExt;

#[test]
fn certificates_are_kept_and_private() {
    let directory = tempfile::tempdir().unwrap();
    let first = Pki::open(directory.path()).unwrap();
    let admin = first.client(Identity::Admin).unwrap();
    let second = Pki::open(directory.path()).unwrap();
    assert_eq!(first.ca_certificate(), second.ca_certificate());
    assert_eq!(admin.key, second.client(Identity::Admin).unwrap().key);
    for entry in std::fs::read_dir(directory.path().join("pki")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        assert!(!entry.file_name().to_string_lossy().contains(".tmp"));
    }
}

#[test]
fn server_certificate_is_made_again_when_a_name_is_new() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::open(directory.path()).unwrap();
    let names = server_names("10.1.2.3".parse().unwrap(), "10.96.0.1".parse().unwrap(), &[]);
    assert!(names.contains(&"kubernetes.default.svc".to_owned()) && names.contains(&"10.96.0.1".to_owned()));
    let first = pki.server(&names).unwrap();
    assert_eq!(first.key, pki.server(&names).unwrap().key);
    let more =
        server_names("10.1.2.3".parse().unwrap(), "10.96.0.1".parse().unwrap(), &["edge.example".into()]);
    assert_ne!(first.key, pki.server(&more).unwrap().key);
}

#[test]
fn a_bad_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::open(directory.path()).unwrap();
    let error = pki.server(&["bücher.example".into()]).unwrap_err();
    assert!(matches!(error, PkiError::Name { .. }), "{error}");
}
