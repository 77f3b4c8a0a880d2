//! Which plugins of an earlier process are ended, with processes that stand for them.

use std::process::{Child, Command};

use super::*;

fn plugin(sandbox: &str) -> Child {
    Command::new("sleep").arg("1000").env(CONTAINER_VARIABLE, sandbox).spawn().unwrap()
}

#[test]
fn who_was_given_up_ends_nothing_more() {
    let id = |name: &str| format!("{name}-{}", std::process::id());
    let (wanted, other) = (id("wanted"), id("other"));
    let mut plugins = [plugin(&wanted), plugin(&other)];
    let given_up = CancellationToken::new();
    given_up.cancel();
    end_calls(|id| id == wanted, &given_up);
    assert!(plugins.iter_mut().all(|plugin| plugin.try_wait().unwrap().is_none()));
    end_calls(|id| id == wanted, &CancellationToken::new());
    assert!(plugins[0].try_wait().unwrap().is_some());
    assert!(plugins[1].try_wait().unwrap().is_none());
    plugins[1].kill().unwrap();
    plugins[1].wait().unwrap();
}
