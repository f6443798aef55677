//! The engine's pure core: (state, input, now) -> changes and actions. No async, clock, random or I/O.
//!
//! Law: an action is performed only after every change recorded before it is durable. Everything durable is a change; what else the core holds
//! (sessions, advertisements, hints) may be lost at any moment and is rebuilt from the peers. A restart is a load and nothing else: what is due is
//! found again when peers attach.
//!
//! North (users and parents) is in `north`, south (children) in `south`, the pass that places waiting tasks in `schedule`, what parents are told in
//! `advert`, what people are told in `view`.

mod adopt;
pub mod advert;
pub mod apply;
pub mod archive;
pub mod away;
mod cells;
#[allow(missing_docs)] // Records: the enum above them says what each is.
pub mod change;
mod cost;
mod derive;
mod fence;
mod fit;
#[cfg(test)]
mod golden;
mod hints;
pub mod limits;
mod linger;
mod north;
pub mod orders;
mod pauses;
pub mod planted;
mod recover;
pub mod rent;
mod resync;
mod room;
pub mod rows;
pub mod schedule;
mod small;
mod south;
#[allow(missing_docs)] // Entities: their fields are named by the records.
pub mod state;
pub mod steps;
#[cfg(test)]
mod tests;
mod users;
pub mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use intergrid_proto::link::{Advert, Attempts, Down, Ended, Event, EventKind, Hello, Hop, ShapeDemand, Up, WantValue};
use intergrid_proto::{BlobHash, Pace, Refusal, Share, SiteId, TaskSet, pb};
use prost::Message;

use crate::store::{Batch, Store, StoreError};
use apply::{Dirty, RowKey};
use change::{Change, What};
use limits::*;
use rows::pieces;
use schedule::Policy;
use state::{QueueKey, Spec, State};

/// Both clocks of the shell. Time-outs use the monotonic one, records the other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Now {
    /// Milliseconds since some start; never jumps.
    pub mono_ms: u64,
    /// Milliseconds since 1970; may jump.
    pub unix_ms: u64,
}

/// Who waits for a reply; the shell's.
pub type Token = u64;

/// A user's submission: the spec is decoded, its content is here.
#[derive(Debug)]
pub struct Submission {
    /// Who; the id of his certificate.
    pub owner: SiteId,
    /// His label.
    pub owner_name: String,
    /// His own.
    pub key: String,
    /// Its bytes and what they say.
    pub spec: Arc<Spec>,
    /// Tasks of the array.
    pub tasks: u32,
    /// Not to be started until released.
    pub hold: bool,
    /// The signed chain.
    pub chain: Vec<pb::ChainLink>,
}

/// What can happen to a site.
#[allow(missing_docs)] // The fields: the variants say what they are.
#[derive(Debug)]
pub enum Input {
    /// A user submits.
    Submit { token: Token, submission: Submission },
    /// A user wishes. None: all tasks.
    SetWant { token: Token, job: u64, value: WantValue, tasks: Option<TaskSet> },
    /// An administrator, or a job's owner, orders.
    Order { token: Token, order: orders::Order },
    /// A parent's link is open.
    ParentUp { parent: SiteId, name: String },
    /// A parent says something.
    ParentSays { parent: SiteId, message: Down },
    /// A parent places for somebody for whom it may not act.
    Denied { parent: SiteId, place: Box<intergrid_proto::link::Place>, reason: intergrid_proto::Reason },
    /// A parent's link is gone.
    ParentGone { parent: SiteId },
    /// A child's first message.
    ChildUp { child: SiteId, hello: Hello },
    /// A child says something.
    ChildSays { child: SiteId, message: Up },
    /// A child's link is gone: why, and for how long it had been silent then.
    ChildGone { child: SiteId, why: String, silent_ms: u64 },
    /// Why there is no room for new work on the disk; None: there is.
    Room(Option<Refusal>),
    /// What could be rented for this site. Not durable.
    ForRent(rent::ForRent),
    /// Time has passed.
    Tick,
}

