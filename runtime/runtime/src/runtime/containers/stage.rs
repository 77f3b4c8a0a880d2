//! The directory of a container before anything runs in it: bundle, writable layer, sources and places of mounts.
//!
//! Input: its configuration; output: which mounts are staged, and where. Mounts nothing: that is the shim's worker's.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::io;
use crate::container::{ContainerConfig, Mount, MountPropagation};
use crate::error::Error;
use crate::spec::POD_FILES;

/// The directories of a container: its bundle, and its writable layer.
pub(in crate::runtime) fn make_directories(directory: &Path) -> Result<(), Error> {
    let make = |path: &Path, mode| {
        let made = std::fs::create_dir_all(path).and_then(|()| set_mode(path, mode));
        made.map_err(io(format!("make {}", path.display())))
    };
    make(directory, 0o711)?;
    make(&directory.join("upper"), 0o755)?;
    make(&directory.join("work"), 0o711)
}

/// Makes the layer below all others: the places of the mounts that every container has. What an image has there comes before it.
pub(in crate::runtime) fn make_mount_points(layer: &Path) -> Result<(), Error> {
    let failed = || io(format!("make mount points in {}", layer.display()));
    for directory in ["", "dev", "etc", "proc", "sys"] {
        let path = layer.join(directory);
        std::fs::create_dir_all(&path).and_then(|()| set_mode(&path, 0o755)).map_err(failed())?;
    }
    for (path, _) in POD_FILES {
        let path = layer.join(path.trim_start_matches('/'));
        let made = std::fs::File::options().append(true).create(true).open(&path);
        made.and_then(|_| set_mode(&path, 0o644)).map_err(failed())?;
    }
    Ok(())
}

/// What containers see has a mode of its own, whatever this process's umask is. One that is right already is left alone: layers may be in use.
pub(in crate::runtime) fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    let now = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    if now == mode { Ok(()) } else { std::fs::set_permissions(path, Permissions::from_mode(mode)) }
}

/// Mounts that the shim's worker has to take hold of before it changes its mount namespace, with their places in the bundle: those with
/// Bidirectional propagation, and those that show the host's control groups.
pub(super) fn staged_paths(config: &ContainerConfig, directory: &Path) -> Vec<(usize, PathBuf)> {
    let groups = Path::new("/sys/fs/cgroup");
    let wanted = |(_, mount): &(usize, &Mount)| {
        let shows_groups = mount.host_path.starts_with(groups) || groups.starts_with(&mount.host_path);
        mount.propagation == MountPropagation::Bidirectional || shows_groups
    };
    let place = |(index, _)| (index, directory.join(format!("staged-{index}")));
    config.mounts.iter().enumerate().filter(wanted).map(place).collect()
}

/// Makes missing sources of mounts, as containerd does, and the places of those that are staged.
pub(super) fn stage(config: &ContainerConfig, directory: &Path) -> Result<Vec<(usize, PathBuf)>, Error> {
    for mount in &config.mounts {
        if !mount.host_path.exists() {
            std::fs::create_dir_all(&mount.host_path)
                .map_err(io(format!("make mount source {}", mount.host_path.display())))?;
        }
    }
    let staged = staged_paths(config, directory);
    for (index, place) in &staged {
        let made = match config.mounts[*index].host_path.is_dir() {
            true => std::fs::create_dir(place),
            false => std::fs::File::create(place).map(|_| ()),
        };
        made.map_err(io(format!("make {}", place.display())))?;
    }
    Ok(staged)
}
