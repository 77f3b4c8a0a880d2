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

mod config;
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

/// The whole life of the executable, in either role.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == "daemon" => daemon::main(rest),
        _ => plugin::main(&Dhcp),
    }
}
