//! The whole server as a process: killed, backed up, restored.

#[path = "process/kill.rs"]
mod kill;
#[path = "process/load.rs"]
mod load;
#[path = "process/namespace.rs"]
mod namespace;
#[path = "process/server.rs"]
mod server;
#[path = "process/store.rs"]
mod store;
