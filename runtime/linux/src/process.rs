//! Processes: forking into a control group, pidfds, signals, the limit of open files, and what /proc says about them.
//!
//! Refuses to fork from a process with more than one thread: the child of such a fork may only do what is safe in a signal handler, and callers
//! here run ordinary code.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::Error;

#[cfg(test)]
mod tests;

/// clone3's flag (linux/sched.h); libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How [`fork`] makes a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForkOptions<'a> {
    /// A directory of the unified hierarchy that the child starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The child's parent is the caller's parent.
    pub sibling: bool,
    /// Further `CLONE_NEW…` flags.
    pub namespaces: u64,
}

/// Proof that the process had one thread when it was asked; whoever holds it starts none.
#[derive(Clone, Copy, Debug)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Asks /proc.
    ///
    /// # Errors
    /// EDEADLK when there are more threads.
    pub fn verify() -> Result<SingleThreaded, Error> {
        match thread_count()? {
            1 => Ok(SingleThreaded(())),
            count => Err(Error::new(
                "fork",
                format_args!("process with {count} threads"),
                rustix::io::Errno::DEADLK,
            )),
        }
    }
}

/// Runs `child` in a forked process, which exits with the code that it returns, and gives the pid and a pidfd to the caller.
///
/// # Errors
/// The kernel's.
pub fn fork(
    _proof: SingleThreaded,
    options: ForkOptions<'_>,
    child: impl FnOnce() -> i32,
) -> Result<(i32, OwnedFd), Error> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = options.namespaces | libc::CLONE_PIDFD as u64;
    if options.sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    // SAFETY: clone_args is plain data for which all zeroes is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    if let Some(cgroup) = options.cgroup {
        flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    arguments.flags = flags;
    arguments.pidfd = &raw mut pidfd as u64;
    // A sibling takes its exit signal from the caller's own parent and must not name one.
    arguments.exit_signal = if options.sibling { 0 } else { libc::SIGCHLD as u64 };
    // SAFETY: without CLONE_VM this is a fork; the process has one thread (the proof says so), so no lock can be held by another one; the arguments
    // outlive the call.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, std::mem::size_of::<libc::clone_args>())
    };
    match pid {
        0 => {
            let code = child();
            // SAFETY: ends this process without running the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid if pid > 0 => {
            // SAFETY: CLONE_PIDFD stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((pid as i32, pidfd))
        }
        _ => Err(Error::last("clone3", "")),
    }
}

/// Threads of the calling process.
///
/// # Errors
/// /proc is not there.
pub fn thread_count() -> Result<u64, Error> {
    let tasks =
        fs::metadata("/proc/self/task").map_err(|error| Error::new("stat", "/proc/self/task", error))?;
    Ok(tasks.nlink().saturating_sub(2))
}

/// Makes the caller the parent of its descendants' orphans.
///
/// # Errors
/// The kernel's.
pub fn become_subreaper() -> Result<(), Error> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes a flag by value.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(Error::last("prctl PR_SET_CHILD_SUBREAPER", "")),
    }
}

/// A descriptor that stands for a process.
///
/// # Errors
/// The kernel's; ESRCH when it is gone.
pub fn pidfd(pid: i32) -> Result<OwnedFd, Error> {
    // SAFETY: pidfd_open takes its arguments by value.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(Error::last("pidfd_open", pid));
    }
    // SAFETY: the kernel just returned this descriptor to us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal through a pidfd; false when the process is gone.
///
/// # Errors
/// The kernel's.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<bool, Error> {
    // SAFETY: pidfd_send_signal takes its arguments by value; a null siginfo is allowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match result {
        0 => Ok(true),
        _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH) => Ok(false),
        _ => Err(Error::last("pidfd_send_signal", signal)),
    }
}

/// Enters namespaces of the process that a pidfd stands for, all or none.
///
/// # Errors
/// The kernel's; EINVAL before Linux 5.8.
pub fn enter_namespaces(pidfd: BorrowedFd<'_>, flags: i32) -> Result<(), Error> {
    // SAFETY: setns takes its arguments by value.
    match unsafe { libc::setns(pidfd.as_raw_fd(), flags) } {
        0 => Ok(()),
        _ => Err(Error::last("setns", "pidfd")),
    }
}

