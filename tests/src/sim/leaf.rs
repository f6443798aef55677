//! A leaf: the agent's own core over a simulated machine. Its spool is bytes, a torn frame at the end included; its processes outlive it, and die with the
//! machine. What is started and how it ends is the truth that the oracle goes by.

use std::collections::BTreeMap;
use std::sync::Arc;

use intergrid_agent::core::{Action, Core, Fate, Input, Key, Report};
use intergrid_agent::machine::Capacity;
use intergrid_agent::plan::Plan;
use intergrid_agent::spool::frame;
use intergrid_agent::spool::record::{Batch, Record, What};
use intergrid_agent::state::State;
use intergrid_gateway::backends::child_end::site_of;
use intergrid_proto::Exit;
use intergrid_proto::link::{Down, Hop, Kind};

use super::lie::Liar;
use super::net::{Lower, Message};
use super::rng::Rng;
use super::scenario::Machine;
use super::world::{BEGIN_UNIX_MS, Next, World};

/// Names one process for ever.
pub type Uid = u64;

const TICK_MS: u64 = 100;
const IDLE_TICK_MS: u64 = 1_000;

/// A process on the machine, or what it left behind.
pub struct Process {
    pub uid: Uid,
    pid: i32,
    started_ms: u64,
    alive: bool,
    exit: Exit,
}

/// A machine and its agent.
pub struct Leaf {
    pub hop: Hop,
    pub core: Option<Core>,
    pub link: usize,
    pub slots: u32,
    pub epoch: u64,
    pub skew_ms: i64,
    pub liar: Option<Liar>,
    disk: Vec<u8>,
    writing: Option<Vec<Record>>,
    processes: BTreeMap<Key, Process>,
    /// Handed to the executor, not yet running: how long and how it will.
    spawning: BTreeMap<Key, (u64, Exit)>,
    boot: u64,
    born_skew_ms: i64,
    pids: i32,
    wake_ms: u64,
    rng: Rng,
}

/// How long a payload runs, and how it ends: a function of its arguments and its index alone.
pub fn work(argv: &[String], task: u32) -> (u64, Exit) {
    let number = |k: usize| argv.get(k).and_then(|a| a.parse::<u64>().ok()).unwrap_or(0);
    let (base, t) = (number(1), u64::from(task));
    let exit = match number(2) {
        0 => 0,
        1 => u8::from(t % 3 == 1),
        2 => (t % 256) as u8,
        _ => 7 * u8::from(t % 5 == 4),
    };
    (base + t * 37 % (base / 2 + 1), Exit::Code(exit))
}

impl Leaf {
    pub fn new(i: usize, m: &Machine, link: usize, seed: u64) -> Self {
        let name = format!("a{i}");
        let hop = Hop { site: site_of(&name), name, kind: Kind::Agent };
        let (disk, processes, spawning) = Default::default();
        let rng = Rng::new(seed, 4_000_000 + i as u64);
        let liar = m.lies.then(Liar::default);
        let (core, writing, slots) = (None, None, m.slots);
        Leaf {
            hop,
            core,
            link,
            slots,
            epoch: 0,
            skew_ms: 0,
            liar,
            disk,
            writing,
            processes,
            spawning,
            boot: 1,
            born_skew_ms: 0,
            pids: 100,
            wake_ms: 0,
            rng,
        }
    }

    fn now(&self, ms: u64) -> u64 {
        (BEGIN_UNIX_MS + ms).saturating_add_signed(self.born_skew_ms)
    }

    /// What its spool holds, read anew.
    pub fn spool(&self) -> Result<State, String> {
        if self.disk.is_empty() {
            return Ok(State::default());
        }
        let (batches, _) = frame::decode(&self.disk).map_err(|f| format!("{f:?}"))?;
        State::replay(batches.into_iter().flat_map(|b| b.records)).map_err(|r| r.to_string())
    }

    fn append(&mut self, records: Vec<Record>) {
        frame::encode(&Batch { records }, &mut self.disk);
    }

