//! The subresources that a node answers: log, exec, attach, portforward.
//!
//! Translates the API's query parameters to the kubelet's and passes the request on. What the node says in place of a log or
//! a stream, and that it cannot be reached, becomes a Status: kubectl shows plain text as an unknown error. Refuses pods
//! without a node and nodes without an address.

use http::{Method, Response, StatusCode, header};
use http_body_util::BodyExt;

use super::places::Upgrade;
use super::{Body, Call, Query};
use crate::error::{ApiError, Resource};
use crate::kinds::Kind;
use crate::kubelet::{KubeletAddress, KubeletError, KubeletRequest};
use crate::object::{items, text};
use crate::storage::Key;

/// What is read of a node's refusal (upstream's limit).
const MAX_REFUSAL_BYTES: usize = 50_000;
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Query parameters of the API and of the kubelet.
const STREAMS: &[(&str, &str)] =
    &[("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
const LOG_OPTIONS: &[&str] = &[
    "follow",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "timestamps",
    "tailLines",
    "limitBytes",
    "stream",
    "insecureSkipTLSVerifyBackend",
];

impl Call<'_> {
    pub(super) async fn proxy(mut self, kind: &'static Kind) -> Result<Response<Body>, ApiError> {
        let (namespace, name) = (self.route.namespace.clone(), self.route.name.clone());
        let pod = self.api.find(kind, &namespace, &name)?.value();
        let node_name = text(&pod, "/spec/nodeName");
        let subresource = self.route.subresource.clone();
        let container =
            if subresource == "portforward" { String::new() } else { container(&pod, &name, &self.query)? };
        if node_name.is_empty() {
            if subresource == "log" {
                // A pod without a node has no output yet.
                return Ok(super::respond(200, "text/plain", ""));
            }
            return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let nodes = Resource { group: "", name: "nodes" };
        let node = self.api.cache.get(&Key::new("nodes", "", node_name));
        let node = node.ok_or_else(|| ApiError::not_found(nodes, node_name))?.value();
        let address = KubeletAddress::of(&node).ok_or_else(|| {
            ApiError::internal(format!("no preferred addresses found for node {node_name:?}"))
        })?;
        let target = target(&subresource, &namespace, &name, &container, &self.query);
        let upgrade = self.request.headers().contains_key(header::UPGRADE);
        let upgrade = upgrade.then(|| Upgrade::of(&mut self.request));
        let (parts, body) = self.request.into_parts();
        let method = if subresource == "log" { Method::GET } else { parts.method };
        let url = format!("https://{address}{target}");
        let request = KubeletRequest { address, method, target, headers: &parts.headers, body, upgrade };
        let answer = self.api.kubelet.proxy(request).await;
        let answer = answer.map_err(|error| unreachable_node(&subresource, &url, &error))?;
        if is_wanted(&subresource, answer.status()) {
            return Ok(answer);
        }
        Err(refusal(&subresource, &name, answer).await)
    }
}

fn is_wanted(subresource: &str, status: StatusCode) -> bool {
    match subresource {
        "log" => (200..=206).contains(&status.as_u16()),
        _ => status == StatusCode::SWITCHING_PROTOCOLS,
    }
}

/// What a client reads when the node does not answer at all.
fn unreachable_node(subresource: &str, url: &str, error: &KubeletError) -> ApiError {
    match subresource {
        "log" => ApiError::unknown(format!("Get {url:?}: {error}")),
        _ => ApiError::internal(format!("error dialing backend: {error}")),
    }
}

/// The Status for a node's refusal.
async fn refusal(subresource: &str, name: &str, answer: Response<Body>) -> ApiError {
    let code = answer.status().as_u16();
    let said = refusal_text(answer.into_body()).await;
    tracing::debug!(subresource, pod = name, code, said, "a node refused");
    let resource = format!("pods/{subresource}");
    let resource = Resource { group: "", name: &resource };
    match (subresource, code) {
        ("log", 400) => ApiError::bad_request(said),
        ("log", _) => ApiError::of_server(code, resource, name, &said),
        // A node that says yes to something else than the stream.
        (_, ..400) => ApiError::internal(format!("unable to upgrade connection: the node answered {code}")),
        _ => ApiError::no_stream(code, resource, name, &said),
    }
}

/// The beginning of a body, without the line end that Go's servers put after an error.
async fn refusal_text(mut body: Body) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_REFUSAL_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    bytes.truncate(MAX_REFUSAL_BYTES);
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

/// The container that is meant: named, annotated, or the only one.
fn container(pod: &serde_json::Value, name: &str, query: &Query) -> Result<String, ApiError> {
    let lists = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"];
    let names: Vec<&str> =
        lists.iter().flat_map(|list| items(pod, list)).map(|container| text(container, "/name")).collect();
    let wanted = query.get("container");
    if !wanted.is_empty() {
        if !names.contains(&wanted) {
            return Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}")));
        }
        return Ok(wanted.to_owned());
    }
    let annotated = pod["metadata"]["annotations"].get(DEFAULT_CONTAINER).and_then(serde_json::Value::as_str);
    if let Some(annotated) = annotated.filter(|annotated| names.contains(annotated)) {
        return Ok(annotated.to_owned());
    }
    match (items(pod, "/spec/containers"), names.as_slice()) {
        ([only], _) => Ok(text(only, "/name").to_owned()),
        (_, names) => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            names.join(" ")
        ))),
    }
}

fn target(subresource: &str, namespace: &str, pod: &str, container: &str, query: &Query) -> String {
    let mut pairs: Vec<String> = Vec::new();
    let mut add = |key: &str, value: &str| pairs.push(format!("{key}={}", encode(value)));
    let path = match subresource {
        "log" => {
            for option in LOG_OPTIONS.iter().filter(|option| query.has(option)) {
                add(option, query.get(option));
            }
            format!("/containerLogs/{namespace}/{pod}/{container}")
        }
        "portforward" => {
            for port in query.all("ports") {
                add("port", port);
            }
            format!("/portForward/{namespace}/{pod}")
        }
        other => {
            for (_, kubelet) in STREAMS.iter().filter(|(api, _)| query.is_set(api)) {
                add(kubelet, "1");
            }
            for word in query.all("command") {
                add("command", word);
            }
            format!("/{other}/{namespace}/{pod}/{container}")
        }
    };
    if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) }
}

/// Percent encoding of everything but unreserved characters.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    //! What the kubelet is asked.

    use super::*;

    #[test]
    fn targets() {
        let query = Query::parse(
            "command=sh&command=-c&command=echo+%261&stdin=true&stdout=true&tty=false&container=c",
        );
        assert_eq!(
            target("exec", "x", "p", "c", &query),
            "/exec/x/p/c?input=1&output=1&command=sh&command=-c&command=echo%20%261"
        );
        let query = Query::parse("follow=true&tailLines=5&container=c&foo=1");
        assert_eq!(target("log", "x", "p", "c", &query), "/containerLogs/x/p/c?follow=true&tailLines=5");
    }
}
