//! Rows: the checkpointed form of each entity, and loading. Keys are a table's letter and big-endian numbers; values are prost records, chunks are runs of
//! equal cells. The golden test keeps the form.

mod past;

use std::sync::Arc;

use intergrid_proto::{BlobHash, SiteId, TaskSet, pb};
use prost::Message;
use prost::encoding::{decode_varint, encode_varint};

use super::apply::{Dirty, RowKey};
use super::archive;
use super::cells::Cells;
use super::change::{self, Change};
use super::state::*;
use crate::store::{Reader, Store, StoreError};

pub use past::{is_small, parts, past_row, read_job};

#[derive(Clone, PartialEq, Message)]
struct MetaRow {
    #[prost(uint64, tag = "1")]
    incarnation: u64,
    #[prost(uint64, tag = "2")]
    next_job: u64,
    #[prost(uint64, tag = "3")]
    next_number: u64,
    #[prost(uint64, tag = "4")]
    next_change: u64,
    #[prost(bool, tag = "5")]
    recovering: bool,
    #[prost(uint64, tag = "6")]
    former: u64,
    #[prost(uint64, tag = "7")]
    doubt_from: u64,
    #[prost(uint64, repeated, tag = "8")]
    past: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct JobRow {
    #[prost(message, optional, tag = "1")]
    new: Option<change::JobNew>,
    #[prost(uint64, tag = "2")]
    seq: u64,
    #[prost(uint64, tag = "3")]
    ended_ms: u64,
    #[prost(message, optional, tag = "4")]
    want: Option<pb::Want>,
    #[prost(uint64, tag = "5")]
    want_version: u64,
    #[prost(uint32, tag = "6")]
    next_up: u32,
    #[prost(message, repeated, tag = "7")]
    ended_at: Vec<change::Cursor>,
    #[prost(uint32, optional, tag = "8")]
    at_once: Option<u32>,
    /// Of a past job: how many tasks of each phase, why they failed, how many notes its history has.
    #[prost(uint64, repeated, tag = "9")]
    counts: Vec<u64>,
    #[prost(message, repeated, tag = "10")]
    failures: Vec<FailureRow>,
    #[prost(uint64, tag = "11")]
    notes: u64,
    #[prost(uint64, tag = "12")]
    spent_micro: u64,
    /// Of a small past job: all its parents' placements and chunks, which have no rows of their own.
    #[prost(message, repeated, tag = "13")]
    ups: Vec<UpRow>,
    #[prost(bytes = "vec", repeated, tag = "14")]
    chunks: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct FailureRow {
    #[prost(message, optional, tag = "1")]
    reason: Option<pb::Reason>,
    #[prost(uint64, tag = "2")]
    tasks: u64,
}

#[derive(Clone, PartialEq, Message)]
struct UpRow {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(string, tag = "3")]
    share: String,
    #[prost(uint64, tag = "4")]
    cost: u64,
    #[prost(uint64, tag = "5")]
    open: u64,
    /// Where they are not those of the job's record.
    #[prost(uint64, tag = "6")]
    incarnation: u64,
    #[prost(uint64, tag = "7")]
    job: u64,
    #[prost(uint64, tag = "8")]
    most_micro: u64,
    /// Where it is a part of another row: the job's own count.
    #[prost(uint32, tag = "9")]
    at: u32,
}

#[derive(Clone, PartialEq, Message)]
struct DownRow {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(bytes = "vec", tag = "2")]
    child: Vec<u8>,
    #[prost(string, tag = "3")]
    share: String,
    #[prost(bool, tag = "4")]
    accepted: bool,
    #[prost(uint64, tag = "5")]
    cost: u64,
    #[prost(uint32, tag = "6")]
    attempts: u32,
    #[prost(uint64, tag = "7")]
    open: u64,
    #[prost(uint32, repeated, tag = "8")]
    fenced: Vec<u32>,
    #[prost(message, optional, tag = "9")]
    adopt: Option<pb::Former>,
    #[prost(uint64, tag = "10")]
    most_micro: u64,
}

