//! kill -9 of the whole server in the middle of writes, again and again: nothing acknowledged is lost.

use crate::load::Load;

const ROUNDS: usize = 20;

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let load = Load::default();
    for round in 0..ROUNDS {
        load.round(directory.path(), round).await;
    }
    load.end(directory.path(), ROUNDS).await;
}
