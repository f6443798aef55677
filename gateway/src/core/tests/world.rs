//! A world of cores: sites, perfect agents, a wire that delivers in order, and disks that keep what was committed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use intergrid_proto::link::{Down, Hop, Kind, Up, WantValue};
use intergrid_proto::{JobSpec, Phase, SiteId, TaskSet};

use crate::backends::child_end::{ChildEnd, site_of};
use crate::core::schedule::FirstFit;
use crate::core::state::Spec;
use crate::core::{Action, Core, Input, Now, Submission, archive, limits, rows};
use crate::store::mem::MemDisk;
use crate::store::{Reader, Store};

/// A site of the world: a core and its disk.
pub(in crate::core) struct Site {
    pub(in crate::core) core: Core,
    pub(in crate::core) disk: MemDisk,
    pub(in crate::core) hop: Hop,
}

/// A tree of sites over perfect agents; messages are delivered in order, each at once.
pub(in crate::core) struct World {
    pub(in crate::core) now: Now,
    pub(in crate::core) sites: BTreeMap<SiteId, Site>,
    pub(in crate::core) agents: BTreeMap<SiteId, ChildEnd>,
    /// child -> parents
    pub(in crate::core) above: BTreeMap<SiteId, Vec<SiteId>>,
    pub(in crate::core) wire: VecDeque<(SiteId, SiteId, Message)>,
    pub(in crate::core) submitted: BTreeMap<u64, Result<(u64, bool), intergrid_proto::Refusal>>,
    pub(in crate::core) wanted: BTreeMap<u64, Result<u64, intergrid_proto::Refusal>>,
    pub(in crate::core) ordered: BTreeMap<u64, Result<crate::core::orders::Done, intergrid_proto::Refusal>>,
    /// Links that are cut: (child, parent).
    pub(in crate::core) cut: Vec<(SiteId, SiteId)>,
    pub(in crate::core) token: u64,
    /// Changes between checkpoints.
    pub(in crate::core) checkpoint: u64,
    /// Jobs leave memory so long after their end: users', parents'.
    pub(in crate::core) away: (u64, u64),
    /// Many inputs a turn, as under load, instead of one.
    pub(in crate::core) batched: bool,
    pub(in crate::core) due: std::collections::BTreeSet<SiteId>,
    /// Links that a site has ended and that have not been made again: (site, peer).
    pub(in crate::core) left: Vec<(SiteId, SiteId)>,
    /// Main steps of jobs.
    pub(in crate::core) steps: Vec<(SiteId, crate::core::steps::Line)>,
    /// What sites have written to their logs.
    pub(in crate::core) warned: Vec<(SiteId, String)>,
}

#[derive(Debug)]
pub(in crate::core) enum Message {
    Up(Up),
    Down(Down),
}

/// What a site has written.
pub(in crate::core) fn own_disk(w: &World, site: SiteId) -> &MemDisk {
    &w.sites[&site].disk
}

pub(in crate::core) fn open(hop: &Hop, disk: &MemDisk, now: Now, checkpoint: u64) -> Core {
    let store = disk.open().unwrap();
    // Not the incarnation of an earlier life.
    let fresh = 7 + hop.name.len() as u64 + now.mono_ms * 1_000;
    let mut core = Core::load(hop.clone(), &store, Box::new(FirstFit), now, fresh).unwrap();
    core.checkpoint_changes = checkpoint;
    // Tests look at jobs that are over.
    core.put_away_after(NEVER_MS, NEVER_MS);
    core
}

const NEVER_MS: u64 = 1 << 40;

impl World {
    pub(in crate::core) fn new() -> Self {
        let now = Now { mono_ms: 1, unix_ms: 1_000_000 };
        let (sites, agents, above) = Default::default();
        World {
            now,
            sites,
            agents,
            above,
            wire: VecDeque::new(),
            submitted: BTreeMap::new(),
            wanted: BTreeMap::new(),
            ordered: BTreeMap::new(),
            cut: Vec::new(),
            token: 0,
            checkpoint: limits::CHECKPOINT_CHANGES,
            away: (NEVER_MS, NEVER_MS),
            batched: false,
            due: Default::default(),
            left: Vec::new(),
            steps: Vec::new(),
            warned: Vec::new(),
        }
    }

