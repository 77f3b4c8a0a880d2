//! Device nodes of a container, and the rules for what it may use.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shim_protocol::DeviceRule;

use crate::container::Device;
use crate::error::Error;

/// Device nodes that are found below /dev at most.
const MAX_NODES: usize = 4096;
/// Directories of /dev that containers have their own of.
const SKIPPED: [&str; 5] = ["pts", "shm", "mqueue", "console", ".udev"];

/// A node to make in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    path: String,
    kind: char,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    access: String,
}

impl Node {
    /// In the specification's words.
    pub fn to_spec(&self) -> Value {
        json!({
            "path": self.path,
            "type": self.kind.to_string(),
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        })
    }

    fn read(host: &Path, container: &str, access: &str) -> Result<Option<Node>, Error> {
        let metadata = std::fs::metadata(host).map_err(|source| Error::Io {
            operation: format!("look at device {}", host.display()),
            source,
        })?;
        let kind = match metadata.file_type() {
            kind if kind.is_char_device() => 'c',
            kind if kind.is_block_device() => 'b',
            _ => return Ok(None),
        };
        Ok(Some(Node {
            path: container.into(),
            kind,
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            access: access.into(),
        }))
    }
}

/// The asked-for devices. A directory stands for the devices in it, as in Docker.
pub fn requested(devices: &[Device]) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::new();
    for device in devices {
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        match Node::read(&device.host_path, &device.container_path, access)? {
            Some(node) => nodes.push(node),
            None => collect(&device.host_path, Path::new(&device.container_path), &mut nodes),
        }
    }
    Ok(nodes)
}

/// All devices of the host, for privileged containers.
pub fn host() -> Vec<Node> {
    let mut nodes = Vec::new();
    collect(Path::new("/dev"), Path::new("/dev"), &mut nodes);
    nodes
}

fn collect(directory: &Path, shown_as: &Path, nodes: &mut Vec<Node>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else { continue };
        if SKIPPED.iter().any(|skipped| name == **skipped) || nodes.len() >= MAX_NODES {
            continue;
        }
        let (path, shown): (PathBuf, PathBuf) = (entry.path(), shown_as.join(&name));
        if kind.is_dir() {
            collect(&path, &shown, nodes);
        } else if !kind.is_symlink()
            && let Ok(Some(node)) = Node::read(&path, &shown.display().to_string(), "rwm")
        {
            nodes.push(node);
        }
    }
}

/// What an ordinary container may use: the harmless devices as runc and containerd have it, and what was asked for. It may make
/// nodes of every character device, which without a further rule nobody in it can open. Unlike there it may make none of
/// block devices: a node of the machine's disk has no use in it but for somebody who can open it.
pub fn rules(nodes: &[Node]) -> Vec<DeviceRule> {
    let rule = |kind, major, minor, access: &str| DeviceRule { kind, major, minor, access: access.into() };
    let mut rules = vec![
        rule('c', None, None, "m"),
        rule('c', Some(1), Some(3), "rwm"),
        rule('c', Some(1), Some(5), "rwm"),
        rule('c', Some(1), Some(7), "rwm"),
        rule('c', Some(1), Some(8), "rwm"),
        rule('c', Some(1), Some(9), "rwm"),
        rule('c', Some(5), Some(0), "rwm"),
        rule('c', Some(5), Some(1), "rwm"),
        rule('c', Some(5), Some(2), "rwm"),
        rule('c', Some(136), None, "rwm"),
    ];
    for node in nodes {
        rules.push(rule(node.kind, Some(node.major), Some(node.minor), &node.access));
        // The rules hold already when its node is made for the container.
        rules.push(rule(node.kind, Some(node.major), Some(node.minor), "m"));
    }
    rules
}
