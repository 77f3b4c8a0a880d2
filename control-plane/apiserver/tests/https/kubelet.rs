//! Logs and exec through a kubelet that the test plays.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use apiserver::http::serve;
use apiserver::pki::Identity;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::client::{Server, request, server};

const PODS: &str = "/api/v1/namespaces/default/pods";

const REFUSAL: &str = "no is the answer";

/// The code with which the container `d` refuses: the last number of the query.
fn refusal(target: &str) -> Option<u16> {
    target.contains("/p/d?").then(|| target.rsplit('=').next()?.parse().ok())?
}

/// Answers logs with the path it was asked for; echoes in capitals on an upgraded connection.
async fn answer(request: Request<Incoming>, seen: Arc<Mutex<Vec<String>>>) -> Response<Full<Bytes>> {
    let target = request.uri().to_string();
    seen.lock().unwrap().push(format!("{} {target}", request.method()));
    if let Some(code) = refusal(&target) {
        return Response::builder().status(code).body(Full::new(format!("{REFUSAL}\n").into())).unwrap();
    }
    if target.starts_with("/containerLogs/") {
        return Response::new(Full::new(target.into()));
    }
    let Some(protocol) = request.headers().get("upgrade").cloned() else {
        return Response::builder().status(400).body(Full::new("no upgrade".into())).unwrap();
    };
    tokio::spawn(async move {
        let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..count].to_ascii_uppercase()).await.unwrap();
        }
    });
    let builder = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", protocol);
    builder.header("sec-websocket-protocol", "v5.channel.k8s.io").body(Full::default()).unwrap()
}

/// A node whose kubelet listens, and a pod on it.
async fn node_with_pod(server: &Server) -> Arc<Mutex<Vec<String>>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let credentials = server.running.pki.kubelet_server("n1", "127.0.0.1".parse().unwrap()).unwrap();
    let mut tls = serve::server_config(&credentials, server.running.pki.ca_certificate()).unwrap();
    tls.alpn_protocols.clear();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, log) = (acceptor.clone(), log.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                assert!(stream.get_ref().1.peer_certificates().is_some(), "the server shows its certificate");
                let service = service_fn(move |request| {
                    let log = log.clone();
                    async move { Ok::<_, std::convert::Infallible>(answer(request, log).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.with_upgrades().await;
            });
        }
    });
    server.post("/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await;
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    server.patch("/api/v1/nodes/n1/status", "strategic-merge", &status).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [
        {"name": "c", "image": "i:1"}, {"name": "d", "image": "i:1"}]}});
    assert_eq!(server.post(PODS, &pod).await.code, 201);
    seen
}

#[tokio::test]
async fn a_server_that_stops_cuts_its_streams() {
    let server = server().await;
    node_with_pod(&server).await;
    let mut exec = request("POST", &format!("{PODS}/p/attach?container=c&stdin=true"), "", Bytes::new());
    exec.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    exec.headers_mut().insert("upgrade", "SPDY/3.1".parse().unwrap());
    let mut response = server.open(Some(Identity::Admin), exec).await;
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let mut echoed = [0; 2];
    stream.write_all(b"hi").await.unwrap();
    stream.read_exact(&mut echoed).await.unwrap();
    server.stop.cancel();
    server.running.stopped().await;
    let end = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut echoed)).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let server = server().await;
    node_with_pod(&server).await;
    let logs = server.get(&format!("{PODS}/p/log?container=c&tailLines=3")).await;
    assert_eq!((logs.code, logs.body.as_str()), (200, Some("/containerLogs/default/p/c?tailLines=3")));
    let unclear = server.get(&format!("{PODS}/p/log")).await;
    assert_eq!(unclear.message(), "a container name must be specified for pod p, choose one of: [c d]");
    let denied = request("GET", &format!("{PODS}/p/log?container=c"), "", Bytes::new());
    assert_eq!(server.send(Some(Identity::Node("n1")), denied).await.code, 403);
}

#[tokio::test]
async fn exec_passes_an_upgraded_connection_through() {
    let server = server().await;
    let seen = node_with_pod(&server).await;
    for (method, protocol) in [("GET", "websocket"), ("POST", "SPDY/3.1")] {
        let path = format!("{PODS}/p/exec?container=c&command=echo&command=a%26b&stdin=true&stdout=true");
        let mut exec = request(method, &path, "", Bytes::new());
        exec.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        exec.headers_mut().insert("upgrade", protocol.parse().unwrap());
        let mut response = server.open(Some(Identity::Admin), exec).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["upgrade"]),
            (101, &protocol.parse().unwrap())
        );
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        stream.write_all(b"hello").await.unwrap();
        let mut echoed = [0; 5];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"HELLO");
        let asked = format!("{method} /exec/default/p/c?input=1&output=1&command=echo&command=a%26b");
        assert_eq!(seen.lock().unwrap().last(), Some(&asked));
    }
}

#[tokio::test]
async fn what_a_node_refuses_is_told_with_a_status() {
    let server = server().await;
    node_with_pod(&server).await;
    let cases = [
        ("log?container=d&tailLines=400", 400, "BadRequest", REFUSAL.to_owned()),
        (
            "log?container=d&tailLines=404",
            404,
            "NotFound",
            "the server could not find the requested resource ( pods/log p)".to_owned(),
        ),
        (
            "log?container=d&tailLines=500",
            500,
            "InternalError",
            format!(
                "an error on the server ({REFUSAL:?}) has prevented the request from succeeding ( pods/log p)"
            ),
        ),
        (
            "exec?container=d&stdout=true&command=404",
            404,
            "NotFound",
            format!("unable to upgrade connection: {REFUSAL}"),
        ),
        (
            "attach?container=c&stdout=true",
            400,
            "BadRequest",
            "unable to upgrade connection: no upgrade".to_owned(),
        ),
    ];
    for (path, code, reason, message) in cases {
        let answer = server.get(&format!("{PODS}/p/{path}")).await;
        assert_eq!((answer.reason(), answer.message()), ((code, reason), message.as_str()), "{path}");
        assert_eq!(answer.body["kind"], "Status", "{path}");
    }
}

#[tokio::test]
async fn a_node_that_does_not_listen_is_named() {
    let server = server().await;
    node_with_pod(&server).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let port = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": closed.port()}}}});
    server.patch("/api/v1/nodes/n1/status", "strategic-merge", &port).await;
    let dial = format!("dial tcp {closed}: connect: connection refused");
    let logs = server.get(&format!("{PODS}/p/log?container=c")).await;
    assert_eq!(logs.reason(), (500, ""));
    assert_eq!(logs.message(), format!("Get \"https://{closed}/containerLogs/default/p/c\": {dial}"));
    let exec = server.get(&format!("{PODS}/p/exec?container=c&command=a&stdout=true")).await;
    assert_eq!(exec.reason(), (500, "InternalError"));
    assert_eq!(exec.message(), format!("Internal error occurred: error dialing backend: {dial}"));
}
