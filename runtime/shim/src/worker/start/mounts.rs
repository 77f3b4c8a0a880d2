//! The mount namespace of a start: what libcontainer needs, and little else.
//!
//! Input: the request and the container's spec; effect: on the worker, which alone has this namespace. libcontainer reads the mount table two dozen times
//! a container, and a node has at least two mounts for each pod, so what cannot matter to the
//! container is taken off first.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use linux::mount::{MountEntry, Overlay, Propagation};
use oci_spec::runtime::Spec;

use super::Start;

#[cfg(test)]
mod tests;

/// The bundle that libcontainer gets lies in memory, in the worker's mount namespace, and is gone with it.
pub(super) fn arrange(start: &Start<'_>, spec: &Spec, bundle: &Path) -> Result<()> {
    let request = start.request;
    linux::process::unshare(libc::CLONE_NEWNS)?;
    let staged = request
        .staged
        .iter()
        .map(|staged| Ok((linux::mount::clone_tree(&staged.source)?, &staged.target)))
        .collect::<Result<Vec<(OwnedFd, &PathBuf)>>>()?;
    linux::mount::set_propagation(Path::new("/"), Propagation::SlaveRecursive)?;
    let table = hide_cgroups(start.cgroup_root)?;
    hide_pods(start, spec, &table)?;
    linux::mount::tmpfs(start.oci_root, "mode=0700")?;
    let target = bundle.join("rootfs");
    std::fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
    let root = &request.rootfs;
    rustix::process::chdir(&root.directory).with_context(|| format!("enter {}", root.directory.display()))?;
    let overlay =
        Overlay { lower: root.lower.clone(), upper: Some(root.upper.clone()), work: Some(root.work.clone()) };
    linux::mount::overlay(&overlay, &target)?;
    rustix::process::chdir("/").context("leave the layers")?;
    make_directory(&target, &request.cwd)?;
    for (tree, target) in staged {
        linux::mount::attach_tree(&tree, target)?;
    }
    Ok(())
}

/// A covered mount would still be in the mount table, where libcontainer looks: they are taken off, the innermost first, in this mount namespace.
/// The usual place goes first, with all that is below it: the kernel waits for all processors in each call that takes something off.
/// Gives what is mounted otherwise.
fn hide_cgroups(cgroup_root: &Path) -> Result<Vec<MountEntry>> {
    linux::mount::detach(cgroup_root)?;
    let is_cgroup = |entry: &MountEntry| matches!(entry.filesystem.as_str(), "cgroup" | "cgroup2");
    let (cgroups, others): (Vec<_>, Vec<_>) = linux::mount::table()?.into_iter().partition(is_cgroup);
    for entry in cgroups.into_iter().rev() {
        linux::mount::detach(&entry.mount_point)?;
    }
    linux::mount::tmpfs(cgroup_root, "mode=0555,size=4k,nr_inodes=1,ro")?;
    Ok(others)
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

/// Takes off the file system with the node's volatile state, on which the network namespaces and the shared memory of all pods are mounted, unless the
/// container is to see something of it. An empty one in its place has the few paths that this start goes on with.
fn hide_pods(start: &Start<'_>, spec: &Spec, table: &[MountEntry]) -> Result<()> {
    let shm = start.sandbox.shm_path();
    let sources = spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref());
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let listener = seccomp.and_then(|seccomp| seccomp.listener_path().as_deref());
    let needed: Vec<PathBuf> = sources
        .filter(|source| source.is_absolute() && Some(*source) != shm)
        .chain(listener)
        .chain([start.request.rootfs.directory.as_path(), start.request.bundle.as_path()])
        // What is not there is told by libcontainer.
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    let place = |path: &Path| path.canonicalize().with_context(|| format!("find {}", path.display()));
    let oci_root = place(start.oci_root)?;
    let Some(volatile) = dispensable(&oci_root, &needed, table) else { return Ok(()) };
    let shm = shm.map(|path| anyhow::Ok((linux::mount::clone_tree(path)?, place(path)?))).transpose()?;
    linux::mount::detach(volatile)?;
    linux::mount::tmpfs(volatile, "mode=0755")?;
    let make =
        |path: &Path| std::fs::create_dir_all(path).with_context(|| format!("make {}", path.display()));
    make(&oci_root)?;
    if let Some((tree, path)) = shm {
        make(&path)?;
        linux::mount::attach_tree(tree, &path)?;
    }
    Ok(())
}

/// The mount point that `path` lies on, when nothing that is needed lies there too, or above it with all that is mounted below.
fn dispensable<'a>(path: &Path, needed: &[PathBuf], table: &'a [MountEntry]) -> Option<&'a Path> {
    let points = table.iter().map(|entry| entry.mount_point.as_path());
    let point =
        points.filter(|point| path.starts_with(point)).max_by_key(|point| point.components().count())?;
    let free = |needed: &PathBuf| !needed.starts_with(point) && !point.starts_with(needed);
    (point != Path::new("/") && needed.iter().all(free)).then_some(point)
}
