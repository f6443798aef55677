//! A cloud that loses answers, acts late, launches twice, lists late and runs out of capacity, under a provisioner that is killed at any step. From one
//! seed, one run.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// The longest time after which a call still has an effect.
const LATE_MAX_MS: u64 = 60_000;
/// What has ended is listed so long.
const FORGOTTEN_MS: u64 = 20_000;
/// The longest time for which a listing does not show a new machine.
const LAG_MAX_MS: u64 = 60_000;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug)]
struct Virtual {
    number: u64,
    rate: Rate,
    billing: Billing,
    since_ms: u64,
    until_ms: Option<u64>,
    visible_ms: u64,
    /// One of two of one token, or for a machine that was given up: nobody's budget.
    is_extra: bool,
}

enum Event {
    Effect(u64, Price),
    Input(Input),
}

struct World {
    random: Random,
    now: u64,
    faulty: bool,
    p: Provisioner,
    disk: Vec<Record>,
    /// Owners, and what was charged to them, as of what is there.
    known: Budget,
    machines: BTreeMap<String, Virtual>,
    /// Of each machine's number: its price, since when it is billed, and until when at least; None: it may exist.
    billed: BTreeMap<u64, (Price, u64, Option<u64>)>,
    launched: BTreeMap<u64, String>,
    /// Numbers of machines whose agents have come, as far as that was committed.
    came: BTreeSet<u64>,
    events: Vec<(u64, Event)>,
    overrun: bool,
    launches: u64,
    /// They change, where this is Some: what may be charged beyond a cap that was lowered, which is what was charged then, by node.
    above: Option<BTreeMap<String, Ledger>>,
    terms: Terms,
    changes: u64,
    /// Owners come, go and move over a restart.
    trees: bool,
    /// A restart takes hours.
    long_away: bool,
}

fn world_catalogue() -> Catalogue {
    let second = Billing::Second { min_s: 60 };
    catalogue(
        &[("small", 2), ("large", 8)],
        vec![offer("small", "0.10", second), offer("large", "0.35", second), offer("large", "0.30", Billing::Hour)],
    )
}

fn world_budget() -> Budget {
    let money = |s: &str| Some(s.parse().unwrap());
    let caps = Caps { hour: Some("3".parse().unwrap()), day: money("6"), month: money("20"), total: money("30") };
    let alice = Caps { hour: Some("2".parse().unwrap()), ..Caps::default() };
    Budget::new(caps, &[("alice".into(), None, alice)]).unwrap()
}

impl World {
    fn new(seed: u64) -> World {
        let mut catalogue = world_catalogue();
        // Two offers of one key can't be told apart: the hourly one is a zone of its own.
        catalogue.offers[2].key.zone = "b".into();
        let p = Provisioner::resume(settings(), catalogue.clone(), world_budget(), Vec::new(), TEN);
        let terms = Terms { settings: settings(), catalogue, budget: world_budget() };
        let machines = BTreeMap::new();
        let (launched, events) = (BTreeMap::new(), Vec::new());
        World {
            random: Random(seed),
            now: TEN,
            faulty: true,
            known: p.budget().clone(),
            p,
            disk: vec![],
            machines,
            billed: BTreeMap::new(),
            launched,
            came: BTreeSet::new(),
            events,
            overrun: false,
            launches: 0,
            above: None,
            terms,
            changes: 0,
            trees: false,
            long_away: false,
        }
    }

    fn fault(&mut self, percent: u64) -> bool {
        self.random.chance(percent) && self.faulty
    }

    fn step(&mut self, input: Input) {
        // Demand is of one shape.
        let wanted = if let Input::Demand(wanted) = &input { wanted.first().cloned() } else { None };
        let unmet = wanted.as_ref().map_or(0, |d| self.unmet(d));
        let attached = if let Input::Attached(number) = input { self.p.machines().find(|m| m.number == number).map(|m| m.number) } else { None };
        self.p.step(input, self.now);
        // Killed before the commit, after it, or after some of the actions.
        let crash = self.fault(1).then(|| self.random.below(4));
        let (records, actions) = self.p.take();
        if crash == Some(0) {
            return self.restart();
        }
        is_asked_for(wanted, unmet, &records);
        self.overrun |= records.iter().any(|r| self.is_overrun(r));
        for record in &records {
            if let Record::Intended { owner, .. } = record {
                assert!(!self.p.machines().any(|m| m.is_unclear(self.now)), "rented before it is known what is left");
                self.is_below(owner);
            }
        }
        self.came.extend(attached);
        records.windows(2).for_each(|two| self.is_failed(two));
        if !records.is_empty() {
            self.known = self.p.budget().clone();
        }
        records.iter().for_each(|record| self.bills(record));
        self.disk.extend(records);
        self.check();
        for action in actions {
            if crash.is_some() && self.random.chance(50) {
                return self.restart();
            }
            self.act(action);
        }
        if crash.is_some() {
            self.restart();
        }
    }

