use std::fs::File;

use proptest::prelude::*;

use super::super::sled::{MOVED_ROWS_MAX, SledStore};
use super::super::table::{PART_BYTES, open_sled, sled_error};
use super::super::{Batch, Store, StoreError};
use super::{Content, Model, content, drafts, scratch};

fn sled(home: &std::path::Path) -> ::sled::Db {
    open_sled(&home.join("sled"), "s").unwrap()
}

/// As hexadecimal: key, length of the value, its beginning.
fn dump(db: &::sled::Db) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().take(12).map(|b| format!("{b:02x}")).collect::<String>();
    db.iter().map(|e| e.unwrap()).map(|(k, v)| format!("{} = {} {}", hex(&k), v.len(), hex(&v))).collect()
}

#[test]
fn damage_without_a_place_is_said_in_words() {
    let said = sled_error("s", ::sled::Error::Corruption { at: None, bt: () }).to_string();
    assert!(said.starts_with("store s is damaged at its table, in a place that sled does not name; restore it"), "{said}");
}

/// The layout of the table, byte by byte. When this must change, so must FORMAT, and a store of this one must still open.
#[test]
fn golden_layout() {
    let dir = scratch();
    let mut store = SledStore::open(dir.path()).unwrap();
    store.bounds(1 << 20, 0, 1_000);
    let rows = vec![(b"j1".to_vec(), Some(b"row".to_vec())), (b"j2".to_vec(), Some(vec![7; PART_BYTES + 1]))];
    store.commit(&Batch { rows, changes: vec![(258, b"x".to_vec())], truncate_below: Some(2) }).unwrap();
    drop(store);
    let want = [
        "7000000000000000000000 = 4096 070707070707070707070707",
        "7000000000000000000001 = 1 07",
        "726a31 = 4 00726f77",
        "726a32 = 11 0100000000000000000002",
    ];
    assert_eq!(want.as_slice(), dump(&sled(dir.path())));
    assert_eq!("intergrid store 4\n", std::fs::read_to_string(dir.path().join("format")).unwrap());
}

/// A store as format 1 had it, with changes in sled; 6 of them are forgotten.
pub fn format_1(home: &std::path::Path) -> Content {
    std::fs::write(home.join("format"), "intergrid store 1\n").unwrap();
    let db = sled(home);
    let change = |n: u64| [b"c", n.to_be_bytes().as_slice()].concat();
    let part = |id: u64, n: u16| [b"p", id.to_be_bytes().as_slice(), &n.to_be_bytes()].concat();
    let mut want = Content::default();
    for n in 1..3_000u64 {
        db.insert(change(n), [&[0], n.to_string().as_bytes()].concat()).unwrap();
        if n >= 7 {
            want.1.insert(n, n.to_string().into_bytes());
        }
    }
    db.insert(change(3_000), [[1].as_slice(), &5u64.to_be_bytes(), &2u16.to_be_bytes()].concat()).unwrap();
    db.insert(part(5, 0), vec![9; PART_BYTES]).unwrap();
    db.insert(part(5, 1), vec![9; 10]).unwrap();
    want.1.insert(3_000, vec![9; PART_BYTES + 10]);
    db.insert(b"mforget", &7u64.to_be_bytes()).unwrap();
    db.insert(b"rj1", b"\0row").unwrap();
    want.0.insert(b"j1".to_vec(), b"row".to_vec());
    db.flush().unwrap();
    want
}

#[test]
fn a_store_of_format_1_is_taken_over_once() {
    let dir = scratch();
    let mut want = format_1(dir.path());
    let mut store = SledStore::open(dir.path()).unwrap();
    assert_eq!(want, content(&store));
    let old = Batch { changes: vec![(3_000, vec![])], ..Batch::default() };
    assert!(matches!(store.commit(&old), Err(StoreError::Refused { .. })));
    store.commit(&Batch { changes: vec![(3_001, vec![1])], truncate_below: Some(2_000), ..Batch::default() }).unwrap();
    want.1.insert(3_001, vec![1]);
    want.1.retain(|n, _| *n >= 2_000);
    drop(store);
    assert_eq!(want, content(&SledStore::open(dir.path()).unwrap()));
    assert_eq!(["726a31 = 4 00726f77"].as_slice(), dump(&sled(dir.path())));
    // A log that is there is not made again.
    std::fs::write(dir.path().join("format"), "intergrid store 1\n").unwrap();
    assert_eq!(want, content(&SledStore::open(dir.path()).unwrap()));
    // The next ones are as they are.
    for format in [2, 3] {
        std::fs::write(dir.path().join("format"), format!("intergrid store {format}\n")).unwrap();
        assert_eq!(want, content(&SledStore::open(dir.path()).unwrap()));
        assert_eq!("intergrid store 4\n", std::fs::read_to_string(dir.path().join("format")).unwrap());
    }
}

