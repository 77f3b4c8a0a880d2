//! The volumes of a pod: made before its containers, kept current while it runs, taken down after it.
//!
//! In: the pod's spec, ConfigMaps, Secrets, fields, tokens. Out: directories below `<root>/pods/<uid>/volumes/<plugin>/<name>` (the kubelet's
//! layout), bind mounts for containers. Everything may be done again at any time: preparing what is there changes only what differs, and
//! removing what is gone is fine. A kind of volume that this node does not have is a clear error.

mod atomic_writer;
mod host_path;
mod owner;
mod payload;
mod sub_path;
mod token;

pub use token::Kept as KeptTokens;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, PodSpec, Volume, VolumeMount};
use linux::mount::MountEntry;
use runtime::{Mount, MountPropagation};

use super::downward::Source;
use super::execute;
use super::objects::{Key, Kind};
use super::resources;
use super::sandbox::Names;
use super::site::Site;
use crate::api::chain;

/// Permissions of an emptyDir, whoever the container runs as.
const EMPTY_DIR_MODE: u32 = 0o777;

/// Volumes that are ready.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    /// When a token in them has to be renewed.
    pub refresh_at: Option<Timestamp>,
}

/// What kind of volume it is, as far as this module tells them apart.
enum Plugin<'a> {
    EmptyDir(&'a EmptyDirVolumeSource),
    HostPath {
        path: &'a str,
        kind: &'a str,
    },
    /// Files that the node writes; the name of the folder, and whether they are kept in memory only.
    Payload {
        folder: &'static str,
        memory: bool,
    },
}

fn plugin(volume: &Volume) -> Result<Plugin<'_>, String> {
    if let Some(empty) = &volume.empty_dir {
        return Ok(Plugin::EmptyDir(empty));
    }
    if let Some(host) = &volume.host_path {
        return Ok(Plugin::HostPath { path: &host.path, kind: host.type_.as_deref().unwrap_or_default() });
    }
    let (folder, memory) = if volume.config_map.is_some() {
        ("kubernetes.io~configmap", false)
    } else if volume.secret.is_some() {
        ("kubernetes.io~secret", true)
    } else if volume.downward_api.is_some() {
        ("kubernetes.io~downward-api", true)
    } else if volume.projected.is_some() {
        ("kubernetes.io~projected", true)
    } else {
        let text = serde_json::to_value(volume).unwrap_or_default();
        let kind = text.as_object().and_then(|fields| fields.keys().find(|key| *key != "name").cloned());
        return match kind {
            // As the API server defaults it.
            None => Ok(Plugin::Payload { folder: "kubernetes.io~configmap", memory: false }),
            Some(kind) => Err(format!("volumes of type {kind} are not supported by this node")),
        };
    };
    Ok(Plugin::Payload { folder, memory })
}

fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    spec(pod).into_iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = spec(pod)?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

// ----- which objects

/// The objects that a container's environment refers to.
pub fn container_keys(container: &Container) -> BTreeSet<(Kind, String)> {
    let mut keys = BTreeSet::new();
    for from in container.env_from.iter().flatten() {
        keys.extend(from.config_map_ref.iter().map(|reference| (Kind::ConfigMap, reference.name.clone())));
        keys.extend(from.secret_ref.iter().map(|reference| (Kind::Secret, reference.name.clone())));
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        keys.extend(from.config_map_key_ref.iter().map(|key| (Kind::ConfigMap, key.name.clone())));
        keys.extend(from.secret_key_ref.iter().map(|key| (Kind::Secret, key.name.clone())));
    }
    keys
}

/// The objects that a volume refers to.
fn volume_keys(volume: &Volume) -> BTreeSet<(Kind, String)> {
    let mut keys = BTreeSet::new();
    keys.extend(volume.config_map.iter().map(|map| (Kind::ConfigMap, map.name.clone())));
    let secret = volume.secret.iter().filter_map(|secret| secret.secret_name.clone());
    keys.extend(secret.map(|name| (Kind::Secret, name)));
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        keys.extend(source.config_map.iter().map(|map| (Kind::ConfigMap, map.name.clone())));
        keys.extend(source.secret.iter().map(|secret| (Kind::Secret, secret.name.clone())));
    }
    keys
}

/// All objects that a pod uses.
pub fn pod_keys(pod: &Pod) -> BTreeSet<Key> {
    let Some(spec) = spec(pod) else { return BTreeSet::new() };
    let mut keys: BTreeSet<(Kind, String)> = volumes(pod).flat_map(volume_keys).collect();
    keys.extend(resources::all_containers(spec).flat_map(container_keys));
    keys.extend(spec.image_pull_secrets.iter().flatten().map(|secret| (Kind::Secret, secret.name.clone())));
    let namespace = Names::of(pod).namespace;
    keys.into_iter().map(|(kind, name)| Key { kind, namespace: namespace.to_owned(), name }).collect()
}

