//! Orders: what was answered is durable, and what is durable is kept to. O1: a site or child that is drained gets nothing new. O2: of a throttled job no
//! more is placed than may be. O3: what is on hold is not placed. O4: what was declared lost, or cancelled by force, does not count any more. O5: who is
//! not let in, is not.

use intergrid_gateway::backends::child_end::site_of;
use intergrid_gateway::core::Input;
use intergrid_gateway::core::change::{self, JobNew, Placed};
use intergrid_gateway::core::orders::Order;
use intergrid_gateway::core::state::State;
use intergrid_proto::SiteId;
use intergrid_proto::link::WantValue;

use super::Oracle;
use crate::sim::scenario::{Deed, Ordered, OrderedOf, STRANGER};

impl Oracle {
    /// A site is about to take an order: what it has placed until then.
    pub(super) fn ordering(&mut self, state: &State, input: &Input) {
        if let Input::Order { token, order: Order::Lost { .. } } = input {
            self.placed_before.insert(*token as usize, state.next_number);
        }
    }

    /// An order is acknowledged.
    pub fn ordered(&mut self, site: usize, deed: usize, what: &Deed, job: Option<u64>) {
        let mirror = &self.mirrors[site];
        let job = job.and_then(|no| mirror.jobs.get(&no));
        let limit = |j: &super::mirror::Job| self.at_once(j);
        let wrong = match what {
            Deed::Order { what: Ordered::Drain(name), .. } => {
                (!mirror.reasons.contains(&format!("deed {deed}"))).then(|| format!("a drain of {name}"))
            }
            Deed::Order { what: Ordered::Resume(name), .. } => {
                (!mirror.reasons.contains(name) && mirror.drains.contains_key(&site_of(name))).then(|| format!("that {name} works again"))
            }
            Deed::Order { what: Ordered::Lost(name), .. } => {
                let (child, last) = (site_of(name), self.placed_before.get(&deed).copied().unwrap_or(0));
                let old = mirror.placed.range(..=last).filter(|(_, p)| self.issued[p.id].child == child);
                let open = |number: u64, job: u64| mirror.jobs.get(&job).is_some_and(|j| j.cells.iter().any(|c| c.is_open() && c.down == number));
                let counts = old.map(|(n, p)| (*n, self.issued[p.id].job)).find(|(n, job)| open(*n, *job));
                counts.map(|(n, _)| format!("O4: that {name} is lost, and placement {n} counts"))
            }
            Deed::OrderOf { what: OrderedOf::Cancel, .. } => {
                let open = job.and_then(|j| j.cells.iter().position(|c| c.is_open()));
                open.map(|t| format!("O4: a cancel by force, and task {t} is {:?}", job.map(|j| j.cells[t])))
            }
            Deed::OrderOf { what: OrderedOf::Throttle(n), .. } => {
                let other = job.filter(|j| !j.throttles.contains(n) && limit(j) != (*n > 0).then_some(*n));
                other.map(|j| format!("a throttle of {n}, durable is {:?}", limit(j)))
            }
            Deed::Submit { .. } | Deed::Want { .. } => None,
        };
        if let Some(what) = wrong {
            self.fail("I1", format!("site {site} acknowledges {what}"));
        }
    }

    fn at_once(&self, j: &super::mirror::Job) -> Option<u32> {
        let spec = || self.specs.get(&j.hash).and_then(|s| s.tasks_at_once);
        j.throttles.last().copied().or_else(spec).filter(|n| *n > 0 && j.parent.is_none())
    }

    pub(super) fn drained(&mut self, site: usize, d: change::Drained) {
        let (mirror, of) = (&mut self.mirrors[site], change::site(&d.site));
        match d.drained {
            true => _ = mirror.drains.insert(of, d.reason.clone()),
            false => _ = mirror.drains.remove(&of),
        }
        let name = self.names.get(&of).cloned().unwrap_or_default();
        mirror.reasons.insert(if d.drained { d.reason } else { name });
    }

    /// Takes this site, or this child of it, no new work?
    pub fn is_drained(&self, site: usize, child: SiteId) -> bool {
        let drains = &self.mirrors[site].drains;
        drains.contains_key(&child) || drains.contains_key(&self.ids[site])
    }

    pub(super) fn throttled(&mut self, site: usize, t: change::Throttled) {
        if let Some(j) = self.mirrors[site].jobs.get_mut(&t.job) {
            j.throttles.push(t.at_once);
        }
    }

    /// Something new is placed, and durable already.
    pub(super) fn may_be_placed(&mut self, site: usize, p: &Placed) {
        if self.is_drained(site, change::site(&p.child)) {
            self.fail("O1", format!("site {site} issues placement {} to {:?}, which takes no new work", p.number, change::site(&p.child)));
        }
        let Some(j) = self.mirrors[site].jobs.get(&p.job) else { return };
        let below = j.cells.iter().filter(|c| c.is_open() && c.down != 0).count();
        let (limit, held) = (self.at_once(j), j.want.tasks(WantValue::Hold, &change::tasks(&p.tasks)));
        if limit.is_some_and(|n| below > n as usize) {
            self.fail("O2", format!("site {site} has placed {below} tasks of job {}, whose throttle is {limit:?}", p.job));
        }
        if !held.is_empty() {
            self.fail("O3", format!("site {site} places tasks {held} of job {}, which are on hold", p.job));
        }
    }

    /// A parent's job comes in.
    pub(super) fn may_come_in(&mut self, site: usize, j: &JobNew) {
        if !j.parent.is_empty() && self.denies.contains(&site) && j.origin.as_ref().is_some_and(|o| o.principal == STRANGER) {
            self.fail("O5", format!("site {site} takes in job {} of somebody who is not let in", j.job));
        }
    }
}
