//! A listener that lets in whom its [`Trust`] knows, and logs whom it does not: who and why.
//!
//! Invariant: what it yields has a verified peer; nothing that a peer does, or fails to do, ends it or holds up others. It serves nothing itself: feed it
//! to `tonic`'s `serve_with_incoming`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::Acceptor;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, server};
use tokio_stream::Stream;

use super::ALPN_SERVE;
use super::identity::{CertRole, Identity, Role};
use super::io::{Io, UntilDropped};
use super::reverse::ReverseConn;
use super::tls;
use super::trust::{Denied, Peer, Trust};
use crate::error::{Refusal, Result};
use crate::ids::SiteId;
use crate::limits;

/// Verified connections that wait to be served.
const READY_MAX: usize = 64;
/// Pause after a failed accept: most likely the process is out of file descriptors.
const ACCEPT_PAUSE_MS: u64 = 100;

/// Bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// TLS handshakes under way at once; for one more, the oldest is given up.
    pub handshakes_max: usize,
    /// A peer that needs longer for its handshake is dropped.
    pub handshake_timeout: Duration,
    /// Connections at once.
    pub connections_max: usize,
    /// Of these, connections of one peer.
    pub per_peer_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshakes_max: limits::HANDSHAKES_MAX,
            handshake_timeout: Duration::from_millis(limits::CONNECT_TIMEOUT_MS),
            connections_max: limits::CONNECTIONS_MAX,
            per_peer_max: limits::CONNECTIONS_PER_PEER_MAX,
        }
    }
}

/// tonic's server with keepalives and bounds. Messages are bounded by the generated services: 4 MiB, as `MESSAGE_BYTES_MAX`, is their default. One
/// service: `serve_with_incoming(service, incoming)`; several: with tonic's feature `router`, `add_service(..)`.
pub fn grpc_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_millis(limits::KEEPALIVE_INTERVAL_MS)))
        .http2_keepalive_timeout(Some(Duration::from_millis(limits::KEEPALIVE_TIMEOUT_MS)))
        .max_concurrent_streams(limits::CALLS_PER_CONNECTION_MAX)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
}

/// Accept connections for as long as the stream lives. Those of children that dial us and serve us go to `children`; without it they are refused.
/// Refused itself unless the identity is a site's.
pub fn incoming(
    listener: TcpListener,
    identity: Arc<Identity>,
    trust: Arc<Trust>,
    limits: Limits,
    children: Option<mpsc::Sender<ReverseConn>>,
) -> Result<Incoming> {
    if identity.role() != CertRole::Site {
        let remedy = "make a site's identity with `grid init`";
        return Err(Refusal::invalid(format!("{} cannot serve: its certificate is not a site's", identity.cert())).remedy(remedy));
    }
    let (ready, connections) = mpsc::channel(READY_MAX);
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let door = Arc::new(Door { identity, trust, limits, children, ready, places, peers: Arc::default() });
    tokio::spawn(accept(listener, door));
    Ok(Incoming { connections })
}

/// Verified connections; see [`incoming`].
pub struct Incoming {
    connections: mpsc::Receiver<Io>,
}

impl Stream for Incoming {
    type Item = io::Result<Io>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Io>>> {
        self.connections.poll_recv(cx).map(|io| io.map(Ok))
    }
}

struct Door {
    identity: Arc<Identity>,
    trust: Arc<Trust>,
    limits: Limits,
    children: Option<mpsc::Sender<ReverseConn>>,
    ready: mpsc::Sender<Io>,
    places: Arc<Semaphore>,
    peers: Peers,
}

/// Connections of each peer that has any.
type Peers = Arc<Mutex<HashMap<SiteId, usize>>>;

/// A connection's place: among all, and among its peer's.
pub(super) struct Place {
    _among_all: OwnedSemaphorePermit,
    peers: Peers,
    peer: SiteId,
}

