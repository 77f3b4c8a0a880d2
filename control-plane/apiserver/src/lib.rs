//! The API server: HTTP, the registry of kinds, storage, watch cache, authentication and authorization.
//!
//! Input: options, a data directory and requests. Output: the Kubernetes API. It runs no controller and no scheduler;
//! those are clients of it, in the crate `controllers`.

pub mod allocators;
pub mod api;
pub mod auth;
pub mod bootstrap;
pub mod cache;
pub mod error;
pub mod expiry;
pub mod files;
pub mod http;
pub mod kinds;
pub mod kubelet;
pub mod metrics;
pub mod names;
pub mod object;
pub mod patch;
pub mod pki;
pub mod quantity;
pub mod schema;
pub mod selectors;
pub mod storage;
pub mod tolerations;
pub mod verbs;
