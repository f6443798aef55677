//! The stored form is a promise: what version 1 wrote is read by every later one. The golden file holds a store as it was after a scripted run: changes
//! and rows, in hex. When a record gets a new field, add a file of the new form, and keep reading this one.

use intergrid_proto::link::WantValue;
use intergrid_proto::{Phase, SiteId, TaskSet};
use prost::Message;

use super::apply::RowKey;
use super::change::Change;
use super::schedule::FirstFit;
use super::state::State;
use super::tests::{World, sleep, tower};
use super::{Core, Now};
use crate::store::mem::MemDisk;
use crate::store::{Batch, Reader, Store};

const FILE: &str = "tests/golden/core-v1.txt";
/// With what a recovery adds: names of older incarnations, adoption, doubt.
const RECOVERED: &str = "tests/golden/core-v1-recovered.txt";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// Placements, ends, returns, fences, registers, a checkpoint in the middle: the middle of a tower of three.
fn scripted() -> (MemDisk, intergrid_proto::link::Hop) {
    let mut w = World::new();
    w.checkpoint = 40;
    let sites = tower(&mut w, 2);
    let mut spec = sleep(400);
    spec.disconnect_timeout_ms = 500;
    let (job, _) = w.submit(sites[0], "golden", spec.clone(), 5_000).unwrap();
    w.pass(1_500);
    w.want(sites[0], job, WantValue::Hold, Some(TaskSet::range(4_000..4_500)));
    w.cut(sites[2], sites[1]);
    w.pass(1_000);
    w.want(sites[0], job, WantValue::Cancel, Some(TaskSet::range(4_900..5_000)));
    w.pass(200);
    let site = &w.sites[&sites[1]];
    (site.disk.clone(), site.core.me().clone())
}

/// The middle of a tower that went back to an old copy, and then its parent did: what it adopted, and what its parent adopted of it.
fn recovered() -> MemDisk {
    let mut w = World::new();
    w.checkpoint = 30;
    let sites = tower(&mut w, 2);
    let mut spec = sleep(400);
    spec.on_lost = intergrid_proto::spec::OnLost::Wait;
    w.submit(sites[0], "golden", spec, 200).unwrap();
    let copies = |w: &World| [0, 1].map(|k| w.sites[&sites[k]].disk.copy());
    w.pass(1_000);
    let [root, _] = copies(&w);
    w.pass(1_000);
    w.restart_with(sites[0], root);
    w.pass(8_000);
    // From here on the log is kept.
    let [root, middle] = copies(&w);
    w.pass(1_000);
    w.checkpoint = 100_000;
    w.restart_with(sites[1], middle);
    w.pass(700);
    w.restart_with(sites[0], root);
    w.pass(300);
    w.sites[&sites[1]].disk.clone()
}

fn dump(disk: &MemDisk) -> String {
    let store = disk.open().unwrap();
    let mut out = String::new();
    store
        .scan(b"", &mut |k, v| {
            out += &format!("r {} {}\n", hex(k), hex(v));
            true
        })
        .unwrap();
    store
        .changes(0, &mut |n, v| {
            out += &format!("c {n} {}\n", hex(v));
            true
        })
        .unwrap();
    out
}

/// The golden store; `rows` and `changes` say which part of it.
fn golden(file: &str, rows: bool, changes: bool) -> MemDisk {
    if std::env::var_os("INTERGRID_WRITE_GOLDEN").is_some() {
        std::fs::write(file, dump(&if file == FILE { scripted().0 } else { recovered() })).unwrap();
    }
    let disk = MemDisk::new();
    let mut batch = Batch::default();
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let (a, b) = line[2..].split_once(' ').unwrap();
        match &line[..1] {
            "r" if rows => batch.rows.push((unhex(a), Some(unhex(b)))),
            "c" if changes => batch.changes.push((a.parse().unwrap(), unhex(b))),
            _ => {}
        }
    }
    disk.open().unwrap().commit(&batch).unwrap();
    disk
}

fn row_key(bytes: &[u8]) -> Option<RowKey> {
    let number = |r: std::ops::Range<usize>| bytes[r].iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
    Some(match bytes[0] {
        b'm' => RowKey::Meta,
        b'j' => RowKey::Job(number(1..9)),
        b'c' => RowKey::Chunk(number(1..9), number(9..13) as u32),
        b'u' => RowKey::Up(number(1..9), number(9..13) as u32),
        b'd' => RowKey::Down(number(1..9), number(9..17)),
        b'l' => RowKey::Link(SiteId::from_slice(&bytes[1..])?),
        b'k' => RowKey::Child(SiteId::from_slice(&bytes[1..])?),
        _ => return None,
    })
}

#[test]
fn every_record_is_written_as_it_was() {
    as_it_was(FILE);
}

#[test]
fn every_record_of_a_recovery_is_written_as_it_was() {
    as_it_was(RECOVERED);
    let text = std::fs::read_to_string(RECOVERED).unwrap();
    let kinds: Vec<Change> =
        text.lines().filter_map(|l| l.strip_prefix("c ")?.split_once(' ')).map(|(_, b)| Change::decode(&unhex(b)[..]).unwrap()).collect();
    let has = |is: fn(&super::change::What) -> bool| kinds.iter().filter_map(|c| c.what.as_ref()).any(is);
    use super::change::What;
    assert!(has(|w| matches!(w, What::Born(b) if b.recovering)) && has(|w| matches!(w, What::Placed(p) if p.adopt.is_some())));
    assert!(has(|w| matches!(w, What::Doubted(_))) && has(|w| matches!(w, What::Adopted(_))));
}

fn as_it_was(file: &str) {
    let store = golden(file, true, true).open().unwrap();
    let mut changes = 0;
    store
        .changes(0, &mut |n, bytes| {
            assert_eq!(Change::decode(bytes).unwrap().encode_to_vec(), bytes, "change {n}");
            changes += 1;
            true
        })
        .unwrap();
    let rows_only = golden(file, true, false).open().unwrap();
    let (state, _, next) = State::load(&rows_only).unwrap();
    let mut tables = std::collections::BTreeSet::new();
    rows_only
        .scan(b"", &mut |key, bytes| {
            if let Some(k) = row_key(key) {
                assert_eq!(state.row(k, next).as_deref(), Some(bytes), "row {k:?}");
                tables.insert(key[0]);
            }
            true
        })
        .unwrap();
    assert_eq!(tables.len(), 7, "every table is in the golden file");
    assert!(changes > 5);
}

#[test]
fn a_store_of_version_1_is_loaded() {
    let disk = golden(FILE, true, true);
    let (_, hop) = scripted();
    let core = Core::load(hop, &disk.open().unwrap(), Box::new(FirstFit), Now::default(), 1).unwrap();
    let job = core.state().jobs.values().next().expect("the job");
    assert_eq!(5_000, job.size);
    assert!(job.count(Phase::Done) > 0, "{:?}", job.counts);
    assert_eq!(job.counts.iter().sum::<u64>(), 5_000);
}
