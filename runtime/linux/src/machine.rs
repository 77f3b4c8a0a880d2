//! A machine of its own inside the host: namespaces, mounts and a cgroup in every hierarchy.
//!
//! Used for a node that `xtask up` starts and for the private host of a test. Order of use, all by one
//! single-threaded process: [`hierarchies`], [`Leaf::create`], [`Leaf::join`], [`unshare`], [`Leaf::join`] of a leaf below
//! it, then start the child that is to be pid 1, which calls [`mount_system`] and [`shadow`]. The leaf becomes the machine's
//! cgroup root and keeps no process of its own: v2 hands controllers down only from cgroups without processes. The host's
//! mounts, links and directories are never changed; what remains on the host is the cgroup leaf, which [`Leaf::remove`] takes
//! away, and on pure v2 the controllers that were enabled on the way to it, which others may use by then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;

#[cfg(test)]
mod tests;

/// The cgroup of pid 1 below the machine's cgroup root.
pub const INIT: &str = "init";

/// Controllers that a machine gets on pure v2, where its host has them.
const CONTROLLERS: &[&str] = &["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// What went wrong while making or leaving a machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("unshare namespaces: this needs root")]
    Unshare { source: io::Error },
    #[error("no cgroup hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")]
    NoCgroups,
}

type Result<T> = std::result::Result<T, Error>;

/// One mounted cgroup hierarchy and where this process is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount_point: PathBuf,
    pub version: Version,
    /// This process's cgroup, relative to the hierarchy's root; starts with `/`.
    pub current: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// The mount options that name the hierarchy, such as `memory` or `none,name=systemd`.
    V1(String),
    V2,
}

impl Hierarchy {
    fn folder(&self, cgroup: &Path) -> PathBuf {
        let (base, rest) = self.split(cgroup);
        base.join(rest)
    }

    /// The folder that `cgroup` counts from and the way down from there. An absolute path counts from the hierarchy's root, a
    /// relative one from this process's own cgroup.
    fn split<'a>(&self, cgroup: &'a Path) -> (PathBuf, &'a Path) {
        match cgroup.strip_prefix("/") {
            Ok(rest) => (self.mount_point.clone(), rest),
            Err(_) => {
                (self.mount_point.join(self.current.strip_prefix("/").unwrap_or(&self.current)), cgroup)
            }
        }
    }
}

/// Whether v2 is all there is, so that controllers are handed down level by level.
pub fn is_pure_v2(hierarchies: &[Hierarchy]) -> bool {
    hierarchies.iter().all(|hierarchy| hierarchy.version == Version::V2)
}

/// Every hierarchy that this process sees, from its mount table and its own cgroup file.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let read = |path: &str| {
        fs::read_to_string(path).map_err(|source| Error::Io { operation: "read", path: path.into(), source })
    };
    let found = parse_hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    if found.is_empty() { Err(Error::NoCgroups) } else { Ok(found) }
}

fn parse_hierarchies(mountinfo: &str, cgroup: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let mut mount = mount.split(' ').skip(3);
        let (Some(root), Some(mount_point)) = (mount.next(), mount.next()) else { continue };
        let mut filesystem = filesystem.split(' ');
        let (Some(kind), Some(options)) = (filesystem.next(), filesystem.nth(1)) else { continue };
        let version = match kind {
            "cgroup2" => Version::V2,
            "cgroup" => Version::V1(v1_options(options)),
            _ => continue,
        };
        if found.iter().any(|other| other.version == version) {
            continue;
        }
        let Some(current) = own_cgroup(cgroup, &version) else { continue };
        // A container may see the host's paths but only its own part of the tree.
        let current =
            current.strip_prefix(root).map_or_else(|_| current.clone(), |rest| Path::new("/").join(rest));
        found.push(Hierarchy { mount_point: mount_point.into(), version, current });
    }
    found
}

/// Keeps the options that select a hierarchy and drops the generic ones.
fn v1_options(options: &str) -> String {
    const GENERIC: &[&str] = &["rw", "ro", "xattr", "clone_children", "noprefix"];
    let named: Vec<&str> = options
        .split(',')
        .filter(|option| !GENERIC.contains(option) && !option.starts_with("release_agent="))
        .collect();
    match named.as_slice() {
        [name] if name.starts_with("name=") => format!("none,{name}"),
        _ => named.join(","),
    }
}

fn own_cgroup(cgroup: &str, version: &Version) -> Option<PathBuf> {
    cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let matches = match version {
            Version::V2 => controllers.is_empty(),
            Version::V1(options) => options.trim_start_matches("none,") == controllers,
        };
        matches.then(|| PathBuf::from(path))
    })
}