/// What the shell has to do, once the changes are durable.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Answer a submission: job number, and whether it existed.
    Submitted(Token, Result<(u64, bool), Refusal>),
    /// Answer a wish: how many tasks it concerns.
    Wanted(Token, Result<u64, Refusal>),
    /// Answer an order.
    Ordered(Token, Result<orders::Done, Refusal>),
    /// Send to a parent.
    ToParent(SiteId, Up),
    /// Send to a child.
    ToChild(SiteId, Down),
    /// A job's view has changed.
    Changed(u64),
    /// Write to the log.
    Warn(String),
    /// A main step of a job, for the log.
    Step(u64, steps::Step),
    /// End the links to this peer, which has to be greeted anew: why.
    Leave(SiteId, String),
}

/// A child's session and what it last said.
#[derive(Debug)]
struct Child {
    hop: Hop,
    /// The highest placement that it had seen when it said hello.
    seen: u64,
    attached: bool,
    /// When contact was lost, by the monotonic clock; from the start of this process for a child not yet seen.
    lost_ms: u64,
    why_lost: String,
    shares: Vec<(Arc<str>, Share)>,
    /// What cost money and is no longer told of, since when: a job may wait for it.
    away: Vec<(u64, Share)>,
    below: Vec<Hop>,
    /// When it last advertised.
    heard_ms: u64,
    /// Specs that this session has carried.
    specs: BTreeSet<BlobHash>,
    /// Shares that gave work back, and whose: until when, the last pause (0: it has taken work since), why.
    back_off: HashMap<(Arc<str>, QueueKey), (u64, u64, intergrid_proto::Reason)>,
    /// Placements that it gave back, less those that are forgiven: how many, as of when.
    returned: (u64, u64),
    /// Left alone altogether until then: it gives back too much.
    paused_until_ms: u64,
    /// Of the full state that is under way: which of its tasks it knows.
    resync: BTreeMap<u64, TaskSet>,
    /// When its full state was last asked for; and whether it is due again.
    resync_asked_ms: u64,
    resync_due: bool,
    /// What it has listed of our older incarnations and nobody has claimed; and where the list
    /// is whole, from which placement on it leaves nothing out.
    orphans: Vec<intergrid_proto::link::Orphan>,
    listed: Option<u64>,
    demand: Vec<ShapeDemand>,
    demand_told: Vec<ShapeDemand>,
    demand_ms: u64,
}

/// A parent's session.
#[derive(Debug)]
struct Parent {
    name: String,
    attached: bool,
    /// It has said hello in this session.
    greeted: bool,
    /// Its cursor is known: events may flow.
    live: bool,
    /// Highest event sequence sent in this session.
    sent: u64,
    sent_at: VecDeque<(u64, u64)>,
    demand: Vec<ShapeDemand>,
    advert: Option<Advert>,
    /// The advert before it, until it has seen the latest: what was placed on its word may be under way.
    before: Option<Advert>,
    advert_ms: u64,
    advert_version: u64,
    /// Milliseconds from an event to its acknowledgement, smoothed.
    round_trip_ms: f64,
    /// It was asked in our hello to send again what it holds open here.
    asked: bool,
    /// It does: so far, by its job and number; since when.
    resent: Option<BTreeMap<(u64, u64), TaskSet>>,
    resent_from_ms: u64,
    /// It has said all that it holds open here, or was not asked.
    confirmed: bool,
    /// The highest of its placements of which it can't be told any more: their jobs ended too long ago.
    left_out: u64,
    /// When it was last told its full state, 0: never; and whether that is due.
    resync_told_ms: u64,
    resync_due: bool,
}

