//! The record of a run, which judges nothing: what every site has made durable, every placement that was ever issued and what it is called now, every
//! process on a machine. The oracle fills it in and goes by it.

mod ways;

use std::collections::{BTreeMap, BTreeSet};

use intergrid_gateway::backends::child_end::site_of;
use intergrid_gateway::core::state::EXIT_DOUBTFUL;
use intergrid_proto::link::Want;
use intergrid_proto::{BlobHash, Exit, Phase, SiteId, TaskSet};

use super::leaf::Uid;
use super::scenario::Scenario;

/// A user's job: its root, and its name there.
pub type JobKey = (SiteId, String);
/// A task of it.
pub type TaskKey = (JobKey, u32);

/// A task, at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// 0: not here.
    pub phase: u8,
    pub attempts: u8,
    pub exit: u16,
    /// The parent's placement.
    pub up: u64,
    /// Ours.
    pub down: u64,
}

impl Cell {
    pub fn is_terminal(self) -> bool {
        self.phase >= Phase::Done as u8
    }

    pub fn is_open(self) -> bool {
        self.phase != 0 && !self.is_terminal()
    }

    pub fn is_doubtful(self) -> bool {
        self.phase == Phase::Held as u8 && self.exit == EXIT_DOUBTFUL
    }
}

/// A job, at a site.
#[derive(Clone, Debug)]
pub struct Job {
    pub parent: Option<SiteId>,
    pub key: String,
    pub origin: JobKey,
    pub hash: BlobHash,
    pub cells: Vec<Cell>,
    pub want: Want,
    /// How many at a time, as it was ordered one after the other.
    pub throttles: Vec<u32>,
}

impl Job {
    pub fn size(&self) -> u32 {
        self.cells.len() as u32
    }

    pub fn all(&self) -> TaskSet {
        TaskSet::range(0..self.size())
    }
}

/// A placement that a site knows of.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Which of all that were issued.
    pub id: usize,
    pub fenced: TaskSet,
}

/// What one site has made durable.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    pub jobs: BTreeMap<u64, Job>,
    pub placed: BTreeMap<u64, Placed>,
    pub incarnation: u64,
    /// Children's events: incarnation and sequence.
    pub cursors: BTreeMap<SiteId, (u64, u64)>,
    /// The highest number of each parent's placements.
    pub seen: BTreeMap<SiteId, u64>,
    /// The last event for each parent.
    pub emitted: BTreeMap<SiteId, u64>,
    /// Who takes no new work, and why; why anybody ever was drained, and who ever was resumed.
    pub drains: BTreeMap<SiteId, String>,
    pub reasons: BTreeSet<String>,
    pub resumed: BTreeSet<SiteId>,
    /// Usage that this root has counted.
    pub counted: BTreeSet<Uid>,
}

impl Mirror {
    pub fn cell(&self, job: u64, task: u32) -> Option<Cell> {
        self.jobs.get(&job).and_then(|j| j.cells.get(task as usize)).copied()
    }

    pub fn set(&mut self, job: u64, task: u32, cell: Cell) {
        if let Some(c) = self.jobs.get_mut(&job).and_then(|j| j.cells.get_mut(task as usize)) {
            *c = cell;
        }
    }

    /// The id of a placement that it knows of.
    pub fn id(&self, number: u64) -> Option<usize> {
        self.placed.get(&number).map(|p| p.id)
    }
}

/// A placement that was issued, whether its site still knows of it or not.
#[derive(Clone, Debug)]
pub struct Issued {
    pub site: usize,
    pub number: u64,
    pub job: u64,
    pub child: SiteId,
    pub parent: Option<SiteId>,
    pub origin: JobKey,
    pub hash: BlobHash,
    /// Each task's placement above, as it is called now.
    pub ups: BTreeMap<u32, u64>,
    /// The same as it was then, by its id.
    pub above: BTreeMap<u32, usize>,
    /// The child had these tasks already.
    pub adopted: bool,
    /// Fenced, or come back as a lost attempt.
    pub lost: TaskSet,
}

/// All placements ever issued; an id is a position among them.
#[derive(Debug, Default)]
pub struct Placements {
    pub all: Vec<Issued>,
    /// The last of each name: site, child, number.
    named: BTreeMap<(usize, SiteId, u64), usize>,
    /// Under which later placement of the same site a task goes on.
    later: BTreeMap<(usize, u32), usize>,
}

impl Placements {
    /// A new one: its id.
    pub fn issue(&mut self, issued: Issued) -> usize {
        let id = self.all.len();
        self.named.insert((issued.site, issued.child, issued.number), id);
        self.all.push(issued);
        id
    }

    /// What a site issued to this child under this number, the last if there were several.
    pub fn named(&self, site: usize, child: SiteId, number: u64) -> Option<usize> {
        self.named.get(&(site, child, number)).copied()
    }

