//! Rented machines: the provisioner's shell. It tells the provisioner what waits and how its agents do, commits what that decided to the site's store, and
//! only then calls the cloud.
//!
//! Invariants: no call before its record is durable, but to end what no lease pays for any more; an agent attaches only while its machine may exist; when a
//! machine's end is certain, what was open there is declared lost, so that it goes elsewhere or has failed. It decides nothing about money:
//! [`intergrid_provision`] does.

mod book;
mod clock;
mod cloud;
mod process;
mod show;
mod stop;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_proto::{Reason, ReasonKind, Refusal, RefusalKind};
use intergrid_provision::limits::TERMINATE_AGAIN_MS;
use intergrid_provision::{Action, Demand, Input, Machine, Outcome, Promise, Provisioner, Rate, Terms};
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

pub use cloud::{Cloud, Launch};
pub use process::ProcessCloud;

use crate::backend::Account;
use crate::backends::agents::Provider;
use crate::core;
use crate::core::orders::Order;
use crate::core::rent::{Agent, ForRent, MachinePrice, Rentable, Renting, Waiting, label, number};
use crate::engine::{Engine, lock};
use book::Book;
use clock::{Time, wall_ms};
use stop::Left;

/// How often agents are looked at.
const LOOK_MS: u64 = 250;
/// A round of the provisioner: what waits is told.
const ROUND_MS: u64 = 1_000;
/// A call of the cloud takes no longer; what came of it is then unknown.
const CALL_MAX_MS: u64 = 120_000;
/// Prices of the spot market are asked for so often, where something is rented there.
const SPOT_PRICES_MS: u64 = 300_000;
/// Answers of the cloud that may wait: more than calls can be in flight.
const ANSWERS_MAX: usize = 1_024;
/// A commit that was refused (there is no room) is tried again after so long.
const COMMIT_AGAIN_MS: u64 = 500;
/// In orders, who gave them.
const BY: &str = "provisioner";

/// What is rented, and how far.
#[derive(Clone, Debug)]
pub struct RentConfig {
    /// The gateway's name: prefix of its machines'.
    pub gateway: String,
    /// What may be rented, and for how much.
    pub terms: Terms,
    /// Where others come from while it runs; None: from nowhere.
    pub new_terms: Option<NewTerms>,
    /// The longest that a task can take on a new machine: milliseconds; 0: not limited.
    pub time_max_ms: u64,
}

/// The latest terms, once they are not those of the start.
pub type NewTerms = watch::Receiver<Option<Terms>>;

/// None: go on. Else the machines that end with us, by their labels.
type Stop = Option<BTreeSet<String>>;

/// The provider of rented machines.
pub struct Rented {
    config: RentConfig,
    cloud: Arc<dyn Cloud>,
    engine: Arc<OnceCell<Engine>>,
    stop: watch::Sender<Stop>,
    task: Mutex<Option<JoinHandle<Option<Left>>>>,
    seen: Arc<Mutex<Shown>>,
}

/// For callers from elsewhere, as of the last look.
#[derive(Default)]
struct Shown {
    /// The records have been read.
    known: bool,
    /// Machines that may exist: label, and how it is.
    machines: BTreeMap<String, String>,
    /// Of these, those that are being ended.
    ending: BTreeSet<String>,
    account: Account,
}

impl Shown {
    /// May an agent of this label call, or, if `anew`, come?
    fn admits(&self, label: &str, anew: bool) -> Result<(), Refusal> {
        let refused = |what: &str| {
            let message = format!("{label:?} is not a machine that this gateway has rented, or it {what}");
            Err(Refusal::new(RefusalKind::NotAuthorised, message).remedy("`grid machines` lists those that are"))
        };
        match self.machines.contains_key(label) {
            _ if !self.known => Err(Refusal::new(RefusalKind::Unavailable, "this gateway has not begun yet").remedy("attach again")),
            false => refused("has been ended"),
            true if anew && self.ending.contains(label) => refused("is being ended"),
            true => Ok(()),
        }
    }
}

impl Rented {
    /// With machines of this cloud; nothing is done before `start`.
    pub fn new(config: RentConfig, cloud: Arc<dyn Cloud>, engine: Arc<OnceCell<Engine>>) -> Arc<Self> {
        Arc::new(Rented { config, cloud, engine, stop: watch::Sender::new(None), task: Mutex::default(), seen: Arc::default() })
    }
}

