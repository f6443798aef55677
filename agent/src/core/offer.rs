//! What the agent offers its gateway, and what it hints of: never durable, the latest counts.

use std::collections::BTreeMap;

use intergrid_proto::limits::{ADVERT_INTERVAL_MS, CREDIT_MS, LOOKAHEAD_SLOTS_MAX};
use intergrid_proto::link::{Advert, Attempts, Hint};
use intergrid_proto::share::{MACHINE, Share, lookahead};
use intergrid_proto::{Phase, TaskSet};

use super::link::Standing;
use super::{Core, Open, Stage};
use crate::limits::*;
use crate::machine::Offer;

impl Core {
    /// Slots that the gateway may have placed here: all, what hides the round trip, and what uses none: it waits for its upload, or is on hold.
    pub(super) fn window(&self) -> u64 {
        // A start and an end wait for two syncs each: the one on its way, and their own; and an end for its company.
        let paces_ms = if self.link.rate < PACED_RATE_MIN { 0 } else { 2 * PACE_MS + self.told_pace_ms() };
        let syncs_ms = 4.0 * self.commit_ms + paces_ms as f64;
        let round_trip_s = (self.link.round_trip_ms + syncs_ms) / 1_000.0;
        let hidden = |turnaround_ms: u64| lookahead(self.link.rate, round_trip_s + turnaround_ms as f64 / 1_000.0);
        let (slots, hidden) = match &self.offer {
            None => (u64::from(self.capacity.slots), hidden(0)),
            Some(o) if o.closed.is_some() => return 0,
            // What waits in a queue of somebody else's can't go elsewhere any more: however fast tasks end, he says how much may.
            Some(o) => (o.room + o.ahead, hidden(o.turnaround_ms).min(o.ahead_short)),
        };
        let slots = slots.saturating_sub(self.orphaned().1);
        let window = slots + hidden + self.uploading.min(LOOKAHEAD_SLOTS_MAX);
        self.offer.as_ref().map_or(window, |o| window.min(o.window_max)) + self.on_hold()
    }

    /// Slots of tasks that are on hold: up to a bound they are in nobody's way. Orphans that wait are counted as such.
    fn on_hold(&self) -> u64 {
        let held = self.opens.iter().filter(|(_, o)| !o.held.is_empty());
        let known = |n: u64, o: &Open| self.names(n, &o.held).iter().filter(|n| !n.is_orphan).map(|n| n.tasks.len()).sum::<u64>();
        held.map(|(n, o)| o.cost * known(*n, o)).sum::<u64>().min(LOOKAHEAD_SLOTS_MAX)
    }

    /// Slots that can be in use at a time.
    pub(super) fn slots(&self) -> u64 {
        self.offer.as_ref().map_or(u64::from(self.capacity.slots), |o| o.room)
    }

    /// Key of our one share.
    pub(super) fn share_key(&self) -> &str {
        self.offer.as_ref().map_or(MACHINE, |o| &o.key)
    }

    pub(super) fn set_offer(&mut self, offer: Offer) {
        if self.offer.as_ref() != Some(&offer) {
            let counts_gpus = |o: Option<&Offer>| o.is_none_or(|o| o.nodes_max == 0);
            let costs_change = counts_gpus(self.offer.as_ref()) != counts_gpus(Some(&offer));
            if self.offer.as_ref().map_or(0, |o| o.task_slots_max) != offer.task_slots_max {
                self.fit_version += 1;
            }
            self.offer = Some(offer);
            self.link.advert_dirty = true;
            if costs_change {
                self.count_anew();
            }
        }
    }

