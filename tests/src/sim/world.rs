//! Everything together: one queue of what happens next, one clock. No thread, no real time, no order that is not the seed's.

use std::collections::BTreeMap;

use intergrid_gateway::core::Input;
use intergrid_proto::link::{Down, Up, WantValue};
use intergrid_proto::{Reason, ReasonKind, SiteId};

use super::disk::Disk;
use super::leaf::{Leaf, Uid};
use super::net::{Link, Lower, Message};
use super::oracle::Oracle;
use super::record::Mirror;
use super::rng::Rng;
use super::scenario::{Cut, Deed, Fault, STRANGER, Scenario};
use super::site::Site;
use super::users::User;
use intergrid_agent::core::Key;

/// The wall clock at the start of a run, milliseconds since 1970.
pub const BEGIN_UNIX_MS: u64 = 1_800_000_000_000;
/// After the last fault, and after the last payload that ended, all must have come to rest within this.
const REST_MS: u64 = 300_000;
/// At least this long after the last fault it is looked at.
const LOOK_MS: u64 = 2_000;
/// More events than any run that comes to rest has.
const EVENTS_MAX: u64 = 6_000_000;

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    Poll {
        site: usize,
        epoch: u64,
    },
    Committed {
        site: usize,
        epoch: u64,
    },
    Tick {
        site: usize,
        epoch: u64,
    },
    StartSite(usize),
    Arrive {
        link: usize,
        session: u64,
        up: bool,
    },
    Open(usize),
    Gone {
        link: usize,
        session: u64,
        child: bool,
    },
    User(usize),
    LeafTick {
        leaf: usize,
        epoch: u64,
    },
    LeafWake {
        leaf: usize,
        epoch: u64,
    },
    LeafCommitted {
        leaf: usize,
        epoch: u64,
    },
    Spawn {
        leaf: usize,
        epoch: u64,
        key: Key,
    },
    Exit {
        leaf: usize,
        key: Key,
        uid: Uid,
    },
    StartLeaf(usize),
    Fault(usize),
    /// A copy of the store that this fault will put back is made.
    Copy(usize),
    Look,
}

/// A run.
pub struct World {
    pub scenario: Scenario,
    pub cut: Cut,
    pub now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Next>,
    pub sites: Vec<Site>,
    pub leaves: Vec<Leaf>,
    pub links: Vec<Link>,
    pub users: Vec<User>,
    pub link_of: BTreeMap<(SiteId, SiteId), usize>,
    pub oracle: Oracle,
    copies: BTreeMap<usize, (Disk, Mirror)>,
    pub events: u64,
    pub rested_ms: Option<u64>,
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(scenario: Scenario, cut: Cut, trace: bool) -> Self {
        let seed = scenario.seed;
        let sites: Vec<Site> = (0..scenario.sites).map(|i| Site::new(i, &scenario)).collect();
        let leaves: Vec<Leaf> = scenario.machines.iter().enumerate().map(|(i, m)| Leaf::new(i, m, scenario.links.len() + i, seed)).collect();
        let purpose = |child: Lower, parent: usize| match child {
            Lower::Site(c) => 1_000_000 + (c * 1_000 + parent) as u64,
            Lower::Leaf(l) => 2_000_000 + l as u64,
        };
        let lower = scenario.links.iter().map(|(c, p)| (Lower::Site(*c), *p));
        let lower = lower.chain(scenario.machines.iter().enumerate().map(|(l, m)| (Lower::Leaf(l), m.gateway)));
        let links: Vec<Link> = lower.map(|(c, p)| Link::new(c, p, Rng::new(seed, purpose(c, p)))).collect();
        let id = |l: Lower| match l {
            Lower::Site(i) => sites[i].hop.site,
            Lower::Leaf(i) => leaves[i].hop.site,
        };
        let link_of = links.iter().enumerate().map(|(i, l)| ((id(l.child), sites[l.parent].hop.site), i)).collect();
        let users = (0..scenario.deeds.len()).map(|_| User::default()).collect();
        let oracle = Oracle::new(&scenario, sites.iter().map(|s| s.hop.site).collect());
        let (queue, copies, trace) = (BTreeMap::new(), BTreeMap::new(), trace.then(Vec::new));
        let (now, order, events, rested_ms) = (0, 0, 0, None);
        let mut w = World { scenario, cut, now, order, queue, sites, leaves, links, users, link_of, oracle, copies, events, rested_ms, trace };
        w.begin();
        w
    }

