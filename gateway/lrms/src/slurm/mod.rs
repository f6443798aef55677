//! Slurm, by its own commands: sbatch, squeue, sinfo, scancel, scontrol, and sacct where accounting is on.
//!
//! One squeue shows all jobs of all accounts. What users can write, a job's name above all, is kept from looking like a record (see [`squeue`]). Completion
//! records come from a program of ours that the controller runs, or from sacct. It has been tried with 22.05; later versions speak alike.

pub mod books;
pub mod calls;
pub mod doctor;
pub mod sinfo;
pub mod squeue;
pub mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use intergrid_gateway::config::LrmsConfig;

use crate::command::{Account, Call, CallFailure, Hands, Output, own_account};
use crate::limits::SUBMISSION_TASKS_MAX;
use crate::lrms::{Entry, How, Lrms, LrmsId, Queue, Record, Submission, SubmitFailure};
use books::Files;

/// Where it says what became of jobs that are over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Books {
    /// Nowhere but in the queue, for as long as it lists them (`MinJobAge`).
    #[default]
    None,
    /// The directory of our completion program's records.
    Files(PathBuf),
    /// sacct.
    Sacct,
}

/// How it is spoken to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlurmConfig {
    /// Directory of its commands; absent: they are on the usual path.
    pub commands: Option<PathBuf>,
    /// `SLURM_CONF`; absent: the usual one.
    pub conf: Option<PathBuf>,
    /// Completion records.
    pub books: Books,
}

impl SlurmConfig {
    /// As a gateway's configuration has it.
    pub fn of(config: &LrmsConfig) -> Self {
        let books = match &config.records {
            Some(dir) => Books::Files(dir.clone()),
            None if config.accounting => Books::Sacct,
            None => Books::None,
        };
        SlurmConfig { commands: config.commands.clone(), conf: config.conf.clone(), books }
    }
}

/// A Slurm cluster.
#[derive(Debug)]
pub struct Slurm {
    config: SlurmConfig,
    hands: Hands,
    /// Tasks that wait, by partition, as the last look showed it.
    waiting: Mutex<BTreeMap<String, u64>>,
    /// `KillWait`, as the configuration said it last.
    kill_wait_ms: Mutex<Option<u64>>,
    files: Arc<Mutex<Files>>,
}

impl Slurm {
    /// Nothing is run yet.
    pub fn new(config: SlurmConfig) -> Self {
        Slurm { config, hands: Hands, waiting: Mutex::default(), kill_wait_ms: Mutex::default(), files: Arc::default() }
    }

    /// One of its commands.
    pub fn call(&self, program: &str) -> Call {
        let program = self.config.commands.as_ref().map_or_else(|| OsString::from(program), |dir| dir.join(program).into());
        let mut call = Call::new(program);
        call.env.extend(self.config.conf.iter().map(|conf| ("SLURM_CONF".to_string(), conf.clone().into_os_string())));
        call
    }

    /// Where its completion records are.
    pub fn books(&self) -> &Books {
        &self.config.books
    }

    /// `scontrol show config`.
    pub async fn controller(&self) -> Result<sinfo::Controller, CallFailure> {
        let controller = sinfo::Controller::parse(&self.asked(calls::show_config(self.call("scontrol"))).await?);
        if let Some(ms) = controller.kill_wait_ms() {
            *self.kill_wait_ms.lock().unwrap_or_else(PoisonError::into_inner) = Some(ms);
        }
        Ok(controller)
    }

    async fn asked(&self, call: Call) -> Result<String, CallFailure> {
        self.hands.asked(call).await
    }

    async fn follow<T: Send + 'static>(&self, dir: PathBuf, look: impl FnOnce(&Files) -> T + Send + 'static) -> Result<T, CallFailure> {
        let files = self.files.clone();
        let read = move || {
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            files.follow(&dir).map(|()| look(&files))
        };
        tokio::task::spawn_blocking(read).await.map_err(|e| CallFailure::Unknown(e.to_string()))?.map_err(CallFailure::Failed)
    }
}

/// Ends each record of one look; nobody can know it beforehand.
fn mark() -> String {
    let random = || std::hash::RandomState::new().build_hasher().finish();
    format!("Z{:016x}{:016x}", random(), random())
}

/// Of a removal: did it fail for another reason than that something is gone already?
fn removed(output: &Output) -> Result<(), CallFailure> {
    const GONE: [&str; 3] = ["Invalid job id specified", "already completing or completed", "Job/step already"];
    let bad = |line: &&str| !line.trim().is_empty() && !GONE.iter().any(|gone| line.contains(gone));
    match output.stderr.lines().find(bad) {
        None if output.code.is_some() => Ok(()),
        None => Err(CallFailure::Unknown("scancel: killed".to_string())),
        Some(_) if output.is_good() => Ok(()),
        Some(line) => Err(CallFailure::Failed(format!("scancel: {line}"))),
    }
}

