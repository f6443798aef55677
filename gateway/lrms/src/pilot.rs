//! Pilots: agents as jobs of the LRMS, and tasks under them, so that 10,000 short tasks cost it a handful of jobs (as BigJob and glideinWMS did).
//!
//! To the provisioner it is a cloud without money: a launch is a submission, a machine is a job. Invariant: one agent a number, whatever the LRMS does: the
//! job's name is found again before anything is submitted, and its script claims the pilot's directory, which is never made anew, before it starts an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_gateway::config::{LrmsConfig, PilotsConfig};
use intergrid_gateway::rent::{Cloud, Launch};
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::join::replace;
use intergrid_proto::{Refusal, SiteId};
use intergrid_provision::{Outcome, Refused, Seen, SeenState};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::command::Account;
use crate::limits::{PILOT_DIRS_KEPT_MS, PILOT_TOKEN_MS};
use crate::lrms::{self, LrmsId, State, Submission, SubmitFailure};
use crate::script::check_base;
use crate::{Lrms, driver};

/// What each pilot runs, without its first lines.
const SCRIPT: &str = include_str!("pilot.sh");
/// The agent's binary, beside ours.
const AGENT_PROGRAM: &str = "grid-agent";
const CLAIM: &str = "claim";

/// A local resource manager as a provider of machines.
pub struct Pilots(Arc<Inner>);

struct Inner {
    lrms: Arc<dyn Lrms>,
    config: PilotsConfig,
    /// Directory of all pilots, on the shared file system.
    base: PathBuf,
    /// Their jobs are called so, and their number.
    prefix: String,
    /// The gateway's identity, with its CA's key.
    identity: PathBuf,
    program: PathBuf,
    /// One launch at a time: two of one number are told apart.
    one: Mutex<()>,
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
    alone_max: String,
    retire_after: String,
    stop_ends_tasks: bool,
}

impl Pilots {
    /// Of a gateway with this identity. Error: a directory or program that can't stand in a script.
    pub fn new(lrms: Arc<dyn Lrms>, config: &LrmsConfig, pilots: PilotsConfig, site: SiteId, identity: PathBuf) -> Result<Arc<Self>, Refusal> {
        let bad = |what: String| Refusal::invalid(format!("[pilots] {what}"));
        let base = driver::base(&config.directory, &Account::Own).join("pilots");
        let beside = || std::env::current_exe().map(|me| me.with_file_name(AGENT_PROGRAM));
        let program = pilots.program.clone().map_or_else(beside, Ok).map_err(|e| bad(format!("this program can't find itself: {e}")))?;
        check_base(&base).map_err(|e| bad(format!("directory: {e}")))?;
        check_base(&program).map_err(|e| bad(format!("program: {e}")))?;
        if !program.is_file() {
            let remedy = "name the agent's binary as `program`, where machines of the cluster see it";
            return Err(bad(format!("{} is not there", program.display())).remedy(remedy));
        }
        let prefix = format!("igp{}-", &site.to_string()[..12]);
        Ok(Arc::new(Pilots(Arc::new(Inner { lrms, config: pilots, base, prefix, identity, program, one: Mutex::default() }))))
    }
}

impl Inner {
    async fn launch(self: Arc<Self>, what: Launch) -> Outcome {
        let tag = format!("{}{}", self.prefix, what.number);
        let _one = self.one.lock().await;
        match self.lrms.find(&tag).await {
            Ok(jobs) if !jobs.is_empty() => return Outcome::Launched(tag),
            Ok(_) => {}
            // Nothing has been submitted by this call; an earlier one may have.
            Err(why) => {
                tracing::warn!(%tag, "a pilot can't be looked for: {why}");
                return Outcome::Unknown;
            }
        }
        let (me, kind, name) = (self.clone(), what.kind.clone(), tag.clone());
        let prepared = tokio::task::spawn_blocking(move || me.prepare(&name, &what).map(|made| (made, what))).await;
        let (directory, what) = match prepared {
            Ok(Ok((Some(directory), what))) => (directory, what),
            Ok(Ok((None, _))) => return Outcome::Refused(Refused::TokenSpent, "its job has started, and is over".into()),
            Ok(Err(why)) => return Outcome::Refused(Refused::Provider, why.to_string()),
            Err(_) => return Outcome::Refused(Refused::Provider, "its directory could not be made".into()),
        };
        let head = format!("grid_dir='{}' grid_program='{}'", directory.display(), self.program.display());
        let submission = Submission {
            tag: tag.clone(),
            account: Account::Own,
            queue: what.offer.machine,
            tasks: 1,
            slots: kind.slots,
            memory_bytes: kind.memory_bytes,
            time_limit_ms: Some(self.config.time_ms),
            directory,
            complaints: None,
            script: format!("#!/bin/sh\n{head}\n{SCRIPT}"),
        };
        match self.lrms.submit(&submission).await {
            Ok(_) => Outcome::Launched(tag),
            Err(SubmitFailure::Refused(kind, why)) => Outcome::Refused(
                match kind {
                    lrms::Refused::Later => Refused::Capacity,
                    lrms::Refused::Never | lrms::Refused::NoQueue => Refused::Limit,
                    lrms::Refused::NotAuthorised => Refused::Provider,
                },
                why,
            ),
            Err(SubmitFailure::Unknown(why)) => {
                tracing::warn!(%tag, "the answer to a pilot's submission is lost: {why}");
                Outcome::Unknown
            }
        }
    }

