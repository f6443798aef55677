//! Every decoder of what comes over the wire, fed with right messages that were damaged: it refuses or takes, and nothing else.

use intergrid_proto::convert::{ended_in, phase_in, tasks_in, want_value_in};
use intergrid_proto::link::{Attempts, Down, Event, Hello, Hop, Place, Up, Want};
use intergrid_proto::net::refusal_of;
use intergrid_proto::{JobSpec, Reason, Refusal, Share, pb};
use proptest::prelude::*;
use prost::Message;

fn reason() -> pb::Reason {
    let leaf =
        pb::Reason { kind: 3, text: "läuft nicht".into(), remedy: "warten".into(), site: vec![1; 16], site_name: "a".into(), ..Default::default() };
    pb::Reason { kind: 2, because: vec![leaf.clone(), pb::Reason { because: vec![leaf], ..Default::default() }], age_ms: 7, ..Default::default() }
}

fn tasks() -> Option<pb::Tasks> {
    Some(pb::Tasks { runs: vec![3, 4, 1, 9] })
}

fn ended() -> pb::Ended {
    pb::Ended {
        phase: 9,
        exit: vec![1; 13],
        reason: Some(reason()),
        attempts: 2,
        route: vec![pb::Hop { site: vec![2; 16], name: "m".into(), kind: 3 }],
        wall_ms: vec![5; 13],
        cpu_us: vec![6],
        age_ms: (0..13).collect(),
        measured: "cgroup".into(),
        lost: true,
        ..Default::default()
    }
}

fn share() -> pb::Share {
    pb::Share {
        key: "a/b".into(),
        origin: vec![1; 16],
        path: vec![vec![1; 16], vec![2; 16]],
        architecture: "x86_64".into(),
        window: 4,
        not_rented: "budget rate: no more than 0.20 EUR per hour".into(),
        ..Default::default()
    }
}

fn place() -> pb::Place {
    pb::Place {
        number: 1,
        job: 2,
        origin: Some(pb::Origin { site: vec![1; 16], job: "j".into(), principal: "ann".into(), submitted_ms: 0 }),
        spec_hash: vec![3; 32],
        spec: JobSpec::new(["a", "b"]).encode().into(),
        tasks: tasks(),
        share: "a/b".into(),
        want: Some(want()),
        route: vec![vec![1; 16]],
        hops_left: 8,
        chain: vec![pb::ChainLink { statement: vec![1], signature: vec![2], certificate: vec![3] }],
        array_size: 20,
        attempt_cost_max: 7,
        ..Default::default()
    }
}

fn want() -> pb::Want {
    pb::Want { job: 2, version: 3, ranges: vec![pb::WantRange { value: 3, tasks: tasks() }, pb::WantRange { value: 1, tasks: tasks() }] }
}

fn hello() -> pb::Hello {
    pb::Hello { protocol: 1, site: vec![1; 16], name: "a".into(), kind: 2, incarnation: 9, machine: vec![1; 20], ..Default::default() }
}

/// One right message of each kind, as bytes.
fn corpus() -> Vec<Vec<u8>> {
    use pb::{down, event, up};
    let of = |what| pb::Event { number: 1, job: 2, tasks: tasks(), what: Some(what) };
    let events = vec![
        of(event::What::Accepted(pb::Accepted {})),
        of(event::What::Returned(pb::Returned { reason: Some(reason()) })),
        of(event::What::Ended(ended())),
        of(event::What::Held(pb::Held { reason: Some(reason()) })),
        of(event::What::Released(pb::Released {})),
        of(event::What::WantStored(pb::WantStored { version: 4 })),
    ];
    let stale = vec![pb::StaleAttempts { number: 1, job: 2, tasks: tasks() }];
    let range = pb::ResyncRange { number: 1, job: 2, tasks: tasks(), phase: 9, ended: Some(ended()) };
    let ups = vec![
        up::What::Hello(hello()),
        up::What::Advert(pb::Advert { version: 1, shares: vec![share(); 3], rest: Some(Default::default()), below: ended().route }),
        up::What::Events(pb::Events { incarnation: 1, first: 1, events }),
        up::What::Hints(pb::Hints { hints: vec![pb::Hint { number: 1, job: 2, tasks: tasks(), phase: 5 }] }),
        up::What::NeedBlob(pb::NeedBlob { hash: vec![1; 32] }),
        up::What::Resync(pb::Resync { incarnation: 1, sequence: 2, ranges: vec![range], last: true }),
    ];
    let downs = vec![
        down::What::Hello(hello()),
        down::What::Stale(pb::Stale { attempts: stale.clone() }),
        down::What::Want(want()),
        down::What::Place(place()),
        down::What::Ack(pb::Ack { incarnation: 1, sequence: 2 }),
        down::What::Demand(pb::Demand { shapes: vec![pb::ShapeDemand { slots: 1, memory_bytes: 2, tasks: 3, ..Default::default() }] }),
        down::What::Saw(pb::Saw { version: 1 }),
        down::What::Resync(pb::ResyncRequest {}),
        down::What::Open(pb::OpenPlacements { open: stale }),
    ];
    let mut all: Vec<Vec<u8>> = ups.into_iter().map(|w| pb::Up { what: Some(w) }.encode_to_vec()).collect();
    all.extend(downs.into_iter().map(|w| pb::Down { what: Some(w) }.encode_to_vec()));
    all.extend([reason().encode_to_vec(), ended().encode_to_vec(), share().encode_to_vec(), place().encode_to_vec(), want().encode_to_vec()]);
    all.extend([hello().encode_to_vec(), JobSpec::new(["a", "b"]).encode(), pb::Tasks { runs: vec![0, 1] }.encode_to_vec()]);
    all.push(pb::Error { kind: 1, message: "m".into(), remedy: "r".into() }.encode_to_vec());
    all
}

