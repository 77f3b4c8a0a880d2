//! What kube-proxy answers over HTTP: `/healthz` and `/livez` for load balancers and probes, `/metrics` for scrapers.
//!
//! In: the dataplane, its progress, the own Node, asked for at each request. Out: pages on two ports. Nothing is kept but how often health
//! was asked for.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use http::StatusCode;
use jiff::{Timestamp, tz::TimeZone};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::node::is_eligible;
use crate::events::Recorder;
use crate::kubelet_api::{self, METRICS_CONTENT_TYPE};
use crate::node::OwnNode;
use crate::plain_http::{self, Answer};
use crate::services::{Dataplane, Directory, Progress};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// What `/proxyMode` says.
const PROXY_MODE: &str = "ebpf";

type Asked = Family<[(&'static str, &'static str); 1], Counter>;

/// What the pages are made of. Clones share it.
#[derive(Clone)]
pub struct Pages {
    node: OwnNode,
    progress: Progress,
    recorder: Recorder,
    /// Once it is open.
    dataplane: Arc<OnceLock<(Dataplane, Directory)>>,
    asked_healthz: Asked,
    asked_livez: Asked,
}

impl Pages {
    pub fn new(node: OwnNode, progress: Progress, recorder: Recorder) -> Self {
        let (asked_healthz, asked_livez) = (Asked::default(), Asked::default());
        Self { node, progress, recorder, dataplane: Arc::default(), asked_healthz, asked_livez }
    }

    /// From here on `/metrics` shows its counters, too, and those of Services.
    pub fn show(&self, dataplane: Dataplane, directory: Directory) {
        // It is opened once.
        let _shown = self.dataplane.set((dataplane, directory));
    }

    /// The health port. Whether the node goes is a matter of `/healthz` alone: a proxy is not to be restarted for it.
    fn health(&self, path: &str) -> Answer {
        let eligible = is_eligible(self.node.borrow().as_deref());
        let health = self.progress.health(Instant::now());
        let now = SystemTime::now();
        // Of one that is healthy nothing is older than now, whenever there was something to write.
        let updated = if health.is_healthy { Some(now) } else { health.last_written };
        let mut body = json!({"lastUpdated": updated.map(shown), "currentTime": shown(now)});
        let (healthy, asked) = match path {
            "/healthz" => {
                body["nodeEligible"] = json!(eligible);
                (health.is_healthy && eligible, &self.asked_healthz)
            }
            "/livez" => (health.is_healthy, &self.asked_livez),
            _ => return not_found(),
        };
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        asked.get_or_create(&[("code", if healthy { "200" } else { "503" })]).inc();
        plain_http::answer(status, JSON, body.to_string())
    }

    /// The metrics port.
    fn figures(&self, path: &str) -> Answer {
        match path {
            "/metrics" => match self.render() {
                Ok(text) => plain_http::answer(StatusCode::OK, METRICS_CONTENT_TYPE, text),
                Err(fmt::Error) => plain_http::answer(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    TEXT,
                    "the figures cannot be written\n",
                ),
            },
            "/healthz" => plain_http::answer(StatusCode::OK, TEXT, "ok"),
            "/proxyMode" => plain_http::answer(StatusCode::OK, TEXT, PROXY_MODE),
            _ => not_found(),
        }
    }

    fn render(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        kubelet_api::register_build(&mut registry);
        self.progress.register(&mut registry);
        for (name, asked) in [("healthz", &self.asked_healthz), ("livez", &self.asked_livez)] {
            let help = format!("Answers of /{name}, by HTTP code");
            registry.register(format!("kubeproxy_proxy_{name}"), help, asked.clone());
        }
        kubelet_api::register_dropped_events(&mut registry, self.recorder.dropped());
        if let Some((dataplane, directory)) = self.dataplane.get() {
            kubelet_api::register_dataplane(&mut registry, dataplane, directory);
        }
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

fn not_found() -> Answer {
    plain_http::answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

/// As Go shows a time that was not measured with its monotonic clock: the fraction without trailing zeros.
fn shown(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or_default().to_zoned(TimeZone::UTC);
    time.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string()
}

/// Bound ports that nobody answers yet.
pub struct Ports {
    healthz: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl Ports {
    pub fn bind(healthz: Option<SocketAddr>, metrics: Option<SocketAddr>) -> anyhow::Result<Self> {
        let listen = |flag: &str, address: Option<SocketAddr>| {
            let bound = address.map(plain_http::listen).transpose();
            bound.with_context(|| {
                format!("listen on {} (--{flag})", address.map(|a| a.to_string()).unwrap_or_default())
            })
        };
        Ok(Self {
            healthz: listen("healthz-bind-address", healthz)?,
            metrics: listen("metrics-bind-address", metrics)?,
        })
    }

    /// Answers until shutdown.
    pub async fn run(self, pages: Pages, shutdown: CancellationToken) {
        let (health, figures) = (pages.clone(), pages);
        let Self { healthz, metrics } = self;
        let healthz = serve(healthz, move |path| health.health(path));
        let metrics = serve(metrics, move |path| figures.figures(path));
        // Cancel-safe: what is cut off asks again.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = healthz => {}
            () = metrics => {}
        }
    }
}

async fn serve(
    listener: Option<TcpListener>,
    respond: impl Fn(&str) -> Answer + Clone + Send + Sync + 'static,
) {
    match listener {
        Some(listener) => plain_http::serve(&listener, respond).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
