//! Files that are away where the gateway is: the directory of a submission is made before anything is known of it, and where it is not there, nor a claim of
//! its tasks, nothing is known of them.

use super::Driver;
use crate::books::{Intent, Place, Sub};
use crate::hand::Hand;
use crate::hand::files::Ask;
use crate::verdict::not_here;

impl Driver {
    /// Other submissions of its account that have a directory.
    pub(super) fn others(&self, intent: &Intent) -> Vec<String> {
        let is_other = |s: &&Sub| s.begun && s.intent.tag != intent.tag && s.intent.account == intent.account;
        self.lock().books.subs().filter(is_other).map(|s| s.intent.tag.clone()).collect()
    }

    /// Make a submission's directory, once.
    pub(super) async fn make(&self, hand: &Hand, tag: &str) -> Result<(), String> {
        let unmade = self.lock().books.sub(tag).filter(|s| !s.begun).map(|s| s.intent.clone());
        let Some(intent) = unmade else { return Ok(()) };
        loop {
            let others = self.others(&intent);
            match hand.ask(Ask::Begin(tag.to_string(), others.clone()), Vec::new()).await {
                // They have been removed meanwhile, as what is over is.
                Err(_) if !others.is_empty() && others.iter().all(|other| self.lock().books.sub(other).is_none()) => {}
                Err(why) => return Err(why),
                Ok(_) => break,
            }
        }
        self.lock().books.sub_mut(tag).into_iter().for_each(|s| s.begun = true);
        Ok(())
    }

    /// Say once of a submission that nothing is known of its tasks.
    pub(super) fn tell_away(&self, tag: &str, why: &str) {
        if self.lock().away.insert(tag.to_string()) {
            tracing::warn!(%tag, "the files of a submission are away, and nothing is known of its tasks until they are back: {why}; trying on");
        }
    }

    /// The files of a submission are there.
    pub(super) fn is_back(&self, tag: &str) {
        if self.lock().away.remove(tag) {
            tracing::info!(%tag, "the files of a submission are there again");
        }
    }

    /// Do the LRMS's books say of a task without files that its only script has not begun? Of one that an earlier process submitted they may say it by a
    /// payload's own exit code: that process may have been of an earlier version.
    pub(super) fn has_not_begun(&self, place: &Place) -> bool {
        let mut inner = self.lock();
        let is_only = inner.books.sub(&place.0).is_some_and(|s| s.fresh && s.ids.len() == 1);
        is_only && inner.books.watch(place).is_some_and(|w| !w.started && w.verdict.as_ref().is_some_and(|(over, _)| not_here(over)))
    }
}
