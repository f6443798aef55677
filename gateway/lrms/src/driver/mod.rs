//! The shell around the books: gives tasks to the LRMS, looks after them, takes them back. One for all queues, so that one query serves all.
//!
//! It decides nothing that the books or a core can decide. Nothing is told to a core before there is evidence for it, and no lock is held while it waits.

mod away;
mod ends;
mod handed;
mod queues;
mod recall;
pub mod send;
mod told;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use intergrid_agent::core::{Input, Key};
use intergrid_agent::dial::random;
use intergrid_agent::plan::Plan;
use intergrid_gateway::backends::agents::Above;
use intergrid_gateway::blobs::BlobStore;
use intergrid_gateway::config::LrmsConfig;
use intergrid_gateway::outputs::OutputStore;
use intergrid_proto::{Refusal, RefusalKind, SiteId};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::accounts::Accounts;
use crate::batches::Batches;
use crate::books::{Books, Intent, Place, Step};
use crate::bound::Bound;
use crate::child::Say;
use crate::command::Account;
use crate::hand::Hand;
use crate::limits::*;
use crate::log::{Log, Note};
use crate::lrms::{Lrms, LrmsId, Queue};
use crate::script::check_base;

/// Unix milliseconds that never go back within one run.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began: Instant,
    began_ms: u64,
}

