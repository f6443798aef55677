//! Separate jobs of one user over one stream, into a cluster that is busy and answers slowly: they wait at the same time, and go down together.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use intergrid_proto::net::Identity;
use intergrid_proto::{JobSpec, Phase};
use intergrid_tests::client::{Client, answer, count, submission};

use super::tree::until;
use super::user::User;

/// So many jobs.
const JOBS: u32 = 60;
/// A few submissions of them all; one of each would be as many as there are jobs.
const SUBMISSIONS_MAX: usize = 15;
/// This one is cancelled.
const ALONE: u32 = 17;
const PATIENCE: Duration = Duration::from_secs(60);

/// What differs between clusters.
pub struct Cluster<'a> {
    /// A shell's words that count a start in the file of `$GRID_TASK_ID`, with others after them.
    pub counted: &'a dyn Fn(&str) -> String,
    /// Starts of each.
    pub starts: &'a dyn Fn() -> BTreeMap<u32, usize>,
    /// Tasks of ours that are there.
    pub there: &'a dyn Fn() -> u64,
    /// Takes what all of them wait for out of the way.
    pub unblock: &'a dyn Fn(),
    /// A line for each submission that it has taken.
    pub sent: &'a Path,
}

/// They are there as a few arrays, one is cancelled alone, and each of the others runs once with its own words.
pub fn go_down_together(user: &User, endpoint: &str, cluster: &Cluster) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (identity, ca) = (Identity::load(&user.home).unwrap(), std::fs::read(user.home.join("ca.pem")).unwrap());
    let client = runtime.block_on(Client::connect(endpoint, &identity, &ca)).unwrap();
    let words = (cluster.counted)("[ \"$A\" = \"$1\" ] && printf '%s of %s' \"$1\" \"$GRID_JOB_ID\"");
    let spec = |n: u32| {
        let mut spec = JobSpec::new(["sh".to_string(), "-c".into(), format!("GRID_TASK_ID=$1; {words}"), "sh".into(), n.to_string()]);
        spec.env = vec![("A".into(), n.to_string())];
        spec
    };
    let requests: Vec<_> = (0..JOBS).map(|n| submission(&format!("separate-{n}"), &spec(n), 1)).collect();
    let jobs: Vec<String> = runtime.block_on(async {
        let mut answers = answer(client.grid.clone().submit_many(tokio_stream::iter(requests))).await.unwrap();
        let mut jobs = Vec::new();
        while let Some(a) = answers.message().await.unwrap() {
            jobs.push(a.reply.unwrap_or_else(|| panic!("refused: {:?}", a.error)).job);
        }
        jobs
    });
    let until_there = |tasks: u64| {
        until(&format!("{tasks} are there"), PATIENCE, || {
            Some((cluster.there)()).filter(|n| *n == tasks).map(drop).ok_or_else(|| (cluster.there)().to_string())
        })
    };
    until_there(u64::from(JOBS));
    let sent = std::fs::read_to_string(cluster.sent).unwrap().lines().count();
    assert!((1..=SUBMISSIONS_MAX).contains(&sent), "{JOBS} jobs are {sent} submissions");
    let alone = &jobs[ALONE as usize];
    user.run(&["cancel", alone]).well();
    user.until_phase(alone, "cancelled", 1);
    until_there(u64::from(JOBS) - 1);
    (cluster.unblock)();
    for (n, job) in (0..).zip(&jobs).filter(|(n, _)| *n != ALONE) {
        let view = runtime.block_on(client.ended(job));
        assert_eq!(1, count(&view, Phase::Done), "job {n}: {view:?}");
        let out = runtime.block_on(client.output(job, 0, "stdout")).unwrap();
        assert_eq!(format!("{n} of {job}"), String::from_utf8(out).unwrap());
    }
    let once: BTreeMap<u32, usize> = (0..JOBS).filter(|n| *n != ALONE).map(|n| (n, 1)).collect();
    assert_eq!(once, (cluster.starts)());
}
