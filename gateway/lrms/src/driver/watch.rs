//! Looking after what was given to the LRMS: its claims and records on the shared file system, often; what it has of ours, at most once a second; its books,
//! for what is in neither.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use intergrid_agent::core::{Fault, Input};
use intergrid_proto::spec::substitute;
use intergrid_proto::{Exit, Reason, ReasonKind};
use tokio::task::JoinHandle;

use super::send::Back;
use super::{Driver, account, pause};
use crate::books::{Claimed, Found, Place, Seen, Step};
use crate::command::{Account, own_account};
use crate::doctor::BLIND_REMEDY;
use crate::hand::Hand;
use crate::hand::files::{Answer, Ask};
use crate::limits::*;
use crate::lrms::{How, LrmsId, Over, Record, Wait};
use crate::script::ExitRecord;
use crate::verdict::{CLAIMED, NOT_HERE, Verdict, patience_ms, ran, verdict};

/// Who removes a task that waits in the LRMS, and wants it to stay away.
const STAYS_AWAY: &str =
    "it is placed again: who wants it to stay away drains the site (`grid drain`), or has the job cancelled where it was submitted";

impl Driver {
    /// Claims and exit records, while anything is open; the accounts side by side, as one's files may be away.
    pub(super) async fn watch_records(self: Arc<Self>) {
        let mut told = BTreeSet::new();
        let mut looks: BTreeMap<Account, JoinHandle<Result<(), String>>> = BTreeMap::new();
        loop {
            pause(LOOK_INTERVAL_MS).await;
            let accounts: BTreeSet<Account> = {
                let inner = self.lock();
                inner.books.subs().filter(|s| s.step != Step::Sending && s.tasks.values().any(|w| !w.over)).map(|s| account(&s.intent)).collect()
            };
            for account in accounts {
                match looks.get_mut(&account) {
                    Some(look) if !look.is_finished() => continue,
                    Some(look) => match look.await {
                        Ok(Err(why)) if told.insert(account.clone()) => tracing::warn!("{why}; trying on"),
                        Ok(Err(_)) | Err(_) => {}
                        Ok(Ok(())) => _ = told.remove(&account),
                    },
                    None => {}
                }
                let (driver, whose) = (self.clone(), account.clone());
                looks.insert(account, tokio::spawn(async move { driver.look(&whose).await }));
            }
        }
    }

    async fn look(self: &Arc<Self>, whose: &Account) -> Result<(), String> {
        let hand = self.hand(whose);
        let (Answer::Names(names), _) = hand.ask(Ask::Look, Vec::new()).await? else { return Ok(()) };
        let name = if let Account::Named(name) = whose { Some(name.as_str()) } else { None };
        let found = self.lock().books.looked(name, &names, self.clock.now());
        let (mut claims, mut records) = (Vec::new(), Vec::new());
        for f in found {
            match f {
                Found::Started(place) => self.began(&place),
                Found::Claim(place) => claims.push(place),
                Found::Record(place) => records.push(place),
            }
        }
        if let Err(why) = self.read_claims(&hand, &claims).await {
            records.iter().for_each(|p| self.free(p));
            return Err(why);
        }
        if records.is_empty() {
            return Ok(());
        }
        let files = records.iter().map(|(tag, position)| format!("{tag}.{position}.x")).collect();
        let texts = match hand.ask(Ask::Read(files), Vec::new()).await {
            Ok((Answer::Texts(texts), _)) => texts,
            other => {
                records.iter().for_each(|p| self.free(p));
                return other.map(drop);
            }
        };
        for (place, text) in records.into_iter().zip(texts) {
            let Some(record) = text.and_then(|(text, _)| ExitRecord::parse(&text)) else {
                if self.lock().books.unreadable(&place, self.clock.now()) {
                    tracing::warn!("the exit record of {}.{} can't be read, and counts as none: {} decides", place.0, place.1, self.lrms.name());
                }
                continue;
            };
            self.ended(&place, Some(&record), None).await;
        }
        Ok(())
    }

    fn began(&self, place: &Place) {
        self.lock().books.began(place, self.clock.now());
        self.tell(place, |key| Input::Started(key, 0));
    }

