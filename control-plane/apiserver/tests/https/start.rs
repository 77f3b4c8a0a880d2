//! Starts that fail.

use apiserver::bootstrap::{self, StartError};
use tokio_util::sync::CancellationToken;

use super::client::options_in;

#[tokio::test]
async fn a_port_in_use_changes_nothing_on_disk() {
    let (directory, taken) =
        (tempfile::tempdir().unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let mut options = options_in(directory.path());
    options.bind = taken.local_addr().unwrap();
    let result = bootstrap::start(&options, CancellationToken::new()).await;
    assert!(matches!(result, Err(StartError::Listen { .. })));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
