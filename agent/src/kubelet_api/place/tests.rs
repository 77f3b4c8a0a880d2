use futures::future::join_all;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);
const LOOPBACK: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// A port that answers no connection: its queue has room for one, which is there. The port is so while both are kept.
pub async fn silent_port() -> (TcpListener, TcpStream, u16) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(LOOPBACK).expect("a port");
    let listener = socket.listen(0).expect("listen");
    let address = listener.local_addr().expect("an address");
    let first = TcpStream::connect(address).await.expect("the one connection");
    (listener, first, address.port())
}

#[test]
fn connections_that_hang_hold_up_no_other() {
    // Were each wait on a thread that may block, the one thread of this kind would be taken.
    let runtime =
        Builder::new_current_thread().enable_all().max_blocking_threads(1).build().expect("a runtime");
    runtime.block_on(async {
        let (_full, _first, silent) = silent_port().await;
        let listener = TcpListener::bind(LOOPBACK).await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let place = Place::node();
        let hanging = join_all((0..4).map(|_| place.connect(silent)));
        tokio::select! {
            biased;
            _ = hanging => panic!("a full queue answered"),
            connected = timeout(LIMIT, place.connect(port)) => {
                connected.expect("in time").expect("a connection");
            }
        }
    });
}
