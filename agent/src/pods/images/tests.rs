use super::*;

#[test]
fn only_who_shows_the_registry_the_same_shares_a_pull() {
    let auth = |password: &str| AuthConfig {
        username: "robot".into(),
        password: password.into(),
        ..AuthConfig::default()
    };
    let token = AuthConfig { registry_token: "t".into(), ..AuthConfig::default() };
    let mut running = Running::default();
    let mut is_first = |auth: Option<AuthConfig>| running.join(&("r/app:1".into(), auth)).1.is_some();
    assert!(is_first(Some(auth("good"))));
    assert!(!is_first(Some(auth("good"))));
    assert!(is_first(Some(auth("bad"))));
    assert!(is_first(Some(token)));
    assert!(is_first(None));
    running.leave(&("r/app:1".into(), Some(auth("good"))));
    assert!(running.join(&("r/app:1".into(), Some(auth("good")))).1.is_some());
    assert!(running.join(&("r/app:1".into(), Some(auth("bad")))).1.is_none());
}