    /// What this placement of a task is called now: a site that had lost its store may have found it again.
    pub fn now_is(&self, mut id: usize, task: u32) -> usize {
        while let Some(later) = self.later.get(&(id, task)) {
            id = *later;
        }
        id
    }

    /// Has it got another name?
    pub fn was_renamed(&self, id: usize, task: u32) -> bool {
        self.later.contains_key(&(id, task))
    }

    /// A task goes on under another placement, and so does what led to it.
    pub fn renamed(&mut self, was: usize, is: usize, task: u32) {
        let (was, end) = (self.now_is(was, task), self.now_is(is, task));
        // A parent that has gone back may call it by an earlier name again.
        if was == end {
            self.later.remove(&(is, task));
        }
        if was != is {
            self.later.insert((was, task), if was == end { is } else { end });
            let above = |id: usize| self.all[id].above.get(&task).copied();
            if let (Some(was), Some(is)) = (above(was), above(is)) {
                self.renamed(was, is, task);
            }
        }
    }
}

/// One start of a payload.
#[derive(Clone, Debug)]
pub struct Process {
    pub task: TaskKey,
    pub leaf: usize,
    /// Placements that led to it, the gateway's first, the root's last, as they were called then below.
    pub path: Vec<usize>,
    pub since_ms: u64,
    pub alive: bool,
    /// How it ended, where it did so by itself.
    pub exit: Option<Exit>,
    /// Its end, with its usage, is durable at its agent.
    pub evident: bool,
}

/// All of it.
#[derive(Default)]
pub struct Record {
    pub ids: Vec<SiteId>,
    index: BTreeMap<SiteId, usize>,
    pub leaf_ids: Vec<SiteId>,
    pub gateway_of: Vec<usize>,
    pub mirrors: Vec<Mirror>,
    pub issued: Placements,
    pub processes: BTreeMap<Uid, Process>,
    /// When a payload last ended.
    pub exited_ms: u64,
    /// The highest placement that an agent has made durable.
    leaves_saw: BTreeMap<SiteId, u64>,
    /// Machines that an empty one took the place of: when the last did, and the last placement that its gateway had decided when it knew, if it does.
    pub emptied: BTreeMap<usize, (u64, u64, bool)>,
    /// Sites whose store was lost or is an old copy: when that was, and how many placements had been issued before it knew.
    pub replaced: BTreeMap<usize, (u64, usize)>,
}

impl Record {
    pub fn new(s: &Scenario, ids: Vec<SiteId>) -> Self {
        Record {
            index: ids.iter().enumerate().map(|(i, id)| (*id, i)).collect(),
            leaf_ids: (0..s.machines.len()).map(|i| site_of(&format!("a{i}"))).collect(),
            gateway_of: s.machines.iter().map(|m| m.gateway).collect(),
            mirrors: vec![Mirror::default(); s.sites],
            ids,
            ..Record::default()
        }
    }

    /// A payload began. Its id is no small number, so that one in the wrong place is seen.
    pub fn started(&mut self, p: Process) -> Uid {
        let uid = 1_001 + self.processes.len() as Uid;
        self.processes.insert(uid, p);
        uid
    }

    pub fn exited(&mut self, uid: Uid, exit: Exit, now_ms: u64) {
        self.exited_ms = now_ms;
        if let Some(p) = self.processes.get_mut(&uid) {
            (p.alive, p.exit) = (false, Some(exit));
        }
    }

    /// Gone with its machine.
    pub fn vanished(&mut self, uid: Uid) {
        if let Some(p) = self.processes.get_mut(&uid) {
            p.alive = false;
        }
    }

    /// Its end is durable at its agent.
    pub fn evidence(&mut self, uid: Uid) {
        if let Some(p) = self.processes.get_mut(&uid) {
            p.evident = true;
        }
    }

    /// An agent has made a placement durable, whatever it is.
    pub fn leaf_saw(&mut self, leaf: usize, number: u64) {
        let saw = self.leaves_saw.entry(self.leaf_ids[leaf]).or_default();
        *saw = (*saw).max(number);
    }

    /// A machine came in another's place, with an empty store.
    pub fn machine_replaced(&mut self, leaf: usize, now_ms: u64) {
        self.emptied.insert(leaf, (now_ms, u64::MAX, false));
        self.leaves_saw.remove(&self.leaf_ids[leaf]);
    }

    /// A task is at a site under another placement of the parent: it is the same task, and so is what runs of it.
    pub fn relabel(&mut self, site: usize, job: u64, task: u32, c: Cell, number: u64) {
        if let Some(p) = self.mirrors[site].id(c.down) {
            self.issued.all[p].ups.insert(task, number);
        }
        if let (Some(was), Some(is)) = (self.issued_by(site, job, c.up), self.issued_by(site, job, number)) {
            self.issued.renamed(was, is, task);
        }
    }
}
