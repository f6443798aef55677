//! Giving tasks to the LRMS, and taking them back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Arc, PoisonError};

use intergrid_agent::core::{Fault, Input, Key};
use intergrid_agent::plan::{Plan, Task};
use intergrid_proto::limits::BLOB_PART_BYTES;
use intergrid_proto::units::format_duration;
use intergrid_proto::{Reason, ReasonKind};

use super::{Driver, Inner, account, pause};
use crate::batches::{Batch, Part, Request};
use crate::books::{Intent, Place, Step};
use crate::child::Say;
use crate::command::Account;
use crate::hand::Hand;
use crate::hand::files::{Answer, Ask};
use crate::limits::*;
use crate::log::Note;
use crate::lrms::{LrmsId, Refused, Submission, SubmitFailure};
use crate::script;

/// A task to be started.
pub struct Start {
    /// Which.
    pub task: Task,
    /// What.
    pub plan: Arc<Plan>,
    /// For whom.
    pub principal: String,
}

/// What the core of a task that will never start is told.
pub(super) enum Back {
    /// It goes back, for this reason.
    Unstarted(Reason),
    /// It has failed.
    Failed(Fault),
}

impl Driver {
    /// Start tasks: those of one placement go down together, and with what else waits of their kind.
    pub fn start(self: &Arc<Self>, queue: &str, starts: Vec<Start>) {
        let (mut beyond, mut carriers) = (Vec::new(), Vec::new());
        let mut by_placement: BTreeMap<u64, Vec<Start>> = BTreeMap::new();
        starts.into_iter().for_each(|s| by_placement.entry(s.task.number).or_default().push(s));
        let mut guard = self.lock();
        let inner = &mut *guard;
        let size = inner.bound.max().map_or(1, |n| n as usize).clamp(1, SUBMISSION_TASKS_MAX);
        for (number, mut starts) in by_placement {
            starts.sort_by_key(|s| s.task.index);
            let Some(Start { task, plan, principal }) =
                starts.first().map(|s| Start { task: s.task.clone(), plan: s.plan.clone(), principal: s.principal.clone() })
            else {
                continue;
            };
            let slots = slots_of(&plan);
            let taken = inner.account(&principal).and_then(|a| match inner.denied(queue, &a) {
                Some(why) => Err(Box::new(why)),
                None => self.allowed(inner, queue, &principal, &plan, starts.len()).map(|(n, why)| (a, n, why)),
            });
            let (account, allowed, why) = taken.unwrap_or_else(|why| (Account::Own, 0, *why));
            beyond.extend(starts.split_off(allowed).into_iter().map(|s| ((number, s.task.index), why.clone())));
            if starts.is_empty() {
                continue;
            }
            let request = Request::new(queue, &account, &principal, &plan);
            let part = Part { task, plan: plan.clone(), indices: starts.iter().map(|s| s.task.index).collect() };
            for (tag, indices) in inner.batches.join(&request, part, size, self.clock.now(), || self.tag()) {
                if inner.books.sub(&tag).is_none() {
                    let account = if let Account::Named(name) = &account { Some(name.clone()) } else { None };
                    let (queue, principal) = (queue.to_string(), principal.clone());
                    let intent = Intent { tag: tag.clone(), queue, account, principal, tasks: Vec::new(), slots };
                    inner.books.add(intent, Step::Sending, self.clock.now());
                }
                inner.books.join(&tag, indices.into_iter().map(|index| (number, index)));
                inner.plans.entry(tag).or_default().insert(number, plan.clone());
            }
            carriers.extend((0..inner.batches.hire(&request)).map(|_| request.clone()));
        }
        drop(guard);
        for (key, why) in beyond {
            self.tell_queue(queue, Input::NeverStarted(key, why));
        }
        for request in carriers {
            let driver = self.clone();
            tokio::spawn(async move { driver.carry(request).await });
        }
    }

