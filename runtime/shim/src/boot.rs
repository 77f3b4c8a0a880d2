//! From being executed to being ready: leave the starter's session, make the sandbox, listen, then tell the starter how it went.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, bail};
use linux::cgroup::{Group, Layout};
use linux::process::{ForkOptions, SingleThreaded};
use rustix::fs::{Mode, OFlags};
use shim_protocol::ShimConfig;

use crate::keeper::{Keeper, Kept};
use crate::sandbox::Sandbox;

/// Lower than anything in a pod, like containerd's shims.
const OOM_SCORE_ADJ: i32 = -998;
const READY: &[u8] = b"ready";

/// Runs in the process that the runtime started: forks the shim proper, waits until it is ready, and returns.
pub fn start(sandbox: &str, config: &Path) -> Result<()> {
    let text = std::fs::read(config).with_context(|| format!("read {}", config.display()))?;
    let parsed: ShimConfig = serde_json::from_slice(&text)
        .with_context(|| format!("read {}: not a shim configuration", config.display()))?;
    if parsed.sandbox != sandbox {
        bail!("{} is about sandbox \"{}\", not \"{sandbox}\"", config.display(), parsed.sandbox);
    }
    let (read, write) = linux::fds::pipe()?;
    let proof = SingleThreaded::verify()?;
    let mut write = Some(File::from(write));
    let layout = Layout::detect(&parsed.cgroup_root)?;
    let group = parsed.shim_cgroup.as_ref().map(|path| layout.group(path)).transpose()?;
    let unified = group.as_ref().map(make_group).transpose()?.flatten();
    // A process that joins a unified group later waits for the kernel's RCU.
    let options = ForkOptions { cgroup: unified.as_ref().map(AsFd::as_fd), ..ForkOptions::default() };
    linux::process::fork(proof, options, || {
        let outcome = prepare(&parsed, Groups { layout, own: group }, proof);
        let message = match &outcome {
            Ok(_) => READY.to_vec(),
            Err(error) => format!("{error:#}").into_bytes(),
        };
        if let Some(mut write) = write.take() {
            let _ = write.write_all(&message);
        }
        outcome.map_or(1, |mut keeper| keeper.run())
    })?;
    drop(write);
    let mut report = Vec::new();
    File::from(read).read_to_end(&mut report).context("wait for the shim")?;
    match report.as_slice() {
        READY => Ok(()),
        [] => bail!("the shim ended before it was ready"),
        other => bail!("{}", String::from_utf8_lossy(other)),
    }
}

/// Control groups: the machine's, and the shim's own when it has one.
struct Groups {
    layout: Layout,
    own: Option<Group>,
}

fn make_group(group: &Group) -> Result<Option<OwnedFd>> {
    group.create()?;
    Ok(group.open_unified()?)
}

fn prepare(config: &ShimConfig, groups: Groups, proof: SingleThreaded) -> Result<Keeper> {
    linux::process::set_name(c"orlop-shim")?;
    rustix::process::setsid().context("setsid")?;
    rustix::process::chdir("/").context("chdir")?;
    rustix::process::umask(Mode::from_bits_truncate(0o022));
    linux::process::become_subreaper()?;
    let null = redirect(&config.log)?;
    if linux::process::set_oom_score_adj(OOM_SCORE_ADJ).is_err() {
        eprintln!("oom_score_adj stays as it is: no CAP_SYS_RESOURCE");
    }
    if let Some(group) = &groups.own {
        group.join_v1()?;
    }
    let mut sandbox = Sandbox::create(config, proof)?;
    let listener = match listen(&config.socket) {
        Ok(listener) => listener,
        Err(error) => {
            sandbox.destroy();
            return Err(error);
        }
    };
    Keeper::new(config.clone(), groups.layout, Kept { sandbox, listener, null })
}

/// stdin and stdout to /dev/null, stderr to the log.
fn redirect(log: &Path) -> Result<OwnedFd> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open /dev/null")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let log = rustix::fs::open(log, flags, Mode::from_bits_truncate(0o640)).context("open the shim's log")?;
    rustix::stdio::dup2_stdin(&null).context("redirect stdin")?;
    rustix::stdio::dup2_stdout(&null).context("redirect stdout")?;
    rustix::stdio::dup2_stderr(&log).context("redirect stderr")?;
    Ok(null)
}

fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let old = rustix::process::umask(Mode::from_bits_truncate(0o077));
    let listener = UnixListener::bind(path);
    rustix::process::umask(old);
    let listener = listener.with_context(|| format!("listen on {}", path.display()))?;
    listener.set_nonblocking(true).context("listen")?;
    Ok(listener)
}
