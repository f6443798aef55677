//! Sets of task indices, as sorted disjoint ranges. Work is moved, wished for and reported in such sets, so that an array of a million tasks costs
//! what its ranges cost.
//!
//! Invariant: ranges are half-open, non-empty, ascending and not adjacent; so equal sets are equal values.

use std::fmt;
use std::ops::Range;

/// A set of task indices.
#[derive(Clone, PartialEq, Eq, Default, Hash)]
pub struct TaskSet {
    ranges: Vec<Range<u32>>,
}

impl TaskSet {
    /// No task.
    pub const fn new() -> Self {
        TaskSet { ranges: Vec::new() }
    }

    /// One range; an empty range gives the empty set.
    pub fn range(r: Range<u32>) -> Self {
        if r.is_empty() { Self::new() } else { TaskSet { ranges: vec![r] } }
    }

    /// One task.
    pub fn one(i: u32) -> Self {
        Self::range(i..i + 1)
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[Range<u32>] {
        &self.ranges
    }

    /// Number of tasks.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|r| u64::from(r.end - r.start)).sum()
    }

    /// No task in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The lowest index.
    pub fn first(&self) -> Option<u32> {
        self.ranges.first().map(|r| r.start)
    }

    /// One beyond the highest index; 0 where empty.
    pub fn end(&self) -> u32 {
        self.ranges.last().map_or(0, |r| r.end)
    }

    /// Is this task in it?
    pub fn contains(&self, i: u32) -> bool {
        let at = self.ranges.partition_point(|r| r.end <= i);
        self.ranges.get(at).is_some_and(|r| r.start <= i)
    }

    /// All tasks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges.iter().cloned().flatten()
    }

    /// Add a range. Appending at the end is O(1).
    pub fn insert(&mut self, r: Range<u32>) {
        if r.is_empty() {
            return;
        }
        if let Some(last) = self.ranges.last_mut() {
            if r.start > last.end {
                self.ranges.push(r);
                return;
            }
            if r.start >= last.start {
                last.end = last.end.max(r.end);
                return;
            }
        } else {
            self.ranges.push(r);
            return;
        }
        let from = self.ranges.partition_point(|x| x.end < r.start);
        let to = self.ranges.partition_point(|x| x.start <= r.end);
        let mut merged = r;
        if from < to {
            merged.start = merged.start.min(self.ranges[from].start);
            merged.end = merged.end.max(self.ranges[to - 1].end);
        }
        self.ranges.splice(from..to, [merged]);
    }

    /// Take a range out.
    pub fn remove(&mut self, r: Range<u32>) {
        if r.is_empty() {
            return;
        }
        let from = self.ranges.partition_point(|x| x.end <= r.start);
        let to = self.ranges.partition_point(|x| x.start < r.end);
        if from >= to {
            return;
        }
        let left = self.ranges[from].start..r.start;
        let right = r.end..self.ranges[to - 1].end;
        self.ranges.splice(from..to, [left, right].into_iter().filter(|x| !x.is_empty()));
    }

    /// In either.
    pub fn union(&self, other: &TaskSet) -> TaskSet {
        let (mut a, mut b) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        let mut out = TaskSet::new();
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.start <= y.start => a.next(),
                (_, Some(_)) => b.next(),
                (Some(_), None) => a.next(),
                (None, None) => return out,
            };
            next.into_iter().for_each(|r| out.insert(r.clone()));
        }
    }

    /// In both.
    pub fn intersect(&self, other: &TaskSet) -> TaskSet {
        let (mut i, mut j) = (0, 0);
        let mut out = Vec::new();
        while let (Some(a), Some(b)) = (self.ranges.get(i), other.ranges.get(j)) {
            let r = a.start.max(b.start)..a.end.min(b.end);
            if !r.is_empty() {
                out.push(r);
            }
            if a.end <= b.end { i += 1 } else { j += 1 }
        }
        TaskSet { ranges: out }
    }

    /// In this one and not in the other.
    pub fn subtract(&self, other: &TaskSet) -> TaskSet {
        let mut out = Vec::new();
        let mut j = 0;
        for a in &self.ranges {
            let mut start = a.start;
            while j < other.ranges.len() && other.ranges[j].end <= start {
                j += 1;
            }
            let mut k = j;
            while k < other.ranges.len() && other.ranges[k].start < a.end {
                let b = &other.ranges[k];
                if start < b.start {
                    out.push(start..b.start);
                }
                start = start.max(b.end);
                k += 1;
            }
            if start < a.end {
                out.push(start..a.end);
            }
        }
        TaskSet { ranges: out }
    }

    /// Take out the `n` lowest and return them.
    pub fn take_first(&mut self, n: u64) -> TaskSet {
        let mut left = n;
        let mut taken = Vec::new();
        let mut whole = 0;
        for r in &mut self.ranges {
            let len = u64::from(r.end - r.start);
            if len <= left {
                taken.push(r.clone());
                left -= len;
                whole += 1;
                continue;
            }
            if left > 0 {
                let cut = r.start + left as u32;
                taken.push(r.start..cut);
                r.start = cut;
            }
            break;
        }
        self.ranges.drain(..whole);
        TaskSet { ranges: taken }
    }

    /// Take out the `n` highest and return them.
    pub fn take_last(&mut self, n: u64) -> TaskSet {
        let first = self.take_first(self.len().saturating_sub(n));
        std::mem::replace(self, first)
    }

    /// As `gap, length, gap, length, ...`: the wire's and the store's form.
    pub fn to_runs(&self) -> Vec<u32> {
        let mut end = 0;
        let mut runs = Vec::with_capacity(self.ranges.len() * 2);
        for r in &self.ranges {
            runs.extend([r.start - end, r.end - r.start]);
            end = r.end;
        }
        runs
    }

    /// From [`to_runs`](Self::to_runs). None where it is not the one right form of a set below `TASKS_PER_JOB_MAX`: an odd count, an empty range, adjacent
    /// ranges, an overflow, too many ranges.
    pub fn from_runs(runs: &[u32]) -> Option<Self> {
        use crate::limits::{TASK_RANGES_MAX, TASKS_PER_JOB_MAX};
        if !runs.len().is_multiple_of(2) || runs.len() / 2 > TASK_RANGES_MAX {
            return None;
        }
        let mut end = 0u32;
        let mut ranges = Vec::with_capacity(runs.len() / 2);
        for (i, pair) in runs.chunks_exact(2).enumerate() {
            if pair[1] == 0 || (i > 0 && pair[0] == 0) {
                return None;
            }
            let start = end.checked_add(pair[0])?;
            end = start.checked_add(pair[1]).filter(|e| *e <= TASKS_PER_JOB_MAX)?;
            ranges.push(start..end);
        }
        Some(TaskSet { ranges })
    }
}

