//! Durable batches a second of the embedded store: `cargo run --release -p intergrid-gateway --example store_speed [DIRECTORY]`.

use std::time::{Duration, Instant};

use intergrid_gateway::store::{Batch, SledStore, Store, StoreError};

const RECORD_BYTES: usize = 600;
const SECONDS: u64 = 3;

fn main() -> Result<(), StoreError> {
    let dir = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into).join(format!("store_speed.{}", std::process::id()));
    for records in [1u64, 64, 1000] {
        let mut store = SledStore::open(dir.join(records.to_string()))?;
        let (began, mut batches, mut next) = (Instant::now(), 0u64, 1u64);
        while began.elapsed() < Duration::from_secs(SECONDS) {
            let changes = (next..next + records).map(|n| (n, vec![n as u8; RECORD_BYTES])).collect();
            store.commit(&Batch { changes, truncate_below: Some(next.saturating_sub(100_000)), ..Batch::default() })?;
            batches += 1;
            next += records;
        }
        let rate = batches as f64 / began.elapsed().as_secs_f64();
        println!("{records:>5} records of {RECORD_BYTES} bytes: {rate:>8.0} batches/s, {:>8.0} records/s", rate * records as f64);
    }
    std::fs::remove_dir_all(&dir).map_err(|source| StoreError::Io { path: dir.display().to_string(), source })
}
