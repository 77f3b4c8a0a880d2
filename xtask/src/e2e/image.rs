//! Disks of the virtual machine: the root file system from distribution packages, and the payload from this checkout.
//!
//! A disk is made from a folder by `mke2fs -d`; nothing is mounted. The root disk is made again when its packages or its settings
//! change, the payload each time. The payload is mounted where the checkout is, so that paths that the compiler wrote into
//! test executables are true inside as well.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::debian::{self, Tree};
use crate::process;

/// What is installed inside: a plain Debian of this machine's release with systemd, and what tests call. Nothing is there that is
/// not listed or needed, not even what every Debian has.
const ROOT: Tree<'_> = Tree {
    name: "vm-root",
    packages: &[
        "base-files",
        "base-passwd",
        "bash",
        "bpftool",
        "busybox-static",
        "ca-certificates",
        "coreutils",
        "dash",
        "e2fsprogs",
        "findutils",
        "grep",
        "iproute2",
        "iputils-ping",
        "ipvsadm",
        "kmod",
        "libseccomp2",
        "login",
        "mount",
        "nftables",
        "passwd",
        "procps",
        "sed",
        "systemd-sysv",
        "tar",
        "udev",
        "util-linux",
        "util-linux-extra",
    ],
    suites: &[],
    dependencies: true,
};

/// Settings of the root file system: what packages' install scripts or an administrator would have written.
const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "vm\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 vm\n"),
    ("etc/machine-id", ""),
    ("etc/resolv.conf", "nameserver 10.86.0.1\n"),
    ("etc/fstab", ""),
    (
        "etc/systemd/network/10-uplink.network",
        "[Match]\nName=eth0\n[Network]\nAddress=10.86.0.11/24\nGateway=10.86.0.1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    ),
    ("etc/systemd/journald.conf.d/console.conf", "[Journal]\nRateLimitIntervalSec=0\nForwardToConsole=no\n"),
    // Else systemd does not know the port as a device.
    ("etc/udev/rules.d/60-orlop.rules", "SUBSYSTEM==\"virtio-ports\", TAG+=\"systemd\"\n"),
    (
        "etc/systemd/system/orlop-inside.service",
        "[Unit]\nDescription=Commands from outside of the virtual machine\n\
         BindsTo=dev-virtio\\x2dports-orlop.device\nAfter=dev-virtio\\x2dports-orlop.device\n\
         [Service]\nType=exec\nExecStart=@CHECKOUT@/target/debug/xtask vm inside\nEnvironment=HOME=/root\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
];
/// Units that are enabled, as links: where, and the unit's file.
const ENABLED: &[(&str, &str)] = &[
    ("multi-user.target.wants/systemd-networkd.service", "/lib/systemd/system/systemd-networkd.service"),
    ("sockets.target.wants/systemd-networkd.socket", "/lib/systemd/system/systemd-networkd.socket"),
    (
        "network-online.target.wants/systemd-networkd-wait-online.service",
        "/lib/systemd/system/systemd-networkd-wait-online.service",
    ),
    ("multi-user.target.wants/orlop-inside.service", "/etc/systemd/system/orlop-inside.service"),
    // Nobody logs in.
    ("getty-static.service", "/dev/null"),
    ("serial-getty@ttyS0.service", "/dev/null"),
];

/// Beyond its files, space of the root disk: logs, images, containers.
const ROOT_FREE_MIB: u64 = 2048;
const PAYLOAD_FREE_MIB: u64 = 64;
/// What a file system needs besides the files' own blocks.
const OVERHEAD_PERCENT: u64 = 15;
const BLOCK: u64 = 4096;

/// A disk to make.
pub struct Disk<'a> {
    pub path: &'a Path,
    pub content: &'a Path,
    pub free_mib: u64,
}

/// Where disks are kept.
pub fn folder() -> Result<PathBuf> {
    let folder = process::target().join("e2e/disks");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// The packages of the root file system, whose tools make the disks too.
pub fn unpack_root() -> Result<PathBuf> {
    debian::unpack_tree(&ROOT)
}

/// Makes a disk; an earlier one is replaced only by a finished one.
pub fn make(disk: &Disk<'_>, root: &Path) -> Result<()> {
    let partial = disk.path.with_extension("partial");
    let _ = fs::remove_file(&partial);
    let size = size_below(disk.content)? * (100 + OVERHEAD_PERCENT) / 100 / 1024 + disk.free_mib * 1024;
    let mut mke2fs = debian::program(root, "usr/sbin/mke2fs", "mke2fs");
    mke2fs.env("MKE2FS_CONFIG", root.join("etc/mke2fs.conf"));
    mke2fs.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=1,root_owner=0:0", "-d"]).arg(disk.content);
    mke2fs.arg(&partial).arg(format!("{size}k"));
    let name = disk.path.file_name().unwrap_or_default().to_string_lossy();
    process::run_quietly(&format!("making {name}"), &mut mke2fs)?;
    fs::rename(&partial, disk.path).with_context(|| format!("rename to {}", disk.path.display()))
}

/// Bytes of all files, in whole blocks.
fn size_below(folder: &Path) -> Result<u64> {
    let mut total = BLOCK;
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let metadata = entry.path().symlink_metadata().context("look at a file")?;
        total += if metadata.is_dir() {
            size_below(&entry.path())?
        } else {
            metadata.len().next_multiple_of(BLOCK)
        };
    }
    Ok(total)
}

/// An empty folder, whatever was there.
pub fn make_empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

