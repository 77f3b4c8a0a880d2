//! `cargo xtask dist`: assembles what is installed on a node, `target/dist/{bin,cni,deploy}`.
//!
//! Tests use the same layout built without optimisation, `target/dist-debug`, so that they run what users get
//! without paying for a release build.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{build_ebpf, process};

/// Executables of `dist/bin`, with the package that builds each.
const BIN: &[(&str, &str)] =
    &[("agent", "orlop-agent"), ("agent", "orlopctl"), ("server", "orlop-server"), ("shim", "orlop-shim")];

/// Executables of `dist/cni`: the reference plugins' names.
const CNI: &[(&str, &str)] =
    &[("cni-plugins", "bridge"), ("cni-plugins", "host-local"), ("cni-plugins", "loopback")];

/// Files of `dist/deploy`, from `xtask/deploy`: systemd units and the script that installs everything.
const DEPLOY: &[&str] = &["install.sh", "orlop-agent.service", "orlop-server.service"];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Release,
    Debug,
}

#[derive(clap::Args)]
pub struct Options {
    /// Build without optimisation, into target/dist-debug.
    #[arg(long)]
    debug: bool,
}

impl Options {
    pub fn profile(debug: bool) -> Self {
        Self { debug }
    }

    pub fn for_tests() -> Self {
        Self::profile(true)
    }
}

/// Where `profile`'s executables are put.
pub fn folder(profile: Profile) -> PathBuf {
    process::target().join(match profile {
        Profile::Release => "dist",
        Profile::Debug => "dist-debug",
    })
}

/// Builds and copies; gives the folder.
pub fn run(options: &Options) -> Result<PathBuf> {
    let profile = if options.debug { Profile::Debug } else { Profile::Release };
    build_ebpf::run()?;
    let mut build = process::cargo();
    build.args(["build", "--quiet", "--locked"]);
    for (package, binary) in BIN.iter().chain(CNI) {
        build.args(["--package", package, "--bin", binary]);
    }
    if profile == Profile::Release {
        build.arg("--release");
    }
    process::run_quietly("building the executables", &mut build)?;
    let built = process::target().join(if profile == Profile::Release { "release" } else { "debug" });
    let dist = folder(profile);
    for (kind, list) in [("bin", BIN), ("cni", CNI)] {
        let folder = dist.join(kind);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        for (_, binary) in list {
            install(&built.join(binary), &folder.join(binary))?;
        }
    }
    let deploy = dist.join("deploy");
    std::fs::create_dir_all(&deploy).with_context(|| format!("create {}", deploy.display()))?;
    for name in DEPLOY {
        install(&process::root().join("xtask/deploy").join(name), &deploy.join(name))?;
    }
    println!("dist: {}", dist.display());
    Ok(dist)
}

/// Replaces by rename, since a running executable cannot be written to.
fn install(from: &Path, to: &Path) -> Result<()> {
    let temporary = to.with_extension("new");
    std::fs::copy(from, &temporary)
        .with_context(|| format!("copy {} to {}", from.display(), temporary.display()))?;
    std::fs::rename(&temporary, to).with_context(|| format!("rename to {}", to.display()))
}
