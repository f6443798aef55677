//! What a seed stands for: a tree of sites with machines, what users do, and what goes wrong. Drawn before the run; a run with a part left out keeps the
//! rest as it is, which makes it possible to look for the shortest trace.

use std::collections::BTreeSet;

use intergrid_proto::JobSpec;
use intergrid_proto::link::WantValue;
use intergrid_proto::spec::OnLost;

use super::Options;
use super::rng::Rng;

/// Exits of a payload, by its second argument.
const MODES: u64 = 4;

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub gateway: usize,
    pub slots: u32,
    /// Its agent says things twice, and things that are over.
    pub lies: bool,
}

/// What a user does.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Submit; `key` is the index of the deed that used this key first.
    Submit { site: usize, key: usize, spec: usize, tasks: u32, hold: bool },
    /// Wish something of the job that another deed submitted.
    Want { submit: usize, value: WantValue, tasks: Option<(u32, u32)> },
    /// Order something of a site: of itself, or of what is attached to it.
    Order { site: usize, what: Ordered },
    /// Order something of the job that another deed submitted.
    OrderOf { submit: usize, what: OrderedOf },
}

/// What an administrator orders; names are those of sites (s0) and agents (a0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ordered {
    Drain(String),
    Resume(String),
    Lost(String),
}

/// What an owner orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderedOf {
    /// A cancel that waits for nobody's word.
    Cancel,
    /// So many tasks at a time; 0: as many as can be.
    Throttle(u32),
}

/// Who is not let in everywhere.
pub const STRANGER: &str = "bob";

/// Where a crash strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Between two inputs; what is on its way to the disk may be there or not.
    Now { kept: bool },
    /// The next batch is on its way to the disk and does not get there.
    BeforeCommit,
    /// The next batch is durable; of what it allows to be done, so many steps are done.
    AfterCommit { done: usize },
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    Crash {
        site: usize,
        point: Point,
        down_ms: u64,
    },
    /// A link is cut, and not made again for a while. Each end learns of it in its own time; of what is under way, each direction loses all or nothing.
    Cut {
        link: usize,
        away_ms: u64,
        child_learns_ms: u64,
        parent_learns_ms: u64,
        keep_up: bool,
        keep_down: bool,
    },
    /// An agent's process dies; tasks run on.
    Kill {
        leaf: usize,
        down_ms: u64,
    },
    /// A machine goes down, and its tasks with it.
    Reboot {
        leaf: usize,
        down_ms: u64,
    },
    /// A machine is replaced by an empty one of the same name.
    Replace {
        leaf: usize,
        down_ms: u64,
    },
    /// A wall clock jumps.
    Jump {
        site: usize,
        by_ms: i64,
    },
    JumpLeaf {
        leaf: usize,
        by_ms: i64,
    },
    /// A link carries everything later.
    Slow {
        link: usize,
        delay_ms: u64,
    },
    SlowDisk {
        site: usize,
        commit_ms: u64,
    },
    /// A parent asks a child for its full state, as it may at any time.
    AskAll {
        link: usize,
    },
    /// A site's store is gone.
    LoseStore {
        site: usize,
        down_ms: u64,
    },
    /// A site's store is what it was so long before.
    RollBack {
        site: usize,
        down_ms: u64,
        back_ms: u64,
    },
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub sites: usize,
    /// Child and parent.
    pub links: Vec<(usize, usize)>,
    pub machines: Vec<Machine>,
    pub specs: Vec<JobSpec>,
    /// When, and what.
    pub deeds: Vec<(u64, Deed)>,
    pub faults: Vec<(u64, Fault)>,
    /// From here on nothing goes wrong any more.
    pub calm_ms: u64,
    /// Sites that let no stranger's work in.
    pub denies: BTreeSet<usize>,
    /// Users whose submissions are a stranger's: those with an odd key, or none.
    pub strangers: bool,
    /// Changes between checkpoints.
    pub checkpoint: u64,
    /// Messages are turned into bytes' types and back.
    pub convert: bool,
}

/// Parts that are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    pub sites: BTreeSet<usize>,
    pub machines: BTreeSet<usize>,
    pub deeds: BTreeSet<usize>,
    pub faults: BTreeSet<usize>,
}

