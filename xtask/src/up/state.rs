//! What there is of a cluster: its options, as `up` wrote them down, and what the kernel still has of it.
//!
//! The file is a hint about the options and nothing else. Whether a cluster runs, whose it is and what is left of it is read from
//! the kernel (the cgroup [`CGROUP`], the processes in it, the host's link), so that `down` works whenever `up` was killed and
//! whatever became of `target/up`.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use linux::machine::{self, Leaf};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{folder, network};

/// The name of the one node.
pub const NODE: &str = "node-1";
/// The cgroup of all machines, in every hierarchy.
pub const CGROUP: &str = "/orlop-up";
/// How long the kernel may take to end a machine's processes.
const END_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    pub debug: bool,
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.debug { "--debug" } else { "none" })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub options: Options,
}

impl State {
    pub fn wanted(debug: bool) -> Self {
        Self { options: Options { debug } }
    }

    fn path() -> PathBuf {
        folder().join("state.json")
    }

    pub fn read() -> Result<Option<Self>> {
        match fs::read(Self::path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("read target/up/state.json"),
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).context("parse target/up/state.json"),
        }
    }

    pub fn write(&self) -> Result<()> {
        let temporary = Self::path().with_extension("new");
        fs::write(&temporary, serde_json::to_vec(self)?).context("write target/up/state.json")?;
        fs::rename(&temporary, Self::path()).context("replace target/up/state.json")
    }
}

/// The cgroups of all machines.
pub fn leaf() -> Result<Leaf> {
    Ok(Leaf::named(machine::hierarchies()?, CGROUP))
}

/// Whether the kernel has anything of a cluster, running or not.
pub fn is_here() -> Result<bool> {
    Ok(network::has_link() || leaf()?.exists())
}

/// Ends every machine and removes what is left of them: processes, links, namespaces, cgroups.
pub fn clear() -> Result<()> {
    let leaf = leaf()?;
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let left = leaf.processes();
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!("processes of the machine do not end: {left:?}");
        }
        for pid in left {
            // Its pid 1 takes the rest of a machine with it.
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).with_context(|| format!("end process {pid} of the machine")),
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    network::remove()?;
    Ok(leaf.remove()?)
}
