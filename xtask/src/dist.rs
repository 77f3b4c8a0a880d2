//! `cargo xtask dist`: assembles what is installed on a node, `target/dist/{bin,cni,deploy}`.
//!
//! What is started for every pod is linked statically at fixed addresses: half the time of such a short process is the dynamic loader's, and every
//! fork pays for the pages that it wrote. The plugins so run on nodes with any C library, too.
//!
//! Tests use the same layout built without optimisation and linked dynamically, `target/dist-debug`: they do not pay for a release
//! build, and do not run the static executables either.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{build_ebpf, process};

/// Executables of `dist/bin`, with the package that builds each.
const BIN: &[(&str, &str)] =
    &[("agent", "orlop-agent"), ("agent", "orlopctl"), ("server", "orlop-server"), SHIM];

const SHIM: (&str, &str) = ("shim", "orlop-shim");

/// Executables of `dist/cni`: the reference plugins' names.
const CNI: &[(&str, &str)] = &[
    ("cni-plugins", "bandwidth"),
    ("cni-plugins", "bridge"),
    ("cni-plugins", "dhcp"),
    ("cni-plugins", "dummy"),
    ("cni-plugins", "firewall"),
    ("cni-plugins", "flannel"),
    ("cni-plugins", "host-device"),
    ("cni-plugins", "host-local"),
    ("cni-plugins", "ipvlan"),
    ("cni-plugins", "loopback"),
    ("cni-plugins", "macvlan"),
    ("cni-plugins", "portmap"),
    ("cni-plugins", "ptp"),
    ("cni-plugins", "sbr"),
    ("cni-plugins", "static"),
    ("cni-plugins", "tuning"),
    ("cni-plugins", "vlan"),
    ("cni-plugins", "vrf"),
];

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
    build(profile)?;
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

fn build(profile: Profile) -> Result<()> {
    let is_static = |executable: &&(&str, &str)| {
        profile == Profile::Release && (CNI.contains(executable) || **executable == SHIM)
    };
    let mut build = process::cargo();
    build.args(["build", "--quiet", "--locked"]);
    for (package, binary) in BIN.iter().chain(CNI).filter(|executable| !is_static(executable)) {
        build.args(["--package", package, "--bin", binary]);
    }
    if profile == Profile::Release {
        build.arg("--release");
    }
    process::run_quietly("building the executables", &mut build)?;
    BIN.iter().chain(CNI).filter(is_static).try_for_each(|(package, binary)| build_static(package, binary))
}

fn build_static(package: &str, binary: &str) -> Result<()> {
    let mut build = process::cargo();
    build.args(["rustc", "--quiet", "--locked", "--release", "--package", package, "--bin", binary]);
    build.args(["--", "-C", "target-feature=+crt-static", "-C", "relocation-model=static"]);
    if package == SHIM.0 {
        // Without these it would silently stay dynamic.
        build.env("LIBSECCOMP_LINK_TYPE", "static").env("LIBSECCOMP_LIB_PATH", libseccomp()?);
    }
    process::run_quietly(&format!("building {binary}"), &mut build).map(drop)
}

/// The folder of the static libseccomp.
fn libseccomp() -> Result<PathBuf> {
    let mut question = Command::new("pkg-config");
    let answer = question.args(["--variable=libdir", "libseccomp"]).output().context("run pkg-config")?;
    let folder = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
    ensure!(
        folder.join("libseccomp.a").is_file(),
        "there is no static libseccomp: install libseccomp-dev (`cargo xtask setup`)"
    );
    Ok(folder)
}

/// Replaces by rename, since a running executable cannot be written to.
fn install(from: &Path, to: &Path) -> Result<()> {
    let temporary = to.with_extension("new");
    std::fs::copy(from, &temporary)
        .with_context(|| format!("copy {} to {}", from.display(), temporary.display()))?;
    std::fs::rename(&temporary, to).with_context(|| format!("rename to {}", to.display()))
}
