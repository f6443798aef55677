//! Threads that start tasks and clean up behind them: what may block on a disk or in exec is done here.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use intergrid_agent_sys::{CStrings, Command, search, spawn};
use intergrid_proto::{Exit, ReasonKind};
use tokio::sync::mpsc;

use super::cgroup::Cgroup;
use super::dirs::Dirs;
use crate::core::{Fault, Key};
use crate::limits::{BUSY_PAUSE_MS, BUSY_TRIES_MAX, SPARE_DIRECTORIES_MAX, SPAWNERS_MAX};
use crate::plan::{Plan, Task};

/// What a worker says.
#[derive(Debug)]
pub enum Told {
    /// It runs.
    Started {
        /// The task.
        key: Key,
        /// Its process and group.
        pid: i32,
        /// Its plan.
        plan: Arc<Plan>,
        /// When.
        at: Instant,
        /// Its pair of streams.
        pair: u32,
    },
    /// It does not.
    Failed(Key, Fault),
}

enum Work {
    Start(Task, Arc<Plan>),
    Remove(Vec<Key>),
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    closed: bool,
    /// Starts that have been taken and not told of.
    busy: usize,
    /// Pairs of streams that no task writes to, and how many there are in all.
    pairs: Vec<u32>,
    pairs_made: u32,
    /// Directories that were kept, and how many there have been.
    spares: Vec<u32>,
    spares_made: u32,
}

impl Queue {
    fn pair(&mut self) -> u32 {
        self.pairs.pop().unwrap_or_else(|| {
            self.pairs_made += 1;
            self.pairs_made - 1
        })
    }
}

struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    dirs: Dirs,
    cgroup: Option<Cgroup>,
    told: mpsc::Sender<Told>,
}

/// The threads.
#[derive(Clone)]
pub struct Workers(Arc<Shared>);