/// Whatever these bytes are taken for, nothing panics; what is taken can be said again, and is then the same.
fn into_all(bytes: &[u8]) {
    if let Ok(Ok(up)) = pb::Up::decode(bytes).map(Up::try_from) {
        let again = pb::Up::from(up.clone()).encode_to_vec();
        assert_eq!(Ok(up), pb::Up::decode(&again[..]).map_err(|e| e.to_string()).and_then(|u| Up::try_from(u).map_err(|r| r.to_string())));
    }
    if let Ok(Ok(down)) = pb::Down::decode(bytes).map(Down::try_from) {
        let again = pb::Down::from(down.clone()).encode_to_vec();
        assert_eq!(Ok(down), pb::Down::decode(&again[..]).map_err(|e| e.to_string()).and_then(|d| Down::try_from(d).map_err(|r| r.to_string())));
    }
    let _ = pb::Event::decode(bytes).map(Event::try_from);
    let _ = pb::Share::decode(bytes).map(Share::try_from);
    let _ = pb::Place::decode(bytes).map(Place::try_from);
    let _ = pb::Want::decode(bytes).map(Want::try_from);
    let _ = pb::Hello::decode(bytes).map(Hello::try_from);
    let _ = pb::Hop::decode(bytes).map(Hop::try_from);
    let _ = pb::StaleAttempts::decode(bytes).map(Attempts::try_from);
    let _ = pb::Ended::decode(bytes).map(|e| (ended_in(e.clone(), 13), ended_in(e.clone(), 1), ended_in(e, 0)));
    let _ = pb::Reason::decode(bytes).map(|r| pb::Reason::from(Reason::from(r)).encoded_len());
    let _ = pb::Tasks::decode(bytes).map(|t| tasks_in(Some(t)));
    let _ = pb::Error::decode(bytes).map(|e| Refusal::from(e).to_string());
    let _ = refusal_of(&tonic::Status::with_details(tonic::Code::Internal, "x", bytes.to_vec().into())).to_string();
    let _ = JobSpec::decode(bytes);
}

/// One damage.
#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
    Splice(usize, usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let large = prop_oneof![
        Just(vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        Just(vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
        proptest::collection::vec(any::<u8>(), 1..6)
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, with)| Damage::Flip(at, with)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), large).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, len)| Damage::Repeat(at, len)),
        (any::<usize>(), any::<usize>(), any::<usize>()).prop_map(|(at, of, from)| Damage::Splice(at, of, from)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: Vec<Damage>, corpus: &[Vec<u8>]) -> Vec<u8> {
    for d in damages {
        let n = bytes.len().max(1);
        match d {
            Damage::Flip(at, with) if !bytes.is_empty() => bytes[at % n] = with,
            Damage::Flip(..) => {}
            Damage::Cut(at) => bytes.truncate(at % n),
            Damage::Insert(at, more) => drop(bytes.splice(at % n.min(bytes.len() + 1)..at % n.min(bytes.len() + 1), more)),
            Damage::Repeat(at, len) => {
                let at = (at % n).min(bytes.len());
                let end = (at + len % 64).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.extend(part);
            }
            Damage::Splice(at, of, from) => {
                let other = &corpus[of % corpus.len()];
                bytes.truncate(at % n);
                bytes.extend(&other[from % other.len().max(1)..]);
            }
        }
    }
    bytes
}

#[test]
fn right_messages_are_taken() {
    let taken = corpus().iter().filter(|b| matches!(pb::Up::decode(&b[..]).map(Up::try_from), Ok(Ok(_)))).count()
        + corpus().iter().filter(|b| matches!(pb::Down::decode(&b[..]).map(Down::try_from), Ok(Ok(_)))).count();
    assert!(taken >= 15, "{taken}");
    corpus().iter().for_each(|b| into_all(b));
    // Each byte of each, damaged alone, in every way that is one bit.
    for message in corpus() {
        for at in 0..message.len() {
            for bit in 0..8 {
                let mut bytes = message.clone();
                bytes[at] ^= 1 << bit;
                into_all(&bytes);
            }
            into_all(&message[..at]);
        }
    }
    for n in [i32::MIN, -1, 0, 1, 11, 1024, i32::MAX] {
        let _ = (want_value_in(n), phase_in(n));
    }
    // A tree as deep as a decoder allows, and as wide.
    let mut deep = pb::Reason::default();
    for _ in 0..200 {
        deep = pb::Reason { text: "\x1b[2J".into(), because: vec![deep], ..Default::default() };
    }
    let Ok(again) = pb::Reason::decode(&deep.encode_to_vec()[..]).map(Reason::from).or_else(|_| Ok::<_, ()>(Reason::from(deep))) else { return };
    assert!(!again.text.contains('\x1b'), "control characters reach no terminal");
    let wide = pb::Reason { because: vec![reason(); 100_000], ..Default::default() };
    assert!(pb::Reason::from(Reason::from(wide)).encoded_len() < 64 * 1024);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn damaged_messages_are_refused_or_taken(which in any::<usize>(), damages in proptest::collection::vec(damage(), 1..6)) {
        let corpus = corpus();
        let message = corpus[which % corpus.len()].clone();
        into_all(&damaged(message, damages, &corpus));
    }
}
