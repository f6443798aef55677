//! An LRMS that is a shell on this machine: arrays, slots, signals, and the ways to go wrong that tests ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_proto::Exit;

use crate::command::{Account, CallFailure};
use crate::lrms::*;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wrong {
    /// A submission takes so long.
    pub slow_ms: u64,
    /// The answer to so many submissions is lost, though they are taken.
    pub lose_answers: u32,
    /// So many submissions get lost before they are taken.
    pub lose_submissions: u32,
    /// So many submissions are refused for now.
    pub refuse: u32,
    /// It takes no more tasks in one submission, and says so when it is asked; 0: a hundred.
    pub tasks_max: u32,
    /// It refuses more than one task in a submission, whatever it says.
    pub single: bool,
    /// Nothing is started.
    pub hold: bool,
    /// Each script is started twice.
    pub twice: bool,
    /// It removes nothing, and says so.
    pub deaf: bool,
    /// It does not answer queries.
    pub silent: bool,
    /// Jobs that are over leave no trace.
    pub forgetful: bool,
    /// Its books have another's job under each number.
    pub renumbered: bool,
    /// Its site gives all jobs one name.
    pub renamed: bool,
    /// Its queue is suspended, says that it is, and lets what runs run on.
    pub suspended: bool,
    /// Its queue refuses our account.
    pub denies: bool,
    /// Whose payload is killed, is told to have had too much memory.
    pub memory: bool,
    /// From the word that a payload is to end, to its kill.
    pub kill_wait_ms: u64,
}

struct Task {
    tag: String,
    script: String,
    running: Vec<Child>,
    over: Option<Over>,
    began: bool,
}

#[derive(Default)]
struct Inside {
    next: u64,
    tasks: BTreeMap<(LrmsId, u32), Task>,
    wrong: Wrong,
    submissions: u32,
    queries: u32,
    surveys: u32,
}

/// The LRMS.
#[derive(Clone)]
pub struct Local {
    slots: u32,
    state: Arc<Mutex<Inside>>,
}

impl Inside {
    fn tasks_max(&self) -> u32 {
        if self.wrong.tasks_max == 0 { 100 } else { self.wrong.tasks_max }
    }
}

impl Local {
    pub fn new(slots: u32) -> Self {
        let local = Local { slots, state: Arc::default() };
        let (state, own) = (Arc::downgrade(&local.state), slots as usize);
        std::thread::spawn(move || {
            while let Some(state) = state.upgrade() {
                pump(&mut state.lock().unwrap(), own);
                drop(state);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        local
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.state.lock().unwrap()
    }

    pub fn wrong(&self, change: impl FnOnce(&mut Wrong)) {
        change(&mut self.lock().wrong);
    }

    pub fn submissions(&self) -> u32 {
        self.lock().submissions
    }

    pub fn queries(&self) -> u32 {
        self.lock().queries
    }

    /// Queries for all tasks.
    pub fn surveys(&self) -> u32 {
        self.lock().surveys
    }

    pub fn pending(&self) -> usize {
        self.lock().tasks.values().filter(|t| !t.began && t.over.is_none()).count()
    }

    /// As an administrator removes everything, or a machine is lost with everything.
    pub fn end_all(&self, how: How) {
        for task in self.lock().tasks.values_mut().filter(|t| t.over.is_none()) {
            task.running.iter().for_each(|c| signal(c, rustix::process::Signal::KILL));
            task.running.clear();
            task.over = Some(Over::new(how, None));
        }
    }

    /// As where a machine that lives is given up: what runs there runs on.
    pub fn give_up_all(&self, how: How) {
        self.lock().tasks.values_mut().filter(|t| t.over.is_none()).for_each(|t| t.over = Some(Over::new(how, None)));
    }

    fn take(&self, s: &Submission) -> Result<LrmsId, SubmitFailure> {
        let mut state = self.lock();
        let take = |n: &mut u32| std::mem::replace(n, n.saturating_sub(1)) > 0;
        if take(&mut state.wrong.refuse) {
            Err(SubmitFailure::Refused(Refused::Later, "queue full".into()))
        } else if s.tasks > if state.wrong.single { 1 } else { state.tasks_max() } {
            Err(SubmitFailure::Refused(Refused::TooManyTasks, "too many tasks".into()))
        } else if take(&mut state.wrong.lose_submissions) {
            Err(SubmitFailure::Unknown("killed before it did anything".into()))
        } else {
            state.next += 1;
            let id = LrmsId(state.next);
            for position in 1..=s.tasks {
                let task = Task { tag: s.tag.clone(), script: s.script.clone(), running: Vec::new(), over: None, began: false };
                state.tasks.insert((id, position), task);
            }
            if take(&mut state.wrong.lose_answers) { Err(SubmitFailure::Unknown("its answer is lost".into())) } else { Ok(id) }
        }
    }

    fn answer<T>(&self, answer: impl FnOnce(&mut Inside) -> T) -> BoxFuture<'static, Result<T, CallFailure>>
    where
        T: Send + 'static,
    {
        let mut state = self.lock();
        state.queries += 1;
        let answer = if state.wrong.silent { Err(CallFailure::Unknown("it is silent".into())) } else { Ok(answer(&mut state)) };
        std::future::ready(answer).boxed()
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let _ = rustix::process::kill_process_group(pid, signal);
}

fn pump(state: &mut Inside, slots: usize) {
    let wrong = state.wrong;
    for task in state.tasks.values_mut().filter(|t| t.over.is_none()) {
        let mut last = None;
        task.running.retain_mut(|c| match c.try_wait().unwrap() {
            None => true,
            Some(status) => {
                last = status.code();
                false
            }
        });
        if task.began && task.running.is_empty() {
            let exit = last.map(|c| Exit::Code(u8::try_from(c).unwrap()));
            let how = if wrong.memory && exit == Some(Exit::Code(137)) { How::Memory } else { How::Exited };
            task.over = Some(Over::new(how, exit));
        }
    }
    let mut free = slots.saturating_sub(state.tasks.values().filter(|t| !t.running.is_empty()).count());
    for ((id, position), task) in state.tasks.iter_mut().filter(|(_, t)| !t.began && t.over.is_none()) {
        if free == 0 || wrong.hold {
            break;
        }
        free -= 1;
        task.began = true;
        for _ in 0..if wrong.twice { 2 } else { 1 } {
            let mut command = Command::new("/bin/sh");
            command
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .env("SLURM_ARRAY_TASK_ID", position.to_string())
                .env("SLURM_ARRAY_JOB_ID", id.to_string());
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(task.script.as_bytes()).unwrap();
            task.running.push(child);
        }
    }
}

impl Lrms for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn tasks_max(&self) -> BoxFuture<'_, Result<u32, CallFailure>> {
        self.answer(|s| s.tasks_max())
    }

    fn submit<'a>(&'a self, s: &'a Submission) -> BoxFuture<'a, Result<LrmsId, SubmitFailure>> {
        let slow = {
            let mut state = self.lock();
            assert!(s.directory.is_dir() && s.tasks >= 1);
            state.submissions += 1;
            Duration::from_millis(state.wrong.slow_ms)
        };
        async move {
            tokio::time::sleep(slow).await;
            self.take(s)
        }
        .boxed()
    }

    fn find<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Vec<LrmsId>, CallFailure>> {
        let tag = tag.to_string();
        self.answer(move |s| s.tasks.iter().filter(|(_, t)| t.tag == tag).map(|((id, _), _)| *id).take(1).collect())
    }

    fn entries<'a>(&'a self, prefix: &'a str, ids: &'a BTreeSet<LrmsId>) -> BoxFuture<'a, Result<Vec<Entry>, CallFailure>> {
        let (prefix, ids) = (prefix.to_string(), ids.clone());
        self.answer(move |s| {
            s.surveys += 1;
            let name = |t: &Task| if s.wrong.renamed { "sitename".to_string() } else { t.tag.clone() };
            let entry = |((id, position), t): (&(LrmsId, u32), &Task)| Entry {
                id: *id,
                position: *position,
                tag: name(t),
                owner: String::new(),
                state: match t.began {
                    true if s.wrong.suspended => State::Suspended,
                    true => State::Running,
                    false => State::Pending(Wait::Turn, "Resources".into()),
                },
                slots: 1,
                machine: String::new(),
                restarts: 0,
            };
            let is_asked = |id: &LrmsId, t: &Task| t.over.is_none() && (name(t).starts_with(&prefix) || ids.contains(id));
            s.tasks.iter().filter(|((id, _), t)| is_asked(id, t)).map(entry).collect()
        })
    }

