//! The errors of the library: one enum for sandboxes and containers, one for images. Messages are lower case and name operation and object.

use std::path::PathBuf;

/// Sandbox, container and stream operations.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the caller's configuration is not usable.
    #[error("invalid argument {field}: {reason}")]
    InvalidArgument {
        /// Which.
        field: String,
        /// Why.
        reason: String,
    },
    /// A field asks for something that this runtime or this kernel does not have.
    #[error("not supported: {what}")]
    Unsupported {
        /// What, and where known why.
        what: String,
    },
    /// No such sandbox, container or image.
    #[error("{kind} \"{id}\": not found")]
    NotFound {
        /// `sandbox`, `container` or `image`.
        kind: &'static str,
        /// What the caller gave.
        id: String,
    },
    /// The object is not in a state that allows this.
    #[error("{operation}: container \"{id}\" is in {state} state")]
    WrongState {
        /// What was tried.
        operation: &'static str,
        /// On what.
        id: String,
        /// Its state, as CRI names it.
        state: &'static str,
    },
    /// No CNI configuration was found, or none could be loaded.
    #[error("cni plugin not initialized: {reason}")]
    CniNotInitialized {
        /// Why.
        reason: String,
    },
    /// A CNI plugin failed.
    #[error("failed to setup network for sandbox \"{sandbox}\": {reason}")]
    Network {
        /// The sandbox.
        sandbox: String,
        /// The plugin's own words.
        reason: String,
    },
    /// The shim answered with an error.
    #[error("{operation}: {message}")]
    Shim {
        /// What the shim was asked.
        operation: &'static str,
        /// Its answer.
        message: String,
    },
    /// The process could not be executed; a container is reported with reason StartError and this message.
    #[error("{}: {message}", shim_protocol::START_FAILED)]
    Start {
        /// Why.
        message: String,
    },
    /// The sandbox's shim is gone.
    #[error("shim of sandbox \"{sandbox}\" is gone")]
    ShimGone {
        /// The sandbox.
        sandbox: String,
    },
    /// Something did not happen in time.
    #[error("{operation}: timed out")]
    Timeout {
        /// What.
        operation: String,
    },
    /// A system call failed.
    #[error("{operation}")]
    System {
        /// What.
        operation: String,
        /// The call and its error number.
        source: linux::Error,
    },
    /// Input or output failed.
    #[error("{operation}")]
    Io {
        /// What, with its object.
        operation: String,
        /// The error.
        source: std::io::Error,
    },
    /// A file of ours does not parse.
    #[error("read {path}: not valid json", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The image could not be used.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Image operations. The text of a pull's error is containerd's, so that a status shows what people know.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The reference does not parse: InvalidImageName in a pod's status.
    #[error("couldn't parse image name \"{reference}\": {reason}")]
    InvalidReference {
        /// As given.
        reference: String,
        /// Why.
        reason: String,
    },
    /// The registry has no such image.
    #[error(
        "failed to pull and unpack image \"{reference}\": failed to resolve reference \"{reference}\": {reference}: not found"
    )]
    NotFound {
        /// Normalised.
        reference: String,
    },
    /// The registry wants other credentials.
    #[error(
        "failed to pull and unpack image \"{reference}\": failed to resolve reference \"{reference}\": {reason}"
    )]
    Unauthorized {
        /// Normalised.
        reference: String,
        /// `pull access denied, repository does not exist or may require authorization: …`.
        reason: String,
    },
    /// The registry cannot be reached or answers with a server error: RegistryUnavailable.
    #[error(
        "failed to pull and unpack image \"{reference}\": failed to resolve reference \"{reference}\": {reason}"
    )]
    Unreachable {
        /// Normalised.
        reference: String,
        /// Why.
        reason: String,
    },
    /// What arrived is not what its digest says.
    #[error(
        "failed to pull and unpack image \"{reference}\": unexpected digest of {what}: expected {expected}, got {actual}"
    )]
    DigestMismatch {
        /// Normalised, or the archive's path.
        reference: String,
        /// `blob`, `layer`.
        what: String,
        /// From the descriptor.
        expected: String,
        /// Computed.
        actual: String,
    },
    /// Manifest, config, layer or archive are not what the specification says.
    #[error("failed to pull and unpack image \"{reference}\": {reason}")]
    Malformed {
        /// Normalised, or the archive's path.
        reference: String,
        /// What is wrong.
        reason: String,
    },
    /// An index without an entry for this platform.
    #[error("failed to pull and unpack image \"{reference}\": no match for platform in manifest: not found")]
    NoPlatform {
        /// Normalised, or the archive's path.
        reference: String,
    },
    /// Not in the store.
    #[error("image \"{reference}\": not found")]
    Absent {
        /// As given.
        reference: String,
    },
    /// The local disk failed.
    #[error("{operation}")]
    Store {
        /// What, with its object.
        operation: String,
        /// The error.
        source: std::io::Error,
    },
}
