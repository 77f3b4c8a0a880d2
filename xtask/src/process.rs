//! Child processes of xtask: run one, show that it is running, and turn its failure into one readable error.
//!
//! Paths of the checkout are found here too. Nothing in this file knows what a command is for.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How many lines of a failed command's output are repeated in its error.
const ERROR_LINES: usize = 40;

/// A failure that the user has already read: nothing is left to say but the exit code.
#[derive(Debug)]
pub struct Told;

impl std::fmt::Display for Told {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("failed, as said above")
    }
}

impl std::error::Error for Told {}

/// The root of the checkout: the folder that holds the workspace's `Cargo.toml`.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lives one level below the workspace root")
}

/// The folder for everything that we build or download.
pub fn target() -> PathBuf {
    root().join("target")
}

/// A `cargo` of the toolchain that runs us, which finds what `cargo install` installed.
pub fn cargo() -> Command {
    let mut command = tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A program that `setup` may have installed with cargo: looked for in `PATH`, then where cargo puts executables.
pub fn tool(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(cargo_bin());
    // A folder that cannot stand in PATH is left out by leaving PATH as it is.
    if let Ok(path) = std::env::join_paths(folders) {
        command.env("PATH", path);
    }
    command
}

/// Where `cargo install` puts executables.
fn cargo_bin() -> Option<PathBuf> {
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    home("CARGO_HOME").or_else(|| home("HOME").map(|home| home.join(".cargo"))).map(|home| home.join("bin"))
}

/// Runs `command` with its output shown as it comes.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", name(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", describe(command));
    }
    Ok(())
}

/// Runs `command` quietly behind a spinner that says `what`; its output is shown only when it fails.
pub fn run_quietly(what: &str, command: &mut Command) -> Result<String> {
    let spinner = spinner(what);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", name(command)))?;
    spinner.finish_and_clear();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed: {}\n{}",
            describe(command),
            output.status,
            last_lines(&format!("{stdout}{stderr}"))
        );
    }
    Ok(stdout)
}

/// What `command` prints, or `None` if it cannot be started or fails.
pub fn probe(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first executable called `name` in `PATH`.
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// An executable that `setup` may have installed with cargo: in `PATH`, else where cargo puts executables.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    find_in_path(name).or_else(|| cargo_bin().map(|folder| folder.join(name)).filter(|file| file.is_file()))
}

/// A spinner with a running clock. On a pipe it draws nothing, so the step is announced as a line instead.
pub fn spinner(what: &str) -> ProgressBar {
    if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        eprintln!("{what}");
    }
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style).with_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn describe(command: &Command) -> String {
    let arguments = command.get_args().collect::<Vec<_>>().join(OsStr::new(" "));
    format!("`{} {}`", name(command), arguments.to_string_lossy())
}

fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(ERROR_LINES)..].join("\n")
}
