//! The backend: each offered queue of a local resource manager is a child, and each that was offered and still has tasks: that one takes nothing
//! new.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_gateway::backend::{Backend, Configured, Content, Peek, Sink};
use intergrid_gateway::outputs::OutputStore;
use intergrid_proto::link::{Down, Hop, Kind};
use intergrid_proto::units::format_duration;
use intergrid_proto::{BlobHash, Reason, ReasonKind, Refusal, RefusalKind, SiteId, TaskSet, pb};
use tokio::sync::{mpsc, oneshot};

use crate::child::{self, Child, Say};
use crate::driver::{Driver, Parts};
use crate::limits::CHILD_QUEUE_MAX;
use crate::lrms::Wait;
use crate::verdict::Doubt;

/// A local resource manager as a backend.
pub struct LrmsPool {
    kind: &'static str,
    driver: Arc<Driver>,
    outputs: OutputStore,
    links: BTreeMap<SiteId, Link>,
    /// Until they are started.
    children: Mutex<Vec<Ready>>,
}

/// A child and what it listens to.
type Ready = (Child, mpsc::UnboundedReceiver<Say>, mpsc::Receiver<Down>);

struct Link {
    hop: Hop,
    queue: String,
    say: mpsc::UnboundedSender<Say>,
    downs: mpsc::Sender<Down>,
    attached: Arc<AtomicBool>,
}

/// The id of a queue of a site: the same for ever.
fn site_of(site: SiteId, lrms: &str, queue: &str) -> SiteId {
    let hash = blake3::hash(&[&site.0[..], lrms.as_bytes(), b"/", queue.as_bytes()].concat());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    SiteId(id)
}

impl LrmsPool {
    /// From what is in the state directory.
    pub fn open(parts: Parts) -> Result<Arc<LrmsPool>, Refusal> {
        let (offered, kind, site, outputs) = (parts.config.queues.clone(), parts.config.kind.name(), parts.site, parts.outputs.clone());
        let state: PathBuf = parts.state.clone();
        let failed = |e: std::io::Error| Refusal::invalid(format!("{}: {e}", state.display()));
        std::fs::create_dir_all(&state).map_err(failed)?;
        let driver = Driver::new(parts)?;
        let mut queues = child::in_use(&state).map_err(failed)?;
        queues.extend(offered.into_iter().chain(driver.queues_in_use()));
        let (mut links, mut children) = (BTreeMap::new(), Vec::new());
        for queue in queues {
            let hop = Hop { site: site_of(site, kind, &queue), name: queue.clone(), kind: Kind::Agent };
            let (say, said) = mpsc::unbounded_channel();
            driver.serve(&queue, hop.site, say.clone());
            let child = Child::open(&queue, hop.clone(), &state, driver.clone())?;
            let (downs, received) = mpsc::channel(CHILD_QUEUE_MAX);
            links.insert(hop.site, Link { hop, queue, say, downs, attached: Arc::default() });
            children.push((child, said, received));
        }
        Ok(Arc::new(LrmsPool { kind, driver, outputs, links, children: Mutex::new(children) }))
    }

    /// Is it one of these queues?
    pub fn has(&self, child: SiteId) -> bool {
        self.links.contains_key(&child)
    }

    fn link(&self, child: SiteId) -> Result<&Link, Refusal> {
        self.links.get(&child).ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("{child} is no queue of this site")))
    }
}

impl Backend for LrmsPool {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn start(self: Arc<Self>, _me: Hop, sink: Sink) {
        let children = std::mem::take(&mut *self.children.lock().unwrap_or_else(PoisonError::into_inner));
        for ((child, said, downs), link) in children.into_iter().map(|c| (c.0.site(), c)).filter_map(|(id, c)| Some((c, self.links.get(&id)?))) {
            tokio::spawn(child.run(said, downs, link.attached.clone(), sink.clone()));
        }
        self.driver.begin();
    }

    fn send(&self, child: SiteId, message: Down) -> bool {
        let Some(link) = self.links.get(&child).filter(|l| l.attached.load(Ordering::SeqCst)) else { return false };
        let sent = link.downs.try_send(message).is_ok();
        if !sent {
            let _ = link.say.send(Say::Drop("it does not keep up".into()));
        }
        sent
    }

