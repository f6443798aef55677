//! Pilots: agents as jobs of the LRMS, and tasks under them, so that 10,000 short tasks cost it a handful of jobs (as BigJob and glideinWMS did).
//!
//! To the provisioner it is a cloud without money: a launch is a submission, a machine is a job. Invariant: one agent a number, whatever the LRMS does: our
//! job of that name, or number, is looked for before anything is submitted, and its script claims the pilot's directory, which is not made anew for a
//! month, before it starts an agent. Whoever removes a job claims it, too. So all laws of a cloud are kept; that a number is spent, for as long as the
//! directory is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_gateway::config::{LrmsConfig, PilotsConfig};
use intergrid_gateway::rent::{Cloud, Launch};
use intergrid_proto::limits::CREDIT_MS;
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::join::replace;
use intergrid_proto::{Refusal, Shape, SiteId};
use intergrid_provision::{Outcome, Refused, Seen, SeenState};
use serde::Serialize;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;

use crate::command::{Account, own_account};
use crate::hand::files::{self, Ask};
use crate::limits::{PILOT_DIRS_KEPT_MS, PILOT_JOIN_MS, PILOT_LOOK_MS, PILOT_OWN_BYTES, PILOT_OWN_MS, PILOT_TOKEN_MS};
use crate::lrms::{self, LrmsId, State, Submission, SubmitFailure};
use crate::script::check_base;
use crate::{Lrms, driver};

/// What each pilot runs, without its first lines.
const SCRIPT: &str = include_str!("pilot.sh");
/// The agent's binary, beside ours.
const AGENT_PROGRAM: &str = "grid-agent";
const CLAIM: &str = "claim";
/// In a pilot's directory: the number that the LRMS gave it.
const JOB: &str = "job";

/// A local resource manager as a provider of machines.
pub struct Pilots(Arc<Inner>);

struct Inner {
    lrms: Arc<dyn Lrms>,
    config: PilotsConfig,
    /// The account's directory on the shared file system ...
    home: PathBuf,
    /// ... and that of all pilots in it.
    base: PathBuf,
    /// Their jobs are called so, and their number.
    prefix: String,
    /// Jobs that are tasks are called so.
    tasks: String,
    /// The gateway's identity, with its CA's key.
    identity: PathBuf,
    program: PathBuf,
    /// One launch at a time: two of one number are told apart.
    one: Mutex<()>,
    /// Our own account's name.
    own: OnceCell<String>,
    /// Works on the shared file system, which may hang: never two threads of it.
    files: std::sync::Mutex<()>,
    /// The same for a look at their numbers, which nothing waits for.
    looks: std::sync::Mutex<()>,
    /// As that look found them last: jobs that may be there, whatever they are called by now.
    known: std::sync::Mutex<BTreeMap<LrmsId, String>>,
    /// Whose end was told.
    told: std::sync::Mutex<BTreeSet<String>>,
}

#[derive(Serialize)]
struct AgentToml<'a> {
    name: &'a str,
    gateway: &'a str,
    identity: &'a str,
    state: &'a str,
    token: &'a Path,
    slots: u32,
    memory: String,
    gpus: u32,
    alone_max: String,
    retire_after: String,
    ends_after: String,
    stop_ends_tasks: bool,
}

impl Pilots {
    /// Of a gateway with this identity. Error: a directory or program that can't stand in a script.
    pub fn new(lrms: Arc<dyn Lrms>, config: &LrmsConfig, pilots: PilotsConfig, site: SiteId, identity: PathBuf) -> Result<Arc<Self>, Refusal> {
        let bad = |what: String| Refusal::invalid(format!("[pilots] {what}"));
        let home = driver::base(&config.directory, &Account::Own);
        let base = home.join("pilots");
        let beside = || std::env::current_exe().map(|me| me.with_file_name(AGENT_PROGRAM));
        let program = pilots.program.clone().map_or_else(beside, Ok).map_err(|e| bad(format!("this program can't find itself: {e}")))?;
        check_base(&base).map_err(|e| bad(format!("directory: {e}")))?;
        check_base(&program).map_err(|e| bad(format!("program: {e}")))?;
        if !program.is_file() {
            let remedy = "name the agent's binary as `program`, where machines of the cluster see it";
            return Err(bad(format!("{} is not there", program.display())).remedy(remedy));
        }
        let (prefix, tasks) = (format!("igp{}-", &site.to_string()[..12]), driver::prefix(site));
        Ok(Arc::new(Pilots(Arc::new(Inner {
            lrms,
            config: pilots,
            home,
            base,
            prefix,
            tasks,
            identity,
            program,
            one: Mutex::default(),
            own: OnceCell::new(),
            files: std::sync::Mutex::default(),
            looks: std::sync::Mutex::default(),
            known: std::sync::Mutex::default(),
            told: std::sync::Mutex::default(),
        }))))
    }
}