impl Provider for Rented {
    fn name(&self) -> &'static str {
        self.cloud.name()
    }

    fn machines(&self) -> Vec<(String, String)> {
        lock(&self.seen).machines.iter().map(|(label, state)| (label.clone(), state.clone())).collect()
    }

    fn admits(&self, label: &str) -> Result<(), Refusal> {
        lock(&self.seen).admits(label, false)
    }

    fn admits_anew(&self, label: &str) -> Result<(), Refusal> {
        lock(&self.seen).admits(label, true)
    }

    fn account(&self) -> Account {
        lock(&self.seen).account.clone()
    }

    fn check(&self) -> Result<(), Refusal> {
        let Some(engine) = self.engine.get() else { return Ok(()) };
        provisioner(&self.config.terms, engine).map(drop)
    }

    fn start(&self, endpoint: String) {
        let Some(engine) = self.engine.get().cloned() else { return };
        let shell = Shell {
            config: self.config.clone(),
            cloud: self.cloud.clone(),
            engine,
            endpoint,
            stop: self.stop.subscribe(),
            seen: self.seen.clone(),
            time: Time::begin(),
            agents: BTreeMap::new(),
            drains: BTreeMap::new(),
        };
        *lock(&self.task) = Some(tokio::spawn(async move {
            let failed = |e: Refusal| tracing::error!("nothing is rented, and no machine is ended: {e}");
            shell.run().await.map_err(failed).ok().flatten()
        }));
    }

    fn stop(&self, busy: BTreeSet<String>) -> BoxFuture<'static, ()> {
        self.stop.send_replace(Some(self.cloud.ends_at_stop(&busy)));
        let (task, cloud) = (lock(&self.task).take(), self.cloud.clone());
        async move {
            let left = stop::left(task).await;
            let ended = cloud.stop(busy).await;
            if let Some(left) = left {
                left.ended(ended).await;
            }
        }
        .boxed()
    }
}

/// As it was left. Error: these terms can't be held against what was charged.
fn provisioner(terms: &Terms, engine: &Engine) -> Result<(Book, Provisioner), Refusal> {
    let Terms { settings, catalogue, budget } = terms.clone();
    let (new, (book, records)) = (catalogue.currency.clone(), Book::load(&*engine.reader())?);
    let mut p = Provisioner::resume(settings, catalogue, budget, records, wall_ms());
    p.begin_at(RandomState::new().build_hasher().finish());
    if let Some(old) = p.other_currency() {
        let message = format!("[cloud] currency = {new:?}: what this gateway has been charged so far, and what its machines cost, is in {old}");
        let remedy = format!("write currency = {old:?} again; another one takes a new state directory, once the last machine is gone");
        return Err(Refusal::invalid(message).remedy(remedy));
    }
    Ok((book, p))
}

struct Shell {
    config: RentConfig,
    cloud: Arc<dyn Cloud>,
    engine: Engine,
    endpoint: String,
    stop: watch::Receiver<Stop>,
    seen: Arc<Mutex<Shown>>,
    time: Time,
    /// As they were told to the provisioner.
    agents: BTreeMap<u64, Agent>,
    /// Machines that shall take no new work, and why.
    drains: BTreeMap<u64, String>,
}

