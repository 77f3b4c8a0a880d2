//! What the cluster tests share: the cluster that `up` starts, kubectl, and a namespace of the test's own.
//!
//! Everything is driven from outside, with the words that a user types. A failed call panics with what kubectl said.

pub mod churn;
pub mod cluster;
pub mod example;
pub mod http;
pub mod inventory;
pub mod kubectl;
pub mod load;
pub mod processes;
pub mod watch;