#[derive(Clone, PartialEq, Message)]
struct LinkRow {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint64, tag = "3")]
    next: u64,
    #[prost(uint64, tag = "4")]
    acked: u64,
    #[prost(uint64, tag = "5")]
    peer_incarnation: u64,
    #[prost(uint64, tag = "6")]
    seen: u64,
    #[prost(message, repeated, tag = "7")]
    wants: Vec<pb::Want>,
    #[prost(uint64, tag = "8")]
    wants_seq: u64,
    #[prost(uint64, tag = "9")]
    complete_from: u64,
    #[prost(uint64, tag = "10")]
    heard: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ChildRow {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(uint64, tag = "4")]
    incarnation: u64,
    #[prost(uint64, tag = "5")]
    sequence: u64,
    #[prost(uint64, tag = "6")]
    issued: u64,
    #[prost(uint64, tag = "7")]
    renewed_at: u64,
    #[prost(bool, tag = "8")]
    here: bool,
}

/// One row of a job's history.
pub fn history_key(job: u64, seq: u64) -> Vec<u8> {
    key(b'h', &[&job.to_be_bytes(), &seq.to_be_bytes()])
}

/// All rows of a job's history.
pub fn history_prefix(job: u64) -> Vec<u8> {
    key(b'h', &[&job.to_be_bytes()])
}

/// The row of a spec.
pub fn spec_key(hash: BlobHash) -> Vec<u8> {
    key(b's', &[&hash.0])
}

/// A table's letter, and what follows.
pub fn key(table: u8, parts: &[&[u8]]) -> Vec<u8> {
    std::iter::once(table).chain(parts.iter().flat_map(|p| p.iter().copied())).collect()
}

impl RowKey {
    /// Its key in the store.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            RowKey::Meta => key(b'm', &[]),
            RowKey::Job(j) => key(b'j', &[&j.to_be_bytes()]),
            RowKey::Chunk(j, k) => key(b'c', &[&j.to_be_bytes(), &k.to_be_bytes()]),
            RowKey::Up(j, k) => key(b'u', &[&j.to_be_bytes(), &k.to_be_bytes()]),
            RowKey::Down(j, k) => key(b'd', &[&j.to_be_bytes(), &k.to_be_bytes()]),
            RowKey::Link(s) => key(b'l', &[&s.0]),
            RowKey::Child(s) => key(b'k', &[&s.0]),
            RowKey::Drain(s) => key(b'n', &[&s.0]),
        }
    }
}

impl State {
    /// Take less memory for what this row holds, where that can be.
    pub fn compact(&mut self, k: RowKey) {
        if let RowKey::Chunk(j, k) = k
            && let Some(chunk) = self.jobs.get_mut(&j).and_then(|j| j.chunks.get_mut(k as usize))
        {
            chunk.cells.compact();
        }
    }

