//! What the nodes' agents measured: `/metrics` of their kubelet API, fetched by kubectl with the administrator's certificate.
//!
//! In: addresses from the Node objects. Out: the sums and counts of all nodes together; buckets are left out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::pods::kubectl;
use crate::process;

#[cfg(test)]
mod tests;

/// How long the agents may take to have noted what kubectl has seen.
const LIMIT: Duration = Duration::from_secs(10);
/// Pods whose start is measured to its end.
const STARTS: &str = "orlop_pod_start_phase_duration_seconds_count{phase=\"status\"}";

/// `address:port` of each node's kubelet API.
pub struct Nodes(Vec<String>);

impl Nodes {
    pub fn find() -> Result<Self> {
        let path = "jsonpath={range .items[*]}{.status.addresses[?(@.type=='InternalIP')].address}:\
                    {.status.daemonEndpoints.kubeletEndpoint.Port}{\"\\n\"}{end}";
        let mut get = kubectl()?;
        let text = process::run_quietly("kubectl get nodes", get.args(["get", "nodes", "-o", path]))?;
        let found: Vec<String> = text.lines().map(str::to_owned).collect();
        ensure!(!found.is_empty(), "the cluster has no nodes");
        Ok(Self(found))
    }

    pub fn read(&self) -> Result<NodeMetrics> {
        let mut all = NodeMetrics::default();
        for address in &self.0 {
            let mut get = kubectl()?;
            // One authority signs the API server's certificate and the kubelets': only the address differs.
            get.args(["get", "--raw", "/metrics", "--server", &format!("https://{address}")]);
            all.add(&process::run_quietly(&format!("metrics of {address}"), &mut get)?);
        }
        Ok(all)
    }

    /// Reads until the starts of so many pods since `before` are in it.
    pub fn read_after(&self, before: &NodeMetrics, starts: usize) -> Result<NodeMetrics> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let now = self.read()?;
            let count = now.value(STARTS) - before.value(STARTS);
            if count >= starts as f64 {
                return Ok(now);
            }
            ensure!(
                Instant::now() < deadline,
                "the agents measured {count} of {starts} starts: were they restarted?"
            );
        }
    }
}

/// Values by series, name and labels as they are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeMetrics(BTreeMap<String, f64>);

impl NodeMetrics {
    /// Adds a page in the text format.
    fn add(&mut self, page: &str) {
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or_default();
            if let (false, Ok(value)) = (name.ends_with("_bucket"), value.parse::<f64>()) {
                *self.0.entry(series.to_owned()).or_default() += value;
            }
        }
    }

    fn value(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_default()
    }

    /// What a family of durations summed up since `before`, in the series whose labels are exactly `label`.
    pub fn spent_since(&self, before: &Self, family: &str, label: &str) -> Duration {
        let series = format!("{family}_sum{{{label}}}");
        Duration::try_from_secs_f64(self.value(&series) - before.value(&series)).unwrap_or_default()
    }
}
