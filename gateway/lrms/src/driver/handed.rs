//! Where the site says how much may wait in a queue (`waiting_max`): how much is handed on. Pure.
//!
//! A task that has ended for us counts as there until a look at the LRMS that was asked for later does not show it: so long it has its slot, and what took its
//! place would wait in excess. What others have of a queue is not known exactly, as two questions are never asked at once: the least of two looks counts, since
//! one while many tasks of ours begin takes these for others'.

use std::collections::{BTreeMap, HashSet};

use intergrid_agent::machine::Offer;

use crate::books::{Books, Place};
use crate::lrms::{Entry, Queue, State};

/// A task that has ended for us.
#[derive(Debug)]
struct Left {
    queue: String,
    slots: u64,
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
    /// Slots of ours that may be there, at work or waiting.
    most: u64,
}

/// What was offered, and what has ended since and may still be there.
#[derive(Debug, Default)]
pub(super) struct Handed {
    left: BTreeMap<Place, Left>,
    offered: BTreeMap<String, Offered>,
}

impl Handed {
    /// A task that may be in the LRMS is over for us.
    pub fn ended(&mut self, books: &Books, place: &Place, now: u64) {
        let Some(sub) = books.sub(&place.0) else { return };
        let owner = sub.intent.account.clone().unwrap_or_else(|| books.own.clone());
        let ran = sub.tasks.get(&place.1).is_some_and(|w| w.started);
        let left = Left { queue: sub.intent.queue.clone(), slots: sub.intent.slots.into(), owner, ran, at_ms: now };
        self.left.insert(place.clone(), left);
    }

    /// The LRMS has answered a question that was asked at `asked`. Has it let go of any?
    pub fn surveyed(&mut self, asked: u64, entries: &[Entry]) -> bool {
        if self.left.is_empty() {
            return false;
        }
        let (before, left) = (self.left.len(), &self.left);
        let is_left = |e: &Entry| {
            let place = (e.tag.clone(), e.position);
            let is_his = left.get(&place).is_some_and(|l| e.owner.is_empty() || l.owner.is_empty() || l.owner == e.owner);
            (is_his && !matches!(e.state, State::Ended(_))).then_some(place)
        };
        let there: HashSet<Place> = entries.iter().filter_map(is_left).collect();
        self.left.retain(|place, left| left.at_ms >= asked || there.contains(place));
        self.left.len() < before
    }

    /// The queue was looked at: this is offered of it.
    pub fn offer(&mut self, books: &Books, queue: &Queue, offer: Offer) {
        let began = self.left.values().filter(|l| l.queue == queue.name && l.ran).map(|l| l.slots).sum::<u64>() + alive(books, &queue.name);
        let seen = queue.slots_all.saturating_sub(queue.slots_free).saturating_sub(began);
        let others = self.offered.get(&queue.name).map_or(seen, |before| before.others.min(seen));
        let most = (queue.slots_all.saturating_sub(others) + offer.ahead).min(offer.window_max);
        self.offered.insert(queue.name.clone(), Offered { offer, others: seen, most });
    }

    /// What is offered, by what is there now; None: nothing.
    pub fn again(&self, name: &str) -> Option<Offer> {
        let Offered { offer, most, .. } = self.offered.get(name)?;
        let left: u64 = self.left.values().filter(|l| l.queue == name).map(|l| l.slots).sum();
        Some(Offer { handed_max: Some(most.saturating_sub(left)), ..offer.clone() })
    }

    /// It is not offered now.
    pub fn close(&mut self, name: &str) {
        self.offered.remove(name);
    }
}

/// Slots of our tasks that have begun in a queue and are not known to have ended: a claim is seen sooner than the LRMS is asked.
fn alive(books: &Books, queue: &str) -> u64 {
    let of = |s: &crate::books::Sub| {
        let begun = |w: &&crate::books::Watch| w.started || matches!(w.entry, Some(State::Running | State::Suspended));
        s.tasks.values().filter(|w| !w.over && w.gone_ms.is_none()).filter(begun).count() as u64 * u64::from(s.intent.slots)
    };
    books.subs().filter(|s| s.intent.queue == queue).map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::{Intent, Step};
    use crate::lrms::LrmsId;

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
        let queue = Queue { name: "q".into(), slots_all: 8, slots_total: 8, slots_free, ..Queue::default() };
        handed.offer(books, &queue, Offer { ahead: 3, window_max: u64::MAX, ..Offer::default() });
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
        assert!(!h.surveyed(1_000, &[]));
        assert!(h.surveyed(1_001, &[running(1, "grid"), running(2, "eve"), running(3, "")]));
        assert_eq!(Some(9), now(&h));
        assert!(h.surveyed(2_000, &[]) && !h.surveyed(3_000, &[]));
        assert_eq!(Some(11), now(&h));
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
        h.surveyed(2_000, &[]);
        assert_eq!([Some(7), Some(5)], [look(&mut h, &b, 0), look(&mut h, &b, 0)]);
        // What the LRMS has given up has no slot.
        b.watch(&place(3)).unwrap().gone_ms = Some(2_000);
        assert_eq!(1, alive(&b, "q"));
    }

    #[test]
    fn beyond_a_ceiling_nothing_is_handed_on() {
        let (mut h, b) = (Handed::default(), books());
        let queue = Queue { name: "q".into(), slots_all: 8, slots_free: 8, ..Queue::default() };
        h.offer(&b, &queue, Offer { ahead: 3, window_max: 4, ..Offer::default() });
        assert_eq!(Some(4), now(&h));
    }
}
