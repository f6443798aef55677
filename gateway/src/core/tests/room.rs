//! No room on the disk of one site: nothing new there, what runs ends, and all of it goes on later.

use intergrid_proto::{Phase, ReasonKind, Refusal, RefusalKind, TaskSet};

use super::{World, sleep, tower};
use crate::core::Input;

pub(super) fn full() -> Input {
    Input::Room(Some(Refusal::new(RefusalKind::OverLimit, "/state has 7 bytes free").remedy("free some")))
}

#[test]
fn nothing_new_is_taken_anywhere_below_and_it_is_said_why() {
    for (depth, at) in [(0, 0), (1, 0), (1, 1), (2, 1)] {
        let mut w = World::new();
        let sites = tower(&mut w, depth);
        let (job, _) = w.submit(sites[0], "k", sleep(400), 40).unwrap();
        w.pass(300);
        w.input(sites[at], full());
        w.pass(3_000);
        let running: u64 = w.agents.values().flat_map(|a| a.running().into_values()).map(|t: TaskSet| t.len()).sum();
        let done = w.count(sites[0], job, Phase::Done);
        assert!(running == 0 && (1..40).contains(&done), "{running} run, {done} are done at depth {depth}");
        let (e, _) = w.explanation(sites[0], job);
        let text = format!("{:?}", e.reasons);
        assert!(e.reasons[0].kind == ReasonKind::Draining.number() && text.contains("7 bytes free"), "{text}");
        let host = w.sites[&sites[at]].core.host().0;
        assert!(host.draining.is_some_and(|r| r.text.contains("7 bytes free") && r.remedy == "free some"));
        match w.submit(sites[0], "other", sleep(1), 1) {
            Err(r) if at == 0 => assert!(r.kind == RefusalKind::OverLimit && r.message.contains("7 bytes free") && r.remedy == "free some", "{r}"),
            answer => assert!(at > 0 && answer.is_ok(), "{answer:?}"),
        }
        // One that was taken is still the same.
        assert_eq!(Ok((job, true)), w.submit(sites[0], "k", sleep(400), 40));
        w.input(sites[at], Input::Room(None));
        w.pass(20_000);
        w.check();
        assert_eq!(40, w.count(sites[0], job, Phase::Done));
    }
}
