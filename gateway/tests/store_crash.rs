//! kill -9 of a small writer process: whatever it acknowledged is there afterwards, and every batch is there whole or not at all.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use intergrid_gateway::store::{Batch, SledStore, Store};

const ROUNDS: u32 = 50;
const ROWS: u64 = 5;
const CHANGES: u64 = 3;
/// Every so many batches, one larger than sled's segment (512 KiB).
const LARGE_EVERY: u64 = 23;
/// The directory that the writer works in; without it, the "test" below does nothing.
const WRITER_ENV: &str = "INTERGRID_TEST_STORE_WRITER";

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

/// The batch that is there, after looking that it is whole.
fn last_whole_batch(store: &dyn Store) -> u64 {
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
    n
}

/// Not a test of its own: the process that is killed.
#[test]
fn writer() {
    let Some(dir) = std::env::var_os(WRITER_ENV) else { return };
    let mut store = SledStore::open(dir).unwrap();
    let first = last_whole_batch(&store) + 1;
    for n in first.. {
        store.commit(&batch(n)).unwrap();
        println!("ack {n}.");
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_50_rounds_of_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let mut random = seed | 1;
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(WRITER_ENV, dir.path())
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
        let store = SledStore::open(dir.path()).unwrap();
        let found = last_whole_batch(&store);
        assert!(found >= acknowledged, "round {round}, seed {seed}: {acknowledged} was acknowledged, {found} is there");
    }
    println!("{ROUNDS} rounds, {acknowledged} batches acknowledged, none lost");
    assert!(acknowledged >= u64::from(ROUNDS / 2), "the writer hardly got to work: {acknowledged} batches");
}