    /// Submit what waits of a kind, until nothing does that is not another's.
    async fn carry(self: Arc<Self>, request: Request) {
        loop {
            let Ok(_turn) = self.turns.acquire().await else { return };
            let Some(batch) = self.lock().batches.take(&request) else { return };
            self.submit(&request, batch).await;
            self.lock().batches.done(&request);
        }
    }

    /// How many of so many tasks this site lets a principal have now, and why no more; an error where it lets none, now or later.
    fn allowed(&self, inner: &Inner, queue: &str, principal: &str, plan: &Plan, wanted: usize) -> Result<(usize, Reason), Box<Reason>> {
        let l = &self.config.limits;
        let max = inner.queues.iter().find(|q| q.name == queue).map_or(l.time_max_ms, |q| q.time_max_ms(l));
        if let (Some(asked), Some(max)) = (plan.spec.time_limit_ms, max)
            && asked > max
        {
            let text = format!("asks for {}, {queue} allows {}", format_duration(asked), format_duration(max));
            return Err(Box::new(Reason::new(ReasonKind::OverLimit, text).remedy("ask for less time")));
        }
        let [(his_tasks, his_slots), (tasks, slots)] = inner.books.load(principal);
        let each = u64::from(slots_of(plan)).max(1);
        let bounds = [
            (l.tasks_per_principal_max, his_tasks, 1, "tasks of one principal (tasks_per_principal_max)"),
            (l.slots_per_principal_max, his_slots, each, "slots of one principal (slots_per_principal_max)"),
            (l.tasks_max, tasks, 1, "tasks (tasks_max)"),
            (l.slots_max, slots, each, "slots (slots_max)"),
        ];
        let (mut allowed, mut why) = (wanted as u64, Reason::new(ReasonKind::OverLimit, ""));
        for (max, used, each, what) in bounds {
            let Some(max) = max else { continue };
            if each > max {
                let reason = Reason::new(ReasonKind::OverLimit, format!("it needs {each}, and this site allows {max} {what}"));
                return Err(Box::new(reason.remedy("ask for less")));
            }
            let left = max.saturating_sub(used) / each;
            if left < allowed {
                (allowed, why.text) = (left, format!("this site allows {max} {what}, and {} are in use", used + left * each));
            }
        }
        Ok((usize::try_from(allowed).unwrap_or(wanted), why))
    }

