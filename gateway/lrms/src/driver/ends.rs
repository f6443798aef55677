//! Content in, outputs out, and what is left behind.

use std::sync::Arc;

use intergrid_agent::core::{Input, Key};
use intergrid_agent::plan::Plan;
use intergrid_gateway::durable::blocking;
use intergrid_gateway::outputs::OutputStore;
use intergrid_proto::limits::BLOB_BYTES_MAX;
use intergrid_proto::units::format_duration;
use intergrid_proto::{BlobHash, Refusal, RefusalKind};

use super::{Driver, pause};
use crate::books::{Intent, Place};
use crate::command::Account;
use crate::hand::Hand;
use crate::hand::files::{Answer, Ask};
use crate::limits::*;
use crate::log::Note;
use crate::lrms::How;

/// Why a file is not here.
enum Missed {
    /// There is no room for it now.
    NoRoom(String),
    /// Anything else.
    Failed(String),
}

impl From<String> for Missed {
    fn from(why: String) -> Self {
        Missed::Failed(why)
    }
}

/// What waits for room: it says so now and then, and not for ever.
struct Patience {
    what: String,
    since: u64,
    told: Option<u64>,
}

impl Patience {
    async fn wait(&mut self, now: u64, why: &str) -> Result<(), String> {
        if now >= self.since + ROOM_WAIT_MS {
            return Err(format!("it waited {} for room: {why}", format_duration(ROOM_WAIT_MS)));
        }
        if self.told.is_none_or(|t| now >= t + ROOM_TOLD_INTERVAL_MS) {
            self.told = Some(now);
            tracing::warn!("{} wait for room here: {why}", self.what);
        }
        pause(FIND_INTERVAL_MS).await;
        Ok(())
    }
}

impl Driver {
    /// Bring the content of a spec to this site.
    pub fn fetch(self: &Arc<Self>, queue: &str, plan: Arc<Plan>) {
        let (driver, queue) = (self.clone(), queue.to_string());
        tokio::spawn(async move {
            let mut result = Ok(());
            for (file, _) in plan.files() {
                for n in 1..=FETCH_TRIES_MAX {
                    result = if driver.blobs.has(file.hash) { Ok(()) } else { driver.above.need_blob(file.hash).await };
                    if result.is_ok() || n == FETCH_TRIES_MAX {
                        break;
                    }
                    pause(FIND_INTERVAL_MS).await;
                }
                if let Err(e) = result {
                    let why = format!("input {:?}: {e}", file.name);
                    return driver.tell_queue(&queue, Input::Fetched(plan.hash, Err(why)));
                }
            }
            driver.tell_queue(&queue, Input::Fetched(plan.hash, Ok(())));
        });
    }

    /// What a running task has printed, from these offsets; None: it is not here any more.
    pub async fn printed(&self, queue: &str, key: Key, stdout: u64, stderr: u64) -> Result<Option<(Vec<u8>, Vec<u8>)>, String> {
        let place = self.lock().books.place(queue, key).cloned();
        let Some((place, (account, _))) = place.and_then(|p| Some((p.clone(), self.whose(&p.0)?))) else { return Ok(None) };
        match self.hand(&account).ask(Ask::Peek(place, stdout, stderr), Vec::new()).await? {
            (Answer::Peeked(n), mut out) => {
                let err = out.split_off(usize::try_from(n).unwrap_or(usize::MAX).min(out.len()));
                Ok(Some((out, err)))
            }
            _ => Err("an answer to another question".into()),
        }
    }

    /// What the LRMS said beside the output of a task that it took with its wrapper.
    pub(super) async fn complaint(&self, (tag, position): &Place) -> Option<How> {
        let (whose, _) = self.whose(tag)?;
        match self.hand(&whose).ask(Ask::Read(vec![format!("{tag}.{position}.e")]), Vec::new()).await {
            Ok((Answer::Texts(texts), _)) => texts.into_iter().flatten().find_map(|(text, _)| self.lrms.complaint(&text)),
            _ => None,
        }
    }

