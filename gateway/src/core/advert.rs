//! What parents are told: shares, and how much of each a parent may use.
//!
//! Law: over all parents, what they have been told and do not use never exceeds what is free plus the lookahead, at the moment of telling. So a window
//! that has been made smaller counts as it was until its holder has seen that (`Down::Saw`): placements sent on its word are before it on the link.

use std::collections::BTreeMap;

use intergrid_proto::limits::*;
use intergrid_proto::link::{Advert, Down, Hop, Kind, Up};
use intergrid_proto::share::{divide_window, longer, lookahead, shorter};
use intergrid_proto::{Shape, Share, SiteId};

use super::limits::*;
use super::planted::{Plant, planted};
use super::{Action, Core};

/// A share as told upward, before it is divided.
pub(super) struct Upward {
    pub share: Share,
    /// Slots that can still be placed below.
    pub room: u64,
    /// It is of a cluster's queue.
    pub is_queue: bool,
}

/// `x86_64-4c-16g`, `x86_64-4c-3.75g-1gpu`: machines of one kind, which are told of as one share with the least memory of them.
pub(super) fn machine_class(s: &Share) -> String {
    let gpus = if s.machine_gpus > 0 { format!("-{}gpu", s.machine_gpus) } else { String::new() };
    // What the kernel keeps for itself is no difference; where there is little, a part of a GiB is one.
    let part = if s.machine_memory_bytes < CLASS_FINE_BELOW_BYTES { 4 } else { 1 };
    let gib = ((s.machine_memory_bytes * part + (1 << 29)) >> 30) as f64 / part as f64;
    format!("{}-{}c-{gib}g{gpus}", s.architecture, s.machine_slots)
}

impl Upward {
    /// More machines of this kind.
    fn add(&mut self, share: Share, room: u64) {
        let e = &mut self.share;
        self.room += room;
        e.slots_total += share.slots_total;
        e.slots_free += share.slots_free;
        e.largest_free = e.largest_free.max(share.largest_free);
        e.machine_memory_bytes = e.machine_memory_bytes.min(share.machine_memory_bytes);
        e.machines = e.machines.saturating_add(share.machines);
        e.gpus_total += share.gpus_total;
        e.age_ms = e.age_ms.min(share.age_ms);
        // A task may fit one of them.
        e.time_max_ms = longer(e.time_max_ms, share.time_max_ms);
        e.task_slots_max = longer(e.task_slots_max, share.task_slots_max);
        e.wait_ms = shorter(e.wait_ms, share.wait_ms);
        e.draining &= share.draining;
        if !e.draining {
            (e.draining_reason, e.draining_age_ms) = Default::default();
        }
        // What it costs at most.
        if e.currency.is_empty() || (e.currency == share.currency && e.price_micro_per_slot_hour < share.price_micro_per_slot_hour) {
            (e.price_micro_per_slot_hour, e.currency) = (share.price_micro_per_slot_hour, share.currency);
        }
        if e.not_rented < share.not_rented {
            e.not_rented = share.not_rented;
        }
        e.fit_version = e.fit_version.wrapping_add(share.fit_version);
    }
}

impl Core {
    /// Everything that could be offered. Machines of one kind are one share of ours; what sites below offer is passed on, once per origin and class.
    pub(super) fn upward(&self) -> BTreeMap<String, Upward> {
        let mut out: BTreeMap<String, Upward> = BTreeMap::new();
        for (id, c) in self.children.iter().filter(|(_, c)| c.attached) {
            for (key, s) in &c.shares {
                let used = self.state.outstanding.get(&(*id, key.clone())).copied().unwrap_or(0);
                let mut share = s.clone();
                share.draining_age_ms += self.now.mono_ms.saturating_sub(c.heard_ms);
                if let Some((text, age)) = self.draining(*id) {
                    (share.draining, share.draining_reason, share.draining_age_ms) = (true, text, age);
                }
                let room = if share.draining { 0 } else { s.window.saturating_sub(used) };
                share.path.push(self.me.site);
                share.age_ms += self.now.mono_ms.saturating_sub(c.heard_ms);
                let is_queue = c.hop.kind == Kind::Agent && !s.is_machine();
                if c.hop.kind == Kind::Agent {
                    // An agent is a machine, one of a kind; a queue of many machines has a name, and says itself what is free.
                    let is_machine = s.is_machine();
                    let of_machine = || self.rented_class(&c.hop.name).unwrap_or_else(|| machine_class(s));
                    share.key = format!("{}/{}", self.me.name, if is_machine { of_machine() } else { s.key.clone() });
                    (share.origin, share.origin_name, share.path) = (self.me.site, self.me.name.clone(), vec![self.me.site]);
                    share.slots_free = s.free(used);
                    if is_machine {
                        share.largest_free = u32::try_from(share.slots_free).unwrap_or(u32::MAX);
                        share.machines = 1;
                    }
                }
                if share.draining {
                    (share.slots_free, share.largest_free) = (0, 0);
                }
                match out.get_mut(&share.key) {
                    None => _ = out.insert(share.key.clone(), Upward { share, room, is_queue }),
                    Some(e) if c.hop.kind == Kind::Agent && e.share.origin == self.me.site => e.add(share, room),
                    Some(e) if e.share.origin == share.origin => {
                        e.room += room;
                        e.share.merge(&share);
                    }
                    // Two origins of one name: the second is not told of; names are unique within a federation.
                    Some(_) => {}
                }
            }
        }
        for more in self.rentable() {
            match out.get_mut(&more.share.key) {
                None => _ = out.insert(more.share.key.clone(), more),
                Some(e) if e.share.origin == self.me.site => e.add(more.share, more.room),
                Some(_) => {}
            }
        }
        out
    }

