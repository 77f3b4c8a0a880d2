//! Containers on a real kernel. Every test is a process of its own in fresh mount, network and pid namespaces, as root; it refuses to run elsewhere.

#[path = "host/execs.rs"]
mod execs;
#[path = "host/faults.rs"]
mod faults;
#[path = "host/fixture.rs"]
mod fixture;
#[path = "host/images.rs"]
mod images;
#[path = "host/life.rs"]
mod life;
#[path = "host/shims.rs"]
mod shims;
#[path = "host/timing.rs"]
mod timing;
