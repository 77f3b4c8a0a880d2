//! A server process on a data directory, and a client with the administrator's credentials.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub const SERVER: &str = env!("CARGO_BIN_EXE_orlop-server");

/// A running server; killed without a warning when it goes.
pub struct Server(pub Child);

impl Server {
    /// Starts the server and waits until it says that it listens.
    pub fn start(data_dir: &Path) -> Self {
        let mut child = Command::new(SERVER)
            .args(["--bind-address", "127.0.0.1", "--secure-port", "0", "--advertise-address", "127.0.0.1"])
            .arg("--data-dir")
            .arg(data_dir)
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let server = Server(child);
        assert!(line.starts_with("listening on https://127.0.0.1:"), "{line}");
        server
    }

    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// A client of the server that last started in this data directory.
pub async fn client(data_dir: &Path) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::read_from(data_dir.join("admin.kubeconfig")).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

pub fn map(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map.data = Some([("value".to_owned(), name.repeat(20))].into());
    map
}
