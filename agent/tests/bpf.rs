//! Parts of the agent with the BPF programs in the kernel.

#[path = "bpf/admission.rs"]
mod admission;
#[path = "bpf/bypass.rs"]
mod bypass;
#[path = "../src/policies/oracle.rs"]
mod oracle;
#[path = "bpf/place.rs"]
mod place;
#[path = "bpf/questions.rs"]
mod questions;
#[path = "bpf/service_proxy.rs"]
mod service_proxy;
#[path = "bpf/truth_table.rs"]
mod truth_table;