    /// Whose these claims are: of tasks that have started, or ours from before a restart.
    async fn read_claims(self: &Arc<Self>, hand: &Hand, claims: &[Place]) -> Result<(), String> {
        if claims.is_empty() {
            return Ok(());
        }
        let files = claims.iter().map(|(tag, position)| format!("{tag}.{position}.c")).collect();
        let (Answer::Texts(texts), _) = hand.ask(Ask::Read(files), Vec::new()).await? else { return Ok(()) };
        let mut ours = Vec::new();
        for (place, text) in claims.iter().zip(texts) {
            let Some((text, at_s)) = text else { continue };
            let whose = {
                let mut inner = self.lock();
                let whose = inner.books.claimed(place, &text);
                inner.books.claimed_by(place, &text, at_s);
                whose
            };
            match whose {
                Some(Claimed::Started) => self.began(place),
                Some(Claimed::Withdrawn) => {
                    let reason = Reason::new(ReasonKind::StartFailed, "it was being taken back when the gateway ended");
                    ours.push((place.clone(), Back::Unstarted(reason)));
                }
                None => {}
            }
        }
        self.take_back(ours);
        Ok(())
    }

    fn free(&self, place: &Place) {
        if let Some(watch) = self.lock().books.watch(place) {
            watch.busy = false;
        }
    }

    /// A task that has started is over: tell its core, with what it has made. Where somebody else may have ended it, the LRMS is heard first.
    async fn ended(self: &Arc<Self>, place: &Place, record: Option<&ExitRecord>, said: Option<(Over, String)>) {
        let (waits, over, plan, index) = {
            let mut inner = self.lock();
            let now = self.clock.now();
            let (number, index) = inner.books.key(place).unwrap_or_default();
            let plan = inner.plans.get(&place.0).and_then(|plans| plans.get(&number)).cloned();
            let Some(watch) = inner.books.watch(place) else { return };
            let over = said.or_else(|| watch.verdict.clone());
            let late = watch.record_ms.is_some_and(|t| now >= t + VERDICT_WAIT_MS);
            let waits = record.is_some_and(ExitRecord::ended_by_another) && !watch.stopped && over.is_none() && !late;
            watch.busy = !waits;
            (waits, over, plan, index)
        };
        if waits {
            return;
        }
        let over = match (over, record) {
            (Some((over, words)), None) if over.how == How::Exited => {
                let how = self.complaint(place).await.unwrap_or(How::Exited);
                Some((Over { how, ..over }, words))
            }
            (Some((over, words)), Some(record))
                if over.how == How::Exited && record.was_asked && over.exit != Some(CLAIMED) && self.lrms.signals_removal_only() =>
            {
                Some((Over { how: How::Removed, ..over }, words))
            }
            (over, _) => over,
        };
        let mut report = match verdict(record, over.as_ref().map(|(o, w)| (o, w.as_str())), self.lrms.name()) {
            Verdict::Exited(report) => report,
            Verdict::NotStarted(fault) => return self.end(place, |key| Input::NotStarted(key, fault)),
        };
        let wanted: Vec<String> = plan.iter().flat_map(|p| &p.spec.outputs).map(|o| substitute(o, index)).collect();
        let Some((whose, _)) = self.whose(&place.0) else { return };
        match self.hand(&whose).ask(Ask::Made(place.clone(), wanted), Vec::new()).await {
            Ok((Answer::Made(files, missing), _)) => {
                self.is_back(&place.0);
                (report.files, report.missing) = (files, missing);
            }
            Ok(_) => {}
            Err(why) => {
                self.tell_away(&place.0, &why);
                return self.free(place);
            }
        }
        if record.is_none() && over.is_none() {
            // Nobody knows of it. Should it run all the same, then not beside the next.
            self.cancel(vec![place.clone()], true).await;
        }
        self.end(place, |key| Input::Exited(key, report));
    }