    /// The row as it is now; None: the entity is gone, delete it.
    pub fn row(&self, k: RowKey, next_change: u64) -> Option<Vec<u8>> {
        Some(match k {
            RowKey::Meta => {
                let (incarnation, next_job, next_number) = (self.incarnation, self.next_job, self.next_number);
                let (recovering, former, doubt_from, past) = (self.recovering, self.former, self.doubt_from, self.past.clone());
                MetaRow { incarnation, next_job, next_number, next_change, recovering, former, doubt_from, past }.encode_to_vec()
            }
            RowKey::Job(j) => header(self.jobs.get(&j)?).encode_to_vec(),
            RowKey::Chunk(j, k) => encode_chunk(self.jobs.get(&j)?.chunks.get(k as usize)?, self.jobs.get(&j)?.size - k * CHUNK_TASKS),
            RowKey::Up(j, k) => {
                let job = self.jobs.get(&j)?;
                up_row(job, job.ups.get(&k)?, 0).encode_to_vec()
            }
            RowKey::Down(j, k) => {
                let d = self.jobs.get(&j)?.downs.get(&k)?;
                let (child, share, fenced) = (d.child.0.to_vec(), d.share.to_string(), d.fenced.to_runs());
                let (accepted, cost, attempts, open, adopt) = (d.accepted, d.cost, d.attempts, d.open, d.adopt.map(Into::into));
                let most_micro = d.most_micro;
                DownRow { seq: d.seq, child, share, accepted, cost, attempts, open, fenced, adopt, most_micro }.encode_to_vec()
            }
            RowKey::Link(s) => {
                let l = self.links.get(&s)?;
                let wants = l.wants.values().cloned().map(Into::into).collect();
                let (name, peer_incarnation, wants_seq) = (l.name.clone(), l.peer_incarnation, l.wants_seq);
                let (next, acked, complete_from, heard) = (l.next, l.acked, l.complete_from, l.heard);
                LinkRow { seq: l.seq, name, next, acked, peer_incarnation, seen: l.seen, wants, wants_seq, complete_from, heard }.encode_to_vec()
            }
            RowKey::Child(s) => {
                let c = self.cursors.get(&s)?;
                let (name, kind) = (c.name.clone(), c.kind);
                ChildRow {
                    seq: c.seq,
                    name,
                    kind,
                    incarnation: c.incarnation,
                    sequence: c.sequence,
                    issued: c.issued,
                    renewed_at: c.renewed_at,
                    here: c.here,
                }
                .encode_to_vec()
            }
            RowKey::Drain(s) => {
                let d = self.drains.get(&s)?;
                let (site, reason, by) = (s.0.to_vec(), d.reason.clone(), d.by.clone());
                change::Drained { site, drained: true, reason, by, since_ms: d.since_ms }.encode_to_vec()
            }
        })
    }

