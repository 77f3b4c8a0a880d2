//! Lifecycle hooks: exec, httpGet, tcpSocket (as in the API, an error), sleep.
//!
//! In: a hook and the container it belongs to. Out: done, or why not. How long it may take is the caller's business.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use runtime::ContainerId;

use super::probes::dial::{self, Endpoint};
use super::site::Site;
use crate::api::chain;

/// Longest answer of an HTTP hook.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);
/// Output of a failed command that is logged, bytes.
const OUTPUT_BYTES: usize = 512;

/// Whom a hook concerns.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The container.
    pub container: &'a Container,
    /// Its id.
    pub id: &'a ContainerId,
    /// The pod's address.
    pub ip: Option<IpAddr>,
}

/// Runs a hook.
///
/// # Errors
/// In words.
pub async fn run(site: &Site, target: Target<'_>, hook: &LifecycleHandler) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let result = site.runtime.exec_sync(target.id, command.clone(), None).await;
        let result = result.map_err(|error| chain(&error))?;
        if result.exit_code == 0 {
            return Ok(());
        }
        let mut output = result.stdout;
        output.extend(result.stderr);
        output.truncate(OUTPUT_BYTES);
        let output = String::from_utf8_lossy(&output).into_owned();
        tracing::info!(container = %target.id, exit_code = result.exit_code, output, "hook failed");
        return Err(format!("command '{}' exited with {}: {output}", command.join(" "), result.exit_code));
    }
    if let Some(get) = &hook.http_get {
        let endpoint = Endpoint::http(get, target.container, target.ip)?;
        let answer = dial::http(&endpoint, HTTP_TIMEOUT).await?;
        return if answer.status < 400 {
            Ok(())
        } else {
            Err(format!("HTTP hook failed with statuscode: {}", answer.status))
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    if let Some(tcp) = &hook.tcp_socket {
        let (host, port) = dial::tcp_target(tcp, target.container, target.ip)?;
        return dial::tcp(&host, port, HTTP_TIMEOUT).await;
    }
    Err("invalid handler: no action".into())
}
