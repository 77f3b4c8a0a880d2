//! The stock kernels, from Debian's packages: which there are, their files, and what they are booted with.
//!
//! Out: a kernel image, an initial file system that loads what a virtual disk needs and mounts the disks, and a disk with the
//! kernel's own modules. Nothing of the machine's kernel is looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::image::{self, Disk};
use crate::debian::{self, Tree};
use crate::{process, setup};

#[cfg(test)]
mod tests;

/// The name of a kernel and the suite whose current cloud kernel it is.
pub const KERNELS: &[(&str, &str)] =
    &[("6.1", "bookworm"), ("6.12", "bookworm-backports"), ("7", "trixie-backports")];

/// Depends on the suite's current kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Parts that newer kernel packages are split into.
const PARTS: &[&str] = &["linux-binary-", "linux-modules-"];
/// What the initial file system loads: disks, and the port to the outside. All else the kernel asks for by itself, or udev.
const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "virtio_console"];

/// What the probe of an accelerator waits for on the console.
pub const ALIVE: &str = "orlop: the kernel runs";
/// Tells the initial file system to say [`ALIVE`] and end.
pub const PROBE: &str = "orlop.probe";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    pub name: String,
    pub image: PathBuf,
    pub initial: PathBuf,
    pub modules: PathBuf,
}

/// Unpacks a kernel and makes what it boots with. `root` is the tree whose tools are used.
pub fn prepare(name: &str, root: &Path) -> Result<Kernel> {
    let suite = KERNELS.iter().find(|(other, _)| *other == name).map(|(_, suite)| *suite);
    let suite = suite.with_context(|| format!("there is no kernel {name:?}: {}", names().join(", ")))?;
    let packages = packages(suite)?;
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    let tree =
        Tree { name: &format!("kernel-{name}"), packages: &packages, suites: &[suite], dependencies: false };
    let tree = debian::unpack_tree(&tree)?;
    let version = version(&tree)?;
    let modules = tree.join("usr/lib/modules").join(&version);
    if !modules.join("modules.dep").exists() {
        let mut depmod = debian::program(root, "usr/bin/kmod", "depmod");
        process::run_quietly("indexing modules", depmod.arg("-b").arg(&tree).arg(&version))?;
    }
    let disk = image::folder()?.join(format!("modules-{version}.ext4"));
    if !disk.exists() {
        image::make(&Disk { path: &disk, content: &tree.join("usr/lib/modules"), free_mib: 4 }, root)?;
    }
    let initial = image::folder()?.join(format!("initial-{version}.cpio"));
    make_initial(&modules, &initial)?;
    let image = [tree.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
    let image =
        image.into_iter().find(|path| path.is_file()).context("the kernel's package has no vmlinuz")?;
    Ok(Kernel { name: name.to_owned(), image, initial, modules: disk })
}

pub fn names() -> Vec<&'static str> {
    KERNELS.iter().map(|(name, _)| *name).collect()
}

fn packages(suite: &str) -> Result<Vec<String>> {
    let image =
        debian::dependencies(META_PACKAGE, suite)?.into_iter().find(|name| name.starts_with("linux-image-"));
    let image = image.with_context(|| format!("{META_PACKAGE} of {suite} names no kernel"))?;
    let parts = debian::dependencies(&image, suite)?;
    let parts = parts.into_iter().filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
    Ok(parts.chain([image.clone()]).collect())
}

/// The one folder of modules names the version.
fn version(tree: &Path) -> Result<String> {
    let folder = tree.join("usr/lib/modules");
    let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    match (names.pop(), names.is_empty()) {
        (Some(version), true) => Ok(version),
        _ => bail!("{} does not hold one kernel's modules", folder.display()),
    }
}

/// Disks in the order in which QEMU is given them: root, modules, payload.
const INIT: &str = "#!/bin/busybox sh
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t devtmpfs dev /dev
while read -r module; do $busybox insmod /modules/$module; done < /modules/order
for word in $($busybox cat /proc/cmdline); do
    if [ $word = @PROBE@ ]; then echo '@ALIVE@' > /dev/console; $busybox poweroff -f; fi
done
$busybox mount -t ext4 /dev/vda /root || $busybox poweroff -f
$busybox mount -t ext4 -o ro /dev/vdb /root/usr/lib/modules
$busybox mount -t ext4 /dev/vdc '/root@CHECKOUT@'
$busybox mount --move /dev /root/dev
$busybox umount /proc
exec $busybox switch_root /root /sbin/init
";

/// Written anew each time: it names the checkout, and costs nothing.
fn make_initial(modules: &Path, initial: &Path) -> Result<()> {
    let staging = initial.with_extension("tree");
    image::make_empty(&staging)?;
    for folder in ["bin", "dev", "modules", "proc", "root"] {
        fs::create_dir(staging.join(folder)).with_context(|| format!("create {folder}"))?;
    }
    let busybox = setup::busybox()?;
    fs::copy(&busybox, staging.join("bin/busybox")).context("copy busybox")?;
    let index = fs::read_to_string(modules.join("modules.dep")).context("read modules.dep")?;
    let mut order = String::new();
    for module in load_order(&index, EARLY_MODULES) {
        let name = module.rsplit('/').next().unwrap_or(module).trim_end_matches(".xz");
        let bytes = read_module(&modules.join(module), &busybox)?;
        fs::write(staging.join("modules").join(name), bytes).with_context(|| format!("write {name}"))?;
        order.push_str(&format!("{name}\n"));
    }
    fs::write(staging.join("modules/order"), order).context("write the modules' order")?;
    let checkout = process::root().to_str().context("the checkout's path is not UTF-8")?;
    let init = INIT.replace("@PROBE@", PROBE).replace("@ALIVE@", ALIVE).replace("@CHECKOUT@", checkout);
    fs::write(staging.join("init"), init).context("write init")?;
    image::make_executable(&staging.join("init"))?;
    pack(&staging, &busybox, initial)
}

/// The modules of `names` with what each needs, in loading order. One that the index does not have is built in.
fn load_order<'a>(index: &'a str, names: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for name in names {
        let found = index.lines().filter_map(|line| line.split_once(':')).find(|(module, _)| {
            let file = module.rsplit('/').next().unwrap_or(module);
            file.split_once(".ko").is_some_and(|(stem, _)| stem.replace('-', "_") == *name)
        });
        let Some((module, needs)) = found else { continue };
        for module in needs.split_whitespace().rev().chain([module]) {
            if !order.contains(&module) {
                order.push(module);
            }
        }
    }
    order
}

fn read_module(path: &Path, busybox: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).with_context(|| format!("read {}", path.display()));
    }
    let output = Command::new(busybox).args(["xzcat"]).arg(path).output().context("start busybox xzcat")?;
    ensure!(output.status.success(), "unpack {}: {}", path.display(), output.status);
    Ok(output.stdout)
}

fn pack(staging: &Path, busybox: &Path, to: &Path) -> Result<()> {
    let mut find =
        Command::new(busybox).args(["find", "."]).current_dir(staging).stdout(Stdio::piped()).spawn()?;
    let listed = find.stdout.take().context("find has no output")?;
    let file = fs::File::create(to).with_context(|| format!("create {}", to.display()))?;
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "-o", "-H", "newc"])
        .current_dir(staging)
        .stdin(listed)
        .stdout(file)
        .stderr(Stdio::null());
    let packed = cpio.status().context("start busybox cpio");
    find.wait().context("wait for find")?;
    ensure!(packed?.success(), "pack {}", to.display());
    fs::remove_dir_all(staging).with_context(|| format!("remove {}", staging.display()))
}
