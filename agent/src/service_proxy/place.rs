//! Whether the proxy is where it works: in a container the host's file systems have to be mounted, and what is missing is to be said.
//!
//! In: paths of the settings. Out: an error or a warning in the words of who installs it. Only looks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// The inode of the root of a control group hierarchy, wherever it is mounted (kernfs).
const ROOT_INODE: u64 = 1;

/// Why programs cannot be pinned.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} is not on a BPF file system: mount one (mount -t bpf bpf /sys/fs/bpf), and in a container the host's"
)]
pub struct NoBpfFileSystem {
    path: PathBuf,
}

/// Whether a folder, which need not exist yet, is or will be on a BPF file system.
pub fn check_bpf_file_system(pin_root: &Path) -> Result<(), NoBpfFileSystem> {
    let present = pin_root.ancestors().find(|path| path.exists());
    let is_bpf =
        present.and_then(|path| statfs(path).ok()).is_some_and(|is| is.filesystem_type() == BPF_FS_MAGIC);
    if is_bpf { Ok(()) } else { Err(NoBpfFileSystem { path: pin_root.to_owned() }) }
}

/// Tells who sees only a part of the control groups: a container that has the mount of its own namespace does.
pub fn warn_of_partial_cgroup(cgroup: &Path) {
    let is_part = fs::metadata(cgroup).is_ok_and(|metadata| metadata.ino() != ROOT_INODE);
    if is_part {
        tracing::warn!(
            cgroup = %cgroup.display(),
            "not the root of the control groups: only processes below it reach Services; in a container mount the host's"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_need_a_bpf_file_system() {
        let elsewhere = tempfile::tempdir().unwrap();
        let refused = check_bpf_file_system(&elsewhere.path().join("orlop")).unwrap_err().to_string();
        assert!(refused.contains("is not on a BPF file system"), "{refused}");
    }
}
