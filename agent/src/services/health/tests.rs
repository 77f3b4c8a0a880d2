use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::services::progress::OVERDUE;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn key(name: &str) -> Key {
    Key { namespace: "ns".into(), name: name.into() }
}

fn check(port: u16, local_endpoints: usize) -> Option<HealthCheck> {
    Some(HealthCheck { port, local_endpoints })
}

#[tokio::test]
async fn a_port_answers_in_both_families() {
    let [port] = ports().await;
    let mut servers = Servers::everywhere(Progress::default());
    servers.set(&key("a"), check(port, 1)).unwrap();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        TcpStream::connect((address, port)).await.unwrap_or_else(|error| panic!("{address}: {error}"));
    }
}

/// Ports that no other test asks for (each is a process), and that the kernel gives nobody.
async fn ports<const COUNT: usize>() -> [u16; COUNT] {
    let first = 20_000 + (std::process::id() % 1000) as u16 * 10;
    let mut free = Vec::new();
    for port in first..first + 10 {
        if TcpListener::bind((HERE, port)).await.is_ok() {
            free.push(port);
        }
    }
    free[..COUNT].try_into().unwrap()
}

/// The status line, the weight and the body.
async fn ask(port: u16) -> io::Result<(String, String, serde_json::Value)> {
    let mut stream = TcpStream::connect((HERE, port)).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let weight = head.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
    let (status, weight) = (head.lines().next().unwrap(), weight.unwrap());
    Ok((status.to_owned(), weight.to_owned(), serde_json::from_str(body).unwrap()))
}

#[tokio::test]
async fn a_node_without_a_ready_endpoint_says_so() {
    let (mut servers, [port]) = (Servers::new(HERE, Progress::default()), ports().await);
    servers.set(&key("web"), check(port, 2)).unwrap();
    let (status, weight, body) = ask(port).await.unwrap();
    assert_eq!((status.as_str(), weight.as_str()), ("HTTP/1.1 200 OK", "2"));
    let service = json!({"namespace": "ns", "name": "web"});
    assert_eq!(body, json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true}));
    servers.set(&key("web"), check(port, 0)).unwrap();
    let (status, _, body) = ask(port).await.unwrap();
    assert_eq!((status.as_str(), &body["localEndpoints"]), ("HTTP/1.1 503 Service Unavailable", &json!(0)));
}

/// A load balancer is not to send to a node whose dataplane has fallen behind, whatever its endpoints.
#[tokio::test]
async fn a_dataplane_that_does_not_follow_takes_no_traffic() {
    let progress = Progress::default();
    let endpoints = Arc::new(AtomicUsize::new(2));
    let page = Page { service: key("web"), endpoints, progress: progress.clone() };
    let told = async |page: &Page, later: Duration| {
        let answer = page.answer(Instant::now() + later);
        let (status, weight) = (answer.status(), answer.headers()[ENDPOINT_WEIGHT].clone());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((weight, &body["localEndpoints"]), (HeaderValue::from(2), &json!(2)));
        (status, body["serviceProxyHealthy"].as_bool().unwrap())
    };
    progress.written(Duration::ZERO, true);
    progress.endpoints_changed();
    assert_eq!(told(&page, Duration::ZERO).await, (StatusCode::OK, true));
    assert_eq!(told(&page, OVERDUE).await, (StatusCode::SERVICE_UNAVAILABLE, false));
    progress.written(Duration::ZERO, true);
    assert_eq!(told(&page, OVERDUE).await, (StatusCode::OK, true));
}

#[tokio::test]
async fn a_port_is_open_as_long_as_its_service_has_it() {
    let (mut servers, [first, second]) = (Servers::new(HERE, Progress::default()), ports().await);
    servers.set(&key("web"), check(first, 1)).unwrap();
    servers.set(&key("web"), check(second, 1)).unwrap();
    assert!(ask(second).await.is_ok());
    assert_eq!(ask(first).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    servers.set(&key("web"), None).unwrap();
    assert_eq!(ask(second).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn services_may_swap_their_ports() {
    let (mut servers, [first, second]) = (Servers::new(HERE, Progress::default()), ports().await);
    servers.set(&key("a"), check(first, 1)).unwrap();
    servers.set(&key("b"), check(second, 2)).unwrap();
    let swapped = [(key("a"), check(second, 1)), (key("b"), check(first, 2))];
    swapped.iter().for_each(|(service, check)| servers.make_way(service, *check));
    swapped.iter().for_each(|(service, check)| servers.set(service, *check).unwrap());
    assert_eq!([ask(first).await.unwrap().1, ask(second).await.unwrap().1], ["2", "1"]);
}

#[tokio::test]
async fn a_port_that_somebody_else_has_is_an_error_and_may_be_tried_again() {
    let [port] = ports().await;
    let taken = TcpListener::bind((HERE, port)).await.unwrap();
    let mut servers = Servers::new(HERE, Progress::default());
    let error = servers.set(&key("web"), check(port, 1)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    drop(taken);
    servers.set(&key("web"), check(port, 1)).unwrap();
    assert!(ask(port).await.is_ok());
}