impl Shell {
    /// Until it is stopped; None: before all was written down.
    async fn run(mut self) -> Result<Option<Left>, Refusal> {
        let (mut book, mut p) = provisioner(&self.config.terms, &self.engine)?;
        // Before any of them is let in: what has a price is not taken for free.
        self.engine.tell(core::Input::ForRent(for_rent(&p, &self.config, Vec::new()))).await?;
        self.engine.look(|_| ()).await?;
        self.show(&p);
        let (answers, mut answered) = mpsc::channel(ANSWERS_MAX);
        let mut look = tokio::time::interval(Duration::from_millis(LOOK_MS));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = Instant::now();
        let mut prices = tokio::time::interval(Duration::from_millis(SPOT_PRICES_MS));
        prices.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut stop, mut new_terms) = (self.stop.clone(), self.config.new_terms.take());
        let moved = self.engine.children_moved();
        let mut is_over = false;
        loop {
            tokio::select! {
                Some(input) = answered.recv() => {
                    if let Some((machine, why)) = refused(&self.config.gateway, &input) {
                        tracing::warn!(%machine, %why, "its launch is refused");
                    }
                    self.time.step(&mut p, input);
                }
                terms = others(&mut new_terms) => {
                    self.time.step(&mut p, Input::Terms(Box::new(terms)));
                    prices.reset_immediately();
                    look.reset_immediately();
                }
                // What is told of its machines is not late.
                () = moved.notified() => look.reset_immediately(),
                _ = prices.tick() => {
                    let spot = p.spot_types();
                    if !spot.is_empty() {
                        // What is not known costs what was bid.
                        answer(&answers, self.cloud.spot_prices(spot), |now| Input::SpotPrices(now.flatten().unwrap_or_default()));
                    }
                }
                _ = look.tick() => {
                    let renting = self.engine.look(core::Core::renting).await?;
                    self.tell_agents(&mut p, &renting.agents);
                    // What waits is not heard of any more while the store has no room: nothing is rented for it.
                    if Instant::now() >= round && self.engine.stuck().is_none() {
                        round = Instant::now() + Duration::from_millis(ROUND_MS);
                        self.time.step(&mut p, Input::Demand(demand(&renting)));
                    } else {
                        self.time.step(&mut p, Input::Tick);
                    }
                    let gone = self.order(&p, &renting.agents).await;
                    self.engine.tell(core::Input::ForRent(for_rent(&p, &self.config, gone))).await?;
                }
                () = stopped(&mut stop) => is_over = true,
            }
            if is_over {
                // Written down before they go: who finds them gone later would take them for failed ones.
                let with_us = stop.borrow().iter().flatten().filter_map(|label| number(&self.config.gateway, label)).collect::<Vec<u64>>();
                with_us.into_iter().for_each(|number| self.time.step(&mut p, Input::EndsWithUs(number)));
            }
            let (records, actions) = p.take();
            if !records.is_empty() {
                records.iter().for_each(|r| show::log(&self.config.gateway, r, &p));
                let rows = book.rows(&records, || p.checkpoint());
                let mut told: Option<Instant> = None;
                let end_unpaid = || {
                    let again = told.is_none_or(|at| at.elapsed() >= Duration::from_millis(TERMINATE_AGAIN_MS));
                    let unpaid = if again { p.unpaid(self.time.now_ms()) } else { Vec::new() };
                    for id in unpaid {
                        told = Some(Instant::now());
                        tracing::warn!(%id, "a machine is ended: its lease is over, and no other can be written down");
                        answer(&answers, self.cloud.terminate(id), |_| Input::Tick);
                    }
                };
                let put = || {
                    let (engine, rows) = (self.engine.clone(), rows.clone());
                    async move { engine.put(rows).await }
                };
                if !committed(put, end_unpaid, &mut stop).await {
                    return Ok(None);
                }
            }
            if is_over {
                return Ok(Some(Left { shell: self, book, p }));
            }
            self.show(&p);
            actions.into_iter().for_each(|a| self.perform(a, &p, &answers));
        }
    }

    /// What has changed of its agents.
    fn tell_agents(&mut self, p: &mut Provisioner, agents: &[Agent]) {
        for agent in agents {
            let Some(number) = number(&self.config.gateway, &agent.name) else { continue };
            let before = self.agents.insert(number, agent.clone()).unwrap_or_default();
            news(number, &before, agent).into_iter().for_each(|input| self.time.step(p, input));
            // Whoever said that nothing more is placed there.
            if !agent.drained_by.is_empty() && agent.open == 0 && self.drains.contains_key(&number) {
                self.time.step(p, Input::Drained(number));
            }
        }
        self.agents.retain(|number, _| agents.iter().any(|a| a.name == label(&self.config.gateway, *number)));
    }

    /// Orders that are due: each is given again at the next look where it was not carried out. Returns the agents whose machines are gone and that are still
    /// here, or have nothing here any more.
    async fn order(&mut self, p: &Provisioner, agents: &[Agent]) -> Vec<String> {
        let mut gone = Vec::new();
        let exist: BTreeSet<u64> = p.machines().filter(|m| m.may_exist()).map(|m| m.number).collect();
        self.drains.retain(|number, _| exist.contains(number));
        for agent in agents {
            let Some(number) = number(&self.config.gateway, &agent.name) else { continue };
            let (site, by) = (agent.name.clone(), BY.to_string());
            if !exist.contains(&number) {
                // First its link: what is declared lost must not be placed there again.
                if agent.attached {
                    gone.push(site);
                } else if agent.open > 0 {
                    self.give(Order::Gone { site, by }).await;
                } else if !agent.drained_by.is_empty() {
                    self.give(Order::Resume { site }).await;
                } else {
                    gone.push(site);
                }
                continue;
            }
            match (self.drains.get(&number).cloned(), agent.drained_by.as_str()) {
                (Some(reason), "") => self.give(Order::Drain { site, reason, by }).await,
                (None, BY) => self.give(Order::Resume { site }).await,
                _ => {}
            }
        }
        gone
    }

    async fn give(&self, order: Order) {
        if let Err(why) = self.engine.order(order).await {
            tracing::debug!(%why, "an order of the provisioner is given again");
        }
    }

    fn perform(&mut self, action: Action, p: &Provisioner, answers: &mpsc::Sender<Input>) {
        match action {
            Action::Launch { number, offer, price } => {
                let Some(kind) = p.machines().find(|m| m.number == number).map(|m| m.kind.clone()) else { return };
                let (label, endpoint) = (label(&self.config.gateway, number), self.endpoint.clone());
                let call = self.cloud.launch(Launch { number, label, offer, kind, price, endpoint });
                let in_time = |outcome: Option<Outcome>| outcome.unwrap_or_else(|| Outcome::Unknown("no answer in time".into()));
                answer(answers, call, move |outcome| Input::Answered(number, in_time(outcome)));
            }
            Action::Terminate { number, id } => {
                answer(answers, self.cloud.terminate(id), move |state| Input::Terminated(number, state.flatten()));
            }
            Action::TerminateStranger(id) => {
                tracing::warn!(%id, "a machine of ours that no record knows is ended");
                answer(answers, self.cloud.terminate(id), |_| Input::Tick);
            }
            Action::Look => {
                let began = self.time.now_ms();
                answer(answers, self.cloud.list(), move |seen| Input::Listed(began, seen.flatten()));
            }
            Action::Drain(number, why) => {
                let machine = p.machines().find(|m| m.number == number);
                self.drains.insert(number, machine.map_or_else(|| why.to_string(), |m| m.why(why)));
            }
            Action::Undrain(number) => _ = self.drains.remove(&number),
        }
    }

    fn show(&mut self, p: &Provisioner) {
        let machines = p.machines().filter(|m| m.may_exist()).map(|m| (label(&self.config.gateway, m.number), m.state())).collect();
        let ending = p.machines().filter(|m| m.may_exist() && m.ending.is_some()).map(|m| label(&self.config.gateway, m.number)).collect();
        let account = show::account(&self.config.gateway, p, self.time.now_ms());
        *lock(&self.seen) = Shown { known: true, machines, ending, account };
    }
}

