//! Whose a job is: by the number that the LRMS told, whatever it is called by now. A name is anybody's to give: it counts for a number that is nobody's, and
//! for a submission that was told none, as its answer was lost.
//!
//! An LRMS that has lost its state, or begins again at 1, gives numbers twice: to whom it told one last, to another account, or to the submission that has the
//! job's name and a claim by it. The number of a submission that is over is kept for as long as the job is listed, and no longer: it may be anybody's then. So
//! long the log has it, too, for the next start.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Books, Intent, Step, Sub};
use crate::limits::NUMBER_LOOKS_MAX;
use crate::lrms::{Entry, LrmsId, State};

/// Whose a number is.
#[derive(Debug)]
pub(super) struct Number {
    tag: String,
    account: Option<String>,
    /// Looks in a row that have not shown it, since nothing of its submission is open.
    missed: u32,
}

impl Number {
    pub(super) fn of(intent: &Intent) -> Self {
        Number { tag: intent.tag.clone(), account: intent.account.clone(), missed: 0 }
    }
}

impl Books {
    /// The LRMS has told that it has it, as this job.
    pub fn sent(&mut self, tag: &str, id: LrmsId) {
        let Some(sub) = self.subs.get_mut(tag) else { return };
        if !std::mem::replace(&mut sub.told, true) {
            // What was found by its name meanwhile may be anybody's.
            for found in std::mem::take(&mut sub.ids) {
                self.numbers.remove(&found);
            }
        }
        self.give(tag, id);
    }

    /// The LRMS has jobs of this name. Is any of them, or may it be, of this submission?
    pub fn found(&mut self, tag: &str, ids: &[LrmsId]) -> bool {
        let is_free = |id: &LrmsId| self.numbers.get(id).is_none_or(|n| n.tag == tag);
        let free: Vec<LrmsId> = ids.iter().copied().filter(is_free).collect();
        free.iter().for_each(|id| self.give(tag, *id));
        !free.is_empty()
    }

    fn give(&mut self, tag: &str, id: LrmsId) {
        let Some(sub) = self.subs.get_mut(tag) else { return };
        sub.step = Step::Sent;
        if !sub.ids.contains(&id) {
            sub.ids.push(id);
        }
        let before = self.numbers.insert(id, Number::of(&sub.intent)).filter(|n| n.tag != tag);
        if let Some(before) = before
            && let Some(sub) = self.subs.get_mut(&before.tag)
        {
            sub.ids.retain(|i| *i != id);
        }
    }

    /// Numbers of jobs that are open, or still listed.
    pub fn known(&self) -> BTreeSet<LrmsId> {
        self.numbers.keys().copied().collect()
    }

    /// Is a job of this submission open, or still listed?
    pub fn is_known(&self, tag: &str) -> bool {
        self.numbers.values().any(|n| n.tag == tag)
    }

    /// Is anything over, and not known to be gone from there?
    pub(super) fn is_left(&self) -> bool {
        self.numbers.values().any(|n| !self.is_wanted(&n.tag))
    }

    /// The tag of the submission that this is of, or that nobody knows any more and it is called by. None: it is none of ours.
    pub fn whose<'a>(&'a self, e: &'a Entry) -> Option<&'a str> {
        let named = self.subs.get(&e.tag).filter(|s| is_his(s.intent.account.as_deref(), &self.own, e));
        let has_claimed = |s: &&Sub| s.tasks.get(&e.position).and_then(|w| w.claim).is_some_and(|(id, _)| id == e.id);
        if let Some(sub) = named.filter(has_claimed) {
            return Some(&sub.intent.tag);
        }
        if let Some(number) = self.number(e) {
            return Some(&number.tag);
        }
        match self.subs.contains_key(&e.tag) {
            true => named.filter(|s| !s.told || s.ids.contains(&e.id)).map(|s| s.intent.tag.as_str()),
            false => e.tag.starts_with(&self.prefix).then_some(e.tag.as_str()),
        }
    }

    /// What is known of its number.
    fn number(&self, e: &Entry) -> Option<&Number> {
        self.numbers.get(&e.id).filter(|n| is_his(n.account.as_deref(), &self.own, e))
    }

    /// As whose it is to be removed, by its number: its submission may be forgotten.
    pub(super) fn account_of(&self, e: &Entry) -> Option<Option<String>> {
        self.number(e).filter(|n| n.tag == e.tag).map(|n| n.account.clone())
    }

    /// Each is given the tag of the submission that it is of. What is none of ours is left out.
    pub(super) fn recognise(&mut self, entries: &mut Vec<Entry>) {
        let mut renamed = Vec::new();
        entries.retain_mut(|e| {
            let Some(tag) = self.whose(e) else { return false };
            if tag != e.tag {
                let tag = tag.to_string();
                let given = std::mem::replace(&mut e.tag, tag.clone());
                renamed.push((tag, e.id, given));
            }
            true
        });
        for (tag, id, given) in renamed {
            if let Some(sub) = self.subs.get_mut(&tag) {
                sub.renamed.insert(id, given);
            }
        }
    }

    /// These are all that the LRMS has, under their own tags: numbers of what is over and not there any more are forgotten.
    pub(super) fn missed(&mut self, entries: &[Entry]) {
        let alive = entries.iter().filter(|e| !matches!(e.state, State::Ended(_)));
        let there: HashSet<(LrmsId, &str)> = alive.map(|e| (e.id, e.tag.as_str())).collect();
        let mut numbers = std::mem::take(&mut self.numbers);
        numbers.retain(|id, n| {
            let is_kept = self.is_wanted(&n.tag) || there.contains(&(*id, n.tag.as_str()));
            n.missed = if is_kept { 0 } else { n.missed + 1 };
            n.missed < NUMBER_LOOKS_MAX
        });
        self.numbers = numbers;
    }
}

/// Anybody can give his job the name of one of ours.
fn is_his(account: Option<&str>, own: &str, e: &Entry) -> bool {
    let account = account.unwrap_or(own);
    e.owner.is_empty() || account.is_empty() || account == e.owner
}

/// By number.
pub(super) type Numbers = BTreeMap<LrmsId, Number>;