    /// Slots that parents' tasks wait for here, by share.
    pub(super) fn queued_for_parents(&self) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        for n in self.state.waiting.values().flatten() {
            let Some(j) = self.state.jobs.get(n).filter(|j| j.parent.is_some()) else { continue };
            for (up, tasks) in j.by_up(&j.queued) {
                if let Some(e) = j.ups.get(&up) {
                    *out.entry(e.share.to_string()).or_default() += e.cost * tasks.len();
                }
            }
        }
        out
    }

    /// The advert for each attached parent: filter by path, then divide.
    fn adverts(&self) -> Vec<(SiteId, Vec<Share>, Vec<Hop>)> {
        let upward = self.upward();
        let queued = self.queued_for_parents();
        let round_trip = self.parents.values().filter(|p| p.attached).map(|p| p.round_trip_ms).fold(0.0, f64::max);
        let total: u64 = upward.values().map(|u| u.share.slots_total).sum();
        let receivers: Vec<SiteId> = self.parents.iter().filter(|(_, p)| p.live).map(|(id, _)| *id).collect();
        let mut shares: BTreeMap<SiteId, Vec<Share>> = receivers.iter().map(|r| (*r, Vec::new())).collect();
        for (key, u) in &upward {
            let seeing: Vec<SiteId> = receivers.iter().copied().filter(|r| u.share.visible_to(*r)).collect();
            let ahead = lookahead(self.ended_rate, (round_trip + 5.0) / 1000.0) * u.share.slots_total / total.max(1);
            // What may wait in a queue is in its window, and what would wait here for that could be elsewhere.
            let ahead = if u.is_queue { 0 } else { ahead };
            let free = (u.room + ahead).saturating_sub(queued.get(key).copied().unwrap_or(0));
            let parts: Vec<(u64, u64, u64)> = seeing
                .iter()
                .map(|r| {
                    let held = self.state.names.get_key_value(key.as_str()).and_then(|(k, ())| self.state.held_for.get(&(*r, k.clone())));
                    let fitting = self.parents[r].demand.iter().filter(|d| d.tasks > 0 && u.share.takes(&d.shape, d.time_limit_ms));
                    let costs: Vec<(u64, u64)> = fitting.map(|d| (u.share.cost(&d.shape), d.tasks)).collect();
                    let wanted = costs.iter().map(|(cost, n)| cost.saturating_mul(*n)).fold(0, u64::saturating_add);
                    (held.copied().unwrap_or(0), wanted, costs.iter().map(|c| c.0).max().unwrap_or(1))
                })
                .collect();
            let told: Vec<u64> = seeing.iter().map(|r| self.parents[r].told(key)).collect();
            // What is with somebody who does not know yet that it is no longer his can't be given to anybody else.
            let mut loose = free.saturating_sub(told.iter().zip(&parts).map(|(t, (held, ..))| t.saturating_sub(*held)).sum());
            for ((r, mut window), (told, (held, ..))) in seeing.iter().zip(divide_window(free, &parts)).zip(told.iter().zip(&parts)) {
                let more = window.saturating_sub(*told.max(held)).min(loose);
                loose -= more;
                window = window.min(told.max(held) + more);
                let waiting = self.state.waiting.values().flatten().count() as u64;
                let share = Share { window, credit_ms: CREDIT_MS, waiting, ..u.share.clone() };
                if let Some(list) = shares.get_mut(r) {
                    list.push(share);
                }
            }
        }
        let below = |r: &SiteId| {
            let mut all: BTreeMap<SiteId, Hop> = BTreeMap::new();
            for (id, c) in self.children.iter().filter(|(_, c)| c.attached && c.hop.kind != Kind::Agent) {
                all.insert(*id, c.hop.clone());
                all.extend(c.below.iter().map(|h| (h.site, h.clone())));
            }
            all.remove(r);
            all.into_values().take(SITES_BELOW_MAX).collect::<Vec<_>>()
        };
        shares.into_iter().map(|(r, s)| (r, s, below(&r))).collect()
    }

    /// How fast tasks end here. That they have begun to end fast is believed at once: each hop learns it only after the one below it.
    pub(super) fn measure_ends(&mut self) {
        let (at, seen) = self.ended_seen;
        let (passed, ended) = (self.now.mono_ms.saturating_sub(at), self.state.ended - seen);
        let rate = ended as f64 * 1_000.0 / passed.max(1) as f64;
        let more = rate > self.ended_rate;
        if passed >= ENDS_SAMPLE_MS || more && passed >= ENDS_SAMPLE_MIN_MS && ended >= ENDS_SAMPLE_MIN {
            self.ended_rate = if more { rate } else { 0.7 * self.ended_rate + 0.3 * rate };
            self.ended_seen = (self.now.mono_ms, self.state.ended);
        }
    }

    /// How far apart turns should be that nobody but peers waits for, milliseconds.
    pub fn turn_pace_ms(&self) -> u64 {
        if PACED_RATE.contains(&self.ended_rate) { TURN_PACE_MS } else { 0 }
    }

    /// Tell parents what has changed: the first change at once, then at most one advert in `ADVERT_INTERVAL_MS`; repeated before credit runs out.
    pub(super) fn flush_adverts(&mut self) {
        let now = self.now.mono_ms;
        let due = |p: &super::Parent| {
            let age = now.saturating_sub(p.advert_ms);
            p.live && (p.advert.is_none() || age >= CREDIT_MS || (p.before.is_none() && age >= ADVERT_INTERVAL_MS))
        };
        if !self.advert_due || !self.parents.values().any(due) {
            return;
        }
        self.advert_due = self.parents.values().any(|p| p.live && !due(p));
        for (id, shares, below) in self.adverts() {
            let Some(p) = self.parents.get_mut(&id).filter(|p| due(p)) else { continue };
            if shares.len() > SHARES_MAX {
                let text = format!("{} share classes are below, at most {SHARES_MAX} can be told to {}; merge machine classes", shares.len(), p.name);
                if p.advert.as_ref().is_none_or(|a| !a.shares.is_empty()) {
                    self.actions.push(Action::Warn(text));
                    p.advert_version += 1;
                    let nothing = Advert { version: p.advert_version, ..Advert::default() };
                    (p.before, p.advert_ms) = (p.advert.replace(nothing.clone()), now);
                    self.actions.push(Action::ToParent(id, Up::Advert(nothing)));
                }
                continue;
            }
            let same = |a: &Advert| a.below == below && a.shares.len() == shares.len() && a.shares.iter().zip(&shares).all(|(a, b)| alike(a, b));
            if p.advert.as_ref().is_some_and(same) && now.saturating_sub(p.advert_ms) < ADVERT_RENEW_MS {
                continue;
            }
            p.advert_version += 1;
            let advert = Advert { version: p.advert_version, shares, below };
            // The first of a session replaces nothing that could be used in it.
            p.before = p.advert.replace(advert.clone());
            p.advert_ms = now;
            self.actions.push(Action::ToParent(id, Up::Advert(advert)));
        }
    }

    /// A parent has taken in an advert: what it placed before that on the word of an older one has come.
    pub(super) fn parent_saw(&mut self, parent: SiteId, version: u64) {
        if let Some(p) = self.parents.get_mut(&parent).filter(|p| p.advert.as_ref().is_some_and(|a| a.version == version)) {
            p.before = None;
            self.advert_due = true;
        }
    }

    /// Slots that this parent may still place on this share.
    pub(super) fn room_for(&self, parent: SiteId, share: &str) -> u64 {
        let Some(p) = self.parents.get(&parent) else { return 0 };
        let held = self.state.names.get_key_value(share).and_then(|(k, ())| self.state.held_for.get(&(parent, k.clone()))).copied().unwrap_or(0);
        p.told(share).saturating_sub(held + u64::from(planted(Plant::AdmitsLess)))
    }

    /// What one task of a shape counts for on a share that we have told of: the parent counts the same.
    pub(super) fn cost_at(&self, share: &str, shape: &Shape) -> u64 {
        let told = self.parents.values().filter_map(|p| p.advert.as_ref()).flat_map(|a| &a.shares).find(|s| s.key == share);
        told.map_or(u64::from(shape.slots), |s| s.cost(shape)).max(1)
    }

    /// Tell children what we would use beyond what they have.
    pub(super) fn flush_demand(&mut self) {
        let now = self.now.mono_ms;
        for (id, c) in self.children.iter_mut().filter(|(_, c)| c.attached && c.hop.kind != Kind::Agent) {
            if c.demand != c.demand_told && now.saturating_sub(c.demand_ms) >= ADVERT_INTERVAL_MS {
                (c.demand_told, c.demand_ms) = (c.demand.clone(), now);
                self.actions.push(Action::ToChild(*id, Down::Demand(c.demand.clone())));
            }
        }
    }
}

impl super::Parent {
    /// The window of a share that it may go by: the largest of those that it has been told and has not seen replaced.
    fn told(&self, share: &str) -> u64 {
        let windows = self.advert.iter().chain(&self.before).flat_map(|a| &a.shares).filter(|s| s.key == share).map(|s| s.window);
        windows.max().unwrap_or(0)
    }
}

/// Equal in all that a receiver must know at once: of what only time changes the next renewal tells.
fn alike(a: &Share, b: &Share) -> bool {
    let plain = |s: &Share| Share { age_ms: 0, draining_age_ms: 0, time_max_ms: 0, ..s.clone() };
    plain(a) == plain(b)
}
