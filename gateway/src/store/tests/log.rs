use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::super::log::{Body, Log};
use super::super::{Batch, StoreError};
use super::{drafts, scratch};

const SEGMENT_BYTES: u64 = 1_500;

type Owned = Vec<(Vec<u8>, Option<Vec<u8>>)>;

fn open(dir: &Path) -> Result<(Log, BTreeMap<u64, Owned>), StoreError> {
    let mut rows = BTreeMap::new();
    let mut take = |n: u64, body: Body<'_>| {
        rows.insert(n, body.rows.iter().map(|(k, v)| (k.to_vec(), v.map(<[u8]>::to_vec))).collect());
    };
    let mut log = Log::open(dir, "s", &mut take)?;
    log.segment_bytes(SEGMENT_BYTES);
    Ok((log, rows))
}

fn changes(log: &Log) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut visit = |n: u64, bytes: &[u8]| {
        found.push((n, bytes.to_vec()));
        true
    };
    log.changes(0, &mut visit).unwrap();
    found
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Change `n` alone, of so many bytes.
fn one(n: u64, bytes: usize) -> Batch {
    Batch { rows: vec![(vec![n as u8], Some(vec![n as u8]))], changes: vec![(n, vec![n as u8; bytes])], ..Batch::default() }
}

/// The layout, byte by byte. When this must change, so must the store's format, and this one must still open.
#[test]
fn golden_layout() {
    let dir = scratch();
    let home = dir.path().join("log");
    let mut log = Log::create(&home, "s", 5).unwrap();
    let rows = vec![(b"j1".to_vec(), Some(b"row".to_vec())), (b"k".to_vec(), None)];
    let batch = Batch { rows, changes: vec![(258, b"xy".to_vec())], truncate_below: Some(6) };
    log.append(&batch, 0).unwrap();
    let bytes = std::fs::read(home.join("0000000001")).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let header = "69676c6f67000001 0000000000000001 0000000000000001 0000000000000005 0000000000000005 0000000000000000";
    assert_eq!(header.replace(' ', ""), hex(&bytes[..48]), "then a salt and a check");
    assert_eq!("69677201 00000030 0000000000000001".replace(' ', ""), hex(&bytes[64..80]), "then a check");
    let body = "0000000000000006 00000002 0002 6a31 00000004 726f77 0001 6b 00000000 00000001 0000000000000102 00000002 7879";
    assert_eq!(body.replace(' ', ""), hex(&bytes[88..88 + 0x30]));
    assert!(bytes[88 + 0x30..].iter().all(|b| *b == 0) && bytes.len() == 256 << 10);
}

#[test]
fn segments_follow_each_other_and_go_when_nobody_needs_them() {
    let dir = scratch();
    let home = dir.path().join("log");
    drop(Log::create(&home, "s", 0).unwrap());
    let (mut log, _) = open(&home).unwrap();
    // Each fills a segment.
    (1..=5).for_each(|n| _ = log.append(&one(n, SEGMENT_BYTES as usize), 0).unwrap());
    assert_eq!(["0000000001", "0000000002", "0000000003", "0000000004", "0000000005"].as_slice(), files(&home));
    log.release(2).unwrap();
    assert_eq!(5, files(&home).len(), "no change is forgotten");
    log.append(&Batch { truncate_below: Some(4), ..Batch::default() }, 2).unwrap();
    log.release(2).unwrap();
    assert_eq!(["0000000003", "0000000004", "0000000005", "0000000006"].as_slice(), files(&home), "the rows of 3 are not in the table");
    drop(log);
    let (mut log, rows) = open(&home).unwrap();
    assert_eq!(vec![3, 4, 5, 6], rows.into_keys().collect::<Vec<_>>());
    assert_eq!(vec![4, 5], changes(&log).into_iter().map(|c| c.0).collect::<Vec<_>>());
    log.release(6).unwrap();
    assert_eq!(["0000000004", "0000000005", "0000000006"].as_slice(), files(&home));
    // A hole, and a segment missing whose changes are not forgotten.
    drop(log);
    for (gone, says) in [("0000000005", "log/0000000005, which is missing"), ("0000000004", "change 4 is missing")] {
        let kept = std::fs::read(home.join(gone)).unwrap();
        std::fs::remove_file(home.join(gone)).unwrap();
        let e = open(&home).err().unwrap().to_string();
        assert!(e.contains(says), "{e}");
        std::fs::write(home.join(gone), kept).unwrap();
    }
    files(&home).iter().for_each(|f| std::fs::remove_file(home.join(f)).unwrap());
    assert!(matches!(open(&home), Err(StoreError::Damaged { .. })));
}

#[test]
fn users_bytes_that_look_like_records_are_none() {
    let dir = scratch();
    let home = dir.path().join("log");
    let mut log = Log::create(&home, "s", 0).unwrap();
    log.append(&one(1, 10), 0).unwrap();
    let file = home.join("0000000001");
    let record = std::fs::read(&file).unwrap()[64..64 + 24 + 60].to_vec();
    let fakes = (0..2_000).flat_map(|_| record[..24].to_vec()).collect::<Vec<u8>>();
    log.append(&Batch { changes: vec![(2, fakes)], ..Batch::default() }, 0).unwrap();
    drop(log);
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap();
    bytes[end - 5] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (log, _) = open(&home).unwrap();
    assert_eq!(vec![1], changes(&log).into_iter().map(|c| c.0).collect::<Vec<_>>());
}

