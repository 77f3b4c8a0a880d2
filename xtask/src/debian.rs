//! Debian packages unpacked below `target/`, never installed: peers, test daemons, sources, and whole trees of packages
//! with everything that they depend on, whose programs run by their own loader and libraries.
//!
//! The machine's own package configuration stays as it is: a suite that the machine does not use gets an apt
//! configuration of its own, with its own lists. The mirror is the one that the machine is configured for.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::process;

#[cfg(test)]
mod tests;

/// Where the libraries of a tree lie, from its root. The tools that need a tree are for this processor alone.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// Which package, from where.
pub struct Package<'a> {
    pub name: &'a str,
    /// `None` takes what the suite offers.
    pub version: Option<&'a str>,
    /// `None` is the machine's own release.
    pub suite: Option<&'a str>,
}

/// Packages with everything that they depend on, in one tree.
pub struct Tree<'a> {
    pub name: &'a str,
    pub packages: &'a [&'a str],
    /// The last is preferred; none means the machine's own release.
    pub suites: &'a [&'a str],
    /// Whether dependencies come too.
    pub dependencies: bool,
}

/// Unpacks a tree and gives its root. A second call finds it there.
pub fn unpack_tree(tree: &Tree<'_>) -> Result<PathBuf> {
    let what = format!("{:?} {:?} {}", tree.packages, tree.suites, tree.dependencies);
    let tag: String = Sha256::digest(what).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let folder = process::target().join("debian").join(format!("{}-{tag}", tree.name));
    if folder.is_dir() {
        return Ok(folder);
    }
    let partial = folder.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    let (archives, root) = (partial.join("archives"), partial.join("root"));
    std::fs::create_dir_all(&archives).with_context(|| format!("create {}", archives.display()))?;
    let options = tree_options(tree)?;
    let packages = resolve(tree, &options)?;
    let mut download = Command::new("apt-get");
    download.args(&options).arg("download").args(&packages).current_dir(&archives);
    let what = format!("downloading {} packages of {}", packages.len(), tree.name);
    with_fresh_lists(&what, &options, &mut download)?;
    merge_usr(&root)?;
    for archive in archives_in(&archives)? {
        extract(&archive, &root)?;
    }
    std::fs::rename(&root, &folder).with_context(|| format!("rename to {}", folder.display()))?;
    std::fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    Ok(folder)
}

/// A program of a tree, run with the tree's own loader and libraries, whatever the machine has.
pub fn program(tree: &Path, path: &str, name: &str) -> Command {
    let mut command = Command::new(tree.join(LOADER));
    let libraries = LIBRARIES.map(|folder| tree.join(folder).display().to_string()).join(":");
    command.args(["--library-path", &libraries, "--argv0", name]).arg(tree.join(path));
    command
}

/// What `apt-get` needs to look at the tree's suites as if nothing were installed.
fn tree_options(tree: &Tree<'_>) -> Result<Vec<String>> {
    let mut options = if tree.suites.is_empty() { Vec::new() } else { suite_options(tree.suites)? };
    options.extend(["-o".into(), "Dir::State::status=/dev/null".into()]);
    Ok(options)
}

fn resolve(tree: &Tree<'_>, options: &[String]) -> Result<Vec<String>> {
    if !tree.dependencies {
        return Ok(tree.packages.iter().map(|name| (*name).to_owned()).collect());
    }
    let mut simulate = Command::new("apt-get");
    simulate.args(options).args(["--simulate", "--no-install-recommends", "install"]).args(tree.packages);
    let what = format!("looking up what {} depends on", tree.name);
    let planned = with_fresh_lists(&what, options, &mut simulate)?;
    let names: Vec<String> = planned.lines().filter_map(installed).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "apt-get plans nothing for {}", tree.name);
    Ok(names)
}

/// Runs `apt-get`, and once more with new lists when that failed: those here may be missing, or older than what the mirror has.
fn with_fresh_lists(what: &str, options: &[String], apt_get: &mut Command) -> Result<String> {
    if let Ok(done) = process::run_quietly(what, apt_get) {
        return Ok(done);
    }
    let mut update = Command::new("apt-get");
    process::run_quietly("apt-get update", update.args(options).args(["update", "-q"]))?;
    process::run_quietly(what, apt_get)
}

/// The package that a line of a simulation installs.
fn installed(line: &str) -> Option<&str> {
    line.strip_prefix("Inst ")?.split(' ').next()
}

