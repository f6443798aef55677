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
    /// The gateway's placement.
    pub number: u64,
    /// Its tasks, by position.
    pub tasks: Vec<u32>,
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
    /// When it was given to the LRMS.
    pub sent_ms: u64,
    /// Its jobs: more than one where an answer was lost.
    pub ids: Vec<LrmsId>,
    /// Why its tasks go back, where the LRMS turns out not to have it; None: nothing is known but that.
    pub doubt: Option<Reason>,
    /// By position; removed when nothing is left of it.
    pub tasks: BTreeMap<u32, Watch>,
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

/// All submissions that are not over.
#[derive(Debug, Default)]
pub struct Books {
    /// The name of our own account; empty: not known, and nobody's jobs are told from ours.
    pub own: String,
    subs: BTreeMap<String, Sub>,
    /// By queue: each is a link of its own, with numbers of its own.
    places: HashMap<(String, Key), Place>,
    /// By queue: when the last tasks started, and how long each had waited.
    waits: HashMap<String, VecDeque<(u64, u64)>>,
}

impl Books {
    /// A submission is going to be made.
    pub fn add(&mut self, intent: Intent, step: Step, now: u64) {
        let tasks: BTreeMap<u32, Watch> = (1..).zip(&intent.tasks).map(|(position, _)| (position, Watch::default())).collect();
        for (position, index) in (1..).zip(&intent.tasks) {
            self.places.insert((intent.queue.clone(), (intent.number, *index)), (intent.tag.clone(), position));
        }
        self.subs.insert(intent.tag.clone(), Sub { intent, step, sent_ms: now, ids: Vec::new(), doubt: None, tasks });
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
        let intent = &self.subs.get(tag)?.intent;
        Some((intent.number, *intent.tasks.get(*position as usize - 1)?))
    }

    /// What is known of a task that is not over.
    pub fn watch(&mut self, (tag, position): &Place) -> Option<&mut Watch> {
        self.subs.get_mut(tag)?.tasks.get_mut(position).filter(|w| !w.over)
    }