impl Inner {
    async fn launch(self: Arc<Self>, what: Launch) -> Outcome {
        let tag = format!("{}{}", self.prefix, what.number);
        let _one = self.one.lock().await;
        // What has begun, and is no longer listed, has left its claim.
        match self.entries().await {
            Ok(jobs) => match jobs.get(&tag) {
                Some(jobs) if jobs.iter().any(|(_, lives)| *lives) => return Outcome::Launched(tag),
                Some(_) => return Outcome::Refused(Refused::TokenSpent, "its job is over".into()),
                None => {}
            },
            // Nothing has been submitted by this call; an earlier one may have.
            Err(why) => return Outcome::Unknown(why),
        }
        let (me, kind, name) = (self.clone(), what.kind.clone(), tag.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            // An earlier call still works there: the file system hangs.
            let _alone = me.files.try_lock().ok()?;
            Some(me.prepare(&name, &what).map(|made| (made, what)))
        });
        let (directory, what) = match prepared.await {
            Ok(Some(Ok((Some(directory), what)))) => (directory, what),
            Ok(Some(Ok((None, _)))) => return Outcome::Refused(Refused::TokenSpent, "its job has started, and is over".into()),
            Ok(Some(Err(why))) => return Outcome::Refused(Refused::by_us(&why), why.to_string()),
            Ok(None) | Err(_) => return Outcome::Unknown("the shared file system does not answer".into()),
        };
        let head = format!("grid_dir='{}' grid_program='{}'", directory.display(), self.program.display());
        let submission = Submission {
            tag: tag.clone(),
            account: Account::Own,
            queue: what.offer.machine,
            tasks: 1,
            shape: Shape { gpus: kind.gpus, ..Shape::new(kind.slots, kind.memory_bytes.saturating_add(PILOT_OWN_BYTES)) },
            time_limit_ms: Some(self.config.time_ms),
            directory,
            complaints: None,
            script: format!("#!/bin/sh\n{head}\n{SCRIPT}"),
        };
        match self.lrms.submit(&submission).await {
            Ok(id) => {
                // Somebody may rename it before it begins, and leaves its claim.
                lock(&self.known).insert(id, tag.clone());
                let (me, file) = (self.clone(), submission.directory.join(JOB));
                let write = tokio::task::spawn_blocking(move || {
                    let _alone = lock(&me.files);
                    replace(&file, format!("{id}\n").as_bytes(), 0o600)
                });
                if !matches!(timeout(Duration::from_millis(PILOT_LOOK_MS), write).await, Ok(Ok(Ok(())))) {
                    tracing::debug!(%tag, "the number of a pilot can't be written down: until it begins, it is known by its name");
                }
                Outcome::Launched(tag)
            }
            Err(SubmitFailure::Refused(kind, why)) => Outcome::Refused(
                match kind {
                    lrms::Refused::Later => Refused::Capacity,
                    lrms::Refused::Never | lrms::Refused::TooManyTasks | lrms::Refused::NoQueue => Refused::Limit,
                    lrms::Refused::NotAuthorised => Refused::Provider,
                },
                why,
            ),
            Err(doubt @ (SubmitFailure::Doubtful(..) | SubmitFailure::Unknown(_))) => {
                tracing::warn!(%tag, "not known whether a pilot is submitted: {doubt}");
                Outcome::Unknown(doubt.to_string())
            }
        }
    }

    /// Its directory, with configuration and token; None: its job has claimed it. Blocking.
    fn prepare(&self, tag: &str, what: &Launch) -> Result<Option<PathBuf>, Refusal> {
        let directory = self.base.join(tag);
        let failed = |e: io::Error| Refusal::invalid(format!("{}: {e}", directory.display())).remedy("is the shared file system there?");
        // Somebody else's directory could be given other words under our agent's name.
        files::serve(&self.home, Ask::Open, &[]).map_err(|e| Refusal::invalid(format!("{}: {e}", self.home.display())))?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        if directory.join(CLAIM).try_exists().map_err(failed)? {
            return Ok(None);
        }
        let token = directory.join("token");
        let text = issue::token(&self.identity, &what.label, Validity::of(Duration::from_millis(PILOT_TOKEN_MS)))?;
        replace(&token, text.as_bytes(), 0o600).map_err(failed)?;
        let c = &self.config;
        let toml = AgentToml {
            name: &what.label,
            gateway: c.gateway.as_deref().unwrap_or(&what.endpoint),
            identity: "identity",
            state: "state",
            token: &token,
            slots: what.kind.slots,
            memory: format!("{}B", what.kind.memory_bytes),
            gpus: what.kind.gpus,
            alone_max: format!("{}ms", c.alone_ms),
            retire_after: format!("{}ms", (c.time_ms - c.task_time_ms).max(1)),
            ends_after: format!("{}ms", c.time_ms.saturating_sub(PILOT_OWN_MS).max(1)),
            stop_ends_tasks: true,
        };
        let text = toml::to_string(&toml).map_err(|e| Refusal::invalid(format!("the configuration of {}: {e}", what.label)))?;
        replace(&directory.join("agent.toml"), text.as_bytes(), 0o600).map_err(failed)?;
        Ok(Some(directory))
    }

    /// Error: why they can't be looked at, which the log has, too.
    async fn entries(self: &Arc<Self>) -> Result<BTreeMap<String, Vec<(LrmsId, bool)>>, String> {
        let mut by_tag: BTreeMap<String, Vec<(LrmsId, bool)>> = BTreeMap::new();
        let told = |why: String| {
            tracing::warn!("{why}");
            why
        };
        let own = self.own.get_or_try_init(own_account).await.map_err(|why| told(format!("our own account's name is not known: {why}")))?;
        let known = self.numbers().await;
        let ids = known.keys().copied().collect();
        let entries = self.lrms.entries(&self.prefix, &ids).await.map_err(|why| told(format!("pilots can't be looked at: {why}")))?;
        // Anybody can give his job the name of one of ours.
        for e in entries.into_iter().filter(|e| e.owner.is_empty() || e.owner == *own) {
            // A number that was given twice may be a task's of ours.
            let renamed = known.get(&e.id).filter(|_| !e.tag.starts_with(&self.tasks));
            let tag = if e.tag.starts_with(&self.prefix) { Some(&e.tag) } else { renamed };
            if let Some(tag) = tag {
                by_tag.entry(tag.clone()).or_default().push((e.id, !matches!(e.state, State::Ended(_))));
            }
        }
        Ok(by_tag)
    }

    /// Jobs that may be there, by number.
    async fn numbers(self: &Arc<Self>) -> BTreeMap<LrmsId, String> {
        let me = self.clone();
        let look = tokio::task::spawn_blocking(move || {
            let _alone = me.looks.try_lock().ok()?;
            Some(numbers(&me.base, &me.prefix, me.config.time_ms, SystemTime::now()))
        });
        let found = timeout(Duration::from_millis(PILOT_LOOK_MS), look).await;
        let mut known = lock(&self.known);
        if let Ok(Ok(Some(found))) = found {
            *known = found;
        }
        known.clone()
    }

    async fn list(self: Arc<Self>) -> Option<Vec<Seen>> {
        let by_tag = self.entries().await.ok()?;
        let number = |tag: &str| tag.strip_prefix(&self.prefix).and_then(|n| n.parse().ok());
        let seen = by_tag.iter().map(|(tag, jobs)| {
            let exists = jobs.iter().any(|(_, lives)| *lives);
            Seen {
                id: tag.clone(),
                number: number(tag),
                machine: None,
                state: if exists { SeenState::Exists } else { SeenState::Ended },
                ended_ms: None,
            }
        });
        let mut seen: Vec<Seen> = seen.collect();
        let me = self.clone();
        let unlisted = tokio::task::spawn_blocking(move || {
            // An earlier look still works there: the file system hangs.
            let _alone = me.files.try_lock().ok()?;
            Some(sweep(&me.base, &by_tag.into_keys().collect(), SystemTime::now()))
        });
        // Grid Engine lists nothing that is over. What has begun, and is in the books, is.
        let mut unlisted = unlisted.await.ok().flatten().unwrap_or_default();
        // Other gateways of this account have theirs beside ours.
        unlisted.retain(|tag, _| number(tag).is_some() && !lock(&self.told).contains(tag));
        let ids: Vec<LrmsId> = unlisted.values().map(|(id, _)| *id).collect();
        let records = if ids.is_empty() { Vec::new() } else { self.lrms.records(&ids).await.unwrap_or_default() };
        let is_over = |tag: &str, id, at_s| records.iter().any(|r| r.id == id && (r.tag == tag || r.ran_at(at_s)));
        for (tag, _) in unlisted.into_iter().filter(|(tag, (id, at_s))| is_over(tag, *id, *at_s)) {
            seen.push(Seen { number: number(&tag), id: tag.clone(), machine: None, state: SeenState::Ended, ended_ms: None });
            lock(&self.told).insert(tag);
        }
        Some(seen)
    }

    /// All jobs of this name are removed: a submission whose answer was lost may have made a second one, which has ended or will at its claim.
    async fn terminate(self: Arc<Self>, tag: String) -> Option<SeenState> {
        let jobs = self.entries().await.ok()?.remove(&tag).unwrap_or_default();
        let live: Vec<(LrmsId, Vec<u32>)> = jobs.iter().filter(|(_, lives)| *lives).map(|(id, _)| (*id, vec![1])).collect();
        if live.is_empty() {
            // Of one that is not listed the next look knows more.
            return (!jobs.is_empty()).then_some(SeenState::Ended);
        }
        if let Err(why) = self.lrms.cancel(&Account::Own, &live, false).await {
            tracing::warn!(%tag, "a pilot can't be removed: {why}");
        }
        // One that has not begun has no claim, and its number would be free again once it is no longer listed.
        let me = self.clone();
        let claimed = tokio::task::spawn_blocking(move || {
            let _alone = me.files.try_lock().ok()?;
            fs::File::create_new(me.base.join(tag).join(CLAIM)).ok()
        });
        _ = claimed.await;
        Some(SeenState::Exists)
    }
}

