//! The API server: HTTP, the registry of kinds, storage, watch cache, authentication and authorization.
//!
//! Input: options, a data directory and requests. Output: the Kubernetes API. It runs no controller and no scheduler;
//! those are clients of it, in the crate `controllers`.

pub mod pki;
pub mod storage;
