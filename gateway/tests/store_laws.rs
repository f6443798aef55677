//! The laws of a store, on every store: one model, any sequence of batches, restarts in between.

use std::collections::BTreeMap;

use intergrid_gateway::store::sled::FORMAT;
use intergrid_gateway::store::{Batch, KEY_BYTES_MAX, MemDisk, RECORD_BYTES_MAX, Reader, SledStore, Store, StoreError};
use proptest::prelude::*;

/// Opens the same place again and again.
type Open = Box<dyn Fn() -> Result<Box<dyn Store>, StoreError>>;

/// Every store there is, each on an empty place.
fn each(law: impl Fn(&str, Open)) {
    let disk = MemDisk::new();
    law("mem", Box::new(move || Ok(Box::new(disk.open()?))));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    law("sled", Box::new(move || Ok(Box::new(SledStore::open(&path)?))));
}

fn row(key: &str, value: &str) -> (Vec<u8>, Option<Vec<u8>>) {
    (key.into(), Some(value.into()))
}

fn rows(reader: &dyn Reader, prefix: &str) -> Vec<(String, usize)> {
    let mut seen = Vec::new();
    let mut visit = |k: &[u8], v: &[u8]| {
        seen.push((String::from_utf8_lossy(k).into_owned(), v.len()));
        true
    };
    reader.scan(prefix.as_bytes(), &mut visit).unwrap();
    seen
}

fn changes(store: &dyn Store, from: u64) -> Vec<(u64, Vec<u8>)> {
    let mut seen = Vec::new();
    let mut visit = |n: u64, v: &[u8]| {
        seen.push((n, v.to_vec()));
        true
    };
    store.changes(from, &mut visit).unwrap();
    seen
}

#[test]
fn keeps_what_was_committed() {
    each(|name, open| {
        let mut store = open().unwrap();
        let batch = Batch {
            rows: vec![row("a1", "x"), row("a2", ""), row("b1", "yy")],
            changes: vec![(1, b"one".to_vec()), (5, vec![])],
            truncate_below: None,
        };
        store.commit(&batch).unwrap();
        store.commit(&Batch { rows: vec![(b"a1".to_vec(), None), row("a3", "z"), row("a3", "zz")], ..Batch::default() }).unwrap();
        drop(store);
        let store = open().unwrap();
        assert_eq!(vec![("a2".to_string(), 0), ("a3".to_string(), 2)], rows(&*store.reader(), "a"), "{name}");
        assert_eq!(3, rows(&*store.reader(), "").len(), "{name}");
        assert_eq!(Some(b"yy".to_vec()), store.get(b"b1").unwrap(), "{name}");
        assert_eq!(None, store.get(b"b").unwrap(), "{name}");
        assert_eq!(vec![(1, b"one".to_vec()), (5, vec![])], changes(&*store, 0), "{name}");
        assert_eq!(vec![(5, vec![])], changes(&*store, 2), "{name}");
        let mut visits = 0;
        store
            .scan(b"", &mut |_, _| {
                visits += 1;
                false
            })
            .unwrap();
        store
            .changes(0, &mut |_, _| {
                visits += 1;
                false
            })
            .unwrap();
        assert_eq!(2, visits, "{name}: a visitor that says stop");
    });
}

#[test]
fn refuses_a_bad_batch_whole_and_goes_on() {
    each(|name, open| {
        let mut store = open().unwrap();
        store.commit(&Batch { changes: vec![(7, vec![1])], ..Batch::default() }).unwrap();
        let large = vec![0; RECORD_BYTES_MAX + 1];
        let bad = [
            Batch { rows: vec![row("good", "x"), (vec![1], Some(large.clone()))], ..Batch::default() },
            Batch { rows: vec![row("good", "x"), (vec![], None)], ..Batch::default() },
            Batch { rows: vec![row("good", "x"), (vec![1; KEY_BYTES_MAX + 1], None)], ..Batch::default() },
            Batch { rows: vec![row("good", "x")], changes: vec![(8, large)], ..Batch::default() },
            Batch { rows: vec![row("good", "x")], changes: vec![(7, vec![])], ..Batch::default() },
            Batch { rows: vec![row("good", "x")], changes: vec![(9, vec![]), (9, vec![])], ..Batch::default() },
        ];
        for batch in bad {
            assert!(matches!(store.commit(&batch), Err(StoreError::Refused { .. })), "{name}: {batch:?}");
        }
        let most = vec![9; RECORD_BYTES_MAX];
        store.commit(&Batch { rows: vec![(vec![1], Some(most.clone()))], changes: vec![(8, most.clone())], ..Batch::default() }).unwrap();
        assert_eq!(vec![("\u{1}".to_string(), most.len())], rows(&*store.reader(), ""), "{name}");
        assert_eq!(vec![(7, vec![1]), (8, most)], changes(&*store, 0), "{name}");
    });
}

#[test]
fn a_forgotten_change_stays_forgotten_and_its_number_is_not_taken_again() {
    each(|name, open| {
        let mut store = open().unwrap();
        store.commit(&Batch { changes: (1..=9).map(|n| (n, vec![n as u8])).collect(), ..Batch::default() }).unwrap();
        store.commit(&Batch { truncate_below: Some(9), changes: vec![(10, vec![10])], ..Batch::default() }).unwrap();
        store.commit(&Batch { truncate_below: Some(3), ..Batch::default() }).unwrap();
        assert_eq!(vec![(9, vec![9]), (10, vec![10])], changes(&*store, 0), "{name}");
        store.commit(&Batch { truncate_below: Some(100), ..Batch::default() }).unwrap();
        drop(store);
        let mut store = open().unwrap();
        assert!(changes(&*store, 0).is_empty(), "{name}");
        let again = Batch { changes: vec![(99, vec![])], ..Batch::default() };
        assert!(matches!(store.commit(&again), Err(StoreError::Refused { .. })), "{name}");
        store.commit(&Batch { changes: vec![(100, vec![])], ..Batch::default() }).unwrap();
        assert_eq!(vec![(100, vec![])], changes(&*store, 0), "{name}");
    });
}