    /// Rows, then the changes behind them. Returns the state, what lags behind, and the number of the next change.
    pub fn load(store: &dyn Store) -> Result<(State, Dirty, u64), StoreError> {
        let mut s = State::default();
        let mut next = 1;
        let mut bad: Option<String> = None;
        if let Some(m) = store.get(&RowKey::Meta.bytes())? {
            match MetaRow::decode(&m[..]) {
                Ok(m) => {
                    (s.incarnation, s.next_job, s.next_number) = (m.incarnation, m.next_job, m.next_number);
                    (s.recovering, s.former, s.doubt_from, s.past) = (m.recovering, m.former, m.doubt_from, m.past);
                    next = m.next_change.max(1);
                    s.meta_from = next;
                }
                Err(_) => bad = Some("the meta row".into()),
            }
        }
        // Live jobs alone: what is past stays where it is. Specs stay alive through `specs` until the jobs hold them.
        let mut specs = Vec::new();
        let mut live = Vec::new();
        scan(store, b'j', &mut bad, &mut |_, v| {
            live.push(JobRow::decode(v).ok().filter(|r| r.new.is_some())?);
            Some(())
        })?;
        for row in live {
            let spec = s.spec_of(store, hash_of(&row), &mut specs)?;
            let Some(mut job) = spec.and_then(|spec| job_of(&row, spec)) else {
                bad = Some("the spec of a job".into());
                break;
            };
            fill(store, &mut job, &mut |share| s.intern(share))?;
            s.next_job = s.next_job.max(job.no);
            s.index(&job);
            s.jobs.insert(job.no, Box::new(job));
        }
        scan(store, b'd', &mut bad, &mut |k, v| {
            let (job, at, r) = (number(k.get(1..9)?)?, number(k.get(9..17)?)?, DownRow::decode(v).ok()?);
            let share = s.intern(&r.share);
            let (child, fenced) = (change::site(&r.child), change::tasks(&r.fenced));
            if let Some(j) = s.jobs.get_mut(&job) {
                let (accepted, cost, attempts, open, adopt) = (r.accepted, r.cost, r.attempts, r.open, r.adopt.map(Into::into));
                let most_micro = r.most_micro;
                let entry = DownEntry { seq: r.seq, child, share, accepted, cost, attempts, open, fenced, adopt, most_micro };
                j.downs.insert(at, entry);
            }
            Some(())
        })?;
        scan(store, b'l', &mut bad, &mut |k, v| {
            let (id, r) = (SiteId::from_slice(k.get(1..)?)?, LinkRow::decode(v).ok()?);
            let wants = r.wants.into_iter().filter_map(|w| intergrid_proto::link::Want::try_from(w).ok()).map(|w| (w.job, w)).collect();
            let (next, acked, outbox, outbox_bytes) = (r.next, r.acked, Default::default(), 0);
            let link = Link {
                seq: r.seq,
                name: r.name,
                next,
                acked,
                peer_incarnation: r.peer_incarnation,
                seen: r.seen,
                complete_from: r.complete_from,
                heard: r.heard,
                wants,
                wants_seq: r.wants_seq,
                outbox,
                outbox_bytes,
            };
            s.links.insert(id, link);
            Some(())
        })?;
        scan(store, b'k', &mut bad, &mut |k, v| {
            let (id, r) = (SiteId::from_slice(k.get(1..)?)?, ChildRow::decode(v).ok()?);
            let (name, kind) = (r.name, r.kind);
            s.cursors.insert(
                id,
                ChildCursor {
                    seq: r.seq,
                    name,
                    kind,
                    incarnation: r.incarnation,
                    sequence: r.sequence,
                    issued: r.issued,
                    renewed_at: r.renewed_at,
                    here: r.here,
                },
            );
            Some(())
        })?;
        scan(store, b'n', &mut bad, &mut |k, v| {
            let (id, d) = (SiteId::from_slice(k.get(1..)?)?, change::Drained::decode(v).ok()?);
            s.drains.insert(id, Drain { reason: d.reason, by: d.by, since_ms: d.since_ms });
            Some(())
        })?;
        let mut dirty = Dirty::new();
        let mut failed = Ok(());
        store.changes(0, &mut |seq, bytes| {
            match Change::decode(bytes).ok().and_then(|c| c.what) {
                Some(change::What::Job(new)) if !s.jobs.contains_key(&new.job) => {
                    s.next_job = s.next_job.max(new.job);
                    // Was it put away since?
                    match archive::is_past(store, new.job) {
                        Ok(true) => {}
                        Ok(false) => {
                            let spec = BlobHash::from_slice(&new.spec_hash).map(|hash| s.spec_of(store, hash, &mut specs));
                            failed = spec.unwrap_or(Ok(None)).map(|_| ());
                            s.apply(seq, &change::What::Job(new), &mut dirty, false);
                        }
                        Err(e) => failed = Err(e),
                    }
                }
                Some(what) => s.apply(seq, &what, &mut dirty, false),
                None => bad = Some(format!("change {seq}")),
            }
            next = next.max(seq + 1);
            bad.is_none() && failed.is_ok()
        })?;
        failed?;
        if let Some(what) = bad {
            return Err(StoreError::Damaged { path: "(open)".into(), what });
        }
        s.derive();
        Ok((s, dirty, next))
    }
}

