//! kill -9 of the whole server in the middle of writes, again and again: nothing acknowledged is lost.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::sync::Notify;

const ROUNDS: usize = 20;
const WRITERS: usize = 4;

/// Starts the server and waits until it says that it listens.
fn start(data_dir: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_orlop-server"))
        .args(["--bind-address", "127.0.0.1", "--secure-port", "0", "--advertise-address", "127.0.0.1"])
        .arg("--data-dir")
        .arg(data_dir)
        .env("RUST_LOG", "error")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on https://127.0.0.1:"), "{line}");
    child
}

async fn client(data_dir: &Path) -> Client {
    let file = Kubeconfig::read_from(data_dir.join("admin.kubeconfig")).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn map(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map.data = Some([("value".to_owned(), name.repeat(20))].into());
    map
}

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    for round in 0..=ROUNDS {
        let mut child = start(directory.path());
        let client = client(directory.path()).await;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let listed = maps.list(&ListParams::default()).await.unwrap();
        let known = acknowledged.lock().unwrap().clone();
        for name in &known {
            let found = listed.items.iter().find(|map| map.metadata.name.as_ref() == Some(name));
            let found = found.unwrap_or_else(|| panic!("round {round}: {name} is lost"));
            assert_eq!(found.data, map(name).data, "round {round}: {name}");
        }
        let namespaces: Api<Namespace> = Api::all(client);
        assert!(namespaces.get("kube-system").await.is_ok());
        if round == ROUNDS {
            child.kill().unwrap();
            child.wait().unwrap();
            return;
        }
        let enough = Arc::new(Notify::new());
        let wanted = known.len() + 3 + (round * 37) % 61;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (maps, acknowledged, enough) = (maps.clone(), acknowledged.clone(), enough.clone());
                tokio::spawn(async move {
                    for number in 0.. {
                        let name = format!("r{round}-w{writer}-{number}");
                        if maps.create(&PostParams::default(), &map(&name)).await.is_err() {
                            return;
                        }
                        let mut list = acknowledged.lock().unwrap();
                        list.push(name);
                        if list.len() >= wanted {
                            enough.notify_one();
                        }
                    }
                })
            })
            .collect();
        enough.notified().await;
        child.kill().unwrap();
        child.wait().unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
    }
}
