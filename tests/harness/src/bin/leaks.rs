//! The leak check of a whole machine, for what starts and stops outside of a test: `leaks save FILE`, `leaks compare FILE`.
//!
//! Some things go away a little after what held them (network namespaces, BPF objects): `compare` looks again until nothing is
//! left or [`LIMIT`] is over. `leaks list` prints what a node has, called inside of its namespaces.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use harness::leaks::Snapshot;

/// How long the kernel may take to free what nobody holds.
const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("leaks: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether nothing was left.
fn run(arguments: &[String]) -> Result<bool> {
    match arguments {
        [verb, file] if verb == "save" => {
            std::fs::write(file, Snapshot::of_machine(&target()?)?.to_text())
                .with_context(|| format!("write {file}"))?;
            Ok(true)
        }
        [verb, file] if verb == "compare" => {
            let before = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
            let left = wait_for_none(&Snapshot::from_text(&before))?;
            for leak in &left {
                eprintln!("left behind: {leak}");
            }
            Ok(left.is_empty())
        }
        [verb] if verb == "list" => {
            print!("{}", Snapshot::of_node(&linux::machine::hierarchies()?)?.to_text());
            Ok(true)
        }
        _ => bail!("usage: leaks save FILE | leaks compare FILE | leaks list"),
    }
}

/// What is left at the end.
fn wait_for_none(before: &Snapshot) -> Result<Vec<String>> {
    let target = target()?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = before.leaks_of_machine(&Snapshot::of_machine(&target)?);
        if left.is_empty() || Instant::now() >= deadline {
            return Ok(left);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The folder that this checkout builds into; this executable is at `target/debug/leaks`.
fn target() -> Result<PathBuf> {
    let me = std::env::current_exe().context("find own executable")?;
    me.ancestors().nth(2).map(PathBuf::from).context("the leak check runs outside of a target folder")
}