/// The header of a job.
fn header(j: &Job) -> JobRow {
    let new = change::JobNew {
        job: j.no,
        parent: j.parent.map(|p| p.0.to_vec()).unwrap_or_default(),
        parent_job: j.parent_job,
        key: j.key.to_string(),
        owner: j.owner.0.to_vec(),
        owner_name: j.owner_name.clone(),
        origin: Some(j.origin.clone().into()),
        spec_hash: j.spec_hash.0.to_vec(),
        size: j.size,
        created_ms: j.created_ms,
        route: j.route.iter().map(|s| s.0.to_vec()).collect(),
        hops_left: j.hops_left,
        chain: j.chain.clone(),
        parent_incarnation: j.parent_incarnation,
    };
    let ended_at = j.ended_at.iter().map(|(s, n)| change::Cursor { peer: s.0.to_vec(), incarnation: 0, number: *n, ..Default::default() }).collect();
    JobRow {
        new: Some(new),
        seq: j.seq,
        ended_ms: j.ended_ms,
        want: Some(j.want.clone().into()),
        want_version: j.want_version,
        next_up: j.next_up,
        ended_at,
        at_once: j.at_once,
        spent_micro: j.spent_micro,
        ..JobRow::default()
    }
}

fn up_row(j: &Job, e: &UpEntry, at: u32) -> UpRow {
    let plain = (e.incarnation, e.job) == (j.parent_incarnation, j.parent_job);
    let (incarnation, job) = if plain { (0, 0) } else { (e.incarnation, e.job) };
    let (share, most_micro) = (e.share.to_string(), e.most_micro);
    UpRow { seq: e.seq, number: e.number, share, cost: e.cost, open: e.open, incarnation, job, most_micro, at }
}

/// An entry, and the job's own count of it.
fn up_of(at: u32, r: UpRow, of: (u64, u64), intern: &mut dyn FnMut(&str) -> Arc<str>) -> (u32, UpEntry) {
    let (incarnation, job) = if r.incarnation == 0 { of } else { (r.incarnation, r.job) };
    (at, UpEntry { seq: r.seq, number: r.number, share: intern(&r.share), incarnation, job, cost: r.cost, open: r.open, most_micro: r.most_micro })
}

fn hash_of(row: &JobRow) -> BlobHash {
    row.new.as_ref().and_then(|n| BlobHash::from_slice(&n.spec_hash)).unwrap_or(BlobHash([0; 32]))
}

/// A job by its header; its chunks are blank.
fn job_of(row: &JobRow, spec: Arc<Spec>) -> Option<Job> {
    let mut job = Job::new(row.seq, row.new.as_ref()?, hash_of(row), spec);
    (job.ended_ms, job.want_version, job.next_up) = (row.ended_ms, row.want_version, row.next_up);
    (job.want, job.at_once, job.notes) = (change::want(&row.want), row.at_once, row.notes);
    job.spent_micro = row.spent_micro;
    job.ended_at = row.ended_at.iter().map(|c| (change::site(&c.peer), c.number)).collect();
    job.failures = row.failures.iter().filter_map(|f| Some((f.reason.clone()?.into(), f.tasks))).collect();
    for (of, n) in job.counts.iter_mut().zip(&row.counts) {
        *of = *n;
    }
    Some(job)
}

/// Its parents' placements and chunks, from rows of their own.
fn fill(store: &dyn Reader, job: &mut Job, intern: &mut dyn FnMut(&str) -> Arc<str>) -> Result<(), StoreError> {
    let mut bad = None;
    let mut rows = |table: u8, f: &mut Take<'_>| {
        store.scan(&key(table, &[&job.no.to_be_bytes()]), &mut |k, v| {
            if f(k, v).is_none() {
                bad = Some(format!("row {k:02x?}"));
            }
            bad.is_none()
        })
    };
    let (mut ups, mut chunks) = (Vec::new(), Vec::new());
    let of = (job.parent_incarnation, job.parent_job);
    rows(b'u', &mut |k, v| {
        ups.push(up_of(number(k.get(9..13)?)? as u32, UpRow::decode(v).ok()?, of, intern));
        Some(())
    })?;
    rows(b'c', &mut |k, v| {
        let at = number(k.get(9..13)?)? as u32;
        chunks.push((at, chunk_of(job.size, at, v)?));
        Some(())
    })?;
    for (at, chunk) in chunks {
        match job.chunks.get_mut(at as usize) {
            Some(c) => *c = chunk,
            None => bad = Some(format!("chunk {at} of job {}", job.no)),
        }
    }
    job.ups = ups.into_iter().collect();
    match bad {
        Some(what) => Err(StoreError::Damaged { path: "(open)".into(), what }),
        None => Ok(()),
    }
}