/// The core of one site.
pub struct Core {
    me: Hop,
    state: State,
    policy: Box<dyn Policy>,
    now: Now,
    started_ms: u64,
    next_change: u64,
    children: BTreeMap<SiteId, Child>,
    parents: BTreeMap<SiteId, Parent>,
    /// Slots ended a second, smoothed, and the count at the last look.
    ended_rate: f64,
    ended_seen: (u64, u64),
    /// Tasks whose phase a parent is to be told again, by our job.
    hints: BTreeMap<(SiteId, u64), TaskSet>,
    batch: Batch,
    batch_bytes: usize,
    urgent: bool,
    actions: Vec<Action>,
    changed: BTreeSet<u64>,
    wants_due: BTreeSet<u64>,
    /// Jobs that may be over, and when they are to be put away; how long after that is, of users' and of parents' jobs.
    leave_due: BTreeSet<(u64, u64)>,
    away_after_ms: (u64, u64),
    /// A spec that was fetched for the next input.
    recalled: Option<Arc<Spec>>,
    /// Parents' jobs with nothing open, since when: for the log.
    ending: BTreeMap<u64, u64>,
    schedule_due: bool,
    advert_due: bool,
    dirty: Dirty,
    changes_since_checkpoint: u64,
    checkpoint: Option<(u64, Dirty)>,
    jobs_waiting_max: usize,
    names_max: usize,
    checkpoint_changes: u64,
    /// The incarnation to take should this store be found to be old. None: its incarnation was born in this process, so that it can't be.
    fresh: Option<u64>,
    /// Since when peers are asked for what this store lacks; and when what they said is looked at next.
    recovering_from_ms: u64,
    settle_ms: u64,
    /// Tasks placed of parents' jobs of which some wait, and which waited when that began to be counted.
    paces: BTreeMap<u64, (Pace, TaskSet)>,
    /// Names of all children that there can be, where that is known.
    expected: Option<BTreeSet<String>>,
    /// Jobs of whose lost tasks parents have been told.
    lost_told: BTreeSet<u64>,
    /// The highest event that each parent may have seen: of what was loaded, and of what was sent since. One that has seen more has seen it of a store
    /// that this one is an old copy of, whatever this one has made of the number since.
    told: BTreeMap<SiteId, u64>,
    /// The last job that was loaded: later ones of our users were placed by this process or not at all.
    loaded: u64,
    /// A child has another store than the one that this one knew: it cannot list what was placed there in a time that this store has forgotten. Or one came
    /// in that time, and so may have others that are away. Either may be where a recovery goes on that an earlier process began.
    lists_less: bool,
    /// Peers that were there before this process, had work of ours or gave us some, and are not back: until then loaded tasks wait.
    missed: BTreeSet<SiteId>,
    /// There is no room for new work on the disk: why, and since when.
    no_room: Option<(Refusal, u64)>,
    /// Machines that are not there, and could be.
    for_rent: rent::ForRent,
}

/// What one turn of the shell has to commit, and then do.
#[derive(Debug, Default)]
pub struct Output {
    /// To be committed first.
    pub batch: Batch,
    /// Then to be done, in order.
    pub actions: Vec<Action>,
}

