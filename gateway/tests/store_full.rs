//! A store on a real disk of 8 MiB that is full: what was committed stays, a batch that finds no room goes in later as it is, and rows that could not move into
//! the table move when there is room.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use intergrid_gateway::store::{Batch, Reader as _, SledStore, Store, StoreError};
use intergrid_proto::net::disk::Disk;

const ROW_BYTES: usize = 2_000;

/// A tmpfs, for as long as the test runs.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Small {
        let dir = tempfile::tempdir().unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "intergrid-test"]).arg(dir.path()).output().expect("`mount` is missing");
        let said = String::from_utf8_lossy(&mount.stderr).into_owned();
        assert!(mount.status.success(), "a tmpfs can't be mounted: {said}this test needs root (CAP_SYS_ADMIN)");
        Small(dir)
    }

    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("filler");
        let mut file = File::options().create(true).append(true).open(&path).unwrap();
        for bytes in [64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![7; bytes]).is_ok() {}
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn batch(n: u64) -> Batch {
    let row = |k: u64| (k.to_be_bytes().to_vec(), Some(vec![n as u8; ROW_BYTES]));
    Batch { rows: (n * 10..n * 10 + 10).map(row).collect(), changes: vec![(n + 1, vec![1; 50])], ..Batch::default() }
}

fn check(dir: &Path, store: &SledStore, batches: u64) {
    for k in 0..batches * 10 {
        let row = store.get(&k.to_be_bytes()).unwrap().unwrap_or_else(|| panic!("row {k} of {} in {}", batches * 10, dir.display()));
        assert_eq!(vec![(k / 10) as u8; ROW_BYTES], row);
    }
    let mut changes = 0;
    store
        .changes(0, &mut |_, _| {
            changes += 1;
            true
        })
        .unwrap();
    assert_eq!(batches, changes);
}

/// Commit until there is no room; returns the number of the batch that found none.
fn until_full(store: &mut SledStore, from: u64) -> u64 {
    for n in from.. {
        match store.commit(&batch(n)) {
            Ok(()) => assert!(n < from + 1_000, "8 MiB are never full"),
            Err(e @ StoreError::Full { .. }) => {
                assert!(e.is_full() && e.to_string().contains("make room"), "{e}");
                return n;
            }
            Err(e) => panic!("batch {n}: {e}"),
        }
    }
    unreachable!()
}

#[test]
fn a_table_that_finds_no_room_half_way_is_opened_anew_and_nothing_is_lost() {
    let small = Small::new();
    let dir = small.0.path().join("store");
    // Without a look at what is free before rows move: the table finds out for itself.
    let mut store = SledStore::open(&dir).unwrap();
    let begun = 60;
    (0..begun).for_each(|n| store.commit(&batch(n)).unwrap());
    let filler = small.fill();
    let stopped = until_full(&mut store, begun);
    assert!(stopped > begun, "what was laid ahead is used");
    // The table that found no room may not be readable before there is some: what is there is looked at afterwards.
    assert!(matches!(store.commit(&batch(stopped)), Err(StoreError::Full { .. })), "as often as one likes");
    fs::remove_file(&filler).unwrap();
    (stopped..stopped + 20).for_each(|n| store.commit(&batch(n)).unwrap());
    check(&dir, &store, stopped + 20);
    drop(store);
    check(&dir, &SledStore::open(&dir).unwrap(), stopped + 20);
}

#[test]
fn the_ballast_is_given_up_before_a_batch_is_refused() {
    let small = Small::new();
    let disk = Disk::open(small.0.path(), Some(1 << 20), "x").unwrap();
    assert!(disk.has_ballast());
    let dir = small.0.path().join("store");
    let mut store = SledStore::open(&dir).unwrap().on(disk.clone());
    (0..10).for_each(|n| store.commit(&batch(n)).unwrap());
    let filler = small.fill();
    let stopped = until_full(&mut store, 10);
    assert!(!disk.has_ballast());
    let bytes = (stopped - 10) * 10 * ROW_BYTES as u64;
    assert!(bytes > 900 << 10, "{bytes} bytes were written into the room of the ballast");
    check(&dir, &store, stopped);
    fs::remove_file(&filler).unwrap();
    assert!(disk.look().is_none() && disk.has_ballast());
    store.commit(&batch(stopped)).unwrap();
    drop(store);
    check(&dir, &SledStore::open(&dir).unwrap(), stopped + 1);
}