    pub(in crate::core) fn site(&mut self, name: &str) -> SiteId {
        let hop = Hop { site: site_of(name), name: name.into(), kind: Kind::Gateway };
        let disk = MemDisk::new();
        let core = open(&hop, &disk, self.now, self.checkpoint);
        self.sites.insert(hop.site, Site { core, disk, hop: hop.clone() });
        hop.site
    }

    pub(in crate::core) fn agent(&mut self, name: &str, slots: u32, parent: SiteId) -> SiteId {
        let hop = Hop { site: site_of(name), name: name.into(), kind: Kind::Agent };
        let id = hop.site;
        self.agents.insert(id, ChildEnd::new(hop, 77, slots, 8 << 30));
        self.link(id, parent);
        id
    }

    /// Connect, or connect again.
    pub(in crate::core) fn link(&mut self, child: SiteId, parent: SiteId) {
        self.cut.retain(|c| *c != (child, parent));
        if !self.above.get(&child).is_some_and(|a| a.contains(&parent)) {
            self.above.entry(child).or_default().push(parent);
        }
        if let Some(agent) = self.agents.get_mut(&child) {
            let ups = agent.attach();
            self.wire.extend(ups.into_iter().map(|u| (child, parent, Message::Up(u))));
        } else {
            let name = self.sites[&parent].hop.name.clone();
            self.input(child, Input::ParentUp { parent, name });
        }
        self.settle();
    }

    pub(in crate::core) fn cut(&mut self, child: SiteId, parent: SiteId) {
        self.cut.push((child, parent));
        self.wire.retain(|(from, to, _)| (*from, *to) != (child, parent) && (*from, *to) != (parent, child));
        self.input(parent, Input::ChildGone { child, why: "cut".into(), silent_ms: 0 });
        if self.sites.contains_key(&child) {
            self.input(child, Input::ParentGone { parent });
        } else if let Some(a) = self.agents.get_mut(&child) {
            a.detach();
        }
        self.settle();
    }

    pub(in crate::core) fn input(&mut self, site: SiteId, input: Input) {
        let now = self.now;
        let Some(s) = self.sites.get_mut(&site) else { return };
        let (own, placed) = self.away;
        s.core.put_away_after(own, placed);
        s.core.recall(&input, &s.disk).unwrap();
        s.core.step(input, now);
        if self.batched {
            self.due.insert(site);
        } else {
            self.turn(site);
        }
    }

    pub(in crate::core) fn turn(&mut self, site: SiteId) {
        let now = self.now;
        let Some(s) = self.sites.get_mut(&site) else { return };
        let out = s.core.turn(now);
        if !out.batch.is_empty() {
            s.disk.open().unwrap().commit(&out.batch).unwrap();
        }
        for action in out.actions {
            match action {
                Action::Submitted(t, r) => _ = self.submitted.insert(t, r),
                Action::Ordered(t, r) => _ = self.ordered.insert(t, r),
                Action::Wanted(t, r) => _ = self.wanted.insert(t, r),
                Action::ToParent(p, up) => self.wire.push_back((site, p, Message::Up(up))),
                Action::ToChild(c, down) => self.wire.push_back((site, c, Message::Down(down))),
                Action::Leave(peer, _) => self.left.push((site, peer)),
                Action::Warn(text) => self.warned.push((site, text)),
                Action::Step(job, step) => self.steps.extend(s.core.line(job, step).map(|line| (site, line))),
                Action::Changed(_) => {}
            }
        }
    }