    fn begin(&mut self) {
        for site in (0..self.sites.len()).filter(|s| !self.cut.sites.contains(s)).collect::<Vec<_>>() {
            self.after(site as u64 % 7, Next::StartSite(site));
        }
        for leaf in 0..self.leaves.len() {
            if !self.cut.machines.contains(&leaf) && !self.cut.sites.contains(&self.scenario.machines[leaf].gateway) {
                self.after(10 + leaf as u64 % 5, Next::StartLeaf(leaf));
            }
        }
        for (i, (_, d)) in self.scenario.deeds.iter().enumerate() {
            // Nobody says again what nobody said.
            if let Deed::Submit { key, .. } = d
                && self.cut.deeds.contains(key)
            {
                self.cut.deeds.insert(i);
            }
            // Without its cancel a job that never ends by itself would be a finding of its own.
            if let Deed::Want { submit, value: WantValue::Cancel, .. } = d
                && !self.cut.deeds.contains(submit)
            {
                self.cut.deeds.remove(&i);
            }
        }
        let deeds = self.scenario.deeds.iter().enumerate().filter(|(i, _)| !self.cut.deeds.contains(i)).map(|(i, d)| (d.0, Next::User(i)));
        let faults = self.scenario.faults.iter().enumerate().filter(|(i, _)| !self.cut.faults.contains(i)).map(|(i, f)| (f.0, Next::Fault(i)));
        let copies = self.scenario.faults.iter().enumerate().filter_map(|(i, (at, f))| match f {
            Fault::RollBack { back_ms, .. } => Some((at.saturating_sub(*back_ms), Next::Copy(i))),
            _ => None,
        });
        let all: Vec<(u64, Next)> = copies.chain(deeds).chain(faults).collect();
        all.into_iter().for_each(|(at, next)| self.after(at, next));
        self.after(self.scenario.calm_ms + LOOK_MS, Next::Look);
    }

