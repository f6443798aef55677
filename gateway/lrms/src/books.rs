//! What is known of submissions and their tasks: pure, so that tests drive it without a cluster.
//!
//! Invariant: a task is in the hands of the LRMS from [`Books::add`] to [`Books::over`], and whether it has started is decided by its claim alone. What the
//! LRMS says only ever raises a question; the answer is a record, or a claim that we could take ourselves.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use intergrid_agent::core::Key;
use intergrid_proto::Reason;
use serde::{Deserialize, Serialize};

use crate::hand::files::WITHDRAWN;
use crate::limits::*;
use crate::lrms::{Entry, How, LrmsId, Over, State, Wait};
use numbers::{Number, Numbers};

/// A task of a submission: its tag and position.
pub type Place = (String, u32);

/// What was going to be submitted: durable before anything is done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// Its name in the LRMS.
    pub tag: String,
    /// Partition or queue.
    pub queue: String,
    /// None: our own.
    pub account: Option<String>,
    /// For whom.
    pub principal: String,
    /// Its tasks, by position: of one placement of the gateway, or of several.
    pub tasks: Vec<Key>,
    /// Slots of each.
    pub slots: u32,
}

/// How far a submission is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Not given to the LRMS yet, or just being given.
    Sending,
    /// Its answer was lost, since then.
    Lost(u64),
    /// It is there.
    Sent,
}

/// What is known of a task.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Watch {
    /// Its claim was seen, and is its own.
    pub started: bool,
    /// The number of the job that has claimed it, and when, in seconds since 1970.
    pub claim: Option<(LrmsId, u64)>,
    /// As the last look at the LRMS showed it.
    pub entry: Option<State>,
    /// The machine that it has there; empty: none.
    pub machine: String,
    /// It waits there for its turn, since then.
    pub waits_ms: Option<u64>,
    /// Not alive in the LRMS, since then.
    pub gone_ms: Option<u64>,
    /// How the LRMS says that it ended, and in which words.
    pub verdict: Option<(Over, String)>,
    /// Its exit record was seen, then.
    pub record_ms: Option<u64>,
    /// Its exit record could not be read, since then.
    pub unread_ms: Option<u64>,
    /// And never could: it counts as none.
    pub unreadable: bool,
    /// We have asked for its end.
    pub stopped: bool,
    /// And the LRMS has not answered yet: is it to be killed?
    pub unheard: Option<bool>,
    /// Its claim is being taken, so that it never starts.
    pub taking: bool,
    /// Somebody is at it; nobody else is to begin.
    pub busy: bool,
    /// It has ended, or gone back: only what it has left is still here.
    pub over: bool,
}

/// A submission.
#[derive(Clone, PartialEq, Debug)]
pub struct Sub {
    /// What it is.
    pub intent: Intent,
    /// How far.
    pub step: Step,
    /// When it was given to the LRMS; of one of an earlier process, when that was read.
    pub sent_ms: u64,
    /// It is this process's own: how long its tasks wait is known.
    pub fresh: bool,
    /// Its directory was made: where nothing of it is there, its files are away.
    pub begun: bool,
    /// The LRMS has told its number: no name counts for it.
    pub told: bool,
    /// Its jobs: more than one where an answer was lost.
    pub ids: Vec<LrmsId>,
    /// What somebody else has called these since.
    pub renamed: BTreeMap<LrmsId, String>,
    /// Why its tasks go back, where the LRMS turns out not to have it; None: an earlier process knew.
    pub doubt: Option<Reason>,
    /// By position; removed when nothing is left of it.
    pub tasks: BTreeMap<u32, Watch>,
}

impl Sub {
    /// Is a job of this number and this name one of its? Empty: the books do not have the name. An LRMS that has lost its state gives numbers twice.
    pub fn has(&self, id: LrmsId, name: &str) -> bool {
        let renamed = || self.renamed.get(&id).is_some_and(|given| name.is_empty() || name == given);
        self.ids.contains(&id) && (name == self.intent.tag || renamed())
    }
}

/// What a look at claims and records has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// It has started.
    Started(Place),
    /// Its claim is there, and should be read now: it has started, or we have claimed it ourselves.
    Claim(Place),
    /// It has an exit record, that should be read now.
    Record(Place),
}

/// Whose a claim is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claimed {
    /// The task's own.
    Started,
    /// Ours, and nobody is at it.
    Withdrawn,
}

/// What a look at the queue has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It is suspended, or goes on.
    Suspended(Place, bool),
    /// It will never start there as it is: why, and is that a fault of the task?
    Hopeless(Place, Wait, String),
}