/// One cgroup of the same name in every hierarchy: below its root where the name begins with `/`, otherwise below this
/// process's own.
#[derive(Debug, Clone)]
pub struct Leaf {
    hierarchies: Vec<Hierarchy>,
    name: PathBuf,
}

impl Leaf {
    /// Describes the leaf without making it: for removing one that an earlier process made.
    pub fn named(hierarchies: Vec<Hierarchy>, name: impl Into<PathBuf>) -> Self {
        Self { hierarchies, name: name.into() }
    }

    /// Makes the folders. Existing ones are taken over.
    pub fn create(hierarchies: Vec<Hierarchy>, name: impl Into<PathBuf>) -> Result<Self> {
        let leaf = Self::named(hierarchies, name);
        for hierarchy in &leaf.hierarchies {
            let folder = hierarchy.folder(&leaf.name);
            fs::create_dir_all(&folder).map_err(|source| Error::Io {
                operation: "create cgroup",
                path: folder.clone(),
                source,
            })?;
            let (base, rest) = hierarchy.split(&leaf.name);
            if hierarchy.version != Version::V2 {
                inherit_cpuset(&base, rest)?;
            }
        }
        Ok(leaf)
    }

    /// Hands controllers down to the leaf on pure v2; beside v1 the unified tree is for grouping alone and stays as it is.
    /// Called when no process is left in the cgroups above: a cgroup that hands controllers down takes no process.
    pub fn enable_controllers(&self) {
        for hierarchy in self.hierarchies.iter().filter(|_| is_pure_v2(&self.hierarchies)) {
            let (base, rest) = hierarchy.split(&self.name);
            enable_controllers(&base, rest);
        }
    }

    /// Makes a leaf below this one.
    pub fn create_below(&self, name: &str) -> Result<Self> {
        Self::create(self.hierarchies.clone(), self.name.join(name))
    }

