//! The core alone, driven by hand: towers of cores over perfect children, messages passed by hand, restarts from a store that keeps what was committed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use intergrid_proto::link::{Attempts, Down, Event, EventKind, Events, Hello, Hop, Kind, Place, Up, WantValue};
use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, Phase, Reason, ReasonKind, SiteId, TaskSet};

use super::schedule::FirstFit;
use super::state::Spec;
use super::{Action, Core, Input, Now, Submission};
use crate::backends::child_end::{ChildEnd, site_of};
use crate::store::Store;
use crate::store::mem::MemDisk;

/// A site of the world: a core and its disk.
pub(super) struct Site {
    pub(super) core: Core,
    pub(super) disk: MemDisk,
    hop: Hop,
}

/// A tree of sites over perfect agents; messages are delivered in order, each at once.
pub(super) struct World {
    now: Now,
    pub(super) sites: BTreeMap<SiteId, Site>,
    agents: BTreeMap<SiteId, ChildEnd>,
    /// child -> parents
    above: BTreeMap<SiteId, Vec<SiteId>>,
    wire: VecDeque<(SiteId, SiteId, Message)>,
    submitted: BTreeMap<u64, Result<(u64, bool), intergrid_proto::Refusal>>,
    wanted: BTreeMap<u64, Result<u64, intergrid_proto::Refusal>>,
    /// Links that are cut: (child, parent).
    cut: Vec<(SiteId, SiteId)>,
    token: u64,
    /// Changes between checkpoints.
    pub checkpoint: u64,
    /// Many inputs a turn, as under load, instead of one.
    batched: bool,
    due: std::collections::BTreeSet<SiteId>,
}

#[derive(Debug)]
enum Message {
    Up(Up),
    Down(Down),
}

fn open(hop: &Hop, disk: &MemDisk, now: Now, checkpoint: u64) -> Core {
    let store = disk.open().unwrap();
    let mut core = Core::load(hop.clone(), &store, Box::new(FirstFit), now, 7 + hop.name.len() as u64).unwrap();
    core.checkpoint_changes = checkpoint;
    core
}

