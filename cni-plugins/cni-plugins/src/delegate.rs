//! Delegation to another plugin, by execution, as the specification says: in the same environment. An IPAM plugin gets the
//! same configuration, any other one that was made for it.
//!
//! Where the file that is found is this executable too, `host-local` and `static` are called within the process: with the same
//! variables and through the same checks, but without a process's start.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use cni::{
    AddResult, ErrorReply, code,
    exec::{Call, DEFAULT_TIME_LIMIT, ExecError, Group, Verb, find_plugin},
};
use serde_json::{Map, Value};

use crate::{
    host_local::HostLocal,
    plugin::{self, Plugin, Request, decoding},
    static_ipam::Static,
};

/// The IPAM plugin that needs the link to give an address back.
pub(crate) const DHCP: &str = "dhcp";

const PAGE: usize = 4096;
/// How the note with a build id begins: the lengths of name and content, the kind (`NT_GNU_BUILD_ID`), the name.
const BUILD_ID_NOTE: &[u8] = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";

/// The plugin that `ipam.type` names; none for a network without addresses.
pub(crate) fn ipam_type(request: &Request) -> Result<Option<String>, ErrorReply> {
    let Some(ipam) = request.root().object("ipam").map_err(decoding)? else { return Ok(None) };
    let named = ipam.string("type").map_err(decoding)?;
    Ok(named.filter(|name| !name.is_empty()).map(str::to_owned))
}

/// As [`ipam_type`], for a plugin whose link is of no use without addresses.
pub(crate) fn required_ipam(request: &Request) -> Result<String, ErrorReply> {
    let named = ipam_type(request)?;
    named.ok_or_else(|| ErrorReply::config("key \"ipam.type\": missing, expected the name of an IPAM plugin"))
}

/// A call that failed.
pub(crate) struct Failed {
    pub(crate) reply: ErrorReply,
    /// The plugin did not refuse: it may have done its work, or a part of it. After a refusal a DEL would take what an earlier
    /// ADD made.
    pub(crate) needs_undo: bool,
}

/// ADD by another plugin, with this configuration.
pub(crate) async fn add(request: &Request, plugin: &str, config: Vec<u8>) -> Result<AddResult, Failed> {
    let document = attempt(request, plugin, Verb::Add, config).await?;
    result(request, plugin, document).map_err(|reply| Failed { reply, needs_undo: true })
}

fn result(
    request: &Request,
    plugin: &str,
    document: Option<Map<String, Value>>,
) -> Result<AddResult, ErrorReply> {
    let mut document = document.ok_or_else(|| {
        ErrorReply::new(code::DECODING_FAILURE, format!("plugin {plugin:?} printed no result"))
    })?;
    AddResult::from_answer(&mut document, request.version).map_err(|error| {
        ErrorReply::new(code::DECODING_FAILURE, format!("result of plugin {plugin:?}: {error}"))
    })
}

/// Runs any other verb of the IPAM plugin.
pub(crate) async fn run(request: &Request, ipam: &str, verb: Verb) -> Result<(), ErrorReply> {
    call(request, ipam, verb).await.map(|_| ())
}

/// As [`run`], where there may be no IPAM plugin.
pub(crate) async fn run_if_any(request: &Request, ipam: Option<&str>, verb: Verb) -> Result<(), ErrorReply> {
    match ipam {
        Some(ipam) => run(request, ipam, verb).await,
        None => Ok(()),
    }
}

async fn call(request: &Request, ipam: &str, verb: Verb) -> Result<Option<Map<String, Value>>, ErrorReply> {
    call_with(request, ipam, verb, request.stdin.clone()).await
}

/// DEL: takes the link away and gives the addresses back.
///
/// The link goes first, so that no address is handed out again while a link still carries it. A DHCP server is told through the
/// link itself, and does not hand out at once what was given back.
pub(crate) async fn detach(
    request: &Request,
    ipam: Option<&str>,
    remove_link: impl Future<Output = Result<(), ErrorReply>>,
) -> Result<(), ErrorReply> {
    if ipam == Some(DHCP) {
        let released = run_if_any(request, ipam, Verb::Del).await;
        remove_link.await?;
        return released;
    }
    remove_link.await?;
    run_if_any(request, ipam, Verb::Del).await
}

/// Runs a plugin for the request's attachment with another configuration.
pub(crate) async fn call_with(
    request: &Request,
    plugin: &str,
    verb: Verb,
    config: Vec<u8>,
) -> Result<Option<Map<String, Value>>, ErrorReply> {
    attempt(request, plugin, verb, config).await.map_err(|failed| failed.reply)
}

async fn attempt(
    request: &Request,
    plugin: &str,
    verb: Verb,
    config: Vec<u8>,
) -> Result<Option<Map<String, Value>>, Failed> {
    let path = find_plugin(plugin, &request.path).map_err(failed)?;
    if is_this_executable(&path) {
        let here = match plugin {
            HostLocal::NAME => Some(plugin::call_here(&HostLocal, request, verb, &config)),
            Static::NAME => Some(plugin::call_here(&Static, request, verb, &config)),
            _ => None,
        };
        if let Some(answer) = here {
            return answer.map_err(|reply| Failed { reply, needs_undo: false });
        }
    }
    let netns = request.netns.clone().map(OsString::from).unwrap_or_default();
    let call = Call {
        plugin: path,
        verb,
        // `CNI_ARGS`, `CNI_PATH` and the rest are inherited.
        env: vec![
            ("CNI_CONTAINERID", request.container_id.clone().into()),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", request.ifname.clone().into()),
        ],
        config,
        time_limit: DEFAULT_TIME_LIMIT,
        group: Group::Callers,
    };
    call.run().await.map_err(failed)
}

/// Whether a file is this executable, under another name or as a copy of it.
fn is_this_executable(path: &Path) -> bool {
    let own = Path::new("/proc/self/exe");
    let place = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let Some(own_place) = place(own) else { return false };
    if place(path) == Some(own_place) {
        return true;
    }
    let identity = Identity::of(own);
    identity.is_some() && identity == Identity::of(path)
}

/// Length and beginning of an executable. The linker puts its hash of all that it linked there, the build id: two with the same differ in
/// nothing but what was done to them afterwards.
#[derive(PartialEq, Eq)]
struct Identity(u64, Vec<u8>);

impl Identity {
    /// None of what has no build id.
    fn of(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let length = file.metadata().ok()?.len();
        let mut beginning = vec![0; PAGE];
        let read = file.read_at(&mut beginning, 0).ok()?;
        beginning.truncate(read);
        let has_build_id = beginning.windows(BUILD_ID_NOTE.len()).any(|bytes| bytes == BUILD_ID_NOTE);
        has_build_id.then_some(Self(length, beginning))
    }
}

/// What the other plugin said is what the caller gets to read.
fn failed(error: ExecError) -> Failed {
    let needs_undo = error.is_cut_off();
    let reply = error.reply().cloned().unwrap_or_else(|| ErrorReply::internal(error));
    Failed { reply, needs_undo }
}