/// A task in the LRMS that should not be there any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stray {
    /// Its account; None: our own.
    pub account: Option<String>,
    /// Is its submission known, or was, by its number? Else it has nothing but a name like ours.
    pub known: bool,
    /// How it is to be removed.
    pub kill: bool,
    /// Of what runs nobody knows that it does not just end.
    runs: bool,
    /// It was removed last, or found, then.
    since_ms: u64,
}

/// All submissions that are not over.
#[derive(Debug, Default)]
pub struct Books {
    /// The name of our own account; empty: not known, and nobody's jobs are told from ours.
    pub own: String,
    /// The names of all our submissions begin so.
    pub prefix: String,
    subs: BTreeMap<String, Sub>,
    numbers: Numbers,
    /// By queue: each is a link of its own, with numbers of its own.
    places: HashMap<(String, Key), Place>,
    /// By queue: when the last tasks started, and how long each had waited.
    waits: HashMap<String, VecDeque<(u64, u64)>>,
    /// Submissions of which only files are left: whose.
    leaving: BTreeMap<String, String>,
    /// As the last look at the LRMS showed them.
    strays: BTreeMap<(LrmsId, u32), Stray>,
    /// Something is over, and the LRMS was not looked at since.
    unseen: bool,
}

impl Books {
    /// A submission is going to be made.
    pub fn add(&mut self, mut intent: Intent, step: Step, now: u64) {
        let (tag, keys) = (intent.tag.clone(), std::mem::take(&mut intent.tasks));
        let fresh = step == Step::Sending;
        let (ids, renamed, tasks) = Default::default();
        let sub = Sub { intent, step, sent_ms: now, fresh, begun: !fresh, told: false, ids, renamed, doubt: None, tasks };
        self.subs.insert(tag.clone(), sub);
        self.join(&tag, keys);
    }

    /// More tasks go with it: before anything is done for it.
    pub fn join(&mut self, tag: &str, keys: impl IntoIterator<Item = Key>) {
        let Some(sub) = self.subs.get_mut(tag) else { return };
        for (position, key) in (sub.intent.tasks.len() as u32 + 1..).zip(keys) {
            sub.intent.tasks.push(key);
            sub.tasks.insert(position, Watch::default());
            self.places.insert((sub.intent.queue.clone(), key), (tag.to_string(), position));
        }
    }

    /// Is anything open?
    pub fn is_idle(&self) -> bool {
        self.subs.values().all(|s| s.tasks.values().all(|w| w.over))
    }

    /// One submission.
    pub fn sub(&self, tag: &str) -> Option<&Sub> {
        self.subs.get(tag)
    }

    /// Is any task of it neither over nor taken back?
    pub fn is_wanted(&self, tag: &str) -> bool {
        self.subs.get(tag).is_some_and(|s| s.tasks.values().any(|w| !w.over))
    }

    /// All submissions.
    pub fn subs(&self) -> impl Iterator<Item = &Sub> {
        self.subs.values()
    }

    /// One submission, to be changed.
    pub fn sub_mut(&mut self, tag: &str) -> Option<&mut Sub> {
        self.subs.get_mut(tag)
    }

    /// Where a task is.
    pub fn place(&self, queue: &str, key: Key) -> Option<&Place> {
        self.places.get(&(queue.to_string(), key))
    }

    /// Which task that is.
    pub fn key(&self, (tag, position): &Place) -> Option<Key> {
        self.subs.get(tag)?.intent.tasks.get(*position as usize - 1).copied()
    }

    /// What is known of a task that is not over.
    pub fn watch(&mut self, (tag, position): &Place) -> Option<&mut Watch> {
        self.subs.get_mut(tag)?.tasks.get_mut(position).filter(|w| !w.over)
    }

    /// Those of so many positions that are not wanted in the LRMS: over, taken back, to be stopped, or nothing is left of them.
    pub fn unwanted(&self, tag: &str, positions: u32) -> Vec<u32> {
        let is_wanted = |position: &u32| self.subs.get(tag).and_then(|s| s.tasks.get(position)).is_some_and(|w| !w.over && !w.stopped);
        (1..=positions).filter(|position| !is_wanted(position)).collect()
    }

    /// Tasks and slots in the LRMS: of a principal, and of all.
    pub fn load(&self, principal: &str) -> [(u64, u64); 2] {
        let mut load = [(0, 0); 2];
        for sub in self.subs.values() {
            let tasks = sub.tasks.values().filter(|w| !w.over).count() as u64;
            let slots = tasks * u64::from(sub.intent.slots);
            load[1] = (load[1].0 + tasks, load[1].1 + slots);
            if sub.intent.principal == principal {
                load[0] = (load[0].0 + tasks, load[0].1 + slots);
            }
        }
        load
    }