    async fn submit(self: &Arc<Self>, request: &Request, batch: Batch) {
        // What waits for its turn can be taken back, and nothing is left of it then: not even the claims that keep it from starting.
        let intent = {
            let inner = self.lock();
            inner.books.sub(&batch.tag).filter(|_| inner.books.is_wanted(&batch.tag)).map(|s| s.intent.clone())
        };
        let Some(intent) = intent else { return };
        let hand = self.hand(&request.account);
        let prepared = self.prepare(&hand, &intent, &batch.parts).await;
        let (wanted, known) = {
            let inner = self.lock();
            (inner.books.is_wanted(&intent.tag), inner.books.sub(&intent.tag).is_some())
        };
        if !wanted {
            if !known {
                // Removed, and made anew just now. Nobody waits for it: the account's files may be away.
                let driver = self.clone();
                tokio::spawn(async move { driver.dispose(intent, prepared.is_ok()).await });
            }
            return;
        }
        if let Err(why) = prepared {
            // The LRMS has never heard of it.
            return self.back(&intent, &Reason::new(ReasonKind::StartFailed, why)).await;
        }
        let limits = &self.config.limits;
        // More than the queue's longest time is refused, or waits for ever: what asks for just that has no slack.
        let queue_max = self.lock().queues.iter().find(|q| q.name == intent.queue).and_then(|q| q.time_max_ms).unwrap_or(u64::MAX);
        let submission = Submission {
            tag: intent.tag.clone(),
            account: request.account.clone(),
            queue: request.queue.clone(),
            tasks: u32::try_from(intent.tasks.len()).unwrap_or(u32::MAX),
            shape: request.shape.clone(),
            time_limit_ms: request.time_limit_ms.map(|t| (t + TIME_LIMIT_SLACK_MS).min(queue_max.max(t))).or(limits.time_max_ms),
            directory: hand.base().join(&intent.tag),
            complaints: Some(hand.base().join("run").join(&intent.tag)),
            script: script::script(hand.base(), &intent.tag, request, &batch.parts),
        };
        let mut said = self.lrms.submit(&submission).await;
        if let Err(SubmitFailure::Refused(kind @ Refused::TooManyTasks, _)) = &mut said {
            *kind = self.too_many(submission.tasks, batch.parts.len()).await;
        }
        let name = self.lrms.name();
        if let Err(SubmitFailure::Refused(Refused::Later, _) | SubmitFailure::Doubtful(Refused::Later, _)) = said {
            self.lock().batches.refused(request, &batch.parts, self.clock.now());
        }
        match said {
            Ok(id) => {
                self.note(&Note::Sent(intent.tag.clone(), id.0));
                let unwanted = {
                    let mut inner = self.lock();
                    inner.books.sent(&intent.tag, id);
                    inner.books.sub_mut(&intent.tag).into_iter().for_each(|s| s.sent_ms = self.clock.now());
                    inner.books.unwanted(&intent.tag, submission.tasks)
                };
                self.remove(&submission.account, &[(id, unwanted)], false).await;
            }
            Err(SubmitFailure::Refused(kind, why)) => self.back(&intent, &refused(name, kind, &why)).await,
            Err(SubmitFailure::Doubtful(kind, why)) => self.lost(&intent.tag, &why, refused(name, kind, &why)),
            Err(SubmitFailure::Unknown(why)) => {
                let text = format!("its submission was lost, and {name} does not have it: {why}");
                self.lost(&intent.tag, &why, Reason::new(ReasonKind::StartFailed, text));
            }
        }
    }

    /// A submission was refused for its number of tasks, which are of so many parts: the bound is asked anew. What kind of no is it, then?
    async fn too_many(&self, tasks: u32, parts: usize) -> Refused {
        let said = self.lrms.tasks_max().await.ok();
        let fewer = self.lock().bound.refused(tasks, said, self.clock.now());
        if parts > 1 || fewer { Refused::Later } else { Refused::Never }
    }

    /// A submission without an answer is looked for; where the LRMS does not have it, its tasks go back, for this reason.
    fn lost(&self, tag: &str, why: &str, doubt: Reason) {
        tracing::warn!(%tag, "the answer to a submission is lost: {why}; looking for it");
        if let Some(sub) = self.lock().books.sub_mut(tag).filter(|s| s.step == Step::Sending) {
            (sub.step, sub.doubt) = (Step::Lost(self.clock.now()), Some(doubt));
        }
    }

