//! Worker: a container, from its control group to its running first process.
//!
//! The container's root file system and what libcontainer must not see are arranged in a mount namespace of the worker's own, which the container
//! inherits a copy of: on the node nothing is ever mounted for a container, and nothing is left mounted whenever and however it ends.
//!
//! libcontainer writes `cgroup.procs` of every hierarchy, which costs milliseconds each on v1. The worker joins by itself, cheaply, and hides the
//! hierarchies; libcontainer then finds a machine without controllers and has nothing to write.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use linux::cgroup::{DeviceAccess, DeviceKind, DeviceRule, Group, Limits};
use linux::mount::{Overlay, Propagation};
use linux::process::SingleThreaded;
use shim_protocol::{PID_NAMESPACE_FD, StartContainer};

use super::{Outcome, Work};
use crate::executor::ProcessExecutor;
use crate::sandbox::Sandbox;

/// Everything the worker needs.
pub struct Start<'a> {
    /// The request.
    pub request: &'a StartContainer,
    /// The pod's namespaces.
    pub sandbox: &'a Sandbox,
    /// The container's group; its unified directory exists and the worker was cloned into it.
    pub group: &'a Group,
    /// libcontainer's root.
    pub oci_root: &'a Path,
    /// Where control groups are mounted.
    pub cgroup_root: &'a Path,
    /// Where the console socket may be bound.
    pub console_directory: &'a Path,
    /// stdin, stdout, stderr without a terminal.
    pub streams: Option<[OwnedFd; 3]>,
}

/// Creates and starts.
pub fn run(start: Start<'_>) -> Work {
    let mut warnings = Vec::new();
    enter_group(&start)?;
    set_oom_score(start.request, &mut warnings)?;
    enter_namespaces(start.sandbox)?;
    arrange_mounts(start.request, start.cgroup_root)?;
    let _one_thread = SingleThreaded::verify()?;
    let (pid, terminal) = create(start)?;
    Ok((Outcome::Running { pid, warnings }, terminal))
}

fn enter_group(start: &Start<'_>) -> Result<()> {
    let limits = limits(&start.request.limits);
    start.group.create()?;
    start.group.apply(&limits)?;
    if let Some(rules) = &start.request.devices {
        let rules: Vec<DeviceRule> = rules.iter().map(device_rule).collect::<Result<_>>()?;
        start.group.restrict_devices(&rules)?;
    }
    start.group.join_v1()?;
    Ok(())
}

fn limits(wire: &shim_protocol::Limits) -> Limits {
    Limits {
        cpu_period: wire.cpu_period,
        cpu_quota: wire.cpu_quota,
        cpu_shares: wire.cpu_shares,
        cpuset_cpus: wire.cpuset_cpus.clone(),
        cpuset_mems: wire.cpuset_mems.clone(),
        memory: wire.memory,
        memory_and_swap: wire.memory_and_swap,
        pids: wire.pids,
        hugepages: wire.hugepages.clone(),
        unified: wire.unified.clone(),
    }
}

fn device_rule(wire: &shim_protocol::DeviceRule) -> Result<DeviceRule> {
    let kind = match wire.kind {
        'a' => DeviceKind::Any,
        'b' => DeviceKind::Block,
        'c' => DeviceKind::Character,
        other => return Err(anyhow!("device rule: kind '{other}' is none of a, b, c")),
    };
    let access = DeviceAccess::parse(&wire.access)
        .ok_or_else(|| anyhow!("device rule: access \"{}\" has other letters than r, w, m", wire.access))?;
    Ok(DeviceRule { kind, major: wire.major, minor: wire.minor, access })
}

/// Raising always works; lowering needs CAP_SYS_RESOURCE, without which the container keeps the shim's score.
fn set_oom_score(request: &StartContainer, warnings: &mut Vec<String>) -> Result<()> {
    let Some(wanted) = request.oom_score_adj else { return Ok(()) };
    match linux::process::set_oom_score_adj(wanted) {
        Err(error) if matches!(error.errno(), Some(libc::EACCES | libc::EPERM)) => {
            warnings.push(format!("oom_score_adj {wanted} needs CAP_SYS_RESOURCE and was not set"));
            Ok(())
        }
        other => Ok(other?),
    }
}

