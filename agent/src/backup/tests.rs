//! What is saved when the answer is whole, broken off, or a refusal. The API server is a socket with a prepared answer.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::thread::{JoinHandle, spawn};

use super::*;

fn answering(answer: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        assert!(request.starts_with(b"GET /orlop/v1/store/backup HTTP/1.1\r\n"));
        stream.write_all(answer.as_bytes()).unwrap();
    });
    (address, served)
}

async fn save_from(answer: &'static str, to: &Path) -> Result<u64, BackupError> {
    let (address, served) = answering(answer);
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let saved = save(&kube::Client::try_from(config).unwrap(), to).await;
    served.join().unwrap();
    saved
}

#[tokio::test]
async fn a_backup_is_saved_whole_or_not_at_all() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("backup");
    let names = || std::fs::read_dir(directory.path()).unwrap().count();

    let forbidden = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: 71\r\n\r\n\
                     {\"kind\":\"Status\",\"status\":\"Failure\",\"code\":403,\"message\":\"not allowed\"}";
    let error = save_from(forbidden, &to).await.unwrap_err();
    assert!(matches!(&error, BackupError::Refused { reason } if reason.contains("not allowed")), "{error:?}");
    let broken = save_from("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabcde", &to).await;
    assert!(matches!(broken, Err(BackupError::Receive { .. })), "{broken:?}");
    assert_eq!(names(), 0, "nothing is left");
    assert_eq!(save_from("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde", &to).await.unwrap(), 5);
    assert_eq!((std::fs::read_to_string(&to).unwrap().as_str(), names()), ("abcde", 1));

    let nowhere = directory.path().join("none/backup");
    let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let error = save(&client, &nowhere).await.unwrap_err();
    assert!(matches!(error, BackupError::File { operation: "make a temporary file for", .. }), "{error:?}");
}
