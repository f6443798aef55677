//! A child: a site that a broker dials, or an agent, that has work and says what it likes about it.

use std::time::Duration;

use intergrid_gateway::daemon::Running;
use intergrid_proto::convert::tasks_in;
use intergrid_proto::link::Kind;
use intergrid_proto::net::CertRole;
use intergrid_proto::pb::event;
use intergrid_proto::pb::up::What;
use intergrid_proto::{JobSpec, Phase, pb};
use intergrid_tests::client::{Client, count};
use intergrid_tests::grid::{Grid, at, machines};
use intergrid_tests::{logs, until};

use super::side::*;

/// Memory of the hostile child's machines.
const SMALL: u64 = 1 << 20;

/// Honest work: too large for the hostile child's machines.
fn honest() -> JobSpec {
    let mut spec = quick();
    spec.shape.memory_bytes = 2 * SMALL;
    spec
}

/// Runs for ever, on the hostile child only: the honest one has fewer slots to a machine.
fn bait() -> JobSpec {
    let mut spec = JobSpec::new(["sleep", "3600"]);
    spec.shape.slots = 3;
    spec
}

struct World {
    root: Running,
    _good: Running,
    evil: Evil,
    ann: Client,
}

/// A broker over an honest gateway of four slots and one that is acted out.
async fn world(grid: &Grid, name: &str, answers: Answers) -> World {
    let (good, bad) = (format!("{name}-good"), format!("{name}-evil"));
    let evil = Evil::start(grid, &bad, name, answers).await;
    let good = grid.gateway(&good, &[name], machines(&good, 2, 2)).await;
    let root = grid.broker(name, &[], &[at(&good), (bad.clone(), Some(evil.endpoint.clone()))]).await;
    let ann = grid.user(&root, "ann").await;
    until("the honest child", async || match ann.hosts().await.unwrap() {
        h if h.slots_total >= 4 => Ok(()),
        h => Err(h),
    })
    .await;
    World { root, _good: good, evil, ann }
}

impl World {
    /// A link on which hello and an offer have been said.
    async fn child(&mut self) -> Child {
        let child = self.evil.session().await;
        assert!(child.greets().await);
        assert!(child.offers(vec![child.share("m", SMALL)]).await);
        child
    }

    /// And a job of ann's that it has got: her id of it, and the placement.
    async fn with_work(&mut self, tasks: u32) -> (Child, String, pb::Place) {
        let mut child = self.child().await;
        let (job, _) = self.ann.submit("bait", &bait(), tasks).await.unwrap();
        let place = child.placed().await;
        (child, job, place)
    }