    /// Its directory there, the intent on disk, what is in it there: then it may be given to the LRMS. In this order: where an intent has no directory,
    /// its files are away.
    async fn prepare(self: &Arc<Self>, hand: &Arc<Hand>, intent: &Intent, parts: &[Part]) -> Result<(), String> {
        self.make(hand, &intent.tag).await?;
        let (driver, begun) = (self.clone(), intent.clone());
        let write = move || driver.log.lock().unwrap_or_else(PoisonError::into_inner).begin(begun);
        let written = tokio::task::spawn_blocking(write).await.map_err(|e| e.to_string())?;
        written.map_err(|e| format!("the log of submissions can't be written: {e}"))?;
        let done = |ask, data| async { hand.ask(ask, data).await.map(drop) };
        // As few questions as there can be: each is a way there and back where the account is another.
        let (mut positions, mut words) = (u32::try_from(intent.tasks.len()).unwrap_or(0), script::words(parts).peekable());
        while words.peek().is_some() {
            let (mut files, mut bytes): (Vec<(String, u64)>, Vec<u8>) = Default::default();
            let fits = |files: usize, bytes: usize| files == 0 || files < WORDS_FILES_MAX && bytes <= WORDS_BYTES_MAX;
            while let Some((name, more)) = words.next_if(|(_, more)| fits(files.len(), bytes.len() + more.len())) {
                files.push((name, more.len() as u64));
                bytes.extend(more);
            }
            done(Ask::Prepare(intent.tag.clone(), std::mem::take(&mut positions), files), bytes).await?;
        }
        // The same for all of them.
        for (file, executable) in parts.first().into_iter().flat_map(|part| part.plan.files()) {
            let path = self.blobs.path(file.hash);
            let (name, mode) = (format!("in/{}", file.name), if executable { 0o700 } else { 0o600 });
            let mut from = std::fs::File::open(&path).map_err(|e| format!("input {:?}: {e}", file.name))?;
            let mut offset = 0;
            loop {
                let read = tokio::task::spawn_blocking(move || {
                    let mut part = Vec::new();
                    from.by_ref().take(BLOB_PART_BYTES as u64).read_to_end(&mut part).map(|_| (from, part))
                });
                let part;
                (from, part) = read.await.map_err(|e| e.to_string())?.map_err(|e| format!("input {:?}: {e}", file.name))?;
                let n = part.len() as u64;
                if n > 0 || offset == 0 {
                    done(Ask::Put(intent.tag.clone(), name.clone(), mode, offset), part).await?;
                }
                if n < BLOB_PART_BYTES as u64 {
                    break;
                }
                offset += n;
            }
        }
        Ok(())
    }

    /// A submission that the LRMS does not have: its tasks go back.
    async fn back(&self, intent: &Intent, reason: &Reason) {
        for position in (1..).take(intent.tasks.len()) {
            self.end(&(intent.tag.clone(), position), |key| Input::NeverStarted(key, reason.clone()));
        }
    }

    /// Tell a task's core how it is over, once.
    pub(super) fn end(&self, place: &Place, input: impl FnOnce(Key) -> Input) {
        let first = {
            let mut guard = self.lock();
            let inner = &mut *guard;
            let first = inner.books.over(place);
            let sub = inner.books.sub(&place.0).filter(|_| first && self.config.limits.waiting_max.is_some());
            if let Some(queue) = sub.map(|s| s.intent.queue.clone()) {
                // Told first: nothing takes the place of what the LRMS still has.
                inner.handed.ended(&inner.books, place, self.clock.now());
                inner.offer_again(&queue);
            }
            first
        };
        if first {
            self.tell(place, input);
        }
    }

    /// Take tasks back unless they have started.
    pub fn withdraw(self: &Arc<Self>, queue: &str, keys: Vec<Key>) {
        let places: Vec<Place> = {
            let inner = self.lock();
            keys.iter().filter_map(|k| inner.books.place(queue, *k).cloned()).collect()
        };
        let reason = Reason::new(ReasonKind::AskedBack, "taken back before it started");
        self.take_back(places.into_iter().map(|p| (p, Back::Unstarted(reason.clone()))).collect());
    }

    /// Take the claims of tasks, so that they never start, and tell this of those that have not; the accounts side by side. Nobody waits for it: one
    /// account's files may be away.
    pub(super) fn take_back(self: &Arc<Self>, tasks: Vec<(Place, Back)>) {
        let mut by_account: BTreeMap<Account, Vec<(Place, Back)>> = BTreeMap::new();
        let mut inner = self.lock();
        for (place, back) in tasks {
            let Some(account) = inner.books.sub(&place.0).map(|s| account(&s.intent)) else { continue };
            if let Some(watch) = inner.books.watch(&place).filter(|w| !w.taking) {
                watch.taking = true;
                by_account.entry(account).or_default().push((place, back));
            }
        }
        drop(inner);
        for (account, tasks) in by_account {
            let driver = self.clone();
            tokio::spawn(async move { driver.take(&account, tasks).await });
        }
    }