impl Clock {
    /// From now on.
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { began: Instant::now(), began_ms: u64::try_from(since.as_millis()).unwrap_or(0) }
    }

    /// Now.
    pub fn now(&self) -> u64 {
        self.began_ms + u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

/// What the driver is made of.
pub struct Parts {
    /// The LRMS.
    pub lrms: Arc<dyn Lrms>,
    /// How it is offered.
    pub config: LrmsConfig,
    /// The gateway.
    pub site: SiteId,
    /// Where the log of submissions is.
    pub state: PathBuf,
    /// Our own program, which other accounts can run as a hand.
    pub program: PathBuf,
    /// Content.
    pub blobs: BlobStore,
    /// Outputs.
    pub outputs: OutputStore,
    /// Asks above.
    pub above: Arc<dyn Above>,
}

/// Gives tasks to the LRMS and looks after them.
pub struct Driver {
    lrms: Arc<dyn Lrms>,
    config: LrmsConfig,
    /// All our jobs are called so.
    prefix: String,
    program: PathBuf,
    blobs: BlobStore,
    outputs: OutputStore,
    above: Arc<dyn Above>,
    clock: Clock,
    turns: Semaphore,
    uploads: Semaphore,
    /// One at a time.
    removals: Arc<Semaphore>,
    /// Never locked together with `inner`.
    log: Mutex<Log>,
    inner: Mutex<Inner>,
}

struct Inner {
    books: Books,
    accounts: Accounts,
    hands: BTreeMap<Account, Arc<Hand>>,
    children: BTreeMap<String, (SiteId, mpsc::UnboundedSender<Say>)>,
    /// By tag, then by placement.
    plans: BTreeMap<String, BTreeMap<u64, Arc<Plan>>>,
    batches: Batches,
    queues: Vec<Queue>,
    bound: Bound,
    /// Submissions of which it was told that their files are away, and that are not back.
    away: BTreeSet<String>,
    handed: handed::Handed,
    /// Why the books of the LRMS could not be read when they were asked last.
    unread: Option<String>,
}

impl Driver {
    /// With what an earlier process left in the log. Nothing runs before [`begin`](Self::begin).
    pub fn new(parts: Parts) -> Result<Arc<Driver>, Refusal> {
        let Parts { lrms, config, site, state, program, blobs, outputs, above } = parts;
        let name = config.kind.name();
        let bad = |what: String| Refusal::invalid(format!("[{name}] {what}"));
        let accounts = Accounts::new(config.accounts.clone()).map_err(|e| bad(format!("[[map]]: {e}")))?;
        for account in accounts.all() {
            check_base(&base(&config.directory, &account)).map_err(|e| bad(format!("directory: {e}")))?;
        }
        let path = state.join("submissions");
        let (log, open) = Log::open(&path).map_err(|e| Refusal::new(RefusalKind::Internal, format!("{}: {e}", path.display())))?;
        let mut inner = Inner {
            books: Books::default(),
            accounts,
            hands: BTreeMap::new(),
            children: BTreeMap::new(),
            plans: BTreeMap::new(),
            batches: Batches::default(),
            queues: Vec::new(),
            bound: Bound::default(),
            away: BTreeSet::new(),
            handed: handed::Handed::default(),
            unread: None,
        };
        let prefix = prefix(site);
        inner.books.prefix.clone_from(&prefix);
        let clock = Clock::new();
        for (intent, ids) in open {
            if let Some(account) = &intent.account {
                inner.accounts.keep(&intent.principal, account);
            }
            let tag = intent.tag.clone();
            inner.books.add(intent, Step::Lost(clock.now()), clock.now());
            ids.into_iter().for_each(|id| inner.books.sent(&tag, id));
        }
        let (turns, uploads) = (Semaphore::new(SUBMISSIONS_AT_ONCE_MAX), Semaphore::new(UPLOADS_AT_ONCE_MAX));
        let (log, inner) = (Mutex::new(log), Mutex::new(inner));
        let removals = Arc::new(Semaphore::new(1));
        Ok(Arc::new(Driver { lrms, config, prefix, program, blobs, outputs, above, clock, turns, uploads, removals, log, inner }))
    }

    /// Who is told of a queue's tasks.
    pub fn serve(&self, queue: &str, child: SiteId, say: mpsc::UnboundedSender<Say>) {
        self.lock().children.insert(queue.to_string(), (child, say));
    }

    /// Queues that have submissions of which something is left.
    pub fn queues_in_use(&self) -> BTreeSet<String> {
        self.lock().books.subs().map(|s| s.intent.queue.clone()).collect()
    }

    /// Why a queue takes nothing new that has tasks of an earlier configuration; None: it is offered.
    pub fn not_offered(&self, queue: &str) -> Option<String> {
        let is_in = |queues: &[String]| queues.iter().any(|q| q == queue);
        match (is_in(&self.config.queues), is_in(&self.config.piloted)) {
            (true, _) => None,
            (false, true) => Some(format!("queue {queue} is one of pilots now (mode.{queue}): its tasks are no longer jobs")),
            (false, false) => Some(format!("queue {queue} is no longer in `queues` of [{}]", self.config.kind.name())),
        }
    }

    /// Is this task in our hands? Where it is: it may have been given to the LRMS.
    pub fn has(&self, queue: &str, key: Key) -> bool {
        self.lock().books.place(queue, key).is_some()
    }

    /// What a restart knows of a placement whose tasks are in our hands; those that the core no longer claims are over.
    pub fn resume(self: &Arc<Self>, queue: &str, claimed: &[(Key, bool)], plan: impl Fn(u64) -> Option<Arc<Plan>>) {
        let mut inner = self.lock();
        let ours: Vec<Intent> = inner.books.subs().map(|s| s.intent.clone()).filter(|i| i.queue == queue).collect();
        let mut dead = Vec::new();
        for intent in ours {
            let numbers: BTreeSet<u64> = intent.tasks.iter().map(|(number, _)| *number).collect();
            let plans = numbers.into_iter().filter_map(|number| Some((number, plan(number)?))).collect();
            inner.plans.insert(intent.tag.clone(), plans);
            for (position, key) in (1..).zip(intent.tasks) {
                match claimed.iter().find(|(k, _)| *k == key) {
                    Some((_, false)) => {}
                    Some((_, true)) => _ = inner.books.over(&(intent.tag.clone(), position)),
                    None => dead.push(key),
                }
            }
        }
        drop(inner);
        self.clear(queue, dead);
    }

    /// Look after all that there is, from now on.
    pub fn begin(self: &Arc<Self>) {
        tokio::spawn(self.clone().watch_records());
        tokio::spawn(self.clone().watch_lrms());
        tokio::spawn(self.clone().watch_queues());
    }

    /// Its clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The name of the LRMS.
    pub fn name(&self) -> &'static str {
        self.lrms.name()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, note: &Note) {
        if let Err(e) = self.log.lock().unwrap_or_else(PoisonError::into_inner).note(note) {
            tracing::warn!("the log of submissions can't be written: {e}");
        }
    }

    fn tag(&self) -> String {
        format!("{}{:016x}", self.prefix, random())
    }

    fn hand(&self, account: &Account) -> Arc<Hand> {
        let fresh = || Hand::new(account.clone(), base(&self.config.directory, account), self.program.clone());
        self.lock().hands.entry(account.clone()).or_insert_with(fresh).clone()
    }

    /// A submission's account, and its jobs.
    fn whose(&self, tag: &str) -> Option<(Account, Vec<LrmsId>)> {
        let inner = self.lock();
        let sub = inner.books.sub(tag)?;
        Some((account(&sub.intent), sub.ids.clone()))
    }

    /// Tell a task's core.
    fn tell(&self, place: &Place, input: impl FnOnce(Key) -> Input) {
        let inner = self.lock();
        let (Some(sub), Some(key)) = (inner.books.sub(&place.0), inner.books.key(place)) else { return };
        if let Some((_, say)) = inner.children.get(&sub.intent.queue) {
            // A child that is gone has gone with this process.
            let _ = say.send(Say::Input(input(key)));
        }
    }

    fn tell_queue(&self, queue: &str, input: Input) {
        if let Some((_, say)) = self.lock().children.get(queue) {
            let _ = say.send(Say::Input(input));
        }
    }
}

/// The names of all tasks' jobs of a site begin so.
pub(crate) fn prefix(site: SiteId) -> String {
    format!("ig{}-", &site.to_string()[..8])
}

/// An account's directory.
pub(crate) fn base(directory: &str, account: &Account) -> PathBuf {
    PathBuf::from(match account {
        Account::Own => directory.to_string(),
        Account::Named(name) => directory.replace("{account}", name),
    })
}

fn account(intent: &Intent) -> Account {
    intent.account.clone().map_or(Account::Own, Account::Named)
}

fn pause(ms: u64) -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_millis(ms))
}
