//! kill -9 of a small writer process: whatever it acknowledged is there afterwards, and every batch is there whole or not at all.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use intergrid_gateway::store::{Batch, SledStore, Store};

const ROUNDS: u32 = 50;
const ROWS: u64 = 5;
const CHANGES: u64 = 3;
/// Every so many batches, one larger than sled's segment (512 KiB).
const LARGE_EVERY: u64 = 23;
/// Rows of their own that each batch has beside these, where rows are to move into the table all the time; kept for so many batches.
const OWN_ROWS: u64 = 300;
const OWN_KEPT: u64 = 40;
/// The directory that the writer works in; without it, the "test" below does nothing.
const WRITER_ENV: &str = "INTERGRID_TEST_STORE_WRITER";
/// Own rows of each batch.
const OWN_ENV: &str = "INTERGRID_TEST_STORE_OWN_ROWS";

/// Batch `n` writes the same rows as every other, with `n` in them, and the changes after those of batch `n - 1`.
fn batch(n: u64) -> Batch {
    let bytes = |i: u64| if n.is_multiple_of(LARGE_EVERY) { 60_000 } else { 600 * (1 + (n * 7 + i) % 12) as usize };
    let value = |i: u64| [&n.to_be_bytes()[..], &vec![n as u8; bytes(i)]].concat();
    let mut rows: Vec<_> = (0..ROWS).map(|i| (vec![b'r', i as u8 * 50], Some(value(i)))).collect();
    // Rows that come and go, so that pages split and merge.
    rows.extend((0..40).map(|i| (vec![b'x', i, (n % 7) as u8], (n + u64::from(i)).is_multiple_of(3).then(|| value(1)))));
    let changes = (0..CHANGES).map(|i| (n * CHANGES + i, value(i))).collect();
    Batch { rows, changes, truncate_below: n.is_multiple_of(50).then(|| (n - n.min(30)) * CHANGES) }
}

/// With rows of its own, as history has them; those of an old batch go.
fn batch_with_own(n: u64, own: u64) -> Batch {
    let mut batch = batch(n);
    let key = |n: u64, i: u64| [b"h", n.to_be_bytes().as_slice(), &i.to_be_bytes()].concat();
    batch.rows.extend((0..own).map(|i| (key(n, i), Some(vec![n as u8; 300 + (i * n % 700) as usize]))));
    batch.rows.extend((0..own).filter_map(|i| Some((key(n.checked_sub(OWN_KEPT)?, i), None))));
    batch
}

/// The batch that is there, after looking that it is whole.
fn last_whole_batch(store: &dyn Store, own: u64) -> u64 {
    let row = |i: u64| store.get(&[b'r', i as u8 * 50]).unwrap();
    let n = row(0).map_or(0, |v| u64::from_be_bytes(v[..8].try_into().unwrap()));
    if n == 0 {
        assert!((0..ROWS).all(|i| row(i).is_none()), "a torn first batch");
        return 0;
    }
    let want = batch(n);
    for (key, value) in &want.rows {
        assert_eq!(*value, store.get(key).unwrap(), "row {key:?} of batch {n}");
    }
    let mut numbers = Vec::new();
    let mut visit = |number: u64, bytes: &[u8]| {
        let of = number / CHANGES;
        assert!(bytes[..8] == of.to_be_bytes() && bytes[8..].iter().all(|b| *b == of as u8), "change {number}");
        numbers.push(number);
        true
    };
    store.changes(0, &mut visit).unwrap();
    assert_eq!(Some(n * CHANGES + CHANGES - 1), numbers.last().copied(), "the last change of batch {n}");
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "a hole in {numbers:?}");
    assert!(numbers.len() as u64 >= CHANGES * n.min(30), "forgot too much at batch {n}");
    let mut wanted =
        (n.saturating_sub(OWN_KEPT - 1).max(1)..=n).flat_map(|n| batch_with_own(n, own).rows).filter(|(k, v)| k[0] == b'h' && v.is_some());
    let mut visit = |k: &[u8], v: &[u8]| {
        assert!(wanted.next().is_some_and(|w| w == (k.to_vec(), Some(v.to_vec()))), "row {k:?} at batch {n}");
        true
    };
    store.scan(b"h", &mut visit).unwrap();
    assert_eq!(None, wanted.next(), "a row that is missing at batch {n}");
    n
}

/// Not a test of its own: the process that is killed.
#[test]
fn writer() {
    let Some(dir) = std::env::var_os(WRITER_ENV) else { return };
    let own = std::env::var(OWN_ENV).unwrap().parse().unwrap();
    let mut store = SledStore::open(dir).unwrap();
    let first = last_whole_batch(&store, own) + 1;
    for n in first.. {
        store.commit(&batch_with_own(n, own)).unwrap();
        println!("ack {n}.");
    }
}

/// One at a time: a process that is being started holds, until its exec, the locks that its parent held.
static ONE: Mutex<()> = Mutex::new(());

#[test]
fn nothing_acknowledged_is_lost_in_50_rounds_of_kill_9() {
    kill_9(tempfile::tempdir().unwrap().path(), 0);
}

#[test]
fn nor_while_rows_move_and_segments_come_and_go() {
    // No power cut, so it needs no disk, and gets further.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let midway = kill_9(dir.path(), OWN_ROWS);
    println!("{midway} rounds ended while a segment was on its way out");
    assert!(midway >= ROUNDS / 10, "{midway}");
    // Left alone for a while, it comes to an end with that.
    let mut store = SledStore::open(dir.path()).unwrap();
    let first = last_whole_batch(&store, OWN_ROWS) + 1;
    (first..first + 120).for_each(|n| store.commit(&batch_with_own(n, OWN_ROWS)).unwrap());
    assert_eq!(first + 119, last_whole_batch(&store, OWN_ROWS));
    assert!(!dir.path().join("log/0000000001").exists(), "the first segment is not needed any more");
}

/// Returns the number of rounds after which the log had more than one segment.
fn kill_9(dir: &std::path::Path, own: u64) -> u32 {
    let _one = ONE.lock();
    let mut midway = 0;
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let mut random = seed | 1;
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(WRITER_ENV, dir)
            .env(OWN_ENV, own.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (mut said, mut complaints) = (String::new(), String::new());
        let mut stdout = BufReader::new(writer.stdout.take().unwrap());
        // Every other round anywhere from its start on, so in its recovery too; else after its first batch.
        while round % 2 == 0 && !said.contains("ack ") && stdout.read_line(&mut said).unwrap() > 0 {}
        std::thread::sleep(Duration::from_micros((random >> 33) % 150_000));
        writer.kill().unwrap();
        stdout.read_to_string(&mut said).unwrap();
        writer.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
        writer.wait().unwrap();
        assert!(!complaints.contains("panicked"), "round {round}, seed {seed}: {complaints}");
        let mut acks = said.lines().filter_map(|l| l.rsplit("ack ").next()?.strip_suffix('.')?.parse::<u64>().ok());
        acknowledged = acks.next_back().unwrap_or(acknowledged).max(acknowledged);
        midway += u32::from(std::fs::read_dir(dir.join("log")).is_ok_and(|d| d.count() > 1));
        let store = SledStore::open(dir).unwrap();
        let found = last_whole_batch(&store, own);
        assert!(found >= acknowledged, "round {round}, seed {seed}: {acknowledged} was acknowledged, {found} is there");
    }
    println!("{ROUNDS} rounds, {acknowledged} batches acknowledged, none lost");
    assert!(acknowledged >= u64::from(ROUNDS / 2), "the writer hardly got to work: {acknowledged} batches");
    midway
}
