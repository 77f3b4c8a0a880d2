//! A control plane for tests of what talks to one: `orlop-server`, as cargo built it beside the test.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Starts the server at an address and returns once it listens.
///
/// # Panics
/// It was not built, or says something else than where it listens.
pub fn start(address: &str, data: &Path) -> Child {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("orlop-server");
    let mut child = Command::new(&program)
        .args(["--bind-address", address, "--advertise-address", address, "--data-dir"])
        .arg(data)
        .env("RUST_LOG", "error")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}: build the package server first", program.display()));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on"), "{line}");
    child
}
