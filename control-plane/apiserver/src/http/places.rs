//! The places of open connections: how many there may be, and what the server waits for at its end.
//!
//! ```text
//! connection --(upgrade)--> stream to a node
//!     place  ------------->  the same place
//! ```
//! A place is held by a connection's task and by whatever an upgrade made of the connection. It comes back, and is no
//! longer waited for, when the last of them has dropped it. Places are given in the order they were asked for; nobody
//! is refused one, the kernel's queue holds those who wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A peer that vanished without a word is noticed after this silence and so many unanswered questions.
const TCP_SILENCE: Duration = Duration::from_secs(60);
const TCP_INTERVAL: Duration = Duration::from_secs(15);
const TCP_QUESTIONS: u32 = 4;

/// A held place.
#[derive(Clone)]
pub struct Place {
    _held: Arc<(OwnedSemaphorePermit, TaskTrackerToken)>,
    cut: CancellationToken,
}

impl Place {
    /// Waits until whatever holds the place must end.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

/// All places of a server.
pub struct Places {
    free: Arc<Semaphore>,
    open: TaskTracker,
    cut: CancellationToken,
}

impl Places {
    pub fn new(count: usize) -> Self {
        Places {
            free: Arc::new(Semaphore::new(count)),
            open: TaskTracker::new(),
            cut: CancellationToken::new(),
        }
    }

    /// Waits for a place and then for a connection. May be dropped: the place goes back, and accept loses no connection.
    pub async fn accept(&self, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr, Place)> {
        let permit = self.free.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = listener.accept().await?;
        let held = Arc::new((permit, self.open.token()));
        Ok((stream, peer, Place { _held: held, cut: self.cut.clone() }))
    }

    /// Waits until no place is held, for `grace` and, once all that is left was told to end, for `grace` again.
    pub async fn drain(&self, grace: Duration) {
        self.open.close();
        if tokio::time::timeout(grace, self.open.wait()).await.is_ok() {
            return;
        }
        tracing::debug!(open = self.open.len(), "connections cut");
        self.cut.cancel();
        if tokio::time::timeout(grace, self.open.wait()).await.is_err() {
            tracing::warn!(open = self.open.len(), "connections left open");
        }
    }
}

/// A connection that is about to change protocols, with its place.
pub struct Upgrade {
    pub client: OnUpgrade,
    pub place: Option<Place>,
}

impl Upgrade {
    pub fn of(request: &mut http::Request<Incoming>) -> Self {
        let place = request.extensions_mut().remove();
        Upgrade { client: hyper::upgrade::on(request), place }
    }
}

/// Has the kernel ask a silent peer whether it is still there: a stream that says nothing for hours holds its place.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_SILENCE)?;
    sockopt::set_tcp_keepintvl(stream, TCP_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, TCP_QUESTIONS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Who waits for whom.

    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_place_is_held_until_the_last_of_its_holders_is_gone() {
        let places = Places::new(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _clients =
            [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
        let (stream, _, place) = places.accept(&listener).await.unwrap();
        keep_alive(&stream).unwrap();
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), TCP_SILENCE);
        let of_the_stream = place.clone();
        let mut second = pin!(places.accept(&listener));
        assert!(second.as_mut().now_or_never().is_none(), "full");
        drop(place);
        assert!(second.as_mut().now_or_never().is_none(), "the upgraded stream holds it");
        drop(of_the_stream);
        second.await.unwrap();
    }

    #[tokio::test]
    async fn draining_cuts_what_does_not_end() {
        let places = Places::new(2);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_, _, place) = places.accept(&listener).await.unwrap();
        let stream = async move { place.cut().await };
        let grace = Duration::from_millis(20);
        let before = std::time::Instant::now();
        tokio::join!(stream, places.drain(grace));
        assert!(before.elapsed() >= grace, "not cut before");
    }
}