/// As a disk that writes somewhere else would have it.
#[test]
fn a_good_record_in_the_wrong_place_is_damage() {
    let dir = scratch();
    let (home, other) = (dir.path().join("log"), dir.path().join("other"));
    let mut places = Vec::new();
    for home in [&home, &other] {
        let mut log = Log::create(home, "s", 0).unwrap();
        places = (1..=3)
            .map(|n| {
                log.append(&one(n, 10), 0).unwrap();
                log.last_record_bytes(&one(n, 10))
            })
            .collect();
    }
    let (whole, other) = (std::fs::read(home.join("0000000001")).unwrap(), std::fs::read(other.join("0000000001")).unwrap());
    let (first, second) = (places[0].0..places[0].1, places[1].0..places[1].1);
    for (what, from) in [("an older record", &whole[first]), ("another log's", &other[second.clone()])] {
        let mut bytes = whole.clone();
        bytes[second.clone()].copy_from_slice(from);
        std::fs::write(home.join("0000000001"), bytes).unwrap();
        let e = open(&home).err().unwrap_or_else(|| panic!("{what}")).to_string();
        assert!(e.contains(&format!("log/0000000001, byte {}", second.start)), "{what}: {e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Power may go while the last record is written: at any byte, with or without zeros behind it.
    #[test]
    fn a_tail_cut_at_every_byte_loses_the_last_record_and_nothing_else(drafts in drafts(12, 400)) {
        let dir = scratch();
        let home = dir.path().join("log");
        drop(Log::create(&home, "s", 0).unwrap());
        let (mut log, _) = open(&home).unwrap();
        let mut next = 1;
        let mut before = Vec::new();
        let (mut file, mut place) = (home.clone(), (0, 0));
        for draft in &drafts {
            before = changes(&log);
            let batch = draft.batch(&mut next);
            log.append(&batch, 0).unwrap();
            (file, place) = (home.join(files(&home).last().unwrap()), log.last_record_bytes(&batch));
        }
        let all = changes(&log);
        drop(log);
        let whole = std::fs::read(&file).unwrap();
        // The last record may end with zeros that are its own: cut by place, not by looks.
        let (start, end) = place;
        for cut in start..=end {
            let zeros = if cut % 2 == 0 { 0 } else { 700 };
            std::fs::write(&file, [&whole[..cut], &vec![0; zeros]].concat()).unwrap();
            let (mut log, rows) = open(&home).unwrap();
            // Zeros that were to come are as good as written.
            let kept = whole[cut..end].iter().all(|b| *b == 0) && cut + zeros >= end;
            prop_assert_eq!(drafts.len() - usize::from(!kept), rows.len());
            prop_assert_eq!(if kept { &all } else { &before }, &changes(&log));
            if cut % 16 == 0 {
                // What comes next does not mix with what was left there.
                let n = log.last().unwrap_or(0) + 1;
                log.append(&one(n, 5), 0).unwrap();
                drop(log);
                prop_assert_eq!(Some((n, vec![n as u8; 5])), changes(&open(&home).unwrap().0).last().cloned());
                for newer in files(&home).into_iter().map(|f| home.join(f)).filter(|f| *f > file) {
                    std::fs::remove_file(newer).unwrap();
                }
            }
        }
    }

    /// A flipped bit is found, whatever it hits; only in the very last record it passes for a torn one.
    #[test]
    fn damage_in_the_middle_names_file_and_place(drafts in drafts(12, 5_000), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let dir = scratch();
        let home = dir.path().join("log");
        drop(Log::create(&home, "s", 0).unwrap());
        let (mut log, _) = open(&home).unwrap();
        let (mut next, mut records) = (1, Vec::new());
        for draft in &drafts {
            let batch = draft.batch(&mut next);
            log.append(&batch, 0).unwrap();
            records.push((files(&home).last().unwrap().clone(), log.last_record_bytes(&batch)));
        }
        let found = changes(&log);
        drop(log);
        let k = at.index(records.len());
        let (file, (start, end)) = records[k].clone();
        let mut bytes = std::fs::read(home.join(&file)).unwrap();
        bytes[start + at.index(end - start)] ^= 1 << bit;
        std::fs::write(home.join(&file), bytes).unwrap();
        match open(&home) {
            Err(e) => prop_assert!(e.to_string().contains(&format!("log/{file}, byte {start}")), "{}", e),
            Ok((log, rows)) => {
                prop_assert_eq!(k + 1, records.len(), "only the last one");
                prop_assert_eq!(k, rows.len());
                prop_assert!(found.starts_with(&changes(&log)) || drafts[k].truncate.is_some());
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300) {
        let dir = scratch();
        let home = dir.path().join("log");
        let mut log = Log::create(&home, "s", 0).unwrap();
        log.append(&one(1, 10), 0).unwrap();
        drop(log);
        let file = home.join("0000000001");
        let mut all = std::fs::read(&file).unwrap();
        all[at..at + bytes.len()].copy_from_slice(&bytes);
        std::fs::write(&file, all).unwrap();
        let _ = open(&home);
    }
}