    /// For how long a provider bills a machine, by what is written down.
    fn bills(&mut self, record: &Record) {
        match record {
            Record::Intended { number, price, at_ms, .. } => _ = self.billed.insert(*number, (*price, *at_ms, None)),
            Record::Gone { number, never: true, .. } => _ = self.billed.remove(number),
            Record::Gone { number, at_ms, .. } => {
                let (price, since_ms, until_ms) = self.billed.get_mut(number).expect("it was rented");
                let least_ms = if let Billing::Second { min_s } = price.billing { u64::from(min_s) * 1_000 } else { 3_600_000 };
                *until_ms = Some((*since_ms + least_ms).max(*at_ms));
            }
            _ => {}
        }
        let now = self.now;
        self.billed.retain(|_, (.., until_ms)| until_ms.is_none_or(|until| until > now));
        // At every time, so in every hour.
        let rate = self.billed.values().fold(Rate(0), |sum, (price, ..)| sum.plus(price.ceiling));
        let cap = if self.above.is_none() { world_budget().nodes()[0].caps.hour } else { None };
        assert!(self.overrun || cap.is_none_or(|cap| rate <= cap), "{rate} an hour can be billed");
    }

    /// Less is not billed by the second.
    fn bill_at_least(&mut self, seconds: u32) {
        for price in self.terms.catalogue.offers.iter_mut().filter_map(|o| o.price.as_mut()) {
            if let Billing::Second { min_s } = &mut price.billing {
                *min_s = seconds;
            }
        }
        let Terms { settings, catalogue, budget } = self.terms.clone();
        self.p = Provisioner::resume(settings, catalogue, budget, Vec::new(), self.now);
    }

    /// For the end of a machine, or when that is decided, its offer is left alone: none that had come.
    fn is_failed(&self, two: &[Record]) {
        use Record::{Ending, Gone, LeftAlone};
        if let [Gone { number, never: false, .. } | Ending { number, .. }, LeftAlone { why, .. }] = two {
            assert!(!why.contains("before its agent came") || !self.came.contains(number), "{number} had come, and yet: {why}");
        }
    }

    /// Tasks that find no room on what is there or on its way.
    fn unmet(&self, wanted: &Demand) -> u64 {
        let room = self.p.machines().filter(|m| m.is_supply(self.now)).filter_map(|m| Some(m.free() / m.kind.cost(&wanted.shape)?)).sum();
        wanted.tasks.saturating_sub(room)
    }

    /// A lease of a machine that was told to end, or has ended.
    fn is_overrun(&self, record: &Record) -> bool {
        let stays = |number: u64| self.p.machines().any(|m| m.number == number && m.may_exist() && m.ending.is_none());
        matches!(record, Record::Leased { number, .. } if !stays(*number))
    }

    fn restart(&mut self) {
        // Answers to a dead process reach nobody; effects of its calls come.
        self.events.retain(|(_, e)| matches!(e, Event::Effect(..)));
        if self.long_away && self.random.chance(30) {
            self.now += self.random.below(3 * 3_600_000);
        }
        if self.trees && self.random.chance(50) {
            self.changes += 1;
            self.terms.budget = self.tree();
        }
        let Terms { settings, catalogue, budget } = self.terms.clone();
        // A checkpoint in place of the records says the same.
        let again = Provisioner::resume(settings.clone(), catalogue.clone(), budget.clone(), self.disk.clone(), self.now);
        self.keeps_what_was_charged(&again);
        if self.now.is_multiple_of(2) {
            (self.disk, self.known) = (again.checkpoint(), again.budget().clone());
        }
        self.p = Provisioner::resume(settings, catalogue, budget, self.disk.clone(), self.now);
        assert_eq!(again.budget(), self.p.budget());
        if self.trees {
            self.above = Some(self.p.budget().nodes().iter().map(|n| (n.name.clone(), n.ledger())).collect());
        }
        let up: Vec<u64> = self.machines.values().filter(|m| m.until_ms.is_none() && !m.is_extra).map(|m| m.number).collect();
        up.into_iter().for_each(|number| self.after(2_000, Event::Input(Input::Attached(number))));
    }

