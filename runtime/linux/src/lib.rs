//! Safe wrappers over the kernel interfaces that a node needs.
//!
//! Owns: network namespaces and rtnetlink (the other kernel objects join them here). It takes plain values and returns
//! plain values or errors that name the operation and the object. It refuses to hold policy: what should exist is
//! decided by its callers.

pub mod netlink;
pub mod netns;
