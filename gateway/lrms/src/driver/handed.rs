//! Where the site says how much may wait in a queue (`waiting_max`): how much is handed on. Pure.
//!
//! A task that has ended for us counts as there until a look at the LRMS that was asked for later does not show it: so long it has its slot, and what took its
//! place would wait in excess. What others have of a queue is not known exactly, as two questions are never asked at once: the least of two looks counts, since
//! one while many tasks of ours begin takes these for others'.
//!
//! What the LRMS has not any more, and the core has yet, takes no room of what is there: it is added.

use std::collections::{BTreeMap, HashMap, HashSet};

use intergrid_agent::machine::Offer;

use crate::books::{Books, Place, Watch};
use crate::limits::RECORD_GRACE_MS;
use crate::lrms::{Entry, LrmsId, Queue, State};

/// A task that has ended for us.
#[derive(Debug)]
struct Left {
    queue: String,
    slots: u64,
    /// Its jobs: somebody may have renamed them.
    ids: Vec<LrmsId>,
    /// Whose it is there; empty: not known.
    owner: String,
    /// It had begun.
    ran: bool,
    at_ms: u64,
}

/// A queue as it was offered last.
#[derive(Debug)]
struct Offered {
    offer: Offer,
    /// Slots of others, as that look showed them.
    others: u64,
    /// Slots of ours that may be there, at work or waiting, and of those in `held`.
    most: u64,
    /// See [`held`].
    held: BTreeMap<Place, u64>,
}

/// What was offered, and what has ended since and may still be there.
#[derive(Debug, Default)]
pub(super) struct Handed {
    left: BTreeMap<Place, Left>,
    /// The sum of their slots, by queue: thousands may end at once.
    left_slots: BTreeMap<String, u64>,
    offered: BTreeMap<String, Offered>,
}

impl Handed {
    /// A task that may be in the LRMS is over for us.
    pub fn ended(&mut self, books: &Books, place: &Place, now: u64) {
        let Some(sub) = books.sub(&place.0) else { return };
        let (queue, slots, watch) = (&sub.intent.queue, u64::from(sub.intent.slots), sub.tasks.get(&place.1));
        if let Some(offered) = self.offered.get_mut(queue)
            && offered.held.remove(place).is_some()
        {
            offered.most = offered.most.saturating_sub(slots);
            offered.offer.room = offered.offer.room.saturating_sub(slots);
            if watch.is_some_and(is_gone) {
                return;
            }
        }
        let owner = sub.intent.account.clone().unwrap_or_else(|| books.own.clone());
        let ran = watch.is_some_and(|w| w.started);
        let left = Left { queue: queue.clone(), slots, ids: sub.ids.clone(), owner, ran, at_ms: now };
        if self.left.insert(place.clone(), left).is_none() {
            *self.left_slots.entry(queue.clone()).or_default() += slots;
        }
    }

    /// Is there anything that the LRMS may let go of?
    pub fn awaits(&self) -> bool {
        !self.left.is_empty()
    }

    /// The jobs of that.
    pub fn ids(&self) -> impl Iterator<Item = LrmsId> {
        self.left.values().flat_map(|l| l.ids.iter().copied())
    }

    /// The LRMS has answered a question that was asked at `asked`; our jobs' names begin with `prefix`. Has it let go of any?
    pub fn surveyed(&mut self, asked: u64, entries: &[Entry], prefix: &str) -> bool {
        if self.left.is_empty() {
            return false;
        }
        let (before, left) = (self.left.len(), &self.left);
        let numbers = left.iter().flat_map(|(place, l)| l.ids.iter().map(move |id| ((*id, place.1), place)));
        let by_number: HashMap<(LrmsId, u32), &Place> = numbers.collect();
        let is_left = |e: &Entry| {
            let named = (e.tag.clone(), e.position);
            // A number that was given twice is known by the name of another submission of ours.
            let is_this = |place: &&&Place| !(e.tag.starts_with(prefix) && e.tag.len() == place.0.len());
            let place = if left.contains_key(&named) { named } else { (**by_number.get(&(e.id, e.position)).filter(is_this)?).clone() };
            let is_his = left.get(&place).is_some_and(|l| e.owner.is_empty() || l.owner.is_empty() || l.owner == e.owner);
            (is_his && !matches!(e.state, State::Ended(_))).then_some(place)
        };
        let there: HashSet<Place> = entries.iter().filter_map(is_left).collect();
        self.left.retain(|place, left| left.at_ms >= asked || there.contains(place));
        self.left_slots.clear();
        for left in self.left.values() {
            *self.left_slots.entry(left.queue.clone()).or_default() += left.slots;
        }
        self.left.len() < before
    }

