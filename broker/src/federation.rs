//! Named children, each from a backend of its own, as one backend.
//!
//! Invariant: a child's id and its name each stand for one live session; a second one is dropped and logged, and nothing that it says is passed on. It
//! only merges and routes: what the children are for, the engine above knows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_gateway::backend::{Backend, Content, FromChild, Sink};
use intergrid_proto::link::{Down, Hello, Hop, Up};
use intergrid_proto::{BlobHash, Refusal, RefusalKind, SiteId, TaskSet, pb};
use tokio::sync::mpsc;

/// Messages of one member that wait for the engine.
const MEMBER_SINK_MESSAGES_MAX: usize = 256;

/// Several backends as one.
pub struct Federation(Arc<Inner>);

struct Inner {
    members: Vec<Arc<dyn Backend>>,
    live: Mutex<BTreeMap<SiteId, Live>>,
    started: OnceLock<()>,
}

/// A child whose session counts.
struct Live {
    member: usize,
    name: String,
}

impl Federation {
    /// Of these members. Refused where two children are configured under one name.
    pub fn new(members: Vec<Arc<dyn Backend>>) -> Result<Arc<Self>, Refusal> {
        let mut names: Vec<(String, String)> = members.iter().flat_map(|m| m.configured()).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|w| w[0].0 == w[1].0) {
            let message = format!("two children are called {:?}: {} and {}", twice[0].0, twice[0].1, twice[1].1);
            return Err(Refusal::invalid(message).remedy("names are unique within one federation: remove one"));
        }
        Ok(Arc::new(Federation(Arc::new(Inner { members, live: Mutex::default(), started: OnceLock::new() }))))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SiteId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn member(&self, child: SiteId) -> Option<&Arc<dyn Backend>> {
        let member = self.lock().get(&child).map(|l| l.member);
        member.and_then(|m| self.members.get(m))
    }

    fn route(&self, child: SiteId) -> Result<&Arc<dyn Backend>, Refusal> {
        let away = || Refusal::new(RefusalKind::Unavailable, format!("child {child} is not attached")).remedy("the call may be repeated");
        self.member(child).ok_or_else(away)
    }

    fn admit(&self, member: usize, hello: &Hello) -> Result<(), Refusal> {
        let Hop { site, name, .. } = &hello.hop;
        let mut live = self.lock();
        let other = live.iter().find(|(id, l)| *id == site || l.name == *name).map(|(id, l)| (*id, l.name.clone()));
        match other {
            // The same way again: its backend vouches for one session per id.
            Some((id, known)) if id == *site && known == *name && live.get(site).is_some_and(|l| l.member == member) => Ok(()),
            Some((id, known)) => {
                let message = format!("{name} ({site:?}) is refused: {known} ({id:?}) is attached already");
                Err(Refusal::new(RefusalKind::DuplicateIdentity, message).remedy("a child is attached once, under a name of its own: remove one"))
            }
            None => {
                live.insert(*site, Live { member, name: name.clone() });
                Ok(())
            }
        }
    }

    /// Pass on what one member's children say.
    async fn merge(self: Arc<Self>, member: usize, mut heard: mpsc::Receiver<(SiteId, FromChild)>, sink: Sink) {
        let mut told: Option<String> = None;
        loop {
            let next = tokio::select! {
                () = sink.closed() => return,
                next = heard.recv() => next,
            };
            let Some((child, message)) = next else { return };
            if let FromChild::Up(Up::Hello(hello)) = &message
                && let Err(why) = self.admit(member, hello)
            {
                let why = why.to_string();
                if told.as_ref() != Some(&why) {
                    tracing::warn!(child = %hello.hop.name, id = %child, %why, "refused a child");
                }
                if let Some(m) = self.members.get(member) {
                    m.disconnect(child, &why);
                }
                told = Some(why);
                continue;
            }
            if self.lock().get(&child).is_none_or(|l| l.member != member) {
                continue;
            }
            let gone = matches!(message, FromChild::Gone(_));
            if sink.send((child, message)).await.is_err() {
                return;
            }
            if gone {
                self.lock().remove(&child);
            }
        }
    }
}

