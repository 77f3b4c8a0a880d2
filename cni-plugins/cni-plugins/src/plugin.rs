//! The plugin's side of the protocol: environment and standard input in, one document on standard output out.
//!
//! Owns: which variables a verb needs, the checks before any plugin code runs, the dispatch, the error document and
//! the exit status. Everything for people goes to standard error. It refuses a verb that the configuration's version
//! does not have, and a container that shares the plugin's own network namespace.

mod environment;

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use cni::{
    AddResult, ErrorReply, ResultError, VALID_ATTACHMENTS, Version,
    args::CniArgs,
    code,
    exec::Verb,
    json::{DOCUMENT_LIMIT, JsonError, Object, parse_object},
};
use linux::netns::Netns;
use serde_json::{Map, Value, json};

pub(crate) use self::environment::Environment;

/// What a plugin does for each verb. VERSION is answered for it.
pub trait Plugin {
    /// The executable's name.
    const NAME: &'static str;
    /// Configurations of older versions are refused.
    const OLDEST: Version = Version::V0_1_0;

    /// Makes the attachment, wholly or not at all.
    ///
    /// # Errors
    /// The error document to print.
    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply>;

    /// Undoes [`Plugin::add`]; what is not there (any more) is success.
    ///
    /// # Errors
    /// The error document to print.
    fn del(&self, request: &Request) -> Result<(), ErrorReply>;

    /// Compares the attachment with `prevResult`.
    ///
    /// # Errors
    /// The first difference.
    fn check(&self, request: &Request) -> Result<(), ErrorReply>;

    /// Removes what belongs to no valid attachment.
    ///
    /// # Errors
    /// The error document to print.
    fn gc(&self, request: &Request) -> Result<(), ErrorReply>;

    /// Whether an ADD could succeed now.
    ///
    /// # Errors
    /// Why it could not.
    fn status(&self, request: &Request) -> Result<(), ErrorReply>;
}

/// One call, checked.
#[derive(Debug, Clone)]
pub struct Request {
    pub verb: Verb,
    /// Empty for GC and STATUS, as is `ifname`.
    pub container_id: String,
    /// None where the runtime gave none, which DEL allows.
    pub netns: Option<PathBuf>,
    pub ifname: String,
    /// `CNI_ARGS` as given; see [`Request::args`].
    pub raw_args: String,
    /// Folders of executables to delegate to.
    pub path: Vec<PathBuf>,
    /// The network's name.
    pub network: String,
    pub version: Version,
    pub config: Map<String, Value>,
    /// The configuration as it came, for a plugin that is delegated to.
    pub stdin: Vec<u8>,
}

#[cfg(test)]
impl Request {
    /// An ADD of container `abc`, for tables of configurations.
    pub(crate) fn of_config(network: &str, mut config: Value) -> Self {
        config["name"] = Value::from(network);
        let stdin = config.to_string().into_bytes();
        Self {
            verb: Verb::Add,
            container_id: "abc".to_owned(),
            netns: None,
            ifname: "eth0".to_owned(),
            raw_args: String::new(),
            path: Vec::new(),
            network: network.to_owned(),
            version: Version::V1_0_0,
            config: parse_object(&stdin).expect("an object"),
            stdin,
        }
    }
}

/// An attachment that GC must keep: container id and link name.
pub type Valid = std::collections::HashSet<(String, String)>;

