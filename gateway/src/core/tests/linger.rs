//! What waits for slots at a site below, and would have them elsewhere.

use super::world::{World, sleep};
use intergrid_proto::Phase;

/// Tasks that ended fast had a site's parent place many of the next ones there. These are long: what won't have its turn soon goes to who is idle.
#[test]
fn long_tasks_that_were_placed_behind_short_ones_go_elsewhere() {
    let mut w = World::new();
    let (root, near, idle) = (w.site("root"), w.site("near"), w.site("idle"));
    w.agent("n1", 2, near);
    w.link(near, root);
    w.sites.get_mut(&near).unwrap().core.ended_rate = 5_000.0;
    w.pass(100);
    let (job, _) = w.submit(root, "k", sleep(1_000), 60).unwrap();
    w.pass(100);
    assert_eq!(60, w.sites[&root].core.state().jobs[&job].downs.values().map(|d| d.open).sum::<u64>(), "all of them are there");
    w.agent("i1", 2, idle);
    w.link(idle, root);
    w.pass(20_000);
    w.check();
    assert_eq!(60, w.count(root, job, Phase::Done), "four slots end four a second; two had taken 30 s");
    assert_eq!(60, w.agents.values().map(|a| a.starts().len()).sum::<usize>());
}

/// What has its turn soon stays where it is.
#[test]
fn short_tasks_stay_where_they_were_placed() {
    let mut w = World::new();
    let (root, near) = (w.site("root"), w.site("near"));
    w.agent("n1", 2, near);
    w.link(near, root);
    w.sites.get_mut(&near).unwrap().core.ended_rate = 5_000.0;
    w.pass(100);
    let (job, _) = w.submit(root, "k", sleep(100), 60).unwrap();
    w.pass(6_000);
    w.check();
    assert_eq!(60, w.count(root, job, Phase::Done));
    assert!(w.sites[&root].core.state().jobs[&job].last_return.is_none());
}