    /// Bring a task's outputs to this site.
    pub fn upload(self: &Arc<Self>, queue: &str, key: Key, number: u64, job: u64, files: Vec<String>) {
        let (driver, queue) = (self.clone(), queue.to_string());
        tokio::spawn(async move {
            let result = driver.bring(&queue, key, number, job, &files).await;
            driver.tell_queue(&queue, Input::Uploaded(key, result));
        });
    }

    async fn bring(&self, queue: &str, key: Key, number: u64, job: u64, files: &[String]) -> Result<(), String> {
        let (place, child) = {
            let inner = self.lock();
            (inner.books.place(queue, key).cloned(), inner.children.get(queue).map(|(id, _)| *id))
        };
        let (Some(place), Some(child)) = (place, child) else { return Err("where it ran is not known any more".into()) };
        let Some((account, _)) = self.whose(&place.0) else { return Err("where it ran is not known any more".into()) };
        let mut patience = Patience { what: format!("the outputs of {}.{}", place.0, place.1), since: self.clock.now(), told: None };
        // What a fenced attempt has made must not replace what its successor makes.
        let counts = loop {
            match self.above.counts(child, job, number, key.1).await {
                Ok(counts) => break counts,
                // The site's store waits for room: the end waits with it.
                Err(why) => patience.wait(self.clock.now(), &why.to_string()).await?,
            }
        };
        if counts.is_none() {
            return Ok(());
        }
        let hand = self.hand(&account);
        for name in files {
            let mut tries = 0;
            loop {
                let brought = {
                    let _turn = self.uploads.acquire().await.map_err(|e| e.to_string())?;
                    self.bring_one(&hand, &place, job, key.1, name).await
                };
                match brought {
                    Ok(()) => break,
                    Err(Missed::NoRoom(why)) => patience.wait(self.clock.now(), &why).await?,
                    Err(Missed::Failed(why)) => {
                        tries += 1;
                        if tries == UPLOAD_TRIES_MAX {
                            return Err(format!("{name}: {why}"));
                        }
                        pause(FIND_INTERVAL_MS).await;
                    }
                }
            }
        }
        Ok(())
    }

    async fn bring_one(&self, hand: &Hand, place: &Place, job: u64, task: u32, name: &str) -> Result<(), Missed> {
        let (hash, size) = head(hand, place, name).await?;
        let outputs = self.outputs.clone();
        // What would fit into an empty store waits until it does.
        let missed = |e: Refusal| match e.kind == RefusalKind::OverLimit && outputs.could_hold(size) {
            true => Missed::NoRoom(e.to_string()),
            false => Missed::Failed(e.to_string()),
        };
        let begin = {
            let (outputs, name) = (outputs.clone(), name.to_string());
            move || OutputStore::writer(&outputs, job, task, &name, hash, size)
        };
        let mut writer = blocking(begin).await.map_err(missed)?;
        let mut offset = 0;
        while offset < size {
            let part = part(hand, place, name, offset).await?;
            if part.is_empty() {
                return Err("it has become shorter".to_string().into());
            }
            offset += part.len() as u64;
            writer = blocking(move || writer.write(&part).map(|()| writer)).await.map_err(missed)?;
        }
        let received = blocking(move || writer.verify()).await.map_err(missed)?;
        outputs.settle(received).await.map_err(missed)
    }

