//! What `up` wrote down about the cluster: its options and the machine's pid 1.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{folder, network, node_folder};
use crate::machine::Machine;

/// The name of the one node.
pub const NODE: &str = "node-1";
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
    /// Pid 1 of the machine, seen from the host, with its start time: pids are used again.
    init: Option<(u32, u64)>,
}

impl State {
    pub fn wanted(debug: bool) -> Self {
        Self { options: Options { debug }, init: None }
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

    pub fn with_pid(mut self, pid: u32) -> Result<Self> {
        let started =
            start_time(pid).with_context(|| format!("the machine's pid 1 ({pid}) ended at once"))?;
        self.init = Some((pid, started));
        Ok(self)
    }

    pub fn is_alive(&self) -> bool {
        self.init.is_some_and(|(pid, started)| start_time(pid) == Some(started))
    }

    /// Ends the machine: killing its pid 1 ends everything in its pid namespace.
    pub fn kill(&self) -> Result<()> {
        let Some((pid, _)) = self.init.filter(|_| self.is_alive()) else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("end the machine")
    }

    /// Removes what a dead machine left in the kernel: its links, namespaces and cgroups.
    pub fn clear_remains(&self) -> Result<()> {
        network::remove()?;
        if !node_folder().join("machine.json").exists() {
            return Ok(());
        }
        let leaf = Machine::read(&node_folder())?.leaf()?;
        let deadline = Instant::now() + END_LIMIT;
        while !leaf.processes().is_empty() {
            if Instant::now() > deadline {
                bail!("processes of the machine do not end: {:?}", leaf.processes());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        leaf.remove()?;
        let parent = linux::machine::Leaf::named(linux::machine::hierarchies()?, "orlop-up");
        Ok(parent.remove()?)
    }
}

/// When a process started, in clock ticks since boot; `None` for a dead one.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}
