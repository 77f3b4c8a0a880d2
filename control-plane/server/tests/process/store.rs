//! A backup is taken while writers write, checked, and put in the place of a store that is lost.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::AsyncReadExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams, WatchParams};
use kube::core::WatchEvent;
use kube::{Api, Client};
use tokio::sync::Notify;

use crate::server::{SERVER, Server, client, map};

const WRITERS: usize = 4;
/// Objects that exist before the backup is asked for.
const BEFORE: usize = 100;

/// What `orlop-server store check` answers: whether it succeeded, and what it says.
fn check(file: &Path) -> (bool, String) {
    let output = Command::new(SERVER).args(["store", "check"]).arg(file).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

async fn backup(client: &Client) -> Vec<u8> {
    let request = http::Request::get("/orlop/v1/store/backup").body(Vec::new()).unwrap();
    let mut body = Vec::new();
    client.request_stream(request).await.unwrap().read_to_end(&mut body).await.unwrap();
    body
}

async fn names(maps: &Api<ConfigMap>) -> (Vec<String>, String) {
    let list = maps.list(&ListParams::default()).await.unwrap();
    let names = list.items.into_iter().map(|map| map.metadata.name.unwrap());
    (names.filter(|name| name.starts_with('w')).collect(), list.metadata.resource_version.unwrap())
}

#[tokio::test]
async fn a_cluster_goes_back_to_a_backup() {
    let directory = tempfile::tempdir().unwrap();
    let (store, copy) = (directory.path().join("store.redb"), directory.path().join("copy"));
    let server = Server::start(directory.path());
    let client_before = client(directory.path()).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client_before.clone());
    let (written, enough, stop) = (AtomicUsize::new(0), Notify::new(), AtomicBool::new(false));
    let write = async |writer: usize| {
        for number in 0.. {
            maps.create(&PostParams::default(), &map(&format!("w{writer}-{number}"))).await.unwrap();
            if written.fetch_add(1, Ordering::Relaxed) == BEFORE {
                enough.notify_one();
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    let save = async || {
        enough.notified().await;
        let (known, _) = names(&maps).await;
        let body = backup(&client_before).await;
        stop.store(true, Ordering::Relaxed);
        (known, body)
    };
    let ((known, body), _) =
        futures::future::join(save(), futures::future::join_all((0..WRITERS).map(write))).await;
    maps.create(&PostParams::default(), &map("w-late")).await.unwrap();
    std::fs::write(&copy, body).unwrap();
    let (sound, said) = check(&copy);
    assert!(sound && said.contains(": sound\n") && said.ends_with("end       closed\n"), "{said}");
    let (sound, said) = check(&store);
    assert!(!sound && said.contains("in use by a running server"), "{said}");
    let (all, last) = names(&maps).await;
    server.kill();
    let (sound, said) = check(&store);
    assert!(sound && said.contains("not closed; the next start repairs that"), "{said}");

    std::fs::rename(&copy, &store).unwrap();
    let _server = Server::start(directory.path());
    let maps: Api<ConfigMap> = Api::default_namespaced(client(directory.path()).await);
    let (restored, now) = names(&maps).await;
    assert!(known.iter().all(|name| restored.contains(name)), "what there was before the backup is in it");
    assert!(
        restored.len() >= known.len() && restored.len() < all.len(),
        "{} of {}",
        restored.len(),
        all.len()
    );
    let (last, now): (u64, u64) = (last.parse().unwrap(), now.parse().unwrap());
    assert!(now > last, "{now} is behind {last}");
    // Whoever saw what is gone now must list again.
    let mut watch = Box::pin(maps.watch(&WatchParams::default(), &last.to_string()).await.unwrap());
    let first = futures::StreamExt::next(&mut watch).await.unwrap().unwrap();
    assert!(matches!(&first, WatchEvent::Error(status) if status.code == 410), "{first:?}");
    maps.create(&PostParams::default(), &map("w-after")).await.unwrap();
}

#[test]
fn a_server_that_is_stopped_closes_its_store() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path());
    let pid = server.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(server.0.wait().unwrap().success(), "the server stops without an error");
    let (sound, said) = check(&directory.path().join("store.redb"));
    assert!(sound && said.ends_with("end       closed\n"), "{said}");
}

#[test]
fn what_is_not_a_sound_store_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f");
    let (sound, said) = check(&file);
    assert!(!sound && said.contains("No such file or directory"), "{said}");
    std::fs::write(&file, [1; 5000]).unwrap();
    let (sound, said) = check(&file);
    assert!(!sound && said.contains("not a store"), "{said}");
    let data = directory.path().join("data");
    Server::start(&data).kill();
    let store = data.join("store.redb");
    let (sound, said) = check(&store);
    assert!(sound, "{said}");
    let mut bytes = std::fs::read(&store).unwrap();
    let words = bytes.windows(11).enumerate().filter(|(_, bytes)| *bytes == b"namespaces/");
    let places: Vec<usize> = words.map(|(place, _)| place).collect();
    places.iter().for_each(|place| bytes[*place] ^= 1);
    std::fs::write(&store, bytes).unwrap();
    let (sound, said) = check(&store);
    assert!(!sound && said.contains("damaged: "), "{said}");
}
