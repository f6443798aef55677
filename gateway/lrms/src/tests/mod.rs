//! The whole backend over an LRMS that is a shell on this machine, for the parts that are common: the laws, and what goes wrong. It says nothing of Slurm or
//! Grid Engine; those are installed and driven in `tests/`.

mod away;
mod given_up;
mod local;
mod pilots;
mod short;
mod told;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_gateway::backends::agents::Above;
use intergrid_gateway::blobs::{BlobLimits, BlobStore};
use intergrid_gateway::config::{AccountsConfig, LrmsConfig, LrmsKind, LrmsLimits};
use intergrid_gateway::laws::{Laws, Parent};
use intergrid_gateway::outputs::OutputStore;
use intergrid_proto::link::{Hop, Kind, WantValue};
use intergrid_proto::{BlobHash, JobSpec, Phase, ReasonKind, Refusal, SiteId, TaskSet};

use crate::hand::files::WITHDRAWN;
use crate::limits::{SUBMISSIONS_AT_ONCE_MAX, VERDICT_WAIT_MS};
use crate::log::Log;
use crate::lrms::How;
use crate::{LrmsPool, Parts};
use local::Local;

struct Alone;

impl Above for Alone {
    fn need_blob(&self, _: BlobHash) -> BoxFuture<'static, Result<(), Refusal>> {
        std::future::ready(Err(Refusal::invalid("nobody is above"))).boxed()
    }

    fn counts(&self, _: SiteId, _: u64, _: u64, _: u32) -> BoxFuture<'static, Result<Option<Vec<String>>, Refusal>> {
        std::future::ready(Ok(Some(Vec::new()))).boxed()
    }
}

fn me() -> Hop {
    Hop { site: SiteId([7; 16]), name: "campus".into(), kind: Kind::Gateway }
}

fn config(dir: &Path) -> LrmsConfig {
    LrmsConfig {
        kind: LrmsKind::Slurm,
        queues: vec!["batch".into()],
        piloted: Vec::new(),
        directory: dir.canonicalize().unwrap().join("shared").to_str().unwrap().to_string(),
        commands: None,
        conf: None,
        records: None,
        accounting: false,
        parallel_environment: None,
        memory: None,
        gpu_complex: None,
        accounts: AccountsConfig::Own,
        limits: LrmsLimits::default(),
    }
}

fn pool(dir: &Path, local: &Local, change: impl FnOnce(&mut LrmsConfig)) -> Arc<LrmsPool> {
    let (dir, mut config) = (dir.canonicalize().unwrap(), config(dir));
    change(&mut config);
    let parts = Parts {
        lrms: Arc::new(local.clone()),
        config,
        site: me().site,
        state: dir.join("state"),
        program: "grid".into(),
        blobs: BlobStore::open(dir.join("blobs"), BlobLimits { blobs_bytes_max: 1 << 30, free_min_bytes: 0 }).unwrap(),
        outputs: OutputStore::open(dir.join("outputs"), 0).unwrap(),
        above: Arc::new(Alone),
    };
    LrmsPool::open(parts).unwrap()
}

const PATIENCE: Duration = Duration::from_secs(40);

async fn attached(pool: Arc<LrmsPool>) -> (Parent, SiteId) {
    let mut p = Parent::start(pool, me());
    p.until("a share", PATIENCE, |p| p.children.values().any(|c| c.advert.as_ref().is_some_and(|a| !a.shares.is_empty()))).await.unwrap();
    let child = *p.children.keys().next().unwrap();
    (p, child)
}

/// A job of so many tasks, the first of which waits in the LRMS, held there: the job and its placement.
async fn one_waits(dir: &Path, local: &Local, tasks: u32, change: impl FnOnce(&mut LrmsConfig)) -> (Parent, SiteId, u64, u64) {
    local.wrong(|w| w.hold = true);
    let (mut p, child) = attached(pool(dir, local, change)).await;
    let job = p.job(counting(dir, "exit 0"), tasks);
    let n = p.place(child, "batch", job, TaskSet::one(0));
    eventually(&mut p, || local.pending() == 1).await;
    (p, child, job, n)
}

