//! Worker: a further process in a running container.
//!
//! libcontainer's tenant builder gives such a process no seccomp filter (it drops that part of the spec), so it would be less confined than the
//! container. Here it is made by hand, with libcontainer's own capability and AppArmor code: the worker joins the container's control
//! groups, enters all its namespaces at once, and clones the process as its own sibling, so that the shim is its parent.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use libcontainer::syscall::syscall::create_syscall;
use linux::cgroup::Group;
use linux::process::{ForkOptions, SingleThreaded};
use oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use rustix::fs::{Mode, OFlags};

use super::{Outcome, Work};
use crate::confinement::Confinement;
use crate::executor::{self, Program};

/// Everything the worker needs.
pub struct Exec<'a> {
    /// OCI `process` object.
    pub process: &'a serde_json::Value,
    /// Give it a terminal.
    pub tty: bool,
    /// stdin, stdout, stderr; absent ones are /dev/null.
    pub streams: [Option<OwnedFd>; 3],
    /// First process of the container.
    pub container_pid: i32,
    /// Its bundle.
    pub bundle: &'a Path,
    /// Its group.
    pub group: &'a Group,
    /// Compiled seccomp filters.
    pub filters: Option<&'a Path>,
}

const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Starts the process and waits until it executes.
pub fn run(exec: Exec<'_>) -> Work {
    let process: Process = serde_json::from_value(exec.process.clone()).context("read the process object")?;
    let seccomp = seccomp_of(exec.bundle)?;
    let confinement = Confinement::new(&process, seccomp.as_ref(), exec.filters)?;
    let proof = SingleThreaded::verify()?;
    let pidfd = linux::process::pidfd(exec.container_pid)?;
    exec.group.join_v1()?;
    take_oom_score(exec.container_pid);
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("become undumpable")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open /dev/null")?;
    linux::process::enter_namespaces(pidfd.as_fd(), NAMESPACES)?;
    let pair = if exec.tty { Some(linux::pty::open_pair(Path::new("/dev/pts/ptmx"))?) } else { None };
    let (error_read, error_write) = linux::fds::pipe()?;
    let mut error_write = Some(File::from(error_write));
    let options = ForkOptions { sibling: true, ..ForkOptions::default() };
    let (pid, _) = linux::process::fork(proof, options, || {
        let streams =
            Streams { given: &exec.streams, null: &null, terminal: pair.as_ref().map(|pair| &pair.slave) };
        let message = match become_process(&process, &confinement, &streams) {
            Ok(never) => never,
            Err(error) => format!("{error:#}"),
        };
        if let Some(mut pipe) = error_write.take() {
            let _ = pipe.write_all(message.as_bytes());
        }
        // What a shell says for a command that cannot be executed.
        127
    })?;
    drop(error_write);
    let mut message = String::new();
    File::from(error_read).read_to_string(&mut message).context("wait for the process to execute")?;
    if !message.is_empty() {
        bail!(message);
    }
    Ok((Outcome::Running { pid, warnings: Vec::new() }, pair.map(|pair| pair.master)))
}

fn seccomp_of(bundle: &Path) -> Result<Option<LinuxSeccomp>> {
    let spec = Spec::load(bundle.join("config.json")).context("read the container's config.json")?;
    Ok(spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()))
}

/// The shim's own score must not be inherited. It can be raised by anybody; a lower one than the shim's needs a privilege and is not worth failing.
fn take_oom_score(container: i32) {
    if let Ok(text) = std::fs::read_to_string(format!("/proc/{container}/oom_score_adj"))
        && let Ok(score) = text.trim().parse()
    {
        let _ = linux::process::set_oom_score_adj(score);
    }
}

struct Streams<'a> {
    given: &'a [Option<OwnedFd>; 3],
    null: &'a OwnedFd,
    terminal: Option<&'a OwnedFd>,
}

/// Runs in the new process; returns why it could not execute.
fn become_process(process: &Process, confinement: &Confinement, streams: &Streams<'_>) -> Result<String> {
    rustix::process::setsid().context("setsid")?;
    connect(streams)?;
    let arguments = process.args().clone().unwrap_or_default();
    let mut environment = process.env().clone().unwrap_or_default();
    if !executor::has_home(&environment) {
        environment.retain(|entry| entry != "HOME=");
        environment.push(format!("HOME={}", executor::home(process.user().uid())));
    }
    restrict(process, confinement)?;
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let path = executor::find(&arguments, path).map_err(|message| anyhow!(message))?;
    let environment = environment.into_iter().map(Into::into);
    let program = Program::new(path, arguments, environment).map_err(|message| anyhow!(message))?;
    linux::fds::close_on_exec_from(3)?;
    Ok(program.execute(Some(confinement)))
}

fn connect(streams: &Streams<'_>) -> Result<()> {
    let pick = |index: usize| streams.terminal.or(streams.given[index].as_ref()).unwrap_or(streams.null);
    if let Some(terminal) = streams.terminal {
        linux::pty::make_controlling(terminal)?;
    }
    rustix::stdio::dup2_stdin(pick(0)).context("redirect stdin")?;
    rustix::stdio::dup2_stdout(pick(1)).context("redirect stdout")?;
    rustix::stdio::dup2_stderr(pick(2)).context("redirect stderr")?;
    Ok(())
}

/// From the shim's root to what the process may be but for its filter, in the order in which privileges are still there for each step.
fn restrict(process: &Process, confinement: &Confinement) -> Result<()> {
    let syscall = create_syscall();
    for limit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).context("set a resource limit")?;
    }
    if let Some(profile) = process.apparmor_profile() {
        libcontainer::apparmor::apply_profile(profile).context("set the AppArmor profile")?;
    }
    let cwd = process.cwd();
    let entered = rustix::process::chdir(cwd);
    let user = process.user();
    rustix::process::umask(Mode::from_bits_truncate(user.umask().unwrap_or(0o022)));
    set_groups(user.additional_gids().as_deref().unwrap_or_default())?;
    if process.no_new_privileges() == Some(true) {
        rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    }
    set_identity(user.uid(), user.gid())?;
    confinement.enter()?;
    if entered.is_err() {
        // The directory may be reachable for the user only.
        rustix::process::chdir(cwd)
            .with_context(|| format!("chdir to cwd (\"{}\") set in config.json failed", cwd.display()))?;
    }
    Ok(())
}

fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: setgroups reads `len` numbers from the slice.
    match unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("setgroups"),
    }
}

fn set_identity(uid: u32, gid: u32) -> Result<()> {
    rustix::thread::set_keep_capabilities(true).context("keep capabilities")?;
    // SAFETY: both calls take their arguments by value, and this process has one thread.
    if unsafe { libc::setresgid(gid, gid, gid) } != 0 || unsafe { libc::setresuid(uid, uid, uid) } != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("become user {uid}, group {gid}"));
    }
    rustix::thread::set_keep_capabilities(false).context("stop keeping capabilities")
}
