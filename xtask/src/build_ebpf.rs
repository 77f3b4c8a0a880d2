//! `cargo xtask build-ebpf`: compiles ebpf/dataplane-programs for the BPF target.
//!
//! The object lands in `target/bpf/dataplane.o`; the build script of `dataplane` embeds it from there.
//! `-Z build-std` is unstable, so that one cargo call gets `RUSTC_BOOTSTRAP=1`; nothing else does.

use anyhow::{Context, Result};

use crate::process;
use crate::setup::BPF_LINKER;

pub fn run() -> Result<()> {
    let linker = process::probe(process::tool("bpf-linker").arg("--version"));
    linker
        .filter(|version| version.contains(BPF_LINKER))
        .with_context(|| format!("bpf-linker {BPF_LINKER} is not installed: run `cargo xtask setup`"))?;
    let crate_folder = process::root().join("ebpf/dataplane-programs");
    let target = process::target().join("bpf");
    let mut build = process::cargo();
    build
        .current_dir(&crate_folder)
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-C debuginfo=2 -C link-arg=--btf -C target-cpu=v3")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::run_quietly("compiling the BPF programs", &mut build)?;
    let built = target.join("bpfel-unknown-none/release/dataplane-programs");
    let object = target.join("dataplane.o");
    let bytes = std::fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    // Written only when it differs: the build script watches this file.
    if std::fs::read(&object).ok().as_ref() != Some(&bytes) {
        std::fs::write(&object, &bytes).with_context(|| format!("write {}", object.display()))?;
    }
    println!("build-ebpf: {} ({} KiB)", object.display(), bytes.len() / 1024);
    Ok(())
}