    /// What this machine, or queue of machines, offers now.
    pub(super) fn share(&self) -> Share {
        let slots = self.capacity.slots;
        let offer = self.offer.as_ref();
        let closed = offer.and_then(|o| o.closed.clone());
        let no_room = self.no_room.as_ref().map(|(why, since)| (why.clone(), self.now.saturating_sub(*since)));
        let (draining_reason, draining_age_ms) = no_room.clone().or_else(|| closed.clone().map(|why| (why, 0))).unwrap_or_default();
        let (orphans, run) = self.orphaned();
        let outstanding = (self.outstanding + run).saturating_sub(orphans);
        let free = if no_room.is_some() { 0 } else { self.slots().saturating_sub(outstanding.saturating_sub(self.uploading + self.on_hold())) };
        Share {
            key: self.share_key().into(),
            origin: self.me.site,
            origin_name: self.me.name.clone(),
            path: vec![self.me.site],
            fit_version: self.fit_version,
            machine_slots: slots,
            machine_memory_bytes: self.capacity.memory_bytes,
            machine_gpus: self.capacity.gpus,
            gpus_total: offer.map_or(self.capacity.gpus.into(), |o| o.gpus_total),
            nodes_max: offer.map_or(0, |o| o.nodes_max),
            architecture: self.capacity.architecture.clone(),
            slots_total: offer.map_or(u64::from(slots), |o| o.slots_total),
            machines: offer.map_or(1, |o| o.machines),
            slots_free: free,
            largest_free: u32::try_from(free).unwrap_or(slots).min(offer.map_or(u32::MAX, |o| o.largest_free)),
            window: self.window(),
            credit_ms: CREDIT_MS,
            waiting: self.waiting() + offer.map_or(0, |o| o.waiting),
            draining: no_room.is_some() || closed.is_some(),
            draining_reason,
            draining_age_ms,
            time_max_ms: self.time_max_ms(),
            wait_ms: offer.and_then(|o| o.wait_ms),
            bound: offer.map(|o| o.bound.clone()).unwrap_or_default(),
            task_slots_max: offer.map_or(0, |o| o.task_slots_max),
            ..Share::default()
        }
    }

    /// Tasks that are here and were not started, on hold or not.
    fn waiting(&self) -> u64 {
        let claimed = self.lives.values().filter(|l| matches!(l.stage, Stage::Claiming | Stage::Ready)).count() as u64;
        claimed + self.opens.values().map(|o| o.waiting.len() + o.held.len()).sum::<u64>()
    }

    /// What is left for a task that begins when this is no longer heard of: so nobody has to count what has passed since. 0: not limited.
    fn time_max_ms(&self) -> u64 {
        match (&self.offer, self.ends_ms) {
            (Some(offer), _) => offer.time_max_ms.unwrap_or(0),
            (None, Some(ends)) => ends.saturating_sub(self.now + CREDIT_MS).max(1),
            (None, None) => 0,
        }
    }

    /// Milliseconds until an advertisement is due; None: nothing to say before its renewal, which a tick finds.
    pub fn advert_due_in(&self, now: u64) -> Option<u64> {
        if self.link.standing != Standing::Open {
            return None;
        }
        let Some(last) = self.link.advert_ms else { return Some(0) };
        let next = last + if self.link.advert_dirty { ADVERT_INTERVAL_MS } else { ADVERT_RENEW_MS };
        (self.link.advert_dirty || now >= next).then(|| next.saturating_sub(now))
    }

    /// Tasks turn out to be short: a window that has doubled is told at once, or the slots are idle until then.
    pub(super) fn tell_of_growth(&mut self) {
        if self.link.windows.back().is_some_and(|(_, told)| self.window() >= 2 * told.max(&1)) {
            self.link.advert_ms = None;
        }
    }

    pub(super) fn advert(&mut self) -> Advert {
        let share = self.share();
        let link = &mut self.link;
        link.windows.push_back((self.now, share.window));
        link.window_max(self.now, 0);
        link.advert_version += 1;
        (link.advert_dirty, link.advert_ms) = (false, Some(self.now));
        Advert { version: link.advert_version, shares: vec![share], below: Vec::new() }
    }

    /// Phases that have lasted long enough to be worth a word.
    pub(super) fn gather_hints(&mut self) {
        if self.link.standing != Standing::Open {
            return;
        }
        let mut by_phase: BTreeMap<(u64, Phase), TaskSet> = BTreeMap::new();
        for ((number, task), live) in self.lives.iter_mut().filter(|(_, l)| !l.hinted && self.now >= l.since_ms + SETTLED_MS) {
            let phase = match live.stage {
                Stage::Claiming | Stage::Ready | Stage::Starting => continue,
                Stage::Running(_) if live.suspended => Phase::Suspended,
                Stage::Running(_) => Phase::Running,
                Stage::Uploading => Phase::StagingOut,
            };
            live.hinted = true;
            by_phase.entry((*number, phase)).or_default().insert(*task..*task + 1);
        }
        for (number, open) in self.opens.iter_mut().filter(|(_, o)| !o.hinted_staging && !o.waiting.is_empty()) {
            if self.plans.get(&open.plan.hash).is_some_and(|s| !s.here) {
                open.hinted_staging = true;
                by_phase.insert((*number, Phase::StagingIn), open.waiting.clone());
            }
        }
        for ((number, phase), tasks) in by_phase {
            for name in self.names(number, &tasks).into_iter().filter(|n| !n.is_orphan) {
                self.link.hints.push(Hint { of: Attempts { number: name.number, job: name.job, tasks: name.tasks }, phase });
            }
        }
    }
}
