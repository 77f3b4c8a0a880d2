use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, mpsc};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use socket2::SockRef;
use tower::ServiceExt;

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

/// Where a server listens that gives each connection to a thread of its own.
fn listening(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(connection.unwrap()));
        }
    });
    address
}

/// A client of such an API server.
fn served(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> kube::Client {
    let url = format!("http://{}", listening(serve));
    with_config(kube::Config::new(url.parse().unwrap())).unwrap()
}

/// Waits for a request without a body, which fits into one packet.
fn request(mut connection: &TcpStream) -> Option<String> {
    let mut bytes = [0; 4096];
    let length = connection.read(&mut bytes).ok().filter(|length| *length > 0)?;
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

fn is_asked(connection: &TcpStream) -> bool {
    request(connection).is_some()
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

#[tokio::test]
async fn a_server_that_never_speaks_tls_is_given_up() {
    let (accepted, connections) = mpsc::channel();
    let address = listening(move |connection| accepted.send(connection).unwrap());
    let mut config = kube::Config::new(format!("https://{address}").parse().unwrap());
    config.connect_timeout = Some(Duration::from_millis(100));
    let pods = kube::Api::<Pod>::default_namespaced(with_config(config).unwrap());
    let answer = tokio::time::timeout(CONNECT_TIMEOUT, pods.get("web")).await.expect("an end of the wait");
    let error = chain(&answer.unwrap_err());
    assert!(error.contains("deadline has elapsed"), "{error}");
    assert!(connections.recv_timeout(CONNECT_TIMEOUT).is_ok());
}

#[tokio::test]
async fn a_server_that_is_gone_without_a_word_is_noticed() {
    let (accepted, _connections) = mpsc::channel();
    let address = listening(move |connection| accepted.send(connection).unwrap());
    let connection = tcp(None).oneshot(format!("http://{address}").parse().unwrap()).await.unwrap();
    let socket = SockRef::from(connection.inner());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(ACKNOWLEDGE_TIMEOUT));
}

/// A kubeconfig for the server at `url`; `cluster` and `user` are further lines of theirs.
fn kubeconfig(url: &str, cluster: &str, user: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "\
apiVersion: v1
kind: Config
current-context: here
contexts:
- {{name: here, context: {{cluster: here, user: me}}}}
clusters:
- name: elsewhere
  cluster: {{server: http://127.0.0.1:1, proxy-url: http://127.0.0.1:2}}
- name: here
  cluster: {{server: '{url}', {cluster}}}
users:
- name: me
  user: {{token: secret, {user}}}
"
    )
    .unwrap();
    file
}

#[tokio::test]
async fn a_kubeconfig_gets_the_limits() {
    let file = kubeconfig("http://127.0.0.1:1", "", "");
    let config = config(file.path()).await.unwrap();
    assert_eq!(config.connect_timeout, Some(CONNECT_TIMEOUT));
    assert!(config.write_timeout.is_some());
}

#[tokio::test]
async fn requests_impersonate_whom_the_kubeconfig_names() {
    let (address, requests) = noting();
    let file = kubeconfig(&format!("http://{address}"), "", "as: alice, as-groups: [staff]");
    let client = client(file.path()).await.unwrap();
    kube::Api::<Pod>::default_namespaced(client).get("web").await.unwrap();
    let request = requests.recv().unwrap().to_lowercase();
    for header in ["impersonate-user: alice", "impersonate-group: staff", "authorization: bearer secret"] {
        assert!(request.contains(header), "{header} is not in {request}");
    }
}

#[tokio::test]
async fn a_kubeconfig_with_a_proxy_is_refused_by_its_name() {
    let file = kubeconfig("http://127.0.0.1:1", "proxy-url: socks5://127.0.0.1:2", "");
    let error = client(file.path()).await.err().unwrap().to_string();
    let path = file.path().display();
    assert_eq!(error, format!(r#"kubeconfig {path}: proxy-url "socks5://127.0.0.1:2" is not supported"#));
}

/// A server that answers everything, and passes on what it is asked.
fn noting() -> (SocketAddr, mpsc::Receiver<String>) {
    let (asked, requests) = mpsc::channel();
    let address = listening(move |connection| {
        while let Some(request) = request(&connection) {
            asked.send(request).unwrap();
            answer(&connection, "200 OK", r#"{"metadata": {"name": "web"}}"#);
        }
    });
    (address, requests)
}

#[tokio::test]
async fn a_pod_shows_its_token() {
    let (address, requests) = noting();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "of-the-pod").unwrap();
    std::fs::write(folder.path().join("ca.crt"), "").unwrap();
    let server = format!("http://{address}").parse().unwrap();
    let access = Access::ServiceAccount { folder: folder.path().to_owned(), server };
    kube::Api::<Pod>::default_namespaced(client_of(&access).await.unwrap()).get("web").await.unwrap();
    let request = requests.recv().unwrap().to_lowercase();
    assert!(request.contains("authorization: bearer of-the-pod"), "{request}");
}

#[tokio::test]
async fn a_server_that_is_named_counts_more_than_the_kubeconfigs() {
    let (address, requests) = noting();
    let file = kubeconfig("http://127.0.0.1:1", "", "");
    let server = Some(format!("http://{address}").parse().unwrap());
    let access = Access::Kubeconfig { path: file.path().to_owned(), server };
    kube::Api::<Pod>::default_namespaced(client_of(&access).await.unwrap()).get("web").await.unwrap();
    assert!(requests.recv().is_ok());
}
