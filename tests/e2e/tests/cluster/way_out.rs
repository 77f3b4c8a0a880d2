//! The way out of the machines, and a registry on the host's loopback.
//!
//! Both change settings of the host, so this host is a private one, with an internet of its own behind it. The script tells the
//! story; the runner of private hosts fails when anything is left.

use std::path::Path;
use std::process::Command;

use e2e::cluster::down;

#[test]
fn pods_reach_out_through_the_host_which_is_put_back() {
    // One cluster at a time, and `target/up` is the same in a private host.
    down();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout");
    let target = root.join("target");
    let registry =
        std::env::var_os("ORLOP_DOCKER_REGISTRY").expect("run the cluster tests with `cargo xtask test 4`");
    let ran = Command::new(target.join("debug/private-host"))
        .arg("sh")
        .arg(root.join("tests/e2e/tests/cluster/way_out.sh"))
        .current_dir(&root)
        .env("TARGET", &target)
        .env("REGISTRY", registry)
        .output()
        .expect("start private-host, which cargo builds with the tests of `harness`");
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("everything was put back"), "{said}");
}
