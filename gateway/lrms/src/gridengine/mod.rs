//! Grid Engine, by its own commands: qsub, qstat, qhost, qconf and qdel, and its accounting file.
//!
//! One qstat shows all jobs of all accounts. It has been tried with Son of Grid Engine 8.1.9; other descendants of 6.2 speak alike. Grid Engine kills what it
//! removes: our jobs ask to be told before (`-notify`), and how long before is the queue's `notify`.

pub mod access;
pub mod accounting;
pub mod calls;
pub mod defaults;
pub mod doctor;
pub mod gpus;
pub mod qhost;
pub mod qstat;
pub mod settings;
pub mod words;
pub mod xml;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use intergrid_gateway::config::LrmsConfig;
use intergrid_proto::{Refusal, Shape};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::accounts::Accounts;
use crate::command::{Account, Call, CallFailure, Hands, own_home};
use crate::limits::{COMMAND_TIMEOUT_MS, SUBMISSION_TASKS_MAX};
use crate::lrms::{Entry, How, Lrms, LrmsId, Queue, Record, Refused, State, Submission, SubmitFailure, Wait};
use crate::records::Records;
use access::Denied;
use accounting::Accounting;
use calls::Terms;
use gpus::Counted;
use qhost::Configured;
use settings::Settings;

/// What queues and machines are configured to be is asked for again after this.
const CONFIGURED_OLD_MS: u64 = 60_000;

/// How it is spoken to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GridEngineConfig {
    /// Directory of its commands; absent: they are on the usual path.
    pub commands: Option<PathBuf>,
    /// Where its cell is.
    pub settings: Settings,
    /// The accounting file.
    pub accounting: PathBuf,
    /// How wishes are said here.
    pub terms: Terms,
    /// Queues that are offered.
    pub queues: Vec<String>,
    /// As whom tasks run; none: whom a queue refuses is not looked at.
    pub accounts: Vec<Account>,
}

impl GridEngineConfig {
    /// As a gateway's configuration has it; `conf` is its `settings.sh`, else our own environment counts.
    pub fn of(config: &LrmsConfig) -> Result<Self, Refusal> {
        let settings = match &config.conf {
            Some(path) => Settings::read(path)?,
            None => Settings::of_environment(|name| std::env::var(name).ok()),
        };
        let accounts = Accounts::new(config.accounts.clone()).map_err(|e| Refusal::invalid(format!("[gridengine] [[map]]: {e}")))?;
        Ok(GridEngineConfig {
            commands: config.commands.clone(),
            accounting: config.records.clone().unwrap_or_else(|| settings.accounting()),
            settings,
            terms: Terms { environment: config.parallel_environment.clone(), memory: config.memory.clone(), gpu_complex: config.gpu_complex.clone() },
            queues: config.queues.clone(),
            accounts: accounts.all(),
        })
    }
}

/// GPUs, as they are configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gpus {
    /// How, or why they can't be asked for.
    pub counted: Result<Counted, String>,
    /// Of each machine that has some.
    pub machines: BTreeMap<String, u32>,
}

/// What was asked for, and when.
type Known<T> = Mutex<Option<(Instant, T)>>;

/// What is not too old to be asked for again.
fn fresh<T: Clone>(known: &Known<T>) -> Option<T> {
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.as_ref().filter(|(at, _)| at.elapsed() < Duration::from_millis(CONFIGURED_OLD_MS)).map(|(_, value)| value.clone())
}

fn learn<T>(known: &Known<T>, value: T) {
    *known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), value));
}

/// A Grid Engine cluster.
#[derive(Debug)]
pub struct GridEngine {
    config: GridEngineConfig,
    hands: Hands,
    /// Tasks that wait, by queue, as the last look showed it.
    waiting: Mutex<BTreeMap<String, u64>>,
    /// Why the last look was not shown all jobs.
    hidden: Mutex<Option<String>>,
    /// Of our own account.
    home: OnceCell<PathBuf>,
    configured: Known<BTreeMap<String, Configured>>,
    gpus: Known<Gpus>,
    denied: Known<Vec<Denied>>,
    books: Arc<Mutex<Accounting>>,
}

