//! Jobs that are over leave memory: history lives in the store. When nothing of a job has been open for a while, and its parent has committed all that it
//! was told of it, its rows are written and its header moves from the table of live jobs, which a start loads, to that of past ones, which it does not.
//!
//! Views of past jobs are read from the store ([`read`]) and never come back into memory. What decides something does: before each input the shell lets
//! the core fetch the past jobs that it speaks of ([`Core::recall`]), and their headers move back with the commit of that turn. So the core itself knows of
//! no past jobs, and none of its rules is another one for them.
//!
//! ```text
//! J  inverted number                          the header, with counts and reasons; of a small job with its chunks and parents' placements too,
//!                                             of others these stay where they are
//! y  owner | hash of the key                  number: a repeated submission finds its job
//! o  owner | inverted number                  an owner's jobs, newest first
//! q  parent | incarnation | its job | number  when it ended, highest placement: what a parent speaks of
//! ```
//!
//! Invariant: a job is in memory, or in the batch that is under way (`State::leaving`), or in the store as a past one; never in two of them for `recall`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use intergrid_proto::link::{Down, Event, EventKind, Hello, Known, Up};
use intergrid_proto::{BlobHash, JobSpec, SiteId};

use super::apply::RowKey;
use super::fit::fit;
use super::limits::*;
use super::orders::Order;
use super::rows::{self, key, number};
use super::state::{Job, Spec, State};
use super::{Core, Input};
use crate::store::{Reader, StoreError};

/// The header of a past job: newest first.
pub(super) fn past_key(job: u64) -> Vec<u8> {
    key(b'J', &[&(!job).to_be_bytes()])
}

fn key_key(owner: SiteId, name: &str) -> Vec<u8> {
    key(b'y', &[&owner.0, &BlobHash::of(name.as_bytes()).0[..16]])
}

fn owner_key(owner: SiteId, job: u64) -> Vec<u8> {
    key(b'o', &[&owner.0, &(!job).to_be_bytes()])
}

fn parent_prefix(parent: SiteId, of: Option<(u64, u64)>) -> Vec<u8> {
    let (incarnation, job) = of.unwrap_or_default();
    let all = key(b'q', &[&parent.0, &incarnation.to_be_bytes(), &job.to_be_bytes()]);
    if of.is_some() { all } else { all[..1 + parent.0.len()].to_vec() }
}

/// Names by which parents know a job: incarnation and their job, with the highest placement under it.
fn labels(j: &Job) -> BTreeSet<(u64, u64)> {
    j.ups.values().map(|e| (e.incarnation, e.job)).chain([(j.parent_incarnation, j.parent_job)]).collect()
}

/// Rows by which a past job is found, beside its header.
fn names(j: &Job) -> Vec<(Vec<u8>, Vec<u8>)> {
    let no = j.no.to_be_bytes();
    let Some(parent) = j.parent else {
        return vec![(key_key(j.owner, &j.key), no.to_vec()), (owner_key(j.owner, j.no), Vec::new())];
    };
    let row = |of: (u64, u64)| {
        let top = j.ups.values().filter(|e| (e.incarnation, e.job) == of).map(|e| e.number).max().unwrap_or(0);
        ([parent_prefix(parent, Some(of)), no.to_vec()].concat(), [j.ended_ms.to_be_bytes(), top.to_be_bytes()].concat())
    };
    labels(j).into_iter().map(row).collect()
}

/// A past job; `whole`: with its cells, else with its counts alone. None: there is none of this number.
pub fn read(store: &dyn Reader, job: u64, whole: bool) -> Result<Option<Job>, StoreError> {
    match store.get(&past_key(job))? {
        Some(bytes) => rows::read_job(store, &bytes, whole, &mut |hash| spec(store, hash)).map(Some),
        None => Ok(None),
    }
}

/// A spec, as stored.
pub fn spec(store: &dyn Reader, hash: BlobHash) -> Result<Option<Arc<Spec>>, StoreError> {
    let Some(bytes) = store.get(&rows::spec_key(hash))? else { return Ok(None) };
    Ok(JobSpec::decode(&bytes).ok().map(|parsed| Arc::new(Spec { bytes, parsed })))
}

/// Numbers of past jobs below this one, newest first: of this owner, or all. At most so many.
pub fn list(store: &dyn Reader, owner: Option<SiteId>, below: u64, limit: usize) -> Result<Vec<u64>, StoreError> {
    let (prefix, from) = match owner {
        Some(owner) => (key(b'o', &[&owner.0]), owner_key(owner, below.saturating_sub(1))),
        None => (vec![b'J'], past_key(below.saturating_sub(1))),
    };
    let mut found = Vec::new();
    store.scan_from(&prefix, &from, &mut |k, _| {
        found.extend(number(&k[k.len().saturating_sub(8)..]).map(|n| !n));
        found.len() < limit
    })?;
    Ok(found)
}

