//! Who a container runs as: ids, or names that the image's own /etc/passwd and /etc/group explain.
//!
//! The image's files are read from its unpacked layers, topmost first, with whiteouts and symbolic links honoured, so nothing has to be mounted.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use linux::passwd::{Entry, entries};

use crate::container::{SecurityContext, SupplementalGroupsPolicy};
use crate::error::Error;

/// Symbolic links that are followed.
const MAX_LINKS: usize = 16;

/// Ids of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

fn invalid(field: &str, reason: String) -> Error {
    Error::InvalidArgument { field: field.into(), reason }
}

fn id(field: &str, value: i64) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| invalid(field, format!("{value} is not an id")))
}

/// Decides: the security context wins over the image's `User` (`name`, `uid`, `name:group`, `uid:gid`).
pub fn resolve(
    security: &SecurityContext,
    image_user: &str,
    passwd: &str,
    group: &str,
) -> Result<User, Error> {
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (image_user, None),
    };
    let overridden = security.run_as_user.is_some() || !security.run_as_username.is_empty();
    if security.run_as_group.is_some() && !overridden {
        return Err(invalid("run_as_group", "user group is specified without user".into()));
    }
    let name = match security.run_as_user {
        Some(uid) => id("run_as_user", uid)?.to_string(),
        None if overridden => security.run_as_username.clone(),
        None if image_name.is_empty() => "0".into(),
        None => image_name.into(),
    };
    let entry = find_user(passwd, &name);
    let uid = match (&entry, name.parse::<u32>()) {
        (_, Ok(uid)) => uid,
        (Some(entry), Err(_)) => entry.uid,
        (None, Err(_)) => {
            return Err(invalid(
                "user",
                format!("unable to find user {name}: no matching entries in passwd file"),
            ));
        }
    };
    let gid = match (security.run_as_group, image_group.filter(|_| !overridden)) {
        (Some(gid), _) => id("run_as_group", gid)?,
        (None, Some(wanted)) => find_group(group, wanted).ok_or_else(|| {
            invalid("user", format!("unable to find group {wanted}: no matching entries in group file"))
        })?,
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    if security.supplemental_groups_policy == SupplementalGroupsPolicy::Merge
        && let Some(entry) = &entry
    {
        groups.extend(groups_of(group, entry.name));
    }
    for extra in &security.supplemental_groups {
        groups.push(id("supplemental_groups", *extra)?);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid, gid, groups })
}

fn find_user<'a>(passwd: &'a str, wanted: &str) -> Option<Entry<'a>> {
    entries(passwd).find(|entry| entry.name == wanted || wanted.parse() == Ok(entry.uid))
}

fn find_group(group: &str, wanted: &str) -> Option<u32> {
    let by_name = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == wanted).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    by_name.or_else(|| wanted.parse().ok())
}

fn groups_of<'a>(group: &'a str, name: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split(':').collect();
        fields.get(3)?.split(',').any(|member| member == name).then(|| fields[2].parse().ok()).flatten()
    })
}

enum Found {
    File(PathBuf),
    Link(PathBuf),
    Directory,
    Nothing,
}

/// Reads the passwd or group file of an image. Missing and unreadable ones are empty.
pub fn read_image_file(layers_dir: &Path, layers: &[String], path: &str) -> String {
    let mut wanted = PathBuf::from(path.trim_start_matches('/'));
    for _ in 0..MAX_LINKS {
        match walk(layers_dir, layers, &wanted) {
            Found::File(file) => {
                return fs::File::open(file).and_then(linux::passwd::read).unwrap_or_default();
            }
            Found::Link(target) => wanted = target,
            Found::Directory | Found::Nothing => break,
        }
    }
    String::new()
}

/// Goes down a path, layer by layer for each of its parts. A link gives the path that it leads to.
fn walk(layers_dir: &Path, layers: &[String], path: &Path) -> Found {
    let mut so_far = PathBuf::new();
    let mut visible: Vec<PathBuf> = layers.iter().map(|layer| layers_dir.join(layer)).collect();
    let parts: Vec<Component<'_>> = path.components().collect();
    for (index, part) in parts.iter().enumerate() {
        let Component::Normal(name) = part else { continue };
        let (found, below) = look(&visible, Path::new(name));
        let rest: PathBuf = parts[index + 1..].iter().collect();
        match found {
            Found::Directory => visible = below,
            Found::Link(target) => {
                let base = if target.is_absolute() { PathBuf::new() } else { so_far };
                return Found::Link(normal(
                    &base.join(target.strip_prefix("/").unwrap_or(&target)).join(rest),
                ));
            }
            Found::File(file) if rest.as_os_str().is_empty() => return Found::File(file),
            Found::File(_) | Found::Nothing => return Found::Nothing,
        }
        so_far.push(name);
    }
    Found::Directory
}

/// One name in the directories that are merged; for a directory, those of its layers that are visible.
fn look(directories: &[PathBuf], name: &Path) -> (Found, Vec<PathBuf>) {
    let mut below = Vec::new();
    for directory in directories {
        let path = directory.join(name);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == 0 {
            break;
        }
        if kind.is_dir() {
            let opaque = is_opaque(&path);
            below.push(path);
            if opaque {
                break;
            }
            continue;
        }
        if !below.is_empty() {
            break;
        }
        return match (kind.is_symlink(), kind.is_file()) {
            (true, _) => (fs::read_link(&path).map_or(Found::Nothing, Found::Link), below),
            (false, true) => (Found::File(path), below),
            (false, false) => (Found::Nothing, below),
        };
    }
    (if below.is_empty() { Found::Nothing } else { Found::Directory }, below)
}

fn is_opaque(directory: &Path) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::lgetxattr(directory, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|length| length == 1 && value == *b"y")
}

/// Without `.` and `..`, which cannot leave the root.
fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}
