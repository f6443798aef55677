//! Named children, each from a backend of its own, as one backend.
//!
//! Invariant: a child's id and its name each stand for one live session; a second one is dropped and logged, and nothing that it says is passed on. What
//! is for a child goes to the member that has it, and to no other. It only merges and routes: what the children are for, the engine above knows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_gateway::backend::{Backend, Configured, Content, FromChild, Peek, Sink};
use intergrid_proto::link::{Down, Hello, Hop, Up};
use intergrid_proto::{BlobHash, Refusal, RefusalKind, SiteId, TaskSet, pb};
use tokio::sync::mpsc;

/// Messages of one member that wait for the engine.
const MEMBER_SINK_MESSAGES_MAX: usize = 256;

/// Several backends as one.
pub struct Federation(Arc<Inner>);

struct Inner {
    members: Vec<Arc<dyn Backend>>,
    children: Mutex<BTreeMap<SiteId, Child>>,
    started: OnceLock<()>,
}

/// A child whose session counts, or was the last that did under its name.
struct Child {
    member: usize,
    name: String,
    attached: bool,
}

impl Federation {
    /// Of these members. Refused where two children are configured under one name.
    pub fn new(members: Vec<Arc<dyn Backend>>) -> Result<Arc<Self>, Refusal> {
        let mut names: Vec<Configured> = members.iter().flat_map(|m| m.configured()).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(twice) = names.windows(2).find(|w| w[0].name == w[1].name) {
            let message = format!("two children are called {:?}: {} and {}", twice[0].name, twice[0].endpoint, twice[1].endpoint);
            return Err(Refusal::invalid(message).remedy("names are unique within one federation: remove one"));
        }
        Ok(Arc::new(Federation(Arc::new(Inner { members, children: Mutex::default(), started: OnceLock::new() }))))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SiteId, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member with this child, which is attached.
    fn member(&self, child: SiteId) -> Option<&Arc<dyn Backend>> {
        let member = self.lock().get(&child).filter(|c| c.attached).map(|c| c.member);
        member.and_then(|m| self.members.get(m))
    }

    fn route(&self, child: SiteId) -> Result<&Arc<dyn Backend>, Refusal> {
        self.member(child).ok_or_else(|| self.away(child))
    }

    fn away(&self, child: SiteId) -> Refusal {
        let message = match self.lock().get(&child) {
            Some(c) => format!("{} is not attached", c.name),
            None => "a child that has not attached since this site started".to_string(),
        };
        Refusal::new(RefusalKind::Unavailable, message).remedy("ask again when it is back")
    }

    fn admit(&self, member: usize, hello: &Hello) -> Result<(), Refusal> {
        let Hop { site, name, .. } = &hello.hop;
        let mut children = self.lock();
        let attached = children.iter().filter(|(_, c)| c.attached);
        let other = attached.into_iter().find(|(id, c)| *id == site || c.name == *name).map(|(id, c)| (*id, c.name.clone()));
        match other {
            // The same way again: its backend vouches for one session per id.
            Some((id, known)) if id == *site && known == *name && children.get(site).is_some_and(|c| c.member == member) => Ok(()),
            Some((id, known)) => {
                let message = format!("{name} ({site:?}) is refused: {known} ({id:?}) is attached already");
                Err(Refusal::new(RefusalKind::DuplicateIdentity, message).remedy("a child is attached once, under a name of its own: remove one"))
            }
            None => {
                // What has its name has taken its place.
                children.retain(|_, c| c.name != *name);
                children.insert(*site, Child { member, name: name.clone(), attached: true });
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
            if self.lock().get(&child).is_none_or(|c| c.member != member || !c.attached) {
                continue;
            }
            let gone = matches!(message, FromChild::Gone { .. });
            if sink.send((child, message)).await.is_err() {
                return;
            }
            if gone && let Some(c) = self.lock().get_mut(&child) {
                c.attached = false;
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

    /// A member may keep the outputs of a child that is gone: the one that had it is asked, attached or not.
    fn output(&self, child: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>> {
        let member = self.0.lock().get(&child).map(|c| c.member);
        match member.and_then(|m| self.0.members.get(m)) {
            Some(m) => m.output(child, job, task, name),
            None => std::future::ready(Err(self.0.away(child))).boxed(),
        }
    }

    fn peek(&self, child: SiteId, what: Peek, deadline: Duration) -> BoxFuture<'static, Result<pb::PeekReply, Refusal>> {
        self.0.route(child).map_or_else(|r| std::future::ready(Err(r)).boxed(), |m| m.peek(child, what, deadline))
    }

    fn put_blob(&self, child: SiteId, hash: BlobHash, file: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
        self.0.route(child).map_or_else(|r| std::future::ready(Err(r)).boxed(), |m| m.put_blob(child, hash, file))
    }

    fn configured(&self) -> Vec<Configured> {
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// A child that comes by itself: nothing is configured. Counts who asks for outputs.
    struct ByItself(Arc<Fake>, Arc<AtomicUsize>);

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
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.output(child, job, task, name)
        }
        fn put_blob(&self, child: SiteId, hash: BlobHash, file: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
            self.0.put_blob(child, hash, file)
        }
        fn configured(&self) -> Vec<Configured> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn of_a_child_that_is_away_nobody_else_is_asked() {
        let (first, asked) = (fake("a", 1), Arc::new(AtomicUsize::new(0)));
        let both = Federation::new(vec![first.clone(), Arc::new(ByItself(fake("b", 1), asked.clone()))]).unwrap();
        let mut parent = Parent::start(both.clone(), me());
        let (wait, id) = (Duration::from_secs(5), first.id(0));
        parent.until("both", wait, |p| p.children.values().filter(|c| c.attached).count() == 2).await.unwrap();
        first.disconnect_child(0);
        parent.until("the first to go", wait, move |p| !p.children[&id].attached).await.unwrap();
        let refused = both.output(id, 1, 0, "stdout".into()).await.err().expect("no such task");
        assert!(refused.kind == RefusalKind::NotFound && refused.message.contains("a0"), "its member knows what it kept: {refused}");
        for refused in [both.hosts(id, wait).await.err(), both.explain(id, 1, None, wait).await.err()] {
            assert_eq!("a0 is not attached; ask again when it is back", refused.expect("away").to_string());
        }
        let refused = both.output(site_of("never seen"), 1, 0, "stdout".into()).await.err().expect("not attached");
        assert_eq!(RefusalKind::Unavailable, refused.kind);
        assert_eq!(0, asked.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_second_session_of_one_child_is_refused_until_the_first_is_gone() {
        let (first, second) = (fake("a", 1), fake("a", 1));
        second.disconnect_child(0);
        let both = Federation::new(vec![first.clone(), Arc::new(ByItself(second.clone(), Arc::default()))]).unwrap();
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
