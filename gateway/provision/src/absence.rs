//! What machines cost while nobody was here to pay for it, and when one that is gone has ended.
//!
//! After a start no lease is paid for a machine before its provider or its agent has said that it is there: then all that it ran is charged at once. One that
//! is gone is charged to its end where that is known, else to the latest that it can have run. Until then nothing is rented: what is left is not known.
//!
//! Where machines' times are ahead of a start's clock, one of the two is wrong: the clock may not be set yet, or was ahead before. Until it is set, or has gone
//! on for [`CLOCK_SET_MS`], such a machine is not paid for, none is given up as gone, and none is rented: all of that is done later, by times that hold.

use crate::core::Provisioner;
use crate::limits::*;
use crate::machine::Machine;
use crate::market::Billing;
use crate::money::Rate;
use crate::records::Record;

/// A start, by the clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    /// When it was, as the clock is set now.
    began_ms: u64,
    /// From then on the clock is right, and what is ahead of it is not.
    pub(crate) set_ms: u64,
}

/// Why nothing is rented meanwhile.
pub(crate) const UNCLEAR: &str = "what machines have cost while this gateway was away is not known yet";
/// Likewise.
pub(crate) const BEHIND: &str = "the times of its machines are ahead of this gateway's clock: it may be behind, and be set soon";

impl Machine {
    /// It is there, as its provider or its agent says: it is paid for again, and ended if it is to be.
    pub(crate) fn heard(&mut self, now_ms: u64) {
        (self.missed, self.word_ms) = (0, now_ms);
        if std::mem::take(&mut self.unheard) {
            self.terminate_ms = 0;
        }
    }

    /// Nobody has said since a start whether it was there after its lease.
    pub(crate) fn is_unclear(&self, now_ms: u64) -> bool {
        self.unheard && self.may_exist() && self.price.ceiling > Rate(0) && now_ms >= self.paid_ms
    }

    /// Were its times written by a clock that was ahead of now? An hour, and what is billed at least, may be settled to its end.
    fn is_ahead(&self, now_ms: u64) -> bool {
        let now_ms = now_ms + AHEAD_MIN_MS;
        let is_settled_ahead = self.settled_ms > now_ms.max(self.unused_ms(now_ms));
        self.since_ms > now_ms || is_settled_ahead || self.paid_ms > now_ms + self.price.billing.first_ms() + LEASE_LEAD_MS
    }
}

impl Provisioner {
    /// It starts now: what is ahead of the clock?
    pub(crate) fn begin(&mut self) {
        let now = self.now;
        self.start = Start { began_ms: now, set_ms: now + CLOCK_SET_MS };
        self.state.machines.values_mut().for_each(|m| m.ahead = m.is_ahead(now));
    }

    /// The clock was set ahead by so much: that is no time in which anything was waited for.
    pub(crate) fn stepped(&mut self, by_ms: u64) {
        let now = self.now;
        let later = |at_ms: u64| at_ms.saturating_add(by_ms).min(now);
        let began_ms = later(self.start.began_ms);
        // A clock that is only kept right is set all the time.
        let set_ms = if by_ms >= AHEAD_MIN_MS { now + CLOCK_SET_MS } else { self.start.set_ms.saturating_add(by_ms) };
        self.start = Start { began_ms, set_ms };
        for m in self.state.machines.values_mut() {
            (m.away_ms, m.idle_ms, m.word_ms) = (later(m.away_ms), later(m.idle_ms), later(m.word_ms));
            m.ahead &= m.is_ahead(began_ms);
        }
    }

    /// The clock was ahead, and no longer is: times that still are go on from this start, so that what ran since is paid for.
    pub(crate) fn set_back(&mut self) {
        let at_ms = self.start.began_ms;
        if self.now >= self.start.set_ms {
            let numbers: Vec<u64> = self.machines().filter(|m| m.ahead).map(|m| m.number).collect();
            self.state.machines.values_mut().for_each(|m| m.ahead = false);
            numbers.into_iter().for_each(|number| self.record(Record::SetBack { number, at_ms }));
        }
    }

    /// The provider says that what it launched has ended. After a start it is asked again once: a look may say when.
    pub(crate) fn spent(&mut self, number: u64) {
        let now = self.now;
        let Some(m) = self.state.machines.get_mut(&number) else { return };
        m.call_ms = now + TERMINATE_AGAIN_MS;
        if !m.unheard || m.said_ms.is_some() || m.calls > 2 {
            self.gone(number, false, None);
        }
    }

    /// When one that is gone has ended, or the latest that it can have: by its provider; or by itself, as nobody was here and it had nothing to do; else now.
    pub(crate) fn ended_ms(&self, m: &Machine, said_ms: Option<u64>) -> u64 {
        // Of what was heard of later the clocks differ.
        let said_ms = said_ms.or(m.said_ms).filter(|at_ms| m.unheard || m.id.is_empty() || *at_ms >= m.word_ms);
        let alone_ms = self.settings.alone_ms.filter(|_| m.unheard && !m.had_work);
        // Who was here and had heard of it would have paid for more: nobody was, after its lease.
        let boot_ms = if m.awaited { BOOT_LATE_MS } else { 0 };
        let by_itself_ms = alone_ms.map(|alone_ms| m.paid_ms.saturating_add(alone_ms).saturating_add(boot_ms + ALONE_LATE_MS));
        said_ms.or(by_itself_ms).unwrap_or(self.now).max(m.since_ms).min(self.now)
    }

    /// All that it ran is charged.
    pub(crate) fn pay_to_end(&mut self, number: u64, at_ms: u64) {
        let Some(m) = self.state.machines.get(&number) else { return };
        if at_ms <= m.paid_ms {
            return self.settle(number, at_ms);
        }
        let step_ms = if m.price.billing == Billing::Hour { m.price.billing.next_ms() } else { 1 };
        let (rate_max, paid_ms) = (m.rate_max, m.paid_ms + (at_ms - m.paid_ms).div_ceil(step_ms) * step_ms);
        self.record(Record::Leased { number, at_ms, rate_max, paid_ms });
    }
}