    /// Slots that our tasks occupy in a queue, as the last look at the LRMS showed them.
    pub fn occupied(&self, queue: &str) -> u64 {
        let of = |s: &Sub| {
            s.tasks.values().filter(|w| matches!(w.entry, Some(State::Running | State::Suspended))).count() as u64 * u64::from(s.intent.slots)
        };
        self.subs.values().filter(|s| s.intent.queue == queue).map(of).sum()
    }

    /// Claims and records of an account were looked at.
    pub fn looked(&mut self, account: Option<&str>, names: &[String], now: u64) -> Vec<Found> {
        let mut found = Vec::new();
        for name in names {
            let mut parts = name.rsplitn(3, '.');
            let (Some(kind), Some(position), Some(tag)) = (parts.next(), parts.next().and_then(|p| p.parse::<u32>().ok()), parts.next()) else {
                continue;
            };
            let Some(sub) = self.subs.get_mut(tag).filter(|s| s.intent.account.as_deref() == account) else { continue };
            let Some(watch) = sub.tasks.get_mut(&position).filter(|w| !w.over) else { continue };
            match kind {
                "c" if watch.claim.is_none() => found.push(Found::Claim((tag.to_string(), position))),
                "x" if !watch.busy && !watch.unreadable => {
                    // Listed before its claim, or without it: it has started all the same.
                    if !std::mem::replace(&mut watch.started, true) {
                        found.push(Found::Started((tag.to_string(), position)));
                    }
                    watch.record_ms.get_or_insert(now);
                    watch.busy = true;
                    found.push(Found::Record((tag.to_string(), position)));
                }
                _ => {}
            }
        }
        found.sort_by_key(|f| matches!(f, Found::Record(_)));
        found
    }

    /// What its claim says was read. Some: that has to be done, the task has started, or was being taken back when an earlier process ended.
    pub fn claimed(&mut self, place: &Place, text: &str) -> Option<Claimed> {
        let watch = self.watch(place).filter(|w| !w.started)?;
        match text {
            // We are at it: it may be being written.
            WITHDRAWN | "" if watch.taking => None,
            WITHDRAWN => Some(Claimed::Withdrawn),
            _ => {
                watch.started = true;
                Some(Claimed::Started)
            }
        }
    }

    /// Its claim could not be taken: it has started, and the LRMS has it.
    pub fn kept(&mut self, place: &Place) {
        if let Some(watch) = self.watch(place) {
            watch.taking = false;
        }
        if let Some(sub) = self.subs.get_mut(&place.0).filter(|s| matches!(s.step, Step::Lost(_))) {
            sub.step = Step::Sent;
        }
    }

    /// An exit record can't be read. One that is on its way can be, after a while; then it counts as none. True: it does now.
    pub fn unreadable(&mut self, place: &Place, now: u64) -> bool {
        let Some(watch) = self.watch(place) else { return false };
        watch.busy = false;
        let since = *watch.unread_ms.get_or_insert(now);
        watch.unreadable = now >= since + VERDICT_WAIT_MS;
        if watch.unreadable {
            watch.record_ms = None;
        }
        watch.unreadable
    }

