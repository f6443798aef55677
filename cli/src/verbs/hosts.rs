//! `hosts`: this grid's sites and agents, as a list with the route to each, or as a tree.

use intergrid_proto::limits::TREE_CALL_TIMEOUT_MS;
use intergrid_proto::pb;
use intergrid_proto::share::{longer, shorter};

use crate::client::Client;
use crate::out::{Out, Paint};
use crate::render::table::{Cell, Table};
use crate::render::tree::Tree;
use crate::render::{self, objects};
use crate::stop::{Ending, Result};
use crate::verbs::Context;

/// Ask through every hop.
pub async fn ask(client: &Client) -> Result<pb::Host, intergrid_proto::Refusal> {
    let request = pb::HostsRequest { deadline_ms: TREE_CALL_TIMEOUT_MS as u32 };
    client.call("hosts", async |mut grid| grid.hosts(request).await).await
}

/// A list, or a tree.
pub async fn run(context: &Context<'_>, out: &Out, tree: bool) -> Result<Ending> {
    let host = ask(&context.client).await?;
    if out.json {
        out.object(objects::host(&host))?;
        return Ok(Ending::Well);
    }
    print(out, &host, tree)?;
    out.next(if tree { "next: grid submit -- hostname" } else { "next: grid hosts --tree" })?;
    Ok(Ending::Well)
}

/// On stdout.
pub fn print(out: &Out, host: &pb::Host, tree: bool) -> Result<()> {
    table(host, tree).print(out)
}

fn table(host: &pb::Host, tree: bool) -> Table {
    let mut table = Table::new(&["SITE", "KIND", ">SLOTS", ">FREE", ">MEMORY", ">RUNNING", ">WAITING", ">ENDED", "ENDPOINT"]);
    for (branch, (route, h)) in nodes(host, "").rows() {
        let (name, kind) = h.site.as_ref().map_or(("?", "site"), |s| (s.name.as_str(), render::kind(s.kind)));
        let site = if tree { format!("{branch}{name}") } else { route };
        if !h.unreachable.is_empty() {
            let empty = || Cell::from("");
            let why = Cell::painted(format!("unreachable, {}", h.unreachable), Paint::Bad);
            table.row(vec![Cell::painted(site, Paint::Bad), kind.into(), empty(), empty(), empty(), empty(), empty(), empty(), why]);
            continue;
        }
        // What has ended is counted by sites, for all of their agents together; what waits, mostly.
        let counts = h.site.as_ref().is_none_or(|s| s.kind() != pb::Kind::Agent);
        let free = Cell::painted(h.slots_free.to_string(), if h.slots_free > 0 { Paint::Good } else { Paint::Plain });
        table.row(vec![
            site.into(),
            if h.backend.is_empty() || h.backend == "federation" { kind.into() } else { format!("{kind} ({})", h.backend).into() },
            h.slots_total.into(),
            free,
            if h.gpus > 0 { format!("{}, {}", render::bytes(h.memory_bytes), render::count(h.gpus, "GPU")) } else { render::bytes(h.memory_bytes) }
                .into(),
            h.running.into(),
            if counts || h.waiting > 0 { h.waiting.into() } else { "".into() },
            if counts { h.done.into() } else { "".into() },
            match &h.draining {
                Some(r) => Cell::painted([h.endpoint.clone(), super::admin::draining(r)].join("  ").trim().to_owned(), Paint::Warn),
                None => [h.endpoint.clone(), time_max(h), wait(h)].join("  ").trim().into(),
            },
        ]);
    }
    table
}

/// How long a task can take there at most, where that is limited everywhere.
fn time_max(h: &pb::Host) -> String {
    match h.shares.iter().map(|s| s.time_max_ms).reduce(longer) {
        None | Some(0) => String::new(),
        Some(ms) => format!("tasks of up to {}", render::duration(ms)),
    }
}

/// How long a task waits in its queues, about, where it must: the least of them.
fn wait(h: &pb::Host) -> String {
    match h.shares.iter().map(|s| s.wait_ms).reduce(shorter).flatten() {
        None | Some(0) => String::new(),
        Some(ms) => format!("starts in about {}", render::duration(ms)),
    }
}

/// Every site, with its route from the one that was asked.
pub fn nodes<'a>(h: &'a pb::Host, above: &str) -> Tree<(String, &'a pb::Host)> {
    let name = h.site.as_ref().map_or("?", |s| s.name.as_str());
    let route = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
    let below = h.below.iter().map(|b| nodes(b, &route)).collect();
    Tree { node: (route, h), below }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, kind: pb::Kind, slots: u64, below: Vec<pb::Host>) -> pb::Host {
        let site = Some(pb::Hop { name: name.into(), kind: kind.into(), ..Default::default() });
        pb::Host { site, slots_total: slots, slots_free: slots / 2, memory_bytes: 2 << 30, below, ..Default::default() }
    }

    #[test]
    fn a_tree_and_a_list() {
        let mut agent = host("campus-1", pb::Kind::Agent, 2, vec![]);
        agent.shares = [3_600_000, 8_047_000].map(|time_max_ms| pb::Share { time_max_ms, ..Default::default() }).into();
        let mut slurm = host("slurm", pb::Kind::Gateway, 8, vec![]);
        slurm.shares = [None, Some(300_000), Some(7_200_000)].map(|wait_ms| pb::Share { wait_ms, ..Default::default() }).into();
        let mut campus = host("campus", pb::Kind::Gateway, 2, vec![agent]);
        campus.backend = "agents".into();
        campus.draining = Some(pb::Reason { text: "new disk".into(), age_ms: 300_000, site_name: "ann".into(), ..Default::default() });
        let mut burst = host("burst", pb::Kind::Gateway, 0, vec![]);
        burst.unreachable = "no answer since 12s".into();
        let mut root = host("root", pb::Kind::Broker, 2, vec![host("eu", pb::Kind::Broker, 2, vec![campus]), slurm, burst]);
        root.endpoint = "127.0.0.1:7411".into();
        let out = Out::new(&Default::default(), false);
        assert_eq!(
            vec![
                "SITE               KIND              SLOTS  FREE  MEMORY  RUNNING  WAITING  ENDED  ENDPOINT",
                "root               broker                2     1      2G        0        0      0  127.0.0.1:7411",
                "├─ eu              broker                2     1      2G        0        0      0",
                "│  └─ campus       gateway (agents)      2     1      2G        0        0      0  draining for 5m00s by ann: new disk",
                "│     └─ campus-1  agent                 2     1      2G        0                  tasks of up to 2h14m",
                "├─ slurm           gateway               8     4      2G        0        0      0  starts in about 5m00s",
                "└─ burst           gateway                                                         unreachable, no answer since 12s",
            ],
            table(&root, true).lines(&out)
        );
        assert!(table(&root, false).lines(&out)[4].starts_with("root/eu/campus/campus-1  agent"));
    }
}
