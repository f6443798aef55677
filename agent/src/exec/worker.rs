//! Threads that see a task through: start it, wait for its end, look at what it left, and take the next. What may block on a disk or in exec is done here.
//!
//! As many threads as tasks run here, and one or two that wait or clear up: so who waits for a process's end is its own thread, the next task is
//! started by the thread that has just seen one end, and no other thread has to wake for it. The core, which allows no more than its slots, bounds them.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use intergrid_agent_sys::{CStrings, Command, Ended, Spawner, await_end, search, wait_group};
use intergrid_proto::net::disk::is_full;
use intergrid_proto::{Exit, ReasonKind};
use rustix::io::Errno;

use super::cgroup::Cgroup;
use super::dirs::Dirs;
use super::queue::{Queue, Start, Work};
use super::{Executor, Gate, lives, report};
use crate::core::{Fault, Key};
use crate::limits::{BUSY_PAUSE_MS, BUSY_TRIES_MAX, LEFT_DIRECTORIES_MAX, LINGER_MS, TASK_THREAD_STACK_BYTES, THREAD_IDLE_MS, THREADS_KEPT};
use crate::plan::{Plan, Task};

/// How a thread comes to the executor: it is called with it, alone, and what follows is done at once. False: there is none any more.
pub type Door = Box<dyn Fn(&mut dyn FnMut(&mut Executor)) -> bool + Send + Sync>;

struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    dirs: Dirs,
    cgroup: Option<Cgroup>,
    /// What tasks read.
    null: OwnedFd,
    gate: Gate,
    door: Door,
}

/// The threads.
#[derive(Clone)]
pub struct Workers(Arc<Shared>);

impl Workers {
    /// Start the first of them.
    pub fn new(dirs: Dirs, cgroup: Option<Cgroup>, gpus: Vec<String>, gate: Gate, door: Door) -> io::Result<Self> {
        let null = File::open("/dev/null")?.into();
        let queue = Mutex::new(Queue::with(gpus));
        let workers = Workers(Arc::new(Shared { queue, more: Condvar::new(), dirs, cgroup, null, gate, door }));
        workers.one_more(&mut workers.0.lock())?;
        Ok(workers)
    }

    /// Start a task; the executor is told what becomes of it.
    pub fn start(&self, task: Task, plan: Arc<Plan>) {
        let mut queue = self.0.lock();
        if !queue.closed {
            queue.starts.push_back((task, plan));
            let wanted = queue.startable();
            self.call(&mut queue, wanted);
        }
    }

    /// These tasks' directories are of no use any more.
    pub fn remove(&self, keys: Vec<Key>) {
        let mut queue = self.0.lock();
        queue.left.extend(keys);
        if queue.left.len() > LEFT_DIRECTORIES_MAX {
            let wanted = queue.startable() + 1;
            self.call(&mut queue, wanted);
        }
    }

    /// Have directories cleared away that no start has made use of.
    pub fn tidy(&self) {
        let mut queue = self.0.lock();
        let tidy = usize::from(!queue.left.is_empty() || !queue.soiled.is_empty());
        // Of several starts that waited for the GPUs of one task, its thread has taken one.
        if tidy + queue.startable() > 0 {
            let wanted = queue.startable() + tidy;
            self.call(&mut queue, wanted);
        }
    }

    /// Nothing writes to this pair of streams any more, and nothing uses the task's GPUs.
    pub fn free(&self, key: Key, pair: Option<u32>) {
        let mut queue = self.0.lock();
        if queue.release(key, pair) {
            self.0.dirs.free_gpus(key);
        }
        let wanted = queue.startable();
        self.call(&mut queue, wanted);
    }

    /// A task that was found running has these GPUs.
    pub fn give(&self, key: Key, gpus: &str) {
        self.0.lock().give(key, gpus);
    }

    /// Is no start waiting or under way?
    pub fn is_quiet(&self) -> bool {
        let queue = self.0.lock();
        queue.busy == 0 && queue.starts.is_empty()
    }

    /// Take no more work, and drop what waits. True: no start is under way any more.
    pub fn close(&self) -> bool {
        let mut queue = self.0.lock();
        queue.closed = true;
        queue.starts.clear();
        self.0.more.notify_all();
        queue.busy == 0
    }

    /// See to it that so many threads look for work.
    fn call(&self, queue: &mut Queue, wanted: usize) {
        if queue.closed || wanted <= queue.coming + queue.called {
            return;
        }
        if queue.idle > queue.called {
            queue.called += 1;
            self.0.more.notify_one();
        } else if let Err(e) = self.one_more(queue) {
            // Those that are there see to it in time.
            tracing::warn!("can't start a thread for a task: {e}");
        }
    }

