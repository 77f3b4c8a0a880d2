//! `cargo xtask setup`: installs what the project needs on a Debian machine with a Rust toolchain. Idempotent.
//!
//! Each step looks first, says what it does, and asks for nothing. What cannot be installed ends in one
//! sentence that names it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::{self, Package};
use crate::process;

/// Debian packages that are installed on the machine: libraries to link, and tools the tests call.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "links every executable"),
    ("pkg-config", "finds libseccomp"),
    ("libseccomp-dev", "seccomp profiles of containers"),
    (STATIC_BUSYBOX, "test images"),
    ("iproute2", "tests look at links and routes"),
    ("nftables", "the leak check looks for rules"),
    ("bpftool", "the leak check looks for programs"),
    ("ca-certificates", "registries"),
];

/// The package `busybox` has the same file, linked dynamically, and conflicts with this one.
const STATIC_BUSYBOX: &str = "busybox-static";
const BUSYBOX: &str = "/bin/busybox";

/// bpf-linker loads the LLVM of the compiler, so its version goes with rust-toolchain.toml.
pub const BPF_LINKER: &str = "0.10.4";

/// Where the standard library's sources come from when rustup cannot download them.
const RUST_SRC: Package<'_> =
    Package { name: "rust-src", version: Some("1.95.0+dfsg1-2~bpo13+1"), suite: Some("trixie-backports") };

pub fn run() -> Result<()> {
    packages()?;
    cargo_tool("bpf-linker", BPF_LINKER, &["bpf-linker", "--version"])?;
    cargo_tool("cargo-nextest", "0.9.143", &["cargo-nextest", "--version"])?;
    cargo_tool("cargo-deny", "0.20.2", &["cargo-deny", "--version"])?;
    rust_src()?;
    add_musl();
    kubectl()?;
    Ok(())
}

fn packages() -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().map(|(name, _)| *name).filter(|name| !installed(name) && !replaced(name)).collect();
    if missing.is_empty() {
        println!("setup: {} Debian packages are installed", PACKAGES.len());
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("these Debian packages are missing: {}; run `cargo xtask setup` as root", missing.join(" "));
    }
    println!("setup: installing {}", missing.join(" "));
    process::run_quietly("apt-get update", Command::new("apt-get").args(["update", "-q"]))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-q", "--no-install-recommends"]).args(&missing);
    process::run_quietly("apt-get install", install.env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

fn installed(package: &str) -> bool {
    process::probe(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

/// Whether the machine has what is meant from another package, which installing ours would remove.
fn replaced(package: &str) -> bool {
    package == STATIC_BUSYBOX && Path::new(BUSYBOX).exists()
}

/// A statically linked busybox: the machine's own, else Debian's package, unpacked.
pub fn busybox() -> Result<PathBuf> {
    if installed(STATIC_BUSYBOX) {
        return Ok(BUSYBOX.into());
    }
    let root = debian::unpack(&Package { name: STATIC_BUSYBOX, version: None, suite: None })?;
    let found = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| root.join(path))
        .into_iter()
        .find(|path| path.is_file());
    found.with_context(|| format!("{STATIC_BUSYBOX} has no busybox in {}", root.display()))
}

/// Installs a cargo tool unless `probe` already prints a version: the exact one for bpf-linker, any for the rest.
fn cargo_tool(name: &str, version: &str, probe: &[&str]) -> Result<()> {
    let found = process::probe(process::tool(probe[0]).args(&probe[1..]));
    let exact = name == "bpf-linker";
    if let Some(found) = found.filter(|found| !exact || found.contains(version)) {
        println!("setup: {}", found.lines().next().unwrap_or(name));
        return Ok(());
    }
    println!("setup: building {name} {version}");
    let mut install = process::cargo();
    install.args(["install", name, "--version", version, "--locked", "--force", "--quiet"]);
    process::run_quietly(&format!("building {name} {version}"), &mut install).map(drop)
}

fn rust_src() -> Result<()> {
    let sysroot =
        process::probe(Command::new("rustc").args(["--print", "sysroot"]).current_dir(process::root()))
            .context(
                "`rustc --print sysroot` failed: install the Rust toolchain that rust-toolchain.toml names",
            )?;
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust");
    let core = sources.join("library/core/src/lib.rs");
    if core.is_file() {
        println!("setup: rust-src is at {}", sources.display());
        return Ok(());
    }
    println!("setup: installing rust-src, which the BPF target is built from");
    let mut rustup = Command::new("rustup");
    if process::probe(rustup.args(["component", "add", "rust-src"]).current_dir(process::root())).is_some()
        && core.is_file()
    {
        return Ok(());
    }
    let unpacked =
        debian::unpack(&RUST_SRC).context("rustup could not add rust-src, and Debian's package failed")?;
    copy_sources(&unpacked.join("usr/src/rustc-1.95.0"), &sources)?;
    if !core.is_file() {
        bail!("rust-src has no {}: install the component rust-src of this toolchain by hand", core.display());
    }
    Ok(())
}

/// Nothing depends on it but how fast plugins start.
fn add_musl() {
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", &musl_target()]).current_dir(process::root());
    if musl().is_none() && process::probe(&mut rustup).is_none() {
        println!("setup: rustup could not add {}: plugins will be linked with glibc", musl_target());
    }
}

/// The target for static executables with musl, where the toolchain has the standard library for it.
pub fn musl() -> Option<String> {
    let target = musl_target();
    let mut question = Command::new("rustc");
    question.args(["--print", "target-libdir", "--target", &target]).current_dir(process::root());
    Path::new(&process::probe(&mut question)?).is_dir().then_some(target)
}

fn musl_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Puts the library's sources into the toolchain; a link would break when `target/` is removed.
fn copy_sources(from: &Path, to: &PathBuf) -> Result<()> {
    let parent = to.parent().context("the sysroot has no src folder")?;
    std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    if to.is_symlink() {
        std::fs::remove_file(to).with_context(|| format!("remove {}", to.display()))?;
    }
    std::fs::create_dir_all(to)?;
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from.join("library")).arg(from.join("Cargo.lock")).arg(to);
    process::run_quietly("copying rust-src into the toolchain", &mut copy).map(drop)
}

/// The kubectl that tests use: the machine's own, else Debian's.
pub fn kubectl() -> Result<PathBuf> {
    if let Some(found) = process::find_in_path("kubectl") {
        return Ok(found);
    }
    let package = Package { name: "kubernetes-client", version: None, suite: Some("sid") };
    Ok(debian::unpack(&package)?.join("usr/bin/kubectl"))
}
