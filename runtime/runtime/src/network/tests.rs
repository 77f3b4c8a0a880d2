//! Which plugins of an earlier process are ended, with processes that stand for them; what the configuration says of ports.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use super::*;

/// Ends with the test, however that ends.
struct Plugin(Child);

impl Plugin {
    fn start(sandbox: &str) -> Plugin {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).stdout(Stdio::piped()).env(CONTAINER_VARIABLE, sandbox);
        let mut plugin = Plugin(cat.spawn().unwrap());
        // A process has no environment to read until the kernel has loaded its program, which `spawn` does not wait for.
        plugin.0.stdin.as_mut().unwrap().write_all(b"1").unwrap();
        plugin.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        plugin
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

#[test]
fn the_network_says_whether_ports_are_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(Options { conf_dir: folder.path().into(), ..Options::default() });
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let without = r#"{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "bridge"}]}"#;
    let with =
        r#"{"cniVersion": "1.0.0", "name": "b", "type": "portmap", "capabilities": {"portMappings": true}}"#;
    assert!(!maps_ports(&client));
    put("10-a.conflist", without);
    put("20-b.conf", with);
    assert!(!maps_ports(&client));
    put("05-b.conf", with);
    assert!(maps_ports(&client));
    // Passed over, as pods are attached by the first good one.
    put("00-garbage.json", "{");
    assert!(maps_ports(&client));
}
