//! Jobs by name, in memory or past. What is past is read from the store beside the engine and shown by the same views; nothing of it comes back into
//! memory. A job that is put away in between is found where it has gone to: memory is looked at first.

use std::sync::Arc;

use intergrid_proto::net::identity::Role;
use intergrid_proto::net::trust::Peer;
use intergrid_proto::{JobNo, Refusal, RefusalKind, SiteId, pb};

use super::Service;
use crate::core::state::Job;
use crate::core::view::is_of;
use crate::core::{Core, archive};
use crate::durable::blocking;
use crate::store::{Reader, StoreError};

/// Past jobs that are looked at for a name of a few letters.
const NAMED_MAX: usize = 65_536;

impl Service {
    /// Read past jobs, beside the async threads.
    async fn past<T: Send + 'static>(&self, read: impl FnOnce(&dyn Reader) -> Result<T, StoreError> + Send + 'static) -> Result<T, Refusal> {
        let reader: Arc<dyn Reader + Send + Sync> = self.engine.reader();
        blocking(move || read(&*reader).map_err(|e| Refusal::new(RefusalKind::Internal, e.to_string()))).await
    }

    /// Look at a job. `whole`: its cells are needed, not its counts alone.
    pub(super) async fn of_job<T: Send + 'static>(
        &self,
        job: u64,
        whole: bool,
        look: impl FnOnce(&Core, &Job) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let read = self.engine.read(move |core| match core.state().jobs.get(&job) {
            Some(j) => Ok(look(core, j)),
            None => Err(look),
        });
        let look = match read.await? {
            Ok(found) => return Ok(found),
            Err(look) => look,
        };
        let gone = || Refusal::new(RefusalKind::NotFound, format!("no job {} here", JobNo(job)));
        let found = self.past(move |store| archive::read(store, job, whole)).await?.ok_or_else(gone)?;
        self.engine.read(move |core| look(core, &found)).await
    }

    /// The job that a caller names: his own, any for an admin, or one that a parent has placed.
    pub(crate) async fn find(&self, peer: &Peer, job: Option<pb::JobRef>) -> Result<u64, Refusal> {
        use pb::job_ref::What;
        let (id, admin) = (peer.id, peer.roles.contains(&Role::Admin));
        match job.and_then(|j| j.what) {
            Some(What::Id(name)) => {
                peer.require_any(&[Role::User, Role::Admin])?;
                self.named(name, id, admin).await
            }
            Some(What::Placed(number)) => {
                peer.require(Role::Delegate)?;
                let (found, incarnation) = self.engine.read(move |core| core.find_placed(id, number)).await?;
                let unknown = || Refusal::new(RefusalKind::NotFound, format!("you placed no job {number} here"));
                match found {
                    Some(job) => Ok(job),
                    None => self.past(move |store| archive::served(store, id, incarnation, number)).await?.first().copied().ok_or_else(unknown),
                }
            }
            None => Err(Refusal::invalid("job: name one by its id, a prefix of it, or \"last\"")),
        }
    }

    /// By id, unique prefix or `last`.
    async fn named(&self, name: String, caller: SiteId, all: bool) -> Result<u64, Refusal> {
        let asked = name.clone();
        let (mut hits, last) = self.engine.read(move |core| (core.find(&asked, caller, all), core.state().next_job)).await?;
        if name == "last" {
            let past = self.past(move |store| archive::list(store, Some(caller), u64::MAX, 1)).await?;
            let none = || Refusal::new(RefusalKind::NotFound, "you have no job here").remedy("submit one");
            return hits.into_iter().chain(past).max().ok_or_else(none);
        }
        if hits.first().is_none_or(|hit| JobNo::parse(&name) != Some(JobNo(*hit))) && hits.len() < 2 {
            let begins = name.clone();
            hits.extend(self.past(move |store| beginning(store, &begins, last, caller, all)).await?);
            hits.dedup();
        }
        match hits[..] {
            [job] => Ok(job),
            [] => Err(Refusal::new(RefusalKind::NotFound, format!("no job {name:?} of yours here")).remedy("`grid ls` lists them")),
            [a, b, ..] => {
                let message = format!("{name:?} is not unique: {} and {} begin with it", JobNo(a), JobNo(b));
                Err(Refusal::new(RefusalKind::Conflict, message).remedy("write more letters"))
            }
        }
    }

    /// Jobs of a caller (`all`: of everybody) below this number, newest first; and below which the next ones are, where there may be more.
    pub(super) async fn page(&self, caller: SiteId, all: bool, below: u64, limit: usize) -> Result<(Vec<pb::JobView>, Option<u64>), Refusal> {
        let mut found = self.engine.read(move |core| core.list(caller, all, below, limit)).await?;
        let owner = (!all).then_some(caller);
        // Of the past ones no more than are younger than the last of those in memory.
        let floor = if found.len() < limit { 0 } else { found.last().map_or(0, |f| f.0) };
        let past = self.past(move |store| {
            let numbers = archive::list(store, owner, below, limit)?.into_iter().filter(|n| *n > floor);
            numbers.filter_map(|n| archive::read(store, n, false).transpose()).collect::<Result<Vec<Job>, StoreError>>()
        });
        let past = past.await?;
        if !past.is_empty() {
            found.extend(self.engine.read(move |core| past.iter().map(|j| (j.no, core.view(j, false))).collect::<Vec<_>>()).await?);
        }
        found.sort_by_key(|(no, _)| std::cmp::Reverse(*no));
        found.dedup_by_key(|(no, _)| *no);
        found.truncate(limit);
        let next = found.last().filter(|_| found.len() == limit).map(|f| f.0);
        Ok((found.into_iter().map(|f| f.1).collect(), next))
    }
}

/// Past jobs of a caller whose ids begin so, at most two.
fn beginning(store: &dyn Reader, name: &str, last: u64, caller: SiteId, all: bool) -> Result<Vec<u64>, StoreError> {
    let mut hits = Vec::new();
    let mut looked = 0;
    let exact = JobNo::parse(name);
    if exact.is_none() {
        let newest = archive::list(store, (!all).then_some(caller), u64::MAX, NAMED_MAX)?;
        let are_all = newest.len() < NAMED_MAX;
        hits.extend(newest.into_iter().filter(|n| JobNo(*n).id().starts_with(name)).take(2));
        if are_all || hits.len() == 2 {
            return Ok(hits);
        }
    }
    for job in exact.into_iter().chain(JobNo::beginning(name, last).filter(|j| exact != Some(*j))) {
        if !hits.contains(&job.0) && archive::read(store, job.0, false)?.is_some_and(|j| is_of(&j, caller, all)) {
            hits.push(job.0);
        }
        looked += 1;
        if exact.is_some() && hits.len() == 1 || hits.len() == 2 || looked == NAMED_MAX {
            break;
        }
    }
    Ok(hits)
}