impl Backend for Federation {
    fn kind(&self) -> &'static str {
        "federation"
    }

    fn start(self: Arc<Self>, me: Hop, sink: Sink) {
        if self.0.started.set(()).is_err() {
            return;
        }
        for (i, member) in self.0.members.iter().enumerate() {
            let (to_us, heard) = mpsc::channel(MEMBER_SINK_MESSAGES_MAX);
            member.clone().start(me.clone(), to_us);
            tokio::spawn(self.0.clone().merge(i, heard, sink.clone()));
        }
    }

    fn send(&self, child: SiteId, message: Down) -> bool {
        self.0.member(child).is_some_and(|m| m.send(child, message))
    }

    fn disconnect(&self, child: SiteId, why: &str) {
        if let Some(m) = self.0.member(child) {
            m.disconnect(child, why);
        }
    }

    fn explain(&self, child: SiteId, job: u64, tasks: Option<TaskSet>, deadline: Duration) -> BoxFuture<'static, Result<pb::Explanation, Refusal>> {
        self.0.route(child).map_or_else(|r| std::future::ready(Err(r)).boxed(), |m| m.explain(child, job, tasks, deadline))
    }

    fn hosts(&self, child: SiteId, deadline: Duration) -> BoxFuture<'static, Result<pb::Host, Refusal>> {
        self.0.route(child).map_or_else(|r| std::future::ready(Err(r)).boxed(), |m| m.hosts(child, deadline))
    }

    /// Some members keep the outputs of children that are gone; so for one that is not attached they are asked in turn.
    fn output(&self, child: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>> {
        if let Some(m) = self.0.member(child) {
            return m.output(child, job, task, name);
        }
        let inner = self.0.clone();
        async move {
            let mut refusal = inner.route(child).err();
            for m in &inner.members {
                match m.output(child, job, task, name.clone()).await {
                    Ok(content) => return Ok(content),
                    Err(r) if r.kind == RefusalKind::Unavailable => refusal = Some(r),
                    Err(_) => {}
                }
            }
            Err(refusal.unwrap_or_else(|| Refusal::new(RefusalKind::NotFound, format!("no member has output {name:?} of task {task}"))))
        }
        .boxed()
    }

    fn put_blob(&self, child: SiteId, hash: BlobHash, file: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
        self.0.route(child).map_or_else(|r| std::future::ready(Err(r)).boxed(), |m| m.put_blob(child, hash, file))
    }

    fn configured(&self) -> Vec<(String, String)> {
        self.0.members.iter().flat_map(|m| m.configured()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_gateway::backends::child_end::site_of;
    use intergrid_gateway::backends::fake::Fake;
    use intergrid_gateway::laws::{Laws, Parent};
    use intergrid_proto::link::Kind;

    fn me() -> Hop {
        Hop { site: site_of("me"), name: "me".into(), kind: Kind::Broker }
    }

    fn fake(prefix: &str, children: usize) -> Arc<Fake> {
        Fake::new(prefix, Kind::Gateway, children, 4, 8 << 30)
    }

    #[tokio::test]
    async fn obeys_the_laws() {
        let (a, b) = (fake("a", 2), fake("b", 1));
        let both = Federation::new(vec![a.clone(), b.clone()]).unwrap();
        // A federation is a member like any other.
        let nested = Federation::new(vec![both, fake("c", 1)]).unwrap();
        Laws::of(nested, me()).with(|o| o.children = 4).run().await.unwrap_or_else(|why| panic!("{why}"));
        assert!((0..2).all(|i| !a.with(i, |c| c.starts().is_empty())) && !b.with(0, |c| c.starts().is_empty()), "each has had work");
    }

    #[test]
    fn two_of_one_name_are_not_configured() {
        let refused = Federation::new(vec![fake("a", 1), fake("a", 2)]).err().expect("twice a0");
        assert!(refused.message.contains("\"a0\""), "{refused}");
    }

    /// A child that comes by itself: nothing is configured.
    struct ByItself(Arc<Fake>);

    impl Backend for ByItself {
        fn kind(&self) -> &'static str {
            "by-itself"
        }
        fn start(self: Arc<Self>, me: Hop, sink: Sink) {
            self.0.clone().start(me, sink);
        }
        fn send(&self, child: SiteId, message: Down) -> bool {
            self.0.send(child, message)
        }
        fn disconnect(&self, child: SiteId, why: &str) {
            self.0.disconnect(child, why);
        }
        fn explain(&self, c: SiteId, job: u64, t: Option<TaskSet>, d: Duration) -> BoxFuture<'static, Result<pb::Explanation, Refusal>> {
            self.0.explain(c, job, t, d)
        }
        fn hosts(&self, child: SiteId, deadline: Duration) -> BoxFuture<'static, Result<pb::Host, Refusal>> {
            self.0.hosts(child, deadline)
        }
        fn output(&self, child: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>> {
            self.0.output(child, job, task, name)
        }
        fn put_blob(&self, child: SiteId, hash: BlobHash, file: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
            self.0.put_blob(child, hash, file)
        }
        fn configured(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn a_second_session_of_one_child_is_refused_until_the_first_is_gone() {
        let (first, second) = (fake("a", 1), fake("a", 1));
        second.disconnect_child(0);
        let both = Federation::new(vec![first.clone(), Arc::new(ByItself(second.clone()))]).unwrap();
        let mut parent = Parent::start(both.clone(), me());
        let wait = Duration::from_secs(5);
        let id = first.id(0);
        let attached = move |p: &Parent| p.children.get(&id).is_some_and(|c| c.attached);
        parent.until("the first", wait, attached).await.unwrap();
        second.reconnect(0);
        // The parent would call a second hello a fault.
        parent.settle(Duration::from_millis(200)).await.unwrap();
        assert!(attached(&parent));
        first.disconnect_child(0);
        parent.until("the first to go", wait, move |p| !attached(p)).await.unwrap();
        parent.until("the second", wait, attached).await.unwrap();
        assert_eq!(2, parent.children[&id].hellos);
    }
}