/// A job that appends a line to a file for each start, and exits with this code.
fn counting(dir: &Path, code: &str) -> JobSpec {
    let file = dir.canonicalize().unwrap().join("starts");
    JobSpec::new(["/bin/sh".to_string(), "-c".into(), format!("echo {{i}} >> {}; {code}", file.display())])
}

fn starts(dir: &Path) -> Vec<u32> {
    let mut all: Vec<u32> = std::fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().map(|l| l.parse().unwrap()).collect();
    all.sort();
    all
}

async fn over(p: &mut Parent, n: u64) {
    p.until("all to end", PATIENCE, |p| p.placements[&n].alive.is_empty()).await.unwrap();
}

/// What the parent does not hear of.
async fn eventually(p: &mut Parent, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE);
        p.settle(Duration::from_millis(10)).await.unwrap();
    }
}

fn phases(p: &Parent, n: u64) -> Vec<(String, Phase, Option<ReasonKind>)> {
    p.placements[&n].ended.iter().map(|(t, e)| (t.to_string(), e.phase, e.reason.as_ref().map(|r| r.kind))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn obeys_the_laws() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let pool = pool(dir.path(), &local, |c| c.limits.waiting_max = Some(64));
    let laws = Laws::of(pool, me()).with(|o| (o.array_tasks, o.patience, o.quiet) = (200, PATIENCE, Duration::from_millis(1_500)));
    laws.run().await.unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_and_a_double_start_run_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    local.wrong(|w| (w.lose_answers, w.twice) = (1, true));
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    let job = p.job(counting(dir.path(), "exit 0"), 5);
    let n = p.place(child, "batch", job, TaskSet::range(0..5));
    over(&mut p, n).await;
    assert_eq!((vec![0, 1, 2, 3, 4], 1), (starts(dir.path()), local.submissions()));
    assert!(phases(&p, n).iter().all(|(_, phase, _)| *phase == Phase::Done), "{:?}", p.placements[&n]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_lrms_does_not_take_goes_back_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    local.wrong(|w| w.refuse = 1);
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    let mut kinds = Vec::new();
    for lost in [0, 1] {
        local.wrong(|w| w.lose_submissions = lost);
        let job = p.job(counting(dir.path(), "exit 0"), 3);
        let n = p.place(child, "batch", job, TaskSet::range(0..3));
        over(&mut p, n).await;
        let placement = &p.placements[&n];
        assert!(placement.ended.is_empty() && !placement.returned.is_empty(), "{placement:?}");
        kinds.push(placement.returned[0].1.kind);
    }
    assert_eq!((vec![ReasonKind::AllBusy, ReasonKind::StartFailed], Vec::<u32>::new()), (kinds, starts(dir.path())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_the_lrms_can_be_given_back_held_and_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    local.wrong(|w| w.hold = true);
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    let job = p.job(counting(dir.path(), "exit 0"), 4);
    let n = p.place(child, "batch", job, TaskSet::range(0..4));
    let pending = async || {
        while local.pending() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, pending()).await.unwrap();
    p.want(child, job, WantValue::Return, &TaskSet::one(0));
    p.want(child, job, WantValue::Cancel, &TaskSet::one(1));
    p.want(child, job, WantValue::Hold, &TaskSet::one(2));
    p.until("what is not wanted to go", PATIENCE, |p| p.placements[&n].alive == TaskSet::range(2..4)).await.unwrap();
    while local.pending() > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    local.wrong(|w| w.hold = false);
    p.until("the one that is wanted to end", PATIENCE, |p| p.placements[&n].alive == TaskSet::one(2)).await.unwrap();
    p.want(child, job, WantValue::Run, &TaskSet::one(2));
    over(&mut p, n).await;
    assert_eq!(vec![2, 3], starts(dir.path()));
    assert_eq!(ReasonKind::AskedBack, p.placements[&n].returned[0].1.kind);
    assert_eq!(Phase::Cancelled, phases(&p, n)[0].1);
}

/// Its directory and claims are gone when its turn comes: made anew, nothing would keep it from starting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_back_while_it_waits_to_be_submitted_is_not_submitted() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(16);
    local.wrong(|w| w.slow_ms = 3_000);
    let (mut p, child) = attached(pool(dir.path(), &local, |c| c.limits.waiting_max = Some(64))).await;
    // Each of another kind: none waits for another.
    let mut kinds = (1..).map(|minutes| {
        let mut spec = counting(dir.path(), "exit 0");
        spec.time_limit_ms = Some(60_000 * minutes);
        spec
    });
    let ahead: Vec<u64> = kinds
        .by_ref()
        .take(SUBMISSIONS_AT_ONCE_MAX)
        .map(|spec| {
            let job = p.job(spec, 1);
            p.place(child, "batch", job, TaskSet::one(0))
        })
        .collect();
    eventually(&mut p, || local.submissions() == SUBMISSIONS_AT_ONCE_MAX as u32).await;
    let job = p.job(kinds.next().unwrap(), 1);
    let last = p.place(child, "batch", job, TaskSet::one(0));
    p.settle(Duration::from_millis(500)).await.unwrap();
    p.want(child, job, WantValue::Return, &TaskSet::one(0));
    p.until("it to come back", PATIENCE, |p| !p.placements[&last].returned.is_empty()).await.unwrap();
    for n in ahead {
        over(&mut p, n).await;
    }
    let is_over = |log: &str, begun: &str| log.contains(&format!("{{\"over\":\"{}\"", begun.split('"').next().unwrap()));
    let log = || std::fs::read_to_string(dir.path().join("state/submissions")).unwrap();
    eventually(&mut p, || log().split("\"tag\":\"").skip(1).all(|begun| is_over(&log(), begun))).await;
    assert_eq!((SUBMISSIONS_AT_ONCE_MAX, SUBMISSIONS_AT_ONCE_MAX), (local.submissions() as usize, starts(dir.path()).len()));
    let (_, open) = Log::open(&dir.path().join("state/submissions")).unwrap();
    assert!(open.is_empty(), "{open:?}");
}

/// A job of its own, whose tasks count themselves as this; its number, and its placement's.
fn place_separate(p: &mut Parent, child: SiteId, dir: &Path, counted: &str, tasks: u32) -> (u64, u64) {
    let mut spec = counting(dir, "exit 0");
    spec.argv[2] = spec.argv[2].replace("{i}", counted);
    let job = p.job(spec, tasks);
    (job, p.place(child, "batch", job, TaskSet::range(0..tasks)))
}

/// They come while the first is on its way. Their answers are lost, and each script is started twice; one is taken back alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn separate_jobs_that_wait_at_the_same_time_go_down_together() {
    const JOBS: u32 = 20;
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(32);
    local.wrong(|w| (w.slow_ms, w.lose_answers, w.twice, w.hold) = (3_000, 2, true, true));
    let (mut p, child) = attached(pool(dir.path(), &local, |c| c.limits.waiting_max = Some(64))).await;
    let place = |p: &mut Parent, n: u32| place_separate(p, child, dir.path(), &format!("$((10 * {n} + {{i}}))"), 2);
    let mut all = vec![place(&mut p, 0)];
    eventually(&mut p, || local.submissions() == 1).await;
    all.extend((1..JOBS).map(|n| place(&mut p, n)));
    let (job, alone) = all[7];
    p.settle(Duration::from_millis(500)).await.unwrap();
    p.want(child, job, WantValue::Return, &TaskSet::one(1));
    p.until("it to come back", PATIENCE, |p| !p.placements[&alone].returned.is_empty()).await.unwrap();
    eventually(&mut p, || local.pending() >= 2 * JOBS as usize - 1).await;
    local.wrong(|w| w.hold = false);
    for (_, n) in &all {
        over(&mut p, *n).await;
    }
    let expected: Vec<u32> = (0..JOBS).flat_map(|n| [10 * n, 10 * n + 1]).filter(|task| *task != 71).collect();
    assert_eq!(expected, starts(dir.path()));
    assert!((2..=4).contains(&local.submissions()), "{} submissions of {JOBS} jobs", local.submissions());
    assert!(all.iter().flat_map(|(_, n)| phases(&p, *n)).all(|(_, phase, _)| phase == Phase::Done));
    let log = || std::fs::read_to_string(dir.path().join("state/submissions")).unwrap();
    eventually(&mut p, || log().matches("{\"over\"").count() == log().matches("{\"begun\"").count()).await;
}

/// Its bound is lowered after it has been asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_become_too_many_at_once_goes_in_fewer() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(16);
    let (mut p, child) = attached(pool(dir.path(), &local, |c| c.limits.waiting_max = Some(64))).await;
    local.wrong(|w| w.tasks_max = 2);
    let job = p.job(counting(dir.path(), "exit 0"), 5);
    let n = p.place(child, "batch", job, TaskSet::range(0..5));
    over(&mut p, n).await;
    assert_eq!((ReasonKind::AllBusy, 1, 0), (p.placements[&n].returned[0].1.kind, local.submissions(), starts(dir.path()).len()));
    let (_, n) = place_separate(&mut p, child, dir.path(), "{i}", 5);
    over(&mut p, n).await;
    assert_eq!((vec![0, 1, 2, 3, 4], 4), (starts(dir.path()), local.submissions()));
    // Where what it says does not help, separate ones go by themselves, and an array never.
    local.wrong(|w| (w.slow_ms, w.single) = (2_000, true));
    let place = |p: &mut Parent, n: u32| place_separate(p, child, dir.path(), &n.to_string(), 1).1;
    let first = place(&mut p, 10);
    eventually(&mut p, || local.submissions() == 5).await;
    let two = [11, 12].map(|n| place(&mut p, n));
    for n in [first, two[0], two[1]] {
        over(&mut p, n).await;
    }
    assert_eq!([ReasonKind::AllBusy; 2], two.map(|n| p.placements[&n].returned[0].1.kind));
    let again = [11, 12].map(|n| place(&mut p, n));
    for n in again {
        over(&mut p, n).await;
    }
    assert_eq!(vec![0, 1, 2, 3, 4, 10, 11, 12], starts(dir.path()));
    let (_, n) = place_separate(&mut p, child, dir.path(), "{i}", 2);
    over(&mut p, n).await;
    assert_eq!(ReasonKind::NoFit, p.placements[&n].returned[0].1.kind);
}

/// Nothing is left of the submission that was open for more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_one_that_was_taken_back_has_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    local.wrong(|w| w.slow_ms = 3_000);
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    let place = |p: &mut Parent, n: u32| place_separate(p, child, dir.path(), &n.to_string(), 1);
    let (_, first) = place(&mut p, 1);
    eventually(&mut p, || local.submissions() == 1).await;
    let (job, second) = place(&mut p, 2);
    p.settle(Duration::from_millis(300)).await.unwrap();
    p.want(child, job, WantValue::Return, &TaskSet::one(0));
    p.until("it to come back", PATIENCE, |p| !p.placements[&second].returned.is_empty()).await.unwrap();
    p.settle(Duration::from_millis(500)).await.unwrap();
    let (_, third) = place(&mut p, 3);
    for n in [first, third] {
        over(&mut p, n).await;
    }
    assert_eq!((vec![1, 3], 2), (starts(dir.path()), local.submissions()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_end_is_told_as_that() {
    for (how, kind) in [(How::Removed, ReasonKind::ExitSignal), (How::MachineLost, ReasonKind::ExitUnknown), (How::TimeLimit, ReasonKind::TimeLimit)]
    {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(8);
        let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
        let job = p.job(counting(dir.path(), "exec sleep 60"), 1);
        let n = p.place(child, "batch", job, TaskSet::one(0));
        p.until("it to run", PATIENCE, |p| !p.placements[&n].ran.is_empty()).await.unwrap();
        local.end_all(how);
        over(&mut p, n).await;
        assert_eq!(vec![("0".to_string(), Phase::Failed, Some(kind))], phases(&p, n));
        assert_eq!(kind == ReasonKind::ExitUnknown, p.placements[&n].ended[0].1.lost);
    }
}

/// Whether the LRMS says so, or only forgets it, or has another's job under its number: it is known that it has not started, and nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_removes_before_it_starts_goes_back() {
    let gone = "it is gone from local without a record";
    for (forgetful, renumbered, words) in
        [(false, false, "somebody removed it from local before it started"), (true, false, gone), (false, true, gone)]
    {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(8);
        local.wrong(|w| (w.hold, w.forgetful, w.renumbered) = (true, forgetful, renumbered));
        let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
        let job = p.job(counting(dir.path(), "exit 0"), 2);
        let n = p.place(child, "batch", job, TaskSet::range(0..2));
        eventually(&mut p, || local.pending() == 2).await;
        local.end_all(How::Removed);
        over(&mut p, n).await;
        let placement = &p.placements[&n];
        assert!(placement.ended.is_empty() && starts(dir.path()).is_empty(), "{placement:?}");
        let (_, why) = &placement.returned[0];
        assert!(why.kind == ReasonKind::StartFailed && why.text.contains(words), "{why:?}");
    }
}

/// A disk that was full when it was written, by a script of an older gateway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_record_that_can_t_be_read_leaves_nothing_running() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    let cut = "d=${GRID_TASK_DIR%/1/w}; printf 'v1\\ncode' >${d%/*}/run/${d##*/}.1.x; kill -9 0";
    let job = p.job(counting(dir.path(), cut), 1);
    let n = p.place(child, "batch", job, TaskSet::one(0));
    over(&mut p, n).await;
    let (phase, exit) = p.placements[&n].ended.first().map(|(_, e)| (e.phase, e.exit.clone())).unwrap();
    assert_eq!((Phase::Failed, 1), (phase, starts(dir.path()).len()), "{exit:?}");
}

/// With cgroups the kernel kills the payload and leaves the script: its record says signal 9, and only the LRMS knows why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_killed_for_memory_and_who_otherwise_is_told() {
    for (memory, kind) in [(true, ReasonKind::MemoryLimit), (false, ReasonKind::ExitSignal)] {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(8);
        local.wrong(|w| w.memory = memory);
        let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
        let job = p.job(counting(dir.path(), "kill -9 $$"), 1);
        let n = p.place(child, "batch", job, TaskSet::one(0));
        let began = std::time::Instant::now();
        over(&mut p, n).await;
        assert_eq!(vec![("0".to_string(), Phase::Failed, Some(kind))], phases(&p, n));
        assert!(began.elapsed() < Duration::from_millis(VERDICT_WAIT_MS), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_s_limits_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    local.wrong(|w| w.hold = true);
    let change = |c: &mut LrmsConfig| (c.limits.tasks_per_principal_max, c.limits.time_max_ms) = (Some(2), Some(60_000));
    let (mut p, child) = attached(pool(dir.path(), &local, change)).await;
    let job = p.job(counting(dir.path(), "exit 0"), 3);
    let n = p.place(child, "batch", job, TaskSet::range(0..3));
    p.until("one to come back", PATIENCE, |p| !p.placements[&n].returned.is_empty()).await.unwrap();
    assert_eq!((1, ReasonKind::OverLimit), (p.placements[&n].returned[0].0.len(), p.placements[&n].returned[0].1.kind));
    let mut long = counting(dir.path(), "exit 0");
    long.time_limit_ms = Some(61_000);
    let job = p.job(long, 1);
    let m = p.place(child, "batch", job, TaskSet::one(0));
    over(&mut p, m).await;
    assert!(p.placements[&m].returned[0].1.text.contains("allows"), "{:?}", p.placements[&m]);
    local.wrong(|w| w.hold = false);
    over(&mut p, n).await;
    assert_eq!(2, starts(dir.path()).len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_site_s_limits_never_let_run_is_told_with_both_numbers() {
    type Change = fn(&mut LrmsLimits);
    let cases: [(Change, ReasonKind, &str); 3] = [
        (|l| l.ceiling_percent = 30, ReasonKind::NoFit, "needs 3 slots in all, batch gives a task at most 2; its site lets 2 of its 8 slots"),
        (|l| l.slots_max = Some(2), ReasonKind::NoFit, "needs 3 slots in all, batch gives a task at most 2; its site lets 2 slots"),
        (|l| l.slots_per_principal_max = Some(2), ReasonKind::OverLimit, "it needs 3, and this site allows 2 slots of one principal"),
    ];
    for (change, kind, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (mut p, child) = attached(pool(dir.path(), &Local::new(8), |c| change(&mut c.limits))).await;
        for (slots, runs) in [(3, false), (2, true)] {
            let mut spec = counting(dir.path(), "exit 0");
            spec.shape.slots = slots;
            let job = p.job(spec, 1);
            let n = p.place(child, "batch", job, TaskSet::one(0));
            over(&mut p, n).await;
            let why = p.placements[&n].returned.first().map(|(_, why)| (why.kind, why.text.contains(words)));
            assert_eq!((!runs).then_some((kind, true)), why, "{:?}", p.placements[&n]);
        }
        assert_eq!(vec![0], starts(dir.path()));
    }
}

/// Its lists change while a task waits there, and are known when the next one comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_queue_s_access_lists_refuse_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, child, job, n) = one_waits(dir.path(), &local, 2, |_| {}).await;
    local.wrong(|w| w.denies = true);
    over(&mut p, n).await;
    local.wrong(|w| w.hold = false);
    let m = p.place(child, "batch", job, TaskSet::one(1));
    over(&mut p, m).await;
    for number in [n, m] {
        let why = p.placements[&number].returned.first().map(|(_, why)| (why.kind, why.text.as_str()));
        let words = "its account may not use batch: me is in none of its user_lists: physics";
        assert_eq!(Some((ReasonKind::NotAuthorised, words)), why, "{:?}", p.placements[&number]);
    }
    assert_eq!((1, 0), (local.submissions(), starts(dir.path()).len()));
}

/// The controller is away for longer than a cancel is tried, or the submission's number is not known when its tasks are taken back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_back_leaves_nothing_in_the_queue() {
    for lost in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::new(8);
        local.wrong(|w| (w.hold, w.deaf, w.silent, w.lose_answers) = (true, !lost, false, u32::from(lost)));
        let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
        local.wrong(|w| w.silent = lost);
        let job = p.job(counting(dir.path(), "exit 0"), 2);
        let n = p.place(child, "batch", job, TaskSet::range(0..2));
        eventually(&mut p, || local.pending() == 2).await;
        p.settle(Duration::from_millis(500)).await.unwrap();
        p.want(child, job, WantValue::Return, &TaskSet::range(0..2));
        over(&mut p, n).await;
        p.settle(Duration::from_secs(if lost { 1 } else { 11 })).await.unwrap();
        assert_eq!(2, local.pending());
        local.wrong(|w| (w.deaf, w.silent) = (false, false));
        eventually(&mut p, || local.pending() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_away_hold_up_no_look_at_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, _, _, n) = one_waits(dir.path(), &local, 1, |c| c.limits.wait_max_ms = Some(1_000)).await;
    let (run, away) = (dir.path().join("shared/run"), dir.path().join("shared/away"));
    std::fs::rename(&run, &away).unwrap();
    // It has waited too long by now, and can't be taken back.
    p.settle(Duration::from_secs(3)).await.unwrap();
    let before = local.surveys();
    p.settle(Duration::from_secs(5)).await.unwrap();
    assert!(local.surveys() >= before + 3 && !p.placements[&n].alive.is_empty(), "{} looks, {:?}", local.surveys() - before, p.placements[&n]);
    std::fs::rename(&away, &run).unwrap();
    over(&mut p, n).await;
    assert_eq!(ReasonKind::AllBusy, p.placements[&n].returned[0].1.kind);
}

/// A gateway that is killed between its claim and the end that its core writes down leaves the claim.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_an_earlier_process_of_ours_is_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, _, _, n) = one_waits(dir.path(), &local, 1, |_| {}).await;
    let log = std::fs::read_to_string(dir.path().join("state/submissions")).unwrap();
    let tag = log.split_once("\"tag\":\"").and_then(|(_, rest)| rest.split('"').next()).unwrap();
    std::fs::write(dir.path().join(format!("shared/run/{tag}.1.c")), WITHDRAWN).unwrap();
    over(&mut p, n).await;
    assert!(p.placements[&n].ran.is_empty() && p.placements[&n].returned[0].1.kind == ReasonKind::StartFailed, "{:?}", p.placements[&n]);
    eventually(&mut p, || local.pending() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_submission_has_left_is_removed_when_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    let job = p.job(counting(dir.path(), "d=${GRID_TASK_DIR%/1/w}; mkdir ${d%/*}/run/${d##*/}.1.e"), 1);
    let n = p.place(child, "batch", job, TaskSet::one(0));
    over(&mut p, n).await;
    p.settle(Duration::from_secs(1)).await.unwrap();
    let run = dir.path().join("shared/run");
    let is_told = || std::fs::read_to_string(dir.path().join("state/submissions")).unwrap().contains("\"over\"");
    let left: Vec<_> = std::fs::read_dir(&run).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!is_told() && left.len() == 1, "{left:?}");
    std::fs::remove_dir(&left[0]).unwrap();
    eventually(&mut p, is_told).await;
}

/// The gateway's process ends and comes back: another runtime over the same state. The parent that it comes back to has a new store, so that what runs, runs
/// on, and what waits in the LRMS is taken back.
#[test]
fn a_restart_finds_what_runs_what_waits_and_what_ended_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(2);
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = runtime();
    first.block_on(async {
        let (mut p, child) = attached(pool(dir.path(), &local, |c| c.limits.waiting_max = Some(8))).await;
        let job = p.job(counting(dir.path(), "sleep 2"), 9);
        // Of several placements, which go down together.
        let placed = [0..3, 3..6, 6..9].map(|tasks| p.place(child, "batch", job, TaskSet::range(tasks)));
        p.until("some to run", PATIENCE, |p| placed.iter().any(|n| !p.placements[n].ran.is_empty())).await.unwrap();
    });
    first.shutdown_background();
    let pending = local.pending();
    assert!(pending >= 5, "{pending}");
    runtime().block_on(async {
        let (mut p, _) = attached(pool(dir.path(), &local, |c| c.limits.waiting_max = Some(8))).await;
        p.settle(Duration::from_secs(1)).await.unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        while local.pending() > 0 && std::time::Instant::now() < deadline {
            p.settle(Duration::from_millis(50)).await.unwrap();
        }
        p.settle(Duration::from_secs(3)).await.unwrap();
    });
    let mut once = starts(dir.path());
    once.dedup();
    assert_eq!((once.clone(), 0), (starts(dir.path()), local.pending()));
    assert!((2..9).contains(&once.len()), "{once:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_lrms_loses_nothing_and_is_asked_at_most_once_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let local = Local::new(8);
    let (mut p, child) = attached(pool(dir.path(), &local, |_| {})).await;
    local.wrong(|w| (w.silent, w.forgetful) = (true, true));
    let (before, began) = (local.queries(), std::time::Instant::now());
    let job = p.job(counting(dir.path(), "exit {i}"), 3);
    let n = p.place(child, "batch", job, TaskSet::range(0..3));
    // Exit records are enough.
    over(&mut p, n).await;
    p.settle(Duration::from_secs(3)).await.unwrap();
    let asked = f64::from(local.queries() - before);
    assert!(asked <= 1.6 * began.elapsed().as_secs_f64() + 2.0, "{asked} queries in {:?}", began.elapsed());
    let codes: Vec<u32> = p.placements[&n].ended.iter().flat_map(|(_, e)| e.exit.clone()).collect();
    assert_eq!(
        (3, vec![0, 1, 2]),
        (codes.len(), {
            let mut c = codes;
            c.sort();
            c
        })
    );
}