impl FromIterator<u32> for TaskSet {
    fn from_iter<I: IntoIterator<Item = u32>>(iter: I) -> Self {
        let mut out = TaskSet::new();
        iter.into_iter().for_each(|i| out.insert(i..i + 1));
        out
    }
}

/// As people write it: `0-3,7`.
impl fmt::Display for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.ranges.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            if r.end - r.start == 1 {
                write!(f, "{comma}{}", r.start)?;
            } else {
                write!(f, "{comma}{}-{}", r.start, r.end - 1)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn model() -> impl Strategy<Value = BTreeSet<u32>> {
        proptest::collection::btree_set(0u32..60, 0..40)
    }

    fn set(m: &BTreeSet<u32>) -> TaskSet {
        m.iter().copied().collect()
    }

    fn well_formed(s: &TaskSet) -> bool {
        s.ranges.iter().all(|r| r.start < r.end) && s.ranges.windows(2).all(|w| w[0].end < w[1].start)
    }

    proptest! {
        #[test]
        fn laws_of_sets(a in model(), b in model()) {
            let (x, y) = (set(&a), set(&b));
            for (got, want) in [
                (x.union(&y), a.union(&b).copied().collect::<BTreeSet<_>>()),
                (x.intersect(&y), a.intersection(&b).copied().collect()),
                (x.subtract(&y), a.difference(&b).copied().collect()),
            ] {
                prop_assert!(well_formed(&got), "{:?}", got);
                prop_assert_eq!(got.iter().collect::<BTreeSet<_>>(), want);
            }
            prop_assert_eq!(x.union(&y), y.union(&x));
            prop_assert_eq!(x.len(), a.len() as u64);
            prop_assert!((0..60).all(|i| x.contains(i) == a.contains(&i)));
        }

        #[test]
        fn insert_and_remove_agree_with_the_model(a in model(), s in 0u32..60, n in 0u32..20) {
            let mut x = set(&a);
            x.insert(s..s + n);
            let mut m = a.clone();
            m.extend(s..s + n);
            prop_assert!(well_formed(&x));
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), m);
            let mut x = set(&a);
            x.remove(s..s + n);
            prop_assert!(well_formed(&x));
            prop_assert_eq!(x.iter().collect::<Vec<_>>(), a.iter().copied().filter(|i| !(s..s + n).contains(i)).collect::<Vec<_>>());
        }

        #[test]
        fn take_first_splits(a in model(), n in 0u64..70) {
            let mut rest = set(&a);
            let taken = rest.take_first(n);
            prop_assert!(well_formed(&taken) && well_formed(&rest));
            prop_assert_eq!(taken.len(), n.min(a.len() as u64));
            prop_assert_eq!(taken.union(&rest), set(&a));
            prop_assert!(taken.end() <= rest.first().unwrap_or(u32::MAX));
            let (mut first, len) = (set(&a), a.len() as u64);
            prop_assert_eq!((first.take_last(len.saturating_sub(n)), first), (rest, taken));
        }

        #[test]
        fn runs_are_one_form(a in model()) {
            let x = set(&a);
            prop_assert_eq!(TaskSet::from_runs(&x.to_runs()), Some(x));
        }

        #[test]
        fn any_runs_are_refused_or_kept(runs in proptest::collection::vec(0u32..10, 0..20)) {
            if let Some(x) = TaskSet::from_runs(&runs) {
                prop_assert!(well_formed(&x));
                prop_assert_eq!(x.to_runs(), runs);
            }
        }
    }

    #[test]
    fn written_as_people_do() {
        assert_eq!("0-3,7", [0, 1, 2, 3, 7].into_iter().collect::<TaskSet>().to_string());
        assert_eq!(None, TaskSet::from_runs(&[0, u32::MAX]));
    }
}
