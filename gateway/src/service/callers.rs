//! What one caller may have under way at once. Who calls is known from the connection, so this stands before any call: a caller that has too much is
//! refused before his message is read, and what he does send cannot hold up others. It decides nothing about what a call may do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Frame, SizeHint};
use intergrid_proto::limits::{BLOB_WAIT_MS, CALL_TIMEOUT_MS, CALLS_PER_CALLER_MAX};
use intergrid_proto::net::trust::Peer;
use intergrid_proto::{Refusal, RefusalKind, SiteId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// Questions of one caller that the engine looks at at once; the next ones wait for their turn.
const TURNS_PER_CALLER_MAX: usize = 8;
/// Questions of one caller that are on their way down the tree at once.
const TREE_CALLS_PER_CALLER_MAX: usize = 32;
/// Transfers of one caller at once: each has a file open.
const TRANSFERS_PER_CALLER_MAX: usize = 32;
/// Callers of whom something is remembered; beyond it those with nothing under way are forgotten.
const CALLERS_KEPT: usize = 1_024;
/// A call is answered, or at least begun to be, within this; one that is waited for longer was never sent whole.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(BLOB_WAIT_MS + CALL_TIMEOUT_MS);
/// Calls whose messages come one by one, for as long as they come; each bounds its waits itself.
const STREAMED: &[&str] = &["Link", "Attach", "SubmitMany", "PutBlob", "PutOutputs"];
/// Calls whose messages may be large.
const LINKS: &[&str] = &["Link", "Attach"];

/// All callers of a site. Cheap to clone.
#[derive(Clone, Default)]
pub struct Callers(Arc<Mutex<HashMap<SiteId, Weak<Caller>>>>);

struct Caller {
    calls: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    tree_calls: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
}

/// Held while something is under way.
pub struct Held {
    _caller: Arc<Caller>,
    _permit: OwnedSemaphorePermit,
}

impl Callers {
    fn of(&self, id: SiteId) -> Arc<Caller> {
        let mut callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = callers.get(&id).and_then(Weak::upgrade) {
            return known;
        }
        if callers.len() >= CALLERS_KEPT {
            callers.retain(|_, c| c.strong_count() > 0);
        }
        let all = |n| Arc::new(Semaphore::new(n));
        let new = Arc::new(Caller {
            calls: all(CALLS_PER_CALLER_MAX),
            turns: all(TURNS_PER_CALLER_MAX),
            tree_calls: all(TREE_CALLS_PER_CALLER_MAX),
            transfers: all(TRANSFERS_PER_CALLER_MAX),
        });
        callers.insert(id, Arc::downgrade(&new));
        new
    }

    /// Refused where he has so many calls under way already.
    fn enter(&self, peer: &Peer) -> Result<Held, Refusal> {
        let caller = self.of(peer.id);
        match caller.calls.clone().try_acquire_owned() {
            Ok(permit) => Ok(Held { _caller: caller, _permit: permit }),
            Err(_) => {
                let message = format!("{CALLS_PER_CALLER_MAX} calls of {} are under way, one caller may have no more", peer.label);
                Err(Refusal::new(RefusalKind::OverLimit, message).remedy("wait for some of them to end"))
            }
        }
    }

    async fn wait(&self, peer: &Peer, which: impl Fn(&Caller) -> &Arc<Semaphore>) -> Result<Held, Refusal> {
        let caller = self.of(peer.id);
        let late =
            || Refusal::new(RefusalKind::OverLimit, "other calls of this caller are under way, and took too long").remedy("send fewer at once");
        let permit = timeout(Duration::from_millis(CALL_TIMEOUT_MS), which(&caller).clone().acquire_owned()).await;
        Ok(Held { _permit: permit.map_err(|_| late())?.map_err(|_| late())?, _caller: caller })
    }

    /// His turn to ask the engine.
    pub async fn turn(&self, peer: &Peer) -> Result<Held, Refusal> {
        self.wait(peer, |c| &c.turns).await
    }

    /// His turn to ask down the tree: answers from there take their time, so these do not stand in the way of his other questions.
    pub async fn tree_call(&self, peer: &Peer) -> Result<Held, Refusal> {
        self.wait(peer, |c| &c.tree_calls).await
    }

    /// His turn to send or fetch content.
    pub async fn transfer(&self, peer: &Peer) -> Result<Held, Refusal> {
        self.wait(peer, |c| &c.transfers).await
    }
}

/// A service behind its callers' bounds. `links` takes the large messages of links, `calls` all others.
#[derive(Clone)]
pub struct Guarded<S> {
    links: S,
    calls: S,
    callers: Callers,
}

impl<S> Guarded<S> {
    /// Of one service, in both sizes.
    pub fn new(links: S, calls: S, callers: Callers) -> Self {
        Guarded { links, calls, callers }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The generated services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let held = match request.extensions().get::<Peer>() {
            Some(peer) => self.callers.enter(peer),
            None => Err(Refusal::new(RefusalKind::NotAuthorised, "no certificate came with this connection")),
        };
        let held = match held {
            Ok(held) => held,
            Err(refused) => return Box::pin(async { Ok(Status::from(refused).into_http()) }),
        };
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let (streamed, link) = (STREAMED.contains(&name), LINKS.contains(&name));
        let mut inner = if link { self.links.clone() } else { self.calls.clone() };
        Box::pin(async move {
            let answering = inner.call(request);
            let answered = if streamed { Ok(answering.await) } else { timeout(ANSWER_TIMEOUT, answering).await };
            let Ok(response) = answered else {
                let late = Refusal::new(RefusalKind::Unavailable, format!("the call did not come whole within {} s", ANSWER_TIMEOUT.as_secs()));
                return Ok(Status::from(late).into_http());
            };
            response.map(|r| r.map(|body| Body::new(Answer { body, _held: held })))
        })
    }
}

/// An answer, and its caller's place until it has been read or given up.
struct Answer {
    body: Body,
    _held: Held,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