    /// The LRMS has it, as this job.
    pub fn sent(&mut self, tag: &str, id: LrmsId) {
        if let Some(sub) = self.subs.get_mut(tag) {
            sub.step = Step::Sent;
            if !sub.ids.contains(&id) {
                sub.ids.push(id);
            }
        }
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
            let Some(watch) = sub.tasks.get_mut(&position).filter(|w| !w.over && !w.busy) else { continue };
            match kind {
                "c" if !watch.started => found.push(Found::Claim((tag.to_string(), position))),
                "x" if !watch.unreadable => {
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
    pub fn surveyed(&mut self, asked: u64, entries: Vec<Entry>, now: u64) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut there: HashSet<Place> = HashSet::new();
        // A controller that forgot what it did last gives a number twice: it is whose name it now has.
        let named: HashMap<LrmsId, String> = entries.iter().map(|e| (e.id, e.tag.clone())).collect();
        for (tag, sub) in &mut self.subs {
            sub.ids.retain(|id| named.get(id).is_none_or(|t| t == tag));
        }
        for e in entries {
            let place = (e.tag.clone(), e.position);
            // Anybody can give his job the name of one of ours.
            let is_his = |s: &Sub| {
                let account = s.intent.account.as_ref().unwrap_or(&self.own);
                e.owner.is_empty() || account.is_empty() || *account == e.owner
            };
            let Some(sub) = self.subs.get_mut(&e.tag).filter(|s| is_his(s)) else { continue };
            if let Step::Lost(_) = sub.step {
                sub.step = Step::Sent;
            }
            if !sub.ids.contains(&e.id) {
                sub.ids.push(e.id);
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
                    watch.verdict.get_or_insert_with(|| (Over { how: How::Requeued, exit: None }, String::new()));
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

    /// Tasks that are not alive in the LRMS, and have had the time to say how they ended: they are to be decided on.
    pub fn due(&self, now: u64) -> Vec<Place> {
        let of = |s: &Sub| {
            let due = s.tasks.iter().filter(|(_, w)| !w.over && !w.busy && !w.taking && w.gone_ms.is_some_and(|t| now >= t + RECORD_GRACE_MS));
            due.map(|(position, _)| (s.intent.tag.clone(), *position)).collect::<Vec<_>>()
        };
        self.subs.values().flat_map(of).collect()
    }

    /// Tasks that have waited there for so long, and in which words the LRMS says why.
    pub fn lingering(&self, now: u64, wait_max_ms: u64) -> BTreeMap<Place, String> {
        let of = |s: &Sub| {
            let waits =
                s.tasks.iter().filter(|(_, w)| !w.over && !w.busy && !w.taking && !w.started && w.waits_ms.is_some_and(|t| now >= t + wait_max_ms));
            let said = |w: &Watch| if let Some(State::Pending(_, why)) = &w.entry { why.clone() } else { String::new() };
            waits.map(|(position, w)| ((s.intent.tag.clone(), *position), said(w))).collect::<Vec<_>>()
        };
        self.subs.values().flat_map(of).collect()
    }

    /// A task was seen to have started.
    pub fn began(&mut self, (tag, _): &Place, now: u64) {
        let Some(sub) = self.subs.get(tag) else { return };
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
        self.watch(place).map(|watch| (watch.over, watch.busy) = (true, false)).is_some()
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
                }
            }
            places.push(place);
        }
        places.retain(|p| gone.iter().all(|i| i.tag != p.0));
        (places, gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lrms::How;

    fn books() -> Books {
        let mut b = Books::default();
        for (tag, number) in [("a", 1), ("b", 2)] {
            let intent = Intent { tag: tag.into(), queue: "q".into(), account: None, principal: "p".into(), number, tasks: vec![4, 7], slots: 2 };
            b.add(intent, Step::Sending, 100);
            b.sent(tag, LrmsId(number));
        }
        b
    }

    fn entry(tag: &str, id: u64, position: u32, state: State) -> Entry {
        Entry { id: LrmsId(id), position, tag: tag.into(), owner: String::new(), state, slots: 2, machine: String::new(), restarts: 0 }
    }

    fn place(tag: &str, position: u32) -> Place {
        (tag.to_string(), position)
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| n.to_string()).collect()
    }

    #[test]
    fn claims_and_records_are_found_once_and_foreign_names_are_nothing() {
        let mut b = books();
        let list = names(&["a.1.x", "a.1.c", "a.2.c", "a.3.c", "a.0.c", "a.-1.c", "c.1.c", "a", ".", "a.1.n", "a.99999999999.c"]);
        let found = b.looked(None, &list, 200);
        assert_eq!(vec![Found::Started(place("a", 1)), Found::Claim(place("a", 2)), Found::Record(place("a", 1))], found);
        assert_eq!((Some(Claimed::Started), None), (b.claimed(&place("a", 2), "7 n1 5\n"), b.claimed(&place("a", 2), "7 n1 5\n")));
        assert!(b.looked(None, &list, 300).is_empty(), "somebody is at it");
        assert!(b.looked(Some("alice"), &names(&["b.1.c"]), 300).is_empty(), "of another account");
        assert_eq!((Some((2, 7)), Some(&place("b", 1))), (b.key(&place("b", 2)), b.place("q", (2, 4))));
        assert_eq!([(4, 8), (4, 8)], b.load("p"));
        assert!(b.over(&place("a", 1)) && !b.over(&place("a", 1)));
        assert_eq!(([(0, 0), (3, 6)], None), (b.load("x"), b.watch(&place("a", 1))));
        assert_eq!((vec![place("a", 1)], vec![]), b.forget("q", &[(1, 4), (9, 9)]));
        assert_eq!((vec![], vec!["a".to_string()]), {
            let (p, gone) = b.forget("q", &[(1, 7)]);
            (p, gone.into_iter().map(|i| i.tag).collect())
        });
    }

    #[test]
    fn a_claim_of_ours_is_no_start() {
        let mut b = books();
        let claim = place("a", 1);
        assert_eq!(Some(Claimed::Withdrawn), b.claimed(&claim, WITHDRAWN));
        b.watch(&claim).unwrap().taking = true;
        assert_eq!((None, None), (b.claimed(&claim, WITHDRAWN), b.claimed(&claim, "")));
        b.kept(&claim);
        // A script that was stopped before it had written.
        assert_eq!(Some(Claimed::Started), b.claimed(&claim, ""));
    }

    #[test]
    fn a_record_that_is_never_whole_counts_as_none() {
        let mut b = books();
        let record = names(&["a.1.x"]);
        assert_eq!(2, b.looked(None, &record, 200).len());
        assert!(!b.unreadable(&place("a", 1), 200));
        // Looked at again until then.
        assert_eq!(vec![Found::Record(place("a", 1))], b.looked(None, &record, 300));
        assert!(b.unreadable(&place("a", 1), 200 + VERDICT_WAIT_MS));
        assert!(b.looked(None, &record, 300 + VERDICT_WAIT_MS).is_empty());
        assert!(b.watch(&place("a", 1)).is_some_and(|w| w.started && w.record_ms.is_none() && !w.busy));
    }

    #[test]
    fn what_is_not_in_the_queue_is_a_question_after_a_while() {
        let mut b = books();
        b.sub_mut("b").unwrap().step = Step::Lost(100);
        // Asked before it was submitted: says nothing.
        b.surveyed(100, vec![], 1_000);
        assert!(b.due(99_000).is_empty());
        b.surveyed(2_000, vec![entry("a", 1, 1, State::Running), entry("a", 1, 2, State::Suspended)], 2_010);
        assert_eq!((4, vec![]), (b.occupied("q"), b.due(99_000)));
        let over = Over { how: How::Exited, exit: None };
        let seen = b.surveyed(3_000, vec![entry("a", 1, 1, State::Ended(over.clone())), entry("a", 1, 2, State::Running)], 3_010);
        assert_eq!(vec![Seen::Suspended(place("a", 2), false)], seen);
        assert_eq!((vec![], vec![place("a", 1)]), (b.due(3_010 + RECORD_GRACE_MS - 1), b.due(3_010 + RECORD_GRACE_MS)));
        assert_eq!(Some((over, String::new())), b.watch(&place("a", 1)).unwrap().verdict.clone());
        // A lost submission shows by its name.
        b.surveyed(4_000, vec![entry("b", 9, 1, State::Pending(Wait::Turn, "Priority".into()))], 4_010);
        assert_eq!((Step::Sent, vec![LrmsId(2), LrmsId(9)]), (b.sub("b").unwrap().step, b.sub("b").unwrap().ids.clone()));
        // It was only a controller that had just come back.
        b.surveyed(5_000, vec![entry("a", 1, 1, State::Running), entry("a", 1, 2, State::Running)], 5_010);
        assert_eq!(None, b.watch(&place("a", 1)).unwrap().gone_ms);
    }

    #[test]
    fn a_job_of_another_account_with_our_name_is_none_of_ours() {
        let mut b = Books::default();
        let intent = Intent { account: Some("ann".into()), ..books().sub("a").unwrap().intent.clone() };
        b.add(intent, Step::Sending, 100);
        b.sent("a", LrmsId(1));
        let of = |owner: &str, id| Entry { owner: owner.into(), ..entry("a", id, 1, State::Pending(Wait::Broken, "Eqw".into())) };
        assert!(b.surveyed(2_000, vec![of("eve", 9)], 2_010).is_empty());
        assert_eq!(vec![LrmsId(1)], b.sub("a").unwrap().ids);
        assert_eq!(1, b.surveyed(3_000, vec![of("ann", 1), of("eve", 9)], 3_010).len());

        // Where all run as the gateway's own.
        let mut b = books();
        b.own = "grid".into();
        assert!(b.surveyed(2_000, vec![of("eve", 9)], 2_010).is_empty());
        assert_eq!(1, b.surveyed(3_000, vec![of("grid", 1)], 3_010).len());
    }

    #[test]
    fn what_waits_too_long_lingers() {
        let mut b = books();
        let pending = || State::Pending(Wait::Turn, "Resources".into());
        b.surveyed(2_000, vec![entry("a", 1, 1, pending()), entry("a", 1, 2, pending())], 2_010);
        b.surveyed(3_000, vec![entry("a", 1, 1, pending()), entry("a", 1, 2, State::Running)], 3_010);
        assert!(b.lingering(2_109, 100).is_empty());
        assert_eq!(vec![(place("a", 1), "Resources".to_string())], b.lingering(2_110, 100).into_iter().collect::<Vec<_>>());
        b.claimed(&place("a", 1), "7 n1 5\n");
        assert!(b.lingering(9_000, 100).is_empty(), "it has started");
    }

    #[test]
    fn a_wait_is_known_by_those_that_started_and_those_that_wait() {
        let mut b = books();
        assert_eq!(None, b.wait_ms("q", 5_000));
        let pending = |wait| State::Pending(wait, "Resources".into());
        b.surveyed(2_000, vec![entry("a", 1, 1, pending(Wait::Turn)), entry("a", 1, 2, pending(Wait::Held))], 2_100);
        assert_eq!((Some(2_900), None), (b.wait_ms("q", 5_000), b.wait_ms("other", 5_000)));
        // Of those that started the middle one, unless somebody waits longer.
        [700, 3_100, 400].iter().for_each(|at| b.began(&place("b", 1), *at));
        assert_eq!((Some(600), Some(2_900)), (b.wait_ms("q", 2_200), b.wait_ms("q", 5_000)));
        b.looked(None, &names(&["a.1.c"]), 5_000);
        assert_eq!(Some(600), b.wait_ms("q", 60_000));
        assert_eq!(None, b.wait_ms("q", 3_100 + WAITS_KEPT_MS + 1), "that was long ago");
    }

    #[test]
    fn a_number_given_twice_belongs_to_the_name_that_it_has_now() {
        let mut b = books();
        b.surveyed(2_000, vec![entry("b", 1, 1, State::Running)], 2_010);
        assert_eq!((vec![], vec![LrmsId(2), LrmsId(1)]), (b.sub("a").unwrap().ids.clone(), b.sub("b").unwrap().ids.clone()));
    }

    #[test]
    fn what_will_never_start_and_what_is_started_over_is_told() {
        let mut b = books();
        b.claimed(&place("a", 1), "7 n1 5\n");
        let pending = |wait| State::Pending(wait, "why".into());
        let entries = vec![entry("a", 1, 1, pending(Wait::Requeued)), entry("a", 1, 2, pending(Wait::Broken)), entry("b", 2, 1, pending(Wait::Held))];
        assert_eq!(vec![Seen::Hopeless(place("a", 2), Wait::Broken, "why".into())], b.surveyed(2_000, entries, 2_010));
        assert_eq!(Some(2_010), b.watch(&place("a", 1)).unwrap().gone_ms, "it began, and won't begin again");
    }
}