    /// Deliver until nothing is under way.
    pub(in crate::core) fn settle(&mut self) {
        let mut steps = 0;
        loop {
            let Some((from, to, message)) = self.wire.pop_front() else {
                let due = std::mem::take(&mut self.due);
                if due.is_empty() {
                    let Some((site, peer)) = self.left.pop() else { return };
                    self.greet_anew(site, peer);
                    continue;
                }
                due.into_iter().for_each(|site| self.turn(site));
                continue;
            };
            steps += 1;
            assert!(steps < 200_000, "messages never end: {from:?} -> {to:?} {message:?}");
            if self.cut.contains(&(from, to)) || self.cut.contains(&(to, from)) {
                continue;
            }
            match message {
                Message::Up(Up::Hello(hello)) => self.input(to, Input::ChildUp { child: from, hello }),
                Message::Up(message) => self.input(to, Input::ChildSays { child: from, message }),
                Message::Down(message) => match self.agents.get_mut(&to) {
                    Some(a) => {
                        let ups = a.down(message, self.now.mono_ms);
                        self.wire.extend(ups.into_iter().map(|u| (to, from, Message::Up(u))));
                    }
                    None => self.input(to, Input::ParentSays { parent: from, message }),
                },
            }
        }
    }

    /// Time passes: agents work, sites look at the clock.
    pub(in crate::core) fn pass(&mut self, ms: u64) {
        let step = 50;
        for _ in 0..ms.div_ceil(step) {
            self.now.mono_ms += step;
            self.now.unix_ms += step;
            let agents: Vec<SiteId> = self.agents.keys().copied().collect();
            for a in agents {
                let parent = self.above[&a][0];
                if self.cut.contains(&(a, parent)) {
                    continue;
                }
                let ups = self.agents.get_mut(&a).unwrap().tick(self.now.mono_ms);
                self.wire.extend(ups.into_iter().map(|u| (a, parent, Message::Up(u))));
            }
            let sites: Vec<SiteId> = self.sites.keys().copied().collect();
            for s in sites {
                self.input(s, Input::Tick);
            }
            self.settle();
        }
    }

    /// The process dies, and starts again with this in place of its store.
    pub(in crate::core) fn restart_with(&mut self, site: SiteId, disk: MemDisk) {
        self.sites.get_mut(&site).unwrap().disk = disk;
        self.restart(site);
    }

    /// A site has ended its links to a peer: they are made again at once.
    fn greet_anew(&mut self, site: SiteId, peer: SiteId) {
        for (child, parent) in [(site, peer), (peer, site)] {
            let linked = self.above.get(&child).is_some_and(|a| a.contains(&parent)) && !self.cut.contains(&(child, parent));
            if linked {
                self.cut(child, parent);
                self.link(child, parent);
            }
        }
    }

    /// The process dies, and starts again with what was committed.
    pub(in crate::core) fn restart(&mut self, site: SiteId) {
        self.wire.retain(|(from, to, _)| *from != site && *to != site);
        let now = self.now;
        let s = self.sites.get_mut(&site).unwrap();
        s.core = open(&s.hop, &s.disk, now, self.checkpoint);
        let parents = self.above.get(&site).cloned().unwrap_or_default();
        let children: Vec<SiteId> = self.above.iter().filter(|(_, p)| p.contains(&site)).map(|(c, _)| *c).collect();
        // A broker's children are those of its configuration.
        if !children.is_empty() && children.iter().all(|c| self.sites.contains_key(c)) {
            let names: Vec<String> = children.iter().map(|c| self.sites[c].hop.name.clone()).collect();
            self.sites.get_mut(&site).unwrap().core.expect(names);
        }
        for c in children {
            if self.sites.contains_key(&c) {
                self.input(c, Input::ParentGone { parent: site });
            }
            self.link(c, site);
        }
        for p in parents {
            self.input(p, Input::ChildGone { child: site, why: "restart".into(), silent_ms: 0 });
            self.link(site, p);
        }
    }

    pub(in crate::core) fn submit(&mut self, site: SiteId, key: &str, spec: JobSpec, tasks: u32) -> Result<(u64, bool), intergrid_proto::Refusal> {
        let spec = Arc::new(Spec { bytes: spec.encode(), parsed: spec });
        let token = self.submit_as(site, "user", key, spec, tasks);
        self.settle();
        self.submitted.remove(&token).expect("an answer")
    }

