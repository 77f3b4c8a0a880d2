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

#[test]
fn a_pair_that_a_kill_left_half_made_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::open(directory.path()).unwrap();
    let names = server_names("10.1.2.3".parse().unwrap(), "10.96.0.1".parse().unwrap(), &[]);
    let first = pki.server(&names).unwrap();
    // The key is written first, so a kill between the two leaves a new key with the old certificate.
    let other = pki.client(Identity::Admin).unwrap();
    std::fs::write(directory.path().join("pki/server.key"), &other.key).unwrap();
    let second = pki.server(&names).unwrap();
    assert!(second.key != first.key && second.key != other.key);
    assert_eq!(pki.server(&names).unwrap().certificate, second.certificate);
}

#[test]
fn a_certificate_of_another_authority_is_made_again() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [ours, foreign] = directories.each_ref().map(|directory| Pki::open(directory.path()).unwrap());
    let (admin, theirs) = (ours.client(Identity::Admin).unwrap(), foreign.client(Identity::Admin).unwrap());
    for (name, text) in [("admin.crt", &theirs.certificate), ("admin.key", &theirs.key)] {
        std::fs::write(directories[0].path().join("pki").join(name), text).unwrap();
    }
    let again = ours.client(Identity::Admin).unwrap();
    assert!(again.key != theirs.key && again.key != admin.key);
}

#[test]
fn an_authority_is_never_replaced() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for directory in &directories {
        Pki::open(directory.path()).unwrap().client(Identity::Admin).unwrap();
    }
    let path = |index: usize, name: &str| directories[index].path().join("pki").join(name);
    std::fs::copy(path(1, "ca.key"), path(0, "ca.key")).unwrap();
    let error = Pki::open(directories[0].path()).err().unwrap().to_string();
    assert!(error.contains("is not the certificate of") && error.contains("restore it"), "{error}");
    std::fs::remove_file(path(1, "ca.crt")).unwrap();
    let error = Pki::open(directories[1].path()).err().unwrap().to_string();
    assert!(error.contains("certificates that it signed are here"), "{error}");
}
