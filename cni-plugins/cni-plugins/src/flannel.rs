//! The plugin `flannel`: attaches a container by another plugin, in the subnet that the overlay's daemon gave this node.
//!
//! Inputs: `subnet.env`, which the daemon writes, and the keys `delegate`, `ipam`, `subnetFile`, `dataDir`. From both it makes
//! the configuration of the plugin that does the work (`bridge` with `host-local` unless told otherwise). Owns
//! `<dataDir>/<container id>`, where that configuration is kept for DEL, since the subnet may be another one by then.
//! It refuses a `delegate` that brings what only the daemon knows. The overlay itself is the daemon's.

pub(crate) mod config;
mod subnet_env;

use std::{
    io,
    path::{Path, PathBuf},
};

use cni::{AddResult, ErrorReply, VALID_ATTACHMENTS, code, exec::Verb, json, read_limited};
use serde_json::{Map, Value, json};

use self::{config::Config, subnet_env::SubnetEnv};
use crate::{
    delegate, kept_file,
    plugin::{Plugin, Request, Valid, block_on},
};

/// See the module.
#[derive(Debug)]
pub struct Flannel;

impl Plugin for Flannel {
    const NAME: &'static str = "flannel";

    fn add(&self, request: &Request) -> Result<AddResult, ErrorReply> {
        let config = Config::read(request)?;
        let made = config.delegate(request, &SubnetEnv::load(&config.subnet_file)?)?;
        let kept = Kept::of(&config.data_dir, &request.container_id);
        let plugin = delegate_type(&made)?;
        let earlier = kept.read()?;
        kept.write(&made)?;
        block_on(async {
            match delegate::add(request, plugin, bytes(&made)).await {
                Ok(result) => Ok(result),
                Err(failed) => {
                    let undone = undo(request, &kept, &made, earlier.as_ref(), failed.needs_undo).await;
                    Err(failed.reply.with_undo(undone.err()))
                }
            }
        })
    }

    fn del(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let kept = Kept::of(&config.data_dir, &request.container_id);
        // Nothing was made before the file was whole.
        let Some(made) = kept.read()? else { return kept.remove() };
        block_on(run(request, Verb::Del, &made))?;
        kept.remove()
    }

    fn check(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let kept = Kept::of(&config.data_dir, &request.container_id);
        let missing =
            || ErrorReply::internal(format!("{} is missing: not attached here", kept.path.display()));
        let mut made = kept.read()?.ok_or_else(missing)?;
        if let Some(result) = request.root().value("prevResult") {
            made.insert("prevResult".to_owned(), result.clone());
        }
        block_on(run(request, Verb::Check, &made)).map(|_| ())
    }

    /// The other plugin collects what it made, and then the configurations kept for it go.
    fn gc(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let valid = request.valid_attachments()?;
        let mut made = config.delegate(request, &SubnetEnv::load(&config.subnet_file)?)?;
        let root = request.root();
        for key in VALID_ATTACHMENTS.into_iter().filter(|key| root.has(key)) {
            made.insert(key.to_owned(), root.value(key).cloned().unwrap_or_else(|| json!([])));
        }
        block_on(run(request, Verb::Gc, &made))?;
        collect(&config.data_dir, &request.network, &valid)
    }

    fn status(&self, request: &Request) -> Result<(), ErrorReply> {
        let config = Config::read(request)?;
        let subnet = SubnetEnv::load(&config.subnet_file);
        let subnet = subnet.map_err(|error| ErrorReply { code: code::PLUGIN_NOT_AVAILABLE, ..error })?;
        block_on(run(request, Verb::Status, &config.delegate(request, &subnet)?)).map(|_| ())
    }
}

async fn run(
    request: &Request,
    verb: Verb,
    made: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>, ErrorReply> {
    delegate::call_with(request, delegate_type(made)?, verb, bytes(made)).await
}

fn bytes(made: &Map<String, Value>) -> Vec<u8> {
    Value::Object(made.clone()).to_string().into_bytes()
}

fn delegate_type(made: &Map<String, Value>) -> Result<&str, ErrorReply> {
    let named = made.get("type").and_then(Value::as_str);
    named.ok_or_else(|| {
        ErrorReply::config("'delegate' dictionary, if present, must have (string) 'type' field")
    })
}

/// What was kept before is kept again: of this link, which is attached already, or of another one of the container. After a
/// refusal without such, the new configuration stays for DEL: not every plugin takes back what it had made when it refused.
async fn undo(
    request: &Request,
    kept: &Kept,
    made: &Map<String, Value>,
    earlier: Option<&Map<String, Value>>,
    was_cut_off: bool,
) -> Result<(), ErrorReply> {
    if was_cut_off {
        run(request, Verb::Del, made).await?;
    }
    match earlier {
        Some(earlier) => kept.write(earlier),
        None if was_cut_off => kept.remove(),
        None => Ok(()),
    }
}

/// The configuration that an attachment was made with, on disk.
struct Kept {
    path: PathBuf,
}

impl Kept {
    fn of(data_dir: &Path, container_id: &str) -> Self {
        Self { path: data_dir.join(container_id) }
    }

    fn failed(&self, operation: &str, error: &io::Error) -> ErrorReply {
        ErrorReply::new(code::IO_FAILURE, format!("{operation} {}: {error}", self.path.display()))
    }

    /// Whole before the other plugin makes anything.
    fn write(&self, made: &Map<String, Value>) -> Result<(), ErrorReply> {
        let text = Value::Object(made.clone()).to_string();
        kept_file::write(&self.path, text.as_bytes()).map_err(|error| self.failed("write", &error))
    }

    /// None when there is none, and when it cannot be read as a configuration, with which nothing could be undone.
    fn read(&self) -> Result<Option<Map<String, Value>>, ErrorReply> {
        let bytes = match read_limited(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("read", &error)),
        };
        match json::parse_object(&bytes) {
            Ok(made) => Ok(Some(made)),
            Err(error) => {
                eprintln!("{}: {error}: nothing can be detached by it", self.path.display());
                Ok(None)
            }
        }
    }

    fn remove(&self) -> Result<(), ErrorReply> {
        kept_file::remove(&self.path).map_err(|error| self.failed("remove", &error))
    }
}

/// Removes the configurations of the network's attachments that are not to be kept. One that cannot be read says nothing of
/// its network, but nothing can be detached by it either: that of a container which is not to be kept goes.
fn collect(data_dir: &Path, network: &str, valid: &Valid) -> Result<(), ErrorReply> {
    let names = kept_file::names(data_dir).map_err(|error| {
        ErrorReply::new(code::IO_FAILURE, format!("read {}: {error}", data_dir.display()))
    })?;
    let is_lost = |name: &String| {
        cni::container_id(name).is_ok() && !valid.iter().any(|(container_id, _)| container_id == name)
    };
    let collect = |name: String| {
        let kept = Kept::of(data_dir, &name);
        match kept.read()? {
            Some(made) if made.get("name").and_then(Value::as_str) != Some(network) => Ok(()),
            _ => kept.remove(),
        }
    };
    ErrorReply::first_of(names.into_iter().filter(is_lost).map(collect))
}

/// See [`crate::fuzz`].
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    drop(SubnetEnv::parse(text));
}
