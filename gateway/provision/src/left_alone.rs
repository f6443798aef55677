//! Offers of which nothing comes, or only machines on which no task ends, are left alone for a while: else one failure after the other is paid for.

use crate::core::Provisioner;
use crate::input::Refused;
use crate::limits::*;
use crate::machine::{Machine, Stage, Why};
use crate::market::OfferKey;
use crate::records::Record;

impl Provisioner {
    pub(crate) fn refused(&mut self, offer: &OfferKey, refused: Refused, text: String) {
        match refused {
            Refused::Capacity => self.leave_alone(std::slice::from_ref(offer), format!("the provider had none: {text}")),
            Refused::Offer => self.leave_alone(std::slice::from_ref(offer), format!("the provider refuses it: {text}")),
            Refused::Limit => {
                let of_type: Vec<OfferKey> =
                    self.catalogue.offers.iter().map(|o| &o.key).filter(|k| k.machine == offer.machine && k.spot == offer.spot).cloned().collect();
                self.leave_alone(&of_type, format!("the account may have no more of this type: {text}"));
            }
            Refused::Provider => self.blocked = Some((self.now + BLOCKED_MS, text)),
            Refused::NoRoom => self.blocked = Some((self.now + NO_ROOM_MS, text)),
            Refused::Throttled | Refused::TokenSpent => {}
        }
    }

    /// Nothing is rented of an offer now: until when, and why.
    pub(crate) fn left_alone(&self, offer: &OfferKey) -> Option<(u64, &str)> {
        self.state.back_off.get(offer).filter(|(until, ..)| *until > self.now).map(|(until, _, why)| (*until, why.as_str()))
    }

    /// Nor of any other of this type whose price is known: why of the first.
    pub(crate) fn type_left_alone(&self, machine: &str) -> Option<String> {
        let offers = self.catalogue.offers.iter().filter(|o| o.key.machine == machine && o.price.is_some());
        let all: Option<Vec<String>> = offers.map(|o| self.left_alone(&o.key).map(|(_, why)| format!("{}: {why}", o.key))).collect();
        all?.into_iter().next()
    }

    /// For a while, and twice as long each time until a task has ended on one that came. Who fails meanwhile was asked for before that, and counts
    /// for the same time.
    pub(crate) fn leave_alone(&mut self, offers: &[OfferKey], why: String) {
        let known = offers.iter().filter_map(|o| self.state.back_off.get(o));
        let (left_until, before) = known.fold((0, 0), |(left, before), (until, times, _)| (left.max(*until), before.max(*times)));
        let times = if self.now < left_until { before } else { before + 1 };
        let until_ms = self.now + back_off(BACK_OFF_MIN_MS, BACK_OFF_MAX_MS, times);
        offers.iter().for_each(|o| self.record(Record::LeftAlone { offer: o.clone(), until_ms, times, why: why.clone() }));
    }

    /// One that is there and is to be ended: where it has failed its offer is left alone from now on, as its provider may take long to end it.
    pub(crate) fn note_failure(&mut self, number: u64) {
        let Some(m) = self.state.machines.get(&number).filter(|m| m.ending.is_some()) else { return };
        if let (Some(why), offer) = (m.failure(self.now), m.offer.clone()) {
            self.leave_alone(&[offer], why);
        }
    }

    /// A task has ended there. With its first one its offer is as good as any; what an old machine does says nothing of those that come now.
    pub(crate) fn worked(&mut self, number: u64) {
        let Some(m) = self.state.machines.get_mut(&number) else { return };
        let (is_first, offer) = (m.unproven_ms.take().is_some(), m.offer.clone());
        if is_first && self.state.back_off.contains_key(&offer) {
            self.record(Record::LeftAlone { offer, until_ms: 0, times: 0, why: String::new() });
        }
    }

    /// It takes no new work. Where it was wanted and has never done any, another would say the same: that is not rented at once.
    pub(crate) fn leaves(&mut self, number: u64, word: String) {
        let now = self.now;
        let Some(m) = self.state.machines.get_mut(&number) else { return };
        let (is_unused, offer) = (m.busy == 0, m.offer.clone());
        let failed = is_unused && m.wanted && m.is_unproven(now);
        m.word.clone_from(&word);
        if is_unused {
            // Its end says nothing more. One that has work is judged by that.
            m.unproven_ms = None;
        }
        self.drain(number, Why::Leaving);
        if failed {
            self.leave_alone(&[offer], did_no_work(&word));
        }
    }
}

impl Machine {
    /// No task has ended there. What has lasted for longer than any offer is left alone is no failure: to wait would not make it rarer.
    fn is_unproven(&self, now_ms: u64) -> bool {
        self.unproven_ms.is_some_and(|came_ms| now_ms < came_ms + BACK_OFF_MAX_MS)
    }

    /// Why another would go the same way as this one. None: by our wish, or for want of work, or a task has ended there.
    fn failure(&self, now_ms: u64) -> Option<String> {
        let by_itself = matches!(self.ending, None | Some(Why::Away));
        // One that said that its end is near, and went with its work, was taken back; one that was drained then has done none of it.
        let had_use = match self.draining {
            Some(Why::Leaving) => self.ending == Some(Why::Leaving),
            _ => by_itself && (self.busy > 0 || self.wanted),
        };
        match had_use && self.is_unproven(now_ms) {
            _ if self.awaited && by_itself => Some("the last one ended before its agent came".into()),
            true if !self.word.is_empty() => Some(did_no_work(&self.word)),
            true => Some("the last one ended before a task had ended there".into()),
            false => None,
        }
    }

    /// The same of one that is gone; of one that was to be ended it is known since then.
    pub(crate) fn failed(&self, now_ms: u64) -> Option<String> {
        if self.stage == Stage::Named && self.ending.is_none() { self.failure(now_ms) } else { None }
    }
}

fn did_no_work(word: &str) -> String {
    format!("the last one did no work: {word}")
}

/// `min`, doubled with each time, up to `max`.
pub(crate) fn back_off(min: u64, max: u64, times: u32) -> u64 {
    min.checked_shl(times.saturating_sub(1)).unwrap_or(max).min(max)
}