/// Past jobs that served this job of a parent.
pub fn served(store: &dyn Reader, parent: SiteId, incarnation: u64, job: u64) -> Result<Vec<u64>, StoreError> {
    let mut found = Vec::new();
    store.scan(&parent_prefix(parent, Some((incarnation, job))), &mut |k, _| {
        found.extend(number(&k[k.len().saturating_sub(8)..]));
        true
    })?;
    Ok(found)
}

/// Is there a past job of this number?
pub fn is_past(store: &dyn Reader, job: u64) -> Result<bool, StoreError> {
    Ok(store.get(&past_key(job))?.is_some())
}

impl State {
    /// What was put away with the last batch is in the store.
    pub(super) fn forget_left(&mut self) {
        for job in std::mem::take(&mut self.leaving).into_values() {
            match job.parent {
                None => forget(&mut self.by_key, &(job.owner, job.key.clone()), job.no),
                Some(parent) => {
                    for (incarnation, of) in labels(&job) {
                        let of = (parent, incarnation, of);
                        forget(&mut self.by_parent, &of, job.no);
                        if let Some(jobs) = self.adopted.get_mut(&of) {
                            jobs.remove(&job.no);
                            if jobs.is_empty() {
                                self.adopted.remove(&of);
                            }
                        }
                    }
                }
            }
            let hash = job.spec_hash;
            drop(job);
            if self.specs.get(&hash).is_some_and(|s| s.strong_count() == 0) {
                self.specs.remove(&hash);
            }
        }
        fit(&mut self.by_key);
        fit(&mut self.by_parent);
        fit(&mut self.adopted);
        fit(&mut self.specs);
    }
}

/// Remove an entry, where it is this job's.
fn forget<K: std::hash::Hash + Eq>(names: &mut HashMap<K, u64>, k: &K, job: u64) {
    if names.get(k) == Some(&job) {
        names.remove(k);
    }
}

impl Core {
    /// Jobs that are over leave memory so long after: users', and parents', of which more may come. For tests, which have less time.
    pub fn put_away_after(&mut self, own_ms: u64, placed_ms: u64) {
        self.away_after_ms = (own_ms, placed_ms);
    }

    /// Something of this job has changed, or it was loaded: it may be over.
    pub(super) fn may_leave(&mut self, job: u64) {
        let (now, (own, placed)) = (self.now.mono_ms, self.away_after_ms);
        let Some(j) = self.state.jobs.get_mut(&job) else { return };
        if j.open() > 0 {
            return;
        }
        j.over_ms = now;
        // Word of its ends is among these; until the parent has it, a full state would have to say it.
        j.told = j.parent.and_then(|p| self.state.links.get(&p)).map_or(0, |l| l.next);
        if !std::mem::replace(&mut j.leaves, true) {
            self.leave_due.insert((now + if j.parent.is_some() { placed } else { own }, job));
        }
    }

    /// Put away what is due, so much as one commit may bring.
    pub(super) fn put_away(&mut self) {
        let now = self.now.mono_ms;
        // While this store is put right again, what is over may still be asked for.
        if self.state.recovering {
            return;
        }
        let before = self.batch.rows.len();
        while let Some((due, job)) = self.leave_due.first().copied().filter(|(due, _)| *due <= now)
            && self.batch.rows.len() - before < AWAY_ROWS_PER_COMMIT
        {
            let again = self.put_away_one(job, before);
            self.leave_due.remove(&(due, job));
            match again {
                Some(due) => _ = self.leave_due.insert((due, job)),
                None => _ = self.state.jobs.get_mut(&job).map(|j| j.leaves = false),
            }
        }
    }

