//! Seeds of the simulator. What it checks, and what not, is said in `intergrid_tests::sim`; a failure prints its seed, the commit and the shortest trace
//! found. More seeds: `tests/soak`.

use intergrid_tests::sim::{Failure, Options, first_failure, report, run};

/// Seeds of one run of the tests.
const SEEDS: u64 = 20_000;
/// Of those, pairs with one more hop.
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

/// The same jobs and the same harmless faults, with one more broker above: each task ends in the same phase with the same exit.
#[test]
fn one_more_hop_changes_no_result() {
    let options = Options { benign: true, ..Options::default() };
    let more = Options { one_more_hop: true, ..options };
    let differ = std::sync::Mutex::new(Vec::new());
    let compare = |seed: u64, with: &intergrid_tests::sim::Run| {
        let without = run(seed, options);
        if with.failure.is_none() && without.failure.is_none() && with.results != without.results {
            differ.lock().unwrap().push(seed);
        }
    };
    none(first_failure(1, PAIRS, more, &compare), more);
    let differ = differ.into_inner().unwrap();
    assert!(differ.is_empty(), "results differ with one more hop: seeds {differ:?}");
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
