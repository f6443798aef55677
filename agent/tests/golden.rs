//! The spool's format, as the first version wrote it: a file of every kind of record. Later versions must read it to the same state; the writer changes
//! it only together with the format's version. `INTERGRID_BLESS=1` writes the file anew.

use intergrid_agent::spool::frame;
use intergrid_agent::spool::record::*;
use intergrid_agent::state::State;
use intergrid_proto::link::{Attempts, Ended, Event, EventKind, Hop, Kind, Want, WantValue};
use intergrid_proto::{BlobHash, Exit, Phase, Reason, ReasonKind, SiteId, TaskSet, convert, pb};

fn batches() -> Vec<Batch> {
    let tasks = |r: std::ops::Range<u32>| Some(convert::tasks_out(&TaskSet::range(r)));
    let spec = b"a spec's bytes".to_vec();
    let spec_hash = BlobHash::of(&spec).0.to_vec();
    let event = |number, r, what| What::Event(pb::Event::from(Event { of: Attempts { number, job: 3, tasks: TaskSet::range(r) }, what }));
    let ended = Ended {
        phase: Phase::Failed,
        exit: vec![Exit::Code(3).to_number(), Exit::Signal(9).to_number()],
        reason: Some(Reason::new(ReasonKind::ExitNonZero, "exit code 3").remedy("look into stderr")),
        attempts: 2,
        route: vec![Hop { site: SiteId([4; 16]), name: "a1".into(), kind: Kind::Agent }],
        wall_ms: vec![10, 20],
        cpu_us: vec![5],
        peak_bytes: vec![],
        age_ms: vec![1_700_000_000_000],
        measured: "sampled".into(),
        lost: false,
        stale: false,
        cost_micro: vec![],
    };
    let mut want = Want { job: 3, version: 7, ranges: vec![] };
    want.set(WantValue::Hold, &TaskSet::range(8..9));
    want.set(WantValue::Cancel, &TaskSet::range(9..10));
    let placed =
        Placed { number: 5, job: 3, spec_hash, open: tasks(0..10), attempts: 1, origin_job: "abc123".into(), array_size: 100, ..Placed::default() };
    let frames = vec![
        vec![
            What::Bound(Bound { gateway: vec![9; 16], machine: vec![1; 16], name: "campus".into() }),
            What::Counters(Counters { incarnation: 77, sequence: 0, acked: 0, highest: 4, peer: 42 }),
        ],
        vec![What::Spec(spec), What::Placed(placed), event(5, 0..10, EventKind::Accepted), What::Want(want.into())],
        vec![What::Claimed(Claimed { number: 5, tasks: tasks(0..6), boot: vec![2; 16] })],
        vec![
            What::Started(Started { number: 5, task: 4, pid: 4_321, ticks: 99_999, at_ms: 1_700_000_000_001 }),
            What::Unclaimed(Claimed { number: 5, tasks: tasks(5..6), boot: vec![] }),
            What::Exited(Exited {
                number: 5,
                task: 3,
                ended: Some(ended.select(&TaskSet::range(2..4), &TaskSet::one(3)).into()),
                files: vec!["stdout".into()],
            }),
        ],
        vec![
            event(5, 0..2, EventKind::Ended(ended)),
            event(5, 6..7, EventKind::Returned(Reason::new(ReasonKind::OverCredit, "full"))),
            event(0, 0..0, EventKind::WantStored { version: 7 }),
            What::Acked(1),
        ],
    ];
    frames.into_iter().map(|f| Batch { records: f.into_iter().map(|w| Record { what: Some(w) }).collect() }).collect()
}

#[test]
fn version_1_is_read_and_written_as_ever() {
    let path = "tests/golden/spool-v1.bin";
    let mut bytes = frame::header();
    batches().iter().for_each(|b| frame::encode(b, &mut bytes));
    if std::env::var_os("INTERGRID_BLESS").is_some() {
        std::fs::write(path, &bytes).unwrap();
    }
    let golden = std::fs::read(path).unwrap();
    let (read, end) = frame::decode(&golden).unwrap();
    assert_eq!((batches(), golden.len()), (read.clone(), end));
    assert!(golden == bytes, "the writer's bytes have changed: raise the version");

    let state = State::replay(read.into_iter().flat_map(|b| b.records)).unwrap();
    assert_eq!((77, 4, 1, 5, 42), {
        let c = &state.counters;
        (c.incarnation, c.sequence, c.acked, c.highest, c.peer)
    });
    let p = &state.placements[&5];
    assert_eq!(("2-5,7-9", vec![2, 3, 4]), (p.open.to_string().as_str(), p.claims.keys().copied().collect()));
    assert_eq!((Some(4_321), true), (p.claims[&4].started.map(|s| s.pid), p.claims[&3].exited.is_some()));
    assert_eq!((3, 7, 1), (state.events.len(), state.wants[&3].version, state.specs.len()));
}