    /// Its directory, with configuration and token; None: its job has claimed it. Blocking.
    fn prepare(&self, tag: &str, what: &Launch) -> Result<Option<PathBuf>, Refusal> {
        let directory = self.base.join(tag);
        let failed = |e: io::Error| Refusal::invalid(format!("{}: {e}", directory.display())).remedy("is the shared file system there?");
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
            alone_max: format!("{}ms", c.alone_ms),
            retire_after: format!("{}ms", (c.time_ms - c.task_time_ms).max(1)),
            stop_ends_tasks: true,
        };
        let text = toml::to_string(&toml).map_err(|e| Refusal::invalid(format!("the configuration of {}: {e}", what.label)))?;
        replace(&directory.join("agent.toml"), text.as_bytes(), 0o600).map_err(failed)?;
        Ok(Some(directory))
    }

    async fn entries(&self) -> Option<BTreeMap<String, Vec<(LrmsId, bool)>>> {
        let mut by_tag: BTreeMap<String, Vec<(LrmsId, bool)>> = BTreeMap::new();
        match self.lrms.entries(&self.prefix).await {
            Ok(entries) => entries.into_iter().for_each(|e| by_tag.entry(e.tag).or_default().push((e.id, !matches!(e.state, State::Ended(_))))),
            Err(why) => {
                tracing::warn!("pilots can't be looked at: {why}");
                return None;
            }
        }
        Some(by_tag)
    }

    async fn list(self: Arc<Self>) -> Option<Vec<Seen>> {
        let by_tag = self.entries().await?;
        let number = |tag: &str| tag.strip_prefix(&self.prefix).and_then(|n| n.parse().ok());
        let seen = by_tag.iter().map(|(tag, jobs)| {
            let exists = jobs.iter().any(|(_, lives)| *lives);
            Seen { id: tag.clone(), number: number(tag), state: if exists { SeenState::Exists } else { SeenState::Ended } }
        });
        let seen: Vec<Seen> = seen.collect();
        let (base, known) = (self.base.clone(), by_tag.into_keys().collect::<BTreeSet<String>>());
        tokio::task::spawn_blocking(move || sweep(&base, &known, SystemTime::now()));
        Some(seen)
    }

    /// All jobs of this name are removed: a submission whose answer was lost may have made a second one, which has ended or will at its claim.
    async fn terminate(self: Arc<Self>, tag: String) -> Option<SeenState> {
        let jobs = self.entries().await?.remove(&tag).unwrap_or_default();
        let live: Vec<(LrmsId, Vec<u32>)> = jobs.iter().filter(|(_, lives)| *lives).map(|(id, _)| (*id, vec![1])).collect();
        if live.is_empty() {
            return (!jobs.is_empty()).then_some(SeenState::Ended);
        }
        if let Err(why) = self.lrms.cancel(&Account::Own, &live, false).await {
            tracing::warn!(%tag, "a pilot can't be removed: {why}");
        }
        Some(SeenState::Exists)
    }
}

/// Remove directories of pilots that are no longer listed, a good while after they were last written to.
fn sweep(base: &Path, known: &BTreeSet<String>, now: SystemTime) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let is_old = |e: &fs::DirEntry| {
            let written = e.metadata().and_then(|m| m.modified()).ok()?;
            now.duration_since(written).ok().map(|age| age >= Duration::from_millis(PILOT_DIRS_KEPT_MS))
        };
        if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) && is_old(&entry) == Some(true) {
            _ = fs::remove_dir_all(entry.path());
        }
    }
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
    fn stop(&self, _: BTreeSet<String>) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}