pub fn make_executable(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("chmod {}", path.display()))
}

/// Rises when [`configure`] writes something else.
const CONFIGURATION: u32 = 2;

/// The root disk; the one of an earlier run when nothing changed.
pub fn root(tree: &Path) -> Result<PathBuf> {
    let checkout = checkout()?;
    let tag = Sha256::digest(format!(
        "{} {FILES:?} {ENABLED:?} {ROOT_FREE_MIB} {CONFIGURATION} {checkout}",
        tree.display()
    ));
    let tag: String = tag.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let path = folder()?.join(format!("root-{tag}.ext4"));
    if path.exists() {
        return Ok(path);
    }
    for outdated in fs::read_dir(folder()?).context("read the disks")?.flatten() {
        if outdated.file_name().to_string_lossy().starts_with("root-") && outdated.path().is_file() {
            fs::remove_file(outdated.path()).context("remove an outdated disk")?;
        }
    }
    let staging = path.with_extension("tree");
    make_empty(&staging)?;
    process::run_quietly("copying the packages", Command::new("cp").arg("-aT").arg(tree).arg(&staging))?;
    configure(&staging, checkout)?;
    make(&Disk { path: &path, content: &staging, free_mib: ROOT_FREE_MIB }, tree)?;
    fs::remove_dir_all(&staging).with_context(|| format!("remove {}", staging.display()))?;
    Ok(path)
}

fn checkout() -> Result<&'static str> {
    let path = process::root().to_str().context("the checkout's path is not UTF-8")?;
    ensure!(!path.contains([' ', '\'', '%']), "e2e cannot run from {path}: a unit names this path");
    Ok(path)
}

fn configure(root: &Path, checkout: &str) -> Result<()> {
    for (name, text) in FILES {
        write(&root.join(name), text.replace("@CHECKOUT@", checkout).as_bytes())?;
    }
    for name in ["passwd", "group"] {
        let master = root.join(format!("usr/share/base-passwd/{name}.master"));
        let text = fs::read(&master).with_context(|| format!("read {}", master.display()))?;
        write(&root.join("etc").join(name), &text)?;
    }
    let authorities = root.join("usr/share/ca-certificates/mozilla");
    let mut bundle = Vec::new();
    for entry in fs::read_dir(&authorities).with_context(|| format!("read {}", authorities.display()))? {
        bundle.extend(fs::read(entry?.path()).context("read an authority")?);
    }
    write(&root.join("etc/ssl/certs/ca-certificates.crt"), &bundle)?;
    for (name, unit) in ENABLED {
        let link = root.join("etc/systemd/system").join(name);
        if let Some(parent) = link.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        symlink(unit, &link).with_context(|| format!("link {}", link.display()))?;
    }
    symlink("/proc/self/mounts", root.join("etc/mtab")).context("link /etc/mtab")?;
    for mount_point in [root.join("usr/lib/modules"), root.join(checkout.trim_start_matches('/'))] {
        fs::create_dir_all(&mount_point).with_context(|| format!("create {}", mount_point.display()))?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// What the payload holds besides the checkout's own files; paths below the checkout.
pub struct Payload {
    /// Put in without symbols, which are two thirds of them.
    pub executables: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
}

/// Makes the payload disk. What has not changed since the last time is not copied again.
pub fn payload(root: &Path, payload: &Payload) -> Result<PathBuf> {
    let staging = process::target().join("e2e/payload");
    fs::create_dir_all(&staging).with_context(|| format!("create {}", staging.display()))?;
    let mut wanted = BTreeSet::new();
    let mut place = |file: &Path| -> Result<PathBuf> {
        let below = file.strip_prefix(process::root()).context("the payload is below the checkout")?;
        wanted.insert(staging.join(below));
        Ok(staging.join(below))
    };
    let spinner = process::spinner("collecting the payload");
    for file in tracked_files()?.iter().chain(&payload.files) {
        copy(file, &place(file)?)?;
    }
    for file in &payload.executables {
        strip(file, &place(file)?)?;
    }
    remove_others(&staging, &wanted)?;
    spinner.finish_and_clear();
    let path = folder()?.join("payload.ext4");
    make(&Disk { path: &path, content: &staging, free_mib: PAYLOAD_FREE_MIB }, root)?;
    Ok(path)
}

/// Every file that git knows or would add.
fn tracked_files() -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(process::root());
    let listed = process::run_quietly("listing files", &mut git)?;
    Ok(listed.lines().map(|line| process::root().join(line)).filter(|path| path.is_file()).collect())
}

/// Removes what an earlier payload had.
fn remove_others(folder: &Path, wanted: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if is_newer(to, from) {
        return Ok(());
    }
    replace(to, |partial| {
        fs::copy(from, partial).map(drop).with_context(|| format!("copy {}", from.display()))
    })
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    if is_newer(to, from) {
        return Ok(());
    }
    replace(to, |partial| {
        let mut strip = Command::new("strip");
        let output = strip.arg("-o").arg(partial).arg(from).output().context("start strip")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "strip {}: {}", from.display(), errors.trim());
        Ok(())
    })
}

/// Has a file made under another name first: a run that is killed meanwhile leaves none that looks whole.
fn replace(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    make(Path::new(&partial))?;
    fs::rename(&partial, path).with_context(|| format!("rename to {}", path.display()))
}

fn is_newer(copy: &Path, original: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    match (time(copy), time(original)) {
        (Some(copy), Some(original)) => copy >= original,
        _ => false,
    }
}