/// The direct dependencies of `package` in a suite that are packages themselves.
pub fn dependencies(package: &str, suite: &str) -> Result<Vec<String>> {
    let mut query = Command::new("apt-cache");
    query.args(suite_options(&[suite])?).args(["depends", "--no-recommends", "--no-suggests", package]);
    let listed = process::run_quietly(&format!("looking up {package}"), &mut query)?;
    let names = listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names.filter(|name| !name.starts_with('<')).map(str::to_owned).collect())
}

/// The layout of every current release: packages that still name `/bin` reach `/usr/bin`.
fn merge_usr(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let folder = root.join("usr").join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        symlink(Path::new("usr").join(name), root.join(name)).context("merge /usr")?;
    }
    Ok(())
}

/// Unlike `dpkg-deb -x` this follows the links of a merged /usr.
fn extract(archive: &Path, root: &Path) -> Result<()> {
    let mut unpack =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(archive).stdout(Stdio::piped()).spawn()?;
    let stream = unpack.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    let extracted = tar.args(["-x", "--keep-directory-symlink", "-C"]).arg(root).stdin(stream).status();
    let unpacked = unpack.wait().context("wait for dpkg-deb")?;
    let extracted = extracted.context("start tar")?;
    ensure!(unpacked.success() && extracted.success(), "unpack {}: {extracted}", archive.display());
    Ok(())
}

fn archives_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    Ok(files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

/// Unpacks `package` and gives the folder that now holds its files. A second call finds them there.
pub fn unpack(package: &Package<'_>) -> Result<PathBuf> {
    let tag = package.version.or(package.suite).unwrap_or("stable").replace([':', '+', '~', '/'], "-");
    let folder = process::target().join("debian").join(format!("{}-{tag}", package.name));
    if folder.is_dir() {
        return Ok(folder);
    }
    let partial = folder.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    std::fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    let archive = download(package, &partial)?;
    let root = partial.join("root");
    process::run_quietly(
        &format!("unpacking {}", package.name),
        Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&root),
    )?;
    std::fs::rename(&root, &folder).with_context(|| format!("rename to {}", folder.display()))?;
    std::fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    Ok(folder)
}

fn download(package: &Package<'_>, into: &Path) -> Result<PathBuf> {
    let options = package.suite.map_or(Ok(Vec::new()), |suite| suite_options(&[suite]))?;
    let wanted = match package.version {
        Some(version) => format!("{}={version}", package.name),
        None => package.name.to_owned(),
    };
    let mut command = Command::new("apt-get");
    command.args(&options).arg("download").arg(&wanted).current_dir(into);
    with_fresh_lists(&format!("downloading {wanted}"), &options, &mut command)?;
    archives_in(into)?.pop().with_context(|| format!("apt-get downloaded no archive for {wanted}"))
}

/// An apt configuration that knows `suites` alone and prefers the last. Its lists are fetched at first.
fn suite_options(suites: &[&str]) -> Result<Vec<String>> {
    let named = suites.join("-");
    let folder = process::target().join("debian").join(format!("apt-{named}"));
    let lists = folder.join("lists");
    let sources = folder.join("sources.list");
    let mut options = vec![
        "-o".into(),
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "-o".into(),
        "Dir::Etc::sourceparts=/dev/null".into(),
        "-o".into(),
        format!("Dir::State::Lists={}", lists.display()),
        "-o".into(),
        format!("Dir::Cache={}", folder.join("cache").display()),
        "-o".into(),
        "APT::Sandbox::User=root".into(),
    ];
    if let Some(preferred) = suites.last() {
        options.extend(["-o".into(), format!("APT::Default-Release={preferred}")]);
    }
    let ready = folder.join("ready");
    if !ready.exists() {
        std::fs::create_dir_all(lists.join("partial"))?;
        std::fs::create_dir_all(folder.join("cache/archives/partial"))?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let mirror = mirror()?;
        let lines: String =
            suites.iter().map(|suite| format!("deb [signed-by={keyring}] {mirror} {suite} main\n")).collect();
        std::fs::write(&sources, lines)?;
        process::run_quietly(
            &format!("reading the package lists of {named}"),
            Command::new("apt-get").args(&options).arg("update"),
        )?;
        std::fs::write(&ready, "")?;
    }
    Ok(options)
}

/// The Debian mirror that this machine uses for its own release.
fn mirror() -> Result<String> {
    let listed = process::probe(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(SUITE) $(REPO_URI)",
    ]))
    .context("`apt-get indextargets` failed: this needs a Debian machine")?;
    let uri = listed.lines().filter_map(|line| line.strip_prefix("Debian ")).find_map(|line| {
        let (suite, uri) = line.split_once(' ')?;
        (!suite.contains("security")).then_some(uri)
    });
    match uri {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!("no Debian mirror is configured: run `apt-get update` first"),
    }
}