    /// What a power cut or a kill leaves of a write that was under way.
    fn tear(&mut self) {
        let Some(records) = self.writing.take() else { return };
        let mut bytes = Vec::new();
        frame::encode(&Batch { records }, &mut bytes);
        let keep = self.rng.index(bytes.len() + 1);
        self.disk.extend(&bytes[..keep]);
        if keep < bytes.len() && self.rng.one_in(2) {
            self.disk.extend(vec![0; bytes.len() - keep]);
        }
    }
}

impl World {
    pub fn start_leaf(&mut self, leaf: usize) {
        let ms = self.now;
        let l = &mut self.leaves[leaf];
        if l.core.is_some() {
            return;
        }
        l.epoch += 1;
        l.born_skew_ms = l.skew_ms;
        let state = match l.spool() {
            Ok(state) => state,
            Err(why) => return self.oracle.fail("I18", format!("leaf {leaf} can't read its own spool: {why}")),
        };
        let capacity = Capacity { slots: l.slots, memory_bytes: u64::from(l.slots) << 30, gpus: 0, architecture: "sim".into() };
        let (machine, boot) = (vec![leaf as u8; 16], l.boot.to_be_bytes().to_vec());
        let fresh = l.rng.range(1, 1 << 40);
        let mut core = match Core::new(state, l.hop.clone(), machine, boot.clone(), capacity, fresh, l.now(ms)) {
            Ok(core) => core,
            Err(r) => return self.oracle.fail("I18", format!("leaf {leaf} does not start: {r}")),
        };
        for (key, claim) in core.claimed() {
            let fate = match l.processes.get(&key) {
                _ if claim.boot != boot => Fate::Gone,
                Some(p) if p.alive => Fate::Alive { pid: p.pid },
                None if claim.started.is_none() => Fate::NeverStarted,
                Some(_) | None => Fate::Gone,
            };
            core.resume(key, fate, l.now(ms));
        }
        let now = l.now(ms);
        let records = core.cut_all(now);
        // Anew, beside, and renamed over.
        l.disk = frame::header();
        l.append(records.clone());
        core.step(Input::Committed, now);
        l.core = Some(core);
        let (epoch, link) = (l.epoch, l.link);
        self.leaf_durable(leaf, &records);
        self.note(|| format!("leaf {leaf} starts"));
        self.after(0, Next::LeafTick { leaf, epoch });
        self.plan_open(link);
        self.leaf_settle(leaf);
    }

    fn leaf_step(&mut self, leaf: usize, input: Input) {
        let ms = self.now;
        let l = &mut self.leaves[leaf];
        let now = l.now(ms);
        if let Some(core) = &mut l.core {
            core.step(input, now);
        }
    }

    /// As the agent's shell: do what is wanted, write what is to be durable, say what may be said.
    fn leaf_settle(&mut self, leaf: usize) {
        loop {
            let Some(core) = &mut self.leaves[leaf].core else { return };
            let actions = core.actions();
            if actions.is_empty() {
                break;
            }
            actions.into_iter().for_each(|a| self.leaf_act(leaf, a));
        }
        let ms = self.now;
        let l = &mut self.leaves[leaf];
        let (now, epoch, link) = (l.now(ms), l.epoch, l.link);
        let Some(core) = &mut l.core else { return };
        if l.writing.is_none()
            && let Some(records) = core.cut(now)
        {
            l.writing = Some(records);
            let commit_ms = if l.rng.one_in(8) { l.rng.range(2, 20) } else { l.rng.range(0, 2) };
            self.after(commit_ms, Next::LeafCommitted { leaf, epoch });
        }
        while self.links[link].child_has {
            let Some(up) = self.leaves[leaf].core.as_mut().and_then(|c| c.next_up(now)) else { break };
            let ups = match &mut self.leaves[leaf].liar {
                Some(liar) => liar.up(up),
                None => vec![up],
            };
            ups.into_iter().for_each(|up| self.send(link, Message::Up(up)));
        }
        let l = &mut self.leaves[leaf];
        let Some(core) = &mut l.core else { return };
        let advert = core.advert_due_in(now).filter(|ms| *ms > 0);
        let pause = Some(core.pause_ms(now)).filter(|ms| *ms > 0 && l.writing.is_none());
        if let Some(wait) = advert.into_iter().chain(pause).min()
            && (l.wake_ms <= ms || ms + wait < l.wake_ms)
        {
            l.wake_ms = ms + wait;
            self.after(wait, Next::LeafWake { leaf, epoch });
        }
    }