    async fn take(self: Arc<Self>, account: &Account, mut tasks: Vec<(Place, Back)>) {
        let hand = self.hand(account);
        loop {
            // What has ended meanwhile needs no claim, and may be removed with its directory; nor does what has run, by its claim or the books.
            tasks.retain(|(place, _)| self.lock().books.is_taking(place));
            if tasks.is_empty() {
                return;
            }
            // What waits for its turn to be submitted has none yet.
            let tags: BTreeSet<String> = tasks.iter().map(|(place, _)| place.0.clone()).collect();
            for tag in tags {
                if let Err(why) = self.make(&hand, &tag).await {
                    self.tell_away(&tag, &why);
                }
            }
            let places = tasks.iter().map(|(place, _)| place.clone()).collect();
            let won = match hand.ask(Ask::Claim(places), Vec::new()).await {
                Ok((Answer::Won(won), _)) => won,
                Ok(_) => vec![Some(false); tasks.len()],
                Err(why) => {
                    tracing::warn!("tasks can't be taken back: {why}; trying on");
                    Vec::new()
                }
            };
            let (mut taken, mut unknown) = (Vec::new(), Vec::new());
            for (n, (place, back)) in tasks.into_iter().enumerate() {
                if let Some(Some(_)) = won.get(n) {
                    self.is_back(&place.0);
                }
                let won = match won.get(n) {
                    Some(None) if self.has_not_begun(&place) => Some(&Some(true)),
                    // The books have told of its end meanwhile.
                    Some(Some(true)) if !self.lock().books.is_taking(&place) => Some(&Some(false)),
                    other => other,
                };
                // It is being removed already.
                let is_stopped = self.lock().books.watch(&place).is_some_and(|w| w.stopped);
                match (won, back) {
                    (Some(Some(true)), Back::Unstarted(reason)) => self.end(&place, |key| Input::NeverStarted(key, reason)),
                    (Some(Some(true)), Back::Failed(fault)) => self.end(&place, |key| Input::NotStarted(key, fault)),
                    (Some(Some(false)), _) => {
                        self.lock().books.kept(&place);
                        continue;
                    }
                    (Some(None) | None, back) => {
                        if won.is_some() {
                            self.tell_away(&place.0, "its directory is not there");
                        }
                        unknown.push((place, back));
                        continue;
                    }
                }
                if !is_stopped {
                    taken.push(place);
                }
            }
            self.cancel(taken, false).await;
            tasks = unknown;
            if tasks.is_empty() {
                return;
            }
            pause(FIND_INTERVAL_MS).await;
        }
    }

    /// Stop tasks that run. What still waits leaves the LRMS, too: that needs no files, which its claim does.
    pub fn signal(self: &Arc<Self>, queue: &str, keys: Vec<Key>, kill: bool) {
        let places: Vec<Place> = {
            let mut inner = self.lock();
            let places: Vec<Place> = keys.iter().filter_map(|k| inner.books.place(queue, *k).cloned()).collect();
            places.iter().for_each(|p| inner.books.watch(p).into_iter().for_each(|w| (w.stopped, w.unheard) = (true, Some(kill))));
            places
        };
        let driver = self.clone();
        tokio::spawn(async move { driver.cancel(places, kill).await });
    }

    /// Remove tasks from the LRMS. What it does not hear of, or does not have yet, is found by a look at it.
    pub(super) async fn cancel(&self, places: Vec<Place>, kill: bool) {
        let mut by_account: BTreeMap<Account, BTreeMap<LrmsId, Vec<u32>>> = BTreeMap::new();
        for (tag, position) in places {
            let Some((account, ids)) = self.whose(&tag) else { continue };
            ids.into_iter().for_each(|id| by_account.entry(account.clone()).or_default().entry(id).or_default().push(position));
        }
        for (account, jobs) in by_account {
            self.remove(&account, &jobs.into_iter().collect::<Vec<_>>(), kill).await;
        }
    }

