//! Perfect children in this process, for tests of what stands above them. Their clock is tokio's, so that a paused runtime makes hours pass at once.
//!
//! A fake never counts as coverage of the real thing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_proto::link::{Down, Hop, Kind};
use intergrid_proto::{BlobHash, Phase, Refusal, RefusalKind, SiteId, TaskSet, pb};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::child_end::{ChildEnd, site_of};
use super::{LINK_QUEUE_MESSAGES_MAX, counts};
use crate::backend::{Backend, Configured, Content, FromChild, Sink};

/// Pause between a dropped link and the next hello.
const COMES_BACK_MS: u64 = 10;

struct Child {
    hop: Hop,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    end: ChildEnd,
    link: Option<mpsc::Sender<Down>>,
    /// Counts links: only the latest one's end detaches the child.
    session: u64,
    dropped: String,
    away: bool,
}

impl Child {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_link(&self, why: &str, away: bool) {
        let mut state = self.lock();
        state.away |= away;
        if state.link.take().is_some() {
            state.dropped = why.to_string();
        }
    }
}

/// N children, all alike. They outlive a site that is stopped: the next that is started over them finds them as they are.
pub struct Fake {
    began: OnceLock<Instant>,
    children: Vec<Arc<Child>>,
}

impl Fake {
    /// Children `<prefix>0`, `<prefix>1`, ... of one size.
    pub fn new(prefix: &str, kind: Kind, children: usize, slots: u32, memory_bytes: u64) -> Arc<Self> {
        let child = |i: usize| {
            let name = format!("{prefix}{i}");
            let hop = Hop { site: site_of(&name), name, kind };
            let end = ChildEnd::new(hop.clone(), 1, slots, memory_bytes);
            let state = State { end, link: None, session: 0, dropped: String::new(), away: false };
            Arc::new(Child { hop, state: Mutex::new(state), changed: Notify::new() })
        };
        Arc::new(Fake { began: OnceLock::new(), children: (0..children).map(child).collect() })
    }

    /// Id of the `i`-th child.
    pub fn id(&self, i: usize) -> SiteId {
        self.children[i].hop.site
    }

    /// Look at or command the `i`-th child: see [`ChildEnd`]'s local commands and `acting`.
    pub fn with<T>(&self, i: usize, f: impl FnOnce(&mut ChildEnd) -> T) -> T {
        let out = f(&mut self.children[i].lock().end);
        self.children[i].changed.notify_one();
        out
    }

    /// The `i`-th child loses contact, and stays away until `reconnect`; its payloads go on.
    pub fn disconnect_child(&self, i: usize) {
        self.children[i].drop_link("disconnected by the test", true);
    }

    /// The `i`-th child comes back.
    pub fn reconnect(&self, i: usize) {
        self.children[i].lock().away = false;
        self.children[i].changed.notify_one();
    }

    fn child(&self, id: SiteId) -> Option<&Arc<Child>> {
        self.children.iter().find(|c| c.hop.site == id)
    }

    fn known(&self, id: SiteId) -> Result<&Arc<Child>, Refusal> {
        self.child(id).ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("no child {id}")))
    }
}

/// One child, for as long as somebody listens.
async fn live(child: Arc<Child>, sink: Sink, began: Instant) {
    let now = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let me = child.hop.site;
    loop {
        let away = child.lock().away;
        if away {
            tokio::select! {
                () = child.changed.notified() => continue,
                () = sink.closed() => return,
            }
        }
        let (link, mut messages) = mpsc::channel(LINK_QUEUE_MESSAGES_MAX);
        let (session, hello) = {
            let mut state = child.lock();
            state.link = Some(link);
            state.session += 1;
            (state.session, state.end.attach())
        };
        for up in hello {
            if sink.send((me, FromChild::Up(up))).await.is_err() {
                return;
            }
        }
        loop {
            let due = child.lock().end.next_due();
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(began + Duration::from_millis(due)).await,
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                message = messages.recv() => match message {
                    Some(m) => Some(m),
                    None => break,
                },
                () = wait => None,
                // Its site has stopped; another may take the child over.
                () = sink.closed() => break,
                () = child.changed.notified() => None,
            };
            let said = {
                let mut state = child.lock();
                match message {
                    _ if state.session != session => return,
                    Some(m) => state.end.down(m, now()),
                    None => state.end.tick(now()),
                }
            };
            for up in said {
                if sink.send((me, FromChild::Up(up))).await.is_err() {
                    return;
                }
            }
        }
        let why = {
            let mut state = child.lock();
            if state.session != session {
                return;
            }
            state.end.detach();
            std::mem::take(&mut state.dropped)
        };
        if sink.send((me, FromChild::Gone { why, silent_ms: 0 })).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(COMES_BACK_MS)).await;
    }
}

