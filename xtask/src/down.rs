//! `cargo xtask down`: ends the cluster that `up` started and takes away everything it made.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::up::state::State;
use crate::{process, up};

pub fn run() -> Result<()> {
    let folder = up::folder();
    if !folder.exists() {
        println!("down: no cluster is here");
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "`down` removes namespaces and cgroups: run it as root");
    let bar = process::spinner("stopping the cluster");
    if let Some(state) = State::read()? {
        state.kill()?;
        state.clear_remains()?;
    }
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    bar.finish_and_clear();
    println!("down: nothing is left");
    Ok(())
}
