//! No room on the disk: what runs ends, what waits goes back.

use intergrid_proto::{Refusal, RefusalKind};

use super::*;

fn full() -> Input {
    Input::Room(Some(Refusal::new(RefusalKind::OverLimit, "/state has 7 bytes free").remedy("free some")))
}

#[test]
fn what_waits_goes_back_what_runs_ends_and_nothing_is_begun() {
    let mut a = Agent::attached(2);
    a.down(want(1, 1, WantValue::Hold, 1..2));
    a.down(place(1, 0..2));
    assert_eq!(vec![(1, 0)], a.running());
    a.input(full());
    assert_eq!(vec![(1, TaskSet::one(1), ReasonKind::Draining)], a.returns());
    a.pass(200);
    let advert = a.sent.iter().rev().find_map(|u| if let Up::Advert(x) = u { Some(x.shares[0].clone()) } else { None }).unwrap();
    assert!(advert.draining && advert.draining_reason.contains("7 bytes free") && advert.slots_free == 0, "{advert:?}");
    a.exit((1, 0), Exit::Code(0));
    assert_eq!(1, a.ends().len(), "its end is told");
    // A placement that was on its way.
    a.down(place(2, 0..1));
    assert_eq!(ReasonKind::Draining, a.returns()[1].2);
    assert!(a.running().is_empty());
    a.input(Input::Room(None));
    a.down(place(3, 0..1));
    assert_eq!(vec![(3, 0)], a.running());
    a.exit((3, 0), Exit::Code(0));
    assert_eq!((0, 0, 0, 0), (a.core.used, a.core.ahead, a.core.outstanding, a.core.lives.len()));
}

#[test]
fn a_start_that_found_no_room_is_no_end() {
    let mut a = Agent::attached(1);
    a.down(place(1, 0..1));
    a.running.clear();
    let fault = Fault { kind: ReasonKind::StartFailed, text: "no space".into(), exit: Exit::NotStarted, elsewhere: true };
    a.input(Input::NotStarted((1, 0), fault));
    assert_eq!((vec![(1, TaskSet::one(0), ReasonKind::StartFailed)], 0), (a.returns(), a.ends().len()));
    assert!(a.core.state.placements.is_empty() && a.core.lives.is_empty());
    assert_eq!((0, 0, 0), (a.core.used, a.core.ahead, a.core.outstanding));
}