impl Core {
    /// Load from a store; `fresh` is the incarnation to take where the store is new, or is found to be old (random, not 0).
    pub fn load(me: Hop, store: &dyn Store, policy: Box<dyn Policy>, now: Now, fresh: u64) -> Result<Core, StoreError> {
        let (state, dirty, next_change) = State::load(store)?;
        let ended = state.ended;
        let mut core = Core {
            me,
            state,
            policy,
            now,
            started_ms: now.mono_ms,
            next_change,
            children: BTreeMap::new(),
            parents: BTreeMap::new(),
            ended_rate: 0.0,
            // What a load has counted did not end just now.
            ended_seen: (now.mono_ms, ended),
            hints: BTreeMap::new(),
            batch: Batch::default(),
            batch_bytes: 0,
            urgent: false,
            actions: Vec::new(),
            changed: BTreeSet::new(),
            wants_due: BTreeSet::new(),
            leave_due: BTreeSet::new(),
            away_after_ms: (AWAY_AFTER_MS, AWAY_PLACED_AFTER_MS),
            recalled: None,
            ending: BTreeMap::new(),
            schedule_due: true,
            advert_due: true,
            changes_since_checkpoint: dirty.len() as u64,
            dirty,
            checkpoint: None,
            jobs_waiting_max: JOBS_WAITING_MAX,
            names_max: NAMES_MAX,
            checkpoint_changes: CHECKPOINT_CHANGES,
            fresh: Some(fresh.max(1)),
            recovering_from_ms: now.mono_ms,
            settle_ms: now.mono_ms,
            paces: BTreeMap::new(),
            expected: None,
            lost_told: BTreeSet::new(),
            told: BTreeMap::new(),
            loaded: 0,
            lists_less: false,
            missed: BTreeSet::new(),
            no_room: None,
            for_rent: rent::ForRent::default(),
        };
        core.be_careful();
        (core.loaded, core.lists_less) = (core.state.next_job, core.state.recovering);
        core.told = core.state.links.iter().map(|(id, l)| (*id, l.next)).collect();
        core.changed = core.state.jobs.values().filter(|j| j.open() == 0).map(|j| j.no).collect();
        if core.state.incarnation == 0 {
            core.fresh = None;
            core.record(What::Born(change::Born { incarnation: fresh.max(1), ..Default::default() }));
        }
        Ok(core)
    }

    /// Write rows and cut the log after so many changes; for tests, which have fewer.
    pub fn checkpoint_every(&mut self, changes: u64) {
        self.checkpoint_changes = changes;
    }

    /// Other children than these can't be.
    pub fn expect(&mut self, children: impl IntoIterator<Item = String>) {
        self.expected = Some(children.into_iter().collect());
    }

    /// This site.
    pub fn me(&self) -> &Hop {
        &self.me
    }

    /// What is known; for reading.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Take one input.
    pub fn step(&mut self, input: Input, now: Now) {
        self.now = now;
        match input {
            Input::Submit { token, submission } => {
                let answer = self.submit(submission);
                self.actions.push(Action::Submitted(token, answer));
            }
            Input::SetWant { token, job, value, tasks } => {
                let answer = self.user_wants(job, value, tasks);
                self.actions.push(Action::Wanted(token, answer));
            }
            Input::Order { token, order } => {
                let answer = self.order(order);
                self.actions.push(Action::Ordered(token, answer));
            }
            Input::ParentUp { parent, name } => self.parent_up(parent, name),
            Input::ParentSays { parent, message } => self.parent_says(parent, message),
            Input::Denied { parent, place, reason } => self.deny(parent, *place, reason),
            Input::ParentGone { parent } => self.parent_gone(parent),
            Input::ChildUp { child, hello } => self.child_up(child, hello),
            Input::ChildSays { child, message } => self.child_says(child, message),
            Input::ChildGone { child, why, silent_ms } => self.child_gone(child, why, silent_ms),
            Input::Room(why) => self.room(why),
            Input::ForRent(offer) => self.hear_of(offer),
            Input::Tick => self.tick(),
        }
    }

    /// End of a turn: place what can be placed, tell parents, checkpoint; then what is to be committed and done.
    pub fn turn(&mut self, now: Now) -> Output {
        self.now = now;
        self.recalled = None;
        self.state.forget_left();
        if std::mem::take(&mut self.schedule_due) {
            self.schedule();
        }
        for job in std::mem::take(&mut self.wants_due) {
            self.send_wants(job);
        }
        self.flush_events();
        self.flush_hints();
        self.flush_adverts();
        self.flush_demand();
        self.write_checkpoint();
        let changed = std::mem::take(&mut self.changed);
        changed.iter().for_each(|job| self.may_leave(*job));
        self.put_away();
        for job in changed {
            self.actions.push(Action::Changed(job));
        }
        let actions = std::mem::take(&mut self.actions);
        if !self.urgent && self.batch.rows.is_empty() && self.batch.truncate_below.is_none() && self.batch.changes.len() < LAZY_CHANGES_MAX {
            return Output { batch: Batch::default(), actions };
        }
        (self.urgent, self.batch_bytes) = (false, 0);
        Output { batch: std::mem::take(&mut self.batch), actions }
    }

