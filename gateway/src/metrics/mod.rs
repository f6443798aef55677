//! What a site tells Prometheus: numbers of the engine and of the core as text, over plain HTTP on an address of their own.
//!
//! Off unless it is configured, and on this machine only unless that is said: nobody is asked who he is. Names of sites, agents and phases are told, never
//! users, jobs, specs or keys. A look reads and changes nothing.

mod serve;
mod stats;
mod text;

use std::path::{Path, PathBuf};

use intergrid_proto::link::Kind;
use intergrid_proto::{Phase, Refusal};

pub use serve::serve;
pub use stats::Stats;
use text::Text;

use crate::core::Core;
use crate::engine::Engine;

/// What is asked for numbers.
#[derive(Clone)]
pub struct Source {
    engine: Engine,
    store: PathBuf,
}

/// A child, or a parent.
struct Peer {
    name: String,
    kind: &'static str,
    up: bool,
    draining: bool,
    slots: u64,
    free: u64,
    tasks: u64,
    events: u64,
    unacknowledged: u64,
}

/// The core's numbers.
struct Gauges {
    jobs: u64,
    tasks: Vec<(&'static str, u64)>,
    fenced: u64,
    ended: u64,
    draining: bool,
    no_room: bool,
    recovering: bool,
    children: Vec<Peer>,
    parents: Vec<Peer>,
}

fn gauges(core: &Core) -> Gauges {
    let (host, hosts) = core.host();
    let jobs = || core.state().jobs.values();
    let child = |(id, h): &(intergrid_proto::SiteId, intergrid_proto::pb::Host)| Peer {
        name: h.site.as_ref().map_or_else(String::new, |s| s.name.clone()),
        kind: core.child_kind(*id).name(),
        up: h.unreachable.is_empty(),
        draining: h.draining.is_some(),
        slots: h.slots_total,
        free: h.slots_free,
        tasks: h.running,
        events: core.state().cursors.get(id).map_or(0, |c| c.sequence),
        unacknowledged: 0,
    };
    let parent = |(id, l): (&intergrid_proto::SiteId, &crate::core::state::Link)| Peer {
        name: l.name.clone(),
        kind: Kind::Broker.name(),
        up: core.has_parent(*id),
        draining: false,
        slots: 0,
        free: 0,
        tasks: 0,
        events: l.next,
        unacknowledged: l.outbox.len() as u64,
    };
    Gauges {
        jobs: jobs().count() as u64,
        tasks: Phase::ALL.into_iter().map(|p| (p.name(), jobs().map(|j| j.count(p)).sum())).collect(),
        fenced: jobs().flat_map(|j| j.downs.values()).map(|d| d.fenced.len()).sum(),
        ended: core.state().ended,
        draining: host.draining.is_some(),
        no_room: core.lacks_room(),
        recovering: core.state().recovering,
        children: hosts.iter().map(child).collect(),
        parents: core.state().links.iter().map(parent).collect(),
    }
}

impl Source {
    /// Of a site with this store.
    pub fn new(engine: Engine, store: PathBuf) -> Self {
        Source { engine, store }
    }

    /// All of it, as Prometheus reads it.
    pub async fn text(&self) -> Result<String, Refusal> {
        let g = self.engine.look(gauges).await?;
        let store = self.store.clone();
        let disk = tokio::task::spawn_blocking(move || (bytes_below(&store), free_bytes(&store), resident_bytes())).await.unwrap_or_default();
        let me = self.engine.me();
        let mut t = Text::default();
        t.gauge("intergrid_build_info", "Always 1; the labels say which program this is.");
        t.sample(&[("version", env!("CARGO_PKG_VERSION")), ("site", &me.name), ("kind", me.kind.name())], 1);
        t.gauge("intergrid_jobs", "Jobs that are open here, or ended some seconds ago.").sample(&[], g.jobs);
        t.gauge("intergrid_tasks", "Tasks of these jobs, by phase.");
        g.tasks.iter().for_each(|(phase, n)| t.sample(&[("phase", phase)], *n));
        t.gauge("intergrid_tasks_fenced", "Attempts that no longer count and have not been seen to stop.").sample(&[], g.fenced);
        t.counter("intergrid_tasks_ended_total", "Tasks that have ended here since this process started.").sample(&[], g.ended);
        t.gauge("intergrid_draining", "1: this site takes no new work.").sample(&[], g.draining.into());
        t.gauge("intergrid_disk_full", "1: there is no room for new work on the disk; 2: not even for what runs.");
        t.sample(&[], if self.engine.stuck().is_some() { 2 } else { g.no_room.into() });
        t.gauge("intergrid_recovering", "1: the store was lost or old, and peers have not all said what they know.").sample(&[], g.recovering.into());
        children(&mut t, &g.children);
        parents(&mut t, &g.parents);
        self.engine.stats().write(&mut t);
        t.gauge("intergrid_store_bytes", "Size of the store on disk.").sample(&[], disk.0);
        t.gauge("intergrid_disk_free_bytes", "What is free on the store's disk.").sample(&[], disk.1);
        t.gauge("process_resident_memory_bytes", "Resident memory.").sample(&[], disk.2);
        Ok(t.end())
    }
}

type Of<T> = fn(&Peer) -> T;

fn children(t: &mut Text, list: &[Peer]) {
    let each: [(&str, &str, Of<u64>); 5] = [
        ("intergrid_child_up", "1: the link to this child is up.", |p| p.up.into()),
        ("intergrid_child_draining", "1: this child was told here to take no new work.", |p| p.draining.into()),
        ("intergrid_child_slots", "Slots of this child and all below it.", |p| p.slots),
        ("intergrid_child_slots_free", "Of these, those that are free.", |p| p.free),
        ("intergrid_child_tasks", "Tasks placed on this child that have not ended.", |p| p.tasks),
    ];
    for (name, help, value) in each {
        t.gauge(name, help);
        list.iter().for_each(|p| t.sample(&[("child", &p.name), ("kind", p.kind)], value(p)));
    }
    t.counter("intergrid_child_events_total", "Events of this child that are committed here; begins anew with its store.");
    list.iter().for_each(|p| t.sample(&[("child", &p.name), ("kind", p.kind)], p.events));
}

fn parents(t: &mut Text, list: &[Peer]) {
    t.gauge("intergrid_parent_up", "1: the link to this parent is up.");
    list.iter().for_each(|p| t.sample(&[("parent", &p.name)], p.up.into()));
    t.counter("intergrid_parent_events_total", "Events issued for this parent; begins anew with this store.");
    list.iter().for_each(|p| t.sample(&[("parent", &p.name)], p.events));
    t.gauge("intergrid_parent_events_unacknowledged", "Events that this parent has not acknowledged.");
    list.iter().for_each(|p| t.sample(&[("parent", &p.name)], p.unacknowledged));
}

/// All files in a directory; 0 where it can't be read. The store makes no deep trees.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => bytes_below(&e.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |k| k * 1_024)
}
