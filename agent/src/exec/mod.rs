//! The executor: tasks as process groups, their directories, their limits, their use.
//!
//! Invariant: a task's end is reported after its process group was seen empty. It decides nothing: what to start and to stop comes from `core`.
//!
//! A process that leaves its group (setsid) is not followed, except into a cgroup's measure. The resident memory of a group is the sum over its
//! processes, so that pages they share count more than once: a limit is met early rather than late.

pub mod cgroup;
pub mod dirs;
pub mod proc;
mod queue;
pub mod worker;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use intergrid_agent_sys as sys;
use intergrid_proto::Exit;
use intergrid_proto::spec::substitute;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, set_child_subreaper, test_kill_process_group};

use crate::core::{Fate, Fault, Input, Key, Report};
use crate::limits::*;
use crate::plan::{Plan, Task};
use crate::state::Claim;
use cgroup::Cgroup;
use dirs::Dirs;
use worker::{Door, Workers};

/// A task's process group.
struct Group {
    key: Key,
    /// None: adopted after a restart; not our child.
    plan: Option<Arc<Plan>>,
    /// Its pair of streams; an adopted one writes to files that have no name any more.
    pair: Option<u32>,
    since: Instant,
    peak_bytes: u64,
    over: bool,
    /// Nothing is left of it, and its number may be another's: nobody signals it. Set at the reaper's gate.
    gone: Arc<AtomicBool>,
    /// Its leader lived when we signalled it.
    signalled: bool,
    /// How the leader ended; what follows is the rest of its group.
    ended: Option<(sys::Ended, Duration)>,
}

/// Where a group's leader is reaped, and where groups are signalled: never both at a time, so that no signal reaches a process that has a reaped one's
/// number. Reaping takes as long as much else that is done for a task, so it is not done under the lock that all tasks share.
#[derive(Clone, Default)]
pub struct Gate(Arc<RwLock<()>>);

impl Gate {
    /// The leader of a group has ended: how it did, where that can be known, and whether there may be more of its group.
    pub fn reap(&self, pid: i32, gone: &AtomicBool) -> (Option<sys::Ended>, bool) {
        let _open = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // None: somebody else has reaped it. Its end is unknown, but an end.
        let ended = sys::wait(pid).ok().flatten();
        // What the leader left behind has no business any more.
        let rest = ended.is_none() || signal(pid, Signal::KILL);
        gone.store(!rest, Ordering::Relaxed);
        (ended, rest)
    }

    fn signal(&self, pid: i32, group: &mut Group, with: Signal) {
        let _closed = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if !group.gone.load(Ordering::Relaxed) {
            group.signalled |= proc::stat(pid).is_some_and(|leader| !leader.zombie);
            signal(pid, with);
        }
    }
}

/// The executor.
pub struct Executor {
    dirs: Dirs,
    cgroup: Option<Cgroup>,
    /// None: nothing is executed, tasks end at once.
    workers: Option<Workers>,
    /// By leader.
    groups: HashMap<i32, Group>,
    pids: BTreeMap<Key, i32>,
    /// Groups that are not our children, or whose leader is gone and that still live.
    watched: Vec<i32>,
    sample_next: Instant,
    done: Vec<Input>,
    gate: Gate,
}

impl Executor {
    /// With directories below `dirs`, on a machine with these GPUs; its threads come in by the door. `null`: tasks are not executed but end at once, well: for
    /// measuring all else.
    pub fn new(dirs: Dirs, cgroup: Option<Cgroup>, gpus: Vec<String>, null: bool, door: Door) -> io::Result<Self> {
        // What a task leaves behind becomes our child, so that its end can be waited for, whoever process 1 is.
        set_child_subreaper(Some(rustix::process::getpid())).map_err(io::Error::from)?;
        sys::keep_ended()?;
        if let Err(e) = sys::raise_descriptors() {
            tracing::warn!("no more than the usual number of files may be open: {e}");
        }
        if let Err(e) = sys::seal_inherited() {
            tracing::warn!("descriptors that this process inherited may be seen by tasks: {e}");
        }
        let gate = Gate::default();
        let workers = if null { None } else { Some(Workers::new(dirs.clone(), cgroup.clone(), gpus, gate.clone(), door)?) };
        let (groups, pids, watched) = Default::default();
        Ok(Executor { dirs, cgroup, workers, groups, pids, watched, sample_next: Instant::now(), done: Vec::new(), gate })
    }

