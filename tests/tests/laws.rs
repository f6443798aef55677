//! The one suite of laws over real sites: a gateway, and towers of one to four brokers over it, each driven by a parent over TCP and mTLS.

use intergrid_gateway::daemon::Running;
use intergrid_gateway::laws::Laws;
use intergrid_tests::grid::{Grid, at, machines};
use intergrid_tests::logs;

/// Tasks of the law's large array, a depth's cost being what it is.
const ARRAY_TASKS: u32 = 400;

async fn tower(depth: usize) {
    let grid = Grid::new();
    let parent = |d: usize| if d == depth { "top".to_string() } else { format!("b{}", d + 1) };
    let mut sites: Vec<Running> = vec![grid.gateway("campus", &[&parent(0)], machines("campus", 2, 4)).await];
    for d in 1..=depth {
        let child = at(&sites[d - 1]);
        sites.push(grid.broker(&format!("b{d}"), &[&parent(d)], &[child]).await);
    }
    let (remote, me) = grid.remote(&sites[depth], "top");
    let kept = Laws::of(remote, me)
        .with(|o| o.array_tasks = ARRAY_TASKS)
        .run()
        .await
        .unwrap_or_else(|why| panic!("depth {depth}: {why}\n{}", logs::lines(&[]).join("\n")));
    for (law, took) in kept {
        println!("depth {depth}: {:5} ms: {law}", took.as_millis());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_obeys() {
    tower(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_obeys() {
    tower(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_of_two_obeys() {
    tower(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_of_three_obeys() {
    tower(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_of_four_obeys() {
    tower(4).await;
}
