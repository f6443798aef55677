//! The stored form is a promise: what version 1 wrote is read by every later one. The golden file holds a store as it was after a scripted run: changes
//! and rows, in hex. When this fails because a record got a new field, keep the old file beside the new one, and read both.

use intergrid_proto::link::WantValue;
use intergrid_proto::{Phase, TaskSet};

use super::schedule::FirstFit;
use super::tests::{World, sleep, tower};
use super::{Core, Now};
use crate::store::mem::MemDisk;
use crate::store::{Batch, Store};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/core-v1.txt");

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

fn dump(disk: &MemDisk) -> String {
    let store = disk.open().unwrap();
    let mut out = String::new();
    store.scan(b"", &mut |k, v| {
        out += &format!("r {} {}\n", hex(k), hex(v));
        true
    })
    .unwrap();
    store.changes(0, &mut |n, v| {
        out += &format!("c {n} {}\n", hex(v));
        true
    })
    .unwrap();
    out
}

#[test]
fn the_stored_form_is_the_golden_one() {
    let now = dump(&scripted().0);
    if std::env::var_os("INTERGRID_WRITE_GOLDEN").is_some() {
        std::fs::write(FILE, &now).unwrap();
    }
    let golden = std::fs::read_to_string(FILE).unwrap();
    for (line, (a, b)) in golden.lines().zip(now.lines()).enumerate() {
        assert_eq!(a, b, "line {}", line + 1);
    }
    assert_eq!(golden.lines().count(), now.lines().count());
}

#[test]
fn a_store_of_version_1_is_loaded() {
    let disk = MemDisk::new();
    let mut batch = Batch::default();
    for line in std::fs::read_to_string(FILE).unwrap().lines() {
        let (a, b) = line[2..].split_once(' ').unwrap();
        match &line[..1] {
            "r" => batch.rows.push((unhex(a), Some(unhex(b)))),
            _ => batch.changes.push((a.parse().unwrap(), unhex(b))),
        }
    }
    disk.open().unwrap().commit(&batch).unwrap();
    let (_, hop) = scripted();
    let core = Core::load(hop, &disk.open().unwrap(), Box::new(FirstFit), Now::default(), 1).unwrap();
    let job = core.state().jobs.values().next().expect("the job");
    assert_eq!(5_000, job.size);
    assert!(job.count(Phase::Done) > 0, "{:?}", job.counts);
    assert_eq!(job.counts.iter().sum::<u64>(), 5_000);
}
