//! A parent's end of a link: one live session per id; what he says goes to the engine, message by message, after it has been checked.

use std::time::Duration;

use futures::StreamExt;
use intergrid_proto::limits::CONNECT_TIMEOUT_MS;
use intergrid_proto::link::Down;
use intergrid_proto::net::trust::Peer;
use intergrid_proto::{Reason, ReasonKind, Refusal, RefusalKind, pb};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{Parts, Service};
use crate::core::Input;

impl Service {
    pub(super) async fn parent_link(&self, peer: Peer, mut says: Streaming<pb::Down>) -> Result<Parts<pb::Up>, Refusal> {
        let me = self.engine.me().site;
        if peer.id == me {
            return Err(Refusal::new(RefusalKind::Loop, "a site can't be its own parent").remedy("remove it from its list of children"));
        }
        let link = match self.engine.parent_up(peer.id, peer.label.clone()).await {
            Ok(link) => link,
            Err(r) => {
                tracing::warn!(caller = %peer.label, id = %peer.id, addr = ?peer.addr, "refused: {r}");
                return Err(r);
            }
        };
        let engine = self.engine.clone();
        let reader = tokio::spawn(async move {
            let mut greeted = false;
            loop {
                // Hello comes first, soon, and once; after it he may be silent for as long as he likes.
                let next = match greeted {
                    true => says.message().await,
                    false => timeout(Duration::from_millis(CONNECT_TIMEOUT_MS), says.message())
                        .await
                        .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no hello within {CONNECT_TIMEOUT_MS} ms")))),
                };
                let message = match next {
                    Ok(Some(m)) => m,
                    Ok(None) => break,
                    Err(s) => {
                        tracing::info!(parent = %peer.label, "link ends: {}", s.message());
                        break;
                    }
                };
                let input = match Down::try_from(message).and_then(|m| in_order(m, greeted)).and_then(|m| check(&peer, m)) {
                    Ok(input) => {
                        greeted = true;
                        input
                    }
                    Err(r) => {
                        tracing::warn!(parent = %peer.label, id = %peer.id, "link dropped: {r}");
                        break;
                    }
                };
                if engine.input(input).await.is_err() {
                    break;
                }
            }
        });
        let guard = Guard(reader.abort_handle());
        let up = futures::stream::unfold((link, reader, guard), |(mut link, mut reader, guard)| async move {
            // Whatever ends first ends the link: the parent that no longer speaks, or our queue to him.
            tokio::select! {
                message = link.messages.recv() => message.map(|m| (Ok(pb::Up::from(m)), (link, reader, guard))),
                _ = &mut reader => None,
            }
        });
        Ok(Box::pin(up.map(|m: Result<pb::Up, Status>| m)))
    }
}

/// Ends the reader when the stream is dropped.
struct Guard(tokio::task::AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A hello, then anything else.
fn in_order(message: Down, greeted: bool) -> Result<Down, Refusal> {
    match (&message, greeted) {
        (Down::Hello(_), true) => Err(Refusal::invalid("it said hello twice")),
        (Down::Hello(_), false) | (_, true) => Ok(message),
        (_, false) => Err(Refusal::invalid("its first message is not a hello")),
    }
}

/// Who says hello must be who he is; a placement needs the right to act for its principal.
fn check(peer: &Peer, message: Down) -> Result<Input, Refusal> {
    let parent = peer.id;
    match message {
        Down::Hello(h) if h.hop.site != parent => {
            let message = format!("says it is {:?}, and its certificate {parent:?}", h.hop.site);
            Err(Refusal::new(RefusalKind::NotAuthorised, message))
        }
        Down::Place(p) => match peer.require_on_behalf(&p.origin.principal) {
            Ok(()) => Ok(Input::ParentSays { parent, message: Down::Place(p) }),
            Err(r) => Ok(Input::Denied { parent, place: p, reason: Reason::new(ReasonKind::NotAuthorised, r.message) }),
        },
        message => Ok(Input::ParentSays { parent, message }),
    }
}
