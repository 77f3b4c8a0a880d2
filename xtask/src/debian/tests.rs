use super::installed;

#[test]
fn a_simulation_names_what_it_installs() {
    assert_eq!(installed("Inst libacl1 (2.3.1-3 Debian:12.0/oldstable [amd64])"), Some("libacl1"));
    assert_eq!(installed("Conf libacl1 (2.3.1-3 Debian:12.0/oldstable [amd64])"), None);
    assert_eq!(installed("The following NEW packages will be installed:"), None);
}
