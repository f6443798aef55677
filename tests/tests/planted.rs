//! Control experiment: known faults are planted in the core, one at a time, and the simulator has to find each of them within so many seeds, by the rule
//! that it breaks. A simulator that finds nothing of what is there proves nothing by finding nothing.

use intergrid_tests::sim::{Options, Plant, first_failure, run};

/// In how many seeds a planted fault has to be found.
const SEEDS_MAX: u64 = 10_000;

fn found(plant: Plant, invariants: &[&str]) {
    let recovery = matches!(plant, Plant::DoubtStarts | Plant::AdoptRestarts | Plant::NumbersAnew);
    let sound = Options { recovery, ..Options::default() };
    let options = Options { plant: Some(plant), ..sound };
    let (seed, failure) = first_failure(1, SEEDS_MAX, options, &|_, _| {}).unwrap_or_else(|| panic!("{plant:?} is not found in {SEEDS_MAX} seeds"));
    println!("{plant:?}: seed {seed}, {}: {}", failure.invariant, failure.what);
    assert!(invariants.contains(&&*failure.invariant), "{plant:?} breaks {}, seed {seed}: {}", failure.invariant, failure.what);
    assert_eq!(None, run(seed, sound).failure, "seed {seed} without {plant:?}");
}

macro_rules! planted {
    ($($test:ident: $plant:ident breaks $($invariant:literal)|+;)+) => {
        $(#[test]
        fn $test() {
            found(Plant::$plant, &[$($invariant),+]);
        })+

        #[test]
        fn planted_faults_have_a_test_each() {
            assert_eq!(Plant::ALL.to_vec(), vec![$(Plant::$plant),+]);
        }
    };
}

planted! {
    planted_answer_before_commit: AnswerBeforeCommit breaks "I1";
    planted_acknowledgement_before_commit: AckBeforeCommit breaks "I1";
    planted_no_fence: NoFence breaks "I2" | "I3";
    planted_late_submit_after_a_cancel: LateSubmit breaks "I14" | "L1";
    planted_placement_number_reused: NumberReused breaks "I10";
    planted_hop_limit_off: NoHopLimit breaks "I5";
    planted_cancel_lost: CancelLost breaks "L1";
    planted_returned_task_counted: ReturnCounts breaks "I3";
    planted_credit_not_returned: CreditKept breaks "L1" | "L2";
    planted_resync_skips_a_range: ResyncSkips breaks "I1";
    planted_usage_dropped: UsageDropped breaks "I11";
    planted_incarnation_ignored: IncarnationIgnored breaks "L1" | "I3";
    planted_stale_attempt_counts: StaleCounts breaks "I10";
    planted_less_admitted_than_advertised: AdmitsLess breaks "I16";
    planted_key_good_for_any_spec: AnySpec breaks "I4";
    planted_replay_forgets: ReplayForgets breaks "I18";
    planted_doubt_starts: DoubtStarts breaks "I3" | "I2";
    planted_adoption_restarts: AdoptRestarts breaks "I3" | "I2" | "L2";
    planted_numbers_begin_anew: NumbersAnew breaks "I10";
}
