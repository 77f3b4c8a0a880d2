//! Network namespaces: open, create at a path, bind, remove, and run code inside one.
//!
//! Owns: the nsfs files that keep a namespace alive under a name, and the only way in this project to enter one.
//! Inputs are paths or descriptors, outputs are [`Netns`] handles and the results of the closures.
//! It refuses to move an existing thread: code runs in a namespace on a fresh OS thread that ends with the closure,
//! so that no thread of a runtime can be left behind in a foreign namespace. It never configures what is inside.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    panic,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        statfs::{NSFS_MAGIC, PROC_SUPER_MAGIC, fstatfs},
    },
};

/// The namespace of the calling thread, not of the process's first thread.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// A sysctl that the kernel registers for the machine's initial network namespace only (`net_core_table`), and shows
/// or hides by the reader's namespace. The pid namespace plays no part, unlike with `/proc/1/ns/net`.
const INITIAL_ONLY_SYSCTL: &str = "/proc/sys/net/core/dev_weight";

/// What went wrong with a network namespace, and with which one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{operation} network namespace {path}: {error}")]
    Io { operation: &'static str, path: PathBuf, error: io::Error },
    #[error("open network namespace {path}: not a namespace file")]
    NotANamespace { path: PathBuf },
    #[error("enter network namespace: {error}")]
    Enter { error: io::Error },
    #[error("start a thread for a network namespace: {error}")]
    Thread { error: io::Error },
}

impl Error {
    /// True when the path, or the namespace behind it, is gone: what a teardown may take for success.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::NotANamespace { .. } => true,
            Self::Io { error, .. } => {
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
            Self::Enter { .. } | Self::Thread { .. } => false,
        }
    }
}

/// An open network namespace; it lives at least as long as this handle.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace file at `path` (`/proc/PID/ns/net`, or a file that one is bound to).
    ///
    /// # Errors
    /// When the path cannot be opened, or is no namespace: a name whose mount is gone is an ordinary empty file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |error| Error::Io { operation: "open", path: path.to_owned(), error };
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let kind = fstatfs(&file).map_err(|errno| failed(errno.into()))?.filesystem_type();
        // Kernels before 3.19 kept namespace files in procfs itself.
        if kind != NSFS_MAGIC && kind != PROC_SUPER_MAGIC {
            return Err(Error::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When procfs is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(OWN_NETNS)
    }

    /// The path that this handle was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace's number: the inode of its nsfs file, unique while the namespace lives.
    ///
    /// # Errors
    /// Only when the kernel refuses to describe an open file.
    pub fn id(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        metadata.map(|m| m.ino()).map_err(|error| Error::Io {
            operation: "stat",
            path: self.path.clone(),
            error,
        })
    }

    /// The number by which BPF programs know the namespace; no other one ever has it.
    ///
    /// # Errors
    /// As [`in_netns`]; on kernels before 5.14.
    pub fn cookie(&self) -> Result<u64, Error> {
        let failed = |error| Error::Io { operation: "read the cookie of", path: self.path.clone(), error };
        self.run(own_cookie)?.map_err(failed)
    }

    /// Runs `work` inside the namespace; see [`in_netns`].
    ///
    /// # Errors
    /// As [`in_netns`].
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, Error> {
        in_netns(self.file.as_fd(), work)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The namespaces that processes are in, each once. Processes that end meanwhile are left out.
///
/// # Errors
/// When the processes cannot be listed.
pub fn of_processes() -> Result<Vec<Netns>, crate::Error> {
    let mut seen = HashSet::new();
    let of = |pid: i32| {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        // Cheaper than opening each; one that ends between the two is not counted as seen.
        let number = fs::metadata(&path).ok()?.ino();
        if seen.contains(&number) {
            return None;
        }
        let netns = Netns::open(path).ok()?;
        seen.insert(netns.id().ok()?).then_some(netns)
    };
    Ok(crate::process::list()?.into_iter().filter_map(of).collect())
}

/// Creates a namespace and binds it to `path`, which must not exist; missing parent folders are made.
///
/// # Errors
/// When the path exists or a step fails; nothing is left at `path` then.
pub fn create(path: impl AsRef<Path>) -> Result<Netns, Error> {
    let path = path.as_ref();
    make_mount_point(path)?;
    let made = on_fresh_thread(|| -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        bind_mount(Path::new(OWN_NETNS), path)
    });
    match made.map(|inner| inner.map_err(io::Error::from)) {
        Ok(Ok(())) => Netns::open(path),
        Ok(Err(error)) => {
            discard(path);
            Err(Error::Io { operation: "create", path: path.to_owned(), error })
        }
        Err(error) => {
            discard(path);
            Err(error)
        }
    }
}

/// Binds an open namespace to `path`, which must not exist, so that it lives on without a process.
///
/// # Errors
/// When the path exists or the mount fails; nothing is left at `path` then.
pub fn bind(netns: &Netns, path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    make_mount_point(path)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", netns.file.as_raw_fd()));
    bind_mount(&source, path).map_err(|errno| {
        discard(path);
        Error::Io { operation: "bind", path: path.to_owned(), error: errno.into() }
    })
}

/// Removes the name at `path`; the namespace itself ends with its last user. A path that is not there, or that is no
/// longer mounted, is success.
///
/// # Errors
/// When the mount or the file cannot be removed.
pub fn remove(path: impl AsRef<Path>) -> Result<(), Error> {
    use nix::errno::Errno;
    let path = path.as_ref();
    let failed = |operation, error| Error::Io { operation, path: path.to_owned(), error };
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => {}
        Err(errno) => return Err(failed("unmount", errno.into())),
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        Err(error) => Err(failed("remove", error)),
    }
}

