//! Seeds of the simulator. What it checks, and what not, is said in `intergrid_tests::sim`; a failure prints its seed, the commit and the shortest trace
//! found. More seeds: `tests/soak`.

use intergrid_tests::sim::{Failure, Options, first_failure, report, run};

/// Seeds of one run of the tests.
const SEEDS: u64 = 20_000;
/// And of those in which stores are lost and go back, too.
const RECOVERIES: u64 = 6_000;
/// And of those in which administrators and owners order.
const ORDERS: u64 = 1_000;
/// Pairs with one more hop.
const PAIRS: u64 = 1_000;

fn none(failed: Option<(u64, Failure)>, options: Options) {
    if let Some((seed, failure)) = failed {
        panic!("{}", report(seed, options, &failure));
    }
}

#[test]
fn no_seed_breaks_an_invariant() {
    let options = Options::default();
    none(first_failure(1, SEEDS, options, &|_, _| {}), options);
}

#[test]
fn no_seed_breaks_an_invariant_where_stores_are_lost() {
    let options = Options { recovery: true, ..Options::default() };
    none(first_failure(1, RECOVERIES, options, &|_, _| {}), options);
}

#[test]
fn no_seed_breaks_an_invariant_where_people_order() {
    let options = Options { orders: true, ..Options::default() };
    none(first_failure(1, ORDERS, options, &|_, _| {}), options);
}

/// What was found once. A seed names a run only as long as nothing is drawn differently: what each of these found is also a test by hand, in the core.
#[test]
fn seeds_that_once_failed() {
    let failed: &[(u64, &str)] = &[
        (9, "a machine replaced before it had accepted: a task that may start once started twice"),
        (38, "a placement that was lost on its way and then fenced stayed"),
        (86, "what a full state did not name was fenced, and never seen to stop"),
        (387, "demand was not passed on through a diamond"),
        (1009, "the first events of a site were skipped"),
        (2028, "a placement said before the hello hid an earlier one"),
        (4740, "a full state moved the cursor back"),
        (7071, "a second full state of a replaced machine gave back what the first one had taken"),
        (8664, "a window was divided into parts in which no task fits"),
        (8817, "a release that came with a placement released nothing that was held"),
        (9348, "a fenced placement that a replaced machine never saw stayed"),
        (23676, "a return that waited to be sent was skipped by a full state"),
        (15022, "a full state and a placement in one turn"),
    ];
    let options = Options::default();
    for (seed, what) in failed {
        assert_eq!(None, run(*seed, options).failure, "seed {seed}: {what}");
    }
    let failed: &[(u64, &str)] = &[
        (190, "a task in doubt that was found again stayed held above"),
        (284, "orphans that wait took the slots of what is known"),
        (570, "a copy that lacked only what it had acknowledged was not known to be old"),
        (697, "the first job of a new store got the ends of one that had its number"),
        (2795, "an end that was told again by a store that went back was counted twice"),
        (2419, "a task lost below did not say so after another's return"),
        (5084, "what both ends of a link had forgotten was started again, though a site below listed it"),
        (1935, "a cancel of an adopted task was forgotten when its agent started again"),
        (3023, "a full state said that it is held, and not that nobody knows what became of it"),
        (3235, "late word of what went back was told under a name that the parent had lost"),
        (4794, "a copy that had gone on before its parent was back was not known to be old"),
        (5748, "a copy gave a job's number again, and took the ends of the one for those of the other"),
        (6731, "a parent that had not got to say what it holds open was not asked again"),
        (7313, "an attempt that was counted as lost was taken for the next one"),
        (11827, "a site that is adopted did not say again what nobody below it knows"),
        (13038, "a copy gave back what a machine had that was idle in it, and not back yet"),
        (13404, "what a parent had fenced was let go without a word of its end"),
        (22541, "a release while those below had not spoken started what may have run"),
        (24847, "a copy was not known to be old by a machine that had come since"),
        (26823, "a task that was placed and put on hold kept its slot from all others"),
        (27832, "a restart counted a task that had gone back off another placement, which then was not let go"),
        (34395, "the oracle saw no end where a site had ended as many in its last life"),
        (35939, "what used up its attempts as an orphan was adopted as if it ran"),
        (46488, "what was to be taken over was lost in a second recovery"),
        (47782, "what had ended under an older name of its parent was started again"),
        (72094, "what was adopted under a placement that had another share counted for the wrong one, for ever"),
        (76737, "a task whose machine was away started again when a parent took it over"),
        (78569, "as that, of a task that may start more than once"),
        (41422, "an empty machine listed nothing, and what its predecessor had was started again"),
        (41556, "as that, of a user's own job"),
    ];
    let options = Options { recovery: true, ..options };
    for (seed, what) in failed {
        assert_eq!(None, run(*seed, options).failure, "seed {seed} with recovery: {what}");
    }
}

/// The same jobs and the same harmless faults, with one more broker above: each task ends in the same phase with the same exit.
#[test]
fn one_more_hop_changes_no_result() {
    let options = Options { benign: true, ..Options::default() };
    let more = Options { one_more_hop: true, ..options };
    let differ = std::sync::Mutex::new(Vec::new());
    let compare = |seed: u64, with: &intergrid_tests::sim::Run| {
        let without = run(seed, options);
        if with.failure.is_none() && without.failure.is_none() && with.results != without.results {
            let keys = with.results.keys().chain(without.results.keys());
            let first = keys.copied().find(|k| with.results.get(k) != without.results.get(k));
            let is = first.map(|k| (k, without.results.get(&k).copied(), with.results.get(&k).copied()));
            differ.lock().unwrap().push((seed, is));
        }
    };
    none(first_failure(1, PAIRS, more, &compare), more);
    let differ = differ.into_inner().unwrap();
    assert!(differ.is_empty(), "with one more hop (seed, deed and task, phase and exit without and with it): {differ:?}");
}

/// One seed is one run, to the last message.
#[test]
fn a_seed_is_one_run() {
    for seed in 1..40 {
        let (a, b) = (intergrid_tests::sim::trace(seed, Options::default()), intergrid_tests::sim::trace(seed, Options::default()));
        assert_eq!((a.events, a.ms, a.starts), (b.events, b.ms, b.starts), "seed {seed}");
        assert_eq!(a.trace, b.trace, "seed {seed}");
    }
}
