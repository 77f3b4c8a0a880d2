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