    /// The queue was looked at: this is offered of it.
    pub fn offer(&mut self, books: &Books, queue: &Queue, offer: Offer, now: u64) {
        let began = self.left.values().filter(|l| l.queue == queue.name && l.ran).map(|l| l.slots).sum::<u64>() + alive(books, &queue.name);
        let seen = queue.slots_all.saturating_sub(queue.slots_free).saturating_sub(began);
        let others = self.offered.get(&queue.name).map_or(seen, |before| before.others.min(seen));
        let held = held(books, &queue.name, now);
        let most = (queue.slots_all.saturating_sub(others) + offer.ahead + held.values().sum::<u64>()).min(offer.window_max);
        self.offered.insert(queue.name.clone(), Offered { offer, others: seen, most, held });
    }

    /// What is offered, by what is there now; None: nothing.
    pub fn again(&self, name: &str) -> Option<Offer> {
        let Offered { offer, most, .. } = self.offered.get(name)?;
        let left = self.left_slots.get(name).copied().unwrap_or_default();
        Some(Offer { handed_max: Some(most.saturating_sub(left)), ..offer.clone() })
    }

    /// It is not offered now.
    pub fn close(&mut self, name: &str) {
        self.offered.remove(name);
    }
}

/// The LRMS has it no more.
fn is_gone(w: &Watch) -> bool {
    w.gone_ms.is_some() && matches!(w.entry, None | Some(State::Ended(_)))
}

/// Tasks of a queue that the LRMS has no more and that are not over, as their ends are waited for, or their files are away: the slots of each. What just ends
/// is none of them.
pub(super) fn held(books: &Books, queue: &str, now: u64) -> BTreeMap<Place, u64> {
    let is_held = |w: &Watch| !w.over && is_gone(w) && w.gone_ms.is_some_and(|t| now >= t + RECORD_GRACE_MS);
    let mut held = BTreeMap::new();
    for s in books.subs().filter(|s| s.intent.queue == queue) {
        let tasks = s.tasks.iter().filter(|(_, w)| is_held(w));
        held.extend(tasks.map(|(position, _)| ((s.intent.tag.clone(), *position), u64::from(s.intent.slots))));
    }
    held
}

