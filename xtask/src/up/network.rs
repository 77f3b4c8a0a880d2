//! How the host and the machines are joined: a bridge in a network namespace of its own.
//!
//! On the host itself other software's forwarding rules could drop the bridge's frames. The namespace is kept by an nsfs
//! file below `target/up`. The host has one link of ours, `orlop-host`, which goes away with the namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};

use crate::process;

pub const HOST_ADDRESS: &str = "10.85.0.1";
pub const NODE_ADDRESS: &str = "10.85.0.11";
const PREFIX_LENGTH: u8 = 24;
const HOST_LINK: &str = "orlop-host";

fn namespace_file() -> PathBuf {
    super::folder().join("switch")
}

/// Makes the switch and puts `eth0` into the network namespace of process `pid`.
pub fn connect(pid: u32) -> Result<()> {
    remove()?;
    let switch = make_namespace(&namespace_file())?;
    let inside = |arguments: &str| in_namespace(&switch, arguments);
    inside("link add bridge0 type bridge")?;
    inside("link set bridge0 up")?;
    // The peer ends of both pairs are made where they belong, so no half of one is ever on the host.
    ip(&format!("link add {HOST_LINK} type veth peer name host netns {}", switch.display()))
        .or_else(|_| host_link_by_pid(&switch))?;
    inside("link set host master bridge0 up")?;
    ip(&format!("addr add {HOST_ADDRESS}/{PREFIX_LENGTH} dev {HOST_LINK}"))?;
    ip(&format!("link set {HOST_LINK} up"))?;
    inside(&format!("link add node type veth peer name eth0 netns {pid}"))?;
    inside("link set node master bridge0 up")?;
    let machine = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let in_machine = |arguments: &str| in_namespace(&machine, arguments);
    in_machine("link set lo up")?;
    in_machine(&format!("addr add {NODE_ADDRESS}/{PREFIX_LENGTH} dev eth0"))?;
    in_machine("link set eth0 up")?;
    in_machine(&format!("route add default via {HOST_ADDRESS}"))
}

/// Older `ip` takes only a name or a pid after `netns`: hand it the pid of a process inside.
fn host_link_by_pid(switch: &Path) -> Result<()> {
    let mut holder = Command::new("nsenter");
    holder.arg(format!("--net={}", switch.display())).args(["cat"]).stdin(Stdio::piped());
    let mut holder = holder.spawn().context("start nsenter")?;
    // `nsenter` is inside as soon as `cat` runs in its place.
    let entered = || {
        let name = fs::read_to_string(format!("/proc/{}/comm", holder.id())).unwrap_or_default();
        name.trim() == "cat"
    };
    while !entered() {
        std::thread::yield_now();
    }
    let made = ip(&format!("link add {HOST_LINK} type veth peer name host netns {}", holder.id()));
    drop(holder.stdin.take());
    holder.wait().context("wait for nsenter")?;
    made
}

/// Takes the switch away, and with it the host's link. Fine when there is none.
pub fn remove() -> Result<()> {
    let file = namespace_file();
    if Path::new("/sys/class/net").join(HOST_LINK).exists() {
        ip(&format!("link del {HOST_LINK}"))?;
    }
    if file.exists() {
        match umount2(&file, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(errno) => return Err(errno).with_context(|| format!("unmount {}", file.display())),
        }
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    Ok(())
}

fn make_namespace(file: &Path) -> Result<PathBuf> {
    File::create(file).with_context(|| format!("create {}", file.display()))?;
    // `unshare` binds the new namespace to the file before it runs the command.
    let mut unshare = Command::new("unshare");
    unshare.arg(format!("--net={}", file.display())).arg("true");
    process::run_quietly("making the switch", &mut unshare)?;
    Ok(file.to_path_buf())
}

fn in_namespace(namespace: &Path, arguments: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("ip").args(arguments.split(' '));
    succeed(&mut command, arguments)
}

fn ip(arguments: &str) -> Result<()> {
    succeed(Command::new("ip").args(arguments.split(' ')), arguments)
}

fn succeed(command: &mut Command, arguments: &str) -> Result<()> {
    let output = command.output().context("start ip")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
