//! Orders: what was answered is durable, and what is durable is kept to. O1: a site or child that is drained gets nothing new. O2: of a throttled job
//! no more is placed than may be. O3: what is on hold is not placed. O4: what was declared lost, or cancelled by force, does not count any more. O5:
//! who is not let in, is not.

use intergrid_gateway::backends::child_end::site_of;
use intergrid_gateway::core::change::{self, JobNew, Placed};
use intergrid_proto::SiteId;
use intergrid_proto::link::WantValue;

use super::Oracle;
use crate::sim::record::Job;
use crate::sim::scenario::{Deed, Ordered, OrderedOf, STRANGER};

impl Oracle {
    /// An order is acknowledged.
    pub fn ordered(&mut self, site: usize, deed: usize, what: &Deed, job: Option<u64>) {
        let mirror = &self.record.mirrors[site];
        let job = job.and_then(|no| mirror.jobs.get(&no));
        let wrong = match what {
            Deed::Order { what: Ordered::Drain(name), .. } => {
                (!mirror.reasons.contains(&format!("deed {deed}"))).then(|| format!("a drain of {name}"))
            }
            Deed::Order { what: Ordered::Resume(name), .. } => {
                let drained = mirror.drains.contains_key(&site_of(name)) && !mirror.resumed.contains(&site_of(name));
                drained.then(|| format!("that {name} works again"))
            }
            Deed::Order { what: Ordered::Lost(name), .. } => {
                let (child, last) = (site_of(name), self.placed_before.get(&deed).copied().unwrap_or(0));
                let mut old = mirror.placed.range(..=last).map(|(n, p)| (*n, &self.record.issued.all[p.id])).filter(|(_, i)| i.child == child);
                let open = |number: u64, job: u64| mirror.jobs.get(&job).is_some_and(|j| j.cells.iter().any(|c| c.is_open() && c.down == number));
                old.find(|(n, i)| open(*n, i.job)).map(|(n, _)| format!("O4: that {name} is lost, and placement {n} counts"))
            }
            Deed::OrderOf { what: OrderedOf::Cancel, .. } => {
                let open = job.and_then(|j| j.cells.iter().enumerate().find(|(_, c)| c.is_open()));
                open.map(|(t, c)| format!("O4: a cancel by force, and task {t} is {c:?}"))
            }
            Deed::OrderOf { what: OrderedOf::Throttle(n), .. } => {
                let other = job.filter(|j| !j.throttles.contains(n) && self.at_once(j) != (*n > 0).then_some(*n));
                other.map(|j| format!("a throttle of {n}, durable is {:?}", self.at_once(j)))
            }
            Deed::Submit { .. } | Deed::Want { .. } => None,
        };
        if let Some(what) = wrong {
            self.fail("I1", format!("site {site} acknowledges {what}"));
        }
    }

    fn at_once(&self, j: &Job) -> Option<u32> {
        let spec = || self.specs.get(&j.hash).and_then(|s| s.tasks_at_once);
        j.throttles.last().copied().or_else(spec).filter(|n| *n > 0 && j.parent.is_none())
    }

    pub(super) fn drained(&mut self, site: usize, d: change::Drained) {
        let (mirror, of) = (&mut self.record.mirrors[site], change::site(&d.site));
        if d.drained {
            mirror.reasons.insert(d.reason.clone());
            mirror.drains.insert(of, d.reason);
        } else {
            mirror.resumed.insert(of);
            mirror.drains.remove(&of);
        }
    }

    /// Takes this site, or this child of it, no new work?
    pub fn is_drained(&self, site: usize, child: SiteId) -> bool {
        let drains = &self.record.mirrors[site].drains;
        drains.contains_key(&child) || drains.contains_key(&self.record.ids[site])
    }

    pub(super) fn throttled(&mut self, site: usize, t: change::Throttled) {
        if let Some(j) = self.record.mirrors[site].jobs.get_mut(&t.job) {
            j.throttles.push(t.at_once);
        }
    }

    /// Something new is placed, and durable already.
    pub(super) fn may_be_placed(&mut self, site: usize, p: &Placed) {
        let (child, number, no) = (change::site(&p.child), p.number, p.job);
        let open = !self.is_drained(site, child);
        self.must(open, "O1", format_args!("site {site} issues placement {number} to {child:?}, which takes no new work"));
        let Some(j) = self.record.mirrors[site].jobs.get(&no) else { return };
        let below = j.cells.iter().filter(|c| c.is_open() && c.down != 0).count();
        let (limit, held) = (self.at_once(j), j.want.tasks(WantValue::Hold, &change::tasks(&p.tasks)));
        let few = limit.is_none_or(|n| below <= n as usize);
        self.must(few, "O2", format_args!("site {site} has placed {below} tasks of job {no}, whose throttle is {limit:?}"));
        self.must(held.is_empty(), "O3", format_args!("site {site} places tasks {held} of job {no}, which are on hold"));
    }

    /// A parent's job comes in.
    pub(super) fn may_come_in(&mut self, site: usize, j: &JobNew) {
        let strange = !j.parent.is_empty() && j.origin.as_ref().is_some_and(|o| o.principal == STRANGER);
        let let_in = !(strange && self.denies.contains(&site));
        self.must(let_in, "O5", format_args!("site {site} takes in job {} of somebody who is not let in", j.job));
    }
}
