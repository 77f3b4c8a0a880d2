//! Single Debian packages unpacked below `target/`, never installed: peers, test daemons, sources.
//!
//! The machine's own package configuration stays as it is: a suite that the machine does not use gets an apt
//! configuration of its own, with its own lists. The mirror is the one that the machine is configured for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Which package, from where.
pub struct Package<'a> {
    pub name: &'a str,
    /// `None` takes what the suite offers.
    pub version: Option<&'a str>,
    /// `None` is the machine's own release.
    pub suite: Option<&'a str>,
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
    let mut command = Command::new("apt-get");
    if let Some(suite) = package.suite {
        command.args(suite_options(suite)?);
    }
    let wanted = match package.version {
        Some(version) => format!("{}={version}", package.name),
        None => package.name.to_owned(),
    };
    command.arg("download").arg(&wanted).current_dir(into);
    let what = format!("downloading {wanted}");
    match process::run_quietly(&what, &mut command) {
        // The machine's own lists may be missing or old; a suite's were fetched just now.
        Err(_) if package.suite.is_none() => {
            process::run_quietly("apt-get update", Command::new("apt-get").args(["update", "-q"]))?;
            process::run_quietly(&what, &mut command)?;
        }
        downloaded => drop(downloaded?),
    }
    let mut archives = std::fs::read_dir(into)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    archives
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded no archive for {wanted}"))
}

/// An apt configuration that knows `suite` alone. Its lists are fetched once.
fn suite_options(suite: &str) -> Result<Vec<String>> {
    let folder = process::target().join("debian").join(format!("apt-{suite}"));
    let lists = folder.join("lists");
    let sources = folder.join("sources.list");
    let options = vec![
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
    let ready = folder.join("ready");
    if !ready.exists() {
        std::fs::create_dir_all(lists.join("partial"))?;
        std::fs::create_dir_all(folder.join("cache/archives/partial"))?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        std::fs::write(&sources, format!("deb [signed-by={keyring}] {} {suite} main\n", mirror()?))?;
        process::run_quietly(
            &format!("reading the package list of {suite}"),
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
