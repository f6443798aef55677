//! A site's shell, as the engine is one: inputs are stepped as they come, a turn is committed as a whole while the next is stepped, and its actions are
//! done afterwards. A crash strikes at any point of it.

use std::collections::VecDeque;

use intergrid_broker::policy::Spread;
use intergrid_gateway::backends::child_end::site_of;
use intergrid_gateway::core::schedule::{FirstFit, Policy};
use intergrid_gateway::core::state::Job;
use intergrid_gateway::core::{Action, Core, Input, Now, Output, archive};
use intergrid_gateway::store::Store;
use intergrid_proto::link::{Hop, Kind};

use super::disk::Disk;
use super::net::{Lower, Message};
use super::record::Mirror;
use super::rng::Rng;
use super::scenario::{Point, Scenario};
use super::world::{BEGIN_UNIX_MS, Next, World};

/// How often time is told to a core.
const TICK_MS: u64 = 100;

/// A site.
pub struct Site {
    pub hop: Hop,
    pub core: Option<Core>,
    pub disk: Disk,
    pub inbox: VecDeque<Input>,
    pub flight: Option<Output>,
    /// Counts lives: what was planned in an earlier one does not happen.
    pub epoch: u64,
    pub skew_ms: i64,
    pub commit_ms: u64,
    born_ms: u64,
    polled: bool,
    strike: Option<(Point, u64)>,
    leaf_site: bool,
    checkpoint: u64,
    /// Jobs that are over leave memory after this.
    away_ms: u64,
    rng: Rng,
}

impl Site {
    pub fn new(i: usize, s: &Scenario) -> Self {
        let leaf_site = s.machines.iter().any(|m| m.gateway == i);
        let name = format!("s{i}");
        let hop = Hop { site: site_of(&name), name, kind: if leaf_site { Kind::Gateway } else { Kind::Broker } };
        let rng = Rng::new(s.seed, 3_000_000 + i as u64);
        let (inbox, disk) = Default::default();
        Site {
            hop,
            core: None,
            disk,
            inbox,
            flight: None,
            epoch: 0,
            skew_ms: 0,
            commit_ms: 0,
            born_ms: 0,
            polled: false,
            strike: None,
            leaf_site,
            checkpoint: s.checkpoint,
            away_ms: [0, 50, 300, 2_000][(s.seed % 4) as usize],
            rng,
        }
    }

    /// A job, in memory or past.
    pub fn job<T>(&self, no: u64, look: impl FnOnce(&Job) -> T) -> Option<T> {
        let state = self.core.as_ref()?.state();
        match state.jobs.get(&no).or_else(|| state.leaving.get(&no)) {
            Some(j) => Some(look(j)),
            None => archive::read(&self.disk, no, true).ok().flatten().map(|j| look(&j)),
        }
    }

    fn now(&self, ms: u64) -> Now {
        let unix_ms = (BEGIN_UNIX_MS + ms).saturating_add_signed(self.skew_ms);
        Now { mono_ms: 1 + ms - self.born_ms, unix_ms }
    }
}

impl World {
    pub fn start_site(&mut self, site: usize) {
        let ms = self.now;
        let s = &mut self.sites[site];
        if s.core.is_some() {
            return;
        }
        s.epoch += 1;
        s.born_ms = ms;
        (s.polled, s.flight, s.strike) = (false, None, None);
        s.inbox.clear();
        let policy: Box<dyn Policy> = if s.leaf_site { Box::new(FirstFit) } else { Box::new(Spread::default()) };
        let fresh = s.rng.range(1, 1 << 40);
        match Core::load(s.hop.clone(), &s.disk, policy, s.now(ms), fresh) {
            Ok(mut core) => {
                core.checkpoint_every(s.checkpoint);
                core.put_away_after(s.away_ms, s.away_ms);
                self.oracle.loaded(site, core.state(), &s.disk);
                s.core = Some(core);
            }
            Err(e) => return self.oracle.fail("I18", format!("site {site} can't read its own store: {e}")),
        }
        self.note(|| format!("site {site} starts"));
        let epoch = self.sites[site].epoch;
        self.after(0, Next::Poll { site, epoch });
        self.after(1, Next::Tick { site, epoch });
        for link in 0..self.links.len() {
            let l = &self.links[link];
            if l.parent == site || l.child == Lower::Site(site) {
                self.plan_open(link);
            }
        }
    }

    /// Something has come for a site.
    pub fn input(&mut self, site: usize, input: Input) {
        let s = &mut self.sites[site];
        if s.core.is_none() {
            return;
        }
        s.inbox.push_back(input);
        if !std::mem::replace(&mut s.polled, true) {
            let pause = if s.rng.one_in(4) { s.rng.range(0, 4) } else { 0 };
            let epoch = s.epoch;
            self.after(pause, Next::Poll { site, epoch });
        }
    }

    pub fn tick(&mut self, site: usize) {
        self.input(site, Input::Tick);
        let epoch = self.sites[site].epoch;
        let ms = TICK_MS + self.sites[site].rng.range(0, 10);
        self.after(ms, Next::Tick { site, epoch });
    }

