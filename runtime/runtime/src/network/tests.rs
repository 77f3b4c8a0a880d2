//! Which plugins of an earlier process are ended, with processes that stand for them.

use std::process::{Child, Command};

use super::*;

/// Ends with the test, however that ends.
struct Plugin(Child);

impl Plugin {
    fn start(sandbox: &str) -> Plugin {
        Plugin(Command::new("sleep").arg("1000").env(CONTAINER_VARIABLE, sandbox).spawn().unwrap())
    }

    fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn who_was_given_up_ends_nothing_more() {
    let id = |name: &str| format!("{name}-{}", std::process::id());
    let (wanted, other) = (id("wanted"), id("other"));
    let mut plugins = [Plugin::start(&wanted), Plugin::start(&other)];
    let given_up = CancellationToken::new();
    given_up.cancel();
    end_calls(|id| id == wanted, &given_up);
    assert!(plugins.iter_mut().all(Plugin::runs));
    end_calls(|id| id == wanted, &CancellationToken::new());
    assert_eq!(plugins.each_mut().map(Plugin::runs), [false, true]);
}
