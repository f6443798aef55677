//! What the demo tells at its end: what ran where and by which route, for people and as one object for scripts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use intergrid_proto::{Phase, pb};
use serde_json::{Value, json};

use super::picture;
use crate::client::Client;
use crate::out::Out;
use crate::render::table::Table;
use crate::render::{self, tasks};
use crate::stop::Result;
use crate::verbs::history;

/// A part of the grid as a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// Its label.
    pub name: String,
    /// broker, gateway or agent.
    pub kind: &'static str,
    /// Its process; None where it did not say.
    pub pid: Option<u32>,
    /// Above it.
    pub parent: Option<String>,
}

/// Where a task was done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Done {
    /// The gateway.
    pub site: String,
    /// From the top to the machine.
    pub route: Vec<String>,
    /// Wall clock, milliseconds.
    pub wall_ms: u64,
}

/// Where each task was done, by the history of the job at the top.
pub async fn done(client: &Client, job: &str, top: &str) -> Result<BTreeMap<u32, Done>> {
    let mut all = BTreeMap::new();
    history::each(client, &history::whole(job), |_, entry| {
        read(entry, top, &mut all);
        Ok(())
    })
    .await?;
    Ok(all)
}

fn read(entry: &pb::HistoryEntry, top: &str, all: &mut BTreeMap<u32, Done>) {
    let Some(ended) = entry.ended.as_ref().filter(|e| !entry.stale && e.phase == Phase::Done as i32) else { return };
    let mut route: Vec<String> = ended.route.iter().rev().map(|h| h.name.clone()).collect();
    if route.first().is_none_or(|first| first != top) {
        route.insert(0, top.to_owned());
    }
    let gateway = ended.route.iter().find(|h| h.kind() == pb::Kind::Gateway);
    let site = gateway.or(ended.route.first()).map(|h| h.name.clone()).unwrap_or_default();
    for (k, task) in tasks(entry.tasks.as_ref()).iter().enumerate() {
        let wall_ms = ended.wall_ms.get(k).or(ended.wall_ms.first()).copied().unwrap_or(0);
        all.insert(task, Done { site: site.clone(), route: route.clone(), wall_ms });
    }
}

/// How many tasks each machine did, by route.
pub fn table(done: &BTreeMap<u32, Done>) -> Table {
    let mut by_route = BTreeMap::<&[String], (&str, u64, u64)>::new();
    for d in done.values() {
        let (site, tasks, wall_ms) = by_route.entry(&d.route).or_default();
        *site = &d.site;
        *tasks += 1;
        *wall_ms += d.wall_ms;
    }
    let mut table = Table::new(&["SITE", ">TASKS", ">WALL EACH", "ROUTE"]);
    for (route, (site, tasks, wall_ms)) in by_route {
        table.row(vec![site.into(), tasks.into(), render::duration(wall_ms / tasks.max(1)).into(), route.join("/").into()]);
    }
    table
}

/// Each site's colour and share of the picture.
pub fn legend(out: &Out, done: &BTreeMap<u32, Done>) -> String {
    let mut tiles = BTreeMap::<&str, u64>::new();
    done.values().for_each(|d| *tiles.entry(&d.site).or_default() += 1);
    let words = tiles.iter().map(|(site, n)| {
        let [r, g, b] = picture::tint(site);
        format!("{} {site} {n}", out.rgb(r, g, b, "■"))
    });
    words.collect::<Vec<_>>().join("   ")
}

/// Everything, as one object.
pub fn object(home: &Path, endpoint: &str, sites: &[Site], done: &BTreeMap<u32, Done>, picture: &Path, took: Duration) -> Value {
    let sites: Vec<Value> = sites.iter().map(|s| json!({"name": s.name, "kind": s.kind, "pid": s.pid, "parent": s.parent})).collect();
    let tasks: Vec<Value> = done.iter().map(|(task, d)| json!({"task": task, "site": d.site, "route": d.route})).collect();
    let seconds = (took.as_secs_f64() * 10.0).round() / 10.0;
    json!({"home": home, "endpoint": endpoint, "sites": sites, "tasks": tasks, "picture": picture, "seconds": seconds})
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_proto::TaskSet;
    use intergrid_proto::convert::tasks_out;

    #[test]
    fn where_tasks_were_done() {
        let hop = |name: &str, kind: pb::Kind| pb::Hop { name: name.into(), kind: kind.into(), ..Default::default() };
        let route = vec![hop("campus-1", pb::Kind::Agent), hop("campus", pb::Kind::Gateway), hop("eu", pb::Kind::Broker)];
        let ended = |phase: Phase| Some(pb::Ended { phase: phase as i32, route: route.clone(), wall_ms: vec![200], ..Default::default() });
        let entry = |tasks, phase, stale| pb::HistoryEntry {
            tasks: Some(tasks_out(&TaskSet::range(tasks))),
            ended: ended(phase),
            stale,
            ..Default::default()
        };
        let mut all = BTreeMap::new();
        read(&entry(0..2, Phase::Done, false), "root", &mut all);
        read(&entry(2..3, Phase::Failed, false), "root", &mut all);
        read(&entry(3..4, Phase::Done, true), "root", &mut all);
        assert_eq!(vec![0, 1], all.keys().copied().collect::<Vec<_>>());
        assert_eq!(("campus", "root/eu/campus/campus-1"), (all[&0].site.as_str(), all[&0].route.join("/").as_str()));
        let out = Out::new(&Default::default(), false);
        assert_eq!(vec!["SITE    TASKS  WALL EACH  ROUTE", "campus      2      200ms  root/eu/campus/campus-1"], table(&all).lines(&out));
        assert_eq!("■ campus 2", legend(&out, &all));
        let object = object(Path::new("/h"), "e:1", &[], &all, Path::new("/p"), Duration::from_millis(12_345));
        assert_eq!((json!(12.3), json!("campus")), (object["seconds"].clone(), object["tasks"][0]["site"].clone()));
    }
}