impl Scenario {
    /// Of a seed.
    pub fn of(seed: u64, options: Options) -> Self {
        let (recovery, benign) = (options.recovery, options.benign);
        let mut r = Rng::new(seed, 1);
        let sites = match r.range(0, 100) {
            0..70 => r.range(1, 6),
            70..92 => r.range(6, 13),
            92..98 => r.range(13, 31),
            _ => r.range(31, 61),
        } as usize;
        // A link tells of `SHARES_MAX` classes of machines, and one more link would be one too many for the widest trees.
        let sites = if benign { sites.min(20) } else { sites };
        // A few towers are higher than a job may climb.
        let tower = !benign && r.one_in(40);
        let (sites, depth_max) = if tower { (r.range(9, 12) as usize, 12) } else { (sites, r.range(1, 7)) };
        let mut depth = vec![1u64];
        let mut links = Vec::new();
        for i in 1..sites {
            let parent = if tower { i - 1 } else { (0..8).map(|_| r.index(i)).find(|p| depth[*p] < depth_max).unwrap_or(0) };
            depth.push(depth[parent] + 1);
            links.push((i, parent));
        }
        let inner: BTreeSet<usize> = links.iter().map(|l| l.1).collect();
        if sites > 2 && !tower {
            for _ in 0..r.range(0, 3) {
                let (child, parent) = (1 + r.index(sites - 1), r.index(sites));
                // Upward links make diamonds; a few go down, and make cycles.
                let up = depth[parent] < depth[child] || r.one_in(4);
                if child != parent && up && !links.contains(&(child, parent)) {
                    links.push((child, parent));
                }
            }
        }
        let mut machines = Vec::new();
        for gateway in 0..sites {
            let n = if inner.contains(&gateway) { u64::from(r.one_in(5) && !tower) } else { r.range(1, 4) };
            machines.extend((0..n).map(|_| Machine { gateway, slots: r.range(1, 5) as u32, lies: !benign && r.one_in(12) }));
        }
        let span_ms = r.range(5_000, 30_000);
        let (specs, deeds) = deeds(&mut r, sites, span_ms, benign);
        let mut s = Scenario {
            seed,
            sites,
            links,
            machines,
            specs,
            deeds,
            faults: Vec::new(),
            calm_ms: span_ms,
            denies: BTreeSet::new(),
            strangers: false,
            checkpoint: [5, 20, 100, 20_000][r.index(4)],
            convert: r.one_in(4),
        };
        let n = if r.one_in(4) { 0 } else { r.range(1, 14) };
        for _ in 0..n {
            let fault = s.fault(&mut r, recovery, benign);
            s.faults.push((r.range(300, span_ms), fault));
        }
        s.faults.sort_by_key(|f| f.0);
        if options.orders {
            s.orders(&mut Rng::new(seed, 2), span_ms);
        }
        s
    }

    /// Orders come on top of all else, from numbers of their own: without them a seed is the run that it was.
    fn orders(&mut self, r: &mut Rng, span_ms: u64) {
        for spec in &mut self.specs {
            spec.tasks_at_once = r.one_in(6).then(|| r.range(1, 5) as u32);
        }
        let submits: Vec<(u64, usize)> =
            self.deeds.iter().enumerate().filter_map(|(i, (at, d))| matches!(d, Deed::Submit { key, .. } if *key == i).then_some((*at, i))).collect();
        for (at, submit) in submits {
            for what in [OrderedOf::Throttle(r.range(0, 4) as u32), OrderedOf::Throttle(0), OrderedOf::Cancel] {
                if r.one_in(if what == OrderedOf::Cancel { 8 } else { 4 }) {
                    self.deeds.push((r.range(at, span_ms), Deed::OrderOf { submit, what }));
                }
            }
        }
        for _ in 0..r.range(0, 4) {
            let leaf = r.index(self.machines.len());
            let (child, parent) = if self.links.is_empty() || r.one_in(2) {
                (format!("a{leaf}"), self.machines[leaf].gateway)
            } else {
                let (child, parent) = self.links[r.index(self.links.len())];
                (format!("s{child}"), parent)
            };
            let at = r.range(300, span_ms);
            if r.one_in(2) {
                self.deeds.push((at, Deed::Order { site: parent, what: Ordered::Lost(child) }));
                continue;
            }
            let name = if r.one_in(3) { format!("s{parent}") } else { child };
            self.deeds.push((at, Deed::Order { site: parent, what: Ordered::Drain(name.clone()) }));
            if r.percent(80) {
                self.deeds.push((r.range(at, span_ms), Deed::Order { site: parent, what: Ordered::Resume(name) }));
            }
        }
        self.strangers = r.one_in(3);
        self.denies = (0..self.sites).filter(|_| self.strangers && r.one_in(4)).collect();
    }