    /// Messages stay on the wire.
    pub(in crate::core) fn submit_as(&mut self, site: SiteId, user: &str, key: &str, spec: Arc<Spec>, tasks: u32) -> u64 {
        self.token += 1;
        let (owner, owner_name, key) = (site_of(user), user.to_string(), key.to_string());
        let submission = Submission { owner, owner_name, key, spec, tasks, hold: false, chain: Vec::new() };
        self.input(site, Input::Submit { token: self.token, submission });
        self.token
    }

    pub(in crate::core) fn want(&mut self, site: SiteId, job: u64, value: WantValue, tasks: Option<TaskSet>) {
        self.token += 1;
        let token = self.token;
        self.input(site, Input::SetWant { token, job, value, tasks });
        self.settle();
        self.wanted.remove(&token).expect("an answer").unwrap();
    }

    /// Tasks whose counting end is in the history of a site.
    pub(in crate::core) fn history_of(&self, site: SiteId, job: u64) -> TaskSet {
        use prost::Message;
        let mut tasks = TaskSet::new();
        let store = self.sites[&site].disk.open().unwrap();
        store
            .scan(&rows::history_prefix(job), &mut |_, bytes| {
                let entry = intergrid_proto::pb::HistoryEntry::decode(bytes).unwrap();
                let these = intergrid_proto::convert::tasks_in(entry.tasks).unwrap();
                if entry.ended.is_some() && !entry.stale {
                    assert!(tasks.intersect(&these).is_empty(), "{these} ended twice in the history");
                    tasks = tasks.union(&these);
                }
                true
            })
            .unwrap();
        tasks
    }

    pub(in crate::core) fn explanation(&self, site: SiteId, job: u64) -> (intergrid_proto::pb::Explanation, Vec<Hop>) {
        let core = &self.sites[&site].core;
        core.explanation(&core.state().jobs[&job], None)
    }

    pub(in crate::core) fn count(&self, site: SiteId, job: u64, phase: Phase) -> u64 {
        let s = &self.sites[&site];
        let past = || archive::read(&s.disk, job, true).unwrap().expect("a job").count(phase);
        s.core.state().jobs.get(&job).map_or_else(past, |j| j.count(phase))
    }

    pub(in crate::core) fn check(&self) {
        for s in self.sites.values() {
            for j in s.core.state().jobs.values() {
                let queued = j.select(&j.all(), |c| c.phase() == Some(Phase::Queued));
                assert_eq!(queued, j.queued, "the queue of {} at {}", j.no, s.hop.name);
                for (n, d) in &j.downs {
                    let open = j.select(&j.all(), |c| c.down == *n && c.is_below()).len();
                    assert_eq!(open, d.open, "placement {n} at {}", s.hop.name);
                }
                for (up, e) in j.ups.iter() {
                    let open = j.select(&j.all(), |c| c.up == *up && c.is_open()).len();
                    assert_eq!(open, e.open, "the parent's placement {} at {}", e.number, s.hop.name);
                }
                let total: u64 = j.counts.iter().sum();
                assert_eq!(total, u64::from(j.size));
            }
        }
    }
}

/// A chain of `depth` brokers over one gateway with two agents; the top first.
pub(in crate::core) fn tower(w: &mut World, depth: usize) -> Vec<SiteId> {
    let gateway = w.site("gateway");
    w.agent("a1", 2, gateway);
    w.agent("a2", 2, gateway);
    let mut sites = vec![gateway];
    for d in 0..depth {
        let broker = w.site(&format!("broker{d}"));
        w.link(sites[0], broker);
        sites.insert(0, broker);
    }
    w.pass(200);
    sites
}

pub(in crate::core) fn sleep(ms: u64) -> JobSpec {
    JobSpec::new(["sleep".to_string(), format!("{}", ms as f64 / 1000.0)])
}
