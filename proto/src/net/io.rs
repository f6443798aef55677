//! One verified TLS connection, as tonic serves it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use super::trust::Peer;

/// A connection to a verified peer. Handlers find the [`Peer`] in the extensions of their requests.
pub struct Io {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    _until_dropped: UntilDropped,
}

/// When a connection was last read from, keepalives included. Clones are of the same connection. It is no part of who the peer is: all are equal.
#[derive(Clone, Debug)]
pub struct Heard {
    began: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Default for Heard {
    fn default() -> Self {
        Heard { began: Instant::now(), last_ms: Arc::default() }
    }
}

impl PartialEq for Heard {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Heard {}

impl Heard {
    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    pub(super) fn now(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// For how long nothing has come, milliseconds.
    pub fn silent_ms(&self) -> u64 {
        self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed))
    }
}

/// What a connection holds for as long as it lives.
pub(super) enum UntilDropped {
    /// Its place among the connections of a listener.
    Place(#[allow(dead_code)] super::server::Place),
    /// Somebody waits for its end, to dial again.
    Watched(#[allow(dead_code)] oneshot::Sender<()>),
    /// Nothing.
    Nothing,
}

impl Io {
    pub(super) fn new(tls: TlsStream<TcpStream>, peer: Peer, until_dropped: UntilDropped) -> Self {
        // Of this connection, whoever has seen the peer's certificate before.
        let peer = Peer { heard: Heard::default(), ..peer };
        Io { tls, peer, _until_dropped: until_dropped }
    }

    pub(super) fn watched(self) -> (Self, oneshot::Receiver<()>) {
        let (held, ended) = oneshot::channel();
        (Io { _until_dropped: UntilDropped::Watched(held), ..self }, ended)
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Io {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.tls).poll_read(cx, buf));
        if buf.filled().len() > before {
            self.peer.heard.now();
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}
