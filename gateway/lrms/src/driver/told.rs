//! What there is to say of a queue's tasks to who asks why they wait.

use std::collections::BTreeMap;

use super::{Driver, account};
use crate::books::{Books, Sub, Watch};
use crate::limits::RECORD_GRACE_MS;
use crate::lrms::{State, Wait};
use crate::verdict::{Doubt, doubt, patience_ms};

/// Tasks of a queue that are not over, and that somebody asks for: by their placement's number and their index.
fn asked<'a>(books: &'a Books, queue: &'a str, is_asked: impl Fn(u64, u32) -> bool + 'a) -> impl Iterator<Item = (&'a Sub, &'a Watch)> {
    let all =
        books.subs().filter(move |s| s.intent.queue == queue).flat_map(|s| (1..).zip(&s.intent.tasks).map(move |(position, key)| (s, position, key)));
    all.filter(move |(_, _, (number, index))| is_asked(*number, *index))
        .filter_map(|(s, position, _)| Some((s, s.tasks.get(&position)?)))
        .filter(|(_, w)| !w.over)
}

impl Driver {
    /// How many of them are so.
    fn count(&self, queue: &str, is_asked: impl Fn(u64, u32) -> bool, is: impl Fn(&Watch) -> bool) -> u64 {
        asked(&self.lock().books, queue, is_asked).filter(|(_, w)| is(w)).count() as u64
    }

    /// Why tasks of a queue wait: how many, by the LRMS's own word.
    pub fn waits(&self, queue: &str, is_asked: impl Fn(u64, u32) -> bool) -> BTreeMap<(Wait, String), u64> {
        let mut out = BTreeMap::new();
        for (_, watch) in asked(&self.lock().books, queue, is_asked).filter(|(_, w)| !w.started) {
            if let Some(State::Pending(wait, why)) = &watch.entry {
                *out.entry((*wait, why.clone())).or_default() += 1;
            }
        }
        out
    }

    /// Tasks of a queue that are suspended there: how many.
    pub fn suspended(&self, queue: &str, is_asked: impl Fn(u64, u32) -> bool) -> u64 {
        self.count(queue, is_asked, |w| w.entry == Some(State::Suspended))
    }

    /// Tasks of a queue that are over, or gone, while the books that say how can't be read: how many, and why.
    pub fn untold(&self, queue: &str, is_asked: impl Fn(u64, u32) -> bool) -> Option<(u64, String)> {
        let why = self.lock().unread.clone()?;
        let gone = self.count(queue, is_asked, |w| w.gone_ms.is_some());
        (gone > 0).then_some((gone, why))
    }

    /// Tasks of a queue that are gone and may still run: why, how long their records are waited for, and how many. What just ends is none of them.
    pub fn doubtful(&self, queue: &str, is_asked: impl Fn(u64, u32) -> bool) -> BTreeMap<(Doubt, u64), u64> {
        let (inner, now) = (self.lock(), self.clock.now());
        let kill_wait_ms = inner.kill_wait_ms(queue);
        let mut out = BTreeMap::new();
        for (_, watch) in asked(&inner.books, queue, is_asked).filter(|(_, w)| w.started && w.record_ms.is_none()) {
            let said = watch.verdict.as_ref().map(|(over, _)| over);
            let ms = patience_ms(said, kill_wait_ms);
            let waits = watch.gone_ms.is_some_and(|t| (t + RECORD_GRACE_MS..t.saturating_add(ms)).contains(&now));
            if let Some(why) = doubt(said).filter(|_| waits) {
                *out.entry((why, ms)).or_default() += 1;
            }
        }
        out
    }

    /// Tasks of a queue of which nothing is known, as their files are away: how many, and where those of one are looked for.
    pub fn away(&self, queue: &str, is_asked: impl Fn(u64, u32) -> bool) -> Option<(u64, String)> {
        let inner = self.lock();
        let mut tasks = 0;
        let mut first = None;
        for (sub, _) in asked(&inner.books, queue, is_asked).filter(|(s, _)| inner.away.contains(&s.intent.tag)) {
            tasks += 1;
            first.get_or_insert_with(|| (account(&sub.intent), sub.intent.tag.clone()));
        }
        drop(inner);
        let (whose, tag) = first?;
        Some((tasks, self.hand(&whose).base().join(tag).display().to_string()))
    }

    /// Tasks of a queue on machines that the LRMS does not hear of: how many on each.
    pub fn unheard(&self, queue: &str, is_asked: impl Fn(u64, u32) -> bool) -> BTreeMap<String, u64> {
        let inner = self.lock();
        let silent = inner.queues.iter().find(|q| q.name == queue).map_or(&[][..], |q| &q.unheard);
        let mut out = BTreeMap::new();
        if silent.is_empty() {
            return out;
        }
        for (_, watch) in asked(&inner.books, queue, is_asked).filter(|(_, w)| silent.contains(&w.machine)) {
            *out.entry(watch.machine.clone()).or_default() += 1;
        }
        out
    }
}
