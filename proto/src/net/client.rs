//! Dials a site, and knows that it was let in.
//!
//! With TLS 1.3 a server's refusal arrives after the client's handshake is done; so a connection counts only when the server's first bytes are here. A
//! channel is one connection: when it is lost, calls fail as unavailable and the caller dials again, which verifies anew.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsConnector, client};
use tonic::transport::{Channel, Endpoint};

use super::identity::{CertRole, Identity, PeerCert};
use super::io::{Heard, Io};
use super::{ALPN_CALL, SITE_NAME, tls};
use crate::error::{Refusal, RefusalKind, Result};
use crate::limits;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(limits::CONNECT_TIMEOUT_MS);

/// Connect to the site at `host:port`, which must have a site's certificate of this CA, and the label if one is given.
/// Gives the channel, whose it is, and when it was last read from.
pub async fn connect(endpoint: &str, identity: &Identity, server_ca_pem: &[u8], expect_label: Option<&str>) -> Result<(Channel, PeerCert, Heard)> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let dialled = dial(endpoint, identity, server_ca_pem, expect_label, ALPN_CALL, deadline).await?;
    let (channel, heard) = channel(dialled.tls, deadline).await.map_err(|e| refused(endpoint, identity, &e))?;
    Ok((channel, dialled.cert, heard))
}

/// A channel over a connection that a child has dialled to serve us; and when that was last read from.
pub async fn over(io: Io) -> Result<(Channel, Heard)> {
    let peer = io.peer().clone();
    let lost = |e: io::Error| Refusal::new(RefusalKind::Unavailable, format!("{peer} dialled, but does not serve: {e}"));
    channel(io, Instant::now() + CONNECT_TIMEOUT).await.map_err(lost)
}

pub(super) struct Dialled {
    pub tls: client::TlsStream<TcpStream>,
    pub cert: PeerCert,
    pub chain: Vec<CertificateDer<'static>>,
    pub addr: SocketAddr,
}

pub(super) async fn dial(
    endpoint: &str,
    identity: &Identity,
    server_ca_pem: &[u8],
    expect_label: Option<&str>,
    alpn: &[u8],
    deadline: Instant,
) -> Result<Dialled> {
    if !endpoint.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        return Err(Refusal::invalid(format!("\"{}\" is not an endpoint", endpoint.escape_default())).remedy("write host:port"));
    }
    let config = tls::client_config(identity, server_ca_pem, alpn)?;
    let reached = timeout_at(deadline, TcpStream::connect(endpoint)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let reached = reached.and_then(|tcp| tcp.set_nodelay(true).and_then(|()| tcp.peer_addr()).map(|addr| (tcp, addr)));
    let (tcp, addr) = reached.map_err(|e| {
        Refusal::new(RefusalKind::Unavailable, format!("cannot reach {endpoint}: {}", super::status::clause(&e)))
            .remedy("check the address, and that the site is up")
    })?;
    let name = ServerName::try_from(SITE_NAME).map_err(tls::broken)?;
    let handshake = timeout_at(deadline, TlsConnector::from(Arc::new(config)).connect(name, tcp)).await;
    let tls = handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|e| refused(endpoint, identity, &e))?;
    let chain: Vec<_> = tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let cert = chain.first().map_or_else(|| Err(Refusal::invalid("no certificate")), |c| PeerCert::parse(c)).and_then(|cert| match cert.role {
        CertRole::Site => Ok(cert),
        _ => Err(Refusal::invalid("not a site's certificate")),
    });
    let cert = cert.map_err(|e| Refusal::new(RefusalKind::NotAuthorised, format!("the server at {endpoint} is not a site: {e}")))?;
    match expect_label {
        Some(label) if label != cert.label => {
            Err(Refusal::new(RefusalKind::NotAuthorised, format!("{endpoint} is {cert}, not {label}")).remedy("correct the endpoint or the name"))
        }
        _ => Ok(Dialled { tls, cert, chain, addr }),
    }
}

/// A handshake that failed, or a connection that ended before its first answer.
pub(super) fn refused(endpoint: &str, identity: &Identity, e: &io::Error) -> Refusal {
    let unavailable = |message| Refusal::new(RefusalKind::Unavailable, message);
    let denied = |message| Refusal::new(RefusalKind::NotAuthorised, message);
    match tls::cause(e) {
        Some(rustls::Error::InvalidCertificate(c)) => denied(format!("the server at {endpoint} is not the site we trust: {}", tls::why(c)))
            .remedy("check the address, and that the `ca` we have is that of its site"),
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
            denied(format!("the server at {endpoint} takes no children that dial it"))
                .remedy("let the parent dial this site, or ask its administrator")
        }
        Some(rustls::Error::AlertReceived(a)) => match tls::alert(*a, identity.cert()) {
            Some((why, remedy)) => denied(format!("the server at {endpoint} refused our certificate, {}: {why}", identity.cert())).remedy(remedy),
            None => unavailable(format!("the server at {endpoint} ended the TLS handshake: {a:?}")),
        },
        Some(e) => unavailable(format!("{endpoint} does not answer as a site does: {e}")).remedy("check the port"),
        None if e.kind() == io::ErrorKind::TimedOut => unavailable(format!("{endpoint} did not answer within {} ms", limits::CONNECT_TIMEOUT_MS)),
        None => unavailable(format!("{endpoint} ended the connection before it answered: {}", super::status::clause(e)))
            .remedy("look into the server's log"),
    }
}

/// HTTP/2 over this one connection, once the other end's first bytes are here.
async fn channel<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: S, deadline: Instant) -> io::Result<(Channel, Heard)> {
    let (answered, answer) = oneshot::channel();
    let heard = Heard::default();
    let mut once = Some(TokioIo::new(FirstAnswer { io, answered: Some(answered), heard: heard.clone() }));
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let io = once.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is lost"));
        std::future::ready(io)
    });
    let connected = async {
        let channel = endpoint().connect_with_connector(connector).await.map_err(io::Error::other)?;
        answer.await.unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()))?;
        Ok((channel, heard))
    };
    timeout_at(deadline, connected).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://site.intergrid.internal")
        .http2_keep_alive_interval(Duration::from_millis(limits::KEEPALIVE_INTERVAL_MS))
        .keep_alive_timeout(Duration::from_millis(limits::KEEPALIVE_TIMEOUT_MS))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
}

/// Reports how the first read went, then is only a pipe, with a clock of what comes.
struct FirstAnswer<S> {
    io: S,
    answered: Option<oneshot::Sender<io::Result<()>>>,
    heard: Heard,
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstAnswer<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = std::task::ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        if buf.filled().len() > before {
            self.heard.now();
        }
        let Some(answered) = self.answered.take() else { return Poll::Ready(read) };
        let (told, read) = match read {
            Ok(()) if buf.filled().len() > before => (Ok(()), Ok(())),
            Ok(()) => (Err(io::ErrorKind::UnexpectedEof.into()), Ok(())),
            Err(e) => {
                let kind = e.kind();
                (Err(e), Err(kind.into()))
            }
        };
        let _ = answered.send(told);
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FirstAnswer<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