// ----- making them

/// Makes the pod's folder and its volumes, or brings them up to date.
///
/// # Errors
/// The first volume that cannot be made, in the words of a FailedMount event.
pub async fn prepare(site: Arc<Site>, pod: Arc<Pod>, kept: Arc<KeptTokens>) -> Result<Prepared, String> {
    let mut refresh_at: Option<Timestamp> = None;
    let folder = site.pod_dir(Names::of(&pod).uid);
    execute::blocking(move || make_private(&folder)).await?;
    for volume in volumes(&pod) {
        let failed =
            |error: String| format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name);
        let tokens = token::tokens(&site, &pod, volume, &kept).await.map_err(failed)?;
        refresh_at = [refresh_at, tokens.refresh_at].into_iter().flatten().min();
        let keys = volume_keys(volume);
        let objects = execute::load(&site, Names::of(&pod).namespace, keys).await.map_err(failed)?;
        let files = {
            let pod_ips: Vec<String> = pod_ips(&pod);
            let allocatable = site.allocatable();
            let source =
                Source { pod: pod.as_ref(), pod_ips: &pod_ips, node: &site.node, allocatable: &allocatable };
            payload::build(volume, source, &objects, &tokens.by_path)
                .map_err(|error| failed(error.to_string()))?
        };
        let (site, pod, volume) = (site.clone(), pod.clone(), volume.clone());
        execute::blocking(move || {
            make(&site, &pod, &volume, &files)
                .map_err(|error| format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name))
        })
        .await?;
    }
    Ok(Prepared { refresh_at })
}

fn pod_ips(pod: &Pod) -> Vec<String> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
    ips.into_iter().flatten().map(|ip| ip.ip.clone()).collect()
}

fn make_private(folder: &Path) -> Result<(), String> {
    make_folder(folder)?;
    // Volumes hold secrets: nobody but root comes here by itself.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o750))
        .map_err(|error| failed("chmod", folder, &error))
}

fn make_folder(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| failed("mkdir", folder, &error))
}

fn failed(call: &str, path: &Path, error: &io::Error) -> String {
    format!("{call} {}: {error}", path.display())
}

/// Where a volume is on the node.
fn volume_path(site: &Site, uid: &str, volume: &Volume) -> Result<PathBuf, String> {
    let folder = match plugin(volume)? {
        Plugin::HostPath { path, .. } => return Ok(PathBuf::from(path)),
        Plugin::EmptyDir(_) => "kubernetes.io~empty-dir",
        Plugin::Payload { folder, .. } => folder,
    };
    Ok(site.pod_dir(uid).join("volumes").join(folder).join(&volume.name))
}

fn make(site: &Site, pod: &Pod, volume: &Volume, files: &payload::Payload) -> Result<(), String> {
    let path = volume_path(site, Names::of(pod).uid, volume)?;
    match plugin(volume)? {
        Plugin::HostPath { kind, .. } => host_path::check(&path, kind),
        Plugin::EmptyDir(empty) => make_empty_dir(&path, empty, fs_group(pod)),
        Plugin::Payload { memory, .. } => {
            make_folder(&path)?;
            if memory && !is_mount_point(&path)? {
                linux::mount::tmpfs_of_programs(&path, "mode=0755,size=64m")
                    .map_err(|error| chain(&error))?;
            }
            atomic_writer::write(&path, files, fs_group(pod)).map_err(|error| chain(&error))
        }
    }
}

fn make_empty_dir(path: &Path, empty: &EmptyDirVolumeSource, group: Option<u32>) -> Result<(), String> {
    let is_new = !path.exists();
    make_folder(path)?;
    let in_memory = matches!(empty.medium.as_deref(), Some(medium) if medium.starts_with("Memory"));
    if let Some(medium) = empty.medium.as_deref().filter(|medium| medium.starts_with("HugePages")) {
        return Err(format!("emptyDir medium {medium} is not supported by this node"));
    }
    if in_memory && !is_mount_point(path)? {
        let limit = empty.size_limit.as_ref().map(resources::units).filter(|bytes| *bytes > 0);
        let options = limit.map_or("mode=0777".to_owned(), |bytes| format!("mode=0777,size={bytes}"));
        linux::mount::tmpfs_of_programs(path, &options).map_err(|error| chain(&error))?;
    } else if !is_new {
        // What containers did to it stays.
        return Ok(());
    }
    let mode = fs::Permissions::from_mode(EMPTY_DIR_MODE);
    fs::set_permissions(path, mode).map_err(|error| failed("chmod", path, &error))?;
    match group {
        Some(group) => {
            owner::give(path, group, owner::Access::ReadWrite).map_err(|error| failed("chown", path, &error))
        }
        None => Ok(()),
    }
}

