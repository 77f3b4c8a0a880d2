//! Worker: a container, from its control group to its running first process.
//!
//! The container's root file system, libcontainer's own files and what it must not see are arranged in a mount namespace of the worker's own, which
//! the container inherits a copy of: on the node nothing is ever mounted for a container, and nothing is left whenever and however it ends.
//!
//! libcontainer writes `cgroup.procs` of every hierarchy, which costs milliseconds each on v1. The worker joins by itself, cheaply, and hides the
//! hierarchies; libcontainer then finds a machine without controllers and has nothing to write.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use linux::cgroup::{DeviceAccess, DeviceKind, DeviceRule, Group, Limits};
use linux::process::SingleThreaded;
use oci_spec::runtime::Spec;
use shim_protocol::{PID_NAMESPACE_FD, StartContainer};

use super::{Outcome, Work};
use crate::executor::ProcessExecutor;
use crate::sandbox::Sandbox;

mod mounts;

/// The file of an OCI bundle.
const SPEC: &str = "config.json";

/// Everything the worker needs.
pub struct Start<'a> {
    /// The request.
    pub request: &'a StartContainer,
    /// The pod's namespaces.
    pub sandbox: &'a Sandbox,
    /// The container's group, which exists; the worker was cloned into its unified directory.
    pub group: &'a Group,
    /// An empty directory that libcontainer's files are arranged in.
    pub oci_root: &'a Path,
    /// Where control groups are mounted.
    pub cgroup_root: &'a Path,
    /// Compiled seccomp filters.
    pub filters: Option<&'a Path>,
    /// stdin, stdout, stderr without a terminal.
    pub streams: Option<[OwnedFd; 3]>,
}

/// Creates and starts.
pub fn run(start: Start<'_>) -> Work {
    let mut warnings = Vec::new();
    enter_group(&start)?;
    set_oom_score(start.request, &mut warnings)?;
    enter_namespaces(start.sandbox)?;
    let bundle = start.oci_root.join("bundle");
    // Before the mounts, since the filters lie among what is hidden there.
    let (spec, executor) = read_spec(&start)?;
    mounts::arrange(&start, &spec, &bundle)?;
    write_spec(&spec, &bundle)?;
    let _one_thread = SingleThreaded::verify()?;
    let (pid, terminal) = create(start, &bundle, executor)?;
    Ok((Outcome::Running { pid, warnings }, terminal))
}

fn enter_group(start: &Start<'_>) -> Result<()> {
    let limits = limits(&start.request.limits);
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

/// The container's spec without what the process will do by itself.
fn read_spec(start: &Start<'_>) -> Result<(Spec, ProcessExecutor)> {
    let mut spec = Spec::load(start.request.bundle.join(SPEC)).context("read the container's config.json")?;
    let executor = ProcessExecutor::take_over(&mut spec, start.filters)?;
    Ok((spec, executor))
}

fn write_spec(spec: &Spec, bundle: &Path) -> Result<()> {
    let text = serde_json::to_vec(spec).context("write the container's config.json")?;
    std::fs::write(bundle.join(SPEC), text).context("write the container's config.json")
}

fn create(start: Start<'_>, bundle: &Path, executor: ProcessExecutor) -> Result<(i32, Option<OwnedFd>)> {
    let request = start.request;
    // In memory and in this mount namespace, like all of this directory: gone with it.
    let console = start.oci_root.join("console.sock");
    let listener = if request.tty {
        Some(UnixListener::bind(&console).with_context(|| format!("listen on {}", console.display()))?)
    } else {
        None
    };
    let mut builder = ContainerBuilder::new(request.container.clone(), SyscallType::default())
        .with_executor(executor)
        .with_root_path(start.oci_root)?
        .with_console_socket(request.tty.then(|| console.clone()));
    if let Some([stdin, stdout, stderr]) = start.streams {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let made = builder.as_init(bundle).with_systemd(false).as_sibling(true).with_detach(true).build();
    let terminal = match (&made, &listener) {
        (Ok(_), Some(listener)) => Some(receive_terminal(listener)),
        _ => None,
    };
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
