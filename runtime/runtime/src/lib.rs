//! The container runtime as a library: images, sandboxes, containers and their streams, in the words of CRI v1.
//!
//! Input: a [`Config`] and CRI-shaped requests; output: processes on this machine, statuses, [`Event`]s. It keeps no database: what exists is
//! what the shims and the directories below [`Config::root`] say, so that a process that starts after a crash finds everything again.
//! It never links libcontainer, never forks, and refuses every field that it does not honour.

pub mod config;
pub mod container;
pub mod error;
pub mod event;
pub mod exec;
pub mod image;
pub mod metrics;
pub mod sandbox;
pub mod streams;

mod images;
mod network;
mod shims;
mod spec;

mod runtime;

pub use config::{Config, Endpoint, Registries, RegistryHost};
pub use container::{
    ContainerConfig, ContainerId, ContainerState, ContainerStats, ContainerStatus, Device, Mount,
    MountPropagation, Resources, SecurityContext, SecurityProfile, SupplementalGroupsPolicy,
};
pub use error::{Error, ImageError};
pub use event::{EVENT_QUEUE_EVENTS, Event, Events};
pub use exec::{ExecConfig, ExecSession, ExecSyncResult, Resizer};
pub use image::{AuthConfig, DiskUsage, Image, PullProgress};
pub use runtime::{Runtime, Snapshot};
pub use sandbox::{
    DnsConfig, LinuxSandboxConfig, NamespaceMode, NamespaceOptions, PortMapping, Protocol, SandboxConfig,
    SandboxId, SandboxState, SandboxStatus,
};
pub use streams::{ReadStream, WriteStream};

/// Bytes of each stream that `exec_sync` keeps, as containerd.
pub const EXEC_SYNC_OUTPUT_BYTES: usize = 16 * 1024 * 1024;