impl Lrms for Slurm {
    fn name(&self) -> &'static str {
        "slurm"
    }

    fn tasks_max(&self) -> BoxFuture<'_, Result<u32, CallFailure>> {
        Box::pin(async {
            let said = self.controller().await?.array_tasks_max();
            match said.unwrap_or(1).min(SUBMISSION_TASKS_MAX as u32) {
                0 => Err(CallFailure::Failed("scontrol: MaxArraySize is 0 or 1: arrays are turned off, and are needed".to_string())),
                n => Ok(n),
            }
        })
    }

    fn submit<'a>(&'a self, submission: &'a Submission) -> BoxFuture<'a, Result<LrmsId, SubmitFailure>> {
        Box::pin(async move {
            let call = calls::sbatch(self.call("sbatch"), submission);
            let output = match self.hands.run(&submission.account, call).await {
                Ok(output) => output,
                Err(CallFailure::NotRun(why)) => return Err(SubmitFailure::Refused(crate::lrms::Refused::Later, why)),
                Err(CallFailure::Failed(why) | CallFailure::Unknown(why)) => return Err(words::unheard(why)),
            };
            match squeue::submitted(&output.stdout).filter(|_| output.is_good()) {
                Some(id) => Ok(id),
                None => Err(words::refusal(&output)),
            }
        })
    }

    fn find<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Vec<LrmsId>, CallFailure>> {
        Box::pin(async move {
            let mut ids = squeue::ids(&self.asked(calls::squeue_named(self.call("squeue"), tag)).await?).map_err(CallFailure::Failed)?;
            let more = match &self.config.books {
                Books::None => Vec::new(),
                Books::Files(dir) => {
                    let tag = tag.to_string();
                    self.follow(dir.clone(), move |files| files.named(&tag)).await?
                }
                Books::Sacct => squeue::ids(&self.asked(calls::sacct_named(self.call("sacct"), tag)).await?).map_err(CallFailure::Failed)?,
            };
            ids.extend(more);
            ids.sort_unstable();
            ids.dedup();
            Ok(ids)
        })
    }

    fn entries<'a>(&'a self, prefix: &'a str, ids: &'a BTreeSet<LrmsId>) -> BoxFuture<'a, Result<Vec<Entry>, CallFailure>> {
        Box::pin(async move {
            let mark = mark();
            let text = self.asked(calls::squeue(self.call("squeue"), &mark)).await?;
            let look = squeue::look(&text, &mark, prefix, ids).map_err(CallFailure::Failed)?;
            *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = look.waiting;
            Ok(look.entries)
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<Queue>, CallFailure>> {
        Box::pin(async {
            let text = self.asked(calls::sinfo(self.call("sinfo"))).await?;
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let kill_wait_ms = *self.kill_wait_ms.lock().unwrap_or_else(PoisonError::into_inner);
            let queues = sinfo::queues(&text, &waiting).map_err(CallFailure::Failed)?;
            Ok(queues.into_iter().map(|q| Queue { kill_wait_ms, ..q }).collect())
        })
    }

    fn blind(&self) -> BoxFuture<'_, Result<Option<String>, CallFailure>> {
        Box::pin(async {
            let (controller, me) = (self.controller().await?, own_account().await?);
            if !controller.hides_jobs_from(&me, "") {
                return Ok(None);
            }
            // Without books nobody is an operator.
            let level = self.asked(calls::admin_level(self.call("sacctmgr"), &me)).await.unwrap_or_default();
            Ok(controller.hides_jobs_from(&me, &level).then(|| format!("Slurm's PrivateData keeps the jobs of other accounts from {me}")))
        })
    }

    fn records<'a>(&'a self, ids: &'a [LrmsId]) -> BoxFuture<'a, Result<Vec<Record>, CallFailure>> {
        Box::pin(async move {
            match &self.config.books {
                Books::None => Ok(Vec::new()),
                Books::Files(dir) => {
                    let ids = ids.to_vec();
                    self.follow(dir.clone(), move |files| files.of(&ids)).await
                }
                Books::Sacct => {
                    let mut records = Vec::new();
                    for ids in ids.chunks(calls::BOOKS_JOBS_MAX) {
                        let mark = mark();
                        let text = self.asked(calls::sacct(self.call("sacct"), ids, &mark)).await?;
                        records.extend(books::sacct(&text, &mark).map_err(CallFailure::Failed)?);
                    }
                    Ok(records)
                }
            }
        })
    }

    fn complaint(&self, text: &str) -> Option<How> {
        words::complaint(text)
    }

    fn cancel<'a>(&'a self, account: &'a Account, tasks: &'a [(LrmsId, Vec<u32>)], kill: bool) -> BoxFuture<'a, Result<(), CallFailure>> {
        Box::pin(async move {
            for tasks in tasks.chunks(calls::CANCEL_JOBS_MAX) {
                removed(&self.hands.run(account, calls::scancel(self.call("scancel"), tasks, kill)).await?)?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_removed() {
        let said = |code, stderr: &str| removed(&Output { code: Some(code), stdout: String::new(), stderr: stderr.into() });
        assert_eq!(Ok(()), said(0, ""));
        assert_eq!(Ok(()), said(1, "scancel: error: Kill job error on job id 28_1: Invalid job id specified\n"));
        assert!(matches!(said(210, "scancel: error: Kill job error on job id 22: Access/permission denied\n"), Err(CallFailure::Failed(_))));
        assert!(matches!(said(1, "scancel: error: Unable to contact slurm controller (connect failure)\n"), Err(CallFailure::Failed(_))));
    }

    #[test]
    fn marks_are_never_alike() {
        let (one, other) = (mark(), mark());
        assert!(one != other && one.len() == 33 && one.starts_with('Z'));
    }
}