/// Whether something is mounted at a directory.
fn is_mount_point(path: &Path) -> Result<bool, String> {
    let here = fs::symlink_metadata(path).map_err(|error| failed("stat", path, &error))?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let above = fs::symlink_metadata(parent).map_err(|error| failed("stat", parent, &error))?;
    Ok(here.dev() != above.dev())
}

// ----- mounting them

/// The mounts of a container's volumes.
///
/// # Errors
/// A volume that the pod does not have, or a sub path that leads out of its volume, in words.
pub fn mounts(
    site: &Site,
    pod: &Pod,
    container: &Container,
    expand: &dyn Fn(&str) -> String,
) -> Result<Vec<Mount>, String> {
    let uid = Names::of(pod).uid;
    let mut mounts = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = volumes(pod).find(|volume| volume.name == wanted.name).ok_or_else(|| {
            format!("volume \"{}\" of container \"{}\" not found", wanted.name, container.name)
        })?;
        let path = volume_path(site, uid, volume)?;
        let host_path = match sub_path_of(wanted, expand) {
            None => path,
            Some(sub) => {
                let target = site
                    .pod_dir(uid)
                    .join("volume-subpaths")
                    .join(&volume.name)
                    .join(&container.name)
                    .join(index.to_string());
                sub_path::bind(&path, &sub, &target).map_err(|error| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                        wanted.name, container.name
                    )
                })?;
                target
            }
        };
        mounts.push(mount(wanted, volume, host_path)?);
    }
    Ok(mounts)
}

fn sub_path_of(wanted: &VolumeMount, expand: &dyn Fn(&str) -> String) -> Option<String> {
    if let Some(expression) = wanted.sub_path_expr.as_deref().filter(|text| !text.is_empty()) {
        return Some(expand(expression));
    }
    wanted.sub_path.clone().filter(|text| !text.is_empty())
}

fn mount(wanted: &VolumeMount, volume: &Volume, host_path: PathBuf) -> Result<Mount, String> {
    let written_by_node = matches!(plugin(volume)?, Plugin::Payload { .. });
    let readonly = wanted.read_only == Some(true) || written_by_node;
    let recursive = wanted.recursive_read_only.as_deref().unwrap_or("Disabled");
    Ok(Mount {
        container_path: absolute(&wanted.mount_path),
        host_path,
        readonly,
        recursive_read_only: readonly && recursive != "Disabled",
        propagation: match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
    })
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

// ----- taking them down

/// Takes down the volumes of a pod; what containers said about their end stays. Fine when there is nothing.
///
/// # Errors
/// What could not be removed, in words; everything else is removed all the same.
pub fn remove(site: &Site, uid: &str) -> Result<(), String> {
    let folder = site.pod_dir(uid);
    let parts = [folder.join("volume-subpaths"), folder.join("volumes")];
    let table = unmount_below(&folder)?;
    let mut result = Ok(());
    for part in parts {
        let removed = remove_unmounted(&part, &table);
        if result.is_ok() {
            result = removed;
        }
    }
    result
}

/// Removes all that the node keeps for a pod that is deleted: its volumes with the rest of its folder, and its logs.
///
/// # Errors
/// What could not be removed, in words.
pub fn forget(site: &Site, pod: &Pod) -> Result<(), String> {
    let names = Names::of(pod);
    let folder = site.pod_dir(names.uid);
    let table = unmount_below(&folder)?;
    remove_unmounted(&folder, &table)?;
    remove_unmounted(&names.log_directory(&site.log_root), &table)
}

/// Takes off everything that is mounted below a folder, the deepest first. Gives what is mounted then: the table of a node with many pods is
/// long, so it is read again only when something was taken off.
fn unmount_below(folder: &Path) -> Result<Vec<MountEntry>, String> {
    let read = || linux::mount::table().map_err(|error| chain(&error));
    let table = read()?;
    let mut points: Vec<&Path> = mounted_in(folder, &table).filter(|point| *point != folder).collect();
    if points.is_empty() {
        return Ok(table);
    }
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in points {
        linux::mount::detach(point).map_err(|error| chain(&error))?;
    }
    read()
}

fn mounted_in<'a>(folder: &'a Path, table: &'a [MountEntry]) -> impl Iterator<Item = &'a Path> {
    table.iter().map(|entry| entry.mount_point.as_path()).filter(move |point| point.starts_with(folder))
}

/// Removes a folder with all that is in it. What `table` says is mounted in it makes it fail before anything is removed.
fn remove_unmounted(folder: &Path, table: &[MountEntry]) -> Result<(), String> {
    if let Some(point) = mounted_in(folder, table).next() {
        return Err(format!("remove {}: {} is still mounted", folder.display(), point.display()));
    }
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", folder, &error)),
    }
}

/// Files by path, for a volume that has none of its own.
pub(super) type Tokens = BTreeMap<String, String>;