    fn one_more(&self, queue: &mut Queue) -> io::Result<()> {
        let workers = self.0.clone();
        std::thread::Builder::new().name("task".into()).stack_size(TASK_THREAD_STACK_BYTES).spawn(move || workers.work())?;
        queue.threads += 1;
        queue.coming += 1;
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, mut f: impl FnMut(&mut Executor)) -> bool {
        (self.door)(&mut f)
    }

    fn work(&self) {
        let mut tools = match Tools::new() {
            Ok(tools) => tools,
            Err(e) => {
                tracing::warn!("a thread can't start tasks: {e}");
                let mut queue = self.lock();
                queue.threads -= 1;
                queue.coming -= 1;
                return;
            }
        };
        while let Some(work) = self.next() {
            let go_on = match work {
                Work::Start(start) => self.run(start, &mut tools),
                Work::Keep(key, n) => {
                    let kept = self.dirs.keep(key, n);
                    let mut queue = self.lock();
                    if kept {
                        queue.spares.push(n)
                    } else {
                        queue.soiled.push(key)
                    }
                    queue.coming += 1;
                    true
                }
                Work::Clear(key) => {
                    self.dirs.remove(key);
                    self.lock().coming += 1;
                    true
                }
            };
            if !go_on {
                self.lock().threads -= 1;
                return;
            }
        }
    }

    /// The next work; None: this thread is not needed any more.
    fn next(&self) -> Option<Work> {
        let mut queue = self.lock();
        queue.coming -= 1;
        loop {
            if let Some(work) = queue.take() {
                return Some(work);
            }
            if queue.closed {
                queue.threads -= 1;
                return None;
            }
            queue.idle += 1;
            let waited = self.more.wait_timeout(queue, Duration::from_millis(THREAD_IDLE_MS)).unwrap_or_else(PoisonError::into_inner);
            queue = waited.0;
            queue.idle -= 1;
            if queue.called > 0 {
                queue.called -= 1;
            } else if waited.1.timed_out() && queue.threads > THREADS_KEPT {
                queue.threads -= 1;
                return None;
            }
        }
    }

    /// See a task through. False: nobody is there to be told.
    fn run(&self, start: Start, tools: &mut Tools) -> bool {
        let (key, pair, at) = ((start.task.number, start.task.index), start.pair, Instant::now());
        let pid = match self.start(&start, tools) {
            Ok(pid) => pid,
            Err(fault) => {
                let mut queue = self.lock();
                if queue.release(key, Some(pair)) {
                    self.dirs.free_gpus(key);
                }
                queue.coming += 1;
                drop(queue);
                let mut fault = Some(fault);
                let heard = self.with(|exec| fault.take().into_iter().for_each(|f| exec.not_started(key, f)));
                self.lock().busy -= 1;
                return heard;
            }
        };
        let plan = start.plan;
        let gone = Arc::new(AtomicBool::new(false));
        let heard = self.with(|exec| exec.started(key, pid, plan.clone(), at, pair, gone.clone()));
        self.lock().busy -= 1;
        if !heard {
            return false;
        }
        // Where it is not ours to wait for, that shows when it is reaped.
        let _ = await_end(pid);
        let wall = at.elapsed();
        // Its pid is its own until it is reaped, so that nobody signals another one in its place.
        let (mut ended, rest) = self.gate.reap(pid, &gone);
        if rest && lingers(pid, ended.as_mut()) {
            self.lock().coming += 1;
            return self.with(|exec| exec.watch(pid, ended.map(|e| (e, wall))));
        }
        let mut found = Some(report(&self.dirs, self.cgroup.as_ref(), key, Some(&plan), Some(pair), ended.map(|e| (e, wall))));
        let mut queue = self.lock();
        if queue.release(key, None) {
            self.dirs.free_gpus(key);
        }
        queue.coming += 1;
        drop(queue);
        let heard = self.with(|exec| found.take().into_iter().for_each(|report| exec.finished(pid, report)));
        // Until then, who looks at its streams looks here.
        self.lock().pairs.push(pair);
        heard
    }