impl Place {
    /// None: its peer has so many already.
    fn take(among_all: OwnedSemaphorePermit, peers: &Peers, peer: SiteId, max: usize) -> Option<Place> {
        let mut counts = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(peer).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Place { _among_all: among_all, peers: peers.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

async fn accept(listener: TcpListener, door: Arc<Door>) {
    // Who means it is done in milliseconds: where there are too many, the one that has taken longest is in nobody's way any more.
    let mut under_way: VecDeque<(AbortHandle, Arc<AtomicBool>, SocketAddr)> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = door.ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, addr)) => {
                if under_way.len() >= door.limits.handshakes_max {
                    under_way.retain(|(task, over, _)| !task.is_finished() && !over.load(Ordering::Relaxed));
                }
                if under_way.len() >= door.limits.handshakes_max
                    && let Some((oldest, _, addr)) = under_way.pop_front()
                {
                    let why = format!("its TLS handshake was the oldest of {}", under_way.len() + 1);
                    tracing::warn!(peer = %addr, who = "unknown", %why, "refused a connection");
                    oldest.abort();
                }
                let (door, over) = (door.clone(), Arc::new(AtomicBool::new(false)));
                let told = over.clone();
                let task = tokio::spawn(async move { door.admit(tcp, addr, &told).await });
                under_way.push_back((task.abort_handle(), over, addr));
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
}

impl Door {
    async fn admit(&self, tcp: TcpStream, addr: SocketAddr, over: &AtomicBool) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!(peer = %addr, who = "unknown", why = %format!("{} connections are open", self.limits.connections_max), "refused a connection");
            return;
        };
        let shaken = self.handshake(tcp, addr).await;
        over.store(true, Ordering::Relaxed);
        let (tls, peer) = match shaken {
            Ok(done) => done,
            Err(Refused { who, why, tcp }) => {
                tracing::warn!(peer = %addr, %who, %why, "refused a connection");
                if let Some(tcp) = tcp {
                    linger(tcp).await;
                }
                return;
            }
        };
        let Some(place) = Place::take(place, &self.peers, peer.id, self.limits.per_peer_max) else {
            let why = format!("{} connections of this caller are open, one may have no more", self.limits.per_peer_max);
            tracing::warn!(peer = %addr, who = %peer, %why, "refused a connection");
            return;
        };
        let serves = tls.get_ref().1.alpn_protocol() == Some(ALPN_SERVE);
        let io = Io::new(tls.into(), peer, UntilDropped::Place(place));
        match &self.children {
            Some(children) if serves => {
                let peer = io.peer().clone();
                let who = peer.to_string();
                // A parent that is slow to take its children does not hold up the listener; a child dials again.
                if children.send_timeout(ReverseConn { peer, io }, self.limits.handshake_timeout).await.is_err() {
                    tracing::warn!(peer = %addr, %who, why = "it dialled to serve us, and nothing here took it", "refused a connection");
                }
            }
            _ => drop(self.ready.send(io).await),
        }
    }

    async fn handshake(&self, tcp: TcpStream, addr: SocketAddr) -> Result<(server::TlsStream<TcpStream>, Peer), Refused> {
        let seen = Arc::new(Recorder { trust: self.trust.clone(), need: OnceLock::new(), seen: OnceLock::new() });
        let result = timeout(self.limits.handshake_timeout, async {
            tcp.set_nodelay(true)?;
            let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
            let serves = start.client_hello().alpn().is_some_and(|mut offered| offered.any(|p| p == ALPN_SERVE));
            if serves {
                let _ = seen.need.set(Role::Child);
            }
            let config = tls::server_config(&self.identity, seen.clone(), self.children.is_some()).map_err(io::Error::other)?;
            Ok::<_, io::Error>(start.into_stream(Arc::new(config)).into_fallible().await)
        });
        let (error, tcp) = match result.await {
            Ok(Ok(Ok(tls))) => match seen.seen.get() {
                Some(Ok(peer)) => return Ok((tls, Peer { addr: Some(addr), ..peer.clone() })),
                _ => (io::Error::other("its certificate was not asked for"), None),
            },
            Ok(Ok(Err((error, tcp)))) => (error, Some(tcp)),
            Ok(Err(error)) => (error, None),
            Err(_) => (io::Error::other(format!("no TLS handshake within {} ms", self.limits.handshake_timeout.as_millis())), None),
        };
        let (who, why) = match seen.seen.get() {
            Some(Err(denied)) => (denied.who.clone(), denied.why.clone()),
            Some(Ok(peer)) => (peer.to_string(), explain(&error)),
            None => ("unknown".into(), explain(&error)),
        };
        Err(Refused { who, why, tcp })
    }
}

struct Refused {
    who: String,
    why: String,
    tcp: Option<TcpStream>,
}

/// Closing with unread bytes would reset the connection, and the alert that says why could be lost with it.
async fn linger(mut tcp: TcpStream) {
    let drain = async {
        tcp.shutdown().await?;
        let mut bytes = [0; 1024];
        while tcp.read(&mut bytes).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(Duration::from_millis(limits::REFUSED_LINGER_MS), drain).await;
}

/// A failed handshake, in words.
fn explain(e: &io::Error) -> String {
    match tls::cause(e) {
        Some(rustls::Error::NoCertificatesPresented) => "it presented no certificate".into(),
        Some(rustls::Error::AlertReceived(a)) => format!("it does not accept us: {a:?}"),
        Some(rustls::Error::PeerIncompatible(p)) => format!("it does not speak TLS 1.3 as we do: {p:?}"),
        Some(rustls::Error::InvalidMessage(m)) => format!("it does not speak TLS: {m:?}"),
        Some(rustls::Error::NoApplicationProtocol) => "it asks for a protocol that is not served here".into(),
        Some(e) => e.to_string(),
        None if e.kind() == io::ErrorKind::UnexpectedEof => "it closed the connection before the TLS handshake was done".into(),
        None => e.to_string(),
    }
}

/// Asks the trust, and keeps the answer: rustls tells the acceptor only that a handshake failed.
#[derive(Debug)]
struct Recorder {
    trust: Arc<Trust>,
    need: OnceLock<Role>,
    seen: OnceLock<Result<Peer, Denied>>,
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    tls::provider().signature_verification_algorithms
}

impl ClientCertVerifier for Recorder {
    /// No hints: whom we trust is nobody's business, and clients have one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        match self.seen.get_or_init(|| self.trust.judge(&chain, now, self.need.get().copied())) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(denied) => Err(rustls::Error::InvalidCertificate(denied.error.clone())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
