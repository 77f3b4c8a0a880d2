//! The way out of the machines: forwarding on the host's links, and one nftables table of ours.
//!
//! In: the host's default routes. Out: the table `ip orlop`, which masquerades what comes from the machines, and forwarding on
//! `orlop-host` and on the links of the default routes. What was switched on is written into the table's comment before it is,
//! so that whoever closes needs no file, after a kill at any point. `ip_forward` itself is left alone: it would switch every
//! link, and more than forwarding. Refuses to change rules of others: where those drop forwarded packets, pods stay inside.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::network::{HOST_LINK, NETWORK};
use crate::process;

#[cfg(test)]
mod tests;

const TABLE: [&str; 2] = ["ip", "orlop"];
/// What the table's comment begins with; names of links follow.
const COMMENT: &str = "forwarding was off:";
/// NFTNL_UDATA_COMMENT_MAXLEN of libnftnl, with the end of the string.
const MAX_COMMENT: usize = 128;

/// Opens the way, or finds it open. When that fails nothing stays but what was open before.
pub fn open() -> Result<()> {
    let before = remembered()?;
    let was_open = before.is_some();
    let opened = try_open(before.unwrap_or_default());
    if opened.is_err()
        && !was_open
        && let Err(error) = close()
    {
        eprintln!("up: close the way out again: {error:#}");
    }
    opened
}

fn try_open(mut switched: BTreeSet<String>) -> Result<()> {
    let outside = default_links(&routes()?);
    for link in &outside {
        if read_forwarding(link)? == "0" {
            switched.insert(link.clone());
        }
    }
    feed(&script(&switched)?)?;
    for link in outside.iter().map(String::as_str).chain([HOST_LINK]) {
        set_forwarding(link, "1")?;
    }
    Ok(())
}

/// Whether the host has our table.
pub fn is_here() -> Result<bool> {
    Ok(remembered()?.is_some())
}

/// Puts forwarding back and removes the table. Fine when there is none.
pub fn close() -> Result<()> {
    let Some(switched) = remembered()? else { return Ok(()) };
    let put_back = |link: String| match set_forwarding(&link, "0") {
        // A link that went took its settings along.
        Err(_) if !forwarding(&link).exists() => Ok(()),
        put => put,
    };
    // The table stays, to be read again, as long as something is to be put back.
    switched.into_iter().map(put_back).fold(Ok(()), Result::and)?;
    let mut delete = Command::new("nft");
    process::run_quietly("removing the rules", delete.args(["delete", "table"]).args(TABLE)).map(drop)
}

/// The links whose forwarding was off, as the table says; `None` without a table.
fn remembered() -> Result<Option<BTreeSet<String>>> {
    let mut list = Command::new("nft");
    list.env("LC_ALL", "C").args(["list", "table"]).args(TABLE).stdin(Stdio::null());
    let output = match list.output() {
        // It made the table.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        started => started.context("start nft")?,
    };
    if output.status.success() {
        return Ok(Some(switched(&String::from_utf8_lossy(&output.stdout))));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        errors.contains("No such file or directory"),
        "nft list table {}: {}",
        TABLE.join(" "),
        errors.lines().next().unwrap_or_default()
    );
    Ok(None)
}

/// The links in the comment of a listed table.
fn switched(listed: &str) -> BTreeSet<String> {
    let comment = listed.lines().find_map(|line| line.trim().strip_prefix("comment \"")?.strip_suffix('"'));
    let links = comment.and_then(|comment| comment.strip_prefix(COMMENT)).unwrap_or_default();
    links.split_whitespace().map(str::to_owned).collect()
}

/// Replaces the table at once. The first line makes one, so that there is one to delete.
fn script(switched: &BTreeSet<String>) -> Result<String> {
    let links: Vec<&str> = switched.iter().map(String::as_str).collect();
    let comment = format!("{COMMENT} {}", links.join(" "));
    ensure!(comment.len() < MAX_COMMENT, "too many default routes to remember: {}", links.join(" "));
    let table = TABLE.join(" ");
    Ok(format!(
        "table {table}\ndelete table {table}\ntable {table} {{\n  comment \"{comment}\"\n  chain leave {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n    \
         ip saddr {NETWORK} ip daddr != {NETWORK} masquerade\n  }}\n}}\n"
    ))
}

fn feed(script: &str) -> Result<()> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = nft.spawn().context("start nft")?;
    let mut input = child.stdin.take().context("nft has no input")?;
    let written = input.write_all(script.as_bytes());
    drop(input);
    let output = child.wait_with_output().context("wait for nft")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft: {}", errors.lines().next().unwrap_or_default());
    written.context("write to nft")
}

fn routes() -> Result<String> {
    let mut list = Command::new("ip");
    process::probe(list.args(["-4", "route", "show", "default"])).context("`ip route show` failed")
}

/// The links of `ip route`'s lines.
fn default_links(listed: &str) -> BTreeSet<String> {
    let mut links = BTreeSet::new();
    for line in listed.lines() {
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            if word == "dev" {
                links.extend(words.next().map(str::to_owned));
            }
        }
    }
    links
}

fn forwarding(link: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net/ipv4/conf").join(link).join("forwarding")
}

fn read_forwarding(link: &str) -> Result<String> {
    let path = forwarding(link);
    let value = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(value.trim().to_owned())
}

fn set_forwarding(link: &str, value: &str) -> Result<()> {
    if read_forwarding(link)? == value {
        return Ok(());
    }
    let path = forwarding(link);
    fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
}