impl Workers {
    /// Start them.
    pub fn new(dirs: Dirs, cgroup: Option<Cgroup>, told: mpsc::Sender<Told>) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), more: Condvar::new(), dirs, cgroup, told });
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        for _ in 0..SPAWNERS_MAX.min(cores) {
            let shared = shared.clone();
            std::thread::Builder::new().name("spawn".into()).stack_size(256 << 10).spawn(move || shared.work())?;
        }
        Ok(Workers(shared))
    }

    /// Start a task; the answer comes as [`Told`].
    pub fn start(&self, task: Task, plan: Arc<Plan>) {
        self.put(Work::Start(task, plan));
    }

    /// Remove these tasks' directories.
    pub fn remove(&self, keys: Vec<Key>) {
        self.put(Work::Remove(keys));
    }

    /// Nothing writes to this pair of streams any more.
    pub fn free(&self, pair: u32) {
        self.0.lock().pairs.push(pair);
    }

    /// Is no start waiting or under way?
    pub fn is_quiet(&self) -> bool {
        let queue = self.0.lock();
        queue.busy == 0 && queue.work.iter().all(|w| matches!(w, Work::Remove(_)))
    }

    /// Take no more work, and drop what waits. True: no start is under way any more.
    pub fn close(&self) -> bool {
        let mut queue = self.0.lock();
        queue.closed = true;
        queue.work.clear();
        self.0.more.notify_all();
        queue.busy == 0
    }

    fn put(&self, work: Work) {
        let mut queue = self.0.lock();
        if !queue.closed {
            queue.work.push_back(work);
            self.0.more.notify_one();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.more.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut buffers = Buffers::default();
        loop {
            let (work, pair) = {
                let mut queue = self.lock();
                loop {
                    match queue.work.pop_front() {
                        Some(Work::Start(task, plan)) => {
                            queue.busy += 1;
                            break (Work::Start(task, plan), queue.pair());
                        }
                        Some(work) => break (work, 0),
                        None => {}
                    }
                    if queue.closed {
                        return;
                    }
                    queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            };
            match work {
                Work::Remove(keys) => keys.into_iter().for_each(|key| self.remove(key)),
                Work::Start(task, plan) => {
                    let key = (task.number, task.index);
                    let at = Instant::now();
                    let told = match self.start(&task, &plan, pair, &mut buffers) {
                        Ok(pid) => Told::Started { key, pid, plan, at, pair },
                        Err(fault) => {
                            self.lock().pairs.push(pair);
                            Told::Failed(key, fault)
                        }
                    };
                    let gone = self.told.blocking_send(told).is_err();
                    self.lock().busy -= 1;
                    if gone {
                        return;
                    }
                }
            }
        }
    }

    fn remove(&self, key: Key) {
        let spare = {
            let mut queue = self.lock();
            let n = queue.spares_made;
            queue.spares_made = n.wrapping_add(1);
            (queue.spares.len() < SPARE_DIRECTORIES_MAX).then_some(n)
        };
        match spare.filter(|n| self.dirs.keep(key, *n)) {
            Some(n) => self.lock().spares.push(n),
            None => self.dirs.remove(key),
        }
    }

    fn start(&self, task: &Task, plan: &Plan, pair: u32, b: &mut Buffers) -> Result<i32, Fault> {
        let key = (task.number, task.index);
        let spare = if plan.is_bare() { self.lock().spares.pop() } else { None };
        let dir = match self.dirs.make(key, plan, spare) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.dirs.remove(key);
                self.dirs.make(key, plan, None)
            }
            made => made,
        };
        let dir = dir.map_err(|e| Fault {
            kind: if plan.is_bare() { ReasonKind::StartFailed } else { ReasonKind::StageInFailed },
            text: format!("the task's directory can't be made: {e}"),
            exit: Exit::NotStarted,
        })?;
        let unusual = |e: io::Error| fault_of(&e, &plan.program(task.index));
        plan.argv(task.index, &mut b.argv).map_err(unusual)?;
        plan.env(task, &dir.to_string_lossy(), &mut b.env).map_err(unusual)?;
        let program = program(plan, task.index)?;
        let cwd = c_path(&dir).map_err(unusual)?;
        let stream = |name| c_path(&self.dirs.stream(pair, name)).map_err(unusual);
        let (stdout, stderr) = (stream("stdout")?, stream("stderr")?);
        let command = Command { program: &program, argv: &b.argv, env: &b.env, cwd: &cwd, stdout: &stdout, stderr: &stderr };
        let start = || {
            let mut tries = 0;
            loop {
                match spawn(&command) {
                    // Its file is still open for writing in a process that another thread is just starting.
                    Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES_MAX => {
                        tries += 1;
                        std::thread::sleep(Duration::from_millis(BUSY_PAUSE_MS));
                    }
                    other => return other,
                }
            }
        };
        let started = match &self.cgroup {
            Some(cgroup) => cgroup.start(key, plan.spec.shape.memory_bytes, start),
            None => start(),
        };
        started.map_err(unusual)
    }
}

#[derive(Default)]
struct Buffers {
    argv: CStrings,
    env: CStrings,
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn program(plan: &Plan, index: u32) -> Result<CString, Fault> {
    if let Some(found) = plan.found.get() {
        return Ok(found.clone());
    }
    let name = plan.program(index);
    let found = search(&name, &plan.path).map_err(|e| fault_of(&e, &name))?;
    if !plan.program_varies() {
        let _ = plan.found.set(found.clone());
    }
    Ok(found)
}

/// As a shell says it: 127 where there is no such program, 126 where it can't be executed.
fn fault_of(e: &io::Error, program: &str) -> Fault {
    const ENOEXEC: i32 = 8;
    match e.kind() {
        io::ErrorKind::NotFound => {
            let text = format!("{program:?} does not exist here, or its interpreter does not");
            Fault { kind: ReasonKind::NoSuchProgram, text, exit: Exit::Code(127) }
        }
        io::ErrorKind::PermissionDenied => {
            Fault { kind: ReasonKind::NotExecutable, text: format!("{program:?} is not an executable file"), exit: Exit::Code(126) }
        }
        _ if e.raw_os_error() == Some(ENOEXEC) => {
            let text = format!("{program:?} is no program: neither a binary of this machine nor a script with a #! line");
            Fault { kind: ReasonKind::NotExecutable, text, exit: Exit::Code(126) }
        }
        _ => Fault { kind: ReasonKind::StartFailed, text: format!("{program:?} can't be started: {e}"), exit: Exit::NotStarted },
    }
}