    pub fn after(&mut self, ms: u64, next: Next) {
        self.order += 1;
        self.queue.insert((self.now + ms, self.order), next);
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9.3} {}", self.now as f64 / 1_000.0, line()));
        }
    }

    /// To the end, or to the first thing that must not be.
    pub fn run(&mut self) {
        while self.oracle.failure.is_none() && self.rested_ms.is_none() {
            let Some(((at, _), next)) = self.queue.pop_first() else { break };
            (self.now, self.oracle.now_ms) = (at, at);
            self.events += 1;
            if self.events > EVENTS_MAX {
                self.oracle.fail("L1", format!("no rest after {EVENTS_MAX} events"));
            }
            self.happen(next);
        }
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Poll { site, epoch } if self.sites[site].epoch == epoch => self.poll(site),
            Next::Committed { site, epoch } if self.sites[site].epoch == epoch => self.committed(site),
            Next::Tick { site, epoch } if self.sites[site].epoch == epoch => self.tick(site),
            Next::Poll { .. } | Next::Committed { .. } | Next::Tick { .. } => {}
            Next::StartSite(site) => self.start_site(site),
            Next::Arrive { link, session, up } => self.arrive(link, session, up),
            Next::Open(link) => self.open(link),
            Next::Gone { link, session, child } => self.gone(link, session, child),
            Next::User(deed) => self.act(deed),
            Next::LeafTick { leaf, epoch } if self.leaves[leaf].epoch == epoch => self.leaf_tick(leaf),
            Next::LeafWake { leaf, epoch } if self.leaves[leaf].epoch == epoch => self.leaf_wake(leaf),
            Next::LeafCommitted { leaf, epoch } if self.leaves[leaf].epoch == epoch => self.leaf_committed(leaf),
            Next::LeafTick { .. } | Next::LeafWake { .. } | Next::LeafCommitted { .. } => {}
            Next::Spawn { leaf, epoch, key } => self.spawn(leaf, epoch, key),
            Next::Exit { leaf, key, uid } => self.exit(leaf, key, uid),
            Next::StartLeaf(leaf) => self.start_leaf(leaf),
            Next::Fault(i) => self.fault(i),
            Next::Copy(i) => {
                if let Fault::RollBack { site, .. } = self.scenario.faults[i].1 {
                    self.copies.insert(i, (self.sites[site].disk.clone(), self.oracle.record.mirrors[site].clone()));
                }
            }
            Next::Look => self.look(),
        }
    }

    /// Has all come to rest? If not, it has to within a while.
    fn look(&mut self) {
        let late = self.now > self.scenario.calm_ms.max(self.oracle.record.exited_ms) + REST_MS;
        match self.unrest() {
            None => self.rested_ms = Some(self.now),
            Some((invariant, what)) if late => self.oracle.fail(invariant, what),
            Some(_) => self.after(1_000, Next::Look),
        }
    }

    pub fn calm(&self) -> bool {
        self.now >= self.scenario.calm_ms
    }

    // ---- links

    pub fn plan_open(&mut self, link: usize) {
        if !std::mem::replace(&mut self.links[link].opening, true) {
            let pause = self.links[link].pause_ms();
            self.after(pause, Next::Open(link));
        }
    }

    fn is_up(&self, lower: Lower) -> bool {
        match lower {
            Lower::Site(i) => self.sites[i].core.is_some(),
            Lower::Leaf(i) => self.leaves[i].core.is_some(),
        }
    }

    fn open(&mut self, link: usize) {
        self.links[link].opening = false;
        let l = &self.links[link];
        if l.child_has && l.parent_has || !self.is_up(l.child) || !self.is_up(Lower::Site(l.parent)) {
            return; // Whoever comes up next tries.
        }
        if l.child_has || l.parent_has || l.barred_until_ms > self.now && !self.calm() {
            return self.plan_open(link);
        }
        let (child, parent) = (l.child, l.parent);
        let session = self.links[link].open();
        self.note(|| format!("link {child:?} -> {parent}: session {session}"));
        match child {
            Lower::Site(c) => {
                let hop = self.sites[parent].hop.clone();
                self.input(c, Input::ParentUp { parent: hop.site, name: hop.name });
            }
            Lower::Leaf(c) => self.leaf_connected(c),
        }
    }

    /// A session's wire breaks. Each end learns of it after its own time; what is under way may still come, a whole direction or none of it.
    pub fn cut(&mut self, link: usize, learns_ms: (u64, u64), keep: (bool, bool)) {
        let l = &mut self.links[link];
        let session = l.session;
        (l.up.cut, l.down.cut) = (true, true);
        if !keep.0 {
            l.up.queue.clear();
        }
        if !keep.1 {
            l.down.queue.clear();
        }
        if l.child_has {
            self.after(learns_ms.0, Next::Gone { link, session, child: true });
        }
        if self.links[link].parent_has {
            self.after(learns_ms.1, Next::Gone { link, session, child: false });
        }
    }

    /// One end knows that a session is over.
    fn gone(&mut self, link: usize, session: u64, child: bool) {
        let l = &mut self.links[link];
        if l.session != session {
            return;
        }
        let (lower, parent, greeted) = (l.child, l.parent, l.greeted);
        let had = if child { std::mem::replace(&mut l.child_has, false) } else { std::mem::replace(&mut l.parent_has, false) };
        if had {
            if child {
                l.down.queue.clear()
            } else {
                l.up.queue.clear()
            }
            self.note(|| {
                format!("link {lower:?} -> {parent}: {} knows that session {session} is over", if child { "the child" } else { "the parent" })
            });
            match (child, lower) {
                (true, Lower::Site(c)) => {
                    let parent = self.sites[parent].hop.site;
                    self.input(c, Input::ParentGone { parent });
                }
                (true, Lower::Leaf(c)) => self.leaf_disconnected(c),
                (false, _) if greeted => {
                    let child = self.id(lower);
                    self.input(parent, Input::ChildGone { child, why: "cut".into(), silent_ms: 0 });
                }
                (false, _) => {}
            }
        }
        self.plan_open(link);
    }

    pub fn id(&self, lower: Lower) -> SiteId {
        match lower {
            Lower::Site(i) => self.sites[i].hop.site,
            Lower::Leaf(i) => self.leaves[i].hop.site,
        }
    }

    /// A process is gone: its ends of all links with it.
    pub fn drop_links_of(&mut self, who: Lower) {
        for link in 0..self.links.len() {
            let l = &self.links[link];
            let (mine_child, mine_parent) = (l.child == who, Lower::Site(l.parent) == who);
            if !mine_child && !mine_parent {
                continue;
            }
            let learns = self.links[link].pause_ms();
            self.cut(link, (learns, learns), (mine_child, mine_parent));
            let l = &mut self.links[link];
            if mine_child {
                l.child_has = false;
                l.down.queue.clear();
            } else {
                l.parent_has = false;
                l.up.queue.clear();
            }
        }
    }

    /// Say something on the session that is open now, as far as the speaker knows.
    pub fn send(&mut self, link: usize, message: Message) {
        let now = self.now;
        let convert = self.scenario.convert;
        let l = &mut self.links[link];
        let (up, has) = match &message {
            Message::Up(_) => (true, l.child_has),
            Message::Down(_) => (false, l.parent_has && l.greeted),
        };
        if !has {
            return;
        }
        let session = l.session;
        let message = if convert { converted(message) } else { Ok(message) };
        match message {
            Ok(message) => {
                if let Some(at) = self.links[link].send(message, now) {
                    self.after(at - now, Next::Arrive { link, session, up });
                }
            }
            Err(why) => self.oracle.fail("wire", format!("link {link}: {why}")),
        }
    }

    fn arrive(&mut self, link: usize, session: u64, up: bool) {
        let l = &mut self.links[link];
        if l.session != session {
            return;
        }
        let (child, parent) = (l.child, l.parent);
        let message = match up {
            true if l.parent_has => l.up.queue.pop_front(),
            false if l.child_has => l.down.queue.pop_front(),
            _ => None,
        };
        match message {
            Some(Message::Up(message)) => {
                let hello = matches!(message, Up::Hello(_));
                if hello == l.greeted {
                    // As the shell does: the first message is a hello, and no other is. The link is dropped and made again.
                    self.note(|| format!("link {child:?} -> {parent}: dropped by the parent, out of turn: {message:?}"));
                    self.cut(link, (5, 0), (false, false));
                    return;
                }
                l.greeted = true;
                let id = self.id(child);
                self.note(|| format!("{child:?} -> {parent}: {message:?}"));
                let input = match message {
                    Up::Hello(hello) => Input::ChildUp { child: id, hello },
                    message => Input::ChildSays { child: id, message },
                };
                self.input(parent, input);
            }
            Some(Message::Down(message)) => {
                self.note(|| format!("{child:?} <- {parent}: {message:?}"));
                match child {
                    Lower::Site(c) => {
                        let parent = self.sites[parent].hop.site;
                        let input = match message {
                            // As the shell does.
                            Down::Place(place) if self.scenario.denies.contains(&c) && place.origin.principal == STRANGER => {
                                Input::Denied { parent, place, reason: Reason::new(ReasonKind::NotAuthorised, "a stranger") }
                            }
                            message => Input::ParentSays { parent, message },
                        };
                        self.input(c, input);
                    }
                    Lower::Leaf(c) => self.leaf_hears(c, message),
                }
            }
            None => {}
        }
    }

    // ---- faults

    fn fault(&mut self, i: usize) {
        let fault = self.scenario.faults[i].1.clone();
        if let Fault::Cut { link, .. } | Fault::Slow { link, .. } | Fault::AskAll { link } = fault
            && link >= self.links.len()
        {
            return;
        }
        self.note(|| format!("FAULT {i}: {fault:?}"));
        match fault {
            Fault::Crash { site, point, down_ms } => self.strike(site, point, down_ms),
            Fault::Cut { link, away_ms, child_learns_ms, parent_learns_ms, keep_up, keep_down } => {
                self.links[link].barred_until_ms = self.now + away_ms;
                self.cut(link, (child_learns_ms, parent_learns_ms), (keep_up, keep_down));
            }
            Fault::Kill { leaf, down_ms } => self.kill_leaf(leaf, down_ms),
            Fault::Reboot { leaf, down_ms } => self.reboot_leaf(leaf, down_ms, false),
            Fault::Replace { leaf, down_ms } => self.reboot_leaf(leaf, down_ms, true),
            Fault::Jump { site, by_ms } => self.sites[site].skew_ms += by_ms,
            Fault::JumpLeaf { leaf, by_ms } => self.leaves[leaf].skew_ms += by_ms,
            Fault::Slow { link, delay_ms } => self.links[link].slow_ms = delay_ms,
            Fault::SlowDisk { site, commit_ms } => self.sites[site].commit_ms = commit_ms,
            Fault::AskAll { link } => self.send(link, Message::Down(Down::Resync)),
            Fault::LoseStore { site, down_ms } => self.old_store(site, down_ms, None),
            Fault::RollBack { site, down_ms, .. } => {
                let copy = self.copies.remove(&i);
                self.old_store(site, down_ms, copy);
            }
        }
    }
}

/// To the wire's types and back.
fn converted(message: Message) -> Result<Message, String> {
    use intergrid_proto::pb;
    Ok(match message {
        Message::Up(m) => Message::Up(Up::try_from(pb::Up::from(m)).map_err(|r| r.to_string())?),
        Message::Down(m) => Message::Down(Down::try_from(pb::Down::from(m)).map_err(|r| r.to_string())?),
    })
}