/// Slots of our tasks that have begun in a queue and are not known to have ended: a claim is seen sooner than the LRMS is asked.
fn alive(books: &Books, queue: &str) -> u64 {
    let of = |s: &crate::books::Sub| {
        let begun = |w: &&Watch| w.started || matches!(w.entry, Some(State::Running | State::Suspended));
        s.tasks.values().filter(|w| !w.over && w.gone_ms.is_none()).filter(begun).count() as u64 * u64::from(s.intent.slots)
    };
    books.subs().filter(|s| s.intent.queue == queue).map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::{Intent, Step};

    /// Twelve tasks of one slot.
    fn books() -> Books {
        let mut b = Books::default();
        let tasks = (0..12).map(|n| (1, n)).collect();
        b.add(Intent { tag: "t".into(), queue: "q".into(), account: None, principal: "p".into(), tasks, slots: 1 }, Step::Sending, 0);
        b.sent("t", LrmsId(1));
        b.own = "grid".into();
        b
    }

    fn place(position: u32) -> Place {
        ("t".into(), position)
    }

    fn running(position: u32, owner: &str) -> Entry {
        let (tag, owner) = ("t".into(), owner.into());
        Entry { id: LrmsId(1), position, tag, owner, state: State::Running, slots: 1, machine: String::new(), restarts: 0 }
    }

    /// Of a queue with eight slots, three more may wait.
    fn look(handed: &mut Handed, books: &Books, slots_free: u64) -> Option<u64> {
        look_at(handed, books, slots_free, 2_000)
    }

    fn look_at(handed: &mut Handed, books: &Books, slots_free: u64, at: u64) -> Option<u64> {
        let queue = Queue { name: "q".into(), slots_all: 8, slots_total: 8, slots_free, ..Queue::default() };
        handed.offer(books, &queue, Offer { ahead: 3, window_max: u64::MAX, ..Offer::default() }, at);
        now(handed)
    }

    fn now(handed: &Handed) -> Option<u64> {
        handed.again("q").and_then(|o| o.handed_max)
    }

    #[test]
    fn a_slot_whose_task_has_ended_counts_once() {
        let (mut h, mut b) = (Handed::default(), books());
        assert_eq!((None, Some(11)), (now(&h), look(&mut h, &b, 8)));
        (1..=8).for_each(|n| _ = b.claimed(&place(n), "7 n1 5\n"));
        assert_eq!(Some(11), look(&mut h, &b, 0));
        // All end together: for the LRMS they have their slots yet, or two of them not any more.
        for n in 1..=8 {
            h.ended(&b, &place(n), 1_000);
            b.over(&place(n));
        }
        assert_eq!((Some(3), Some(3)), (now(&h), look(&mut h, &b, 0)));
        assert_eq!(Some(3), look(&mut h, &b, 2));
        // Asked before they ended: says nothing. Another's job that is called so is none of them.
        assert!(!h.surveyed(1_000, &[], "ig"));
        assert!(h.surveyed(1_001, &[running(1, "grid"), running(2, "eve"), running(3, "")], "ig"));
        assert_eq!((Some(9), true), (now(&h), h.awaits()));
        assert!(h.surveyed(2_000, &[], "ig") && !h.surveyed(3_000, &[], "ig"));
        assert_eq!((Some(11), false), (now(&h), h.awaits()));
        h.close("q");
        assert_eq!(None, now(&h));
    }

    #[test]
    fn what_others_have_is_not_ours_and_what_just_began_is_not_theirs() {
        let (mut h, mut b) = (Handed::default(), books());
        assert_eq!(Some(7), look(&mut h, &b, 4));
        // Four of ours have begun, and their claims are not seen yet.
        assert_eq!(Some(7), look(&mut h, &b, 0));
        (1..=4).for_each(|n| _ = b.claimed(&place(n), "7 n1 5\n"));
        assert_eq!(Some(7), look(&mut h, &b, 0));
        // Others have taken the slots of two.
        for n in 1..=2 {
            h.ended(&b, &place(n), 1_000);
            b.over(&place(n));
        }
        h.surveyed(2_000, &[], "ig");
        assert_eq!([Some(7), Some(5)], [look(&mut h, &b, 0), look(&mut h, &b, 0)]);
        // What the LRMS has given up has no slot.
        b.watch(&place(3)).unwrap().gone_ms = Some(2_000);
        assert_eq!(1, alive(&b, "q"));
    }

    /// Half of the machines are lost, with what runs there.
    #[test]
    fn what_is_held_takes_no_room_of_what_is_there() {
        let (mut h, mut b) = (Handed::default(), books());
        (1..=8).for_each(|n| _ = b.claimed(&place(n), "7 n1 5\n"));
        assert_eq!(Some(11), look(&mut h, &b, 0));
        (1..=4).for_each(|n| b.watch(&place(n)).unwrap().gone_ms = Some(5_000));
        // They may just have ended.
        assert_eq!(Some(11), look_at(&mut h, &b, 0, 5_000));
        assert_eq!(Some(7), look_at(&mut h, &b, 0, 5_001));
        // The core has all eight: three more may go.
        assert_eq!(Some(11), look_at(&mut h, &b, 0, 5_000 + RECORD_GRACE_MS));
        // One is lost in the end: the core has it no more, and its slot is not there. Another is listed again, and ends.
        b.watch(&place(2)).unwrap().gone_ms = None;
        for n in 1..=2 {
            b.over(&place(n));
            h.ended(&b, &place(n), 9_000);
        }
        assert_eq!((Some(8), 1), (now(&h), h.left.len()));
    }

    #[test]
    fn a_job_that_somebody_has_renamed_is_there_by_its_number() {
        let (mut h, mut b) = (Handed::default(), books());
        assert_eq!(Some(11), look(&mut h, &b, 8));
        b.over(&place(1));
        h.ended(&b, &place(1), 1_000);
        assert_eq!(vec![LrmsId(1)], h.ids().collect::<Vec<_>>());
        let called = |tag: &str| Entry { tag: tag.into(), ..running(1, "grid") };
        assert!(!h.surveyed(2_000, &[called("sitename")], "x"));
        assert_eq!(Some(10), now(&h));
        // Its number was given again: that is another's, or another of ours.
        let mut later = |e: Entry| {
            h.ended(&b, &place(1), 2_000);
            h.surveyed(3_000, &[e], "x")
        };
        assert!(later(called("x")) && later(Entry { owner: "eve".into(), ..called("sitename") }));
    }

    #[test]
    fn beyond_a_ceiling_nothing_is_handed_on() {
        let (mut h, b) = (Handed::default(), books());
        let queue = Queue { name: "q".into(), slots_all: 8, slots_free: 8, ..Queue::default() };
        h.offer(&b, &queue, Offer { ahead: 3, window_max: 4, ..Offer::default() }, 0);
        assert_eq!(Some(4), now(&h));
    }
}
