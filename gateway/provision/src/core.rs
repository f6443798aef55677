//! The provisioner's state, and what each input makes of it. Time is ms since 1970, and never goes back here; that it goes on is for [`crate::Clock`].

use std::collections::{BTreeMap, BTreeSet};

use crate::absence::Start;
use crate::budget::{Budget, Charge};
use crate::input::{Action, Input, Outcome, Refused, Seen, SeenState};
use crate::left_alone::back_off;
use crate::limits::*;
use crate::machine::{Machine, Stage, Why};
use crate::market::{Billing, Catalogue};
use crate::money::{Money, Rate};
use crate::records::{Record, State, apply};
use crate::round::Round;

/// What the configuration says, beside the catalogue and the budget.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Slots of all machines, at most.
    pub slots_max: u64,
    /// Machines, at most.
    pub machines_max: u32,
    /// Machines on their way, at most.
    pub booting_max: u32,
    /// A machine without work for so long is drained (billed by the second) or marked (by the hour).
    pub idle_ms: u64,
    /// A machine whose agent does not come, or stays away, for so long is ended.
    pub away_ms: u64,
    /// A machine that is without us and without work for so long ends by itself; None: none does, or not in a time that is known.
    pub alone_ms: Option<u64>,
}

/// The provisioner.
#[derive(Clone, Debug)]
pub struct Provisioner {
    pub(crate) settings: Settings,
    pub(crate) catalogue: Catalogue,
    /// Prices of the spot market, by type of machine.
    pub(crate) spot: BTreeMap<String, Rate>,
    pub(crate) state: State,
    pub(crate) now: u64,
    /// So far ahead of the wall clock, which people are told: see [`Provisioner::leads_by`].
    pub(crate) lead_ms: u64,
    pub(crate) blocked: Option<(u64, String)>,
    pub(crate) latest: Round,
    pub(crate) start: Start,
    strangers: BTreeMap<String, u32>,
    looking: bool,
    look_ms: u64,
    records: Vec<Record>,
    actions: Vec<Action>,
}