    fn record(&mut self, mut what: What) -> u64 {
        cost::charge(&self.state, &mut what);
        let seq = self.next_change;
        self.next_change += 1;
        self.changes_since_checkpoint += 1;
        // That a parent has acknowledged may be forgotten without harm (he says it again): no commit for it alone.
        // Nor that a child is here, or gone: before anything is placed on it, it is in the log.
        let idle = matches!(&what, What::Acked(_)) || matches!(&what, What::Cursor(c) if c.attached > 0);
        self.urgent |= !idle && !planted::is_late(&what);
        self.state.apply(seq, &what, &mut self.dirty, true);
        let bytes = Change { what: Some(what) }.encode_to_vec();
        self.changes_since_checkpoint += bytes.len() as u64 / CHECKPOINT_CHANGE_BYTES;
        self.batch_bytes += bytes.len();
        self.batch.changes.push((seq, bytes));
        seq
    }

    fn emit(&mut self, parent: SiteId, event: Event) {
        let sequence = self.state.links.entry(parent).or_default().next + 1;
        let (parent, event, at_ms) = (parent.0.to_vec(), Some(event.into()), self.now.unix_ms);
        self.record(What::Emit(change::Emit { parent, sequence, event, at_ms }));
    }

    /// Tell the job's parent, placement by placement, something about tasks of it.
    fn emit_for(&mut self, job: u64, tasks: &TaskSet, what: &dyn Fn(&TaskSet) -> EventKind) {
        let Some(j) = self.state.jobs.get(&job) else { return };
        let Some(parent) = j.parent else { return };
        // Of orphans it is not told: it has lost the store by which it knew them.
        let now = self.state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        let named = |(up, tasks)| j.ups.get(&up).filter(|e| e.incarnation == now).map(|e| Attempts { number: e.number, job: e.job, tasks });
        // Late word of what went back meanwhile: under the first name by which it knows the job.
        let gone = j.select(tasks, |c| c.phase == 0);
        let any = j.ups.iter().find(|(_, e)| e.incarnation == now).map(|(up, _)| (*up, gone.clone()));
        let groups = j.by_up(&tasks.subtract(&gone)).into_iter().chain(any.filter(|_| !gone.is_empty()));
        let groups: Vec<Attempts> = groups.filter_map(named).collect();
        for of in groups {
            let what = what(&of.tasks);
            self.emit(parent, Event { of, what });
        }
    }

    fn history(&mut self, job: u64, entry: pb::HistoryEntry) {
        // Ends are as many as there are tasks and attempts; of notes beside them, a peer could make any number.
        if (entry.stale || entry.returned.is_some())
            && let Some(j) = self.state.jobs.get_mut(&job)
        {
            j.notes += 1;
            if j.notes > HISTORY_NOTES_MAX {
                return;
            }
        }
        // A number of its own, taken from the changes': one of the same batch always follows, so that no later row gets it again.
        let key = rows::history_key(job, self.next_change);
        self.next_change += 1;
        // `age_ms` holds the moment while it is stored.
        let entry = pb::HistoryEntry { age_ms: self.now.unix_ms, ..entry };
        self.batch.rows.push((key, Some(entry.encode_to_vec())));
    }

