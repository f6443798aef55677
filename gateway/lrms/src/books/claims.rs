//! Which job a task ran as, by the task's own claim: whatever the job is called by now, and whether or not this process has ever seen it listed.

use super::{Books, Place, Sub};
use crate::lrms::{LrmsId, Record};

impl Books {
    /// The claim of a task that has started was read, which was written then, in seconds since 1970. What is no number is no job's; what is not whole is
    /// read again.
    pub fn claimed_by(&mut self, place: &Place, text: &str, at_s: u64) {
        let number = text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        if let Some(watch) = self.watch(place).filter(|w| w.started && text.ends_with('\n')) {
            watch.claim = Some((LrmsId(number), at_s));
        }
    }

    /// Is its claim still to be taken? Not when it is over, nor when it has started: the LRMS's books may say so where its claim is missing.
    pub fn is_taking(&mut self, place: &Place) -> bool {
        match self.watch(place).map(|w| w.started) {
            Some(true) => self.kept(place),
            Some(false) => return true,
            None => {}
        }
        false
    }
}

impl Sub {
    /// Does this record of the LRMS's books tell the end of one of its tasks?
    pub fn is_end(&self, r: &Record) -> bool {
        let claim = self.tasks.get(&r.position).and_then(|w| w.claim).filter(|(id, _)| *id == r.id && self.ids.contains(id));
        self.has(r.id, &r.tag) || claim.is_some_and(|(_, at_s)| r.ran_at(at_s))
    }
}