impl Request {
    /// The configuration's root.
    pub fn root(&self) -> Object<'_> {
        Object::root(&self.config)
    }

    /// `CNI_ARGS`, which may hold only keys that the plugin knows unless it has `IgnoreUnknown`.
    ///
    /// # Errors
    /// For a text that is not pairs, and for an unknown key.
    pub fn args(&self, known: &[&str]) -> Result<CniArgs, ErrorReply> {
        let args = CniArgs::parse(&self.raw_args).map_err(ErrorReply::internal)?;
        if !args.ignores_unknown().map_err(ErrorReply::internal)? {
            let unknown: Vec<&str> =
                args.keys().filter(|key| *key != "IgnoreUnknown" && !known.contains(key)).collect();
            if !unknown.is_empty() {
                return Err(ErrorReply::internal(format!(
                    "unknown CNI_ARGS keys: {} (IgnoreUnknown=1 passes them over)",
                    unknown.join(", ")
                )));
            }
        }
        Ok(args)
    }

    /// The result of the plugins before this one, or of the whole ADD; none where the runtime gave none.
    ///
    /// # Errors
    /// When it does not parse as the configuration's version.
    pub fn prev_result(&self) -> Result<Option<AddResult>, ErrorReply> {
        let root = self.root().object("prevResult").map_err(decoding)?;
        let read = root.map(|root| AddResult::from_json_as(&root, self.version)).transpose();
        read.map_err(|error| match error {
            // It says which key.
            ResultError::Json(error) => decoding(error),
            other => ErrorReply::new(code::DECODING_FAILURE, format!("prevResult: {other}")),
        })
    }

    /// As [`Request::prev_result`], for a verb or a plugin that needs one.
    ///
    /// # Errors
    /// With this message when there is none.
    pub fn required_prev_result(&self, message: &str) -> Result<AddResult, ErrorReply> {
        self.prev_result()?.ok_or_else(|| ErrorReply::config(message))
    }

    /// The container's namespace.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_netns(&self) -> Result<Netns, ErrorReply> {
        let path = self.netns.as_deref().unwrap_or_else(|| std::path::Path::new(""));
        Netns::open(path).map_err(|error| {
            ErrorReply::new(code::INVALID_NETNS, format!("failed to open netns {path:?}: {error}"))
        })
    }

    /// The container's namespace for DEL: none when the runtime gave none, or when it is gone.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn existing_netns(&self) -> Result<Option<Netns>, ErrorReply> {
        match self.netns.as_deref().map(Netns::open) {
            Some(Ok(netns)) => Ok(Some(netns)),
            Some(Err(error)) if !error.is_gone() => Err(ErrorReply::internal(error)),
            Some(Err(_)) | None => Ok(None),
        }
    }

    /// What GC must keep. `null`, as libcni writes an empty list, is none.
    ///
    /// # Errors
    /// When the list is malformed, or absent: without it, everything would be removed.
    pub fn valid_attachments(&self) -> Result<Valid, ErrorReply> {
        let root = self.root();
        let key = VALID_ATTACHMENTS.into_iter().find(|key| root.has(key));
        let key = key.ok_or_else(|| {
            decoding(JsonError::key(
                VALID_ATTACHMENTS[0],
                "missing, and GC guesses nothing: [] keeps no attachment",
            ))
        })?;
        let read = |(place, value): (String, &Value)| -> Result<(String, String), JsonError> {
            let kept = Object::of(value, place)?;
            let text = |key: &str| -> Result<String, JsonError> {
                Ok(kept.required(key, kept.string(key)?)?.to_owned())
            };
            Ok((text("containerID")?, text("ifname")?))
        };
        root.array(key).and_then(|all| all.into_iter().map(read).collect()).map_err(decoding)
    }
}

/// An error document for a configuration that does not have the expected shape.
pub fn decoding(error: JsonError) -> ErrorReply {
    ErrorReply::new(code::DECODING_FAILURE, error.to_string())
}

/// Runs one plugin's asynchronous part on a runtime of its own.
pub(crate) fn block_on<R>(work: impl Future<Output = Result<R, ErrorReply>>) -> Result<R, ErrorReply> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        ErrorReply::new(code::IO_FAILURE, format!("start the asynchronous runtime: {error}"))
    })?;
    runtime.block_on(work)
}

/// The whole life of a plugin's process.
pub fn main<P: Plugin>(plugin: &P) -> ExitCode {
    let environment = Environment::of_process();
    if environment.command.is_none() {
        eprintln!("CNI {} plugin of Orlop {}", P::NAME, env!("CARGO_PKG_VERSION"));
        eprintln!("CNI protocol versions supported: {}", supported(P::OLDEST).join(", "));
        return ExitCode::SUCCESS;
    }
    match run(plugin, &environment, std::io::stdin().lock()) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(document)) => print(&document, ExitCode::SUCCESS),
        Err(reply) => {
            let version = reply.cni_version.as_deref().unwrap_or(Version::NEWEST.as_str());
            let mut document = json!({"cniVersion": version, "code": reply.code, "msg": reply.msg});
            if !reply.details.is_empty() {
                document["details"] = Value::String(reply.details);
            }
            print(&document, ExitCode::FAILURE)
        }
    }
}