    /// None: it has gone, or is not over; else when to look at it again.
    fn put_away_one(&mut self, job: u64, before: usize) -> Option<u64> {
        let (own, placed) = self.away_after_ms;
        let j = self.state.jobs.get(&job).filter(|j| j.open() == 0)?;
        let quiet_until = j.over_ms + if j.parent.is_some() { placed } else { own };
        let told = j.parent.and_then(|p| self.state.links.get(&p)).is_none_or(|l| l.acked >= j.told);
        if self.now.mono_ms < quiet_until {
            return Some(quiet_until);
        }
        let settled = j.parent.and_then(|p| self.parents.get(&p)).is_none_or(|p| !p.attached || p.confirmed);
        // Attempts that are fenced have still to stop.
        if !told || !settled || !j.downs.is_empty() {
            return Some(self.now.mono_ms + AWAY_RETRY_MS);
        }
        let inside = rows::is_small(j);
        // They are in the header then, and their rows go with the same commit.
        let parts = if inside { rows::parts(j) } else { Vec::new() };
        for k in self.lagging(job).into_iter().filter(|k| !parts.contains(k)) {
            if self.batch.rows.len() - before >= AWAY_ROWS_PER_COMMIT {
                return Some(self.now.mono_ms);
            }
            self.batch.rows.push((k.bytes(), self.state.row(k, self.next_change)));
            self.lags_no_more(k);
        }
        self.lags_no_more(RowKey::Job(job));
        for k in parts {
            self.lags_no_more(k);
            self.batch.rows.push((k.bytes(), None));
        }
        let mut j = self.state.jobs.remove(&job)?;
        (j.failures, j.inside) = (super::view::failures(&j), inside);
        self.batch.rows.push((past_key(job), Some(rows::past_row(&j))));
        self.batch.rows.extend(names(&j).into_iter().map(|(k, v)| (k, Some(v))));
        self.batch.rows.push((RowKey::Job(job).bytes(), None));
        self.ending.remove(&job);
        self.state.leaving.insert(job, j);
        None
    }