    /// Start a task; what becomes of it comes from [`inputs`](Self::inputs).
    pub fn start(&mut self, task: Task, plan: Arc<Plan>) {
        match &self.workers {
            Some(workers) => workers.start(task, plan),
            None => {
                let report = Report { exit: Exit::Code(0), wall_ms: Some(0), cpu_us: Some(0), ..Report::unseen() };
                self.done.push(Input::Started((task.number, task.index), 0));
                self.done.push(Input::Exited((task.number, task.index), report));
            }
        }
    }

    /// Remove these tasks' directories.
    pub fn remove(&self, keys: Vec<Key>) {
        if let Some(workers) = &self.workers {
            workers.remove(keys);
        }
    }

    /// Signal a task's group: SIGKILL, or SIGTERM.
    pub fn signal(&mut self, key: Key, kill: bool) {
        let pid = self.pids.get(&key).copied();
        if let Some((pid, group)) = pid.and_then(|pid| Some((pid, self.groups.get_mut(&pid)?))) {
            self.gate.signal(pid, group, if kill { Signal::KILL } else { Signal::TERM });
        }
    }

    /// What happened since the last call.
    pub fn inputs(&mut self) -> Vec<Input> {
        std::mem::take(&mut self.done)
    }

    /// A task's process runs: since when, and with which pair of streams. `gone` is set where it is reaped.
    pub(crate) fn started(&mut self, key: Key, pid: i32, plan: Arc<Plan>, since: Instant, pair: u32, gone: Arc<AtomicBool>) {
        let group = Group { key, plan: Some(plan), pair: Some(pair), since, peak_bytes: 0, over: false, gone, signalled: false, ended: None };
        self.groups.insert(pid, group);
        self.pids.insert(key, pid);
        self.done.push(Input::Started(key, pid));
    }

    /// A task could not be started.
    pub(crate) fn not_started(&mut self, key: Key, fault: Fault) {
        self.done.push(Input::NotStarted(key, fault));
    }

    /// The rest of a group outlives its leader, which ended so after this time.
    pub(crate) fn watch(&mut self, pid: i32, ended: Option<(sys::Ended, Duration)>) {
        if let Some(group) = self.groups.get_mut(&pid) {
            group.ended = ended;
            self.watched.push(pid);
        }
    }

    /// A task's group is gone.
    pub(crate) fn finished(&mut self, pid: i32, mut report: Report) {
        let Some(group) = self.groups.remove(&pid) else { return };
        self.pids.remove(&group.key);
        let sampled = (group.peak_bytes > 0).then_some((group.peak_bytes, "sampled"));
        report.peak = report.peak.or(sampled);
        // Whom an agent before us may have signalled, nobody saw end. A process of which one thread has ended, the first, looks dead and is not.
        report.by_itself = report.exit != Exit::Unknown && !group.signalled && !report.exit.may_be_by_others();
        self.done.push(Input::Exited(group.key, report));
    }

    /// The pair of streams that a group writes to.
    pub fn pair(&self, pid: i32) -> Option<u32> {
        self.groups.get(&pid)?.pair
    }

    /// Look at the groups that nobody tells us of.
    pub fn poll(&mut self) {
        let mut watched = std::mem::take(&mut self.watched);
        watched.retain(|pid| {
            while let Ok(Some(more)) = sys::wait_group(*pid) {
                if let Some((ended, _)) = self.groups.get_mut(pid).and_then(|g| g.ended.as_mut()) {
                    ended.cpu_us += more.cpu_us;
                }
            }
            let lives = lives(*pid);
            if !lives {
                self.finish(*pid);
            }
            lives
        });
        watched.append(&mut self.watched);
        self.watched = watched;
    }