    fn leaf_act(&mut self, leaf: usize, action: Action) {
        let (epoch, link) = (self.leaves[leaf].epoch, self.leaves[leaf].link);
        match action {
            Action::Start(task, plan) => {
                let key = (task.number, task.index);
                self.oracle.starting(leaf, key);
                let l = &mut self.leaves[leaf];
                l.spawning.insert(key, run_of(&plan, key.1));
                let pause = l.rng.range(0, 3);
                self.after(pause, Next::Spawn { leaf, epoch, key });
            }
            Action::Signal { key, kill } => {
                let l = &mut self.leaves[leaf];
                let deaf = !kill && l.rng.one_in(4);
                let pause = if kill { 1 } else { l.rng.range(1, 100) };
                if let Some(p) = l.processes.get_mut(&key).filter(|p| p.alive && !deaf) {
                    p.exit = Exit::Signal(if kill { 9 } else { 15 });
                    let uid = p.uid;
                    self.after(pause, Next::Exit { leaf, key, uid });
                }
            }
            Action::ReadTicks(list) => {
                let ticks = list.into_iter().map(|(key, pid)| (key, pid as u64)).collect();
                self.leaf_step(leaf, Input::Ticks(ticks));
            }
            Action::Remove(keys) => {
                for key in keys {
                    self.leaves[leaf].processes.remove(&key);
                }
            }
            Action::Reconnect(why) => {
                self.note(|| format!("leaf {leaf} wants a new link: {why}"));
                self.cut(link, (0, 20), (false, false));
                self.links[link].child_has = false;
                self.leaf_step(leaf, Input::Disconnected);
            }
            Action::Refuse(refusal) => self.oracle.fail("L1", format!("leaf {leaf} gives up: {refusal}")),
            Action::Withdraw(_) | Action::Fetch(_) | Action::Upload { .. } => {}
        }
    }

    pub fn spawn(&mut self, leaf: usize, epoch: u64, key: Key) {
        let ms = self.now;
        let l = &mut self.leaves[leaf];
        let Some((takes_ms, exit)) = l.spawning.remove(&key) else { return };
        l.pids += 1;
        let (pid, alive) = (l.pids, l.epoch == epoch && l.core.is_some());
        let uid = self.oracle.started(leaf, key);
        self.leaves[leaf].processes.insert(key, Process { uid, pid, started_ms: ms, alive: true, exit });
        self.note(|| format!("leaf {leaf} runs {key:?} as process {uid}"));
        self.after(takes_ms, Next::Exit { leaf, key, uid });
        if alive {
            self.leaf_step(leaf, Input::Started(key, pid));
            self.leaf_settle(leaf);
        }
    }

    pub fn exit(&mut self, leaf: usize, key: Key, uid: Uid) {
        let ms = self.now;
        let Some(p) = self.leaves[leaf].processes.get_mut(&key).filter(|p| p.alive && p.uid == uid) else { return };
        p.alive = false;
        let report = Report { exit: p.exit, wall_ms: Some(ms - p.started_ms), cpu_us: Some(uid), ..Report::unseen() };
        self.oracle.record.exited(uid, p.exit, ms);
        self.note(|| format!("process {uid} ends: {}", report.exit));
        self.leaf_step(leaf, Input::Exited(key, report));
        self.leaf_settle(leaf);
    }

    pub fn leaf_tick(&mut self, leaf: usize) {
        self.leaf_step(leaf, Input::Tick);
        self.leaf_settle(leaf);
        let l = &self.leaves[leaf];
        let Some(core) = &l.core else { return };
        let ms = if core.is_idle() { IDLE_TICK_MS } else { TICK_MS };
        let epoch = l.epoch;
        self.after(ms, Next::LeafTick { leaf, epoch });
    }

