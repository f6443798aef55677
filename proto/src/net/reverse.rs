//! A child that may only dial out serves its parent over the connection that it dialled.
//!
//! Only the direction of the dialling changes: the parent calls, the child serves, and each verifies the other as on any connection. The child feeds
//! [`parent`] to its gRPC server beside its listener; the parent takes [`ReverseConn`]s from its listener and calls over them (`client::over`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use rustls_pki_types::UnixTime;
use tokio::io::AsyncBufReadExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::Stream;

use super::ALPN_SERVE;
use super::client::{dial, refused};
use super::identity::{Identity, Role};
use super::io::{Io, UntilDropped};
use super::trust::{Peer, Trust};
use crate::error::{Refusal, RefusalKind, Result};
use crate::limits;

/// At the parent: a child's connection, over which it serves us.
pub struct ReverseConn {
    /// The child: its role here is child.
    pub peer: Peer,
    /// To be called over.
    pub io: Io,
}

/// Dial the parent, once. Refused unless our own trust allows the parent to be a delegate; done only when the parent has begun to speak.
pub async fn dial_parent(endpoint: &str, identity: &Identity, parent_ca_pem: &[u8], trust: &Trust) -> Result<Io> {
    let deadline = Instant::now() + Duration::from_millis(limits::CONNECT_TIMEOUT_MS);
    let mut dialled = dial(endpoint, identity, parent_ca_pem, None, ALPN_SERVE, deadline).await?;
    let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let peer = trust.judge(&dialled.chain, now, Some(Role::Delegate)).map_err(|d| {
        let message = format!("our parent at {endpoint}, {}, may not place work here: {}", dialled.cert, d.why);
        Refusal::new(RefusalKind::NotAuthorised, message).remedy("add its ca.pem to our [[trust]] with may = [\"delegate\"]")
    })?;
    let first = timeout_at(deadline, dialled.tls.fill_buf()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match first.map(|bytes| bytes.is_empty()) {
        Ok(false) => Ok(Io::new(dialled.tls.into(), Peer { addr: Some(dialled.addr), ..peer }, UntilDropped::Nothing)),
        Ok(true) => Err(refused(endpoint, identity, &io::ErrorKind::UnexpectedEof.into())),
        Err(e) => Err(refused(endpoint, identity, &e)),
    }
}

/// Keep one connection to the parent for as long as the stream lives: dial, serve, dial again after a pause.
pub fn parent(endpoint: String, identity: Arc<Identity>, parent_ca_pem: Vec<u8>, trust: Arc<Trust>) -> Parent {
    let (ready, connections) = mpsc::channel(1);
    tokio::spawn(async move {
        let (min, max) = (Duration::from_millis(limits::REDIAL_MIN_MS), Duration::from_millis(limits::REDIAL_MAX_MS));
        let mut pause = min;
        let mut last = String::new();
        loop {
            let dialled = tokio::select! {
                () = ready.closed() => return,
                dialled = dial_parent(&endpoint, &identity, &parent_ca_pem, &trust) => dialled,
            };
            match dialled {
                Ok(io) => {
                    tracing::info!(parent = %io.peer(), %endpoint, "serving our parent");
                    let began = Instant::now();
                    let (io, ended) = io.watched();
                    if ready.send(Ok(io)).await.is_err() {
                        return;
                    }
                    let _ = ended.await;
                    tracing::info!(%endpoint, "the connection to our parent has ended");
                    last.clear();
                    // A parent that takes us and hangs up at once is not to be dialled ten times a second.
                    if began.elapsed() > max {
                        pause = min;
                    }
                }
                Err(e) => {
                    let why = e.to_string();
                    if why != last {
                        tracing::warn!(%endpoint, %why, "cannot serve our parent; will dial again");
                        last = why;
                    }
                }
            }
            tokio::select! {
                () = ready.closed() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(max);
        }
    });
    Parent { connections }
}

/// Connections to the parent, one at a time; see [`parent`].
pub struct Parent {
    connections: mpsc::Receiver<io::Result<Io>>,
}

impl Stream for Parent {
    type Item = io::Result<Io>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Io>>> {
        self.connections.poll_recv(cx)
    }
}
