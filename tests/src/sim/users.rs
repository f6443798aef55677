//! Users: each deed is repeated until it is answered, as a client with a key does.

use std::sync::Arc;

use intergrid_gateway::core::orders::{Done, Order};
use intergrid_gateway::core::state::{Job, Spec};
use intergrid_gateway::core::{Input, Submission};
use intergrid_proto::link::WantValue;
use intergrid_proto::{Refusal, RefusalKind, TaskSet};

use super::scenario::{Deed, Ordered, OrderedOf, STRANGER};
use super::world::{Next, World};
use intergrid_gateway::backends::child_end::site_of;

/// A client that was not answered asks again after this.
const AGAIN_MS: u64 = 2_000;
/// How often a client waits for a job that has not been submitted yet.
const LATER_MS: u64 = 500;

/// What a deed has come to.
#[derive(Clone, Debug, Default)]
pub struct User {
    /// A submission's job; a wish's number of tasks.
    pub answer: Option<Result<u64, Refusal>>,
}

impl World {
    pub fn act(&mut self, deed: usize) {
        if self.users[deed].answer.is_some() || self.cut.deeds.contains(&deed) {
            return;
        }
        match self.scenario.deeds[deed].1.clone() {
            Deed::Submit { site, key, spec, tasks, hold } => {
                if self.cut.sites.contains(&site) {
                    return;
                }
                let parsed = self.scenario.specs[spec].clone();
                let spec = Arc::new(Spec { bytes: parsed.encode(), parsed });
                let name = if self.scenario.strangers && key % 2 == 1 { STRANGER } else { "ann" };
                let (owner, owner_name, key) = (site_of(name), name.to_string(), format!("key {key}"));
                let submission = Submission { owner, owner_name, key, spec, tasks, hold, chain: Vec::new() };
                self.input(site, Input::Submit { token: deed as u64, submission });
                self.after(AGAIN_MS, Next::User(deed));
            }
            Deed::Want { submit, value, tasks } => {
                let tasks = tasks.map(|(from, to)| TaskSet::range(from..to));
                self.ask(deed, submit, |token, job| Input::SetWant { token, job, value, tasks });
            }
            Deed::OrderOf { submit, what } => self.ask(deed, submit, |token, job| {
                let order = match what {
                    OrderedOf::Cancel => Order::Cancel { job, tasks: None },
                    OrderedOf::Throttle(at_once) => Order::Throttle { job, at_once },
                };
                Input::Order { token, order }
            }),
            Deed::Order { site, what } => {
                if self.cut.sites.contains(&site) {
                    return;
                }
                let by = "root".to_string();
                let order = match what {
                    // By the words of its reason it is known again.
                    Ordered::Drain(site) => Order::Drain { site, reason: format!("deed {deed}"), by },
                    Ordered::Resume(site) => Order::Resume { site },
                    Ordered::Lost(site) => Order::Lost { site, by },
                };
                self.input(site, Input::Order { token: deed as u64, order });
                self.after(AGAIN_MS, Next::User(deed));
            }
        }
    }

    /// Of a job that was submitted, once that is answered.
    fn ask(&mut self, deed: usize, submit: usize, input: impl FnOnce(u64, u64) -> Input) {
        let Deed::Submit { site, .. } = self.scenario.deeds[submit].1 else { return };
        match self.users[submit].answer {
            _ if self.cut.deeds.contains(&submit) => {}
            Some(Ok(job)) => {
                self.input(site, input(deed as u64, job));
                self.after(AGAIN_MS, Next::User(deed));
            }
            Some(Err(_)) => {}
            None => self.after(LATER_MS, Next::User(deed)),
        }
    }

    pub fn ordered(&mut self, site: usize, deed: usize, answer: Result<Done, Refusal>) {
        self.note(|| format!("deed {deed} is answered: {answer:?}"));
        let job = match self.scenario.deeds[deed].1 {
            Deed::OrderOf { submit, .. } => self.users[submit].answer.clone().and_then(Result::ok),
            _ => None,
        };
        if answer.is_ok() {
            self.oracle.ordered(site, deed, &self.scenario.deeds[deed].1, job);
        }
        self.users[deed].answer = Some(answer.map(|d| d.tasks));
    }