impl World {
    pub(super) fn new() -> Self {
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
            cut: Vec::new(),
            token: 0,
            checkpoint: super::limits::CHECKPOINT_CHANGES,
            batched: false,
            due: Default::default(),
        }
    }

    fn site(&mut self, name: &str) -> SiteId {
        let hop = Hop { site: site_of(name), name: name.into(), kind: Kind::Gateway };
        let disk = MemDisk::new();
        let core = open(&hop, &disk, self.now, self.checkpoint);
        self.sites.insert(hop.site, Site { core, disk, hop: hop.clone() });
        hop.site
    }

    fn agent(&mut self, name: &str, slots: u32, parent: SiteId) -> SiteId {
        let hop = Hop { site: site_of(name), name: name.into(), kind: Kind::Agent };
        let id = hop.site;
        self.agents.insert(id, ChildEnd::new(hop, 77, slots, 8 << 30));
        self.link(id, parent);
        id
    }

    /// Connect, or connect again.
    fn link(&mut self, child: SiteId, parent: SiteId) {
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

    pub(super) fn cut(&mut self, child: SiteId, parent: SiteId) {
        self.cut.push((child, parent));
        self.wire.retain(|(from, to, _)| (*from, *to) != (child, parent) && (*from, *to) != (parent, child));
        self.input(parent, Input::ChildGone { child, why: "cut".into() });
        if self.sites.contains_key(&child) {
            self.input(child, Input::ParentGone { parent });
        } else if let Some(a) = self.agents.get_mut(&child) {
            a.detach();
        }
        self.settle();
    }

    fn input(&mut self, site: SiteId, input: Input) {
        let now = self.now;
        let Some(s) = self.sites.get_mut(&site) else { return };
        s.core.step(input, now);
        if self.batched {
            self.due.insert(site);
        } else {
            self.turn(site);
        }
    }

    fn turn(&mut self, site: SiteId) {
        let now = self.now;
        let Some(s) = self.sites.get_mut(&site) else { return };
        let out = s.core.turn(now);
        if !out.batch.is_empty() {
            s.disk.open().unwrap().commit(&out.batch).unwrap();
        }
        for action in out.actions {
            match action {
                Action::Submitted(t, r) => _ = self.submitted.insert(t, r),
                Action::Wanted(t, r) => _ = self.wanted.insert(t, r),
                Action::ToParent(p, up) => self.wire.push_back((site, p, Message::Up(up))),
                Action::ToChild(c, down) => self.wire.push_back((site, c, Message::Down(down))),
                Action::Changed(_) | Action::Warn(_) => {}
            }
        }
    }

    /// Deliver until nothing is under way.
    fn settle(&mut self) {
        let mut steps = 0;
        loop {
            let Some((from, to, message)) = self.wire.pop_front() else {
                let due = std::mem::take(&mut self.due);
                if due.is_empty() {
                    return;
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
    pub(super) fn pass(&mut self, ms: u64) {
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

    /// The process dies, and starts again with what was committed.
    fn restart(&mut self, site: SiteId) {
        self.wire.retain(|(from, to, _)| *from != site && *to != site);
        let now = self.now;
        let s = self.sites.get_mut(&site).unwrap();
        s.core = open(&s.hop, &s.disk, now, self.checkpoint);
        let parents = self.above.get(&site).cloned().unwrap_or_default();
        let children: Vec<SiteId> = self.above.iter().filter(|(_, p)| p.contains(&site)).map(|(c, _)| *c).collect();
        for c in children {
            if self.sites.contains_key(&c) {
                self.input(c, Input::ParentGone { parent: site });
            }
            self.link(c, site);
        }
        for p in parents {
            self.input(p, Input::ChildGone { child: site, why: "restart".into() });
            self.link(site, p);
        }
    }

    pub(super) fn submit(&mut self, site: SiteId, key: &str, spec: JobSpec, tasks: u32) -> Result<(u64, bool), intergrid_proto::Refusal> {
        let spec = Arc::new(Spec { bytes: spec.encode(), parsed: spec });
        let token = self.submit_as(site, "user", key, spec, tasks);
        self.settle();
        self.submitted.remove(&token).expect("an answer")
    }

    /// Messages stay on the wire.
    fn submit_as(&mut self, site: SiteId, user: &str, key: &str, spec: Arc<Spec>, tasks: u32) -> u64 {
        self.token += 1;
        let (owner, owner_name, key) = (site_of(user), user.to_string(), key.to_string());
        let submission = Submission { owner, owner_name, key, spec, tasks, hold: false, chain: Vec::new() };
        self.input(site, Input::Submit { token: self.token, submission });
        self.token
    }

    pub(super) fn want(&mut self, site: SiteId, job: u64, value: WantValue, tasks: Option<TaskSet>) {
        self.token += 1;
        let token = self.token;
        self.input(site, Input::SetWant { token, job, value, tasks });
        self.settle();
        self.wanted.remove(&token).expect("an answer").unwrap();
    }

    /// Tasks whose counting end is in the history of a site.
    fn history_of(&self, site: SiteId, job: u64) -> TaskSet {
        use prost::Message;
        let mut tasks = TaskSet::new();
        let store = self.sites[&site].disk.open().unwrap();
        store
            .scan(&super::rows::history_prefix(job), &mut |_, bytes| {
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

    pub(super) fn count(&self, site: SiteId, job: u64, phase: Phase) -> u64 {
        self.sites[&site].core.state().jobs[&job].count(phase)
    }

    fn check(&self) {
        for s in self.sites.values() {
            for j in s.core.state().jobs.values() {
                let queued = j.select(&j.all(), |c| c.phase() == Some(Phase::Queued));
                assert_eq!(queued, j.queued, "the queue of {} at {}", j.no, s.hop.name);
                for (n, d) in &j.downs {
                    let open = j.select(&j.all(), |c| c.down == *n && c.is_below()).len();
                    assert_eq!(open, d.open, "placement {n} at {}", s.hop.name);
                }
                let total: u64 = j.counts.iter().sum();
                assert_eq!(total, u64::from(j.size));
            }
        }
    }
}

/// A chain of `depth` brokers over one gateway with two agents; the top first.
pub(super) fn tower(w: &mut World, depth: usize) -> Vec<SiteId> {
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

pub(super) fn sleep(ms: u64) -> JobSpec {
    JobSpec::new(["sleep".to_string(), format!("{}", ms as f64 / 1000.0)])
}

#[test]
fn an_array_ends_at_every_depth() {
    for (depth, batched) in (0..=4).flat_map(|d| [(d, false), (d, true)]) {
        let mut w = World::new();
        let sites = tower(&mut w, depth);
        w.batched = batched;
        // Enough of them that many events come in one turn.
        for a in ["a3", "a4", "a5", "a6"] {
            w.agent(a, 1, sites[depth]);
        }
        let (job, existed) = w.submit(sites[0], "k", JobSpec::new(["true"]), 500).unwrap();
        assert!(!existed);
        w.pass(60_000);
        w.check();
        assert_eq!(500, w.count(sites[0], job, Phase::Done), "depth {depth}: {:?}", w.sites[&sites[0]].core.job_view(job, true));
        assert_eq!(Ok((job, true)), w.submit(sites[0], "k", JobSpec::new(["true"]), 500));
        assert!(w.submit(sites[0], "k", JobSpec::new(["false"]), 500).is_err());
        let starts: u64 = w.agents.values().map(|a| a.starts().len() as u64).sum();
        assert_eq!(500, starts, "depth {depth}");
        for site in sites {
            let jobs: Vec<u64> = w.sites[&site].core.state().jobs.keys().copied().collect();
            for job in jobs {
                assert_eq!(w.history_of(site, job), TaskSet::range(0..500), "every end has its history row, and outputs are found by it");
            }
        }
    }
}

#[test]
fn restarts_of_every_site_lose_nothing_and_double_nothing() {
    // With checkpoints at every few changes, and without.
    for (victim, checkpoint) in (0..3).flat_map(|v| [(v, 7), (v, 20_000)]) {
        let mut w = World::new();
        w.checkpoint = checkpoint;
        let sites = tower(&mut w, 2);
        let mut spec = sleep(100);
        spec.on_lost = OnLost::Wait;
        let (job, _) = w.submit(sites[0], "k", spec, 60).unwrap();
        for _ in 0..12 {
            w.pass(100);
            w.restart(sites[victim]);
            w.check();
        }
        w.pass(60_000);
        w.check();
        assert_eq!(60, w.count(sites[0], job, Phase::Done), "site {victim}: {:?}", w.sites[&sites[0]].core.job_view(job, true));
        let starts: u64 = w.agents.values().map(|a| a.starts().len() as u64).sum();
        assert_eq!(60, starts, "site {victim}");
    }
}

#[test]
fn a_cancel_reaches_every_level_and_needs_a_confirmed_stop() {
    let mut w = World::new();
    let sites = tower(&mut w, 2);
    let (job, _) = w.submit(sites[0], "k", sleep(3_600_000), 40).unwrap();
    w.pass(300);
    assert!(w.count(sites[0], job, Phase::Running) >= 4);
    w.cut(sites[2], sites[1]);
    w.want(sites[0], job, WantValue::Cancel, None);
    w.pass(500);
    assert!(w.count(sites[0], job, Phase::Cancelled) < 40, "stops are not confirmed while the link is cut");
    w.link(sites[2], sites[1]);
    w.pass(2_000);
    w.check();
    assert_eq!(40, w.count(sites[0], job, Phase::Cancelled), "{:?}", w.sites[&sites[0]].core.job_view(job, true));
}

#[test]
fn lost_contact_fences_and_one_result_counts() {
    let mut w = World::new();
    let root = w.site("root");
    let (g1, g2) = (w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.link(g1, root);
    let mut spec = sleep(30_000);
    spec.disconnect_timeout_ms = 2_000;
    w.pass(200);
    let (job, _) = w.submit(root, "k", spec, 2).unwrap();
    w.pass(1_000);
    assert_eq!(2, w.count(root, job, Phase::Running));
    w.cut(g1, root);
    w.agent("a2", 2, g2);
    w.link(g2, root);
    w.pass(1_500);
    assert_eq!(2, w.count(root, job, Phase::Running), "not before the time-out");
    w.pass(1_500);
    let view = &w.sites[&root].core.state().jobs[&job];
    assert!(view.downs.values().any(|d| !d.fenced.is_empty()), "the old attempts are fenced");
    w.link(g1, root);
    w.pass(60_000);
    w.check();
    assert_eq!(2, w.count(root, job, Phase::Done));
    assert!(w.sites[&root].core.state().jobs[&job].downs.is_empty(), "fenced attempts were seen to stop");
    assert_eq!(0, w.agents[&site_of("a1")].running().len(), "stale attempts are stopped");
}

#[test]
fn wait_never_starts_twice_across_a_disconnect() {
    let mut w = World::new();
    let root = w.site("root");
    let (g1, g2) = (w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.link(g1, root);
    w.agent("a2", 2, g2);
    w.pass(200);
    let mut spec = sleep(5_000);
    spec.disconnect_timeout_ms = 1_000;
    spec.on_lost = OnLost::Wait;
    let (job, _) = w.submit(root, "k", spec, 2).unwrap();
    w.pass(500);
    w.cut(g1, root);
    w.link(g2, root);
    w.pass(20_000);
    assert_eq!(0, w.count(root, job, Phase::Done) + w.count(root, job, Phase::Failed));
    w.link(g1, root);
    w.pass(1_000);
    assert_eq!(2, w.count(root, job, Phase::Done));
    assert!(w.agents[&site_of("a2")].starts().is_empty());
}

#[test]
fn two_brokers_that_list_each_other_converge() {
    let mut w = World::new();
    let (b1, b2, g1, g2) = (w.site("b1"), w.site("b2"), w.site("g1"), w.site("g2"));
    w.agent("a1", 2, g1);
    w.agent("a2", 3, g2);
    for (child, parent) in [(g1, b1), (g2, b2), (b1, b2), (b2, b1)] {
        w.link(child, parent);
    }
    w.pass(1_000);
    for b in [b1, b2] {
        assert_eq!(5, w.sites[&b].core.host().0.slots_total, "each sees both, and none twice");
    }
    let (job, _) = w.submit(b1, "k", JobSpec::new(["true"]), 200).unwrap();
    w.pass(60_000);
    w.check();
    assert_eq!(200, w.count(b1, job, Phase::Done));
    let foreign: Vec<_> = w.sites[&b1].core.state().jobs.values().filter(|j| j.parent.is_some()).collect();
    assert!(foreign.is_empty(), "no task of b1 came back to it");
}

#[test]
fn a_diamond_never_counts_twice() {
    let mut w = World::new();
    let (root, b1, b2, g) = (w.site("root"), w.site("b1"), w.site("b2"), w.site("g"));
    w.agent("a", 1, g);
    for (child, parent) in [(g, b1), (g, b2), (b1, root), (b2, root)] {
        w.link(child, parent);
    }
    w.pass(1_000);
    assert_eq!(1, w.sites[&root].core.host().0.slots_total);
    let (job, _) = w.submit(root, "k", sleep(1_000), 6).unwrap();
    for _ in 0..40 {
        w.pass(250);
        w.check();
        assert!(w.agents[&site_of("a")].running().len() <= 1);
        let at_g: u64 = w.sites[&g].core.state().jobs.values().map(|j| j.open()).sum();
        assert!(at_g <= 2, "{at_g} tasks at a gateway with one slot");
    }
    w.pass(60_000);
    assert_eq!(6, w.count(root, job, Phase::Done), "{:?}", w.sites[&root].core.job_view(job, true));
}

#[test]
fn what_never_fits_says_so_from_the_top() {
    let mut w = World::new();
    let sites = tower(&mut w, 1);
    let mut spec = JobSpec::new(["true"]);
    spec.shape.slots = 3;
    let (job, _) = w.submit(sites[0], "k", spec, 1).unwrap();
    w.pass(1_000);
    let (e, _) = w.sites[&sites[0]].core.explanation(job, None).unwrap();
    assert_eq!("no-fit", intergrid_proto::ReasonKind::from_number(e.reasons[0].kind).word(), "{e:?}");
}

#[test]
fn work_flows_to_every_branch_while_it_has_room() {
    let mut w = World::new();
    let (root, eu) = (w.site("root"), w.site("eu"));
    let (campus, partner, burst) = (w.site("campus"), w.site("partner"), w.site("burst"));
    for (gateway, agents) in [(campus, 2), (partner, 1), (burst, 2)] {
        for a in 0..agents {
            let name = format!("{}-{a}", w.sites[&gateway].hop.name);
            w.agent(&name, 2, gateway);
        }
    }
    for (child, parent) in [(campus, eu), (partner, eu), (eu, root), (burst, root)] {
        w.link(child, parent);
    }
    w.pass(500);
    let (job, _) = w.submit(root, "k", sleep(150), 200).unwrap();
    w.pass(20_000);
    assert_eq!(200, w.count(root, job, Phase::Done));
    let ended = |site: SiteId| w.sites[&site].core.state().ended;
    let (c, p, b) = (ended(campus), ended(partner), ended(burst));
    // Four, two and four slots of ten.
    assert!((60..=100).contains(&c) && (30..=50).contains(&p) && (60..=100).contains(&b), "campus {c}, partner {p}, burst {b}");
}

/// A gateway acted out by hand, with room for two.
struct Hand {
    root: SiteId,
    me: SiteId,
    sequence: u64,
}

impl Hand {
    fn attach(w: &mut World, root: SiteId) -> Hand {
        let hop = Hop { site: site_of("g"), name: "g".into(), kind: Kind::Gateway };
        let me = hop.site;
        let mut end = ChildEnd::new(hop, 3, 2, 8 << 30);
        let Some(Up::Hello(hello)) = end.attach().pop() else { panic!("a hello") };
        w.input(root, Input::ChildUp { child: me, hello: hello.clone() });
        let adverts = end.down(Down::Hello(Hello { peer_incarnation: 3, ..hello }), 1);
        adverts.into_iter().for_each(|message| w.input(root, Input::ChildSays { child: me, message }));
        Hand { root, me, sequence: 0 }
    }

    /// What the root places there, once it does.
    fn place(&self, w: &mut World) -> Place {
        for _ in 0..200 {
            let placed = w.wire.drain(..).find_map(|(.., m)| if let Message::Down(Down::Place(p)) = m { Some(p) } else { None });
            match placed {
                Some(p) => return *p,
                None => w.now.mono_ms += 50,
            }
            w.input(self.root, Input::Tick);
        }
        panic!("nothing was placed within 10 s");
    }

    fn says(&mut self, w: &mut World, place: &Place, what: EventKind) {
        self.sequence += 1;
        let of = Attempts { number: place.number, job: place.job, tasks: place.tasks.clone() };
        let events = Events { incarnation: 3, first: self.sequence, events: vec![Event { of, what }] };
        w.input(self.root, Input::ChildSays { child: self.me, message: Up::Events(events) });
    }
}

fn returned(kind: ReasonKind) -> EventKind {
    EventKind::Returned(Reason::new(kind, ""))
}

/// A child that gives work back may have dropped the spec with it: a placement without its bytes would then be refused for ever.
#[test]
fn a_placement_after_a_return_brings_its_spec_again() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "user", "k", spec, 1);
    let first = g.place(&mut w);
    g.says(&mut w, &first, returned(ReasonKind::NoFit));
    let second = g.place(&mut w);
    assert!(second.number > first.number && !first.spec.is_empty() && second.spec == first.spec);
}

#[test]
fn pauses_grow_with_each_return_and_end_with_success() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "user", "k", spec, 1_000);
    let mut pauses = |w: &mut World, takes: bool| -> Vec<u64> {
        let mut pause = |_| {
            let p = g.place(w);
            if takes {
                g.says(w, &p, EventKind::Accepted);
            }
            let since = w.now.mono_ms;
            g.says(w, &p, returned(ReasonKind::OverCredit));
            while !w.wire.iter().any(|(.., m)| matches!(m, Message::Down(Down::Place(_)))) {
                w.now.mono_ms += 10;
                w.input(root, Input::Tick);
            }
            w.now.mono_ms - since
        };
        (0..6).map(&mut pause).collect()
    };
    assert_eq!([50, 100, 200, 400, 800, 1_600], *pauses(&mut w, false));
    assert_eq!([50; 6], *pauses(&mut w, true));
}

/// Work of one shape waits together; that one user is refused there must not keep the others away.
#[test]
fn a_refusal_of_one_user_keeps_nobody_else_away() {
    let mut w = World::new();
    let root = w.site("root");
    let mut g = Hand::attach(&mut w, root);
    let spec = Arc::new(Spec { bytes: JobSpec::new(["true"]).encode(), parsed: JobSpec::new(["true"]) });
    w.submit_as(root, "bob", "k", spec.clone(), 1);
    let of_bob = g.place(&mut w);
    g.says(&mut w, &of_bob, returned(ReasonKind::NotAuthorised));
    w.submit_as(root, "ann", "k", spec, 1);
    let since = w.now.mono_ms;
    assert_eq!("ann", g.place(&mut w).origin.principal);
    assert_eq!(since, w.now.mono_ms, "at once");
    assert_eq!("bob", g.place(&mut w).origin.principal, "he is tried again later");
    assert!(w.now.mono_ms - since >= 5_000);
}

/// A full state names every end again: what is known already must not be counted a second time, here or above.
#[test]
fn a_full_state_adds_nothing_to_history_that_is_there() {
    let mut w = World::new();
    let sites = tower(&mut w, 2);
    let (job, _) = w.submit(sites[0], "k", JobSpec::new(["true"]), 20).unwrap();
    w.pass(5_000);
    assert_eq!(20, w.count(sites[0], job, Phase::Done));
    let history = |w: &World| {
        let mut entries = Vec::new();
        for s in w.sites.values() {
            let mut n = 0;
            let mut count = |_: &[u8], _: &[u8]| {
                n += 1;
                true
            };
            for j in s.core.state().jobs.keys() {
                s.disk.open().unwrap().scan(&super::rows::history_prefix(*j), &mut count).unwrap();
            }
            entries.push(n);
        }
        entries
    };
    let before = history(&w);
    for (child, parent) in [(sites[2], sites[1]), (sites[1], sites[0])] {
        w.input(child, Input::ParentSays { parent, message: Down::Resync });
        w.settle();
    }
    w.pass(1_000);
    assert_eq!(before, history(&w));
}