    fn queues(&self) -> BoxFuture<'_, Result<Vec<Queue>, CallFailure>> {
        let slots = self.slots;
        self.answer(move |s| {
            let used = s.tasks.values().filter(|t| !t.running.is_empty()).count() as u64;
            vec![Queue {
                name: "batch".into(),
                slots_total: u64::from(slots),
                slots_all: u64::from(slots),
                slots_free: u64::from(slots).saturating_sub(used),
                largest_free: slots,
                machines: 1,
                machine_slots: slots,
                machine_memory_bytes: 8 << 30,
                kill_wait_ms: Some(s.wrong.kill_wait_ms),
                closed: s.wrong.suspended.then(|| "suspended".into()),
                denied: s.wrong.denies.then(|| (Account::Own, "me is in none of its user_lists: physics".into())).into_iter().collect(),
                ..Queue::default()
            }]
        })
    }

    fn records<'a>(&'a self, ids: &'a [LrmsId]) -> BoxFuture<'a, Result<Vec<Record>, CallFailure>> {
        let ids = ids.to_vec();
        self.answer(move |s| {
            if s.wrong.forgetful {
                return Vec::new();
            }
            let record = |((id, position), t): (&(LrmsId, u32), &Task)| {
                Some(Record {
                    id: *id,
                    position: *position,
                    tag: if s.wrong.renumbered { "another".into() } else { t.tag.clone() },
                    over: t.over.clone()?,
                    started: Some(t.began),
                    ran_s: None,
                    machine: String::new(),
                    words: String::new(),
                })
            };
            s.tasks.iter().filter(|((id, _), _)| ids.contains(id)).filter_map(record).collect()
        })
    }

    fn complaint(&self, _: &str) -> Option<How> {
        None
    }

    fn cancel<'a>(&'a self, _: &'a Account, tasks: &'a [(LrmsId, Vec<u32>)], kill: bool) -> BoxFuture<'a, Result<(), CallFailure>> {
        let mut state = self.lock();
        if state.wrong.deaf {
            return std::future::ready(Err(CallFailure::Unknown("it is deaf".into()))).boxed();
        }
        for (id, position) in tasks.iter().flat_map(|(id, ps)| ps.iter().map(|p| (*id, *p))) {
            let Some(task) = state.tasks.get_mut(&(id, position)).filter(|t| t.over.is_none()) else { continue };
            match task.began {
                true => task.running.iter().for_each(|c| signal(c, if kill { rustix::process::Signal::KILL } else { rustix::process::Signal::TERM })),
                false => task.over = Some(Over::new(How::Removed, None)),
            }
        }
        std::future::ready(Ok(())).boxed()
    }
}
