//! What the core is told, and what it says is to be done.

use std::sync::Arc;

use intergrid_proto::link::Down;
use intergrid_proto::{BlobHash, Exit, Reason, ReasonKind, Refusal};

use crate::machine::{Capacity, Offer};
use crate::plan::{Plan, Task};

/// A task of a placement.
pub type Key = (u64, u32);

/// What may happen.
#[derive(Debug)]
pub enum Input {
    /// The gateway says.
    Down(Down),
    /// A connection is there. `fresh` is random, for a new incarnation should one be due.
    Connected {
        /// Not 0.
        fresh: u64,
    },
    /// The connection is gone.
    Disconnected,
    /// The batch that was cut last is durable.
    Committed,
    /// A task's process runs.
    Started(Key, i32),
    /// The start of a task failed; nothing runs.
    NotStarted(Key, Fault),
    /// A task's process group is gone.
    Exited(Key, Report),
    /// A task uses more memory than it may: so many bytes.
    OverMemory(Key, u64),
    /// The start of these processes, in clock ticks since boot.
    Ticks(Vec<(Key, u64)>),
    /// All content of a spec is here, or can't be had.
    Fetched(BlobHash, Result<(), String>),
    /// All outputs of a task are durable at the gateway, or one is refused for good.
    Uploaded(Key, Result<(), String>),
    /// Cores and memory, read again.
    Capacity(Capacity),
    /// What a queue of several machines offers, looked at again.
    Offer(Offer),
    /// A task that was handed on was never started, and never will be: it goes back, unless it was being stopped.
    NeverStarted(Key, Reason),
    /// A task that runs is suspended, or goes on.
    Suspended(Key, bool),
    /// Why there is no room for new work on the disk; None: there is.
    Room(Option<Refusal>),
    /// Time has passed.
    Tick,
}

/// Why a task could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: ReasonKind,
    /// Evidence.
    pub text: String,
    /// As a shell would have it: 126, 127, or not started.
    pub exit: Exit,
    /// Nothing is wrong with the task, it may start elsewhere: there was no room on the disk, say.
    pub elsewhere: bool,
}

/// How a task's process ended, and what it used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Unknown: nobody saw it.
    pub exit: Exit,
    /// From start to end; None: not known.
    pub wall_ms: Option<u64>,
    /// User + system.
    pub cpu_us: Option<u64>,
    /// Peak memory, and how it was measured.
    pub peak: Option<(u64, &'static str)>,
    /// The kernel killed it because of its memory.
    pub oom: bool,
    /// Files to send: `stdout`, `stderr`, `out/<name>`.
    pub files: Vec<String>,
    /// Declared outputs that are not there.
    pub missing: Vec<String>,
    /// Who ended it, where that was somebody else: then an exit code of 0 is none.
    pub ended_by: Option<(ReasonKind, String)>,
    /// It is known that no word to end had come to it.
    pub by_itself: bool,
}

/// What is to be done now.
#[derive(Debug)]
pub enum Action {
    /// Start a task.
    Start(Task, Arc<Plan>),
    /// Signal a task's process group: SIGKILL, or SIGTERM. One that was handed on is removed, also where it has not started.
    Signal {
        /// Which.
        key: Key,
        /// SIGKILL.
        kill: bool,
    },
    /// Take back a task that was handed on, if it has not started; the answer is `Input::NeverStarted`, or it starts.
    Withdraw(Key),
    /// Bring the content of a spec.
    Fetch(Arc<Plan>),
    /// Send a task's outputs.
    Upload {
        /// Which.
        key: Key,
        /// The gateway's number of its placement, and of its job.
        number: u64,
        /// See `number`.
        job: u64,
        /// As [`Report::files`].
        files: Vec<String>,
    },
    /// Forget a task's directory: its end is durable.
    Remove(Vec<Key>),
    /// Read when these processes started.
    ReadTicks(Vec<(Key, i32)>),
    /// End this connection and dial anew: why.
    Reconnect(String),
    /// This agent can't go on with this gateway.
    Refuse(Refusal),
}

/// What a restart finds of a claimed task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its process group lives.
    Alive {
        /// The group.
        pid: i32,
    },
    /// It never started: same boot, no directory, no process.
    NeverStarted,
    /// It was handed on; whether it has started is being looked at.
    Handed,
    /// It ended unseen.
    Gone,
}
