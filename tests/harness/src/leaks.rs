//! The leak check: what exists on a host before and after, and the difference.
//!
//! Two scopes. A private host holds nothing but its test, so everything counts. A developer's machine is busy with
//! other things, other checkouts of this project among them, so there [`machine`] picks what carries our name, our addresses or
//! our executables, and the settings and packet rules that a node could have changed for everybody.

mod machine;
mod read;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use linux::machine::Hierarchy;

#[cfg(test)]
mod tests;

/// Everything found on a host at one moment, one line each, starting with its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Everything in this private host.
    pub fn of_private_host(hierarchies: &[Hierarchy]) -> Result<Self> {
        let mut found = BTreeSet::new();
        found.extend(read::processes(|_| true)?);
        found.extend(read::network()?);
        found.extend(read::mounts()?);
        found.extend(read::cgroups(hierarchies));
        found.extend(read::pins(Path::new("/sys/fs/bpf")));
        for folder in ["/run", "/etc", "/var/lib", "/var/log"] {
            found.extend(read::files(Path::new(folder), |path| !path.starts_with("/run/private-host")));
        }
        Ok(Self(found))
    }

    /// Everything in this machine of its own, as `up` makes one for each node: as of a private host, and its packet rules.
    pub fn of_node(hierarchies: &[Hierarchy]) -> Result<Self> {
        let mut found = Self::of_private_host(hierarchies)?;
        found.0.extend(read::rules());
        Ok(found)
    }

    /// What Orlop could leave on a machine that it shares with others. `target` is the folder that our executables are below.
    pub fn of_machine(target: &Path) -> Result<Self> {
        let hierarchies = linux::machine::hierarchies()?;
        let mut found = BTreeSet::new();
        found.extend(read::processes(|process| machine::is_our_process(process, target))?);
        found.extend(read::network()?.into_iter().filter(|line| machine::is_our_network(line)));
        found.extend(read::sysctls(Path::new("/proc/sys/net"), machine::is_watched_sysctl));
        for setting in machine::SHARED_SETTINGS {
            found.extend(read::sysctls(&Path::new("/proc/sys").join(setting), |_| true));
        }
        found.extend(read::rules());
        found.extend(read::mounts()?.into_iter().filter(|line| machine::is_our_mount(line, target)));
        found.extend(read::cgroups(&hierarchies).into_iter().filter(|line| machine::is_our_cgroup(line)));
        found.extend(read::bpf_objects().into_iter().filter(|line| machine::is_ours(line)));
        for folder in ["/run", "/etc", "/var/lib", "/var/log"] {
            found.extend(read::files(Path::new(folder), machine::is_our_file));
        }
        for folder in ["/tmp", "/var/tmp", "/dev/shm"] {
            found.extend(read::children(Path::new(folder)).into_iter().filter(|line| machine::is_ours(line)));
        }
        Ok(Self(found))
    }

    /// One line for each thing.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The snapshot that [`Self::to_text`] wrote.
    pub fn from_text(text: &str) -> Self {
        Self(text.lines().map(str::to_owned).collect())
    }

    /// What `after` has that `self` did not have, and what is missing.
    pub fn leaks(&self, after: &Self) -> Vec<String> {
        let added = after.0.difference(&self.0).map(|line| format!("+ {line}"));
        let removed = self.0.difference(&after.0).map(|line| format!("- {line}"));
        added.chain(removed).collect()
    }

    /// As [`Self::leaks`], for a machine whose other users may meanwhile have ended what was theirs.
    pub fn leaks_of_machine(&self, after: &Self) -> Vec<String> {
        let differences = self.leaks(after);
        differences.iter().filter(|line| machine::counts(line, &differences)).cloned().collect()
    }
}
