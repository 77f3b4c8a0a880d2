use http::Method;

use super::{NoRoute, Route, Target};

fn target(container: &str) -> Target {
    Target { namespace: "ns".into(), pod: "pod".into(), container: container.into() }
}

#[test]
fn paths() {
    let get = |path: &str| Route::parse(&Method::GET, path);
    let cases = [
        ("/healthz", Ok(Route::Healthz)),
        ("/runningpods/", Ok(Route::RunningPods)),
        ("/stats/summary", Ok(Route::StatsSummary)),
        ("/containerLogs/ns/pod/c", Ok(Route::ContainerLogs(target("c")))),
        ("/containerLogs/ns/pod", Err(NoRoute::NotFound)),
        ("/exec/ns/pod/c", Ok(Route::Exec(target("c")))),
        ("/exec/ns/pod/uid/c", Ok(Route::Exec(target("c")))),
        ("/portForward/ns/pod", Ok(Route::PortForward(target("")))),
        ("/portForward/ns/pod/uid", Ok(Route::PortForward(target("")))),
        ("/logs/", Err(NoRoute::NotFound)),
        ("/", Err(NoRoute::NotFound)),
    ];
    for (path, expected) in cases {
        assert_eq!(get(path), expected, "{path}");
    }
}

#[test]
fn only_streams_may_be_posted() {
    assert_eq!(Route::parse(&Method::POST, "/exec/ns/pod/c"), Ok(Route::Exec(target("c"))));
    assert_eq!(Route::parse(&Method::POST, "/pods"), Err(NoRoute::MethodNotAllowed));
    assert_eq!(Route::parse(&Method::DELETE, "/exec/ns/pod/c"), Err(NoRoute::MethodNotAllowed));
}