impl State {
    /// A spec that jobs have, read where none of them is in memory yet.
    fn spec_of(&mut self, store: &dyn Reader, hash: BlobHash, alive: &mut Vec<Arc<Spec>>) -> Result<Option<Arc<Spec>>, StoreError> {
        if let Some(spec) = self.specs.get(&hash).and_then(|s| s.upgrade()) {
            return Ok(Some(spec));
        }
        let spec = archive::spec(store, hash)?;
        if let Some(spec) = &spec {
            self.specs.insert(hash, Arc::downgrade(spec));
            alive.push(spec.clone());
        }
        Ok(spec)
    }
}

/// Takes in one row: key and value; None: it is damaged.
type Take<'a> = dyn FnMut(&[u8], &[u8]) -> Option<()> + 'a;

fn scan(store: &dyn Store, table: u8, bad: &mut Option<String>, f: &mut Take<'_>) -> Result<(), StoreError> {
    store.scan(&[table], &mut |k, v| {
        if f(k, v).is_none() {
            *bad = Some(format!("row {k:02x?}"));
        }
        bad.is_none()
    })
}

/// A big-endian number.
pub fn number(bytes: &[u8]) -> Option<u64> {
    bytes.len().le(&8).then(|| bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Sequence, then runs: length, phase and attempts, exit, parent placement, our placement.
fn encode_chunk(chunk: &Chunk, len: u32) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(chunk.seq, &mut out);
    let mut put = |n: u64, c: &Cell| {
        for v in [n, u64::from(c.phase) | u64::from(c.attempts) << 4, u64::from(c.exit), u64::from(c.up), c.down] {
            encode_varint(v, &mut out);
        }
    };
    chunk.cells.runs(0, len.min(CHUNK_TASKS), |a, b, c| put(u64::from(b - a), &c));
    out
}

/// A chunk of an array of this size.
fn chunk_of(size: u32, at: u32, bytes: &[u8]) -> Option<Chunk> {
    decode_chunk(bytes, size.checked_sub(at.checked_mul(CHUNK_TASKS)?)?.min(CHUNK_TASKS))
}

fn decode_chunk(mut bytes: &[u8], len: u32) -> Option<Chunk> {
    let seq = decode_varint(&mut bytes).ok()?;
    let mut runs: Vec<(u32, Cell)> = Vec::new();
    let mut end = 0u64;
    while !bytes.is_empty() {
        let mut next = || decode_varint(&mut bytes).ok();
        let (n, pa, exit, up, down) = (next()?, next()?, next()?, next()?, next()?);
        let cell = Cell { phase: (pa & 15) as u8, attempts: (pa >> 4) as u8, exit: exit as u16, up: up as u32, down };
        end = end.checked_add(n).filter(|end| n > 0 && *end <= u64::from(len))?;
        runs.push((end as u32, cell));
    }
    (end == u64::from(len)).then(|| Chunk { seq, cells: Cells::from_runs(runs) })
}

/// Cut a task set into pieces that fit a record.
pub fn pieces(tasks: &TaskSet, tasks_max: u64, ranges_max: usize) -> Vec<TaskSet> {
    if tasks.len() <= tasks_max && tasks.ranges().len() <= ranges_max {
        return vec![tasks.clone()];
    }
    let (mut out, mut rest) = (Vec::new(), tasks.clone());
    while !rest.is_empty() {
        let by_ranges: u64 = rest.ranges().iter().take(ranges_max).map(|r| u64::from(r.end - r.start)).sum();
        out.push(rest.take_first(by_ranges.min(tasks_max)));
    }
    out
}