impl Provisioner {
    /// A new one.
    pub fn new(settings: Settings, catalogue: Catalogue, budget: Budget) -> Provisioner {
        let state = State { budget, next: 1, ..State::default() };
        Provisioner {
            settings,
            catalogue,
            spot: BTreeMap::new(),
            state,
            now: 0,
            lead_ms: 0,
            blocked: None,
            latest: Round::default(),
            start: Start::default(),
            strangers: BTreeMap::new(),
            looking: false,
            look_ms: 0,
            records: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// One that goes on from what was committed. Every call that may have been made is taken to have been made.
    pub fn resume(settings: Settings, catalogue: Catalogue, budget: Budget, records: impl IntoIterator<Item = Record>, now: u64) -> Provisioner {
        let state = State::again(&budget, records);
        let mut p = Provisioner { state, now, ..Provisioner::new(settings, catalogue, Budget::default()) };
        for m in p.state.machines.values_mut() {
            (m.called, m.calls) = (true, 1);
            (m.call_ms, m.away_ms, m.word_ms, m.idle_ms) = (now, now, now, now);
            // What it cost meanwhile is not known.
            m.rate_max = m.price.ceiling;
            // What went meanwhile is looked for first: what it is told says nothing of when.
            (m.unheard, m.terminate_ms) = (m.may_exist(), now + TERMINATE_AGAIN_MS);
        }
        p.begin();
        p.budget_is(budget);
        // The clock may have been wrong, and offers may have gone.
        p.state.back_off.retain(|key, (until, ..)| {
            *until = (*until).min(now + BACK_OFF_MAX_MS);
            p.catalogue.offers.iter().any(|o| o.key == *key)
        });
        let currency = p.catalogue.currency.clone();
        if !currency.is_empty() && currency != p.state.currency && p.other_currency().is_none() {
            p.record(Record::Currency { name: currency });
        }
        p.note_listed();
        p
    }

    /// Where these records say of no machine, and never did, numbers begin behind one of these places, by something random. A number is an idempotency token and
    /// a name: an earlier ledger, which was lost, may have given the first ones, and its machines are not to be taken for new ones.
    pub fn begin_at(&mut self, random: u64) {
        if self.state.next == 1 {
            self.state.next = (1 + random % NUMBERS_BEGIN_MAX) * NUMBERS_STEP + 1;
        }
    }

    /// What was charged so far, where that is in another currency than today's prices and caps: these would be taken for amounts of it.
    pub fn other_currency(&self) -> Option<&str> {
        let State { currency, machines, budget, .. } = &self.state;
        let is_empty = machines.is_empty() && budget.nodes().iter().all(|n| n.total() == Money(0));
        let now = self.catalogue.currency.as_str();
        Some(currency.as_str()).filter(|c| !is_empty && !c.is_empty() && !now.is_empty() && *c != now)
    }

    /// Something happened.
    pub fn step(&mut self, input: Input, now: u64) {
        self.now = self.now.max(now);
        match input {
            Input::Demand(demand) => self.round(demand),
            Input::Answered(number, outcome) => self.answered(number, outcome),
            // Without a word it may be gone, and be missed by the looks.
            Input::Terminated(_, None) => {}
            Input::Terminated(number, Some(state)) => self.seen_as(number, state, None),
            Input::Listed(began_ms, seen) => self.listed(began_ms, seen),
            Input::Attached(number) => {
                self.with(number, |m, now| {
                    (m.attached, m.idle_ms) = (true, now);
                    m.heard(now);
                });
                if self.state.machines.get(&number).is_some_and(|m| m.awaited) {
                    self.record(Record::Came { number });
                    self.with(number, |m, now| m.unproven_ms = Some(now));
                }
            }
            Input::Detached(number) => self.with(number, |m, now| (m.attached, m.away_ms, m.word_ms) = (false, now, now)),
            Input::Busy(number, slots) => self.with(number, |m, now| {
                if slots == 0 && m.busy > 0 {
                    m.idle_ms = now;
                }
                m.busy = slots;
                m.had_work |= slots > 0;
                m.marked &= slots == 0;
            }),
            Input::Open(number) => self.with(number, |m, _| m.had_work = true),
            Input::Worked(number) => self.worked(number),
            Input::Time(number, max_ms) => self.with(number, |m, _| m.time_max_ms = max_ms),
            Input::Drained(number) => self.with(number, |m, _| m.drained = m.draining.is_some()),
            Input::Leaving(number, word) => self.leaves(number, word),
            Input::Closed(number, closed) => self.with(number, |m, _| m.closed = closed),
            Input::End(number) => self.end(number, Why::Ordered),
            Input::EndsWithUs(number) => {
                // Else its absence would say something else later.
                if self.state.machines.get(&number).is_some_and(|m| m.stage == Stage::Named) {
                    self.end(number, Why::Idle);
                }
            }
            Input::Terms(terms) => self.go_by(*terms),
            Input::SpotPrices(now) => self.spot_is(now),
            Input::Stepped(by_ms) => self.stepped(by_ms),
            Input::Tick => {}
        }
        self.due();
    }

    /// What is to be committed, and what is to be done after that.
    pub fn take(&mut self) -> (Vec<Record>, Vec<Action>) {
        (std::mem::take(&mut self.records), std::mem::take(&mut self.actions))
    }

    /// All that is durable, as records that make it again: instead of those that were committed so far.
    pub fn checkpoint(&self) -> Vec<Record> {
        self.state.checkpoint()
    }

    /// All machines.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.state.machines.values()
    }

    /// Machines that cost money and whose lease is over, by the provider's names: there are none as long as somebody can write down what is decided. To end them
    /// needs no record: the next look finds that they are gone. Those that are not heard of yet have a lease's time for that first.
    pub fn unpaid(&self, now_ms: u64) -> Vec<String> {
        let until_ms = |m: &Machine| if m.unheard { m.paid_ms.max(m.word_ms + LEASE_MS) } else { m.paid_ms };
        let costs = |m: &&Machine| m.stage == Stage::Named && m.price.ceiling > Rate(0) && now_ms >= until_ms(m);
        self.machines().filter(costs).map(|m| m.id.clone()).collect()
    }

    /// All budgets.
    pub fn budget(&self) -> &Budget {
        &self.state.budget
    }

    /// Types, offers and prices as they are now.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Limits as they are now.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the latest round came to.
    pub fn latest(&self) -> &Round {
        &self.latest
    }

    pub(crate) fn record(&mut self, record: Record) {
        apply(&mut self.state, &record);
        self.records.push(record);
    }

    fn with(&mut self, number: u64, change: impl FnOnce(&mut Machine, u64)) {
        let now = self.now;
        if let Some(m) = self.state.machines.get_mut(&number) {
            change(m, now);
        }
    }

    pub(crate) fn drain(&mut self, number: u64, why: Why) {
        let Some(m) = self.state.machines.get_mut(&number).filter(|m| m.may_exist() && m.draining != Some(why)) else { return };
        m.draining = Some(why);
        m.drained = false;
        self.actions.push(Action::Drain(number, why));
    }

    pub(crate) fn undrain(&mut self, number: u64) {
        let Some(m) = self.state.machines.get_mut(&number) else { return };
        (m.draining, m.drained, m.in_the_way) = (None, false, false);
        self.actions.push(Action::Undrain(number));
    }

    fn end(&mut self, number: u64, why: Why) {
        let Some(m) = self.state.machines.get(&number).filter(|m| m.may_exist() && m.ending.is_none()) else { return };
        let is_there = m.stage == Stage::Named;
        self.record(Record::Ending { number, why });
        if is_there {
            self.note_failure(number);
        }
    }

    /// It is no more, or `never` was; it ended at `said_ms`, if its provider says so.
    pub(crate) fn gone(&mut self, number: u64, never: bool, said_ms: Option<u64>) {
        let Some(m) = self.state.machines.get(&number).filter(|m| m.may_exist() && (never || !m.ahead)) else { return };
        let (failed, offer) = (m.failed(self.now), m.offer.clone());
        let at_ms = if never { self.now } else { self.ended_ms(m, said_ms) };
        if !never {
            self.pay_to_end(number, at_ms);
        }
        self.record(Record::Gone { number, at_ms, never });
        if let Some(why) = failed {
            self.leave_alone(&[offer], why);
        }
    }

    fn answered(&mut self, number: u64, outcome: Outcome) {
        let now = self.now;
        let Some(m) = self.state.machines.get_mut(&number).filter(|m| m.may_exist()) else {
            // Its absence was believed, and yet it came.
            if let Outcome::Launched(id) = outcome {
                self.actions.push(Action::TerminateStranger(id));
            }
            return;
        };
        (m.in_flight, m.word_ms, m.missed) = (false, now, 0);
        let offer = m.offer.clone();
        match outcome {
            Outcome::Launched(id) => self.named(number, id),
            // A call before one that is throttled may have launched it after all.
            Outcome::Unknown(why) | Outcome::Refused(Refused::Throttled, why) => {
                (m.call_ms, m.doubt) = (now + back_off(REPEAT_MIN_MS, REPEAT_MAX_MS, m.calls), why);
            }
            Outcome::Refused(Refused::TokenSpent, _) => self.spent(number),
            Outcome::Refused(refused, text) => {
                if m.calls > 1 || m.stage == Stage::Named {
                    m.call_ms = now + back_off(REPEAT_MIN_MS, REPEAT_MAX_MS, m.calls);
                    m.doubt.clone_from(&text);
                    self.end(number, Why::Surplus);
                } else {
                    self.gone(number, true, None);
                }
                self.refused(&offer, refused, text);
            }
        }
    }

    fn named(&mut self, number: u64, id: String) {
        let Some(m) = self.state.machines.get(&number) else { return };
        if m.id.is_empty() {
            self.note_failure(number);
            self.record(Record::Named { number, id });
            self.with(number, |m, now| {
                m.away_ms = now;
                m.heard(now);
            });
        } else if m.id != id {
            self.actions.push(Action::TerminateStranger(id));
        }
    }

    /// The provider says how a machine is, and maybe when it ended.
    fn seen_as(&mut self, number: u64, state: SeenState, ended_ms: Option<u64>) {
        match state {
            SeenState::Exists => self.with(number, Machine::heard),
            // It costs no more; that its tasks have stopped is for the provider's end to say, and for the pool to wait for.
            SeenState::Ending | SeenState::Ended => self.gone(number, false, ended_ms),
        }
    }

    fn listed(&mut self, began_ms: u64, seen: Option<Vec<Seen>>) {
        (self.looking, self.look_ms) = (false, self.now);
        let Some(seen) = seen else { return };
        let mut met = BTreeSet::new();
        let mut strangers = BTreeMap::new();
        for s in seen {
            let m = s.number.and_then(|n| self.state.machines.get(&n)).filter(|m| m.may_exist());
            // One of another type was launched for a number that was given twice, by an old copy of these records: it is a stranger.
            let is_asked_for = |m: &Machine| m.id.is_empty() && s.machine.as_ref().is_none_or(|kind| *kind == m.offer.machine);
            match m {
                Some(m) if is_asked_for(m) && s.state == SeenState::Exists => {
                    let number = m.number;
                    met.insert(number);
                    self.named(number, s.id);
                    self.seen_as(number, s.state, None);
                }
                Some(m) if is_asked_for(m) => self.with(m.number, |m, _| m.said_ms = m.said_ms.max(s.ended_ms)),
                Some(m) if m.id == s.id => {
                    met.insert(m.number);
                    self.seen_as(m.number, s.state, s.ended_ms);
                }
                _ if s.state == SeenState::Exists => {
                    let looks = self.strangers.get(&s.id).copied().unwrap_or(0) + 1;
                    if looks >= STRANGER_LOOKS {
                        self.actions.push(Action::TerminateStranger(s.id.clone()));
                    }
                    strangers.insert(s.id, looks);
                }
                _ => {}
            }
        }
        self.strangers = strangers;
        let now = self.now;
        let mut absent = Vec::new();
        for m in self.state.machines.values_mut().filter(|m| m.may_exist() && !met.contains(&m.number)) {
            // What is still asked for is not missed; nor is what was heard of after the look began.
            let may_miss = m.called && !m.in_flight && !m.attached && m.word_ms <= began_ms && (m.stage == Stage::Named || m.ending.is_some());
            m.missed = if may_miss { m.missed + 1 } else { 0 };
            if m.missed >= ABSENT_LOOKS && now >= m.word_ms + ABSENT_MS {
                absent.push(m.number);
            }
        }
        absent.into_iter().for_each(|number| self.gone(number, false, None));
    }

    /// All that time makes due.
    fn due(&mut self) {
        self.set_back();
        let numbers: Vec<u64> = self.state.machines.keys().copied().collect();
        let mut calls = self.state.machines.values().filter(|m| m.in_flight).count();
        for number in numbers {
            self.due_of(number);
            let now = self.now;
            let Some(m) = self.state.machines.get_mut(&number).filter(|m| m.may_exist()) else { continue };
            match m.stage {
                Stage::Asked if m.ending.is_some() && !m.called => self.gone(number, true, None),
                Stage::Asked if m.ending.is_none() && !m.in_flight && now >= m.call_ms && calls < CALLS_MAX => {
                    (m.called, m.in_flight, m.calls) = (true, true, m.calls + 1);
                    let (offer, price) = (m.offer.clone(), m.price);
                    calls += 1;
                    self.actions.push(Action::Launch { number, offer, price });
                }
                Stage::Named if m.ending.is_some() && now >= m.terminate_ms => {
                    m.terminate_ms = now + TERMINATE_AGAIN_MS;
                    let id = m.id.clone();
                    self.actions.push(Action::Terminate { number, id });
                }
                _ => {}
            }
        }
        let certain =
            self.strangers.is_empty() && self.state.machines.values().all(|m| m.stage == Stage::Ended || (m.attached && m.ending.is_none()));
        if !self.looking && self.now >= self.look_ms + if certain { 2 * LOOK_MS } else { LOOK_MS } {
            self.looking = true;
            self.actions.push(Action::Look);
        }
    }

    /// What is due of a machine: to be drained, to be ended, to be paid for.
    fn due_of(&mut self, number: u64) {
        let now = self.now;
        let (idle_ms, away_ms) = (self.settings.idle_ms, self.settings.away_ms);
        let Some(m) = self.state.machines.get_mut(&number) else { return };
        if m.stage == Stage::Ended {
            if now >= m.paid_ms {
                self.record(Record::Forgotten { number });
            }
            return;
        }
        if m.ending.is_none() {
            let (is_idle, is_kept) = (m.is_idle(now, idle_ms), m.is_kept());
            m.marked = is_idle && is_kept;
            if m.attached && m.drained {
                let why = m.draining.unwrap_or(Why::Idle);
                self.end(number, why);
            } else if !m.attached && now >= away_ms + if m.stage == Stage::Named { m.away_ms } else { m.since_ms } {
                self.end(number, Why::Away);
            } else if !m.attached && !m.wanted && m.useless >= SURPLUS_ROUNDS && !is_kept && m.busy == 0 {
                self.end(number, Why::Surplus);
            } else if is_idle && !is_kept && m.draining.is_none() {
                self.drain(number, Why::Idle);
            }
        }
        self.lease(number);
    }

    /// Pay for more of a machine's time, or let it go; after a start not before it is known to be there, and since when.
    fn lease(&mut self, number: u64) {
        let Some(m) = self.state.machines.get(&number).filter(|m| !m.unheard && !m.ahead) else { return };
        let (now, paid_ms) = (self.now, m.paid_ms);
        let by_hour = m.price.billing == Billing::Hour;
        // Hours are billed from the launch on, also those in which nobody was here to pay for them.
        let whole = |step_ms: u64| paid_ms + (now.saturating_sub(paid_ms) / step_ms + 1) * step_ms;
        if m.ending.is_some() {
            // It was told to go, and still costs.
            if now >= paid_ms {
                let (rate_max, paid_ms) = (m.rate_max, whole(if by_hour { m.price.billing.next_ms() } else { OVERRUN_MS }));
                self.record(Record::Leased { number, at_ms: now, rate_max, paid_ms });
            }
            return;
        }
        if now + LEASE_LEAD_MS < paid_ms {
            return;
        }
        let let_go = m.attached && m.busy == 0 && !m.wanted && by_hour;
        let next_ms = if by_hour { whole(m.price.billing.next_ms()) } else { paid_ms.max(now) + m.price.billing.next_ms() };
        let node = self.state.budget.node_of(&m.owner);
        let charge = Charge { days: m.charge(paid_ms, next_ms), ..Charge::default() };
        let may_stay = !let_go && self.state.budget.allows(node, &charge).is_ok() && !self.is_above_rate(number);
        if may_stay {
            let (rate_max, budget_drained) = (m.rate_max, m.draining == Some(Why::Budget));
            self.record(Record::Leased { number, at_ms: now, rate_max, paid_ms: next_ms });
            if let Some(m) = self.state.machines.get_mut(&number) {
                m.rate_max = m.rate_now(&self.spot);
            }
            if budget_drained {
                self.undrain(number);
            }
            return;
        }
        let why = if let_go { Why::Idle } else { m.draining.unwrap_or(Why::Budget) };
        if now + STOP_LEAD_MS >= paid_ms {
            self.end(number, why);
            // What it has cost since its lease ended, while nobody was here, is charged at once.
            self.lease(number);
        } else if m.draining.is_none() {
            self.drain(number, why);
        }
    }
}