/// Runs `work` on a fresh OS thread that has entered the namespace, and waits for it. The caller's thread blocks for
/// that long; a panic of `work` goes on in the caller.
///
/// # Errors
/// When the thread cannot be started, or may not enter (`CAP_SYS_ADMIN` in both user namespaces).
pub fn in_netns<R: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> R + Send) -> Result<R, Error> {
    on_fresh_thread(move || -> Result<R, Error> {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Enter { error: errno.into() })?;
        Ok(work())
    })?
}

/// Runs the future of `work` on a fresh OS thread inside the namespace, with a tokio runtime of its own. Sockets that
/// it opens belong to the namespace for good, also after they are handed out.
///
/// # Errors
/// As [`in_netns`].
pub fn in_netns_async<R, F>(netns: BorrowedFd<'_>, work: impl FnOnce() -> F + Send) -> Result<R, Error>
where
    R: Send,
    F: Future<Output = R>,
{
    in_netns(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map(|runtime| runtime.block_on(work())).map_err(|error| Error::Thread { error })
    })?
}

/// The number of the calling thread's network namespace.
///
/// # Errors
/// When procfs is not mounted.
pub fn current_id() -> Result<u64, Error> {
    Netns::current()?.id()
}

/// True when the calling thread is in the machine's initial network namespace.
pub fn is_initial() -> bool {
    Path::new(INITIAL_ONLY_SYSCTL).exists()
}

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Of the calling thread's namespace.
fn own_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    cookie_of(socket.as_fd())
}

/// Of the namespace that a socket belongs to.
pub(crate) fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

fn on_fresh_thread<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| Error::Thread { error })?;
        match thread.join() {
            Ok(result) => Ok(result),
            Err(panicked) => panic::resume_unwind(panicked),
        }
    })
}

fn make_mount_point(path: &Path) -> Result<(), Error> {
    let failed = |error| Error::Io { operation: "create", path: path.to_owned(), error };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(failed)?;
    Ok(())
}

fn bind_mount(source: &Path, target: &Path) -> nix::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

/// Undo of [`make_mount_point`]; the error that led here is the one worth telling.
fn discard(path: &Path) {
    let _ = fs::remove_file(path);
}
