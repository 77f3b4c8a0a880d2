use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Barrier, mpsc};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

use super::*;

#[tokio::test]
async fn objects_are_kept_without_the_fields_that_nobody_reads() {
    let mut pod = Pod::default();
    pod.metadata.name = Some("web".to_owned());
    pod.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
    let all = [Event::InitApply(pod.clone()), Event::Apply(pod)].map(Ok);
    let kept: Vec<_> = watched(futures::stream::iter(all)).collect().await;
    assert_eq!(kept.len(), 2);
    for event in kept {
        let Ok(Event::InitApply(pod) | Event::Apply(pod)) = event else { panic!("{event:?}") };
        assert_eq!((pod.metadata.name.as_deref(), pod.metadata.managed_fields), (Some("web"), None));
    }
}

#[test]
fn pauses_double_up_to_the_longest_and_start_again() {
    let mut backoff = Backoff::default();
    let pauses: Vec<u128> = (0..7).map(|_| backoff.next_pause().as_millis()).collect();
    assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 7000]);
    backoff.reset();
    assert_eq!(backoff.next_pause().as_millis(), 200);
}

/// An API server that gives each connection to a thread of its own.
fn served(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> kube::Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(connection.unwrap()));
        }
    });
    with_config(kube::Config::new(url.parse().unwrap())).unwrap()
}

/// Waits for a request without a body, which fits into one packet.
fn is_asked(mut connection: &TcpStream) -> bool {
    connection.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0)
}

fn answer(mut connection: &TcpStream, status: &str, body: &str) {
    let length = body.len();
    write!(connection, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
}

#[tokio::test]
async fn a_refusal_is_told_at_once_and_left_to_the_caller() {
    let (asked, requests) = mpsc::channel();
    let client = served(move |connection| {
        while is_asked(&connection) {
            asked.send(()).unwrap();
            answer(&connection, "503 Service Unavailable", "{}");
        }
    });
    assert!(kube::Api::<Pod>::default_namespaced(client).get("web").await.is_err());
    assert_eq!(requests.try_iter().count(), 1);
}

#[tokio::test]
async fn a_burst_of_requests_leaves_few_connections() {
    const REQUESTS: usize = 3 * IDLE_CONNECTIONS;
    let (closed, closes) = mpsc::channel();
    // All of them wait for each other, so each has a connection of its own.
    let together = Arc::new(Barrier::new(REQUESTS));
    let client = served(move |connection| {
        if is_asked(&connection) {
            together.wait();
            answer(&connection, "200 OK", r#"{"metadata": {"name": "web"}}"#);
        }
        while is_asked(&connection) {}
        closed.send(()).unwrap();
    });
    let pods = kube::Api::<Pod>::default_namespaced(client);
    let all = (0..REQUESTS).map(|_| pods.get("web"));
    for pod in futures::future::join_all(all).await {
        assert_eq!(pod.unwrap().metadata.name.as_deref(), Some("web"));
    }
    let count = move || (IDLE_CONNECTIONS..REQUESTS).all(|_| closes.recv_timeout(CONNECT_TIMEOUT).is_ok());
    assert!(tokio::task::spawn_blocking(count).await.unwrap());
}