    fn fault(&self, r: &mut Rng, recovery: bool, benign: bool) -> Fault {
        let (site, link, leaf) = (r.index(self.sites), r.index(self.links.len() + self.machines.len()), r.index(self.machines.len()));
        let down_ms = if r.one_in(4) { r.range(2_000, 12_000) } else { r.range(10, 1_500) };
        let hour = if r.one_in(2) { 3_600_000 } else { -3_600_000 };
        let learns = |r: &mut Rng| if r.one_in(4) { r.range(0, 10_000) } else { r.range(0, 300) };
        match r.range(0, if recovery { 116 } else { 100 }) {
            0..32 => {
                let point = match r.range(0, 6) {
                    0 => Point::Now { kept: true },
                    1 => Point::Now { kept: false },
                    2 => Point::BeforeCommit,
                    _ => Point::AfterCommit { done: r.index(4) },
                };
                Fault::Crash { site, point, down_ms }
            }
            32..58 => Fault::Cut {
                link,
                away_ms: if benign { r.range(10, 800) } else { down_ms },
                child_learns_ms: learns(r),
                parent_learns_ms: learns(r),
                keep_up: r.one_in(2),
                keep_down: r.one_in(2),
            },
            58..64 => Fault::Jump { site, by_ms: hour },
            64..68 => Fault::JumpLeaf { leaf, by_ms: hour },
            68..76 => Fault::Slow { link, delay_ms: r.range(50, 1_500) },
            76..82 => Fault::SlowDisk { site, commit_ms: r.range(50, 800) },
            82..86 => Fault::AskAll { link },
            _ if benign => Fault::AskAll { link },
            86..92 => Fault::Kill { leaf, down_ms },
            92..97 => Fault::Reboot { leaf, down_ms },
            97..100 => Fault::Replace { leaf, down_ms },
            100..108 => Fault::LoseStore { site, down_ms },
            _ => Fault::RollBack { site, down_ms, back_ms: if r.one_in(2) { r.range(10, 1_000) } else { r.range(1_000, 15_000) } },
        }
    }

    /// One more hop over the same: a new top that users of the old top submit to.
    pub fn with_one_more_hop(&self) -> Self {
        let mut s = self.clone();
        let top = s.sites;
        s.sites += 1;
        s.links.push((0, top));
        for (_, d) in &mut s.deeds {
            if let Deed::Submit { site, .. } = d
                && *site == 0
            {
                *site = top;
            }
        }
        // Indices of links that faults name: those of machines come after those of sites.
        let sites = self.links.len();
        for (_, f) in &mut s.faults {
            if let Fault::Cut { link, .. } | Fault::Slow { link, .. } | Fault::AskAll { link } = f
                && *link >= sites
            {
                *link += 1;
            }
        }
        s
    }
}

fn deeds(r: &mut Rng, sites: usize, span_ms: u64, benign: bool) -> (Vec<JobSpec>, Vec<(u64, Deed)>) {
    let (mut specs, mut deeds, mut longs): (Vec<JobSpec>, Vec<(u64, Deed)>, Vec<bool>) = Default::default();
    for _ in 0..r.range(1, 6) {
        let long = !benign && r.one_in(4);
        let base_ms = match r.range(0, 3) {
            _ if long => 3_600_000,
            0 => r.range(1, 100),
            1 => r.range(100, 1_000),
            _ => r.range(1_000, 6_000),
        };
        let mut spec = JobSpec::new(["work".to_string(), base_ms.to_string(), r.range(0, MODES).to_string(), specs.len().to_string()]);
        spec.on_lost = if r.one_in(2) { OnLost::Wait } else { OnLost::Requeue };
        spec.shape.slots = match r.range(0, 20) {
            0 if !benign => 9,
            1..5 => 2,
            _ => 1,
        };
        spec.disconnect_timeout_ms = if benign { 3_600_000 } else { r.range(300, 8_000) };
        spec.attempts_max = if benign { 5 } else { r.range(1, 6) as u32 };
        let tasks = if r.one_in(5) { r.range(10, 60) } else { r.range(1, 10) } as u32;
        let site = if r.percent(80) { 0 } else { r.index(sites) };
        let hold = !benign && r.one_in(12);
        let at = r.range(0, span_ms * 2 / 3);
        let (submit, spec_index) = (deeds.len(), specs.len());
        specs.push(spec);
        deeds.push((at, Deed::Submit { site, key: submit, spec: spec_index, tasks, hold }));
        if r.one_in(6) {
            deeds.push((r.range(at, span_ms), Deed::Submit { site, key: submit, spec: spec_index, tasks, hold }));
        }
        // A key that is used again for something else; not of a job that only its cancel ends, nor where it is not to matter which of both comes first.
        if !long && !benign && r.one_in(8) {
            let spec = spec_index.saturating_sub(usize::from(spec_index > 0 && !longs[spec_index - 1]));
            let other = if spec == spec_index { tasks + 1 } else { tasks };
            deeds.push((r.range(at, span_ms), Deed::Submit { site, key: submit, spec, tasks: other, hold }));
        }
        longs.push(long);
        if benign {
            continue;
        }
        let part = |r: &mut Rng| r.one_in(2).then(|| (r.range(0, tasks.into()) as u32, tasks));
        if hold || r.one_in(8) {
            let held = r.range(at, span_ms);
            deeds.push((held, Deed::Want { submit, value: WantValue::Hold, tasks: part(r) }));
            if r.percent(80) {
                deeds.push((r.range(held, span_ms), Deed::Want { submit, value: WantValue::Run, tasks: None }));
            }
        }
        if long || r.one_in(6) {
            deeds.push((r.range(at, span_ms), Deed::Want { submit, value: WantValue::Cancel, tasks: if long { None } else { part(r) } }));
        }
    }
    (specs, deeds)
}