/// Commit, and try again or wait until there is room; from time to time something is done meanwhile. False: it was stopped before.
async fn committed<F>(put: impl Fn() -> F, mut meanwhile: impl FnMut(), stop: &mut watch::Receiver<Stop>) -> bool
where
    F: Future<Output = Result<(), Refusal>>,
{
    let again = Duration::from_millis(COMMIT_AGAIN_MS);
    loop {
        let mut call = std::pin::pin!(put());
        // The store may wait with it.
        let done = loop {
            match timeout(again, call.as_mut()).await {
                Ok(done) => break done,
                Err(_) => meanwhile(),
            }
        };
        let Err(why) = done else { return true };
        tracing::warn!(%why, "what the provisioner decided can't be written down, so it is not done; trying again");
        if timeout(again, stopped(stop)).await.is_ok() {
            return false;
        }
        meanwhile();
    }
}

async fn stopped(stop: &mut watch::Receiver<Stop>) {
    _ = stop.wait_for(Option::is_some).await;
}

/// Other terms, when there are some.
async fn others(from: &mut Option<NewTerms>) -> Terms {
    if let Some(terms) = from {
        while terms.changed().await.is_ok() {
            if let Some(terms) = terms.borrow_and_update().clone() {
                return terms;
            }
        }
    }
    std::future::pending().await
}

/// Make a call, and say what came of it; None: nothing in time.
fn answer<T: Send + 'static>(to: &mpsc::Sender<Input>, call: BoxFuture<'static, T>, input: impl FnOnce(Option<T>) -> Input + Send + 'static) {
    let to = to.clone();
    tokio::spawn(async move {
        let result = timeout(Duration::from_millis(CALL_MAX_MS), call).await.ok();
        _ = to.send(input(result)).await;
    });
}

