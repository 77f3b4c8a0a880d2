//! Control groups on pure v2, and on hybrid machines that have v1 controllers and an unified tree beside them.
//!
//! Input: a layout found by [`Layout::detect`] and a path relative to the hierarchies' roots; a [`Group`] stands for that path in all of them.
//! A process joins with one write of `0` per hierarchy (v1: into `tasks`, which costs microseconds, where `cgroup.procs` costs milliseconds);
//! so the joiner must have one thread. Nothing here decides where a process belongs.

mod devices;
mod events;
mod limits;
mod stats;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::Error;

pub use devices::{DeviceAccess, DeviceKind, DeviceRule};
pub use events::{OomWatch, oom_kills};
pub use limits::{Limits, weight_from_shares};
pub use stats::Stats;

/// How long a group may list processes that have ended, before it is looked at again: nothing tells of that.
const LISTING_PAUSE: Duration = Duration::from_millis(1);
/// Longest single wait for a notification that a group became empty.
const EMPTY_WAIT: Duration = Duration::from_millis(100);
/// Magic number of cgroup2 (`statfs(2)`).
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// One v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Hierarchy {
    /// Controllers, `["cpu", "cpuacct"]`, or `["name=systemd"]`.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
}

/// Which hierarchies the machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The v1 hierarchies; empty on pure v2.
    pub v1: Vec<V1Hierarchy>,
    /// The v2 hierarchy.
    pub unified: Option<PathBuf>,
}

impl Layout {
    /// Finds the hierarchies that are mounted at or below `root`.
    ///
    /// # Errors
    /// The mount table cannot be read, or there are none.
    pub fn detect(root: &Path) -> Result<Layout, Error> {
        if let Ok(stat) = rustix::fs::statfs(root)
            && stat.f_type == CGROUP2_MAGIC
        {
            return Ok(Layout { v1: Vec::new(), unified: Some(root.to_path_buf()) });
        }
        let layout = Layout::from_table(root, &crate::mount::table()?);
        if layout == Layout::default() {
            return Err(Error::new("find control groups", root.display(), io::ErrorKind::NotFound));
        }
        Ok(layout)
    }

    fn from_table(root: &Path, table: &[crate::mount::MountEntry]) -> Layout {
        const NOT_CONTROLLERS: [&str; 6] =
            ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
        let mut layout = Layout::default();
        for entry in table.iter().filter(|entry| entry.mount_point.starts_with(root)) {
            match entry.filesystem.as_str() {
                "cgroup2" => layout.unified = Some(entry.mount_point.clone()),
                "cgroup" => layout.v1.push(V1Hierarchy {
                    controllers: entry
                        .super_options
                        .split(',')
                        .filter(|option| {
                            !NOT_CONTROLLERS.contains(option) && !option.starts_with("release_agent")
                        })
                        .map(str::to_owned)
                        .collect(),
                    mount: entry.mount_point.clone(),
                }),
                _ => {}
            }
        }
        layout
    }

    /// Whether limits are set through v1 controllers.
    pub fn is_v1(&self) -> bool {
        !self.v1.is_empty()
    }

    /// The group at `path` in every hierarchy. A leading slash is ignored.
    ///
    /// # Errors
    /// EINVAL for a path with `..` or `.` parts, or the empty one.
    pub fn group(&self, path: &str) -> Result<Group, Error> {
        let relative = Path::new(path.trim_start_matches('/'));
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || relative.as_os_str().is_empty() {
            return Err(Error::new("control group", path, rustix::io::Errno::INVAL));
        }
        Ok(Group { layout: self.clone(), path: relative.to_path_buf() })
    }

    /// The group that a process is in in the unified hierarchy. `None` where it is in none, in the root, or outside of the caller's namespace.
    ///
    /// # Errors
    /// The process is gone.
    pub fn unified_group_of(&self, pid: i32) -> Result<Option<Group>, Error> {
        let text = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
        Ok(unified_path(&text).and_then(|path| self.group(path).ok()))
    }
}

