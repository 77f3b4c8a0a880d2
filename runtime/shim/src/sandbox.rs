//! The namespaces that the containers of a pod share, and what is set inside them once.
//!
//! The shim goes into fresh namespaces, sets host name, loopback and kernel parameters from inside, starts the init of a pid namespace that the pod
//! shares, and comes back: it lives in the node's namespaces and keeps descriptors of the new ones. One that cannot come back ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use linux::process::{ForkOptions, SingleThreaded};
use nix::sched::{CloneFlags, setns};
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
        let all = [
            (config.netns.is_some(), CloneFlags::CLONE_NEWNET, "net"),
            (config.ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
            (config.hostname.is_some(), CloneFlags::CLONE_NEWUTS, "uts"),
        ];
        let wanted: Vec<_> = all.into_iter().filter(|(wanted, ..)| *wanted).collect();
        let home = wanted
            .iter()
            .map(|(_, kind, name)| Ok((open_namespace("self", name)?, *kind)))
            .collect::<Result<Vec<(OwnedFd, CloneFlags)>>>()?;
        linux::process::unshare(wanted.iter().fold(0, |all, (_, kind, _)| all | kind.bits()))?;
        let outcome = self.inside(config, proof);
        for (namespace, kind) in home {
            setns(namespace, kind).context("return from the pod's namespaces")?;
        }
        outcome
    }

    fn inside(&mut self, config: &ShimConfig, proof: SingleThreaded) -> Result<()> {
        set_up(config)?;
        let own = |wanted: bool, name: &str| wanted.then(|| open_namespace("self", name)).transpose();
        self.network = own(config.netns.is_some(), "net")?;
        self.ipc = own(config.ipc, "ipc")?;
        self.uts = own(config.hostname.is_some(), "uts")?;
        if config.pid {
            self.start_init(proof)?;
        }
        Ok(())
    }

    fn start_init(&mut self, proof: SingleThreaded) -> Result<()> {
        let (report, theirs) = linux::fds::pipe()?;
        let options =
            ForkOptions { namespaces: libc::CLONE_NEWPID.cast_unsigned().into(), ..ForkOptions::default() };
        let mut theirs = Some(File::from(theirs));
        let (pid, _pidfd) = linux::process::fork(proof, options, || run_init(theirs.take()))?;
        drop(theirs);
        self.init = Some(pid);
        let mut message = String::new();
        File::from(report).read_to_string(&mut message).context("wait for the pod's init")?;
        match message.as_str() {
            "ok" => {}
            "" => bail!("the pod's init ended early"),
            other => bail!("start the pod's init: {other}"),
        }
        self.pid = Some(open_namespace(&pid.to_string(), "pid")?);
        Ok(())
    }

    /// Where its containers' /dev/shm comes from, unless it is the node's.
    pub fn shm_path(&self) -> Option<&Path> {
        self.shm_path.as_deref()
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

fn open_namespace(process: &str, name: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{process}/ns/{name}");
    Ok(File::open(&path).with_context(|| format!("open {path}"))?.into())
}

/// Runs in the init of the pod's pid namespace; returns the exit code.
fn run_init(report: Option<File>) -> i32 {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let outcome = pod_init::confine();
    let message = match &outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    if let Some(mut report) = report {
        let _ = report.write_all(message.as_bytes());
    }
    outcome.map_or(1, |()| pod_init::run())
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
    Ok(())
}