#[test]
fn moves_rows_in_bounded_steps_and_readers_see_them_all_the_time() {
    let dir = scratch();
    let mut store = SledStore::open(dir.path()).unwrap();
    store.bounds(20_000, 10_000, MOVED_ROWS_MAX);
    let reader = store.reader();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let key = |n: u64| [b"h", n.to_be_bytes().as_slice()].concat();
    let written = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|s| {
        let reads = s.spawn(|| {
            let mut reads = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let least = written.load(std::sync::atomic::Ordering::SeqCst);
                let mut next = 0;
                let mut visit = |k: &[u8], v: &[u8]| {
                    assert_eq!((key(next).as_slice(), next.to_string().as_bytes()), (k, v), "at least {least}");
                    next += 1;
                    true
                };
                reader.scan(b"h", &mut visit).unwrap();
                assert!(next >= least, "{next} rows of {least}");
                assert!(least == 0 || reader.get(&key(reads % least)).unwrap().is_some());
                let mut first = 0;
                reader
                    .scan(b"h", &mut |_, _| {
                        first += 1;
                        first < 3
                    })
                    .unwrap();
                assert!(first <= 3);
                reads += 1;
            }
            reads
        });
        for n in 0..300u64 {
            let rows = (n * 20..n * 20 + 20).map(|n| (key(n), Some(n.to_string().into_bytes()))).collect();
            store.commit(&Batch { rows, changes: vec![(n + 1, vec![1; 50])], truncate_below: Some(n) }).unwrap();
            written.store(n * 20 + 20, std::sync::atomic::Ordering::SeqCst);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reads.join().unwrap() > 0);
    });
    let segments = std::fs::read_dir(dir.path().join("log")).unwrap().count();
    assert!(segments <= 4, "{segments} segments");
    drop((store, reader));
    let moved = dump(&sled(dir.path())).len();
    assert!(moved > 5_000 && MOVED_ROWS_MAX < 5_000, "{moved} rows in the table");
}

#[test]
fn replaced_values_leave_no_parts_and_no_page_leaves_the_synced_file() {
    let dir = scratch();
    let mut store = SledStore::open(dir.path()).unwrap();
    store.bounds(1 << 20, 0, 1_000);
    let big = vec![3; 64 * 1024];
    for _ in 0..8u64 {
        let rows = (0..20u8).map(|k| (vec![k], Some(big.clone()))).chain([(vec![0], Some(big.clone()))]).collect();
        store.commit(&Batch { rows, ..Batch::default() }).unwrap();
    }
    assert_eq!(0, std::fs::read_dir(dir.path().join("sled/blobs")).unwrap().count(), "a page outside of the synced file");
    store.commit(&Batch { rows: (0..20u8).map(|k| (vec![k], None)).collect(), ..Batch::default() }).unwrap();
    drop(store);
    assert!(dump(&sled(dir.path())).is_empty());
}

#[test]
fn a_full_disk_refuses_before_it_acknowledges_and_the_same_batch_goes_in_when_there_is_room() {
    let dir = scratch();
    let mut store = SledStore::open(dir.path()).unwrap();
    let batch = |n: u64| Batch { rows: vec![(vec![n as u8], Some(vec![1]))], changes: vec![(n, vec![])], ..Batch::default() };
    store.commit(&batch(1)).unwrap();
    let before = content(&store);
    let good = store.log_mut().swap_file(File::options().write(true).open("/dev/full").unwrap());
    let e = store.commit(&batch(2)).unwrap_err();
    assert!(matches!(&e, StoreError::Full { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{e}");
    assert!(e.to_string().contains("log/0000000001") && e.to_string().contains("make room"), "{e}");
    assert_eq!(before, content(&store));
    store.log_mut().swap_file(good);
    store.commit(&batch(2)).unwrap();
    let after = content(&store);
    drop(store);
    let mut store = SledStore::open(dir.path()).unwrap();
    assert_eq!(after, content(&store));
    // After any other error there is no second try.
    let good = store.log_mut().swap_file(File::open("/dev/null").unwrap());
    assert!(matches!(store.commit(&batch(3)).unwrap_err(), StoreError::Io { .. }));
    store.log_mut().swap_file(good);
    assert!(store.commit(&batch(3)).unwrap_err().to_string().contains("an earlier commit failed"));
    assert_eq!(after, content(&store));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_batches_over_many_segments_and_restarts_agree_with_the_model(drafts in drafts(60, 9_000), restarts in 1usize..20) {
        let dir = scratch();
        let mut open = None;
        let (mut model, mut next) = (Model::default(), 1);
        for (i, draft) in drafts.iter().enumerate() {
            let store = open.get_or_insert_with(|| {
                let mut store = SledStore::open(dir.path()).unwrap();
                store.bounds(3_000, 2_000, 6);
                store
            });
            let batch = draft.batch(&mut next);
            store.commit(&batch).unwrap();
            model.take(&batch);
            prop_assert_eq!(&model.content, &content(store));
            if i % restarts == 0 {
                drop(open.take());
            }
        }
        drop(open);
        prop_assert_eq!(model.content, content(&SledStore::open(dir.path()).unwrap()));
    }
}