    /// Who stays has been charged what he was; more only for what is left of the leases of machines that are below him now, and were not, and less for
    /// those that were, and are not.
    fn keeps_what_was_charged(&self, again: &Provisioner) {
        let (was, is) = (&self.known, again.budget());
        let is_below = |b: &Budget, m: &Machine, name: &str| b.path(b.node_of(&m.owner)).any(|n| b.nodes()[n].name == name);
        for node in is.nodes() {
            let Some(old) = was.nodes().iter().find(|n| n.name == node.name) else { continue };
            let one_of = |a: &Budget, b: &Budget| {
                let machines = again.machines().filter(|m| m.may_exist() && is_below(a, m, &node.name) && !is_below(b, m, &node.name));
                machines.flat_map(|m| m.charge(m.settled_ms, m.paid_ms)).collect::<Vec<_>>()
            };
            let sum = |days: &[(u64, Money)]| days.iter().fold(Money(0), |sum, (_, money)| sum.plus(*money));
            let (come, mut gone) = (one_of(is, was), one_of(was, is));
            gone.iter_mut().for_each(|(_, money)| *money = money.less(Money(1)));
            assert_eq!(old.total().plus(sum(&come)), node.total().plus(sum(&gone)), "charged to {}", node.name);
            for (day, money) in old.ledger().days {
                let gone: Vec<_> = gone.iter().copied().filter(|(d, _)| *d == day).collect();
                assert!(node.of_day(day).plus(sum(&gone)) >= money, "charged to each day of {}", node.name);
            }
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.events.push((self.now + ms, event));
    }

    fn act(&mut self, action: Action) {
        let soon = 100 + self.random.below(3_000);
        match action {
            Action::Launch { number, price, .. } => {
                let machine = self.p.machines().find(|m| m.number == number && m.may_exist() && m.ending.is_none()).cloned();
                let machine = machine.expect("what is launched is charged, and wanted");
                assert!(machine.need.is_some_and(|need| need.tasks > 0), "{number} is launched for nothing");
                if machine.calls == 1 {
                    self.is_below(&machine.owner);
                }
                let refused = |kind| Event::Input(Input::Answered(number, Outcome::Refused(kind, "no".into())));
                match self.random.below(if self.faulty { 12 } else { 1 }) {
                    // Lost before it had an effect.
                    1 => self.after(30_000, Event::Input(Input::Answered(number, Outcome::Unknown("no answer".into())))),
                    2 => self.after(soon, refused(Refused::Capacity)),
                    3 => self.after(soon, refused(Refused::Throttled)),
                    // 500 after success, or success long after the time-out.
                    4 | 5 => {
                        let late = self.random.below(LATE_MAX_MS);
                        self.after(late, Event::Effect(number, price));
                        self.after(30_000.min(late + 1), Event::Input(Input::Answered(number, Outcome::Unknown("no answer".into()))));
                    }
                    _ => {
                        self.effect(number, price);
                        let id = self.launched[&number].clone();
                        let spent = self.machines[&id].until_ms.is_some();
                        let outcome = if spent { Outcome::Refused(Refused::TokenSpent, "gone".into()) } else { Outcome::Launched(id) };
                        self.after(soon, Event::Input(Input::Answered(number, outcome)));
                    }
                }
            }
            Action::Terminate { number, id } => {
                let lost = self.fault(30);
                if !lost {
                    self.terminate(&id);
                }
                // What it has forgotten it says nothing of, and some say nothing at all.
                let forgotten = self.machines.get(&id).is_none_or(|m| self.is_forgotten(m));
                let said = (!lost && !forgotten && !self.fault(30)).then_some(SeenState::Ending);
                self.after(soon, Event::Input(Input::Terminated(number, said)));
            }
            Action::TerminateStranger(id) => self.terminate(&id),
            Action::Drain(number, _) => self.after(soon, Event::Input(Input::Drained(number))),
            Action::Undrain(_) => {}
            Action::Look => {
                let seen: Vec<Seen> =
                    self.machines.iter().filter(|(_, m)| m.visible_ms <= self.now && !self.is_forgotten(m)).map(|(id, m)| self.seen(id, m)).collect();
                let began = self.now;
                let failed = self.fault(20);
                self.after(soon, Event::Input(Input::Listed(began, (!failed).then_some(seen))));
            }
        }
    }

    /// A cloud lists what has ended for a while only.
    fn is_forgotten(&self, m: &Virtual) -> bool {
        m.until_ms.is_some_and(|until| self.now >= until + FORGOTTEN_MS)
    }

    fn seen(&self, id: &str, m: &Virtual) -> Seen {
        let state = if m.until_ms.is_some() { SeenState::Ended } else { SeenState::Exists };
        // Some say when it ended.
        let ended_ms = m.until_ms.filter(|_| m.number.is_multiple_of(2));
        Seen { id: id.to_string(), number: Some(m.number), machine: None, state, ended_ms }
    }

    fn terminate(&mut self, id: &str) {
        let now = self.now;
        let Some(m) = self.machines.get_mut(id).filter(|m| m.until_ms.is_none()) else { return };
        m.until_ms = Some(now);
        let number = m.number;
        // Its agent goes with it.
        if self.launched.get(&number).is_some_and(|known| known == id) {
            self.after(1_000, Event::Input(Input::Detached(number)));
        }
    }

    /// A launch call takes effect: once for each token, unless the cloud forgets.
    fn effect(&mut self, number: u64, price: Price) {
        let again = self.launched.contains_key(&number);
        if again && !self.fault(10) {
            return;
        }
        // Which of two is known, and which is the stranger, is a matter of which is seen first.
        self.machines.values_mut().filter(|m| m.number == number).for_each(|m| m.is_extra = true);
        let given_up = !self.p.machines().any(|m| m.number == number && m.may_exist());
        let id = format!("i-{}", self.machines.len());
        let visible_ms = self.now + if self.faulty { self.random.below(LAG_MAX_MS) } else { 0 };
        let (rate, billing, since_ms) = (price.rate, price.billing, self.now);
        let machine = Virtual { number, rate, billing, since_ms, until_ms: None, visible_ms, is_extra: again || given_up };
        self.machines.insert(id.clone(), machine);
        self.launches += 1;
        if !again {
            self.launched.insert(number, id);
            let boot = 20_000 + self.random.below(60_000);
            if !self.fault(10) {
                self.after(boot, Event::Input(Input::Attached(number)));
            }
        }
    }

    /// Other prices, types, caps and limits.
    fn change(&mut self) {
        self.changes += 1;
        let mut part = |of: &str, of_ten: u64| Rate(of.parse::<Rate>().unwrap().0 * (1 + self.random.below(of_ten)) / of_ten);
        let mut catalogue = catalogue(&[("small", 2), ("large", 8)], vec![]);
        let second = Billing::Second { min_s: 60 };
        for (name, most, billing) in [("small", "0.20", second), ("large", "0.70", second), ("large", "0.60", Billing::Hour)] {
            let (rate, zone) = (part(most, 10), if billing == Billing::Hour { "b".into() } else { String::new() });
            let key = OfferKey { machine: name.into(), zone, spot: false };
            catalogue.offers.push(Offer { key, price: Some(Price { rate, ceiling: rate, billing }) });
        }
        let money = |rate: Rate| Some(Money(rate.0));
        let caps = Caps { hour: Some(part("4", 20)), day: money(part("8", 20)), month: money(part("30", 20)), total: money(part("40", 20)) };
        let alice = Caps { hour: Some(part("3", 20)), ..Caps::default() };
        if self.random.chance(30) {
            catalogue.offers.remove(self.random.below(3) as usize);
        }
        let settings = Settings { machines_max: self.random.below(40) as u32, ..settings() };
        self.terms = Terms { settings, catalogue, budget: Budget::new(caps, &[("alice".into(), None, alice)]).unwrap() };
        self.above = Some(self.p.budget().nodes().iter().map(|n| (n.name.clone(), n.ledger())).collect());
        self.step(Input::Terms(Box::new(self.terms.clone())));
    }

    /// Some of the owners, below each other as it comes.
    fn tree(&mut self) -> Budget {
        let mut owners: Vec<(String, Option<String>, Caps)> = Vec::new();
        for name in ["lab", "alice", "bob"] {
            if self.random.chance(70) {
                let above = owners.get(self.random.below(owners.len() as u64 + 1) as usize).map(|o| o.0.clone());
                let caps = Caps { hour: Some(Rate(500_000 * (1 + self.random.below(4)))), ..Caps::default() };
                owners.push((name.into(), above, caps));
            }
        }
        let root = world_budget().nodes()[0].caps;
        Budget::new(root, &owners).unwrap()
    }

    /// What a node has now is within its caps, and those above it: something is rented.
    fn is_below(&self, owner: &str) {
        let (nodes, day) = (self.p.budget().nodes(), self.now / 86_400_000);
        for node in std::iter::successors(Some(&nodes[self.p.budget().node_of(owner)]), |n| n.above.map(|at| &nodes[at])) {
            let caps = node.caps;
            let rate = caps.hour.is_none_or(|cap| node.rate() <= cap);
            let money = caps.day.is_none_or(|cap| node.of_day(day) <= cap) && caps.month.is_none_or(|cap| node.of_month(day) <= cap);
            assert!(self.overrun || (rate && money && caps.total.is_none_or(|cap| node.total() <= cap)), "rented above a cap of {}", node.name);
        }
    }

    fn check(&mut self) {
        let day = self.now / 86_400_000;
        let budget = self.p.budget();
        for (at, node) in budget.nodes().iter().enumerate() {
            let paid = self.p.machines().filter(|m| budget.path(budget.node_of(&m.owner)).any(|n| n == at));
            assert_eq!(paid.fold(Rate(0), |sum, m| sum.plus(m.price.ceiling)), node.rate(), "rate of {} is that of its machines", node.name);
            // Never more than the cap; where that was lowered, never more than was charged then, and ever less of it.
            let mut above = self.above.as_mut().and_then(|above| above.get_mut(&node.name));
            let of_day = |l: &Ledger, day| l.days.iter().filter(|(d, _)| *d == day).fold(Money(0), |sum, (_, m)| sum.plus(*m));
            let all = |l: &Ledger| l.days.iter().fold(l.before, |sum, (_, m)| sum.plus(*m));
            let most = above.as_deref().cloned().unwrap_or_default();
            let caps = node.caps;
            assert!(self.overrun || caps.hour.is_none_or(|cap| node.rate() <= cap.max(most.rate)), "rate of {}", node.name);
            for day in [day, day + 1] {
                assert!(self.overrun || caps.day.is_none_or(|cap| node.of_day(day) <= cap.max(of_day(&most, day))), "day of {}", node.name);
                assert!(self.overrun || caps.month.is_none_or(|cap| node.of_month(day) <= cap.max(all(&most))), "month of {}", node.name);
            }
            assert!(self.overrun || caps.total.is_none_or(|cap| node.total() <= cap.max(all(&most))), "total of {}", node.name);
            if let Some(above) = &mut above {
                above.rate = above.rate.min(node.rate());
            }
        }
        for (id, m) in self.machines.iter().filter(|(_, m)| m.until_ms.is_none() && !m.is_extra) {
            assert!(self.p.machines().any(|k| k.number == m.number && k.may_exist()), "{id} exists and is not charged");
        }
        // Spent by what is somebody's, as the cloud bills it.
        // Of what is not known yet after a start nothing is charged, and nothing is rented until it is.
        let unclear: BTreeSet<u64> = self.p.machines().filter(|m| m.is_unclear(self.now)).map(|m| m.number).collect();
        let mine = self.machines.values().filter(|m| !m.is_extra && !unclear.contains(&m.number));
        let spent: u128 = mine.map(|m| u128::from(self.bill(m).0)).sum();
        assert!(spent <= u128::from(self.p.budget().nodes()[0].total().0), "spent {spent} of {}", self.p.budget().nodes()[0].total());
    }

    fn bill(&self, m: &Virtual) -> Money {
        let ms = m.until_ms.unwrap_or(self.now) - m.since_ms;
        match m.billing {
            Billing::Hour => Money(m.rate.0 * ms.div_ceil(3_600_000)),
            Billing::Second { min_s } => m.rate.over(ms.max(u64::from(min_s) * 1_000)),
        }
    }

    fn run(&mut self, seconds: u64, max_tasks: u64) {
        let end = self.now + seconds * 1_000;
        while self.now < end {
            let due = self.events.iter().map(|(at, _)| *at).min().unwrap_or(u64::MAX).min(self.now + 5_000);
            self.now = due.max(self.now + 1);
            let now = self.now;
            let (ready, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.events).into_iter().partition(|(at, _)| *at <= now);
            self.events = later;
            for (_, event) in ready {
                match event {
                    Event::Effect(number, price) => self.effect(number, price),
                    Event::Input(Input::Attached(number)) if self.launched.get(&number).is_none_or(|id| self.machines[id].until_ms.is_some()) => {}
                    Event::Input(input) => self.step(input),
                }
            }
            if self.random.chance(40) {
                let tasks = if max_tasks == 0 { 0 } else { self.random.below(max_tasks) };
                let slots = [1, 2, 8][self.random.below(3) as usize];
                let owner = ["alice", "bob"][self.random.below(2) as usize];
                let mut wanted = demand(slots, tasks);
                wanted[0].owner = owner.into();
                self.step(Input::Demand(wanted));
            }
            let numbers: Vec<u64> = self.p.machines().map(|m| m.number).collect();
            if let Some(number) = numbers.get(self.random.below(numbers.len().max(1) as u64) as usize).copied().filter(|_| self.random.chance(30)) {
                let slots = if max_tasks == 0 { 0 } else { self.random.below(3) };
                let input = if self.fault(3) { Input::Detached(number) } else { Input::Busy(number, slots) };
                let is_done = matches!(input, Input::Busy(_, 0));
                self.step(input);
                if is_done {
                    self.step(Input::Worked(number));
                }
            }
            if self.above.is_some() && !self.trees && self.faulty && self.random.below(1_000) < 3 {
                self.change();
            }
            self.step(Input::Tick);
        }
    }
}

/// What is rented in a step is for tasks that have no machine: each new one has some of its own.
fn is_asked_for(wanted: Option<Demand>, mut unmet: u64, records: &[Record]) {
    for record in records {
        let Record::Intended { number, need, .. } = record else { continue };
        let need = need.as_ref().expect("it is known what for");
        assert!(wanted.as_ref().is_some_and(|d| d.owner == need.principal && d.shape == need.shape), "{number} is for {need:?}, not {wanted:?}");
        assert!((1..=unmet).contains(&need.tasks), "{number} is for {} tasks, {unmet} have no machine", need.tasks);
        unmet -= need.tasks;
    }
}

/// Launches, and changes of the terms, of all runs.
fn runs(begin: impl Fn(&mut World)) -> (u64, u64) {
    let mut sum = (0, 0);
    for seed in 0..300 {
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(seed);
            begin(&mut world);
            world.run(3 * 3_600, 40);
            world.faulty = false;
            world.run(4 * 3_600, 0);
            let left: Vec<_> = world.machines.iter().filter(|(_, m)| m.until_ms.is_none()).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
            let known: Vec<String> = world.p.machines().map(|m| format!("{} {}", m.number, m.state())).collect();
            assert!(known.is_empty(), "still charged: {known:?}");
            assert!(world.p.budget().nodes().iter().all(|n| n.rate() == Rate(0)));
            (world.launches, world.changes)
        }));
        let (launches, changes) = run.unwrap_or_else(|_| panic!("seed {seed}"));
        sum = (sum.0 + launches, sum.1 + changes);
    }
    assert!(sum.0 > 1_000, "the test does nothing: {sum:?}");
    sum
}

#[test]
fn a_cloud_that_lies_costs_no_more_than_the_cap_and_leaves_nothing() {
    runs(|_| {});
}

/// What is billed for a machine at least counts until it is over, however short it was there.
#[test]
fn nor_where_machines_that_come_and_go_are_billed_for_an_hour_at_least() {
    runs(|world| world.bill_at_least(3_600));
}

/// Where a cap is lowered under what is charged, no more is rented, and what is charged does not rise.
#[test]
fn nor_does_it_where_prices_types_and_caps_change_meanwhile() {
    let (_, changes) = runs(|world| world.above = Some(BTreeMap::new()));
    assert!(changes > 1_000, "{changes} changes");
}

/// What an owner's machines cost is given back where it counts, and nowhere else; what was charged to who stays is never forgotten.
#[test]
fn nor_where_owners_come_go_and_move_over_restarts() {
    let (_, changes) = runs(|world| world.trees = true);
    assert!(changes > 1_000, "{changes} changes");
}

/// What its machines have cost meanwhile is charged, hour by hour as they are billed.
#[test]
fn nor_where_the_gateway_is_away_for_hours() {
    runs(|world| world.long_away = true);
}
