//! What tests stand on: private hosts, the leak check, a control plane, waiting for a condition, counted skips.
//!
//! The harness drives binaries and looks at the kernel from outside; it links none of the code under test.

pub mod leaks;
pub mod private_host;
pub mod server;
pub mod skip;
pub mod wait;
