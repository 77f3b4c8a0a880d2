//! Pid 1 of a pid namespace that the containers of a pod share: it reaps, and can do nothing else.
//!
//! It has no capabilities and an empty, read-only root: /proc/1/root is what containers of the pod see of it. It dies with the shim.

use anyhow::{Context, Result};
use libcontainer::syscall::syscall::create_syscall;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use oci_spec::runtime::LinuxCapabilities;
use std::collections::HashSet;
use std::path::Path;

/// Takes everything away that a process can lack. Runs in the init itself, as root, before anything shares its namespace.
pub fn confine() -> Result<()> {
    linux::process::set_name(c"orlop-pod-init")?;
    linux::process::unshare(libc::CLONE_NEWNS)?;
    linux::mount::set_propagation(Path::new("/"), linux::mount::Propagation::PrivateRecursive)?;
    let root = Path::new("/proc");
    linux::mount::tmpfs(root, "mode=0555,size=4k,nr_inodes=1,ro")?;
    rustix::process::chdir(root).context("enter the empty root")?;
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    linux::mount::detach(Path::new("."))?;
    rustix::process::chdir("/").context("enter the empty root")?;
    let mut none = LinuxCapabilities::default();
    none.set_bounding(Some(HashSet::new()));
    none.set_effective(Some(HashSet::new()));
    none.set_permitted(Some(HashSet::new()));
    none.set_inheritable(Some(HashSet::new()));
    none.set_ambient(Some(HashSet::new()));
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    libcontainer::capabilities::drop_privileges(&none, create_syscall().as_ref())
        .context("drop capabilities")?;
    Ok(())
}

/// Reaps until it is killed.
pub fn run() -> i32 {
    // SAFETY: this process never returns to code that owns a descriptor.
    if unsafe { linux::fds::close_from(0) }.is_err() {
        return 1;
    }
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    if child.thread_block().is_err() {
        return 1;
    }
    loop {
        if waitpid(None, None).is_err() {
            let _ = child.wait();
        }
    }
}