/// What is different of an agent.
fn news(number: u64, before: &Agent, agent: &Agent) -> Vec<Input> {
    let by_others = |a: &Agent| a.drained_with_us || (!a.drained_by.is_empty() && a.drained_by != BY);
    let attached = if agent.attached { Input::Attached(number) } else { Input::Detached(number) };
    // Of one that is away, or has just come, it is not known; what was known holds.
    let has_time = agent.time_max_ms > 0 && agent.time_max_ms != before.time_max_ms;
    let leaves = agent.attached && !agent.leaving.is_empty() && before.leaving.is_empty();
    // What ends while it is away was lost.
    let worked = agent.attached && agent.ended > before.ended;
    let has_open = agent.open > 0 && before.open == 0;
    let all = [
        (agent.attached != before.attached).then_some(attached),
        (agent.busy != before.busy || agent.attached != before.attached).then_some(Input::Busy(number, agent.busy)),
        has_open.then_some(Input::Open(number)),
        worked.then_some(Input::Worked(number)),
        has_time.then_some(Input::Time(number, agent.time_max_ms)),
        leaves.then(|| Input::Leaving(number, agent.leaving.clone())),
        (by_others(agent) != by_others(before)).then_some(Input::Closed(number, by_others(agent))),
    ];
    all.into_iter().flatten().collect()
}

fn demand(renting: &Renting) -> Vec<Demand> {
    let one = |w: &Waiting| Demand {
        shape: w.shape.clone(),
        tasks: w.tasks,
        owner: w.principal.clone(),
        task_rate_max: w.task_rate_max.map(Rate),
        time_limit_ms: w.time_limit_ms,
    };
    renting.waiting.iter().map(one).collect()
}

fn for_rent(p: &Provisioner, config: &RentConfig, gone: Vec<String>) -> ForRent {
    let (gateway, currency) = (config.gateway.as_str(), &p.catalogue().currency);
    let slot_price = |rate: Rate, slots: u32| rate.0.div_ceil(u64::from(slots.max(1)));
    let rentable = |promise: Promise| {
        // What it would cost is not known, so it is not offered.
        let price = promise.price?;
        let doubt = |m: &Machine| Some(format!("{}: {}", label(gateway, m.number), m.doubt()?));
        Some(Rentable {
            in_doubt: p.machines().filter(|m| m.offer.machine == promise.name).find_map(doubt).unwrap_or_default(),
            kind: promise.name,
            machine: promise.kind.machine(),
            architecture: promise.kind.architecture.clone(),
            machines: promise.machines,
            price_micro_per_slot_hour: slot_price(price.ceiling, promise.kind.slots),
            currency: currency.clone(),
            no_more: promise.no_more.map_or_else(String::new, |why| format!("{}: {}", why.limit, why.evidence)),
        })
    };
    let types = p.promises().into_iter().filter_map(rentable);
    let unmet = p.latest().unmet.iter().map(|u| {
        // What he may not have for a cap of his own is free for others: above, it is not held for him.
        let kind = if u.why.own { ReasonKind::OverLimit } else { ReasonKind::NotRented };
        let reason = Reason::new(kind, format!("{}: {}", u.why.limit, u.why.evidence));
        (u.demand.shape.clone(), u.demand.owner.clone(), reason)
    });
    let price = |m: &Machine| MachinePrice {
        kind: m.offer.machine.clone(),
        machine: m.kind.machine(),
        micro_per_slot_hour: slot_price(m.price.ceiling, m.kind.slots),
        currency: currency.clone(),
    };
    let prices = p.machines().filter(|_| !currency.is_empty()).map(|m| (label(gateway, m.number), price(m))).collect();
    ForRent {
        types: types.collect(),
        unmet: unmet.collect(),
        gone,
        prices,
        time_max_ms: config.time_max_ms,
        machines: p.machines().filter(|m| m.may_exist()).map(|m| label(gateway, m.number)).collect(),
        away_ms: Some(p.settings().away_ms),
    }
}

/// The machine whose launch the provider refuses, and in its words why.
fn refused<'a>(gateway: &str, input: &'a Input) -> Option<(String, &'a str)> {
    match input {
        Input::Answered(number, Outcome::Refused(_, why)) => Some((label(gateway, *number), why)),
        _ => None,
    }
}

