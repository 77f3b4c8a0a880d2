use super::*;

#[test]
fn the_node_is_as_ready_as_the_runtime_says() {
    assert_eq!(State::said(Ok(())), State::Ready);
    let error = runtime::Error::CniNotInitialized { reason: "no plugin named bridge".into() };
    let State::NotReady { message } = State::said(Err(error)) else { panic!("not ready") };
    assert_eq!(message, "Network plugin returns error: cni plugin not initialized: no plugin named bridge");
}

#[test]
fn a_network_that_is_not_ready_is_looked_at_again_soon() {
    assert_eq!(State::uninitialized().look_again_after(), RETRY_AFTER);
    assert!(State::Ready.look_again_after() > RETRY_AFTER);
}

#[test]
fn the_first_configuration_says_whether_ports_are_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    assert!(!maps_ports(folder.path()));
    put("10-orlop.conflist", r#"{"plugins": [{"type": "bridge"}]}"#);
    put("20-other.conflist", r#"{"plugins": [{"type": "portmap", "capabilities": {"portMappings": true}}]}"#);
    assert!(!maps_ports(folder.path()));
    put("05-other.conf", r#"{"type": "portmap", "capabilities": {"portMappings": true}}"#);
    put("01-not-one.tmp", "");
    assert!(maps_ports(folder.path()));
    put("00-garbage.json", "{");
    assert!(!maps_ports(folder.path()));
}