/// Waits until the first of the processes that still run ends, by its pidfd.
fn wait_for_exit(pids: &[i32], limit: Duration) {
    let ends_within = |pidfd: &OwnedFd, limit: Duration| {
        let mut poll = [PollFd::new(pidfd, PollFlags::IN)];
        let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
        rustix::event::poll(&mut poll, Some(&limit)).is_ok_and(|ready| ready > 0)
    };
    let pidfds = pids.iter().filter_map(|pid| crate::process::pidfd(*pid).ok());
    match pidfds.into_iter().find(|pidfd| !ends_within(pidfd, Duration::ZERO)) {
        Some(running) => drop(ends_within(&running, limit)),
        None => std::thread::sleep(LISTING_PAUSE.min(limit)),
    }
}

/// The path in the unified hierarchy by `/proc/<pid>/cgroup`: the line with number 0 and no controllers (`cgroups(7)`).
fn unified_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// A control group: one directory in each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    layout: Layout,
    path: PathBuf,
}

impl Group {
    /// Path below the roots, without a leading slash.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directories.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let v1 = self.layout.v1.iter().map(|hierarchy| hierarchy.mount.join(&self.path));
        v1.chain(self.unified_directory())
    }

    /// Its directory in the unified tree.
    pub fn unified_directory(&self) -> Option<PathBuf> {
        self.layout.unified.as_ref().map(|mount| mount.join(&self.path))
    }

    /// Its directory in the hierarchy of a v1 controller.
    fn v1_directory(&self, controller: &str) -> Option<PathBuf> {
        let has = |hierarchy: &&V1Hierarchy| hierarchy.controllers.iter().any(|name| name == controller);
        self.layout.v1.iter().find(has).map(|hierarchy| hierarchy.mount.join(&self.path))
    }

    /// Makes the directories, with those above them. Fine when they exist.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(&self) -> Result<(), Error> {
        for hierarchy in &self.layout.v1 {
            let directory = hierarchy.mount.join(&self.path);
            make_directories(&directory)?;
            if hierarchy.controllers.iter().any(|name| name == "cpuset") {
                inherit_cpuset(&hierarchy.mount, &self.path)?;
            }
        }
        if let Some(mount) = &self.layout.unified {
            make_directories(&mount.join(&self.path))?;
            if !self.layout.is_v1() {
                enable_controllers(mount, &self.path);
            }
        }
        Ok(())
    }

    /// Whether any of its directories exists.
    pub fn exists(&self) -> bool {
        self.directories().any(|directory| directory.exists())
    }

    /// Names of the groups directly below it, in whichever hierarchy.
    pub fn children(&self) -> BTreeSet<String> {
        let children = self.directories().flat_map(|directory| subdirectories(&directory));
        children.filter_map(|child| child.file_name()?.to_str().map(str::to_owned)).collect()
    }

    /// Moves the calling process, which has one thread, into the group in every hierarchy.
    ///
    /// # Errors
    /// The kernel's.
    pub fn join(&self) -> Result<(), Error> {
        for hierarchy in &self.layout.v1 {
            write(&hierarchy.mount.join(&self.path).join("tasks"), "0")?;
        }
        if let Some(directory) = self.unified_directory() {
            write(&directory.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Moves the calling process into the group in the v1 hierarchies only: for a process that was cloned into the unified group.
    ///
    /// # Errors
    /// The kernel's.
    pub fn join_v1(&self) -> Result<(), Error> {
        self.layout
            .v1
            .iter()
            .try_for_each(|hierarchy| write(&hierarchy.mount.join(&self.path).join("tasks"), "0"))
    }

    /// The unified directory as a descriptor, for clone3's CLONE_INTO_CGROUP.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_unified(&self) -> Result<Option<OwnedFd>, Error> {
        let Some(directory) = self.unified_directory() else { return Ok(None) };
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(&directory, flags, rustix::fs::Mode::empty())
            .map(Some)
            .map_err(|errno| Error::new("open", directory.display(), errno))
    }

    /// Pids in the group and below it, as the caller's pid namespace numbers them.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for directory in self.directories() {
            collect_processes(&directory, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids.retain(|pid| *pid > 0);
        pids
    }

    /// Kills everybody in the group and below it and waits until they are gone.
    ///
    /// # Errors
    /// ETIMEDOUT when somebody is still there at the deadline (a task in an uninterruptible wait).
    pub fn kill(&self, deadline: Duration) -> Result<(), Error> {
        let end = Instant::now() + deadline;
        if let Some(directory) = self.unified_directory() {
            // Absent before Linux 5.14; the loop below then does all of it.
            let _ = write(&directory.join("cgroup.kill"), "1");
        }
        loop {
            let pids = self.processes();
            if pids.is_empty() {
                return Ok(());
            }
            for pid in &pids {
                // SAFETY: kill takes its arguments by value; the pid was in our group a moment ago, and membership is checked again below.
                unsafe { libc::kill(*pid, libc::SIGKILL) };
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(
                    "kill control group",
                    self.path.display(),
                    rustix::io::Errno::TIMEDOUT,
                ));
            }
            wait_for_exit(&pids, left.min(EMPTY_WAIT));
        }
    }

    /// Removes the group and those below it in every hierarchy. Fine when they are gone.
    ///
    /// # Errors
    /// EBUSY while it has processes. All hierarchies are tried before the first error is returned.
    pub fn remove(&self) -> Result<(), Error> {
        let mut failed = None;
        for directory in self.directories() {
            if let Err(error) = remove_tree(&directory) {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sets limits. Files that a kernel does not have are an error only where a limit was asked for.
    ///
    /// # Errors
    /// The kernel's, with the file.
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        limits::apply(self, limits)
    }

    /// Allows the listed devices and no others.
    ///
    /// # Errors
    /// The kernel's.
    pub fn restrict_devices(&self, rules: &[DeviceRule]) -> Result<(), Error> {
        devices::restrict(self, rules)
    }

    /// Reads its counters.
    ///
    /// # Errors
    /// The group is gone.
    pub fn stats(&self) -> Result<Stats, Error> {
        stats::read(self)
    }

    /// Freezes or thaws everybody in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        if let Some(directory) = self.v1_directory("freezer") {
            return write(&directory.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" });
        }
        match self.unified_directory() {
            Some(directory) => write(&directory.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
            None => Ok(()),
        }
    }
}

fn make_directories(directory: &Path) -> Result<(), Error> {
    match fs::create_dir_all(directory) {
        Ok(()) => Ok(()),
        Err(error) => Err(Error::new("mkdir", directory.display(), error)),
    }
}

/// A new v1 cpuset is empty and takes no task: it gets its parent's values, from the root downwards.
fn inherit_cpuset(mount: &Path, path: &Path) -> Result<(), Error> {
    let mut parent = mount.to_path_buf();
    for part in path.components() {
        let child = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read(&child.join(file))?.trim().is_empty() {
                write(&child.join(file), read(&parent.join(file))?.trim())?;
            }
        }
        parent = child;
    }
    Ok(())
}

/// Hands the controllers that containers need down to the group. A level that refuses (it has processes of its own) is left as it is: the limit
/// that then cannot be set is reported where it is set.
fn enable_controllers(mount: &Path, path: &Path) {
    const WANTED: [&str; 6] = ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];
    let mut level = mount.to_path_buf();
    for part in path.components() {
        let available = read(&level.join("cgroup.controllers")).unwrap_or_default();
        let enabled = read(&level.join("cgroup.subtree_control")).unwrap_or_default();
        for name in WANTED {
            let listed = |text: &str| text.split_whitespace().any(|word| word == name);
            if listed(&available) && !listed(&enabled) {
                let _ = write(&level.join("cgroup.subtree_control"), &format!("+{name}"));
            }
        }
        level.push(part);
    }
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in subdirectories(directory) {
        collect_processes(&child, pids);
    }
}

fn remove_tree(directory: &Path) -> Result<(), Error> {
    for child in subdirectories(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::new("rmdir", directory.display(), error)),
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_directory).map(|entry| entry.path()).collect()
}

fn read(file: &Path) -> Result<String, Error> {
    fs::read_to_string(file).map_err(|error| Error::new("read", file.display(), error))
}

fn write(file: &Path, value: &str) -> Result<(), Error> {
    use std::io::Write as _;
    let mut handle = fs::File::options()
        .write(true)
        .open(file)
        .map_err(|error| Error::new("open", file.display(), error))?;
    handle
        .write_all(value.as_bytes())
        .map_err(|error| Error::new("write", format_args!("\"{value}\" to {}", file.display()), error))
}
