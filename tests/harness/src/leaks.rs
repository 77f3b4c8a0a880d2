//! The leak check: what exists on a host before and after, and the difference.
//!
//! Two scopes. A private host holds nothing but its test, so everything counts. A developer's machine is busy with
//! other things, so only kernel objects that others rarely make, and whatever carries our name, count.

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

    /// What Orlop could leave on a machine that it shares with others.
    pub fn of_machine() -> Result<Self> {
        let mut found = BTreeSet::new();
        let hierarchies = linux::machine::hierarchies()?;
        found.extend(read::processes(|command| command.contains("orlop"))?);
        found.extend(read::network()?);
        found.extend(read::sysctls(Path::new("/proc/sys/net")));
        found.extend(read::rules());
        found.extend(read::mounts()?);
        found.extend(read::cgroups(&hierarchies).into_iter().filter(|line| line.contains("orlop")));
        found.extend(read::bpf_objects());
        let ours = |path: &Path| {
            let path = path.to_string_lossy();
            ["orlop", "/cni", "kube"].iter().any(|word| path.contains(word))
        };
        for folder in ["/run", "/etc", "/var/lib", "/var/log"] {
            found.extend(read::files(Path::new(folder), ours));
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
}