    /// The directory a task starts in.
    fn directory(&self, start: &Start) -> io::Result<(PathBuf, OwnedFd)> {
        let key = (start.task.number, start.task.index);
        if let Some(left) = start.left {
            if let Some(open) = self.dirs.give(left, key) {
                return Ok((self.dirs.task(key), open));
            }
            self.lock().soiled.push(left);
        }
        let path = match self.dirs.make(key, &start.plan, start.spare) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.dirs.remove(key);
                self.dirs.make(key, &start.plan, None)
            }
            made => made,
        }?;
        Ok((path, self.dirs.open_task(key)?))
    }

    fn start(&self, start: &Start, tools: &mut Tools) -> Result<i32, Fault> {
        let (task, plan) = (&start.task, &start.plan);
        let key = (task.number, task.index);
        let (dir, cwd) = self.directory(start).map_err(|e| Fault {
            kind: if plan.is_bare() { ReasonKind::StartFailed } else { ReasonKind::StageInFailed },
            text: format!("the task's directory can't be made: {e}"),
            exit: Exit::NotStarted,
            elsewhere: is_short(&e),
        })?;
        let unusual = |e: io::Error| fault_of(&e, &plan.program(task.index));
        if let Some(names) = start.gpus.as_deref().filter(|names| !names.is_empty()) {
            self.dirs.hold_gpus(key, names).map_err(|e| Fault {
                kind: ReasonKind::StartFailed,
                text: format!("it can't be noted which GPUs the task has: {e}"),
                exit: Exit::NotStarted,
                elsewhere: is_short(&e),
            })?;
        }
        let Tools { spawner, argv, env } = tools;
        plan.argv(task.index, argv).map_err(unusual)?;
        plan.env(task, &dir.to_string_lossy(), start.gpus.as_deref(), env).map_err(unusual)?;
        let program = program(plan, task.index)?;
        let streams = self.dirs.streams(start.pair).map_err(|e| Fault {
            kind: ReasonKind::StartFailed,
            text: format!("the files for its output can't be made: {e}"),
            exit: Exit::NotStarted,
            elsewhere: is_short(&e),
        })?;
        let (cwd, stdin, [stdout, stderr]) = (cwd.as_fd(), self.null.as_fd(), streams.files.each_ref().map(OwnedFd::as_fd));
        let command = Command { program: &program, argv, env, cwd, stdin, stdout, stderr };
        let mut start = || {
            let mut tries = 0;
            loop {
                match spawner.spawn(&command) {
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

/// Does the rest of a group, which was killed, live on for a while? What is reaped of it adds to its use.
fn lingers(pid: i32, mut ended: Option<&mut Ended>) -> bool {
    let mut pause_ms = 1;
    loop {
        while let Ok(Some(more)) = wait_group(pid) {
            if let Some(ended) = &mut ended {
                ended.cpu_us += more.cpu_us;
            }
        }
        if !lives(pid) {
            return false;
        }
        if pause_ms > LINGER_MS {
            return true;
        }
        std::thread::sleep(Duration::from_millis(pause_ms));
        pause_ms *= 2;
    }
}

/// What a thread keeps from start to start.
struct Tools {
    spawner: Spawner,
    argv: CStrings,
    env: CStrings,
}

impl Tools {
    fn new() -> io::Result<Self> {
        Ok(Tools { spawner: Spawner::new()?, argv: CStrings::default(), env: CStrings::default() })
    }
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

/// Is there too little of something here, which another machine may have, or this one later: room, descriptors? Of memory and processes a task of its own
/// may ask too much.
fn is_short(e: &io::Error) -> bool {
    is_full(e) || [Errno::MFILE, Errno::NFILE].iter().any(|short| e.raw_os_error() == Some(short.raw_os_error()))
}

/// As a shell says it: 127 where there is no such program, 126 where it can't be executed.
fn fault_of(e: &io::Error, program: &str) -> Fault {
    const ENOEXEC: i32 = 8;
    match e.kind() {
        io::ErrorKind::NotFound => {
            let text = format!("{program:?} does not exist here, or its interpreter does not");
            Fault { kind: ReasonKind::NoSuchProgram, text, exit: Exit::Code(127), elsewhere: false }
        }
        io::ErrorKind::PermissionDenied => {
            Fault { kind: ReasonKind::NotExecutable, text: format!("{program:?} is not an executable file"), exit: Exit::Code(126), elsewhere: false }
        }
        _ if e.raw_os_error() == Some(ENOEXEC) => {
            let text = format!("{program:?} is no program: neither a binary of this machine nor a script with a #! line");
            Fault { kind: ReasonKind::NotExecutable, text, exit: Exit::Code(126), elsewhere: false }
        }
        _ => {
            let text = format!("{program:?} can't be started: {e}");
            Fault { kind: ReasonKind::StartFailed, text, exit: Exit::NotStarted, elsewhere: is_short(e) }
        }
    }
}