    /// The LRMS's queue and books, while anything is open.
    pub(super) async fn watch_lrms(self: Arc<Self>) {
        let (mut silent, mut found_ms) = (false, 0);
        match own_account().await {
            Ok(name) => self.lock().books.own = name,
            Err(why) => tracing::warn!("our own account's name is not known, so that others' jobs with names of ours are not told from ours: {why}"),
        }
        let mapped = self.lock().accounts.all().iter().any(|a| *a != Account::Own);
        if mapped && let Ok(Some(why)) = self.lrms.blind().await {
            tracing::error!("{why}: tasks that wait are taken for gone, taken back and submitted again; {BLIND_REMEDY}");
        }
        loop {
            pause(SURVEY_INTERVAL_MS).await;
            let (open, again) = {
                let mut inner = self.lock();
                let open = inner.books.subs().any(|s| s.step != Step::Sending && s.tasks.values().any(|w| !w.over));
                (open, inner.books.look_again() || inner.handed.awaits())
            };
            if !open && !again {
                continue;
            }
            let asked = self.clock.now();
            let ids = self.lock().books.known();
            match self.lrms.entries(&self.prefix, &ids).await {
                Ok(entries) => {
                    silent = false;
                    let seen = {
                        let (mut guard, now) = (self.lock(), self.clock.now());
                        let inner = &mut *guard;
                        if inner.handed.surveyed(asked, &entries, &inner.books, now) {
                            self.config.queues.iter().for_each(|name| inner.offer_again(name));
                        }
                        inner.books.surveyed(asked, entries, now)
                    };
                    self.act_on(seen);
                    self.remove_strays();
                    self.recall().await;
                    self.decide().await;
                    if self.clock.now() >= found_ms + FIND_INTERVAL_MS {
                        found_ms = self.clock.now();
                        self.find_lost().await;
                    }
                }
                Err(why) => {
                    if !std::mem::replace(&mut silent, true) {
                        tracing::warn!("{} does not answer: {why}; trying on, what it has is not forgotten", self.lrms.name());
                    }
                    if again {
                        self.lock().books.unseen();
                    }
                }
            }
        }
    }

    fn act_on(self: &Arc<Self>, seen: Vec<Seen>) {
        let name = self.lrms.name();
        let mut hopeless = Vec::new();
        for s in seen {
            match s {
                Seen::Suspended(place, suspended) => self.tell(&place, |key| Input::Suspended(key, suspended)),
                // What is broken there is a fault of the task; what can't be had there may be had elsewhere.
                Seen::Hopeless(place, Wait::Never, why) => {
                    let text = format!("{name} says that it will never start there: {why}");
                    hopeless.push((place, Back::Unstarted(Reason::new(ReasonKind::NoFit, text))));
                }
                Seen::Hopeless(place, _, why) => hopeless.push((place, Back::Failed(never(format!("{name} could not start it: {why}"))))),
            }
        }
        self.take_back(hopeless);
    }

    /// Tasks that are not alive in the LRMS: by its books, or by the claim that we can take.
    async fn decide(self: &Arc<Self>) {
        let (due, ids) = {
            let inner = self.lock();
            let mut due = inner.books.due(self.clock.now());
            // What can't be taken, as its files are away, may be much, and keeps nobody else from being asked for.
            due.sort_by_key(|p| inner.books.sub(&p.0).and_then(|s| s.tasks.get(&p.1)).is_some_and(|w| w.taking));
            let mut asked = BTreeSet::new();
            let all = due.iter().filter_map(|p| inner.books.sub(&p.0)).flat_map(|s| s.ids.iter().copied());
            let ids: Vec<LrmsId> = all.filter(|id| asked.insert(*id)).take(RECORDS_JOBS_MAX).collect();
            (due, ids)
        };
        if due.is_empty() {
            return;
        }
        let (records, unread) = match self.lrms.records(&ids).await {
            Ok(records) => (records, None),
            Err(why) => (Vec::new(), Some(why.to_string())),
        };
        let before = std::mem::replace(&mut self.lock().unread, unread.clone());
        if let (Some(why), None) = (&unread, before) {
            tracing::warn!("the books of {} can't be read: {why}; trying on", self.lrms.name());
        }
        let mut by_place: BTreeMap<Place, Record> = BTreeMap::new();
        for r in records {
            let tag = self.lock().books.subs().find(|s| s.is_end(&r)).map(|s| s.intent.tag.clone());
            if let Some(tag) = tag {
                by_place.insert((tag, r.position), r);
            }
        }
        let now = self.clock.now();
        let mut unstarted = Vec::new();
        let mut ended: BTreeMap<Account, Vec<_>> = BTreeMap::new();
        for place in due {
            let record = by_place.get(&place);
            let mut inner = self.lock();
            let Some((whose, queue)) = inner.books.sub(&place.0).map(|s| (account(&s.intent), s.intent.queue.clone())) else { continue };
            let kill_wait_ms = inner.kill_wait_ms(&queue);
            let Some(watch) = inner.books.watch(&place) else { continue };
            if let Some(r) = record {
                watch.verdict = Some((r.over.clone(), r.words.clone()));
            }
            // Files that are missing don't overrule that.
            let has_run = !watch.started && record.is_some_and(|r| ran(&r.over));
            watch.started |= has_run;
            let patience_ms = patience_ms(watch.verdict.as_ref().map(|(over, _)| over), kill_wait_ms);
            match (watch.started, watch.record_ms.is_some()) {
                // Its own record is read by the next look.
                (_, true) => {}
                (true, false) if watch.gone_ms.is_some_and(|t| now >= t.saturating_add(patience_ms)) => {
                    watch.busy = true;
                    ended.entry(whose).or_default().push((place.clone(), watch.verdict.clone()));
                }
                (true, false) => {}
                (false, false) => unstarted.push(place.clone()),
            }
            drop(inner);
            if has_run {
                self.began(&place);
            }
        }
        for ended in ended.into_values() {
            // What they have made is looked at: one account's files may be away.
            let driver = self.clone();
            tokio::spawn(async move {
                for (place, said) in ended {
                    driver.ended(&place, None, said).await;
                }
            });
        }
        self.never_started(&unstarted);
    }

