//! What came in the expectation of short tasks, and waits for long ones or wide ones.

use super::*;

/// Where tasks have ended so fast that the gateway has placed `place` ahead.
fn hurried(slots: u32, places: impl IntoIterator<Item = Down>) -> Agent {
    let mut a = Agent::attached(slots);
    a.core.link.rate = 1_600.0;
    a.core.link.windows.push_back((a.now, 400));
    places.into_iter().for_each(|p| a.down(p));
    a
}

/// So many seconds, in which each task takes `ms` and ends well.
fn work(a: &mut Agent, seconds: u64, ms: u64) {
    let mut began: BTreeMap<Key, u64> = BTreeMap::new();
    let until = a.now + seconds * 1_000;
    while a.now < until {
        a.pass(50);
        for key in a.running() {
            if a.now >= *began.entry(key).or_insert(a.now) + ms {
                a.exit(key, Exit::Code(0));
            }
        }
    }
}

fn back(a: &Agent) -> TaskSet {
    a.returns().into_iter().fold(TaskSet::new(), |all, (_, tasks, kind)| {
        assert_eq!(ReasonKind::OverCredit, kind);
        all.union(&tasks)
    })
}

#[test]
fn what_slots_come_free_too_slowly_for_goes_back_from_the_end() {
    let mut a = hurried(2, [place(1, 0..60)]);
    work(&mut a, 5, 1_000);
    let gone = back(&a);
    assert!(gone.len() >= 48 && gone.end() == 60 && gone.ranges().len() == 1, "{gone}");
    let (first, running) = (gone.first().unwrap(), a.running());
    assert!(running.iter().all(|(_, t)| *t < first));
    assert!(a.core.window() <= 3, "the gateway is told how slow it is: {}", a.core.window());
    work(&mut a, 20, 1_000);
    assert_eq!((u64::from(back(&a).first().unwrap()), 0), (a.ends().iter().map(|(_, t, _)| t.len()).sum::<u64>(), a.core.outstanding));
}

/// Or `hosts` would say so of what runs, until the next renewal.
#[test]
fn what_has_started_is_not_told_to_wait() {
    let mut a = Agent::attached(2);
    a.pass(500);
    let told = |a: &Agent| a.sent.iter().rev().find_map(|u| if let Up::Advert(x) = u { Some(x.shares[0].waiting) } else { None });
    // An advertisement goes while their claims are on the way to the disk.
    a.core.step(Input::Down(place(1, 0..2)), a.now);
    while let Some(up) = a.core.next_up(a.now) {
        a.sent.push(up);
    }
    assert_eq!((0, Some(2)), (a.running().len(), told(&a)));
    a.settle();
    a.pass(200);
    assert_eq!((2, Some(0)), (a.running().len(), told(&a)));
}

#[test]
fn what_has_its_turn_soon_stays() {
    let mut a = hurried(2, [place(1, 0..30)]);
    work(&mut a, 5, 100);
    assert_eq!((TaskSet::new(), 30), (back(&a), a.ends().iter().map(|(_, t, _)| t.len()).sum::<u64>()));
}

fn wide(number: u64, tasks: std::ops::Range<u32>) -> Down {
    let mut s = spec();
    s.shape.slots = 2;
    Down::Place(Box::new(place_of(number, number, TaskSet::range(tasks), &s)))
}

#[test]
fn a_wide_task_keeps_slots_from_others_for_a_moment_only() {
    for rate in [1_600.0, 0.0] {
        let mut a = hurried(2, [place(1, 0..1)]);
        a.core.link.rate = rate;
        a.down(wide(2, 0..2));
        a.down(place(3, 0..20));
        assert_eq!(vec![(1, 0)], a.running(), "a slot is free, and two are waited for");
        a.pass(WIDE_WAIT_MS / 2);
        assert_eq!(1, a.running().len());
        a.pass(WIDE_WAIT_MS);
        assert_eq!(vec![(1, 0), (3, 0)], a.running());
        a.exit((3, 0), Exit::Code(0));
        assert_eq!(vec![(1, 0), (3, 1)], a.running(), "that was its moment");
        a.exit((1, 0), Exit::Code(0));
        assert_eq!(vec![(3, 1), (3, 2)], a.running());
        a.down(want(3, 1, WantValue::Cancel, 3..20));
        [(3, 1), (3, 2)].into_iter().for_each(|key| a.exit(key, Exit::Code(0)));
        assert_eq!(vec![(2, 0)], a.running());
    }
}

#[test]
fn a_wide_task_that_others_go_by_goes_back() {
    let mut a = hurried(2, [place(1, 0..1), wide(2, 0..1), place(3, 0..30)]);
    let until = a.now + 2_500;
    while a.now < until {
        a.pass(50);
        for key in a.running().into_iter().filter(|k| k.0 == 3) {
            a.exit(key, Exit::Code(0));
        }
    }
    assert_eq!(vec![(2, TaskSet::one(0), ReasonKind::OverCredit)], a.returns());
    assert!(a.ends().iter().map(|(_, t, _)| t.len()).sum::<u64>() > 20);
}