/// What a task can take in a new pilot at most, as its agent tells when it has joined.
pub fn time_max_ms(pilots: &PilotsConfig) -> u64 {
    pilots.time_ms.saturating_sub(PILOT_OWN_MS + PILOT_JOIN_MS + CREDIT_MS).max(1)
}

/// Jobs that may be there, by their numbers: those that have begun for twice their time, the others for as long as they can join. A number that is given
/// again after that is another's.
pub(crate) fn numbers(base: &Path, prefix: &str, time_ms: u64, now: SystemTime) -> BTreeMap<LrmsId, String> {
    let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()).saturating_mul(1_000);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let Some(tag) = entry.file_name().to_str().filter(|name| name.starts_with(prefix)).map(str::to_string) else { continue };
        let read = |name: &str, most_ms: u64| Some((number(&entry.path().join(name))?, most_ms));
        let Some(((id, at_s), most_ms)) = read(CLAIM, time_ms.saturating_mul(2)).or_else(|| read(JOB, PILOT_TOKEN_MS)) else { continue };
        if now_ms <= at_s.saturating_mul(1_000).saturating_add(most_ms) && found.get(&id).is_none_or(|(_, other_s)| *other_s < at_s) {
            found.insert(id, (tag, at_s));
        }
    }
    found.into_iter().map(|(id, (tag, _))| (id, tag)).collect()
}

