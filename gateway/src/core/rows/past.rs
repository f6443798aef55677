//! The header of a past job. A small one has all of it, and no other rows: each page of the table (some 8 rows) costs the store memory for good.

use std::sync::Arc;

use intergrid_proto::BlobHash;
use prost::Message;

use super::super::apply::RowKey;
use super::super::limits::{PARTS_INSIDE_MAX, RUNS_INSIDE_MAX, WORDS_INSIDE_BYTES_MAX};
use super::super::state::{CHUNK_TASKS, Job, Spec};
use super::{FailureRow, JobRow, chunk_of, encode_chunk, fill, hash_of, header, job_of, up_of, up_row};
use crate::store::{Reader, StoreError};

/// The rows of a job beside its header.
pub fn parts(j: &Job) -> Vec<RowKey> {
    let chunks = (0..j.chunks.len()).map(|k| RowKey::Chunk(j.no, k as u32));
    chunks.chain(j.ups.keys().map(|k| RowKey::Up(j.no, *k))).collect()
}

/// Is it so small that, when it is past, all of it is in its header?
pub fn is_small(j: &Job) -> bool {
    let words = || j.ups.values().map(|e| e.share.len()).sum::<usize>();
    j.chunks.len() + j.ups.len() <= PARTS_INSIDE_MAX && j.runs(|c| *c).len() <= RUNS_INSIDE_MAX && words() <= WORDS_INSIDE_BYTES_MAX
}

/// The header of a job that is past: with what is derived, for people.
pub fn past_row(j: &Job) -> Vec<u8> {
    let failures = j.failures.iter().map(|(r, n)| FailureRow { reason: Some(r.clone().into()), tasks: *n }).collect();
    let mut row = JobRow { counts: j.counts.to_vec(), failures, notes: j.notes, ..header(j) };
    if j.inside {
        row.ups = j.ups.iter().map(|(at, e)| up_row(j, e, *at)).collect();
        row.chunks = (0..).zip(&j.chunks).map(|(k, c)| encode_chunk(c, j.size - k * CHUNK_TASKS)).collect();
    }
    row.encode_to_vec()
}

/// Its parents' placements and chunks, from its header.
fn fill_inside(row: JobRow, job: &mut Job) -> Option<()> {
    let of = (job.parent_incarnation, job.parent_job);
    job.ups = row.ups.into_iter().map(|r| up_of(r.at, r, of, &mut |share| share.into())).collect();
    job.chunks = (0..).zip(&row.chunks).map(|(at, bytes)| chunk_of(job.size, at, bytes)).collect::<Option<_>>()?;
    (job.chunks.len() == job.size.div_ceil(CHUNK_TASKS) as usize).then_some(())
}

/// Where a spec is read from.
type SpecOf<'a> = dyn FnMut(BlobHash) -> Result<Option<Arc<Spec>>, StoreError> + 'a;

/// A past job from its header; `whole`: with its cells.
pub fn read_job(store: &dyn Reader, bytes: &[u8], whole: bool, spec: &mut SpecOf<'_>) -> Result<Job, StoreError> {
    let damaged = |what: &str| StoreError::Damaged { path: "(open)".into(), what: format!("{what} of a past job") };
    let row = JobRow::decode(bytes).map_err(|_| damaged("the header"))?;
    let spec = spec(hash_of(&row))?.ok_or_else(|| damaged("the spec"))?;
    let mut job = job_of(&row, spec).ok_or_else(|| damaged("the header"))?;
    job.inside = !row.chunks.is_empty();
    match (whole, job.inside) {
        (true, true) => fill_inside(row, &mut job).ok_or_else(|| damaged("a chunk"))?,
        (true, false) => fill(store, &mut job, &mut |share| share.into())?,
        (false, _) => {}
    }
    Ok(job)
}
