//! Counters in Prometheus' text form, with upstream's names where upstream has them.
//!
//! Input: events of the server. Output: `/metrics`. Bounded: label values come from fixed tables only.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// All counters of one server.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By verb, resource and code.
    requests: Mutex<BTreeMap<(&'static str, &'static str, u16), u64>>,
    /// Watchers that fell behind their queue and were dropped.
    pub terminated_watchers: AtomicU64,
    /// Changes that left a watch window because it was full.
    pub window_evictions: AtomicU64,
    /// Transactions that lost a race and were tried again.
    pub conflicts: AtomicU64,
}

/// What is counted elsewhere and only shown here.
pub struct Gauges {
    pub revision: u64,
    /// Live objects by resource.
    pub objects: Vec<(&'static str, usize)>,
    /// Open watches by resource.
    pub watchers: Vec<(&'static str, usize)>,
}

impl Metrics {
    pub fn count_request(&self, verb: &'static str, resource: &'static str, code: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((verb, resource, code)).or_default() += 1;
    }

    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The text of `/metrics`.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::new();
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        header(&mut out, "apiserver_request_total", "counter", "Requests by verb, resource and code.");
        for ((verb, resource, code), count) in requests.iter() {
            let labels = format!("verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"");
            line(&mut out, "apiserver_request_total", &labels, *count);
        }
        let counters = [
            (
                "apiserver_terminated_watchers_total",
                &self.terminated_watchers,
                "Watchers dropped for being slow.",
            ),
            (
                "orlop_watch_window_evictions_total",
                &self.window_evictions,
                "Changes that left a full watch window.",
            ),
            (
                "orlop_transaction_conflicts_total",
                &self.conflicts,
                "Transactions tried again after a lost race.",
            ),
        ];
        for (name, counter, help) in counters {
            header(&mut out, name, "counter", help);
            line(&mut out, name, "", counter.load(Ordering::Relaxed));
        }
        header(&mut out, "orlop_store_revision", "gauge", "Revision of the newest change.");
        line(&mut out, "orlop_store_revision", "", gauges.revision);
        header(&mut out, "apiserver_storage_objects", "gauge", "Stored objects by resource.");
        for (resource, count) in &gauges.objects {
            line(&mut out, "apiserver_storage_objects", &format!("resource=\"{resource}\""), *count as u64);
        }
        header(&mut out, "apiserver_registered_watchers", "gauge", "Open watches by resource.");
        for (resource, count) in &gauges.watchers {
            line(
                &mut out,
                "apiserver_registered_watchers",
                &format!("resource=\"{resource}\""),
                *count as u64,
            );
        }
        out
    }
}

// Writing into a String cannot fail.
fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: u64) {
    let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let _ = writeln!(out, "{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    //! The text form.

    use super::*;

    #[test]
    fn text() {
        let metrics = Metrics::default();
        metrics.count_request("get", "pods", 200);
        metrics.count_request("get", "pods", 200);
        Metrics::add(&metrics.conflicts);
        let gauges = Gauges { revision: 7, objects: vec![("pods", 3)], watchers: vec![] };
        let text = metrics.render(&gauges);
        assert!(
            text.contains("apiserver_request_total{verb=\"get\",resource=\"pods\",code=\"200\"} 2\n"),
            "{text}"
        );
        assert!(
            text.contains("orlop_transaction_conflicts_total 1\n")
                && text.contains("orlop_store_revision 7\n")
        );
        assert!(text.contains("apiserver_storage_objects{resource=\"pods\"} 3\n"));
    }
}
