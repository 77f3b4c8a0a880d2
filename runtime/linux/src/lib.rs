//! Safe wrappers around the Linux kernel for the node's crates; all raw system calls live here.
//!
//! Takes plain values and returns plain values or errors that carry the name of the call and its object. Nothing here decides what
//! should exist, retries or logs. The formats of files that belong to the system, and that more than one of these crates reads, are here too.
#![expect(unsafe_code, reason = "raw system calls live in this crate and nowhere else")]

mod blocking;
mod error;

pub mod activation;
pub mod cgroup;
pub mod clock;
pub mod conntrack;
pub mod fds;
pub mod files;
pub mod interface;
pub mod machine;
pub mod memfd;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod outgoing;
pub mod packet;
pub mod passwd;
pub mod process;
pub mod pty;
pub mod scm;
pub mod sockets;
pub mod wireguard;

pub use error::Error;
