//! The IPAM plugin `dhcp`: an address from the network's own DHCP server, held for as long as the container lives.
//!
//! A lease has to be renewed long after a plugin's process is gone, so the executable has two roles: the plugin, which passes
//! each call on, and `dhcp daemon`, which speaks DHCP on the containers' links.
//!
//! ```text
//! macvlan … ── ADD ──▶ dhcp ── unix socket ([talk]) ──▶ dhcp daemon ── [exchange] ──▶ the server
//!                                                         └─ [keep]: leases on disk, for the daemon after this one
//! ```
//!
//! Facts of the protocol are from RFC 2131 and 2132, those of routes from RFC 3442. It refuses IPv6, as the reference does.

pub(crate) mod config;
mod daemon;
mod datagram;
mod exchange;
mod flags;
mod keep;
mod lease;
mod talk;

use std::{path::Path, process::ExitCode};

use cni::{AddResult, ErrorReply, code, exec::Verb};

use self::{config::Config, talk::Question};
use crate::plugin::{self, Plugin, Request};

/// See the module.
#[derive(Debug)]
pub struct Dhcp;

impl Plugin for Dhcp {
    const NAME: &'static str = "dhcp";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        ask(request, Verb::Add)
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        ask(request, Verb::Del).map(|_| ())
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        ask(request, Verb::Check).map(|_| ())
    }

    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        ask(request, Verb::Gc).map(|_| ())
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let answered = ask(request, Verb::Status).map(|_| ());
        answered.map_err(|error| ErrorReply { code: code::PLUGIN_NOT_AVAILABLE, ..error })
    }
}

fn ask(request: &Request, verb: Verb) -> Result<AddResult, ErrorReply> {
    let config = Config::read(request)?;
    let valid = if verb == Verb::Gc { request.valid_attachments()? } else { plugin::Valid::new() };
    let netns = request.netns.as_deref().map(absolute).transpose()?;
    let question = Question::new(request, verb, &config, netns, valid);
    talk::ask(&config.socket, &question)
}

/// The daemon's working directory is another one.
fn absolute(path: &Path) -> Result<std::path::PathBuf, ErrorReply> {
    std::path::absolute(path)
        .map_err(|error| ErrorReply::internal(format!("failed to make {path:?} an absolute path: {error}")))
}

/// The whole life of a process that is called `dhcp`, in either role.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == "daemon" => daemon::main(rest),
        _ => plugin::main(&Dhcp),
    }
}

/// See [`crate::fuzz`]. The first bytes are those that a question chose, so that more than the comparison with them is run.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let (xid, mac) = (0x0102_0304_u32, linux::netlink::MacAddress([2, 0, 0, 0, 0, 1]));
    // What the library panics at is caught; a fuzzer's own hook would end the process before.
    std::panic::set_hook(Box::new(|_| {}));
    let _ = datagram::unwrap(bytes);
    let mut payload = bytes.to_vec();
    if payload.len() < 240 {
        payload.resize(240, 0);
    }
    payload[0] = 2;
    payload[4..8].copy_from_slice(&xid.to_be_bytes());
    payload[28..34].copy_from_slice(&mac.0);
    if let Some(message) = exchange::decode(&payload, xid, mac)
        && let Ok(lease) = lease::Lease::of(&message, 1000)
    {
        for now in [1000, 2000, u64::from(u32::MAX) + 1000] {
            lease.next(now);
        }
        drop(lease.result(None).to_json(cni::Version::NEWEST));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        drop(flags::Flags::parse(&words));
    }
}
