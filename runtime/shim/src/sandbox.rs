//! The namespaces that the containers of a pod share, and what is set inside them once.
//!
//! A child is cloned into fresh namespaces, sets host name, loopback and kernel parameters from inside, and is kept only when the pod shares a
//! pid namespace, whose init it then is. The shim itself stays in the node's namespaces and keeps descriptors of the new ones.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use linux::process::{ForkOptions, SingleThreaded};
use shim_protocol::ShimConfig;

use crate::pod_init;

/// Namespaces and mounts of the sandbox.
#[derive(Debug, Default)]
pub struct Sandbox {
    /// The pod's own network namespace.
    pub network: Option<OwnedFd>,
    /// The pod's own ipc namespace.
    pub ipc: Option<OwnedFd>,
    /// The pod's own uts namespace.
    pub uts: Option<OwnedFd>,
    /// The pid namespace that its containers share.
    pub pid: Option<OwnedFd>,
    /// The shared pid namespace's init.
    pub init: Option<i32>,
    netns_path: Option<PathBuf>,
    shm_path: Option<PathBuf>,
}

impl Sandbox {
    /// Makes everything; a failure leaves nothing behind.
    pub fn create(config: &ShimConfig, proof: SingleThreaded) -> Result<Sandbox> {
        let mut sandbox = Sandbox::default();
        let made = sandbox.fill(config, proof);
        if made.is_err() {
            sandbox.destroy();
        }
        made.map(|()| sandbox)
    }

    fn fill(&mut self, config: &ShimConfig, proof: SingleThreaded) -> Result<()> {
        self.make_namespaces(config, proof)?;
        if let (Some(path), Some(_)) = (&config.netns, &self.network) {
            let parent = path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            File::create(path).with_context(|| format!("create {}", path.display()))?;
            self.netns_path = Some(path.clone());
            let source = Self::descriptor_path(self.network.as_ref());
            linux::mount::bind(&source, path)?;
        }
        if let Some(path) = &config.shm {
            std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
            self.shm_path = Some(path.clone());
            linux::mount::tmpfs(path, &format!("mode=1777,size={}", shim_protocol::SHM_BYTES))?;
        }
        Ok(())
    }

    fn descriptor_path(fd: Option<&OwnedFd>) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", fd.map_or(-1, |fd| fd.as_raw_fd())))
    }

    fn make_namespaces(&mut self, config: &ShimConfig, proof: SingleThreaded) -> Result<()> {
        let pick = |wanted: bool, flag: i32| if wanted { flag.cast_unsigned() as u64 } else { 0 };
        let namespaces = pick(config.netns.is_some(), libc::CLONE_NEWNET)
            | pick(config.ipc, libc::CLONE_NEWIPC)
            | pick(config.hostname.is_some(), libc::CLONE_NEWUTS)
            | pick(config.pid, libc::CLONE_NEWPID);
        if namespaces == 0 {
            return Ok(());
        }
        let (report_read, report_write) = linux::fds::pipe()?;
        let (go_read, go_write) = linux::fds::pipe()?;
        let options = ForkOptions { namespaces, ..ForkOptions::default() };
        let (pid, _pidfd) =
            linux::process::fork(proof, options, || inside(config, report_write.as_fd(), &go_read))?;
        drop((report_write, go_read));
        let outcome = self.open_namespaces(config, pid, File::from(report_read));
        // An init stays after this, anything else ends.
        let _ = File::from(go_write).write_all(b"g");
        if config.pid && outcome.is_ok() {
            self.init = Some(pid);
        } else {
            if outcome.is_err() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
        }
        outcome
    }

    fn open_namespaces(&mut self, config: &ShimConfig, pid: i32, mut report: File) -> Result<()> {
        let mut message = [0_u8; 512];
        let length = report.read(&mut message).context("wait for the namespaces")?;
        match &message[..length] {
            b"ok" => {}
            [] => bail!("set up namespaces: the process ended early"),
            other => bail!("{}", String::from_utf8_lossy(other)),
        }
        let open = |name: &str| -> Result<OwnedFd> {
            let path = format!("/proc/{pid}/ns/{name}");
            Ok(File::open(&path).with_context(|| format!("open {path}"))?.into())
        };
        self.network = config.netns.as_ref().map(|_| open("net")).transpose()?;
        self.ipc = config.ipc.then(|| open("ipc")).transpose()?;
        self.uts = config.hostname.as_ref().map(|_| open("uts")).transpose()?;
        self.pid = config.pid.then(|| open("pid")).transpose()?;
        Ok(())
    }

    /// Takes the mounts off. The namespaces end with their last process and descriptor.
    pub fn destroy(&mut self) {
        if let Some(init) = self.init.take() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(path) = self.netns_path.take() {
            report(linux::mount::detach(&path));
            report(std::fs::remove_file(&path));
        }
        if let Some(path) = self.shm_path.take() {
            report(linux::mount::detach(&path));
            report(std::fs::remove_dir(&path));
        }
    }
}

fn report<E: std::fmt::Display>(result: Result<(), E>) {
    if let Err(error) = result {
        eprintln!("tear the sandbox down: {error}");
    }
}

/// Runs in the new namespaces; returns the exit code.
fn inside(config: &ShimConfig, report: std::os::fd::BorrowedFd<'_>, go: &OwnedFd) -> i32 {
    // The pipe below would not tell of the parent's death: this process holds its other end, too.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let Ok(report) = report.try_clone_to_owned() else { return 1 };
    let mut report = File::from(report);
    let outcome = set_up(config);
    let message = match &outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let _ = report.write_all(message.as_bytes());
    drop(report);
    let mut byte = [0];
    if let Ok(go) = go.try_clone() {
        let _ = File::from(go).read(&mut byte);
    }
    match outcome {
        Ok(()) if config.pid => pod_init::run(),
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn set_up(config: &ShimConfig) -> Result<()> {
    if let Some(hostname) = &config.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .with_context(|| format!("set host name \"{hostname}\""))?;
    }
    if config.netns.is_some() {
        linux::interface::loopback_up()?;
    }
    for (name, value) in &config.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        std::fs::write(&path, value).with_context(|| format!("set sysctl \"{name}\" to \"{value}\""))?;
    }
    if config.pid {
        pod_init::confine()?;
    }
    Ok(())
}