    /// Whether it is there in any hierarchy.
    pub fn exists(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.folder(&self.name).exists())
    }

    /// Moves the calling thread, which must be its process's only one, into the leaf of every hierarchy.
    pub fn join(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            // A thread that writes itself into v1 `tasks` skips the global lock that `cgroup.procs` takes.
            let file = if hierarchy.version == Version::V2 { "cgroup.procs" } else { "tasks" };
            write(&hierarchy.folder(&self.name).join(file), "0")?;
        }
        Ok(())
    }

    /// Names of the cgroups directly below it, in any hierarchy.
    pub fn children(&self) -> Vec<String> {
        let mut found = Vec::new();
        for hierarchy in &self.hierarchies {
            for entry in fs::read_dir(hierarchy.folder(&self.name)).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.extend(entry.file_name().into_string());
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// Every process in the leaf or below it, by pid.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = Vec::new();
        for hierarchy in &self.hierarchies {
            collect_pids(&hierarchy.folder(&self.name), &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The cgroups that exist below the leaf, one line each.
    pub fn below(&self) -> Vec<String> {
        let mut found = Vec::new();
        for hierarchy in &self.hierarchies {
            let root = hierarchy.folder(&self.name);
            found.extend(folders_below(&root).iter().map(|folder| folder.display().to_string()));
        }
        found.sort();
        found
    }

    /// Removes the leaf and everything below it; a leaf that is gone already is fine. Collects the first error but
    /// goes on to the end.
    pub fn remove(&self) -> Result<()> {
        let mut first = Ok(());
        for hierarchy in &self.hierarchies {
            let root = hierarchy.folder(&self.name);
            for folder in folders_below(&root).iter().rev().chain([&root]) {
                match fs::remove_dir(folder) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound && first.is_ok() => {
                        first = Err(Error::Io { operation: "remove cgroup", path: folder.clone(), source });
                    }
                    _ => {}
                }
            }
        }
        first
    }
}

/// Hands controllers down to a cgroup of v2, level by level. A level that refuses has processes of its own: the limit that
/// then cannot be set is reported where it is set.
fn enable_controllers(base: &Path, cgroup: &Path) {
    let mut level = base.to_path_buf();
    for part in cgroup {
        let listed = |file: &str| fs::read_to_string(level.join(file)).unwrap_or_default();
        for controller in
            missing_controllers(&listed("cgroup.controllers"), &listed("cgroup.subtree_control"))
        {
            let _ = write(&level.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
        level.push(part);
    }
}

/// Which controllers a level has and does not hand down yet.
fn missing_controllers(available: &str, enabled: &str) -> Vec<&'static str> {
    let listed = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
    CONTROLLERS.iter().copied().filter(|name| listed(available, name) && !listed(enabled, name)).collect()
}

/// A v1 cpuset takes no task until it has processors and memory nodes: copy the parent's, level by level.
fn inherit_cpuset(base: &Path, name: &Path) -> Result<()> {
    if !base.join("cpuset.cpus").exists() {
        return Ok(());
    }
    let mut parent = base.to_path_buf();
    for part in name {
        let child = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let path = parent.join(file);
            let value =
                fs::read_to_string(&path).map_err(|source| Error::Io { operation: "read", path, source })?;
            if !value.trim().is_empty() {
                write(&child.join(file), value.trim())?;
            }
        }
        parent = child;
    }
    Ok(())
}

fn collect_pids(folder: &Path, pids: &mut Vec<i32>) {
    for cgroup in folders_below(folder).iter().map(PathBuf::as_path).chain([folder]) {
        let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        pids.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
}

/// All folders below `root`, parents before children.
fn folders_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                open.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Leaves the host's namespaces, all but the mount namespace: so the caller still reaches the host's cgroups. The next
/// child becomes pid 1 of the new pid namespace and leaves the mount namespace in [`mount_system`].
pub fn unshare() -> Result<()> {
    let flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::unshare(flags).map_err(|errno| Error::Unshare { source: errno.into() })
}

/// Called by pid 1: takes a mount namespace of its own and mounts what belongs to the new namespaces: proc, sysfs, the cgroup
/// hierarchies as seen from the leaf, a BPF file system, and message queues.
pub fn mount_system(hierarchies: &[Hierarchy]) -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| Error::Unshare { source: errno.into() })?;
    mount_at("", "/", "", MsFlags::MS_REC | MsFlags::MS_PRIVATE, "")?;
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at("proc", "/proc", "proc", strict, "")?;
    // Not over the host's: its control groups would stay in the mount table under ours, and who reads the table would find both.
    detach("/sys")?;
    mount_at("sysfs", "/sys", "sysfs", strict, "")?;
    mount_at("bpf", "/sys/fs/bpf", "bpf", strict, "mode=700")?;
    if Path::new("/dev/mqueue").is_dir() {
        mount_at("mqueue", "/dev/mqueue", "mqueue", strict, "")?;
    }
    let hybrid = hierarchies.iter().any(|hierarchy| hierarchy.version != Version::V2);
    if hybrid {
        mount_at("tmpfs", "/sys/fs/cgroup", "tmpfs", strict, "mode=755")?;
    }
    for hierarchy in hierarchies {
        if hybrid {
            fs::create_dir_all(&hierarchy.mount_point).map_err(|source| Error::Io {
                operation: "create",
                path: hierarchy.mount_point.clone(),
                source,
            })?;
        }
        let point = hierarchy.mount_point.to_string_lossy();
        match &hierarchy.version {
            Version::V2 => mount_at("cgroup2", &point, "cgroup2", strict, "")?,
            Version::V1(options) => mount_at("cgroup", &point, "cgroup", strict, options)?,
        }
    }
    Ok(())
}

/// Takes a mount and everything on it out of this mount namespace. Fine when nothing is mounted there.
fn detach(path: &str) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(Error::Io { operation: "unmount", path: path.into(), source: errno.into() }),
    }
}

/// Gives this mount namespace a writable view of `folder` of its own: an overlay whose changes go to `upper`.
pub fn shadow(folder: &Path, upper: &Path) -> Result<()> {
    let (changes, work) = (upper.join("upper"), upper.join("work"));
    for path in [&changes, &work] {
        fs::create_dir_all(path).map_err(|source| Error::Io {
            operation: "create",
            path: path.clone(),
            source,
        })?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", folder.display(), changes.display(), work.display());
    mount_at("overlay", &folder.to_string_lossy(), "overlay", MsFlags::empty(), &options)
}

/// An empty file system in memory over `folder`.
pub fn empty(folder: &Path) -> Result<()> {
    mount_at("tmpfs", &folder.to_string_lossy(), "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")
}

/// Shows `source` at `target`, which is made if it is missing.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).map_err(|source| Error::Io {
        operation: "create",
        path: target.into(),
        source,
    })?;
    mount_at(&source.to_string_lossy(), &target.to_string_lossy(), "", MsFlags::MS_BIND, "")
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(data)).map_err(|errno| Error::Io {
        operation: "mount at",
        path: target.into(),
        source: errno.into(),
    })
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|source| Error::Io { operation: "write", path: path.into(), source })
}
