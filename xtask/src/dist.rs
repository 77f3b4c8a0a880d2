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

use crate::{build_ebpf, process, setup};

/// Executables of `dist/bin`, with the package that builds each.
const BIN: &[(&str, &str)] =
    &[("agent", "orlop-agent"), ("agent", "orlopctl"), ("server", "orlop-server"), SHIM];

const SHIM: (&str, &str) = ("shim", "orlop-shim");

/// All CNI plugins: the file of `dist/cni` has their names, which it knows itself.
const PLUGINS: (&str, &str) = ("cni-plugins", "cni-plugins");

/// The cargo profile of what runs for milliseconds.
const SHORT_LIVED: &str = "short-lived";

/// Files of `dist/deploy`, from `xtask/deploy`: systemd units, the script that installs them, and the manifest of the proxy alone.
const DEPLOY: &[&str] =
    &["install.sh", "orlop-agent.service", "orlop-proxy.service", "orlop-proxy.yaml", "orlop-server.service"];

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
    let bin = make_folder(&dist, "bin")?;
    for (_, binary) in BIN {
        install(&built.join(binary), &bin.join(binary))?;
    }
    let plugins = if profile == Profile::Release { build_plugins()? } else { built.join(PLUGINS.1) };
    install_plugins(&plugins, &make_folder(&dist, "cni")?)?;
    let deploy = make_folder(&dist, "deploy")?;
    for name in DEPLOY {
        install(&process::root().join("xtask/deploy").join(name), &deploy.join(name))?;
    }
    println!("dist: {}", dist.display());
    Ok(dist)
}

fn make_folder(dist: &Path, name: &str) -> Result<PathBuf> {
    let folder = dist.join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

fn build(profile: Profile) -> Result<()> {
    let mut build = process::cargo();
    build.args(["build", "--quiet", "--locked"]);
    let apart: &[_] = if profile == Profile::Release { &[SHIM] } else { &[] };
    let plugins = (profile == Profile::Debug).then_some(&PLUGINS);
    for (package, binary) in BIN.iter().filter(|executable| !apart.contains(executable)).chain(plugins) {
        build.args(["--package", package, "--bin", binary]);
    }
    if profile == Profile::Release {
        build.arg("--release");
    }
    process::run_quietly("building the executables", &mut build)?;
    if profile == Profile::Release { build_shim() } else { Ok(()) }
}

fn build_shim() -> Result<()> {
    let mut build = rustc(SHIM, "release");
    build.args(STATIC);
    // Without these it would silently stay dynamic.
    build.env("LIBSECCOMP_LINK_TYPE", "static").env("LIBSECCOMP_LIB_PATH", libseccomp()?);
    process::run_quietly("building the shim", &mut build).map(drop)
}

/// With musl, where the toolchain has it: at the start of every process glibc asks the processor what it can, eighty times, which takes
/// half a millisecond where a hypervisor answers.
fn build_plugins() -> Result<PathBuf> {
    let mut build = rustc(PLUGINS, SHORT_LIVED);
    let musl = setup::musl();
    build.args(musl.iter().flat_map(|target| ["--target", target])).args(STATIC);
    process::run_quietly("building the plugins", &mut build)?;
    Ok(process::target().join(musl.unwrap_or_default()).join(SHORT_LIVED).join(PLUGINS.1))
}

/// What makes an executable static, at fixed addresses.
const STATIC: [&str; 5] = ["--", "-C", "target-feature=+crt-static", "-C", "relocation-model=static"];

fn rustc((package, binary): (&str, &str), profile: &str) -> Command {
    let mut build = process::cargo();
    build.args(["rustc", "--quiet", "--locked", "--profile", profile, "--package", package, "--bin", binary]);
    build
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

/// One file under the names of all plugins, to be small. On a node each has a copy: some installers of network plugins write into what
/// is there under a name, flannel's among them.
fn install_plugins(executable: &Path, folder: &Path) -> Result<()> {
    let names = process::run_quietly("listing the plugins", Command::new(executable).arg("list"))?;
    let (file, link) = (folder.join(".plugins"), folder.join(".link"));
    install(executable, &file)?;
    // One that was left by a run that was ended.
    let _ = std::fs::remove_file(&link);
    for name in names.lines() {
        std::fs::hard_link(&file, &link).with_context(|| format!("link {}", link.display()))?;
        rename(&link, &folder.join(name))?;
    }
    std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))
}

/// Replaces by rename, since a running executable cannot be written to.
fn install(from: &Path, to: &Path) -> Result<()> {
    let temporary = to.with_extension("new");
    std::fs::copy(from, &temporary)
        .with_context(|| format!("copy {} to {}", from.display(), temporary.display()))?;
    rename(&temporary, to)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("rename to {}", to.display()))
}
