//! The Container Network Interface: its documents for every spec version, and the runtime's side of its protocol.
//!
//! Owns: configurations ([`NetworkList`]), results ([`AddResult`]) and error documents ([`ErrorReply`]) from 0.1.0 to
//! 1.1.0; running a plugin ([`exec`]); running a network's chain with a result cache ([`Client`]).
//! Inputs are foreign: files, plugins' output, environment. Each parser has a size limit, and its error names the key,
//! the value and what was expected. It refuses to touch the kernel's network state: that is the plugins' work.
//!
//! Facts are from the CNI specification (github.com/containernetworking/cni, SPEC.md) and from what libcni does.

pub mod args;
mod cache;
mod client;
mod conf_dir;
mod config;
pub mod exec;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod json;
mod read;
mod reply;
mod result;
mod validate;
mod version;

/// Keys of the specification under which GC names what must stay; the second is the older spelling.
pub const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

pub use cache::CacheError;
pub use client::{Attachment, Client, Error, Options, ValidAttachment};
pub use conf_dir::{ConfDir, FileError, load_conf_dir};
pub use config::{ConfigError, NetworkList, PluginConfig};
pub use read::{read_limited, read_text_limited};
pub use reply::{ErrorReply, code};
pub use result::{AddResult, Dns, Interface, IpConfig, ResultError, Route};
pub use validate::{NameError, container_id, interface_name, network_name};
pub use version::{UnknownVersion, Version};
