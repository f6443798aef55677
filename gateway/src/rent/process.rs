//! A cloud of processes on this machine: each "machine" is an agent, started for its number, and gone when its process is. For trying a catalogue and a
//! budget without an account; the prices are as fictitious as the machines.
//!
//! A machine's tasks end with it: it has ended when neither its agent nor anything of its tasks runs, whoever ended the agent.
//!
//! A number is spent when its directory is there: a second launch finds the process, or says that it is gone. When the directory is removed a mark stays, for
//! as long as a launch may be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use intergrid_provision::{Outcome, Refused, Seen, SeenState};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::ChildStdin;

use super::{Cloud, Launch};
use crate::backends::agents::left::end_tasks;
use crate::backends::agents::process::{self, CONFIG_FILE, Plan, Process, ProcessConfig};
use crate::core::rent::number;
use crate::durable::blocking;
use crate::engine::lock;

/// After its label, the name of the file that stays.
const MARK: &str = ".ended";
/// No launch is repeated for so long.
const MARKS_KEPT: Duration = Duration::from_secs(25 * 3_600);

/// Processes on this machine.
pub struct ProcessCloud(Arc<Inner>);

struct Inner {
    config: ProcessConfig,
    /// Of agents that die with us.
    stdins: Mutex<BTreeMap<String, ChildStdin>>,
    /// Directories of machines whose end has been told: removed at the next look.
    told: Mutex<BTreeSet<String>>,
    /// One launch, or look, at a time.
    one: tokio::sync::Mutex<()>,
}

impl ProcessCloud {
    /// Under the state directory of a gateway; sizes come with each launch.
    pub fn new(config: ProcessConfig) -> Arc<Self> {
        Arc::new(ProcessCloud(Arc::new(Inner { config, stdins: Mutex::default(), told: Mutex::default(), one: tokio::sync::Mutex::default() })))
    }
}

impl Inner {
    async fn launch(&self, what: Launch) -> Outcome {
        let (slots, memory_bytes, gpus) = (Some(what.kind.slots), Some(what.kind.memory_bytes), Some(what.kind.gpus));
        let config = ProcessConfig { slots, memory_bytes, gpus, stop_ends_tasks: true, ..self.config.clone() };
        let plan = match Plan::new(&config, &what.label, &what.endpoint) {
            Ok(plan) => plan,
            Err(why) => return Outcome::Refused(Refused::Provider, why.to_string()),
        };
        // Nobody looks before it runs: a directory without a process would be a machine that has ended.
        let _one = self.one.lock().await;
        let (look, with, label, mark) = (plan.clone(), config.clone(), what.label.clone(), self.mark(&what.label));
        let there = blocking(move || {
            if process::find(&look.file).is_some() {
                return Ok(Some(Outcome::Launched(label)));
            }
            if look.file.exists() || mark.exists() {
                return Ok(Some(Outcome::Refused(Refused::TokenSpent, "its process has ended".into())));
            }
            look.prepare(&with).map(|()| None)
        });
        let spawned = match there.await {
            Ok(Some(known)) => return known,
            Ok(None) => plan.spawn(&config),
            Err(why) => Err(why),
        };
        match spawned {
            Ok(Process::Ours(mut child, stdin)) => {
                if let Some(stdin) = stdin {
                    lock(&self.stdins).insert(what.label.clone(), stdin);
                }
                // Reaped when it ends.
                tokio::spawn(async move { _ = child.wait().await });
                Outcome::Launched(what.label)
            }
            Ok(Process::Adopted(_)) => Outcome::Launched(what.label),
            Err(why) => {
                _ = fs::remove_dir_all(config.dir(&what.label));
                Outcome::Refused(Refused::by_us(&why), why.to_string())
            }
        }
    }

    /// True: neither its agent nor anything of its tasks runs any more.
    async fn end(&self, label: &str) -> bool {
        let dir = self.config.dir(label);
        let file = dir.join(CONFIG_FILE);
        let look = file.clone();
        if let Ok(Some(pid)) = tokio::task::spawn_blocking(move || process::find(&look)).await {
            process::end(Process::Adopted(pid)).await;
        }
        lock(&self.stdins).remove(label);
        // In this order: what is about to become a task has its agent's command line until then.
        let is_over = move || process::find(&file).is_none() && end_tasks(&BTreeSet::from([dir])).is_empty();
        tokio::task::spawn_blocking(is_over).await.unwrap_or(false)
    }