    async fn remove(&self, account: &Account, jobs: &[(LrmsId, Vec<u32>)], kill: bool) {
        if jobs.iter().all(|(_, positions)| positions.is_empty()) {
            return;
        }
        match self.lrms.cancel(account, jobs, kill).await {
            Ok(()) => self.lock().books.heard(jobs, kill),
            Err(why) => tracing::warn!("tasks can't be removed from {}: {why}; trying on", self.lrms.name()),
        }
    }

    /// Remove what is there and should not be: its removal was not heard, or its submission not known in time.
    pub(super) fn remove_strays(self: &Arc<Self>) {
        // The last ones are still being removed.
        let Ok(turn) = self.removals.clone().try_acquire_owned() else { return };
        let mut by_account: BTreeMap<(Account, bool), BTreeMap<LrmsId, Vec<u32>>> = BTreeMap::new();
        {
            let mut inner = self.lock();
            let due = inner.books.strays_due(self.clock.now());
            let ours = if due.is_empty() { Vec::new() } else { inner.accounts.all() };
            for ((id, position), stray) in due {
                let account = stray.account.map_or(Account::Own, Account::Named);
                // Somebody else may have given his job such a name.
                if stray.known || ours.contains(&account) {
                    by_account.entry((account, stray.kill)).or_default().entry(id).or_default().push(position);
                }
            }
        }
        let driver = self.clone();
        tokio::spawn(async move {
            for ((account, kill), jobs) in by_account {
                tracing::info!("{} jobs as {account} are still in {}: removing them again", jobs.len(), driver.lrms.name());
                driver.remove(&account, &jobs.into_iter().collect::<Vec<_>>(), kill).await;
            }
            drop(turn);
        });
    }
}

/// Slots of one task on all its machines.
fn slots_of(plan: &Plan) -> u32 {
    plan.spec.shape.slots.saturating_mul(plan.spec.shape.nodes)
}

fn refused(lrms: &str, kind: Refused, why: &str) -> Reason {
    let (kind, remedy) = match kind {
        Refused::Later => (ReasonKind::AllBusy, ""),
        Refused::Never | Refused::TooManyTasks => (ReasonKind::NoFit, "ask for less, or offer another queue"),
        Refused::NotAuthorised => (ReasonKind::NotAuthorised, "ask the site's administrator to let the account use the queue"),
        Refused::NoQueue => (ReasonKind::NoResource, "the site's administrator must correct the configuration"),
    };
    Reason::new(kind, format!("{lrms} refused it: {why}")).remedy(remedy)
}

impl Inner {
    /// Offer a queue anew, by what may still be there. Under its lock: the last word is the newest.
    pub(super) fn offer_again(&self, queue: &str) {
        if let (Some(offer), Some((_, say))) = (self.handed.again(queue), self.children.get(queue)) {
            // A child that is gone has gone with this process.
            let _ = say.send(Say::Input(Input::Offer(offer)));
        }
    }

    fn account(&mut self, principal: &str) -> Result<Account, Box<Reason>> {
        let books = &self.books;
        let in_use = |p: &str| books.is_here(p);
        let refused = |why| Box::new(Reason::new(ReasonKind::NotAuthorised, why).remedy("the site's administrator adds a [[map]] rule"));
        self.accounts.of(principal, in_use).map_err(refused)
    }

    /// Why a queue never takes this account's tasks; None: it does. Others may use it: what has no fit would keep them away, too.
    pub(super) fn denied(&self, queue: &str, account: &Account) -> Option<Reason> {
        let why = self.queues.iter().find(|q| q.name == queue)?.denied.get(account)?;
        let reason = Reason::new(ReasonKind::NotAuthorised, format!("its account may not use {queue}: {why}"));
        Some(reason.remedy("ask the site's administrator to let the account use the queue"))
    }
}