    async fn history_rows(&self, job: &str) -> usize {
        self.ann.history(job).await.len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_out_of_order_ends_the_link() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-order", Answers::default()).await;
    let beside = beside("a child out of order", &w.ann, &honest());
    let advert = || What::Advert(pb::Advert::default());
    for k in 0..7 {
        let mut child = w.evil.session().await;
        let me = hello(&child.me);
        let said = match k {
            0 => vec![advert()],
            1 => vec![What::Hello(me.clone()), What::Hello(me)],
            2 => vec![What::Hello(pb::Hello { site: vec![1; 16], ..me })],
            3 => vec![What::Hello(pb::Hello { name: "c-order-good".into(), ..me })],
            4 => vec![What::Hello(pb::Hello { kind: pb::Kind::Agent.into(), ..me })],
            5 => vec![What::Hello(pb::Hello { protocol: 99, ..me })],
            _ => vec![What::Hello(me), What::Events(pb::Events { incarnation: 1, first: 0, events: Vec::new() })],
        };
        for m in said {
            child.says(m).await;
        }
        child.ends().await;
    }
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_offers_are_cut_or_refused() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-offers", Answers::default()).await;
    let beside = beside("absurd offers", &w.ann, &honest());
    let most = u64::MAX;
    for k in 0..9 {
        let mut child = w.evil.session().await;
        child.greets().await;
        let own = child.share("m", SMALL);
        let absurd = pb::Share {
            machine_slots: u32::MAX,
            slots_total: most,
            machines: u32::MAX,
            slots_free: most,
            largest_free: u32::MAX,
            window: most,
            credit_ms: most,
            waiting: most,
            price_micro_per_slot_hour: most,
            age_ms: most,
            fit_version: most,
            machine_memory_bytes: 1,
            not_rented: "\x1b[2J".repeat(1_000),
            ..own.clone()
        };
        let refused = match k {
            0 => vec![own; 65],
            1 => vec![pb::Share { key: String::new(), ..own }],
            2 => vec![pb::Share { key: "k".repeat(300), ..own }],
            3 => vec![pb::Share { key: "a\x1b[2Jb/c".into(), ..own }],
            4 => vec![pb::Share { path: vec![vec![3; 16]; 100_000], ..own }],
            5 => vec![pb::Share { path: vec![vec![3; 15]], ..own }],
            6 => vec![pb::Share { origin: Vec::new(), ..own }],
            7 => vec![pb::Share { architecture: "x\n".into(), ..own }],
            _ => {
                // All that can be said at once, of itself, of the broker, and of the honest child's own share.
                let names = (0..60).map(|n| pb::Share { key: format!("{}/{n}", child.me.name), ..absurd.clone() });
                let theirs = pb::Share { key: "c-offers-good/x".into(), ..absurd.clone() };
                let looped = pb::Share { path: vec![w.root.me.site.0.to_vec()], ..absurd.clone() };
                for _ in 0..50 {
                    child.offers(names.clone().chain([theirs.clone(), looped.clone()]).collect()).await;
                }
                let hops = |n: usize| pb::Hop { site: (n as u128).to_be_bytes().to_vec(), name: format!("h{n}"), kind: 2 };
                child.says(What::Advert(pb::Advert { below: (0..1_024).map(hops).collect(), version: most, ..Default::default() })).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                vec![own; 65]
            }
        };
        child.offers(refused).await;
        child.ends().await;
    }
    let hosts = w.ann.hosts().await.unwrap();
    assert!(hosts.below.iter().any(|h| h.site.as_ref().unwrap().name == "c-offers-good" && h.unreachable.is_empty()), "{hosts:?}");
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_shares_do_not_pile_up() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-names", Answers::default()).await;
    let child = w.child().await;
    let beside = beside("names of shares", &w.ann, &honest());
    for round in 0..2_000 {
        let share = |n| child.share(&format!("{round}-{n}-{}", "x".repeat(100)), SMALL);
        if !child.offers((0..64).map(share).collect()).await {
            break;
        }
    }
    beside.served().await;
    let names = w.root.engine.read(|core| core.state().names.len()).await.unwrap();
    assert!(names <= 16 * 1_024, "{names} names are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_what_it_never_had_change_nothing() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-events", Answers::default()).await;
    let kept = w.ann.run("kept", &honest(), 4).await;
    let (running, _) = w.ann.submit("running", &{ JobSpec { shape: honest().shape, ..JobSpec::new(["sleep", "3600"]) } }, 2).await.unwrap();
    until("it runs", async || match w.ann.show(&running).await.unwrap() {
        v if count(&v, Phase::Running) == 2 => Ok(()),
        v => Err(v.counts),
    })
    .await;
    let (before, rows) = (w.ann.show(&kept).await.unwrap(), w.history_rows(&kept).await + w.history_rows(&running).await);
    let child = w.child().await;
    let beside = beside("events of others' work", &w.ann, &honest());
    let (mut first, all) = (1, || runs(vec![0, 4]));
    for number in (0..60).chain([u64::MAX]) {
        for job in [1, 2, 3, u64::MAX] {
            let stale = pb::Ended { stale: true, ..failed(vec![1]) };
            let lost = pb::Ended { lost: true, ..failed(vec![1025]) };
            let reason = Some(pb::Reason::default());
            let said = vec![
                event::What::Accepted(pb::Accepted {}),
                event::What::Ended(failed(vec![9])),
                event::What::Ended(stale),
                event::What::Ended(lost),
                event::What::Returned(pb::Returned { reason: reason.clone() }),
                event::What::Held(pb::Held { reason }),
                event::What::Released(pb::Released {}),
                event::What::WantStored(pb::WantStored { version: u64::MAX }),
            ];
            let list: Vec<_> = said.into_iter().map(|e| event(number, job, all(), e)).collect();
            let n = list.len() as u64;
            assert!(child.says(events(first, list)).await);
            first += n;
            let hint = pb::Hint { number, job, tasks: all(), phase: Phase::Suspended as i32 };
            assert!(child.says(What::Hints(pb::Hints { hints: vec![hint] })).await);
        }
    }
    beside.served().await;
    let after = w.ann.show(&kept).await.unwrap();
    assert_eq!((before.counts, before.ranges), (after.counts, after.ranges));
    assert_eq!(2, count(&w.ann.show(&running).await.unwrap(), Phase::Running));
    assert_eq!(rows, w.history_rows(&kept).await + w.history_rows(&running).await, "others' history is not its to write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_that_jump_are_not_followed() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-jumps", Answers::default()).await;
    let beside = beside("sequences that jump", &w.ann, &honest());
    let child = w.child().await;
    let last = intergrid_proto::limits::SEQUENCE_MAX;
    for n in 0..20_000 {
        if !child.says(events(last - n, Vec::new())).await {
            break;
        }
    }
    child.says(What::Resync(pb::Resync { incarnation: 5, sequence: last, last: true, ..Default::default() })).await;
    child.says(events(last, vec![event(1, 1, runs(vec![0, 1]), event::What::Accepted(pb::Accepted {})); 100])).await;
    child.says(events(1, Vec::new())).await;
    child.says(What::Events(pb::Events { incarnation: u64::MAX, first: 1, events: Vec::new() })).await;
    beside.served().await;
    let said = logs::lines(&["skipped events"]).len();
    assert!(said < 100, "{said} lines of log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_state_without_end_is_not_kept() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-resync", Answers::default()).await;
    let (child, _, place) = w.with_work(4).await;
    let beside = beside("a full state without end", &w.ann, &honest());
    let end = std::time::Instant::now() + Duration::from_secs(20);
    for round in 0..300u64 {
        let range = |n: u64| pb::ResyncRange { number: place.number + n % 2, job: place.job, tasks: runs(vec![n as u32, 1]), phase: 3, ended: None };
        let ranges = (0..20_000).map(|n| range(20_000 * (round % 100) + 19_999 - n)).collect();
        if !child.says(What::Resync(pb::Resync { incarnation: 5, sequence: 0, ranges, last: false })).await || std::time::Instant::now() > end {
            break;
        }
    }
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_task_sets_do_not_hold_up_others() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-sets", Answers::default()).await;
    let (child, job, place) = w.with_work(4_000_000).await;
    // Every chunk of the array gets cells of its own: what is looked at one by one.
    let spread = pb::SetWantRequest {
        job: intergrid_tests::client::by_id(&job),
        value: pb::WantValue::WantCancel.into(),
        tasks: runs([vec![100, 1], [4_095, 1].repeat(975)].concat()),
    };
    intergrid_tests::client::answer(w.ann.grid.clone().set_want(spread)).await.unwrap();
    let beside = beside("huge task sets", &w.ann, &honest());
    let (mut first, end) = (1, std::time::Instant::now() + Duration::from_secs(10));
    while std::time::Instant::now() < end {
        let whole = || runs(vec![0, 4_000_000]);
        let list = vec![event(place.number, place.job, whole(), event::What::Released(pb::Released {})); 1_000];
        let hints = vec![pb::Hint { number: place.number, job: place.job, tasks: whole(), phase: Phase::Running as i32 }; 1_000];
        if !child.says(events(first, list)).await || !child.says(What::Hints(pb::Hints { hints })).await {
            break;
        }
        first += 1_000;
    }
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_to_and_fro_are_told_once() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-hints", Answers::default()).await;
    let (child, _, place) = w.with_work(4).await;
    let beside = beside("hints to and fro", &w.ann, &honest());
    for _ in 0..100 {
        let hint = |n: usize| pb::Hint { number: place.number, job: place.job, tasks: place.tasks.clone(), phase: 5 + (n % 2) as i32 };
        assert!(child.says(What::Hints(pb::Hints { hints: (0..20_000).map(hint).collect() })).await);
    }
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_not_written_without_limit() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-stale", Answers::default()).await;
    let (child, job, place) = w.with_work(4).await;
    let beside = beside("stale ends", &w.ann, &honest());
    let mut first = 1;
    for _ in 0..200 {
        let stale = pb::Ended { stale: true, ..failed(vec![1]) };
        let list = vec![event(place.number, place.job, place.tasks.clone(), event::What::Ended(stale)); 250];
        assert!(child.says(events(first, list)).await);
        first += 250;
    }
    beside.served().await;
    let rows = w.history_rows(&job).await;
    assert!(rows < 20_000, "{rows} rows of 50,000 that were said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_always_comes_back_is_sent_ever_more_rarely() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-returns", Answers::default()).await;
    let beside = beside("returns", &w.ann, &honest());
    let (mut child, job, mut place) = w.with_work(1).await;
    let (mut first, mut n, end) = (1, 0u64, tokio::time::Instant::now() + Duration::from_secs(5));
    loop {
        // Asked back, it says; and its machines are always other ones, so that no pause is for them.
        let back = pb::Returned { reason: Some(pb::Reason { kind: 69, ..Default::default() }) };
        let share = pb::Share { fit_version: n, ..child.share(&format!("m{n}"), SMALL) };
        child.says(events(first, vec![event(place.number, place.job, place.tasks.clone(), event::What::Returned(back))])).await;
        child.offers(vec![share]).await;
        (first, n) = (first + 1, n + 1);
        match tokio::time::timeout_at(end, child.placed()).await {
            Ok(p) => place = p,
            Err(_) => break,
        }
    }
    beside.served().await;
    let rows = w.history_rows(&job).await;
    eprintln!("returned {n} times, {rows} rows");
    use intergrid_gateway::core::limits::{RETURNS_MAX, RETURNS_PER_S};
    assert!(n < RETURNS_MAX + 6 * RETURNS_PER_S, "placed {n} times in five seconds on a child that takes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_is_always_lost_uses_up_its_attempts() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-lost", Answers::default()).await;
    let (mut child, job, mut place) = w.with_work(1).await;
    let mut n = 0;
    for first in 1..50 {
        // Lost, and no attempt was used, it says.
        let lost = pb::Ended { lost: true, attempts: 0, ..failed(vec![1025]) };
        child.says(events(first, vec![event(place.number, place.job, place.tasks.clone(), event::What::Ended(lost))])).await;
        n += 1;
        match tokio::time::timeout(Duration::from_secs(2), child.placed()).await {
            Ok(p) => place = p,
            Err(_) => break,
        }
    }
    assert!(n <= intergrid_proto::limits::ATTEMPTS_MAX, "{n} attempts");
    assert_eq!(1, count(&w.ann.show(&job).await.unwrap(), Phase::Held));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_that_is_none_is_unknown() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-exit", Answers::default()).await;
    let (child, job, place) = w.with_work(1).await;
    // Cut to 16 bits, this would be 0.
    child.says(events(1, vec![event(place.number, place.job, place.tasks.clone(), event::What::Ended(failed(vec![65_536])))])).await;
    let view = w.ann.ended(&job).await;
    assert_eq!(1, count(&view, Phase::Failed));
    let ranges = w.ann.show(&job).await.unwrap().ranges;
    assert_eq!(vec![1025], ranges[0].exit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_answers_of_itself_cannot_hide_the_others() {
    fn tower(n: usize) -> pb::Host {
        let site = Some(pb::Hop { site: vec![1; 16], name: "c-answers-good".into(), kind: 2 });
        pb::Host { site, version: "\x1b[2J".into(), below: if n > 0 { vec![tower(n - 1)] } else { Vec::new() }, ..Default::default() }
    }
    fn why(n: usize) -> pb::Explanation {
        let site = Some(pb::Hop { site: vec![1; 16], name: "someone else".into(), kind: 2 });
        pb::Explanation { site, unreachable: "\x1b]0;x\x07".into(), below: if n > 0 { vec![why(n - 1)] } else { Vec::new() }, ..Default::default() }
    }
    let grid = Grid::new();
    let mut host = tower(40);
    host.below = vec![pb::Host { version: "v".repeat(1_000), ..Default::default() }; 3_900];
    host.below.push(tower(40));
    let mut explanation = why(40);
    explanation.unreachable = "u".repeat(3_900_000);
    let mut w = world(&grid, "c-answers", Answers { host: Some(host), explanation: Some(explanation) }).await;
    let (_child, job, _) = w.with_work(1).await;
    let name = |h: &pb::Host| h.site.as_ref().unwrap().name.clone();
    let hosts = w.ann.hosts().await.unwrap();
    assert_eq!(["c-answers-evil", "c-answers-good"], *hosts.below.iter().map(name).collect::<Vec<_>>(), "each under its own name");
    assert!(hosts.below[1].unreachable.is_empty() && hosts.below[1].below.len() == 2, "{:?}", hosts.below[1]);
    fn clean(h: &pb::Host, depth: usize) {
        assert!(depth < 20 && !h.version.contains('\x1b'));
        h.below.iter().for_each(|b| clean(b, depth + 1));
    }
    clean(&hosts, 0);
    let why = w.ann.explain(&job).await.unwrap();
    assert_eq!(1, why.below.len());
    assert!(why.below[0].unreachable.len() < 10_000, "{}", why.below[0].unreachable.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_without_end_is_cut_where_it_should_end() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-content", Answers::default()).await;
    let (child, job, place) = w.with_work(1).await;
    child.says(events(1, vec![event(place.number, place.job, place.tasks.clone(), event::What::Ended(failed(vec![1])))])).await;
    w.ann.ended(&job).await;
    let request = pb::OutputRequest { job: intergrid_tests::client::by_id(&job), task: 0, name: "stdout".into() };
    let mut parts = match intergrid_tests::client::answer(w.ann.grid.clone().get_output(request)).await {
        Ok(parts) => parts,
        Err(refused) => return assert!(refused.message.contains("longer"), "{refused}"),
    };
    let mut bytes = 0;
    let refused = loop {
        match tokio::time::timeout(intergrid_tests::PATIENCE, parts.message()).await.expect("in time") {
            Ok(Some(part)) => bytes += part.data.len(),
            Ok(None) => panic!("it is taken for whole"),
            Err(s) => break s,
        }
    };
    assert!(bytes <= 1 << 20 && refused.message().contains("longer"), "{bytes} bytes; {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_never_reads_costs_a_bounded_queue() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-unread", Answers::default()).await;
    let (child, job, _) = w.with_work(4_000_000).await;
    let beside = beside("a child that never reads", &w.ann, &honest());
    let end = std::time::Instant::now() + Duration::from_secs(20);
    // Its user wishes this and that: each time all of the register goes down.
    for n in 0..600u32 {
        let value = if n % 2 == 0 { pb::WantValue::WantHold } else { pb::WantValue::WantRun };
        let wish = pb::SetWantRequest { job: intergrid_tests::client::by_id(&job), value: value.into(), tasks: fragments(60_000) };
        intergrid_tests::client::answer(w.ann.grid.clone().set_want(wish)).await.unwrap();
        if std::time::Instant::now() > end {
            break;
        }
    }
    drop(child);
    beside.served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_child_of_one_label_is_not_taken_for_the_first() {
    let grid = Grid::new();
    let mut w = world(&grid, "c-twin", Answers::default()).await;
    // An agent of the broker's own CA is no child of it, and no parent either.
    let agent = grid.caller(&w.root, CertRole::Agent, "c-twin-good").await;
    let refused = Child::attach(&agent, hop(w.root.me.site, "c-twin-good", Kind::Agent)).await;
    assert!(refused.is_err());
    let child = w.child().await;
    let range = pb::ResyncRange { number: 1, job: 1, tasks: runs(vec![0, 1]), phase: Phase::Running as i32, ended: None };
    child.says(What::Resync(pb::Resync { incarnation: 5, sequence: 1, ranges: vec![range; 1_000], last: true })).await;
    assert!(tasks_in(runs(vec![0, 1])).is_ok());
    w.ann.run("after", &honest(), 3).await;
}