/// What a process of this plugin would answer that another plugin delegates `request`'s attachment to: its document, if any.
pub(crate) fn call_here<P: Plugin>(
    plugin: &P,
    request: &Request,
    verb: Verb,
    config: &[u8],
) -> Result<Option<Map<String, Value>>, ErrorReply> {
    match run(plugin, &Environment::of_process().of_delegate(request, verb), config)? {
        Some(Value::Object(document)) => Ok(Some(document)),
        _ => Ok(None),
    }
}

/// A runtime that does not read the document gets a failure, whatever was done.
fn print(document: &Value, status: ExitCode) -> ExitCode {
    let text = format!("{document:#}\n");
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => status,
        Err(error) => {
            eprintln!("write result to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One call: the document to print, if any.
fn run<P: Plugin>(
    plugin: &P,
    environment: &Environment,
    stdin: impl Read,
) -> Result<Option<Value>, ErrorReply> {
    let verb = environment.verb()?;
    if verb == Verb::Version {
        let supported = supported(P::OLDEST);
        return Ok(Some(json!({"cniVersion": Version::NEWEST.as_str(), "supportedVersions": supported})));
    }
    let request = environment.request(verb, read_config(stdin)?)?;
    if request.version < P::OLDEST {
        return Err(incompatible(request.version.as_str(), P::OLDEST));
    }
    dispatch(plugin, &request)
        .map_err(|reply| ErrorReply { cni_version: Some(request.version.as_str().to_owned()), ..reply })
}

fn dispatch<P: Plugin>(plugin: &P, request: &Request) -> Result<Option<Value>, ErrorReply> {
    let done = match request.verb {
        Verb::Add => {
            let result = plugin.add(request)?;
            return match result.to_json(request.version) {
                Ok(document) => Ok(Some(document)),
                Err(error) => {
                    // Nobody would learn what was made, so it must not stay.
                    let undone = plugin.del(request);
                    let reply = ErrorReply::new(code::INCOMPATIBLE_VERSION, error.to_string());
                    Err(reply.with_undo(undone.err()))
                }
            };
        }
        Verb::Del => plugin.del(request),
        Verb::Check => plugin.check(request),
        Verb::Gc => plugin.gc(request),
        Verb::Status => plugin.status(request),
        Verb::Version => Ok(()),
    };
    done.map(|()| None)
}

fn read_config(stdin: impl Read) -> Result<Vec<u8>, ErrorReply> {
    let mut bytes = Vec::new();
    stdin
        .take(DOCUMENT_LIMIT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| ErrorReply::new(code::IO_FAILURE, format!("error reading from stdin: {error}")))?;
    Ok(bytes)
}

/// Reads the configuration's part that every plugin shares.
fn shared_config(bytes: &[u8]) -> Result<(Map<String, Value>, String, Version), ErrorReply> {
    let failed =
        |error| ErrorReply::new(code::DECODING_FAILURE, format!("error unmarshall network config: {error}"));
    let config = parse_object(bytes).map_err(failed)?;
    let root = Object::root(&config);
    let name = root.string("name").map_err(failed)?.unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(ErrorReply::config("missing network name"));
    }
    cni::network_name(&name)
        .map_err(|_| ErrorReply::config("invalid characters found in network name").with_details(&name))?;
    let text = root.string("cniVersion").map_err(failed)?.unwrap_or_default();
    let version = text.parse::<Version>().map_err(|_| incompatible(text, Version::V0_1_0))?;
    Ok((config, name, version))
}

fn supported(oldest: Version) -> Vec<&'static str> {
    Version::ALL.into_iter().filter(|version| *version >= oldest).map(Version::as_str).collect()
}

fn incompatible(version: &str, oldest: Version) -> ErrorReply {
    let supported: Vec<String> = supported(oldest).iter().map(|version| format!("{version:?}")).collect();
    ErrorReply::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
        .with_details(format!("config is {version:?}, plugin supports [{}]", supported.join(" ")))
}

/// A container must not be given the plugin's own namespace by mistake. A path that cannot be opened is for the
/// plugin to judge.
fn refuse_own_netns(path: &std::path::Path) -> Result<(), ErrorReply> {
    let theirs = Netns::open(path).and_then(|netns| netns.id());
    let ours = linux::netns::current_id();
    match (theirs, ours) {
        (Ok(theirs), Ok(ours)) if theirs == ours => Err(ErrorReply::new(
            code::INVALID_NETNS,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