/// The number that a file begins with, and when that was written, in seconds since 1970.
fn number(path: &Path) -> Option<(LrmsId, u64)> {
    let id = fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()?;
    let at = fs::metadata(path).and_then(|m| m.modified()).ok()?;
    Some((LrmsId(id), at.duration_since(UNIX_EPOCH).ok()?.as_secs()))
}

/// Jobs, by their names, that have begun and are not listed: their numbers, and when they began. Directories of theirs are removed a good while after they
/// were last written to.
fn sweep(base: &Path, listed: &BTreeSet<String>, now: SystemTime) -> BTreeMap<String, (LrmsId, u64)> {
    let mut unlisted = BTreeMap::new();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let Some(tag) = entry.file_name().to_str().filter(|name| !listed.contains(*name)).map(str::to_string) else { continue };
        let written = entry.metadata().and_then(|m| m.modified()).ok();
        if written.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age >= Duration::from_millis(PILOT_DIRS_KEPT_MS)) {
            _ = fs::remove_dir_all(entry.path());
            continue;
        }
        if let Some(begun) = number(&entry.path().join(CLAIM)) {
            unlisted.insert(tag, begun);
        }
    }
    unlisted
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cloud for Pilots {
    fn name(&self) -> &'static str {
        "pilots"
    }

    fn launch(&self, what: Launch) -> BoxFuture<'static, Outcome> {
        self.0.clone().launch(what).boxed()
    }

    fn terminate(&self, id: String) -> BoxFuture<'static, Option<SeenState>> {
        self.0.clone().terminate(id).boxed()
    }

    fn list(&self) -> BoxFuture<'static, Option<Vec<Seen>>> {
        self.0.clone().list().boxed()
    }

    /// They go on, and the next start finds them; without one they end by themselves.
    fn stop(&self, _: BTreeSet<String>) -> BoxFuture<'static, BTreeSet<String>> {
        std::future::ready(BTreeSet::new()).boxed()
    }
}
