//! One cluster per machine: whose it is, and that one `up` or `down` works at a time.
//!
//! The owner is the `target` folder of a checkout. It is read from the command line of a machine's pid 1, else from the alias of
//! the host's link, never from a file: both go away with what they describe.

use std::collections::BTreeSet;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{network, state};
use crate::{machine, process};

#[cfg(test)]
mod tests;

/// Held by whoever changes the cluster. The name lives in the host's network namespace and goes away with its process.
pub struct Turn {
    _name: UnixListener,
}

/// Takes the turn, or says that somebody has it.
pub fn take_turn() -> Result<Turn> {
    let address = SocketAddr::from_abstract_name("orlop-up").context("name the lock")?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Turn { _name: listener }),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "another `cargo xtask up` or `down` is at work on this machine: try again when it has ended"
            )
        }
        Err(error) => Err(error).context("take the lock"),
    }
}

/// What runs.
pub struct Found {
    /// The names of the machines whose pid 1 lives.
    pub machines: BTreeSet<String>,
}

/// Looks for a cluster and refuses to go on when it is another checkout's, as long as that exists.
pub fn find() -> Result<Found> {
    let inits: Vec<PathBuf> =
        state::leaf()?.processes().into_iter().filter_map(|pid| init_folder(&arguments(pid))).collect();
    let owner = inits.first().cloned().or_else(network::link_owner);
    if let Some(owner) = owner
        && !owner.starts_with(own_target())
        && owner.exists()
    {
        bail!(
            "the cluster of another checkout ({}) is on this machine: run `cargo xtask down` there first",
            owner.display()
        );
    }
    let name = |folder: &PathBuf| Some(folder.file_name()?.to_str()?.to_owned());
    Ok(Found { machines: inits.iter().filter_map(name).collect() })
}

/// This checkout's `target`, without symbolic links: what a machine's pid 1 and the link are told.
pub fn own_target() -> PathBuf {
    let target = process::target();
    target.canonicalize().unwrap_or(target)
}

fn arguments(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The node's folder in the command line of a machine's pid 1.
fn init_folder(arguments: &[String]) -> Option<PathBuf> {
    let [_, first, second, folder, ..] = arguments else { return None };
    (machine::INIT_ARGUMENTS == [first, second]).then(|| Path::new(folder).to_path_buf())
}