impl GridEngine {
    /// Nothing is run yet.
    pub fn new(config: GridEngineConfig) -> Self {
        GridEngine {
            config,
            hands: Hands,
            waiting: Mutex::default(),
            hidden: Mutex::default(),
            home: OnceCell::new(),
            configured: Mutex::default(),
            gpus: Mutex::default(),
            denied: Mutex::default(),
            books: Arc::default(),
        }
    }

    /// How it is spoken to.
    pub fn config(&self) -> &GridEngineConfig {
        &self.config
    }

    /// One of its commands.
    pub fn call(&self, program: &str) -> Call {
        let program = self.config.commands.as_ref().map_or_else(|| OsString::from(program), |dir| dir.join(program).into());
        let mut call = Call::new(program);
        call.env.extend(self.config.settings.0.iter().map(|(name, value)| (name.clone(), value.into())));
        call
    }

    async fn asked(&self, call: Call) -> Result<String, CallFailure> {
        self.hands.asked(call).await
    }

    /// The accounting file as it is now.
    async fn follow<T: Send + 'static>(&self, look: impl FnOnce(&Records) -> T + Send + 'static) -> Result<T, CallFailure> {
        let (books, path): (_, PathBuf) = (self.books.clone(), self.accounting().into());
        // The books are read whether or not the master answers: what was known of the queues last is good enough.
        let known = self.configured.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, queues)| queues.clone());
        let queues = match known {
            Some(queues) => queues,
            None => self.configured().await.unwrap_or_default(),
        };
        let read = move || {
            let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
            books.follow(&path, &queues).map(|()| look(books.records()))
        };
        tokio::task::spawn_blocking(read).await.map_err(|e| CallFailure::Unknown(e.to_string()))?.map_err(CallFailure::Failed)
    }

    /// The accounting file.
    pub fn accounting(&self) -> &Path {
        &self.config.accounting
    }

    async fn look(&self, prefix: &str, ids: &BTreeSet<LrmsId>) -> Result<qstat::Look, CallFailure> {
        let text = self.asked(calls::qstat(self.call("qstat"))).await;
        // What it does not show would look gone.
        let hidden = self.hidden().await?;
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&hidden);
        match hidden {
            Some(why) => Err(CallFailure::Failed(why)),
            None => qstat::look(&text?, prefix, ids).map_err(CallFailure::Failed),
        }
    }

    /// Why qstat does not show all jobs; None: it does.
    pub async fn hidden(&self) -> Result<Option<String>, CallFailure> {
        let mut files = vec![defaults::of_cell(&self.config.settings.common())];
        match self.home.get_or_try_init(own_home).await {
            Ok(home) => files.push(defaults::of_account(home)),
            Err(why) => tracing::debug!("the options in our own account's .sge_qstat are not known: {why}"),
        }
        let read = timeout(Duration::from_millis(COMMAND_TIMEOUT_MS), tokio::task::spawn_blocking(move || defaults::hidden(&files)));
        let late = || CallFailure::Unknown(format!("the files with qstat's options were not read within {COMMAND_TIMEOUT_MS} ms"));
        read.await.map_err(|_| late())?.map_err(|e| CallFailure::Unknown(e.to_string()))
    }

    /// Why our tasks are in error: asked for only where there are some.
    async fn explain(&self, entries: &mut [Entry]) -> Result<(), CallFailure> {
        let broken = |e: &Entry| matches!(e.state, State::Pending(Wait::Broken, _));
        let mut ids: Vec<LrmsId> = entries.iter().filter(|e| broken(e)).map(|e| e.id).collect();
        ids.dedup();
        ids.truncate(calls::ERRORS_JOBS_MAX);
        if ids.is_empty() {
            return Ok(());
        }
        let output = self.hands.run(&Account::Own, calls::qstat_jobs(self.call("qstat"), &ids)).await?;
        let errors = qstat::errors(&output.stdout);
        for e in entries.iter_mut().filter(|e| broken(e)) {
            if let (State::Pending(_, why), Some(said)) = (&mut e.state, errors.get(&(e.id, e.position))) {
                *why = format!("{why}: {said}");
            }
        }
        Ok(())
    }

    async fn configured(&self) -> Result<BTreeMap<String, Configured>, CallFailure> {
        if let Some(configured) = fresh(&self.configured) {
            return Ok(configured);
        }
        // It says no where one of them is not there, and tells of the others all the same.
        let output = self.hands.run(&Account::Own, calls::qconf_queues(self.call("qconf"), &self.config.queues)).await?;
        let configured = qhost::configured(&output.stdout);
        if !configured.is_empty() {
            learn(&self.configured, configured.clone());
        }
        Ok(configured)
    }

    /// GPUs of its machines; None: nothing is said to count them.
    pub async fn gpus(&self) -> Result<Option<Gpus>, CallFailure> {
        let Some(complex) = &self.config.terms.gpu_complex else { return Ok(None) };
        if let Some(gpus) = fresh(&self.gpus) {
            return Ok(Some(gpus));
        }
        let counted = gpus::counted(&self.asked(calls::qconf_complexes(self.call("qconf"))).await?, complex);
        let mut machines = BTreeMap::new();
        if counted.is_ok() {
            let listed = self.asked(calls::qconf_machines_with(self.call("qconf"), complex)).await?;
            let names: Vec<&str> = listed.split_whitespace().collect();
            for names in names.chunks(calls::MACHINES_MAX) {
                machines.extend(gpus::of_machines(&self.asked(calls::qconf_machines(self.call("qconf"), names)).await?, complex));
            }
        }
        let gpus = Gpus { counted, machines };
        learn(&self.gpus, gpus.clone());
        Ok(Some(gpus))
    }

    /// Which accounts of ours may not use which queues; while that can't be read, as it was known last.
    async fn denied(&self) -> Vec<Denied> {
        if let Some(denied) = fresh(&self.denied) {
            return denied;
        }
        let denied = access::of(self, &self.config.accounts).await.unwrap_or_else(|why| {
            tracing::debug!("whom the queues refuse: {why}");
            self.denied.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Vec::new(), |(_, denied)| denied)
        });
        learn(&self.denied, denied.clone());
        denied
    }

    /// What is asked for of the complex, for GPUs of a task of this shape.
    async fn gpu_request(&self, shape: &Shape) -> Result<u32, SubmitFailure> {
        let never = |why: String| SubmitFailure::Refused(Refused::Never, why);
        if shape.gpus == 0 {
            return Ok(0);
        }
        let gpus = self.gpus().await.map_err(|e| SubmitFailure::Refused(Refused::Later, e.to_string()))?;
        let gpus = gpus.ok_or_else(|| never("this site names no gpu_complex, by which Grid Engine counts GPUs".to_string()))?;
        gpus.counted.map_err(never)?.request(shape.gpus, shape.slots).ok_or_else(|| {
            let each = "Grid Engine counts GPUs for each slot here, so that only as many for each can be asked for";
            never(format!("{} GPUs for {} slots: {each}", shape.gpus, shape.slots))
        })
    }
}