/// Gives the calling process namespaces of its own.
///
/// # Errors
/// The kernel's.
pub fn unshare(flags: i32) -> Result<(), Error> {
    // SAFETY: unshare takes its argument by value; without CLONE_FILES and CLONE_VM no memory of the caller changes owner.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(Error::last("unshare", format_args!("{flags:#x}"))),
    }
}

/// Sets the name that /proc/PID/comm shows; the first 15 bytes count.
///
/// # Errors
/// The kernel's.
pub fn set_name(name: &std::ffi::CStr) -> Result<(), Error> {
    rustix::thread::set_name(name).map_err(|errno| Error::new("prctl PR_SET_NAME", "", errno))
}

/// Sets the caller's oom_score_adj.
///
/// # Errors
/// EACCES or EPERM when it is lowered without CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(value: i32) -> Result<(), Error> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let mut file =
        fs::File::options().write(true).open(FILE).map_err(|error| Error::new("open", FILE, error))?;
    file.write_all(value.to_string().as_bytes()).map_err(|error| Error::new("write", FILE, error))
}

/// Reads the caller's oom_score_adj.
pub fn oom_score_adj() -> Option<i32> {
    fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// Lets the process open as many files as its hard limit says (`RLIMIT_NOFILE`), and gives that.
///
/// # Errors
/// The kernel's.
pub fn raise_file_limit() -> Result<u64, Error> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|errno| Error::new("setrlimit", "RLIMIT_NOFILE", errno))?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// A process as /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Pid in the pid namespace of the mounted /proc.
    pub pid: i32,
    /// Arguments.
    pub arguments: Vec<String>,
}

/// Where a process runs. None of it lies in the process's memory, which whoever shares it can keep others from reading for as long as he
/// likes: arguments and environment are read only of processes that are in a trusted place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of its pid namespace, `pid:[4026531836]`.
    pub pid_namespace: PathBuf,
    /// Its control groups, a line for each hierarchy.
    pub cgroups: String,
}

impl Place {
    /// That of a process.
    ///
    /// # Errors
    /// The process is gone, or not to be looked at.
    pub fn of(pid: i32) -> Result<Place, Error> {
        Place::read(&format!("/proc/{pid}"))
    }

    /// The caller's.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn own() -> Result<Place, Error> {
        Place::read("/proc/self")
    }

    fn read(process: &str) -> Result<Place, Error> {
        let (namespace, cgroups) = (format!("{process}/ns/pid"), format!("{process}/cgroup"));
        Ok(Place {
            pid_namespace: fs::read_link(&namespace)
                .map_err(|error| Error::new("readlink", &namespace, error))?,
            cgroups: fs::read_to_string(&cgroups).map_err(|error| Error::new("read", &cgroups, error))?,
        })
    }
}

/// All processes whose first argument is `program`.
///
/// # Errors
/// /proc cannot be listed; processes that end meanwhile are left out.
pub fn list_by_program(program: &str) -> Result<Vec<Process>, Error> {
    let all = list()?.into_iter().map(|pid| Process { pid, arguments: arguments_of(pid) });
    Ok(all.filter(|process| process.arguments.first().is_some_and(|first| first == program)).collect())
}

/// Pids of all processes.
///
/// # Errors
/// /proc cannot be listed.
pub fn list() -> Result<Vec<i32>, Error> {
    let entries = fs::read_dir("/proc").map_err(|error| Error::new("readdir", "/proc", error))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// The arguments of a process; empty when it is gone or a kernel thread.
pub fn arguments_of(pid: i32) -> Vec<String> {
    words_of(pid, "cmdline")
}

/// The value of a variable in the environment that a process was started with.
pub fn variable_of(pid: i32, name: &str) -> Option<String> {
    let value = |word: String| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    words_of(pid, "environ").into_iter().find_map(value)
}

fn words_of(pid: i32, file: &str) -> Vec<String> {
    let bytes = fs::read(PathBuf::from(format!("/proc/{pid}/{file}"))).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Clock ticks after boot at which a process started: with the pid it identifies a process. `None` when it is gone or a zombie.
pub fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The name is in parentheses and may contain anything; the state is the first field after it, the start time the twentieth.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
