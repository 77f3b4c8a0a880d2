//! QEMU from Debian's packages: its command line, and whether the processor's virtualization can be used.
//!
//! Run by its own loader and libraries, whatever release this machine has. Debian's 7.2 miscounts a flag in software emulation
//! (cmpxchg16b), on which kernels from 6.12 crash, so the version of the backports is taken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::kernel::{ALIVE, Kernel, PROBE};
use super::{inside, network};
use crate::debian::{self, Tree};

const QEMU: Tree<'_> = Tree {
    name: "qemu",
    packages: &["qemu-system-x86", "seabios"],
    suites: &["bookworm", "bookworm-backports"],
    dependencies: true,
};
/// How long a kernel may take to run its first program by the processor's virtualization. Software emulation takes 5 s.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

const MEMORY: &str = "2G";
const PROCESSORS: &str = "2";
/// systemd names no link, the kernel restarts nothing (QEMU ends when the machine does), and its log has room for a whole run.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 net.ifnames=0 mitigations=off panic=-1 log_buf_len=16M systemd.show_status=yes";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        }
    }
}

/// The disks, in the order in which the initial file system knows them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Disks {
    pub root: PathBuf,
    pub root_writes: RootWrites,
    pub payload: PathBuf,
}

/// What becomes of what a machine writes to its root disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootWrites {
    /// It lies in a temporary file, as that of the other disks always.
    Forgotten,
    Kept,
}

pub fn unpack() -> Result<PathBuf> {
    debian::unpack_tree(&QEMU)
}

/// Whether a kernel comes up under KVM within a few seconds: that the device is there says nothing.
pub fn probe(tree: &Path, kernel: &Kernel, console: &Path) -> Result<Accelerator> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accelerator::Tcg);
    }
    let file = fs::File::create(console).with_context(|| format!("create {}", console.display()))?;
    let mut command = limited(&base(tree, kernel, Accelerator::Kvm, PROBE));
    command.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(file).stderr(Stdio::null());
    // How it ended says nothing: a guest that hangs is ended, one that works powers off.
    command.status().context("start QEMU")?;
    let printed = fs::read(console).unwrap_or_default();
    let alive = String::from_utf8_lossy(&printed).contains(ALIVE);
    Ok(if alive { Accelerator::Kvm } else { Accelerator::Tcg })
}

/// The command, ended after [`PROBE_LIMIT`] even when nobody waits for it any more.
fn limited(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.arg("--signal=KILL").arg(PROBE_LIMIT.as_secs().to_string());
    limited.arg(command.get_program()).args(command.get_args());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

/// A whole machine. Standard input and output are the port.
pub fn machine(
    tree: &Path,
    kernel: &Kernel,
    accelerator: Accelerator,
    disks: &Disks,
    evidence: &Path,
) -> Command {
    let mut command = base(tree, kernel, accelerator, "");
    command.arg("-serial").arg(format!("file:{}", evidence.join("console.log").display()));
    let root_snapshot = match disks.root_writes {
        RootWrites::Forgotten => "on",
        RootWrites::Kept => "off,cache=writeback",
    };
    let disks = [(&disks.root, root_snapshot), (&kernel.modules, "on"), (&disks.payload, "on")];
    for (number, (disk, snapshot)) in disks.into_iter().enumerate() {
        let file = option(disk);
        command.arg("-drive");
        command.arg(format!("if=none,id=disk{number},file={file},format=raw,snapshot={snapshot}"));
        command.arg("-device").arg(format!("virtio-blk-pci,drive=disk{number}"));
    }
    command.args(["-netdev", &format!("tap,id=net,ifname={},script=no,downscript=no", network::TAP)]);
    command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    let capture = evidence.join("packets.pcap");
    command.arg("-object").arg(format!("filter-dump,id=capture,netdev=net,file={}", option(&capture)));
    command.args(["-chardev", "stdio,id=port,signal=off", "-device", "virtio-serial-pci"]);
    command.args(["-device", &format!("virtserialport,chardev=port,name={}", inside::PORT)]);
    command.args(["-device", "virtio-rng-pci"]);
    command
}

fn base(tree: &Path, kernel: &Kernel, accelerator: Accelerator, more: &str) -> Command {
    let mut command = debian::program(tree, "usr/bin/qemu-system-x86_64", "qemu-system-x86_64");
    command.env("QEMU_MODULE_DIR", tree.join("usr/lib/x86_64-linux-gnu/qemu"));
    for folder in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(tree.join(folder));
    }
    command.args(match accelerator {
        Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
        // Emulated, string instructions go byte by byte: without word of fast ones kernels copy in words.
        Accelerator::Tcg => {
            ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,erms=off,fsrm=off,la57=off"]
        }
    });
    command.args(["-machine", "q35", "-smp", PROCESSORS, "-m", MEMORY]);
    command.args(["-nodefaults", "-no-reboot", "-display", "none"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&kernel.initial);
    command.args(["-append", &format!("{KERNEL_ARGUMENTS} {more}")]);
    command
}

/// A path as part of one of QEMU's options, where a comma ends a value.
fn option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
