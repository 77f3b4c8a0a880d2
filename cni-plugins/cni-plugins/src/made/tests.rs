//! What an undo leaves where it cannot go on.

use std::{fs, os::unix::fs::PermissionsExt};

use linux::netlink::Netlink;
use serde_json::json;

use super::Made;
use crate::plugin::{Request, block_on};

#[test]
fn a_link_that_stands_keeps_its_guard_and_its_addresses() {
    let bin = tempfile::tempdir().expect("a folder");
    let (fake, called) = (bin.path().join("fake"), bin.path().join("called"));
    fs::write(&fake, format!("#!/bin/sh\ntouch {}\n", called.display())).expect("a script");
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).expect("it may run");
    let request =
        Request { path: vec![bin.path().to_owned()], ..Request::of_config("pods", json!({"type": "ptp"})) };
    // No link has the index 0, and the kernel refuses to delete it, whoever asks; without a link the undo goes on.
    for (link, goes_on) in [(Some(0), false), (None, true)] {
        let is_guarded = std::cell::Cell::new(true);
        let left = block_on(async {
            let netlink = Netlink::open().expect("a socket");
            let mut made = Made { ipam: Some("fake"), ..Made::nothing(&request) };
            made.also(|| {
                is_guarded.set(false);
                Ok(())
            });
            if let Some(index) = link {
                made.link(&netlink, index);
            }
            Ok(made.undo().await)
        });
        assert_eq!(left.expect("a runtime").len(), usize::from(!goes_on));
        assert_eq!((is_guarded.get(), called.exists()), (!goes_on, goes_on));
    }
}