#[test]
fn a_second_store_on_one_place_is_refused_at_once() {
    each(|name, open| {
        let first = open().unwrap();
        let began = std::time::Instant::now();
        let refused = open().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused.contains("is in use by another process"), "{name}: {refused}");
        assert!(began.elapsed().as_secs() < 1, "{name}: took {:?}", began.elapsed());
        drop(first);
        open().unwrap();
    });
}

#[test]
fn a_newer_or_damaged_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(SledStore::open(dir.path()).unwrap());
    std::fs::write(dir.path().join("format"), format!("intergrid store {}\n", FORMAT + 1)).unwrap();
    assert!(matches!(SledStore::open(dir.path()), Err(StoreError::NewerFormat { found, known: FORMAT, .. }) if found == FORMAT + 1));
    for text in [&b"intergrid store x"[..], b"", b"\xff\xfe", b"intergrid store 0"] {
        std::fs::write(dir.path().join("format"), text).unwrap();
        assert!(matches!(SledStore::open(dir.path()), Err(StoreError::Damaged { .. })), "{text:?}");
    }
    std::fs::remove_file(dir.path().join("format")).unwrap();
    assert!(matches!(SledStore::open(dir.path()), Err(StoreError::Damaged { .. })));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(SledStore::open(&file), Err(StoreError::Io { .. })));
}

#[test]
fn a_reader_sees_each_row_whole_while_it_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SledStore::open(dir.path()).unwrap();
    let value = |n: usize| Batch { rows: vec![(b"k".to_vec(), Some(vec![n as u8; 5_000 + n * 500]))], ..Batch::default() };
    store.commit(&value(0)).unwrap();
    let reader = store.reader();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let reads = s.spawn(|| {
            let mut reads = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut all = vec![reader.get(b"k").unwrap().unwrap()];
                reader
                    .scan(b"", &mut |_, v| {
                        all.push(v.to_vec());
                        true
                    })
                    .unwrap();
                assert!(all.iter().all(|v| v.len() == 5_000 + usize::from(v[0]) * 500 && v.iter().all(|b| *b == v[0])));
                reads += 1;
            }
            reads
        });
        (0..400).for_each(|n| store.commit(&value(n % 100)).unwrap());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reads.join().unwrap() > 0);
    });
}

#[test]
fn a_disk_that_fails_keeps_what_it_had() {
    let disk = MemDisk::new();
    let mut store = disk.open().unwrap();
    disk.fail_after(1);
    store.commit(&Batch { rows: vec![row("a", "1")], ..Batch::default() }).unwrap();
    assert!(matches!(store.commit(&Batch { rows: vec![row("a", "2")], ..Batch::default() }), Err(StoreError::Io { .. })));
    drop(store);
    assert_eq!(Some(b"1".to_vec()), disk.open().unwrap().get(b"a").unwrap());
}

/// What a test does to a store.
#[derive(Clone, Debug)]
enum Step {
    Commit { rows: Vec<(u8, Option<u16>)>, changes: u8, truncate: Option<u8> },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let rows = proptest::collection::vec((0u8..6, proptest::option::weighted(0.7, 0u16..20_000)), 0..4);
    let commit = (rows, 0u8..4, proptest::option::of(0u8..40)).prop_map(|(rows, changes, truncate)| Step::Commit { rows, changes, truncate });
    prop_oneof![8 => commit, 1 => Just(Step::Restart)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..25)) {
        each(|name, open| {
            let mut store = Some(open().unwrap());
            let (mut model_rows, mut model_changes, mut next) = (BTreeMap::new(), BTreeMap::new(), 1u64);
            for (i, step) in steps.iter().enumerate() {
                match step {
                    Step::Restart => {
                        drop(store.take());
                        store = Some(open().unwrap());
                    }
                    Step::Commit { rows, changes, truncate } => {
                        let mut batch = Batch::default();
                        for (key, bytes) in rows {
                            let value = bytes.map(|n| vec![i as u8; usize::from(n)]);
                            batch.rows.push((vec![*key], value.clone()));
                            match value {
                                Some(value) => model_rows.insert(vec![*key], value),
                                None => model_rows.remove(&vec![*key]),
                            };
                        }
                        for _ in 0..*changes {
                            batch.changes.push((next, vec![next as u8; next as usize * 300]));
                            model_changes.insert(next, next as usize * 300);
                            next += 1;
                        }
                        // Never beyond the next number: the core forgets only what it has written.
                        batch.truncate_below = truncate.map(|t| u64::from(t).min(next));
                        model_changes.retain(|n, _| *n >= batch.truncate_below.unwrap_or(0));
                        store.as_mut().unwrap().commit(&batch).unwrap();
                    }
                }
                let store = store.as_deref().unwrap();
                let found: Vec<_> = changes(store, 0).into_iter().map(|(n, v)| (n, v.len())).collect();
                assert_eq!(found, model_changes.iter().map(|(n, l)| (*n, *l)).collect::<Vec<_>>(), "{name}");
                let mut found = BTreeMap::new();
                store.scan(b"", &mut |k, v| { found.insert(k.to_vec(), v.to_vec()); true }).unwrap();
                assert_eq!(found, model_rows, "{name}");
            }
        });
    }
}
