//! The seam between what is common to local resource managers and what differs: their commands and what these print.
//!
//! An implementation builds argument lists, runs them with [`Hands`](crate::command::Hands), and parses; its parsers are pure and take any text. It keeps
//! nothing durable, never retries, and never guesses: a submission whose answer it has not read is `Unknown`, and somebody looks for its tag.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use futures::future::BoxFuture;
use intergrid_gateway::config::LrmsLimits;
use intergrid_proto::{Exit, Shape};

use crate::command::{Account, CallFailure};
use crate::limits::CLOCKS_DIFFER_MS_MAX;

/// A job of the LRMS; the whole array where it is one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LrmsId(pub u64);

impl fmt::Display for LrmsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Some tasks that go to the LRMS as one job: an array of 1 to `tasks`, or a plain job where there is one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Submission {
    /// Our own name of it: letters, digits and `-`, no longer than 40. It becomes the job's name, by which it is found again.
    pub tag: String,
    /// Runs as this account.
    pub account: Account,
    /// Partition or queue.
    pub queue: String,
    /// Positions are 1 to this; never more than [`Lrms::tasks_max`].
    pub tasks: u32,
    /// What each needs; memory of 0: what the site gives by default.
    pub shape: Shape,
    /// Wall clock of each, as the LRMS is to enforce it, some time beyond what we do; None: the queue's own limit.
    pub time_limit_ms: Option<u64>,
    /// On the shared file system: working directory, there already, the account's alone.
    pub directory: PathBuf,
    /// What the LRMS itself says of a task while it runs goes to a file with this name and `.<position>.e`, where it can be told to; None: nowhere.
    pub complaints: Option<PathBuf>,
    /// The whole script, for standard input. It finds its position in `SLURM_ARRAY_TASK_ID` or `SGE_TASK_ID`, and is 1 without. Its own output may be
    /// dropped. It must not be requeued by the LRMS where that can be asked for.
    pub script: String,
}

/// Why there is no answer to a submission that says: taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SubmitFailure {
    /// It said no, and nothing was submitted.
    Refused(Refused, String),
    /// It said no, was trying on, and was not heard to its end: most likely nothing was submitted.
    Doubtful(Refused, String),
    /// It may have been submitted: time-out, killed, an answer that can't be read, a controller that went away.
    Unknown(String),
}

impl fmt::Display for SubmitFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubmitFailure::Refused(_, why) => write!(f, "refused: {why}"),
            SubmitFailure::Doubtful(_, why) => write!(f, "refused, most likely: {why}"),
            SubmitFailure::Unknown(why) => write!(f, "no answer that can be read: {why}"),
        }
    }
}

/// What kind of no.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Later it may say yes: queue full, job limit of the account, controller down before it took anything, partition drained.
    Later,
    /// This request never: more than any machine has, time beyond the partition's, invalid feature.
    Never,
    /// So many tasks in one submission never: fewer may go, see [`Lrms::tasks_max`], which may have changed.
    TooManyTasks,
    /// The account may not: unknown to the LRMS, not allowed in this queue.
    NotAuthorised,
    /// The queue is not there any more.
    NoQueue,
}

/// A task of ours in the queue of the LRMS, as the last look showed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The job.
    pub id: LrmsId,
    /// Of the array; 1 where it is a plain job.
    pub position: u32,
    /// The job's name, which somebody there may have changed.
    pub tag: String,
    /// Whose it is; empty: not said.
    pub owner: String,
    /// Where it is.
    pub state: State,
    /// Slots that it occupies, or will.
    pub slots: u32,
    /// The machine it is on; empty: none yet.
    pub machine: String,
    /// Times that it was started over.
    pub restarts: u32,
}

/// Where a task is in the LRMS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// Not started: why, and the LRMS's own word for it.
    Pending(Wait, String),
    /// Its script runs, or is just being started.
    Running,
    /// Stopped for now.
    Suspended,
    /// Over, and still listed.
    Ended(Over),
    /// A word that this version does not know.
    Unknown(String),
}

/// Why a task waits in the LRMS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wait {
    /// Its turn will come: others are before it, or what it needs is taken.
    Turn,
    /// A limit of the site or the account.
    Limit,
    /// An administrator or the account's owner holds it.
    Held,
    /// Never as things are: a dependency that can't be met, more than the queue has, a queue that is down or gone.
    Never,
    /// It is broken there, and says why (Grid Engine's Eqw).
    Broken,
    /// It began once and waits to be started over.
    Requeued,
    /// A word that this version does not know.
    Other,
}

/// How a task ended, in the words of the LRMS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Over {
    /// Its verdict.
    pub how: How,
    /// Of the script; None: it does not say.
    pub exit: Option<Exit>,
    /// By its books; the queue says nothing of it.
    pub used: Used,
}

impl Over {
    /// What was used is not known.
    pub fn new(how: How, exit: Option<Exit>) -> Self {
        Over { how, exit, used: Used::default() }
    }
}

/// What a task used, as far as that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Used {
    /// From start to end, milliseconds.
    pub wall_ms: Option<u64>,
    /// User + system, microseconds.
    pub cpu_us: Option<u64>,
    /// Peak memory in bytes, and how it was measured: `sampled`, of all processes together, or `largest-process`.
    pub peak: Option<(u64, &'static str)>,
}

