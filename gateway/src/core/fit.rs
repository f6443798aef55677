//! Hash maps and queues keep the room of their fullest hour for good. Where much may be taken out at once, [`fit`] gives it back afterwards.
//!
//! A map or queue is made smaller when less than a quarter of its room is used, and keeps twice what it needs. So what is moved then was paid for by at
//! least as many removals, and what comes next does not make it grow at once.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Room for fewer entries than this is not looked at.
pub const ENTRIES_MIN: usize = 64;

/// What has room for more than is in it.
pub trait Roomy {
    /// Entries in it, and for how many there is room.
    fn entries(&self) -> (usize, usize);
    /// Keep room for this many.
    fn keep(&mut self, entries: usize);
}

impl<K: Eq + Hash, V> Roomy for HashMap<K, V> {
    fn entries(&self) -> (usize, usize) {
        (self.len(), self.capacity())
    }

    fn keep(&mut self, entries: usize) {
        self.shrink_to(entries);
    }
}

impl<T> Roomy for VecDeque<T> {
    fn entries(&self) -> (usize, usize) {
        (self.len(), self.capacity())
    }

    fn keep(&mut self, entries: usize) {
        self.shrink_to(entries);
    }
}

/// After removals: give back what is far too much. Afterwards there is room for at most four times what is in it, or [`ENTRIES_MIN`].
pub fn fit(roomy: &mut impl Roomy) {
    let (used, room) = roomy.entries();
    let keep = 2 * used.max(ENTRIES_MIN);
    if room > 2 * keep {
        roomy.keep(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 10_000;

    /// Take all out, one by one; then put one in and take it out, again and again.
    fn drain<R: Roomy>(mut roomy: R, put: impl Fn(&mut R), take: impl Fn(&mut R)) {
        let (mut moved, mut left) = (0, MANY);
        while left > 0 {
            take(&mut roomy);
            left -= 1;
            let before = roomy.entries().1;
            fit(&mut roomy);
            let (used, room) = roomy.entries();
            assert!(used == left && room <= 4 * left.max(ENTRIES_MIN), "{used} of {left}, room for {room}");
            moved += if room < before { used } else { 0 };
        }
        assert!(moved <= MANY, "{moved} entries were moved for {MANY} removals");
        let room = roomy.entries().1;
        for _ in 0..10 {
            put(&mut roomy);
            take(&mut roomy);
            fit(&mut roomy);
            assert_eq!((0, room), roomy.entries(), "once small, it stays as it is");
        }
    }

    #[test]
    fn room_follows_what_is_in_it() {
        let map: HashMap<usize, usize> = (0..MANY).map(|k| (k, k)).collect();
        let first = |m: &mut HashMap<usize, usize>| {
            let k = *m.keys().next().unwrap();
            m.remove(&k);
        };
        drain(map, |m| _ = m.insert(7, 7), first);
        drain((0..MANY).collect::<VecDeque<usize>>(), |q| q.push_back(7), |q| _ = q.pop_front());
    }
}