impl Backend for Fake {
    fn kind(&self) -> &'static str {
        "fake"
    }

    fn start(self: Arc<Self>, _me: Hop, sink: Sink) {
        let began = *self.began.get_or_init(Instant::now);
        for child in &self.children {
            tokio::spawn(live(child.clone(), sink.clone(), began));
        }
    }

    fn send(&self, child: SiteId, message: Down) -> bool {
        let Some(child) = self.child(child) else { return false };
        let link = child.lock().link.clone();
        let sent = link.is_some_and(|l| l.try_send(message).is_ok());
        if !sent {
            child.drop_link("it did not keep up", false);
        }
        sent
    }

    fn disconnect(&self, child: SiteId, why: &str) {
        if let Some(child) = self.child(child) {
            child.drop_link(why, false);
        }
    }

    fn explain(&self, child: SiteId, job: u64, _: Option<TaskSet>, _: Duration) -> BoxFuture<'static, Result<pb::Explanation, Refusal>> {
        let explained = self.known(child).map(|c| {
            let (waiting, running) = c.lock().end.counts(job);
            let site = Some(c.hop.clone().into());
            pb::Explanation { site, counts: counts([(Phase::Placed, waiting), (Phase::Running, running)]), ..Default::default() }
        });
        std::future::ready(explained).boxed()
    }

    fn hosts(&self, child: SiteId, _: Duration) -> BoxFuture<'static, Result<pb::Host, Refusal>> {
        let host = self.known(child).map(|c| super::host(&c.hop, "fake", &[c.lock().end.share()]));
        std::future::ready(host).boxed()
    }

    fn output(&self, child: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>> {
        let found = self.known(child).and_then(|c| {
            let bytes = match name.as_str() {
                "stdout" => c.lock().end.stdout(job, task),
                "stderr" => Some(Vec::new()),
                _ => None,
            };
            bytes.ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("task {task} of job {job} has no output {name:?} at {}", c.hop.name)))
        });
        let content = found.map(|bytes| Content {
            hash: BlobHash::of(&bytes),
            size: bytes.len() as u64,
            parts: Box::pin(futures::stream::once(std::future::ready(Ok(bytes::Bytes::from(bytes))))),
        });
        std::future::ready(content).boxed()
    }

    fn put_blob(&self, _: SiteId, _: BlobHash, _: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
        std::future::ready(Ok(())).boxed()
    }

    fn configured(&self) -> Vec<Configured> {
        let child = |c: &Arc<Child>| Configured { name: c.hop.name.clone(), endpoint: "in this process".into(), ..Default::default() };
        self.children.iter().map(child).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::Laws;

    pub(super) fn me() -> Hop {
        Hop { site: site_of("me"), name: "me".into(), kind: Kind::Gateway }
    }

    #[tokio::test]
    async fn obeys_the_laws() {
        for (kind, children, slots) in [(Kind::Agent, 1, 2), (Kind::Gateway, 3, 8)] {
            let fake = Fake::new("c", kind, children, slots, 8 << 30);
            (0..children).for_each(|i| fake.with(i, |c| c.acting.delay_ms = 2));
            let kept = Laws::of(fake.clone(), me()).with(|o| o.children = children).run().await;
            kept.unwrap_or_else(|why| panic!("{why}"));
            let mut starts: Vec<_> = (0..children).flat_map(|i| fake.with(i, |c| c.starts().to_vec())).collect();
            let all = starts.len();
            starts.sort();
            starts.dedup();
            assert_eq!(all, starts.len(), "a task of a placement started twice");
        }
    }

    #[tokio::test]
    async fn a_broken_law_is_found() {
        let fake = Fake::new("c", Kind::Agent, 1, 2, 8 << 30);
        fake.with(0, |c| c.acting.fail_next = Some((1, 7)));
        let why = Laws::of(fake, me()).with(|o| o.patience = Duration::from_secs(2)).run().await.expect_err("a task that fails");
        assert!(why.contains("exits with 0"), "{why}");
    }
}
