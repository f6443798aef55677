//! Where the site says how much may wait in a queue (`waiting_max`): how much is handed on. Pure.
//!
//! A task that has ended for us counts as there until a look at the LRMS that was asked for later does not show it: so long it has its slot, and what took its
//! place would wait in excess. What others have of a queue is not known exactly, as two questions are never asked at once: the least of two looks counts, since
//! one while many tasks of ours begin takes these for others'. Nor does it count for ever: what can't be removed there does not close the queue.
//!
//! What the LRMS has not any more, and the core has yet, takes no room of what is there: it is added.

use std::collections::{BTreeMap, HashSet};

use intergrid_agent::machine::Offer;

use crate::books::{Books, Place, Watch};
use crate::limits::{LEFT_MAX_MS, RECORD_GRACE_MS};
use crate::lrms::{Entry, Queue, State};

/// A task that has ended for us.
#[derive(Debug)]
struct Left {
    queue: String,
    slots: u64,
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
        let ran = watch.is_some_and(|w| w.started);
        let left = Left { queue: queue.clone(), slots, ran, at_ms: now };
        if self.left.insert(place.clone(), left).is_none() {
            *self.left_slots.entry(queue.clone()).or_default() += slots;
        }
    }

    /// Is there anything that the LRMS may let go of?
    pub fn awaits(&self) -> bool {
        !self.left.is_empty()
    }

    /// The LRMS has answered a question that was asked at `asked`. Has it let go of any?
    pub fn surveyed(&mut self, asked: u64, entries: &[Entry], books: &Books, now: u64) -> bool {
        if self.left.is_empty() {
            return false;
        }
        let before = self.left.len();
        let alive = entries.iter().filter(|e| !matches!(e.state, State::Ended(_)));
        let there: HashSet<(&str, u32)> = alive.filter_map(|e| Some((books.whose(e)?, e.position))).collect();
        self.left
            .retain(|(tag, position), left| left.at_ms >= asked || (there.contains(&(tag.as_str(), *position)) && now < left.at_ms + LEFT_MAX_MS));
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
    use crate::lrms::{LrmsId, Wait};

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
        assert!(!h.surveyed(1_000, &[], &b, 1_010));
        assert!(h.surveyed(1_001, &[running(1, "grid"), running(2, "eve"), running(3, "")], &b, 1_010));
        assert_eq!((Some(9), true), (now(&h), h.awaits()));
        assert!(h.surveyed(2_000, &[], &b, 2_010) && !h.surveyed(3_000, &[], &b, 3_010));
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
        h.surveyed(2_000, &[], &b, 2_010);
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
        let called = |tag: &str| Entry { tag: tag.into(), ..running(1, "grid") };
        b.prefix = "x".into();
        assert!(!h.surveyed(2_000, &[called("sitename")], &b, 2_010));
        assert!(!h.surveyed(3_000, &[called("x")], &b, 3_010));
        assert_eq!(Some(10), now(&h));
        // Its number was given again: that is another's, or another of ours.
        assert!(h.surveyed(4_000, &[Entry { owner: "eve".into(), ..called("sitename") }], &b, 4_010));
        h.ended(&b, &place(1), 5_000);
        b.add(Intent { tag: "x".into(), tasks: vec![(2, 0)], ..b.sub("t").unwrap().intent.clone() }, Step::Sending, 5_000);
        b.sent("x", LrmsId(1));
        assert!(h.surveyed(6_000, &[called("x")], &b, 6_010));
    }

    #[test]
    fn what_can_t_be_removed_does_not_close_its_queue_for_good() {
        let (mut h, mut b) = (Handed::default(), books());
        assert_eq!(Some(11), look(&mut h, &b, 8));
        b.over(&place(1));
        h.ended(&b, &place(1), 1_000);
        let held = || Entry { state: State::Pending(Wait::Held, "JobHeldUser".into()), ..running(1, "grid") };
        assert!(!h.surveyed(2_000, &[held()], &b, 1_000 + LEFT_MAX_MS - 1));
        assert_eq!((Some(10), true), (now(&h), h.awaits()));
        assert!(h.surveyed(3_000, &[held()], &b, 1_000 + LEFT_MAX_MS));
        assert_eq!((Some(11), false), (now(&h), h.awaits()));
    }

    #[test]
    fn beyond_a_ceiling_nothing_is_handed_on() {
        let (mut h, b) = (Handed::default(), books());
        let queue = Queue { name: "q".into(), slots_all: 8, slots_free: 8, ..Queue::default() };
        h.offer(&b, &queue, Offer { ahead: 3, window_max: 4, ..Offer::default() }, 0);
        assert_eq!(Some(4), now(&h));
    }
}