    pub fn poll(&mut self, site: usize) {
        let ms = self.now;
        let s = &mut self.sites[site];
        s.polled = false;
        let now = s.now(ms);
        let Some(core) = &mut s.core else { return };
        for input in s.inbox.drain(..) {
            if let Err(e) = core.recall(&input, &s.disk) {
                self.oracle.fail("I18", format!("site {site} can't read a job that it has put away: {e}"));
            }
            self.oracle.stepping(site, core.state(), &input);
            core.step(input, now);
        }
        if s.flight.is_none() {
            self.turn(site);
        }
    }

    fn turn(&mut self, site: usize) {
        let ms = self.now;
        let s = &mut self.sites[site];
        let now = s.now(ms);
        let Some(core) = &mut s.core else { return };
        let output = core.turn(now);
        self.oracle.output(site, core.state(), &output);
        if output.batch.is_empty() {
            self.perform(site, output.actions, usize::MAX);
            return;
        }
        s.flight = Some(output);
        let commit_ms = match s.rng.range(0, 10) {
            0 => s.rng.range(5, 40),
            1..4 => s.rng.range(1, 5),
            _ => 0,
        } + if ms < self.scenario.calm_ms { s.commit_ms } else { 0 };
        let epoch = s.epoch;
        self.after(commit_ms, Next::Committed { site, epoch });
    }

    pub fn committed(&mut self, site: usize) {
        let s = &mut self.sites[site];
        let Some(output) = s.flight.take() else { return };
        let strike = s.strike.take();
        if let Some((Point::BeforeCommit, down_ms)) = strike {
            return self.crash(site, down_ms);
        }
        self.make_durable(site, &output);
        let done = if let Some((Point::AfterCommit { done }, _)) = strike { done } else { usize::MAX };
        self.perform(site, output.actions, done);
        match strike {
            Some((_, down_ms)) => self.crash(site, down_ms),
            None => self.poll(site),
        }
    }

    fn make_durable(&mut self, site: usize, output: &Output) {
        match self.sites[site].disk.commit(&output.batch) {
            Ok(()) => self.oracle.committed(site, &output.batch),
            Err(e) => self.oracle.fail("I18", format!("site {site}: {e}")),
        }
    }

    /// The first `done` of these actions.
    fn perform(&mut self, site: usize, actions: Vec<Action>, done: usize) {
        let me = self.sites[site].hop.site;
        for action in actions.into_iter().take(done) {
            match action {
                Action::Submitted(token, answer) => self.submitted(token as usize, answer),
                Action::Ordered(token, answer) => self.ordered(site, token as usize, answer),
                Action::Wanted(token, answer) => self.wanted(token as usize, answer),
                Action::ToParent(parent, message) => {
                    let Some(link) = self.link_of.get(&(me, parent)).copied() else { continue };
                    self.send(link, Message::Up(message));
                }
                Action::ToChild(child, message) => {
                    let Some(link) = self.link_of.get(&(child, me)).copied() else { continue };
                    self.oracle.saying(site, child, &message);
                    self.send(link, Message::Down(message));
                }
                Action::Warn(text) => self.note(|| format!("site {site} warns: {text}")),
                Action::Leave(peer, why) => {
                    self.note(|| format!("site {site} leaves: {why}"));
                    for ends in [(me, peer), (peer, me)] {
                        if let Some(link) = self.link_of.get(&ends).copied() {
                            self.cut(link, (0, 20), (false, false));
                        }
                    }
                }
                // For people.
                _ => {}
            }
        }
    }

    pub fn strike(&mut self, site: usize, point: Point, down_ms: u64) {
        if self.sites[site].core.is_none() {
            return;
        }
        match point {
            Point::Now { kept } => {
                if let Some(output) = self.sites[site].flight.take().filter(|_| kept) {
                    self.make_durable(site, &output);
                }
                self.crash(site, down_ms);
            }
            Point::BeforeCommit | Point::AfterCommit { .. } => self.sites[site].strike = Some((point, down_ms)),
        }
    }

    fn crash(&mut self, site: usize, down_ms: u64) {
        self.note(|| format!("site {site} crashes"));
        let s = &mut self.sites[site];
        s.core = None;
        s.epoch += 1;
        s.inbox.clear();
        s.flight = None;
        self.oracle.crashed(site);
        self.drop_links_of(Lower::Site(site));
        self.after(down_ms, Next::StartSite(site));
    }

    /// A copy of the store is put in place of the store, or an empty one.
    pub fn old_store(&mut self, site: usize, down_ms: u64, copy: Option<(Disk, Mirror)>) {
        if self.sites[site].core.is_some() {
            self.crash(site, down_ms);
        }
        let (disk, mirror) = copy.unzip();
        self.sites[site].disk = disk.unwrap_or_default();
        self.oracle.store_replaced(site, mirror);
        self.forgotten(site);
    }
}
