//! What there is of a cluster: its options, as `up` wrote them down, and what the kernel still has of it.
//!
//! The file is a hint about the options and nothing else. Whether a cluster runs, whose it is and what is left of it is read from
//! the kernel (the cgroup [`CGROUP`], the processes in it, the host's link and rules), so that `down` works whenever `up` was
//! killed and whatever became of `target/up`.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use linux::machine::{self, Leaf};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wanted::Wanted;
use super::{egress, folder, network};

/// The cgroup of all machines, in every hierarchy.
pub const CGROUP: &str = "/orlop-up";
/// How long the kernel may take to end a machine's processes.
const END_LIMIT: Duration = Duration::from_secs(20);

fn file() -> PathBuf {
    folder().join("state.json")
}

/// The options that the last `up` wrote down.
pub fn read() -> Result<Option<Wanted>> {
    match fs::read(file()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("read target/up/state.json"),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .context("parse target/up/state.json: run `cargo xtask down`, which does not need it"),
    }
}

pub fn write(wanted: &Wanted) -> Result<()> {
    fs::create_dir_all(folder()).context("create target/up")?;
    let temporary = file().with_extension("new");
    fs::write(&temporary, serde_json::to_vec(wanted)?).context("write target/up/state.json")?;
    fs::rename(&temporary, file()).context("replace target/up/state.json")
}

/// The cgroups of all machines.
pub fn leaf() -> Result<Leaf> {
    Ok(Leaf::named(machine::hierarchies()?, CGROUP))
}

/// The cgroups of one machine, or of another part of the cluster.
pub fn leaf_of(name: &str) -> Result<Leaf> {
    Ok(Leaf::named(machine::hierarchies()?, cgroup_of(name)))
}

/// The path of [`leaf_of`], from the root of every hierarchy.
pub fn cgroup_of(name: &str) -> String {
    format!("{CGROUP}/{name}")
}

/// Whether the kernel has anything of a cluster, running or not.
pub fn is_here() -> Result<bool> {
    Ok(network::has_link() || leaf()?.exists() || egress::is_here()?)
}

/// Ends every machine and removes what is left of them: processes, rules, cgroups, links, namespaces. What cannot be removed does not
/// keep the rest, but the link stays then, which says whose all this is.
pub fn clear() -> Result<()> {
    let leaf = leaf()?;
    let (ended, closed) = (end(&leaf), egress::close());
    let removed = leaf.remove();
    ended.and(closed)?;
    removed?;
    network::remove()
}

/// Ends what is left of one machine, or of another part of the cluster.
pub fn clear_part(name: &str) -> Result<()> {
    let leaf = leaf_of(name)?;
    end(&leaf)?;
    Ok(leaf.remove()?)
}

fn end(leaf: &Leaf) -> Result<()> {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let left = leaf.processes();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes of the cluster do not end: {left:?}");
        }
        for pid in left {
            // Its pid 1 takes the rest of a machine with it.
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).with_context(|| format!("end process {pid} of the cluster")),
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