    fn machines(&self) -> Option<Vec<String>> {
        match fs::read_dir(self.config.state.join("agents")) {
            Ok(entries) => {
                let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
                Some(names.filter(|name| number(&self.config.gateway, name).is_some()).collect())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// Machines that end when we are stopped, or have ended.
    fn idle(&self, busy: &BTreeSet<String>) -> BTreeSet<String> {
        let runs = |name: &String| process::find(&self.config.dir(name).join(CONFIG_FILE)).is_some();
        let is_left = |name: &String| !self.config.die_with_parent && busy.contains(name) && runs(name);
        self.machines().unwrap_or_default().into_iter().filter(|name| !is_left(name)).collect()
    }

    /// Of a machine that has ended, and whose directory is removed.
    fn mark(&self, label: &str) -> PathBuf {
        self.config.state.join("agents").join(format!("{label}{MARK}"))
    }

    /// Remove the marks of which no launch can know any more.
    fn sweep(&self) {
        for entry in fs::read_dir(self.config.state.join("agents")).into_iter().flatten().flatten() {
            let is_mark = entry.file_name().to_str().is_some_and(|name| name.ends_with(MARK));
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
            if is_mark && age > MARKS_KEPT {
                _ = fs::remove_file(entry.path());
            }
        }
    }

    fn list(&self) -> Option<Vec<Seen>> {
        self.sweep();
        let names = self.machines()?;
        let machines: BTreeMap<PathBuf, String> = names.into_iter().map(|name| (self.config.dir(&name), name)).collect();
        let run = process::running(&machines.keys().map(|dir| dir.join(CONFIG_FILE)).collect());
        // Of an agent that somebody else has killed, tasks run on.
        let dead: BTreeSet<PathBuf> = machines.keys().filter(|dir| !run.contains(&dir.join(CONFIG_FILE))).cloned().collect();
        let moved: BTreeMap<&PathBuf, Pid> = dead.iter().filter_map(|dir| Some((dir, process::moved(&dir.join(CONFIG_FILE))?))).collect();
        for (dir, pid) in &moved {
            tracing::warn!("{} was moved here while its agent ran, which would not find its files: it is ended, with its tasks", dir.display());
            _ = kill_process(*pid, Signal::KILL);
        }
        let left = end_tasks(&dead);
        let (mut seen, mut told) = (Vec::new(), lock(&self.told));
        for (dir, id) in machines {
            // What was killed just now is looked for again.
            let ended = dead.contains(&dir) && !left.contains(&dir) && !moved.contains_key(&dir);
            if ended && !told.insert(id.clone()) && fs::write(self.mark(&id), "").is_ok() {
                _ = fs::remove_dir_all(self.config.dir(&id));
                told.remove(&id);
                continue;
            }
            seen.push(Seen {
                number: number(&self.config.gateway, &id),
                id,
                machine: None,
                state: if ended { SeenState::Ended } else { SeenState::Exists },
                ended_ms: None,
            });
        }
        Some(seen)
    }
}

impl Cloud for ProcessCloud {
    fn name(&self) -> &'static str {
        "process"
    }

    fn launch(&self, what: Launch) -> BoxFuture<'static, Outcome> {
        let inner = self.0.clone();
        async move { inner.launch(what).await }.boxed()
    }

    fn terminate(&self, id: String) -> BoxFuture<'static, Option<SeenState>> {
        let inner = self.0.clone();
        async move {
            number(&inner.config.gateway, &id)?;
            Some(if inner.end(&id).await { SeenState::Ended } else { SeenState::Exists })
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'static, Option<Vec<Seen>>> {
        let inner = self.0.clone();
        async move {
            let look = inner.clone();
            let _one = inner.one.lock().await;
            tokio::task::spawn_blocking(move || look.list()).await.ok().flatten()
        }
        .boxed()
    }

    fn ends_at_stop(&self, busy: &BTreeSet<String>) -> BTreeSet<String> {
        self.0.idle(busy)
    }

    /// Idle ones end: there is nobody who could end them later but the next start of this gateway.
    fn stop(&self, busy: BTreeSet<String>) -> BoxFuture<'static, BTreeSet<String>> {
        let inner = self.0.clone();
        async move {
            let idle = inner.idle(&busy);
            let ended = join_all(idle.iter().map(|name| inner.end(name))).await;
            idle.into_iter().zip(ended).filter_map(|(name, ended)| ended.then_some(name)).collect()
        }
        .boxed()
    }
}
