//! Copies the BPF object that `cargo xtask build-ebpf` made to where the crate embeds it from.
//!
//! Without one an empty file is embedded, and opening the dataplane says so: check, clippy and the editor need no BPF toolchain.

use std::path::Path;
use std::{env, fs};

fn main() {
    let object = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../../target/bpf/dataplane.o");
    let embedded = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("dataplane.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed=build.rs");
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(&embedded, bytes).expect("write the embedded object");
}
