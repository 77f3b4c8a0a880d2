//! `dhcp daemon`: holds the leases of all containers of the node.
//!
//! Inputs: questions of plugins; outputs: their answers, messages to DHCP servers, and [`Keep`]'s files. Owns the table of leases,
//! with one task for each. It listens at a socket of its own, or at the one that systemd hands over (sd_listen_fds(3)).
//! Between two exchanges a lease is but an entry and a timer: no thread, no socket, so that no namespace
//! outlives its container. How many exchanges there are at a time fits the files that the daemon may open ([`Shares`]). At its end
//! the daemon releases nothing: the next one goes on.

mod shares;
mod table;

use std::{
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixListener as BlockingListener, UnixStream as BlockingStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use cni::{ErrorReply, code};
use linux::{activation, process::SingleThreaded};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use self::{shares::Shares, table::Table};
use super::{flags::Flags, keep::Keep, talk};

/// How long to wait after a connection that could not be taken: that there are no files will not change at once.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The daemon's whole life.
pub(super) fn main(arguments: &[String]) -> ExitCode {
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dhcp daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &[String]) -> Result<(), String> {
    let flags = Flags::parse(arguments)?;
    // Before anything opens a file, so that descriptor 3 can only be what was handed over.
    let handed = SingleThreaded::verify().and_then(activation::take_listener);
    let handed = handed.map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("start the asynchronous runtime: {error}"))?.block_on(run(flags, handed))
}

async fn run(flags: Flags, handed: Option<BlockingListener>) -> Result<(), String> {
    let socket = flags.on_host(&flags.socket);
    let failed = |what: &str, path: &Path| {
        let (what, path) = (what.to_owned(), path.display().to_string());
        move |error: io::Error| format!("{what} {path}: {error}")
    };
    let files = linux::process::raise_file_limit().map_err(|error| error.to_string())?;
    let shares = Shares::of(files);
    let keep = Keep::beside(&socket).map_err(failed("keep leases beside", &socket))?;
    let (listener, _own_socket) = match handed {
        Some(listener) => (adopt(listener).map_err(|error| format!("listen for systemd: {error}"))?, None),
        None => {
            let (listener, own) = listen(&socket).map_err(failed("listen at", &socket))?;
            (listener, Some(own))
        }
    };
    let pid_file = flags.pid_file.as_deref().map(|path| {
        let written = fs::write(path, std::process::id().to_string());
        written.and_then(|()| OwnFile::of(path)).map_err(failed("write", path))
    });
    let _pid_file = pid_file.transpose()?;
    let table = Table::adopt(flags, keep, shares);
    let table = table.map_err(|error| format!("read the leases: {error}"))?;
    serve(listener, table, shares).await.map_err(|error| format!("serve: {error}"))
}

/// A file of this daemon, which goes with it. Another one that has its place by then (systemd's socket) is let be.
struct OwnFile {
    path: PathBuf,
    id: (u64, u64),
}

impl OwnFile {
    /// The one that was just made.
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: id(path)? })
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let removed = match id(&self.path) {
            Ok(id) if id != self.id => Ok(()),
            found => found.and_then(|_| fs::remove_file(&self.path)),
        };
        if let Err(error) = removed {
            eprintln!("remove {}: {error}", self.path.display());
        }
    }
}

/// What no two files of the host have in common.
fn id(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// The file of systemd's socket is systemd's, from before the daemon until after it.
fn adopt(listener: BlockingListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// A socket whose daemon was killed is in the way, and is replaced; one that answers is not.
fn listen(socket: &Path) -> io::Result<(UnixListener, OwnFile)> {
    if BlockingStream::connect(socket).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers there"));
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    let own = OwnFile::of(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok((listener, own))
}

/// Until the daemon is told to end. Both arms are cancel-safe: a signal stays noted, a connection stays in the queue.
async fn serve(listener: UnixListener, table: Arc<Table>, shares: Shares) -> io::Result<()> {
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let places = Arc::new(Places::of(shares));
    loop {
        tokio::select! {
            _ = terminated.recv() => return Ok(()),
            _ = interrupted.recv() => return Ok(()),
            accepted = accept(&listener, &places.readings) => {
                let (stream, reading) = accepted?;
                let (table, places) = (table.clone(), places.clone());
                tokio::spawn(async move { answer(stream, reading, &places, &table).await });
            }
        }
    }
}

/// Of connections. One has a place among those that are read, which does not take long, and then one of its kind: so ADDs, which wait for
/// servers, are in the way of nobody else.
struct Places {
    readings: Arc<Semaphore>,
    adds: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Places {
    fn of(shares: Shares) -> Self {
        let share = |count| Arc::new(Semaphore::new(count));
        Self {
            readings: share(shares.readings),
            adds: share(shares.open_adds),
            others: share(shares.open_others),
        }
    }

    /// For a question of this verb. An ADD is not waited for, since its place among those that are read is then not free either.
    async fn enter(&self, verb: &str) -> Result<OwnedSemaphorePermit, ErrorReply> {
        if verb != "ADD" {
            return self.others.clone().acquire_owned().await.map_err(ErrorReply::internal);
        }
        self.adds.clone().try_acquire_owned().map_err(|_| {
            ErrorReply::new(code::TRY_AGAIN_LATER, "too many ADDs wait for DHCP servers: try again later")
        })
    }
}

/// The next connection, with its place; without a place it waits in the kernel's queue. Fails only when `places` is closed.
async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> io::Result<(UnixStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Ok((stream, place)),
            Err(error) => eprintln!("dhcp daemon: accept a connection: {error}"),
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

async fn answer(stream: UnixStream, reading: OwnedSemaphorePermit, places: &Places, table: &Arc<Table>) {
    // Held until the answer is written and the connection closed.
    let mut place = None;
    let kept = &mut place;
    let served = talk::serve(stream, |question| async move {
        *kept = Some(places.enter(&question.verb).await?);
        drop(reading);
        table.answer(question).await
    });
    if let Err(error) = served.await {
        eprintln!("dhcp daemon: a question: {error}");
    }
}