    /// Does [`poll`](Self::poll) have anything to look at?
    pub fn must_poll(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Is no start under way?
    pub fn is_quiet(&self) -> bool {
        self.workers.as_ref().is_none_or(Workers::is_quiet)
    }

    /// Reap children that no task is known for. Only where [`is_quiet`](Self::is_quiet) and all that the workers told is heard.
    pub fn reap_strangers(&mut self) {
        while let Ok(Some(pid)) = sys::peek_ended() {
            if self.groups.contains_key(&pid) || sys::wait(pid).is_err() {
                return;
            }
        }
    }

    fn finish(&mut self, pid: i32) {
        let Some(group) = self.groups.get(&pid) else { return };
        let found = report(&self.dirs, self.cgroup.as_ref(), group.key, group.plan.as_deref(), group.pair, group.ended);
        if let Some(workers) = &self.workers {
            workers.free(group.key, group.pair);
        }
        self.finished(pid, found);
    }

    /// Have directories cleared away that no start has made use of.
    pub fn tidy(&self) {
        self.workers.iter().for_each(Workers::tidy);
    }

    /// Measure resident memory, where it is time to.
    pub fn sample(&mut self, now: Instant) {
        let interval = Duration::from_millis(SAMPLE_INTERVAL_MS);
        let settled = self.groups.values().any(|g| g.ended.is_none() && now.duration_since(g.since) >= interval);
        if now < self.sample_next || !settled {
            return;
        }
        let mut resident: HashMap<i32, u64> = HashMap::new();
        for s in proc::all().filter(|s| self.groups.contains_key(&s.group)) {
            *resident.entry(s.group).or_default() += s.resident_bytes;
        }
        for (pid, bytes) in resident {
            let Some(group) = self.groups.get_mut(&pid) else { continue };
            group.peak_bytes = group.peak_bytes.max(bytes);
            let limit = group.plan.as_ref().map_or(0, |p| p.spec.shape.memory_bytes);
            if limit > 0 && bytes > limit && !group.over && self.cgroup.as_ref().is_none_or(|c| !c.holds(group.key)) {
                group.over = true;
                self.done.push(Input::OverMemory(group.key, bytes));
            }
        }
        self.sample_next = now + interval.max(now.elapsed() * SAMPLE_COST_PART);
    }

    /// When these processes started.
    pub fn ticks(&self, list: Vec<(Key, i32)>) -> Input {
        Input::Ticks(list.into_iter().filter_map(|(key, pid)| proc::stat(pid).map(|s| (key, s.ticks))).collect())
    }

    /// What became of tasks that an agent before us had claimed; those alive are ours from now on.
    pub fn adopt(&mut self, claims: &[(Key, Claim)], boot: &[u8]) -> Vec<(Key, Fate)> {
        let unsure = claims.iter().any(|(_, c)| c.boot == boot && c.exited.is_none());
        let by_directory = if unsure { proc::with_variable("GRID_TASK_DIR") } else { Vec::new() };
        let mut fates = Vec::new();
        for (key, claim) in claims {
            let dir = self.dirs.task(*key);
            let known = claim.started.filter(|s| proc::began(s.pid, s.ticks).is_some_and(|now| !now.zombie)).map(|s| s.pid);
            let found = known.or_else(|| proc::oldest_group(&by_directory, dir.as_os_str().as_encoded_bytes()));
            let fate = match found {
                _ if claim.boot != boot => Fate::Gone,
                Some(pid) => Fate::Alive { pid },
                None if claim.started.is_none() && !dir.exists() => Fate::NeverStarted,
                None => Fate::Gone,
            };
            if let Fate::Alive { pid } = fate {
                let group = Group {
                    key: *key,
                    plan: None,
                    pair: None,
                    since: Instant::now(),
                    peak_bytes: 0,
                    over: false,
                    gone: Arc::default(),
                    signalled: false,
                    ended: None,
                };
                self.groups.insert(pid, group);
                self.pids.insert(*key, pid);
                self.watched.push(pid);
                self.workers.iter().for_each(|w| w.give(*key, &self.dirs.held_gpus(*key)));
            } else {
                self.dirs.free_gpus(*key);
            }
            fates.push((*key, fate));
        }
        fates
    }

    /// Kill every task and start no more. True: none is left.
    pub fn kill_all(&mut self) -> bool {
        let idle = self.workers.as_ref().is_none_or(Workers::close);
        self.groups.iter_mut().for_each(|(pid, group)| self.gate.signal(*pid, group, Signal::KILL));
        self.poll();
        idle && self.groups.is_empty()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.workers.iter().for_each(|w| _ = w.close());
    }
}

/// What is to be said of a task whose group is gone. Its streams move into its directory where they have something in them.
fn report(dirs: &Dirs, cgroup: Option<&Cgroup>, key: Key, plan: Option<&Plan>, pair: Option<u32>, ended: Option<(sys::Ended, Duration)>) -> Report {
    let used = cgroup.and_then(|c| c.leave(key));
    let mut report = Report { peak: used.map(|u| (u.peak_bytes, "cgroup")), oom: used.is_some_and(|u| u.oom), ..Report::unseen() };
    if let Some((ended, wall)) = ended {
        report.exit = ended.exit.map_or_else(Exit::Signal, Exit::Code);
        report.cpu_us = Some(ended.cpu_us);
        report.wall_ms = Some(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
    }
    if let Some(pair) = pair {
        report.files = dirs.keep_streams(pair, key);
    }
    for name in plan.into_iter().flat_map(|p| &p.spec.outputs).map(|o| substitute(o, key.1)) {
        // A link could lead anywhere: only what the task itself made is sent.
        match std::fs::symlink_metadata(dirs.file(key, &name)).is_ok_and(|m| m.is_file()) {
            true => report.files.push(format!("out/{name}")),
            false => report.missing.push(name),
        }
    }
    report
}

/// Signal a group. False: there is nothing in it.
fn signal(group: i32, signal: Signal) -> bool {
    Pid::from_raw(group).is_some_and(|pid| kill_process_group(pid, signal) != Err(Errno::SRCH))
}

/// Does anything live in this group? Where its leader is gone, what is left of it is killed.
fn lives(group: i32) -> bool {
    let Some(pid) = Pid::from_raw(group) else { return false };
    if test_kill_process_group(pid) == Err(Errno::SRCH) {
        return false;
    }
    if proc::stat(group).is_some_and(|s| !s.zombie) {
        return true;
    }
    signal(group, Signal::KILL) && proc::group_lives(group)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[test]
    fn nobody_signals_the_number_of_a_group_that_is_gone() {
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").process_group(0).spawn().unwrap();
        let (pid, gate) = (child.id() as i32, Gate::default());
        let of = |gone| Group {
            key: (1, 0),
            plan: None,
            pair: None,
            since: Instant::now(),
            peak_bytes: 0,
            over: false,
            gone,
            signalled: false,
            ended: None,
        };
        let mut ended = of(Arc::new(AtomicBool::new(true)));
        gate.signal(pid, &mut ended, Signal::KILL);
        // It takes a killed process a moment to end.
        std::thread::sleep(Duration::from_millis(200));
        assert!(child.try_wait().unwrap().is_none() && !ended.signalled, "the number is another's now");
        let mut lives = of(Arc::default());
        gate.signal(pid, &mut lives, Signal::KILL);
        sys::await_end(pid).unwrap();
        assert!(lives.signalled);
        // What ended before a signal has not ended by it.
        let mut over = of(Arc::default());
        gate.signal(pid, &mut over, Signal::KILL);
        assert!(!over.signalled);
        let (how, rest) = gate.reap(pid, &lives.gone);
        assert_eq!((Some(Err(9)), false, true), (how.map(|e| e.exit), rest, lives.gone.load(Ordering::Relaxed)));
    }

    #[test]
    fn who_was_signalled_has_not_ended_by_itself() {
        let state = tempfile::tempdir().unwrap();
        let mut exec = Executor::new(Dirs::new(state.path()).unwrap(), None, Vec::new(), true, Box::new(|_| false)).unwrap();
        let plan = Arc::new(Plan::new(&intergrid_proto::JobSpec::new(["sleep"]).encode()).unwrap());
        let ends = |exec: &mut Executor, word: &str, task: u32| {
            let mut child = std::process::Command::new("/bin/sleep").arg(word).process_group(0).spawn().unwrap();
            let pid = child.id() as i32;
            exec.started((1, task), pid, plan.clone(), Instant::now(), 0, Arc::default());
            if word == "0" {
                sys::await_end(pid).unwrap();
            }
            exec.signal((1, task), false);
            child.wait().unwrap();
            // Also where it ends well at the word.
            exec.finished(pid, Report { exit: Exit::Code(0), ..Report::unseen() });
            exec.inputs().into_iter().find_map(|i| if let Input::Exited(_, report) = i { Some(report.by_itself) } else { None })
        };
        assert_eq!([Some(true), Some(false)], [ends(&mut exec, "0", 0), ends(&mut exec, "1000", 1)]);
    }
}
