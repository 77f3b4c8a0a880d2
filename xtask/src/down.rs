//! `cargo xtask down`: ends the cluster that `up` started and takes away everything it made, whatever is left of it.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::up::{owner, state};
use crate::{process, up};

pub fn run() -> Result<()> {
    let folder = up::folder();
    if !folder.exists() && !state::is_here()? {
        println!("down: no cluster is here");
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "`down` removes namespaces and cgroups: run it as root");
    let _turn = owner::take_turn()?;
    owner::find()?;
    let bar = process::spinner("stopping the cluster");
    state::clear()?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    bar.finish_and_clear();
    println!("down: nothing is left");
    Ok(())
}