/// The verdict of the LRMS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The script ended by itself, well or not.
    Exited,
    /// It ran beyond a limit of time.
    TimeLimit,
    /// It used too much memory.
    Memory,
    /// It was beyond a limit of its queue, and which one is not known.
    Limit,
    /// Its machine failed.
    MachineLost,
    /// Somebody removed it by force: how it ended, and whether it has, nobody knows.
    Forced,
    /// Somebody removed it: started or not, see [`Record::started`].
    Removed,
    /// It had to make way.
    Preempted,
    /// It was stopped, to be started over.
    Requeued,
    /// The LRMS could not start the script.
    NotStarted,
    /// The script began; the LRMS has the job in error since, and does not go on with it by itself.
    Broken,
}

/// A task that is over, from the LRMS's own books.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The job.
    pub id: LrmsId,
    /// Of the array; 1 where it is a plain job.
    pub position: u32,
    /// The job's name; empty where the books do not have it.
    pub tag: String,
    /// How it ended.
    pub over: Over,
    /// Did its script ever begin? None: the books do not say.
    pub started: Option<bool>,
    /// From when to when it ran, in seconds since 1970; None: not known.
    pub ran_s: Option<(u64, u64)>,
    /// The machine; empty: not known.
    pub machine: String,
    /// In the LRMS's own words, for people: state, reason.
    pub words: String,
}

impl Record {
    /// Did it run at that time, by clocks that may differ? An LRMS that has lost its state gives numbers twice, and at other times.
    pub fn ran_at(&self, at_s: u64) -> bool {
        let slack = CLOCKS_DIFFER_MS_MAX / 1_000;
        self.ran_s.is_some_and(|(from, to)| (from.saturating_sub(slack)..=to.saturating_add(slack)).contains(&at_s))
    }
}

/// A partition or queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Slots of all machines that can be used at all: up, not drained.
    pub slots_total: u64,
    /// Slots of all its machines; those out of order count too.
    pub slots_all: u64,
    /// Slots that nobody occupies.
    pub slots_free: u64,
    /// Most free slots on one machine.
    pub largest_free: u32,
    /// Machines that can be used.
    pub machines: u32,
    /// Slots of the largest machine, and memory that one task can have there; those out of order count too.
    pub machine_slots: u32,
    /// See `machine_slots`.
    pub machine_memory_bytes: u64,
    /// Most GPUs of one machine; those out of order count too.
    pub machine_gpus: u32,
    /// GPUs of all machines that can be used at all.
    pub gpus_total: u64,
    /// Most machines that one task can be given; 0: one.
    pub nodes_max: u32,
    /// As `uname -m`, where it says so; else empty.
    pub architecture: String,
    /// Tasks that wait, of all users.
    pub waiting: u64,
    /// The longest that a task may run; None: not limited.
    pub time_max_ms: Option<u64>,
    /// Takes no new work: why.
    pub closed: Option<String>,
    /// Accounts of this site whose tasks would wait there for ever, and why.
    pub denied: BTreeMap<Account, String>,
    /// Machines that the LRMS does not hear of: what it says of tasks there is old.
    pub unheard: Vec<String>,
    /// From the word to a payload that it is to end, to its kill; None: not known.
    pub kill_wait_ms: Option<u64>,
}

impl Queue {
    /// The longest that a task of a site with these limits may ask for; None: not limited.
    pub fn time_max_ms(&self, limits: &LrmsLimits) -> Option<u64> {
        self.time_max_ms.into_iter().chain(limits.time_max_ms).min()
    }
}

/// A local resource manager. Each call runs a bounded number of commands, whatever the number of tasks.
pub trait Lrms: Send + Sync + 'static {
    /// One word: `slurm`, `gridengine`.
    fn name(&self) -> &'static str;

    /// Tasks that one submission may have.
    fn tasks_max(&self) -> BoxFuture<'_, Result<u32, CallFailure>>;

    /// Submit, once, as the submission's account.
    fn submit<'a>(&'a self, submission: &'a Submission) -> BoxFuture<'a, Result<LrmsId, SubmitFailure>>;

    /// Jobs with this name, in the queue first, then in the books: more than one where an answer was lost and somebody submitted again. Ok and empty: the
    /// LRMS answered, and knows of none.
    fn find<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Vec<LrmsId>, CallFailure>>;

    /// All tasks in the LRMS whose job's name begins so, and of arrays with these numbers whatever they are called by now, of all accounts: one query. What is
    /// not in it is unknown.
    fn entries<'a>(&'a self, prefix: &'a str, ids: &'a BTreeSet<LrmsId>) -> BoxFuture<'a, Result<Vec<Entry>, CallFailure>>;

    /// All queues: one query. Those that it does not know are left out.
    fn queues(&self) -> BoxFuture<'_, Result<Vec<Queue>, CallFailure>>;

    /// Why this process is not shown the jobs of other accounts; None: it is.
    fn blind(&self) -> BoxFuture<'_, Result<Option<String>, CallFailure>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// What the books say of these jobs. A job or position that they do not have is left out.
    fn records<'a>(&'a self, ids: &'a [LrmsId]) -> BoxFuture<'a, Result<Vec<Record>, CallFailure>>;

    /// What a complaint of the LRMS beside a task's output says of its end; a user may have written any of it.
    fn complaint(&self, text: &str) -> Option<How>;

    /// Does a script hear of its removal by a signal, and of nothing else by one? Then one that has heard it was removed, however it ended.
    fn signals_removal_only(&self) -> bool {
        false
    }

    /// Remove tasks, all of one account: pending ones are dropped, running ones get SIGTERM and after the site's grace SIGKILL; `kill`: SIGKILL now. An
    /// id that is not known (any more) is no failure.
    fn cancel<'a>(&'a self, account: &'a Account, tasks: &'a [(LrmsId, Vec<u32>)], kill: bool) -> BoxFuture<'a, Result<(), CallFailure>>;
}
