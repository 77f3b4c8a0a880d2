//! The whole server on a file system whose power is cut. Every test is a process of its own in a private host, as root.

#[path = "process/load.rs"]
mod load;
#[path = "host/power.rs"]
mod power;
#[path = "process/server.rs"]
mod server;
