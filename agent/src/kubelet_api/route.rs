//! Paths of the kubelet API. Pure.

use http::Method;

#[cfg(test)]
mod tests;

/// A container of a pod, by names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub pod: String,
    /// Empty where the path has none: the pod's only container.
    pub container: String,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Healthz,
    Pods,
    RunningPods,
    Metrics,
    StatsSummary,
    Configz,
    ContainerLogs(Target),
    Exec(Target),
    Attach(Target),
    PortForward(Target),
}

/// Why nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoute {
    NotFound,
    MethodNotAllowed,
}

impl Route {
    pub fn parse(method: &Method, path: &str) -> Result<Self, NoRoute> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (route, streaming) = match parts.as_slice() {
            ["healthz"] => (Self::Healthz, false),
            ["pods"] => (Self::Pods, false),
            ["runningpods"] => (Self::RunningPods, false),
            ["metrics"] => (Self::Metrics, false),
            ["stats", "summary"] => (Self::StatsSummary, false),
            ["configz"] => (Self::Configz, false),
            ["containerLogs", rest @ ..] => (Self::ContainerLogs(container(rest)?), false),
            ["exec", rest @ ..] => (Self::Exec(container(rest)?), true),
            ["attach", rest @ ..] => (Self::Attach(container(rest)?), true),
            ["portForward", rest @ ..] => (Self::PortForward(pod(rest)?), true),
            _ => return Err(NoRoute::NotFound),
        };
        // The API server passes the client's method on: GET from WebSocket clients, POST from SPDY ones.
        let allowed = *method == Method::GET || (streaming && *method == Method::POST);
        if allowed { Ok(route) } else { Err(NoRoute::MethodNotAllowed) }
    }
}

fn container(parts: &[&str]) -> Result<Target, NoRoute> {
    match parts {
        // With the pod's uid in between, as the kubelet also takes it.
        [namespace, pod, container] | [namespace, pod, _, container] => Ok(target(namespace, pod, container)),
        _ => Err(NoRoute::NotFound),
    }
}

fn pod(parts: &[&str]) -> Result<Target, NoRoute> {
    match parts {
        [namespace, pod] | [namespace, pod, _] => Ok(target(namespace, pod, "")),
        _ => Err(NoRoute::NotFound),
    }
}

fn target(namespace: &str, pod: &str, container: &str) -> Target {
    Target { namespace: namespace.to_owned(), pod: pod.to_owned(), container: container.to_owned() }
}
