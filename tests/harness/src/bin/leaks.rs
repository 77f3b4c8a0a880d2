//! The leak check of a whole machine, for what starts and stops outside of a test: `leaks save FILE`, `leaks compare FILE`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use harness::leaks::Snapshot;

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
            std::fs::write(file, Snapshot::of_machine()?.to_text())
                .with_context(|| format!("write {file}"))?;
            Ok(true)
        }
        [verb, file] if verb == "compare" => {
            let before = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
            let left = Snapshot::from_text(&before).leaks(&Snapshot::of_machine()?);
            for leak in &left {
                eprintln!("left behind: {leak}");
            }
            Ok(left.is_empty())
        }
        _ => bail!("usage: leaks save FILE | leaks compare FILE"),
    }
}