    fn disconnect(&self, child: SiteId, why: &str) {
        if let Some(link) = self.links.get(&child) {
            let _ = link.say.send(Say::Drop(why.to_string()));
        }
    }

    fn explain(&self, child: SiteId, job: u64, tasks: Option<TaskSet>, deadline: Duration) -> BoxFuture<'static, Result<pb::Explanation, Refusal>> {
        let link = self.link(child).map(|l| (l.hop.clone(), l.queue.clone(), l.say.clone()));
        let driver = self.driver.clone();
        async move {
            let (hop, queue, say) = link?;
            let silent = || Refusal::new(RefusalKind::Unavailable, format!("queue {queue} does not answer"));
            let (answer, told) = oneshot::channel();
            say.send(Say::Ask(job, answer)).map_err(|_| silent())?;
            let told = tokio::time::timeout(deadline, told).await.map_err(|_| silent())?.map_err(|_| silent())?;
            let asked = |number: u64, task: u32| {
                told.tasks.iter().any(|(n, set)| *n == number && set.contains(task)) && tasks.as_ref().is_none_or(|t| t.contains(task))
            };
            let closed = driver.queues().into_iter().find(|q| q.name == queue).and_then(|q| q.closed);
            let there = closed.as_ref().map_or_else(|| queue.clone(), |why| format!("{queue}, closed: {why}"));
            let reason = |((wait, word), n): ((Wait, String), u64)| {
                let (kind, remedy) = match wait {
                    Wait::Turn | Wait::Requeued | Wait::Other if closed.is_some() => (ReasonKind::Draining, ""),
                    Wait::Turn | Wait::Requeued | Wait::Other => (ReasonKind::AllBusy, ""),
                    Wait::Limit => (ReasonKind::OverLimit, ""),
                    Wait::Held => (ReasonKind::WaitsBelow, "who holds it there, its account's owner or the site's administrator, releases it"),
                    Wait::Never => (ReasonKind::NoFit, ""),
                    Wait::Broken => (ReasonKind::StartFailed, ""),
                };
                Reason::new(kind, format!("{n} of its tasks wait in {} ({there}): {word}", driver.name())).remedy(remedy).into()
            };
            let stopped = |n: u64| {
                let kind = if closed.is_some() { ReasonKind::Draining } else { ReasonKind::WaitsBelow };
                Reason::new(kind, format!("{n} of its tasks are suspended in {} ({there})", driver.name())).into()
            };
            let unheard = |(machine, n): (String, u64)| {
                let text = format!("{n} of its tasks are on {machine}, which {} does not hear of", driver.name());
                Reason::new(ReasonKind::ContactLost, text).remedy("the site's administrator brings it back, or removes its tasks by force").into()
            };
            let untold = |(n, why): (u64, String)| {
                let text = format!(
                    "{n} of its tasks are gone from {} ({queue}), and its books, which say how they ended, can't be read: {why}",
                    driver.name()
                );
                Reason::new(ReasonKind::ContactLost, text)
                    .remedy("the site's administrator lets the gateway's account read them (grid doctor)")
                    .into()
            };
            let away = |(n, path): (u64, String)| {
                let text = format!("nothing is known of {n} of its tasks: their files are away where the gateway is ({path})");
                Reason::new(ReasonKind::ContactLost, text)
                    .remedy(
                        "the site's administrator mounts the shared directory there, or makes this one anew as its account if it is gone for good",
                    )
                    .into()
            };
            let doubtful = |((doubt, ms), n): ((Doubt, u64), u64)| {
                let (name, up_to) = (driver.name(), format_duration(ms));
                let why = match doubt {
                    Doubt::GivenUp => format!("{name} has given them up without having seen their end"),
                    Doubt::Requeued | Doubt::SecondCopy => format!("{name} requeued them without having seen their end"),
                    Doubt::Untold => format!("they are gone from {name}, which does not say how they ended"),
                };
                let text = format!("{n} of its tasks may still run: {why}, and their own records are waited for, up to {up_to}");
                Reason::new(ReasonKind::ContactLost, text).into()
            };
            let waits = driver.waits(&queue, asked).into_iter().map(reason);
            let lost = driver.unheard(&queue, asked).into_iter().map(unheard).chain(driver.untold(&queue, asked).map(untold));
            let lost = lost.chain(driver.doubtful(&queue, asked).into_iter().map(doubtful)).chain(driver.away(&queue, asked).map(away));
            let stopped = Some(driver.suspended(&queue, asked)).filter(|n| *n > 0).map(stopped);
            let reasons: Vec<pb::Reason> = waits.chain(stopped).chain(lost).collect();
            let count = |(phase, tasks): (intergrid_proto::Phase, u64)| pb::PhaseCount { phase: phase as i32, tasks, reason: None };
            let counts = told.phases.into_iter().filter(|(_, n)| *n > 0).map(count).collect();
            Ok(pb::Explanation { site: Some(hop.into()), counts, reasons, ..Default::default() })
        }
        .boxed()
    }

    fn hosts(&self, child: SiteId, _: Duration) -> BoxFuture<'static, Result<pb::Host, Refusal>> {
        let host = self.link(child).map(|l| {
            let queue = self.driver.queues().into_iter().find(|q| q.name == l.queue).unwrap_or_default();
            pb::Host {
                site: Some(l.hop.clone().into()),
                slots_total: queue.slots_total,
                slots_free: queue.slots_free,
                memory_bytes: queue.machine_memory_bytes.saturating_mul(u64::from(queue.machines)),
                gpus: queue.gpus_total,
                running: queue.slots_total.saturating_sub(queue.slots_free),
                waiting: queue.waiting,
                backend: self.kind.to_string(),
                ..Default::default()
            }
        });
        std::future::ready(host).boxed()
    }

    fn output(&self, _: SiteId, job: u64, task: u32, name: String) -> BoxFuture<'static, Result<Content, Refusal>> {
        let outputs = self.outputs.clone();
        async move { outputs.get(job, task, &name).await }.boxed()
    }

    /// One look at the task's files, by the hand of its account.
    fn peek(&self, child: SiteId, what: Peek, deadline: Duration) -> BoxFuture<'static, Result<pb::PeekReply, Refusal>> {
        let link = self.link(child).map(|l| (l.hop.site, l.queue.clone(), l.say.clone()));
        let driver = self.driver.clone();
        async move {
            let (me, queue, say) = link?;
            let silent = || Refusal::new(RefusalKind::Unavailable, format!("queue {queue} does not answer"));
            let (answer, told) = oneshot::channel();
            say.send(Say::Which(what.number, what.task, answer)).map_err(|_| silent())?;
            let look = async {
                let Some(key) = told.await.map_err(|_| silent())? else { return Ok(pb::PeekReply::default()) };
                let attempt = [&me.0[..], &key.0.to_be_bytes()].concat();
                // What a follower knows is of an attempt; u64::MAX: he does not want this stream.
                let from = |bytes: u64| if what.attempt == attempt || bytes == u64::MAX { bytes } else { 0 };
                let printed = driver.printed(&queue, key, from(what.stdout), from(what.stderr)).await;
                match printed.map_err(|why| Refusal::new(RefusalKind::Unavailable, why))? {
                    Some((stdout, stderr)) => Ok(pb::PeekReply { attempt, stdout, stderr, ended: false }),
                    None => Ok(pb::PeekReply::default()),
                }
            };
            tokio::time::timeout(deadline, look).await.map_err(|_| silent())?
        }
        .boxed()
    }

    /// Content is taken from the site's own store.
    fn put_blob(&self, _: SiteId, _: BlobHash, _: PathBuf) -> BoxFuture<'static, Result<(), Refusal>> {
        std::future::ready(Ok(())).boxed()
    }

    fn configured(&self) -> Vec<Configured> {
        let child = |l: &Link| {
            let silent = if l.attached.load(Ordering::SeqCst) { String::new() } else { format!("{} has not answered yet", self.kind) };
            Configured { name: l.queue.clone(), endpoint: self.kind.to_string(), unreachable: silent }
        };
        self.links.values().map(child).collect()
    }
}