    /// Tasks are over: the change, history, and word to the parent. `number` 0: they were not placed.
    fn finish(&mut self, job: u64, number: u64, child: Option<Hop>, tasks: &TaskSet, ended: &Ended) {
        let whole = tasks;
        for tasks in pieces(whole, CHANGE_TASKS_MAX, CHANGE_RANGES_MAX) {
            let part = ended.select(whole, &tasks);
            let entry = pb::HistoryEntry {
                number,
                tasks: Some(intergrid_proto::convert::tasks_out(&tasks)),
                ended: Some(part.clone().into()),
                child: child.clone().map(Into::into),
                ..Default::default()
            };
            self.history(job, entry);
            let mut up = part.clone();
            up.route.push(self.me.clone());
            up.lost = false;
            self.emit_for(job, &tasks, &|t| EventKind::Ended(up.select(&tasks, t)));
            let (phase, at_ms) = (part.phase as i32, self.now.unix_ms);
            let of = child.as_ref().map(|c| c.site.0.to_vec()).unwrap_or_default();
            let spent_micro = self.charge_ends(job, number, &tasks, &part);
            let (tasks, exit, attempts) = (tasks.to_runs(), part.exit, part.attempts);
            self.record(What::Ended(change::TasksEnded { job, number, tasks, phase, exit, attempts, at_ms, child: of, spent_micro }));
        }
        if let Some(j) = self.state.jobs.get_mut(&job) {
            view::note_failed(j, whole, ended);
        }
        self.note_end(job);
        self.changed.insert(job);
        self.schedule_due = true;
        self.advert_due = true;
    }

    /// An attempt that changes no phase any more: history and usage, here and above.
    fn note_stale(&mut self, job: u64, number: u64, child: Option<Hop>, tasks: &TaskSet, ended: &Ended) {
        for part in pieces(tasks, CHANGE_TASKS_MAX, CHANGE_RANGES_MAX) {
            let mut e = ended.select(tasks, &part);
            e.stale = true;
            let entry = pb::HistoryEntry {
                number,
                tasks: Some(intergrid_proto::convert::tasks_out(&part)),
                ended: Some(e.clone().into()),
                child: child.clone().map(Into::into),
                stale: true,
                ..Default::default()
            };
            self.history(job, entry);
            e.route.push(self.me.clone());
            self.emit_for(job, &part, &|t| EventKind::Ended(e.select(&part, t)));
        }
    }

    fn tick(&mut self) {
        self.measure_ends();
        self.fence_lost();
        self.give_back_stuck();
        self.resyncs_due();
        self.recovery_goes_on();
        self.say_ends();
        if !self.state.waiting.is_empty() {
            // Pauses run out.
            self.schedule_due = true;
        }
        self.advert_due = true;
    }

    fn write_checkpoint(&mut self) {
        if self.checkpoint.is_none() {
            if self.changes_since_checkpoint < self.checkpoint_changes {
                return;
            }
            self.changes_since_checkpoint = 0;
            let mut todo = std::mem::take(&mut self.dirty);
            todo.insert(RowKey::Meta);
            self.checkpoint = Some((self.next_change, todo));
        }
        let Some((from, mut todo)) = self.checkpoint.take() else { return };
        for _ in 0..CHECKPOINT_ROWS_PER_COMMIT {
            let Some(k) = todo.pop_first() else { break };
            self.state.compact(k);
            self.batch.rows.push((k.bytes(), self.state.row(k, self.next_change)));
        }
        if !todo.is_empty() {
            self.checkpoint = Some((from, todo));
            return;
        }
        // What a parent has not acknowledged stays in the log, within bounds; beyond them it gets a resync.
        let mut below = from;
        for link in self.state.links.values_mut() {
            while link.outbox.len() > OUTBOX_EVENTS_MAX {
                link.forget_first();
            }
            below = below.min(link.outbox.front().map_or(from, |e| e.1));
        }
        self.batch.truncate_below = Some(below);
    }

    /// What the changes of this turn have come to.
    pub fn turn_bytes(&self) -> usize {
        self.batch_bytes
    }

    /// A checkpoint is under way: turns should go on although nothing happens.
    pub fn is_checkpointing(&self) -> bool {
        self.checkpoint.is_some()
    }
}