/// What the worker enters, libcontainer inherits, so the spec does not name these namespaces. A shared pid namespace is entered by its
/// child only: the spec finds it under a fixed descriptor.
fn enter_namespaces(sandbox: &Sandbox) -> Result<()> {
    use nix::sched::{CloneFlags, setns};
    let spaces = [
        (&sandbox.network, CloneFlags::CLONE_NEWNET, "network"),
        (&sandbox.ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
        (&sandbox.uts, CloneFlags::CLONE_NEWUTS, "uts"),
    ];
    for (fd, kind, name) in spaces {
        if let Some(fd) = fd {
            setns(fd, kind).with_context(|| format!("enter the pod's {name} namespace"))?;
        }
    }
    if let Some(pid) = &sandbox.pid {
        // SAFETY: dup2 onto a number that this process uses for nothing else.
        if unsafe { libc::dup2(pid.as_raw_fd(), PID_NAMESPACE_FD) } < 0 {
            return Err(std::io::Error::last_os_error()).context("keep the pod's pid namespace");
        }
    }
    Ok(())
}

fn arrange_mounts(request: &StartContainer, cgroup_root: &Path) -> Result<()> {
    linux::process::unshare(libc::CLONE_NEWNS)?;
    let staged = request
        .staged
        .iter()
        .map(|staged| Ok((linux::mount::clone_tree(&staged.source)?, &staged.target)))
        .collect::<Result<Vec<(OwnedFd, &PathBuf)>>>()?;
    linux::mount::set_propagation(Path::new("/"), Propagation::SlaveRecursive)?;
    hide_cgroups(cgroup_root)?;
    let root = &request.rootfs;
    rustix::process::chdir(&root.directory).with_context(|| format!("enter {}", root.directory.display()))?;
    let overlay =
        Overlay { lower: root.lower.clone(), upper: Some(root.upper.clone()), work: Some(root.work.clone()) };
    linux::mount::overlay(&overlay, &request.bundle.join("rootfs"))?;
    rustix::process::chdir("/").context("leave the layers")?;
    make_directory(&request.bundle.join("rootfs"), &request.cwd)?;
    for (tree, target) in staged {
        linux::mount::attach_tree(&tree, target)?;
    }
    Ok(())
}

/// A covered mount would still be in the mount table, where libcontainer looks: they are taken off, the innermost first, in this mount namespace.
fn hide_cgroups(cgroup_root: &Path) -> Result<()> {
    let is_cgroup =
        |entry: &linux::mount::MountEntry| matches!(entry.filesystem.as_str(), "cgroup" | "cgroup2");
    for entry in linux::mount::table()?.into_iter().rev().filter(is_cgroup) {
        linux::mount::detach(&entry.mount_point)?;
    }
    Ok(linux::mount::tmpfs(cgroup_root, "mode=0555,size=4k,nr_inodes=1,ro")?)
}

/// Makes a directory inside the root file system, through the image's own symbolic links but never out of it.
fn make_directory(root: &Path, wanted: &Path) -> Result<()> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut current = rustix::fs::open(root, flags, Mode::empty()).context("open the root file system")?;
    let root = current.try_clone().context("open the root file system")?;
    let mut path = PathBuf::new();
    for part in wanted.components() {
        let std::path::Component::Normal(name) = part else { continue };
        path.push(name);
        let open = || rustix::fs::openat2(&root, &path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        current = match open() {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&current, name, Mode::from_bits_truncate(0o755))
                    .with_context(|| format!("make working directory {}", wanted.display()))?;
                open()
            }
            other => other,
        }
        .with_context(|| format!("open working directory {}", wanted.display()))?;
    }
    Ok(())
}

fn create(start: Start<'_>) -> Result<(i32, Option<OwnedFd>)> {
    let request = start.request;
    let console = start.console_directory.join(format!("{}.tty", request.container));
    let listener = if request.tty {
        let _ = std::fs::remove_file(&console);
        Some(UnixListener::bind(&console).with_context(|| format!("listen on {}", console.display()))?)
    } else {
        None
    };
    let mut builder = ContainerBuilder::new(request.container.clone(), SyscallType::default())
        .with_executor(ProcessExecutor)
        .with_root_path(start.oci_root)?
        .with_console_socket(request.tty.then(|| console.clone()));
    if let Some([stdin, stdout, stderr]) = start.streams {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let made =
        builder.as_init(&request.bundle).with_systemd(false).as_sibling(true).with_detach(true).build();
    let terminal = match (&made, &listener) {
        (Ok(_), Some(listener)) => Some(receive_terminal(listener)),
        _ => None,
    };
    if request.tty {
        let _ = std::fs::remove_file(&console);
    }
    let mut container = made.map_err(|error| anyhow!("{}", innermost(&error)))?;
    let terminal = terminal.transpose()?;
    let pid = container.pid().ok_or_else(|| anyhow!("libcontainer made a container without a pid"))?;
    container.start().map_err(|error| anyhow!("{}", innermost(&error)))?;
    Ok((pid.as_raw(), terminal))
}

fn receive_terminal(listener: &UnixListener) -> Result<OwnedFd> {
    let (socket, _) = listener.accept().context("accept the terminal")?;
    let mut fds = Vec::new();
    let mut name = [0_u8; 4096];
    linux::scm::receive(&socket, &mut name, &mut fds)?;
    fds.pop().ok_or_else(|| anyhow!("no terminal arrived"))
}

/// libcontainer wraps an error in many sentences about itself; the cause is the last.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