    /// Remove what tasks have left, the last of a submission with all of it.
    pub fn clear(self: &Arc<Self>, queue: &str, keys: Vec<Key>) {
        let (places, gone, accounts, begun) = {
            let mut inner = self.lock();
            let tag = |k: &Key| inner.books.place(queue, *k).map(|p| p.0.clone());
            let tags: std::collections::BTreeSet<String> = keys.iter().filter_map(tag).collect();
            let accounts: std::collections::BTreeMap<String, Account> =
                tags.iter().filter_map(|t| Some((t.clone(), super::account(&inner.books.sub(t)?.intent)))).collect();
            let begun: std::collections::BTreeSet<String> = tags.iter().filter(|t| inner.books.sub(t).is_some_and(|s| s.begun)).cloned().collect();
            let (places, gone) = inner.books.forget(queue, &keys);
            for intent in &gone {
                inner.plans.remove(&intent.tag);
                inner.batches.leave(&intent.tag);
                inner.away.remove(&intent.tag);
            }
            (places, gone, accounts, begun)
        };
        if places.is_empty() && gone.is_empty() {
            return;
        }
        let driver = self.clone();
        tokio::spawn(async move {
            let mut by_account: std::collections::BTreeMap<Account, Vec<Place>> = std::collections::BTreeMap::new();
            for place in places {
                if let Some(account) = accounts.get(&place.0) {
                    by_account.entry(account.clone()).or_default().push(place);
                }
            }
            for (account, places) in by_account {
                if let Err(why) = driver.clear_away(&account, places).await {
                    tracing::debug!("what tasks have left can't be removed yet: {why}");
                }
            }
            for intent in gone {
                let begun = begun.contains(&intent.tag);
                driver.dispose(intent, begun).await;
            }
        });
    }

    /// Remove what these tasks have left, some at a time, and rather not while a submission's directories are being made: it would take several times as long.
    async fn clear_away(&self, account: &Account, places: Vec<Place>) -> Result<(), String> {
        for some in places.chunks(CLEARED_AT_ONCE) {
            let until = self.clock.now() + CLEAR_WAIT_MAX_MS;
            while self.turns.available_permits() < SUBMISSIONS_AT_ONCE_MAX && self.clock.now() < until {
                pause(CLEAR_LOOK_MS).await;
            }
            self.hand(account).ask(Ask::Clear(some.to_vec()), Vec::new()).await?;
        }
        Ok(())
    }

    /// Remove a submission with all of it. Until that is done its principal keeps his account, in which the files are, and a restart tries on. Of one that was
    /// not begun there may be nothing.
    pub(super) async fn dispose(&self, intent: Intent, begun: bool) {
        let tasks = u32::try_from(intent.tasks.len()).unwrap_or(0);
        self.lock().books.leaves(&intent);
        let mut told = false;
        let account = super::account(&intent);
        let remove = || async {
            if intent.tasks.len() > CLEARED_AT_ONCE {
                self.clear_away(&account, (1..=tasks).map(|position| (intent.tag.clone(), position)).collect()).await?;
            }
            let others = begun.then(|| self.others(&intent));
            self.hand(&account).ask(Ask::Remove(intent.tag.clone(), tasks, others), Vec::new()).await
        };
        while let Err(why) = remove().await {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("submission {} is over and can't be removed: {why}; trying on", intent.tag);
            }
            pause(REMOVE_AGAIN_MS).await;
        }
        self.lock().books.left(&intent.tag);
        // What somebody has renamed is known by its number alone: by the next start, too, until it is gone.
        while self.lock().books.is_known(&intent.tag) {
            pause(SURVEY_INTERVAL_MS).await;
        }
        self.note(&Note::Over(intent.tag));
    }
}

async fn part(hand: &Hand, place: &Place, name: &str, offset: u64) -> Result<Vec<u8>, String> {
    Ok(hand.ask(Ask::Part(place.clone(), name.to_string(), offset), Vec::new()).await?.1)
}

/// Hash and size of a file, read part by part: how long each takes is bounded, and all of a large file may take longer than a hand is waited for.
async fn head(hand: &Hand, place: &Place, name: &str) -> Result<(BlobHash, u64), String> {
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    loop {
        let part = part(hand, place, name, size).await?;
        // One that is too large is refused by its size.
        if part.is_empty() || size > BLOB_BYTES_MAX {
            return Ok((BlobHash(*hasher.finalize().as_bytes()), size));
        }
        hasher.update(&part);
        size += part.len() as u64;
    }
}