    pub fn leaf_wake(&mut self, leaf: usize) {
        self.leaf_settle(leaf);
    }

    pub fn leaf_committed(&mut self, leaf: usize) {
        let Some(records) = self.leaves[leaf].writing.take() else { return };
        self.leaves[leaf].append(records.clone());
        self.leaf_durable(leaf, &records);
        self.leaf_step(leaf, Input::Committed);
        self.leaf_settle(leaf);
    }

    /// Claims, and ends with their usage, are kept from here on.
    fn leaf_durable(&mut self, leaf: usize, records: &[Record]) {
        for r in records {
            match &r.what {
                Some(What::Placed(p)) => self.oracle.record.leaf_saw(leaf, p.number),
                Some(What::Adopted(a)) => self.oracle.record.leaf_saw(leaf, a.number),
                Some(What::Claimed(c)) => {
                    let tasks = intergrid_proto::convert::tasks_in(c.tasks.clone()).unwrap_or_default();
                    self.oracle.claimed(leaf, c.number, &tasks);
                }
                Some(What::Event(intergrid_proto::pb::Event { what: Some(intergrid_proto::pb::event::What::Ended(e)), .. })) => {
                    e.cpu_us.iter().for_each(|uid| self.oracle.record.evidence(*uid));
                }
                _ => {}
            }
        }
    }

    pub fn leaf_connected(&mut self, leaf: usize) {
        let fresh = self.leaves[leaf].rng.range(1, 1 << 40);
        self.leaf_step(leaf, Input::Connected { fresh });
        self.leaf_settle(leaf);
    }

    pub fn leaf_disconnected(&mut self, leaf: usize) {
        self.leaf_step(leaf, Input::Disconnected);
        self.leaf_settle(leaf);
    }

    pub fn leaf_hears(&mut self, leaf: usize, down: Down) {
        self.oracle.heard(leaf, self.links[self.leaves[leaf].link].parent, &down);
        let down = match &mut self.leaves[leaf].liar {
            Some(liar) => liar.down(down),
            None => down,
        };
        self.leaf_step(leaf, Input::Down(down));
        self.leaf_settle(leaf);
    }

    /// The agent's process dies. What is just being started may still start.
    pub fn kill_leaf(&mut self, leaf: usize, down_ms: u64) {
        self.die(leaf, down_ms);
    }

    fn die(&mut self, leaf: usize, down_ms: u64) {
        let l = &mut self.leaves[leaf];
        let was_up = l.core.take().is_some();
        l.epoch += 1;
        l.wake_ms = 0;
        if let Some(liar) = &mut l.liar {
            liar.disconnected();
        }
        l.tear();
        let (rng, spawning) = (&mut l.rng, &mut l.spawning);
        spawning.retain(|_, _| rng.one_in(2));
        let late: Vec<Key> = spawning.keys().copied().collect();
        let epoch = l.epoch;
        late.into_iter().for_each(|key| self.spawn(leaf, epoch, key));
        self.drop_links_of(Lower::Leaf(leaf));
        if was_up {
            self.after(down_ms, Next::StartLeaf(leaf));
        }
    }

    /// The machine goes down; `empty`: another one comes in its place.
    pub fn reboot_leaf(&mut self, leaf: usize, down_ms: u64, empty: bool) {
        self.die(leaf, down_ms);
        let l = &mut self.leaves[leaf];
        l.boot += 1;
        let gone: Vec<(Uid, bool)> = l.processes.values().map(|p| (p.uid, p.alive)).collect();
        l.processes.clear();
        if empty {
            l.disk.clear();
            if let Some(liar) = &mut l.liar {
                *liar = Liar::default();
            }
        }
        gone.into_iter().filter(|(_, alive)| *alive).for_each(|(uid, _)| self.oracle.record.vanished(uid));
        if empty {
            self.oracle.record.machine_replaced(leaf, self.now);
        }
    }
}

fn run_of(plan: &Arc<Plan>, task: u32) -> (u64, Exit) {
    work(&plan.spec.argv, task)
}