impl Lrms for GridEngine {
    fn name(&self) -> &'static str {
        "gridengine"
    }

    fn tasks_max(&self) -> BoxFuture<'_, Result<u32, CallFailure>> {
        Box::pin(async {
            let text = self.asked(calls::qconf_global(self.call("qconf"))).await?;
            let said = qhost::setting(&text, "max_aj_tasks").and_then(|n| n.parse::<u32>().ok());
            let said = said.ok_or_else(|| CallFailure::Failed("qconf -sconf does not say max_aj_tasks".to_string()))?;
            // 0: not limited.
            Ok(if said == 0 { SUBMISSION_TASKS_MAX as u32 } else { said.min(SUBMISSION_TASKS_MAX as u32) })
        })
    }

    fn submit<'a>(&'a self, submission: &'a Submission) -> BoxFuture<'a, Result<LrmsId, SubmitFailure>> {
        Box::pin(async move {
            if submission.shape.nodes > 1 {
                let why = "several machines are not asked of Grid Engine".to_string();
                return Err(SubmitFailure::Refused(Refused::Never, why));
            }
            if submission.shape.slots > 1 && self.config.terms.environment.is_none() {
                let why = "this site names no parallel environment for several slots on one machine".to_string();
                return Err(SubmitFailure::Refused(Refused::Never, why));
            }
            let gpus = self.gpu_request(&submission.shape).await?;
            let call = calls::qsub(self.call("qsub"), submission, &self.config.terms, gpus);
            let output = match self.hands.run(&submission.account, call).await {
                Ok(output) => output,
                Err(CallFailure::NotRun(why)) => return Err(SubmitFailure::Refused(Refused::Later, why)),
                Err(CallFailure::Failed(why) | CallFailure::Unknown(why)) => return Err(SubmitFailure::Unknown(why)),
            };
            match qstat::submitted(&output.stdout).filter(|_| output.is_good()) {
                Some(id) => Ok(id),
                None => Err(words::refusal(&output)),
            }
        })
    }

    fn find<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Vec<LrmsId>, CallFailure>> {
        Box::pin(async move {
            let mut ids: Vec<LrmsId> = self.look(tag, &BTreeSet::new()).await?.entries.into_iter().filter(|e| e.tag == tag).map(|e| e.id).collect();
            let tag = tag.to_string();
            ids.extend(self.follow(move |books| books.named(&tag)).await?);
            ids.sort_unstable();
            ids.dedup();
            Ok(ids)
        })
    }

    fn entries<'a>(&'a self, prefix: &'a str, ids: &'a BTreeSet<LrmsId>) -> BoxFuture<'a, Result<Vec<Entry>, CallFailure>> {
        Box::pin(async move {
            let mut look = self.look(prefix, ids).await?;
            self.explain(&mut look.entries).await?;
            *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = qstat::by_queue(&look.waiting, &self.config.queues);
            Ok(look.entries)
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<Queue>, CallFailure>> {
        Box::pin(async {
            if let Some(why) = self.hidden.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return Err(CallFailure::Failed(why));
            }
            let text = self.asked(calls::qhost(self.call("qhost"))).await?;
            let configured = self.configured().await?;
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let gpus = self.gpus().await.unwrap_or_else(|why| {
                tracing::debug!("the GPUs of its machines: {why}");
                self.gpus.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, gpus)| gpus.clone())
            });
            let gpus = gpus.map_or(BTreeMap::new(), |gpus| gpus.machines);
            let environment = self.config.terms.environment.as_deref();
            let mut queues = qhost::queues(&text, &waiting, &configured, environment, &gpus).map_err(CallFailure::Failed)?;
            access::tell(&mut queues, &self.denied().await, self.config.accounts.len());
            Ok(queues)
        })
    }

    fn records<'a>(&'a self, ids: &'a [LrmsId]) -> BoxFuture<'a, Result<Vec<Record>, CallFailure>> {
        Box::pin(async move {
            let ids = ids.to_vec();
            self.follow(move |books| books.of(&ids)).await
        })
    }

    fn complaint(&self, _: &str) -> Option<How> {
        None
    }

    fn signals_removal_only(&self) -> bool {
        true
    }

    fn cancel<'a>(&'a self, account: &'a Account, tasks: &'a [(LrmsId, Vec<u32>)], _kill: bool) -> BoxFuture<'a, Result<(), CallFailure>> {
        Box::pin(async move {
            // It has one way: told to end at once, killed after the queue's `notify`.
            for call in calls::qdel(|| self.call("qdel"), tasks) {
                let output = self.hands.run(account, call).await?;
                match (words::not_removed(&output), output.code) {
                    (Some(line), _) => return Err(CallFailure::Failed(format!("qdel: {line}"))),
                    (None, None) => return Err(CallFailure::Unknown("qdel: killed".to_string())),
                    (None, Some(_)) => {}
                }
            }
            Ok(())
        })
    }
}