    fn never_started(self: &Arc<Self>, places: &[Place]) {
        let name = self.lrms.name();
        let said: BTreeMap<Place, (Over, String)> = {
            let mut inner = self.lock();
            places.iter().filter_map(|p| Some((p.clone(), inner.books.watch(p)?.verdict.clone()?))).collect()
        };
        let back = |place: &Place| {
            let words = said.get(place).map_or("", |(_, words)| words.as_str());
            let reason = |text: String| Reason::new(ReasonKind::StartFailed, text);
            Back::Unstarted(match said.get(place).map(|(over, _)| (over.how, over.exit)) {
                // That it is gone is all that some systems say of it: they are not told apart, and what has not started may start elsewhere.
                Some((How::Removed | How::Forced, _)) => reason(format!("somebody removed it from {name} before it started")).remedy(STAYS_AWAY),
                Some((How::NotStarted, _)) => reason(format!("{name} could not start it on the machine that it chose {words}"))
                    .remedy("the site's administrator looks whether `directory` is there on all machines"),
                Some((_, Some(NOT_HERE))) => {
                    reason(format!("the machine that {name} chose does not have the shared directory, or can't write there"))
                        .remedy("the site's administrator makes `directory` one that all machines share, with room on its disk")
                }
                Some(_) => reason(format!("{name} ended it before it started {words}")),
                None => reason(format!("it is gone from {name} without a record, as what somebody removes, and had not started")).remedy(STAYS_AWAY),
            })
        };
        self.take_back(places.iter().map(|p| (p.clone(), back(p))).collect());
    }

    /// Submissions whose answer was lost.
    async fn find_lost(self: &Arc<Self>) {
        let lost: Vec<(String, u64, usize)> = {
            let inner = self.lock();
            let lost = |s: &crate::books::Sub| match s.step {
                Step::Lost(since) if s.tasks.values().any(|w| !w.over && !w.taking) => Some((s.intent.tag.clone(), since, s.intent.tasks.len())),
                _ => None,
            };
            inner.books.subs().filter_map(lost).collect()
        };
        for (tag, since, tasks) in lost {
            match self.lrms.find(&tag).await {
                Ok(ids) if self.lock().books.found(&tag, &ids) => {}
                Ok(_) if self.clock.now() >= since + FIND_MS => {
                    tracing::info!(%tag, "{} does not have it: its tasks are taken back", self.lrms.name());
                    let lost = || Reason::new(ReasonKind::StartFailed, format!("its submission was lost, and {} does not have it", self.lrms.name()));
                    let why = |s: &crate::books::Sub| s.doubt.clone().unwrap_or_else(lost);
                    let Some(reason) = self.lock().books.sub(&tag).map(why) else { continue };
                    // What has started all the same has a claim, and is seen by that.
                    self.take_back((1..).take(tasks).map(|position| ((tag.clone(), position), Back::Unstarted(reason.clone()))).collect());
                }
                Ok(_) => {}
                Err(why) => tracing::debug!(%tag, "looking for it: {why}"),
            }
        }
    }
}

/// Of a task that the LRMS will not start.
fn never(text: String) -> Fault {
    Fault { kind: ReasonKind::StartFailed, text, exit: Exit::NotStarted, elsewhere: false }
}
