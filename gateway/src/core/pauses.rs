//! Pauses: a share that gave work back is left alone for a while, and a child that gives back without end for longer.

use intergrid_proto::{Reason, ReasonKind, SiteId};

use super::Core;
use super::limits::*;
use super::state::QueueKey;

/// Does it come from a limit, of a user perhaps, somewhere below?
pub(super) fn is_of_a_limit(reason: &Reason) -> bool {
    reason.kind == ReasonKind::OverLimit || reason.because.iter().any(is_of_a_limit)
}

impl Core {
    /// Leave a share alone for a while: for everybody where it has no room, else for those whom it does not take.
    pub(super) fn back_off(&mut self, child: SiteId, share: std::sync::Arc<str>, queue: QueueKey, reason: &Reason, asked: bool) {
        let now = self.now.mono_ms;
        let (least, most, whose) = match reason.kind {
            ReasonKind::AskedBack if asked => return,
            // There is room, and these may not have it now: others may, and it is not to be held for these again and again.
            ReasonKind::OverCredit if is_of_a_limit(reason) => (BACK_OFF_LIMIT_MS, BACK_OFF_BUSY_MAX_MS, queue),
            ReasonKind::OverCredit | ReasonKind::StillStopping | ReasonKind::Draining => (BACK_OFF_MIN_MS, BACK_OFF_BUSY_MAX_MS, queue.anybody()),
            // It will not change its mind soon.
            ReasonKind::NoFit => (BACK_OFF_REFUSED_MS, BACK_OFF_MAX_MS, queue.anybody()),
            _ => (BACK_OFF_REFUSED_MS, BACK_OFF_MAX_MS, queue),
        };
        if let Some(c) = self.children.get_mut(&child) {
            if c.back_off.len() >= BACK_OFFS_MAX {
                c.back_off.retain(|_, (until, ..)| *until > now);
            }
            let (until, pause) = match c.back_off.get(&(share.clone(), whose.clone())) {
                // Nothing is sent during a pause: what comes back now was sent before it, and says nothing new.
                Some((until, last, _)) if *until > now => ((now + least).max(*until), least.max(*last)),
                known => {
                    let pause = known.map_or(least, |(_, last, _)| (last * 2).clamp(least, most));
                    (now + pause, pause)
                }
            };
            c.back_off.insert((share, whose), (until, pause, reason.clone()));
        }
    }

    /// However its shares are called: a child that gives back more than so much is left alone for a while.
    pub(super) fn count_return(&mut self, child: SiteId) {
        let now = self.now.mono_ms;
        let Some(c) = self.children.get_mut(&child) else { return };
        let (count, at) = c.returned;
        let forgiven = now.saturating_sub(at) * RETURNS_PER_S / 1_000;
        // What is too little to forgive anything goes on counting from where it began.
        c.returned = if forgiven > 0 { (count.saturating_sub(forgiven) + 1, now) } else { (count + 1, at) };
        if c.returned.0 > RETURNS_MAX {
            c.returned.0 = RETURNS_MAX;
            c.paused_until_ms = now + RETURNS_PAUSE_MS;
        }
    }

    /// Keys that nobody uses any more are forgotten, when there are many.
    pub(super) fn forget_names(&mut self) {
        if self.state.names.len() >= self.names_max {
            self.state.names.retain(|name, ()| std::sync::Arc::strong_count(name) > 1);
            self.names_max = NAMES_MAX.max(2 * self.state.names.len());
        }
    }

    /// A share has taken work: if it gives some back again, the pause is a short one.
    pub(super) fn back_off_less(&mut self, child: SiteId, job: u64, number: u64) {
        let Some(c) = self.children.get_mut(&child).filter(|c| !c.back_off.is_empty()) else { return };
        let Some(j) = self.state.jobs.get(&job) else { return };
        let Some(share) = j.downs.get(&number).map(|d| d.share.clone()) else { return };
        let queue = QueueKey::of(j);
        for whose in [queue.anybody(), queue] {
            if let Some((_, last, _)) = c.back_off.get_mut(&(share.clone(), whose)) {
                *last = 0;
            }
        }
    }
}
