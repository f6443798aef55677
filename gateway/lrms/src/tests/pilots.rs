//! Pilots, where an LRMS does what a real one can't be brought to do in time: a job that has not begun is removed, and nobody remembers it.

use intergrid_gateway::config::PilotsConfig;
use intergrid_gateway::rent::{Cloud, Launch};
use intergrid_proto::net::issue::new_site;
use intergrid_provision::{Billing, Budget, Catalogue, MachineType, OfferKey, Outcome, Price, Rate, Refused, SeenState, Settings};

use super::*;
use crate::limits::PILOT_TOKEN_MS;
use crate::pilot::{Pilots, numbers};

fn pilots() -> PilotsConfig {
    PilotsConfig {
        settings: Settings { slots_max: 1, machines_max: 1, booting_max: 1, idle_ms: 60_000, away_ms: 60_000, alone_ms: None },
        catalogue: Catalogue::default(),
        budget: Budget::default(),
        time_ms: 1_800_000,
        task_time_ms: 450_000,
        alone_ms: 900_000,
        gateway: None,
        // It never begins.
        program: Some("/bin/true".into()),
    }
}

fn launch(number: u64) -> Launch {
    let price = Price { rate: Rate(0), ceiling: Rate(0), billing: Billing::Second { min_s: 0 } };
    Launch {
        number,
        label: format!("campus-m{number}"),
        offer: OfferKey { machine: "batch".into(), zone: String::new(), spot: false },
        kind: MachineType { slots: 1, memory_bytes: 64 << 20, ..MachineType::default() },
        price,
        endpoint: "127.0.0.1:1".into(),
    }
}

#[tokio::test]
async fn the_number_of_a_pilot_that_is_removed_before_it_begins_is_spent() {
    let dir = tempfile::tempdir().unwrap();
    let (local, identity) = (Local::new(1), dir.path().join("id"));
    new_site(&identity, "campus", &[]).unwrap();
    let open = || Pilots::new(Arc::new(local.clone()), &config(dir.path()), pilots(), me().site, identity.clone()).unwrap();
    local.wrong(|w| w.hold = true);
    let cloud = open();
    let Outcome::Launched(tag) = cloud.launch(launch(1)).await else { panic!("it is not submitted") };
    assert_eq!(1, local.pending());
    assert!(cloud.terminate(tag).await.is_some());
    assert_eq!(0, local.pending());
    // It is in no queue and in no book any more, as Grid Engine has it.
    local.wrong(|w| w.forgetful = true);
    for cloud in [cloud, open()] {
        let outcome = cloud.launch(launch(1)).await;
        assert!(matches!(outcome, Outcome::Refused(Refused::TokenSpent, _)), "{outcome:?}");
    }
    assert_eq!((1, 0), (local.submissions(), local.pending()));
    // Another one is another.
    assert!(matches!(open().launch(launch(2)).await, Outcome::Launched(_)));
}

#[tokio::test]
async fn a_pilot_that_is_renamed_is_known_by_its_number_and_can_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (local, identity) = (Local::new(1), dir.path().join("id"));
    new_site(&identity, "campus", &[]).unwrap();
    let open = || Pilots::new(Arc::new(local.clone()), &config(dir.path()), pilots(), me().site, identity.clone()).unwrap();
    local.wrong(|w| (w.hold, w.renamed) = (true, true));
    let Outcome::Launched(tag) = open().launch(launch(1)).await else { panic!("it is not submitted") };
    // By another process, which has not submitted it.
    let cloud = open();
    assert!(matches!(cloud.launch(launch(1)).await, Outcome::Launched(_)));
    let seen = cloud.list().await.unwrap();
    assert_eq!(vec![(tag.as_str(), Some(1), SeenState::Exists)], seen.iter().map(|s| (s.id.as_str(), s.number, s.state)).collect::<Vec<_>>());
    assert_eq!((1, 1), (local.submissions(), local.pending()));
    assert_eq!(Some(SeenState::Exists), cloud.terminate(tag).await);
    assert_eq!(0, local.pending());
}

#[test]
fn numbers_of_pilots_are_known_for_as_long_as_they_may_be_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let write = |tag: &str, name: &str, text: &str| {
        std::fs::create_dir_all(dir.path().join(tag)).unwrap();
        std::fs::write(dir.path().join(tag).join(name), text).unwrap();
    };
    write("igp-1", "claim", "7 n1 5\n");
    write("igp-2", "job", "8\n");
    // One that was removed before it began, and one of another gateway.
    write("igp-3", "claim", "");
    write("igp-3", "job", "9\n");
    write("other-4", "claim", "10 n1 5\n");
    let of = |later_ms| {
        let found = numbers(dir.path(), "igp-", 60_000, std::time::SystemTime::now() + Duration::from_millis(later_ms));
        found.into_iter().map(|(id, tag)| (id.0, tag)).collect::<Vec<_>>()
    };
    let all = [(7, "igp-1"), (8, "igp-2"), (9, "igp-3")].map(|(id, tag)| (id, tag.to_string()));
    assert_eq!((all.to_vec(), all[1..].to_vec(), vec![]), (of(0), of(130_000), of(PILOT_TOKEN_MS + 10_000)));
}

#[tokio::test]
async fn of_a_submission_whose_answer_is_lost_the_words_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (local, identity) = (Local::new(1), dir.path().join("id"));
    new_site(&identity, "campus", &[]).unwrap();
    let cloud = Pilots::new(Arc::new(local.clone()), &config(dir.path()), pilots(), me().site, identity).unwrap();
    local.wrong(|w| (w.hold, w.lose_answers) = (true, 1));
    let outcome = cloud.launch(launch(1)).await;
    assert!(matches!(&outcome, Outcome::Unknown(why) if why.contains("its answer is lost")), "{outcome:?}");
    assert!(matches!(cloud.launch(launch(1)).await, Outcome::Launched(_)));
    assert_eq!(1, local.submissions());
}