    pub fn submitted(&mut self, deed: usize, answer: Result<(u64, bool), Refusal>) {
        self.note(|| format!("deed {deed} is answered: {answer:?}"));
        let Deed::Submit { site, key, spec, tasks, .. } = self.scenario.deeds[deed].1.clone() else { return };
        self.oracle.answered(site, key, spec, tasks, &answer);
        self.users[deed].answer = Some(answer.map(|a| a.0));
    }

    pub fn wanted(&mut self, deed: usize, answer: Result<u64, Refusal>) {
        self.note(|| format!("deed {deed} is answered: {answer:?}"));
        let Deed::Want { submit, value, tasks } = self.scenario.deeds[deed].1 else { return };
        let Deed::Submit { site, .. } = self.scenario.deeds[submit].1 else { return };
        if let (Ok(_), Some(Ok(job))) = (&answer, &self.users[submit].answer) {
            let tasks = tasks.map(|(from, to)| TaskSet::range(from..to));
            match value {
                WantValue::Cancel => self.oracle.cancel_acknowledged(site, *job, tasks),
                WantValue::Run | WantValue::Hold | WantValue::Return => {}
            }
        }
        self.users[deed].answer = Some(answer);
    }
}

impl World {
    /// A site has forgotten some of what it had answered. Who looks finds it out: one user submits again, another does without his job; what was
    /// cancelled is cancelled again.
    pub fn forgotten(&mut self, site: usize) {
        let mut given_up = Vec::new();
        for deed in 0..self.users.len() {
            match &self.scenario.deeds[deed].1 {
                Deed::Submit { site: at, key, spec, tasks, .. } if *at == site => {
                    let gone = Refusal::new(RefusalKind::NotFound, "forgotten");
                    let answer = &mut self.users[deed].answer;
                    match self.oracle.job_of(site, *key, *spec, *tasks) {
                        Some(job) => *answer = Some(Ok(job)),
                        None if !matches!(answer, Some(Ok(_))) => {}
                        None if key.is_multiple_of(2) => *answer = None,
                        None => {
                            *answer = Some(Err(gone));
                            given_up.push(*key);
                        }
                    }
                    self.after(AGAIN_MS, Next::User(deed));
                }
                Deed::Want { submit, value: WantValue::Cancel, .. } | Deed::OrderOf { submit, what: OrderedOf::Cancel }
                    if matches!(self.scenario.deeds[*submit].1, Deed::Submit { site: at, .. } if at == site)
                        && self.users[deed].answer.take().is_some() =>
                {
                    self.after(AGAIN_MS, Next::User(deed));
                }
                _ => {}
            }
        }
        // What waits for a job may have one now.
        for deed in 0..self.users.len() {
            if matches!(self.scenario.deeds[deed].1, Deed::Want { .. } | Deed::OrderOf { .. }) && self.users[deed].answer.is_none() {
                self.after(2 * AGAIN_MS, Next::User(deed));
            }
        }
        // Nor does he try what he had not been answered yet.
        for (deed, user) in self.users.iter_mut().enumerate().filter(|(_, u)| u.answer.is_none()) {
            if matches!(self.scenario.deeds[deed].1, Deed::Submit { key, .. } if given_up.contains(&key)) {
                user.answer = Some(Err(Refusal::new(RefusalKind::NotFound, "forgotten")));
            }
        }
    }

    /// Phase and exit of every task that was submitted, by deed.
    pub fn results(&self) -> std::collections::BTreeMap<(usize, u32), (u8, u16)> {
        let mut out = std::collections::BTreeMap::new();
        for (i, (_, deed)) in self.scenario.deeds.iter().enumerate() {
            let (Deed::Submit { site, .. }, Some(Ok(job))) = (deed, &self.users[i].answer) else { continue };
            let cells = |j: &Job| (0..j.size).map(|t| ((i, t), (j.cell(t).phase, j.cell(t).exit))).collect::<Vec<_>>();
            out.extend(self.sites[*site].job(*job, cells).into_iter().flatten());
        }
        out
    }
}