/// In doubt: it may exist, and nobody has said so.
fn is_unknown(m: &Machine) -> bool {
    m.may_exist() && m.id.is_empty()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use intergrid_provision::Refused;

    use super::*;

    #[tokio::test]
    async fn while_nothing_can_be_committed_something_is_done_all_the_same() {
        let (stop, mut stopped) = watch::channel(None);
        let (calls, done) = (Cell::new(0), Cell::new(0));
        // Refused, then waited for by the store, then committed.
        let refused = || Err(Refusal::new(RefusalKind::Unavailable, "there is no room"));
        let put = || {
            calls.set(calls.get() + 1);
            let call = calls.get();
            async move {
                if call == 1 {
                    return refused();
                }
                tokio::time::sleep(Duration::from_millis(COMMIT_AGAIN_MS * 5 / 2)).await;
                Ok(())
            }
        };
        assert!(committed(put, || done.set(done.get() + 1), &mut stopped).await);
        assert!(calls.get() == 2 && (2..=4).contains(&done.get()), "after the first, and while the second waits: {}", done.get());
        stop.send_replace(Some(BTreeSet::new()));
        assert!(!committed(|| async { refused() }, || {}, &mut stopped).await);
    }

    #[test]
    fn of_an_agent_what_is_different_is_told() {
        let new = Agent::default();
        let there = Agent { attached: true, busy: 2, time_max_ms: 600, ..new.clone() };
        assert_eq!(vec![Input::Attached(7), Input::Busy(7, 2), Input::Time(7, 600)], news(7, &new, &there));
        let away = Agent { attached: false, time_max_ms: 0, ..there.clone() };
        assert_eq!(vec![Input::Detached(7), Input::Busy(7, 2)], news(7, &there, &away), "the time that it had left it still has");
        let leaving = Agent { leaving: "its time is over".into(), drained_by: BY.into(), ..there.clone() };
        assert_eq!(vec![Input::Leaving(7, "its time is over".into())], news(7, &there, &leaving), "our own drains are no news");
        let with_us = Agent { drained_with_us: true, ..leaving.clone() };
        assert_eq!(vec![Input::Closed(7, true)], news(7, &leaving, &with_us), "those of the gateway are");
        let worked = Agent { ended: 1, ..there.clone() };
        assert_eq!((vec![Input::Worked(7)], vec![]), (news(7, &there, &worked), news(7, &worked, &worked)));
        let lost = Agent { ended: 1, ..away.clone() };
        assert_eq!(Vec::<Input>::new(), news(7, &away, &lost), "what ends while it is away did not end there");
        let closed = Agent { drained_by: "ann".into(), ..there.clone() };
        assert_eq!(vec![Input::Closed(7, true)], news(7, &there, &closed));
        let open = Agent { open: 1, ..new.clone() };
        assert_eq!((vec![Input::Open(7)], vec![]), (news(7, &new, &open), news(7, &open, &open)), "before it has come, too");
        assert_eq!((vec![Input::Closed(7, false)], vec![]), (news(7, &closed, &there), news(7, &there, &there)));
    }

    #[test]
    fn of_a_launch_that_is_refused_the_provider_s_words_are_told() {
        let told = |outcome: Outcome| refused("g", &Input::Answered(7, outcome)).map(|(machine, why)| (machine, why.to_string()));
        let all = [Refused::Capacity, Refused::Offer, Refused::Limit, Refused::Provider, Refused::NoRoom, Refused::Throttled, Refused::TokenSpent];
        for why in all {
            assert_eq!(Some(("g-m7".into(), "no".into())), told(Outcome::Refused(why, "no".into())), "{why:?}");
        }
        assert_eq!([None, None], [Outcome::Unknown("no".into()), Outcome::Launched("i-7".into())].map(told));
    }

    #[test]
    fn a_machine_that_is_being_ended_is_not_let_in_again_and_one_that_drains_is() {
        let machines = BTreeMap::from(["g-m1", "g-m2"].map(|label| (label.to_string(), "takes no new work".to_string())));
        let seen = Shown { known: true, machines, ending: BTreeSet::from(["g-m2".to_string()]), account: Account::default() };
        let admits = |label: &str| (seen.admits(label, false).is_ok(), seen.admits(label, true).is_ok());
        assert_eq!([(true, true), (true, false), (false, false)], ["g-m1", "g-m2", "g-m3"].map(admits));
        assert_eq!(RefusalKind::Unavailable, Shown::default().admits("g-m1", true).unwrap_err().kind, "it may ask again");
    }
}
