//! A server that is started, written to, and killed in the middle of it; and what it must not have lost.

use std::path::Path;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{ListParams, PostParams};
use tokio::sync::Notify;

use crate::server::{Server, client, map};

const WRITERS: usize = 4;

/// The names of the objects whose creation was acknowledged.
#[derive(Default)]
pub struct Load {
    acknowledged: Arc<Mutex<Vec<String>>>,
}

impl Load {
    /// Starts a server, checks that nothing is lost, writes a while, and kills it. The while differs from round to round, so
    /// that the kill falls anywhere.
    pub async fn round(&self, data_dir: &Path, round: usize) {
        let server = Server::start(data_dir);
        let maps = self.check(data_dir, round).await;
        let enough = Arc::new(Notify::new());
        let wanted = self.acknowledged.lock().unwrap().len() + 3 + (round * 37) % 61;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (maps, acknowledged, enough) = (maps.clone(), self.acknowledged.clone(), enough.clone());
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
        server.kill();
        for writer in writers {
            writer.await.unwrap();
        }
    }

    /// Starts a server and checks that nothing is lost.
    pub async fn end(&self, data_dir: &Path, round: usize) {
        let _server = Server::start(data_dir);
        self.check(data_dir, round).await;
    }

    async fn check(&self, data_dir: &Path, round: usize) -> Api<ConfigMap> {
        let client = client(data_dir).await;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let listed = maps.list(&ListParams::default()).await.unwrap();
        for name in self.acknowledged.lock().unwrap().iter() {
            let found = listed.items.iter().find(|map| map.metadata.name.as_ref() == Some(name));
            let found = found.unwrap_or_else(|| panic!("round {round}: {name} is lost"));
            assert_eq!(found.data, map(name).data, "round {round}: {name}");
        }
        let namespaces: Api<Namespace> = Api::all(client);
        assert!(namespaces.get("kube-system").await.is_ok(), "round {round}");
        maps
    }
}
