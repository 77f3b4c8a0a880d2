//! How the host and the machines are joined: a bridge in a network namespace of its own.
//!
//! On the host itself other software's forwarding rules could drop the bridge's frames. The namespace is kept by an nsfs
//! file below `target/up`. The host has one link of ours, `orlop-host`, whose alias names the checkout it belongs to; it goes away
//! with the namespace. Routes of the host are looked at and never changed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::statfs::FsType;

use super::owner;
use crate::process;

#[cfg(test)]
mod tests;

pub const HOST_ADDRESS: &str = "10.85.0.1";
pub const NETWORK: &str = "10.85.0.0/24";
const PREFIX_LENGTH: u8 = 24;
/// Where nodes have addresses of IPv6 too.
pub const HOST_ADDRESS_V6: &str = "fd00:85::1";
const NETWORK_V6: &str = "fd00:85::/64";
const PREFIX_LENGTH_V6: u8 = 64;
pub const HOST_LINK: &str = "orlop-host";
/// In the switch's namespace, where each node's link has the node's name.
const BRIDGE: &str = "bridge0";
/// linux/magic.h.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);
/// The last number of the first node's address.
const FIRST_NODE: u8 = 11;
/// IFALIASZ of linux/if.h, with the end of the string.
const MAX_ALIAS: usize = 256;

fn namespace_file() -> PathBuf {
    super::folder().join("switch")
}

/// Whether the host has our link.
pub fn has_link() -> bool {
    link_folder().exists()
}

/// The `target` folder of the checkout that made the host's link.
pub fn link_owner() -> Option<PathBuf> {
    let alias = fs::read_to_string(link_folder().join("ifalias")).ok()?;
    let alias = alias.trim_end();
    (!alias.is_empty()).then(|| PathBuf::from(alias))
}

fn link_folder() -> PathBuf {
    Path::new("/sys/class/net").join(HOST_LINK)
}

/// Makes the switch and the host's link, of both families where that is wanted, or finds them. When it fails nothing stays.
pub fn make_switch(dual_stack: bool) -> Result<()> {
    if is_whole() {
        return Ok(());
    }
    remove()?;
    refuse_foreign_routes(NETWORK)?;
    if dual_stack {
        refuse_foreign_routes(NETWORK_V6)?;
    }
    let made = make(dual_stack);
    if made.is_err()
        && let Err(error) = remove()
    {
        eprintln!("up: take the network away again: {error:#}");
    }
    made
}

fn make(dual_stack: bool) -> Result<()> {
    let switch = make_namespace(&namespace_file())?;
    let switch_path = switch.to_str().context("the path of target/up is not UTF-8")?;
    let inside = |arguments: &[&str]| in_namespace(&switch, arguments);
    inside(&["link", "add", BRIDGE, "type", "bridge"])?;
    inside(&["link", "set", BRIDGE, "up"])?;
    // The peer ends of both pairs are made where they belong, so no half of one is ever on the host.
    ip(&["link", "add", HOST_LINK, "type", "veth", "peer", "name", "host", "netns", switch_path])?;
    if let Some(alias) = owner::own_target().to_str().filter(|path| path.len() < MAX_ALIAS) {
        ip(&["link", "set", HOST_LINK, "alias", alias])?;
    }
    inside(&["link", "set", "host", "master", BRIDGE, "up"])?;
    ip(&["addr", "add", &with_prefix(HOST_ADDRESS), "dev", HOST_LINK])?;
    if dual_stack {
        ip(&["addr", "add", &with_prefix(HOST_ADDRESS_V6), "dev", HOST_LINK, "nodad"])?;
    }
    ip(&["link", "set", HOST_LINK, "up"])
}

/// Puts `eth0` with `addresses` into the network namespace of process `pid`, plugged into the switch. What an earlier machine of the
/// same name left there is taken away first: the kernel frees a dead machine's links a little later than its processes.
pub fn connect(node: &str, addresses: &[String], pid: u32) -> Result<()> {
    let switch = namespace_file();
    let inside = |arguments: &[&str]| in_namespace(&switch, arguments);
    if inside(&["link", "show", "dev", node]).is_ok() {
        // It may go away by itself in between.
        let deleted = inside(&["link", "del", node]);
        if inside(&["link", "show", "dev", node]).is_ok() {
            deleted?;
        }
    }
    inside(&["link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", &pid.to_string()])?;
    inside(&["link", "set", node, "master", BRIDGE, "up"])?;
    let machine = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let in_machine = |arguments: &[&str]| in_namespace(&machine, arguments);
    in_machine(&["link", "set", "lo", "up"])?;
    for address in addresses {
        let with_prefix = with_prefix(address);
        let mut add = vec!["addr", "add", &with_prefix, "dev", "eth0"];
        // Nobody else has it, and a server that starts now may bind it at once.
        add.extend(address.contains(':').then_some("nodad"));
        in_machine(&add)?;
    }
    in_machine(&["link", "set", "eth0", "up"])?;
    in_machine(&["route", "add", "default", "via", HOST_ADDRESS])
}

/// Whether the host's link is there, and a namespace bound to the switch's file, which is then on another file system.
pub fn is_whole() -> bool {
    let file = nix::sys::statfs::statfs(&namespace_file());
    has_link() && file.is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// The address of the node with this number, from 1 on.
pub fn node_address(number: u8) -> String {
    let (network, _) = HOST_ADDRESS.rsplit_once('.').unwrap_or_default();
    format!("{network}.{}", FIRST_NODE + number - 1)
}

pub fn node_address_v6(number: u8) -> String {
    let network = HOST_ADDRESS_V6.trim_end_matches('1');
    // The same digits as of IPv4, for whoever reads them.
    format!("{network}{}", FIRST_NODE + number - 1)
}

fn with_prefix(address: &str) -> String {
    let length = if address.contains(':') { PREFIX_LENGTH_V6 } else { PREFIX_LENGTH };
    format!("{address}/{length}")
}

/// The cluster's network must be nobody else's: an equal or narrower route would take our packets, and ours theirs.
fn refuse_foreign_routes(network: &str) -> Result<()> {
    let family = if network.contains(':') { "-6" } else { "-4" };
    let listed =
        process::probe(Command::new("ip").args([family, "route", "show", "table", "all", "root", network]));
    let listed = listed.context("`ip route show` failed")?;
    match foreign_route(&listed) {
        Some(route) => anyhow::bail!("this machine already uses {network}, which the cluster needs: {route}"),
        None => Ok(()),
    }
}

/// The first route in `ip route`'s output that is not ours.
fn foreign_route(listed: &str) -> Option<&str> {
    let ours = format!("dev {HOST_LINK}");
    listed.lines().map(str::trim).find(|line| !line.is_empty() && !line.contains(&ours))
}

/// Takes the switch away, and with it the host's link. Fine when there is none.
pub fn remove() -> Result<()> {
    let file = namespace_file();
    if has_link() {
        ip(&["link", "del", HOST_LINK])?;
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

fn in_namespace(namespace: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("ip").args(arguments);
    succeed(&mut command, arguments)
}

fn ip(arguments: &[&str]) -> Result<()> {
    succeed(Command::new("ip").args(arguments), arguments)
}

fn succeed(command: &mut Command, arguments: &[&str]) -> Result<()> {
    let output = command.output().context("start ip")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), errors.trim());
    Ok(())
}