    /// Rows of a job, beside its header, that are behind the changes.
    fn lagging(&self, job: u64) -> Vec<RowKey> {
        let of = |set: &super::Dirty| {
            let all = [
                RowKey::Chunk(job, 0)..=RowKey::Chunk(job, u32::MAX),
                RowKey::Up(job, 0)..=RowKey::Up(job, u32::MAX),
                RowKey::Down(job, 0)..=RowKey::Down(job, u64::MAX),
            ];
            all.into_iter().flat_map(|r| set.range(r).copied().collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let mut keys = of(&self.dirty);
        keys.extend(self.checkpoint.iter().flat_map(|(_, todo)| of(todo)));
        keys
    }

    fn lags_no_more(&mut self, k: RowKey) {
        self.dirty.remove(&k);
        if let Some((_, todo)) = &mut self.checkpoint {
            todo.remove(&k);
        }
    }

    /// Before an input is stepped: past jobs of which it speaks come back. A read of rows, as the load is one.
    pub fn recall(&mut self, input: &Input, store: &dyn Reader) -> Result<(), StoreError> {
        match input {
            Input::Submit { submission, .. } => {
                let (owner, name) = (submission.owner, submission.key.as_str());
                match self.state.by_key.get(&(owner, name.into())) {
                    Some(job) => self.bring_back(*job, store),
                    None => match store.get(&key_key(owner, name))?.as_deref().and_then(number) {
                        Some(job) => self.bring_back(job, store),
                        None => Ok(()),
                    },
                }
            }
            Input::SetWant { job, .. } | Input::Order { order: Order::Throttle { job, .. } | Order::Cancel { job, .. }, .. } => {
                self.bring_back(*job, store)
            }
            Input::ParentSays { parent, message } => self.recall_placed(*parent, message, store),
            Input::ChildSays { child, message: Up::Events(events) } => {
                let stale = |e: &&Event| matches!(&e.what, EventKind::Ended(ended) if ended.stale);
                events.events.iter().filter(stale).try_for_each(|e| self.recall_had(*child, e.of.job, store))
            }
            Input::ChildSays { child, message: Up::Resync(told) } => {
                let stale = told.ranges.iter().filter(|r| r.ended.as_ref().is_some_and(|e| e.stale));
                stale.map(|r| r.of.job).try_for_each(|job| self.recall_had(*child, job, store))
            }
            Input::ChildSays { child, message: Up::Orphans(list) } => {
                let open = list.orphans.iter().filter(|o| !o.phase.is_terminal());
                open.map(|o| o.former.job).try_for_each(|job| self.recall_had(*child, job, store))
            }
            _ => Ok(()),
        }
    }

    fn recall_placed(&mut self, parent: SiteId, message: &Down, store: &dyn Reader) -> Result<(), StoreError> {
        let now = self.state.links.get(&parent).map_or(0, |l| l.peer_incarnation);
        match message {
            Down::Hello(hello) => self.recall_for_hello(parent, hello, store),
            Down::Want(want) => self.recall_served(parent, (now, want.job), store),
            Down::Place(p) => {
                // Its bytes came once, with a job that is past now.
                if p.spec.is_empty() && self.state.specs.get(&p.spec_hash).is_none_or(|s| s.strong_count() == 0) {
                    self.recalled = spec(store, p.spec_hash)?;
                    self.state.specs.extend(self.recalled.iter().map(|s| (p.spec_hash, Arc::downgrade(s))));
                }
                if let Known::As(former) = p.known {
                    self.recall_served(parent, (former.incarnation, former.job), store)?;
                }
                self.recall_served(parent, (now, p.job), store)
            }
            _ => Ok(()),
        }
    }

    fn recall_served(&mut self, parent: SiteId, of: (u64, u64), store: &dyn Reader) -> Result<(), StoreError> {
        let known = self.state.jobs_of(parent, of.0, of.1);
        if known.iter().any(|n| self.state.jobs.contains_key(n)) {
            return Ok(());
        }
        let past = if known.is_empty() { served(store, parent, of.0, of.1)? } else { known };
        past.into_iter().try_for_each(|job| self.bring_back(job, store))
    }

    /// A parent that goes on where it was knows all ends. Of any other one, all that it had here lately comes back: it is told, or listed, again.
    fn recall_for_hello(&mut self, parent: SiteId, h: &Hello, store: &dyn Reader) -> Result<(), StoreError> {
        let Some(link) = self.state.links.get(&parent).filter(|l| l.peer_incarnation != 0) else { return Ok(()) };
        let low = link.outbox.front().map_or(link.next + 1, |e| e.0);
        let same = (h.incarnation, h.peer_incarnation) == (link.peer_incarnation, self.state.incarnation);
        let orphans = |j: &Job| j.parent == Some(parent) && j.ups.values().any(|e| e.incarnation != h.incarnation);
        if same && h.peer_sequence + 1 >= low && !h.recovering && !self.state.recovering && !self.state.jobs.values().any(|j| orphans(j)) {
            return Ok(());
        }
        let since = self.now.unix_ms.saturating_sub(ORPHANS_ENDED_MS);
        let (mut past, mut left_out): (BTreeSet<u64>, u64) = Default::default();
        store.scan(&parent_prefix(parent, None), &mut |k, v| {
            let (job, ended_ms, top) = (number(&k[k.len().saturating_sub(8)..]), v.get(..8).and_then(number), v.get(8..16).and_then(number));
            if let (Some(job), Some(ended_ms), Some(top)) = (job, ended_ms, top) {
                match ended_ms >= since {
                    true => _ = past.insert(job),
                    false => left_out = left_out.max(top),
                }
            }
            true
        })?;
        let many = past.len().saturating_sub(ORPHANS_MAX);
        for job in past.iter().take(many) {
            let tops = read(store, *job, false)?.into_iter().flat_map(|j| j.ups.values().map(|e| e.number).max());
            left_out = tops.fold(left_out, u64::max);
        }
        if let Some(p) = self.parents.get_mut(&parent) {
            p.left_out = left_out;
        }
        let leaving: Vec<u64> = self.state.leaving.values().filter(|j| j.parent == Some(parent)).map(|j| j.no).collect();
        leaving.into_iter().chain(past.into_iter().skip(many)).try_for_each(|job| self.bring_back(job, store))
    }

    /// Late word of a child: of a job that it has had.
    fn recall_had(&mut self, child: SiteId, job: u64, store: &dyn Reader) -> Result<(), StoreError> {
        let had = |j: &Job| j.ended_at.contains_key(&child);
        let past = match self.state.leaving.get(&job) {
            _ if self.state.jobs.contains_key(&job) => false,
            Some(j) => had(j),
            None => read(store, job, false)?.as_ref().is_some_and(had),
        };
        if past { self.bring_back(job, store) } else { Ok(()) }
    }

    /// Into memory again, and its header among those of live jobs, with the commit of this turn.
    fn bring_back(&mut self, job: u64, store: &dyn Reader) -> Result<(), StoreError> {
        if self.state.jobs.contains_key(&job) {
            return Ok(());
        }
        let mut found = match self.state.leaving.remove(&job) {
            Some(j) => j,
            None => {
                let Some(mut j) = read(store, job, true)? else { return Ok(()) };
                if let Some(spec) = self.state.specs.get(&j.spec_hash).and_then(|s| s.upgrade()) {
                    j.spec = spec;
                }
                self.state.specs.insert(j.spec_hash, Arc::downgrade(&j.spec));
                for (_, e) in j.ups.iter_mut() {
                    e.share = self.state.intern(&e.share);
                }
                self.state.index(&j);
                Box::new(j)
            }
        };
        self.batch.rows.push((past_key(job), None));
        self.batch.rows.extend(names(&found).into_iter().map(|(k, _)| (k, None)));
        let parts = if std::mem::take(&mut found.inside) { rows::parts(&found) } else { Vec::new() };
        self.state.jobs.insert(job, found);
        for k in std::iter::once(RowKey::Job(job)).chain(parts) {
            self.batch.rows.push((k.bytes(), self.state.row(k, self.next_change)));
        }
        if let Some(j) = self.state.jobs.get_mut(&job) {
            j.leaves = false;
        }
        self.changed.insert(job);
        Ok(())
    }
}