    /// The LRMS has answered a question that was asked at `asked`: these are all that it has.
    pub fn surveyed(&mut self, asked: u64, mut entries: Vec<Entry>, now: u64) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut there: HashSet<Place> = HashSet::new();
        self.recognise(&mut entries);
        self.missed(&entries);
        // A number that was given twice is its that has it now.
        let named: HashMap<LrmsId, &str> = entries.iter().map(|e| (e.id, e.tag.as_str())).collect();
        for (tag, sub) in &mut self.subs {
            sub.ids.retain(|id| named.get(id).is_none_or(|t| t == tag));
        }
        let mut strays = std::mem::take(&mut self.strays);
        for e in entries {
            let place = (e.tag.clone(), e.position);
            let key = (e.id, e.position);
            if let Some(stray) = self.stray(&e) {
                let since_ms = strays.remove(&key).map_or(now, |s| s.since_ms);
                self.strays.insert(key, Stray { since_ms, ..stray });
            }
            let Some(sub) = self.subs.get_mut(&e.tag) else { continue };
            if let Step::Lost(_) = sub.step {
                sub.step = Step::Sent;
            }
            if !sub.ids.contains(&e.id) {
                sub.ids.push(e.id);
                self.numbers.insert(e.id, Number::of(&sub.intent));
            }
            let Some(watch) = sub.tasks.get_mut(&e.position).filter(|w| !w.over) else { continue };
            let was_suspended = watch.entry == Some(State::Suspended);
            match &e.state {
                State::Ended(over) => {
                    // Of two copies, one that lives counts.
                    if !there.contains(&place) {
                        watch.verdict.get_or_insert_with(|| (over.clone(), String::new()));
                        watch.gone_ms.get_or_insert(now);
                        watch.entry = Some(e.state);
                    }
                    continue;
                }
                // It began once; that it is started over, its claim prevents.
                State::Pending(wait, _) if watch.started && (e.restarts > 0 || *wait == Wait::Requeued) => {
                    watch.verdict.get_or_insert_with(|| (Over::new(How::Requeued, None), String::new()));
                    watch.gone_ms.get_or_insert(now);
                }
                // It can't be taken back. Its own record counts, where it comes yet.
                State::Pending(Wait::Broken, why) if watch.started => {
                    watch.verdict.get_or_insert_with(|| (Over::new(How::Broken, None), why.clone()));
                    watch.gone_ms.get_or_insert(now);
                }
                State::Pending(wait @ (Wait::Never | Wait::Broken), why) if !watch.busy => {
                    seen.push(Seen::Hopeless(place.clone(), *wait, why.clone()));
                }
                State::Pending(..) | State::Running | State::Suspended | State::Unknown(_) => {
                    (watch.gone_ms, watch.verdict) = (None, None);
                }
            }
            watch.waits_ms = if matches!(e.state, State::Pending(..)) { watch.waits_ms.or(Some(now)) } else { None };
            let suspended = e.state == State::Suspended;
            if suspended != was_suspended {
                seen.push(Seen::Suspended(place.clone(), suspended));
            }
            (watch.entry, watch.machine) = (Some(e.state), e.machine);
            there.insert(place);
        }
        for (tag, sub) in self.subs.iter_mut().filter(|(_, s)| s.step == Step::Sent && s.sent_ms < asked) {
            for (position, watch) in sub.tasks.iter_mut().filter(|(_, w)| !w.over) {
                if !there.contains(&(tag.clone(), *position)) {
                    watch.gone_ms.get_or_insert(now);
                    if !matches!(watch.entry, Some(State::Ended(_))) {
                        watch.entry = None;
                    }
                }
            }
        }
        seen
    }

    /// Is this one of ours that is not wanted there any more?
    fn stray(&self, e: &Entry) -> Option<Stray> {
        let pending = matches!(e.state, State::Pending(..));
        if matches!(e.state, State::Ended(_)) {
            return None;
        }
        let stray = |account, known, kill, runs| Some(Stray { account, known, kill, runs, since_ms: 0 });
        let Some(sub) = self.subs.get(&e.tag) else {
            if let Some(account) = self.account_of(e) {
                return stray(account, true, false, !pending);
            }
            let own = e.owner.is_empty() || e.owner == self.own;
            return stray((!own).then(|| e.owner.clone()), false, false, !pending);
        };
        match sub.tasks.get(&e.position).filter(|w| !w.over) {
            None => stray(sub.intent.account.clone(), true, false, !pending),
            Some(Watch { unheard: Some(kill), .. }) => stray(sub.intent.account.clone(), true, *kill, false),
            // A controller that forgot that it was told.
            Some(w) if w.stopped && pending => stray(sub.intent.account.clone(), true, false, false),
            Some(_) => None,
        }
    }

    /// Strays that are to be removed now, and again after a while.
    pub fn strays_due(&mut self, now: u64) -> Vec<((LrmsId, u32), Stray)> {
        let mut due = Vec::new();
        for (key, s) in &mut self.strays {
            if now >= s.since_ms + if s.runs { STRAY_RUNS_MS } else { CANCEL_AGAIN_MS } {
                s.since_ms = now;
                due.push((*key, s.clone()));
            }
        }
        due
    }

    /// Has the LRMS to be looked at once more though nothing is open?
    pub fn look_again(&mut self) -> bool {
        std::mem::take(&mut self.unseen) || !self.strays.is_empty() || self.is_left()
    }

    /// That look has failed.
    pub fn unseen(&mut self) {
        self.unseen = true;
    }

    /// The LRMS has answered that these are removed.
    pub fn heard(&mut self, jobs: &[(LrmsId, Vec<u32>)], kill: bool) {
        for (id, positions) in jobs {
            for sub in self.subs.values_mut().filter(|s| s.ids.contains(id)) {
                for (_, watch) in sub.tasks.iter_mut().filter(|(p, w)| positions.contains(p) && w.unheard.is_some_and(|k| kill || !k)) {
                    watch.unheard = None;
                }
            }
        }
    }

    /// Tasks that are not alive in the LRMS, and have had the time to say how they ended: they are to be decided on. Those too whose claim is being taken:
    /// the books may tell of them late.
    pub fn due(&self, now: u64) -> Vec<Place> {
        let of = |s: &Sub| {
            let due = s.tasks.iter().filter(|(_, w)| !w.over && !w.busy && w.gone_ms.is_some_and(|t| now >= t + RECORD_GRACE_MS));
            due.map(|(position, _)| (s.intent.tag.clone(), *position)).collect::<Vec<_>>()
        };
        self.subs.values().flat_map(of).collect()
    }

    /// Tasks of a queue that have waited there for so long, and in which words the LRMS says why.
    pub fn lingering(&self, queue: &str, now: u64, wait_max_ms: u64) -> BTreeMap<Place, String> {
        let of = |s: &Sub| {
            let waits =
                s.tasks.iter().filter(|(_, w)| !w.over && !w.busy && !w.taking && !w.started && w.waits_ms.is_some_and(|t| now >= t + wait_max_ms));
            let said = |w: &Watch| if let Some(State::Pending(_, why)) = &w.entry { why.clone() } else { String::new() };
            waits.map(|(position, w)| ((s.intent.tag.clone(), *position), said(w))).collect::<Vec<_>>()
        };
        self.subs.values().filter(|s| s.intent.queue == queue).flat_map(of).collect()
    }

    /// A task was seen to have started.
    pub fn began(&mut self, (tag, _): &Place, now: u64) {
        let Some(sub) = self.subs.get(tag).filter(|s| s.fresh) else { return };
        let last = self.waits.entry(sub.intent.queue.clone()).or_default();
        last.push_back((now, now.saturating_sub(sub.sent_ms)));
        last.drain(..last.len().saturating_sub(WAITS_KEPT_MAX));
    }

    /// About how long a task waits in this queue before it starts: as the middle one of the last that did, and no less than the longest that waits for
    /// its turn there now. None: not known.
    pub fn wait_ms(&self, queue: &str, now: u64) -> Option<u64> {
        let last = self.waits.get(queue).into_iter().flatten().filter(|(at, _)| now <= at + WAITS_KEPT_MS);
        let mut last: Vec<u64> = last.map(|(_, ms)| *ms).collect();
        last.sort_unstable();
        let for_its_turn = |w: &&Watch| !w.over && !w.started && matches!(w.entry, Some(State::Pending(Wait::Turn, _)));
        let ours = self.subs.values().filter(|s| s.intent.queue == queue).flat_map(|s| s.tasks.values());
        let longest = ours.filter(for_its_turn).filter_map(|w| w.waits_ms).map(|since| now.saturating_sub(since)).max();
        last.get(last.len() / 2).copied().max(longest)
    }

    /// A task has ended, or goes back. False: that was known.
    pub fn over(&mut self, place: &Place) -> bool {
        self.unseen = true;
        self.watch(place).map(|watch| (watch.over, watch.busy) = (true, false)).is_some()
    }

    /// Has a principal tasks here, or files?
    pub fn is_here(&self, principal: &str) -> bool {
        self.subs.values().any(|s| s.intent.principal == principal) || self.leaving.values().any(|p| p == principal)
    }

    /// Only its files are left.
    pub fn leaves(&mut self, intent: &Intent) {
        self.leaving.insert(intent.tag.clone(), intent.principal.clone());
    }

    /// They are removed.
    pub fn left(&mut self, tag: &str) {
        self.leaving.remove(tag);
    }

    /// Nothing is left of these tasks. Returns submissions of which nothing is left at all.
    pub fn forget(&mut self, queue: &str, keys: &[Key]) -> (Vec<Place>, Vec<Intent>) {
        let (mut places, mut gone) = (Vec::new(), Vec::new());
        for key in keys {
            let Some(place) = self.places.remove(&(queue.to_string(), *key)) else { continue };
            if let Some(sub) = self.subs.get_mut(&place.0) {
                sub.tasks.remove(&place.1);
                if sub.tasks.is_empty() {
                    gone.extend(self.subs.remove(&place.0).map(|s| s.intent));
                    gone.last().into_iter().for_each(|i| self.leaves(i));
                }
            }
            places.push(place);
        }
        places.retain(|p| gone.iter().all(|i| i.tag != p.0));
        (places, gone)
    }
}

mod claims;
mod numbers;
#[cfg(test)]
mod tests;
