//! What was placed under an older incarnation of the parent: what runs, runs on; what waits is not started before it is adopted.

use std::collections::BTreeMap;

use intergrid_proto::link::{EventKind, Former, Orphan, Orphans, Place, Up, Want};
use intergrid_proto::{BlobHash, JobSpec, Phase, Reason, ReasonKind, TaskSet};

use super::{ChildEnd, Name, Placed};

impl ChildEnd {
    /// The parent has a new store: it knows nothing by the names that we have.
    pub(super) fn orphan_all(&mut self) {
        self.low = self.high() + 1;
        self.events.clear();
        self.jobs.clear();
    }

    /// All that is alive, and, where it is `asked` for, all that is over and remembered.
    pub(super) fn list_orphans(&self, asked: bool, out: &mut Vec<Up>) {
        let mut orphans = Vec::new();
        for (number, p) in self.placed.iter().chain(self.over.iter()).filter(|(_, p)| p.name.incarnation != self.parent.0) {
            let mut tell = |tasks: &TaskSet, phase| {
                if !tasks.is_empty() {
                    orphans.push(Orphan {
                        former: Former { incarnation: p.name.incarnation, number: *number, job: p.job },
                        origin: p.name.origin.clone(),
                        spec_hash: p.name.spec_hash,
                        array_size: p.name.array_size,
                        tasks: tasks.clone(),
                        phase,
                        share: self.share().key,
                        cost: p.cost,
                        attempts: p.attempts,
                    });
                }
            };
            tell(&p.waiting, Phase::Placed);
            tell(&p.running.keys().copied().collect(), Phase::Running);
            if asked {
                p.ended.iter().for_each(|(t, e)| tell(t, e.phase));
            }
        }
        if asked || !orphans.is_empty() {
            out.push(Up::Orphans(Orphans { orphans, last: true, complete_from: self.complete_from }));
        }
    }

    /// The parent knows these again: they go on under their new name.
    pub(super) fn adopt(&mut self, place: Place, former: Former) {
        let Place { number, job, tasks, .. } = place;
        let old = self.placed.remove(&former.number).or_else(|| self.over.remove(&former.number));
        let Some(mut old) = old.filter(|p| p.name.incarnation == former.incarnation) else {
            let reason = Reason::new(ReasonKind::EvidenceLost, "it is not known here any more");
            return self.emit(number, job, tasks, EventKind::Returned(reason));
        };
        let name = Name { incarnation: self.parent.0, ..old.name.clone() };
        let mut new = Placed {
            job,
            attempts: old.attempts,
            cost: old.cost,
            waiting: old.waiting.intersect(&tasks),
            held: TaskSet::new(),
            running: BTreeMap::new(),
            ended: Vec::new(),
            name,
            last: 0,
        };
        old.waiting = old.waiting.subtract(&tasks);
        let (taken, left) = std::mem::take(&mut old.running).into_iter().partition(|(t, _)| tasks.contains(*t));
        (new.running, old.running) = (taken, left);
        let mut ended = Vec::new();
        for (t, e) in &mut old.ended {
            let (mine, rest) = (t.intersect(&tasks), t.subtract(&tasks));
            if !mine.is_empty() {
                ended.push((mine.clone(), e.select(t, &mine)));
            }
            (*e, *t) = (e.select(t, &rest), rest);
        }
        old.ended.retain(|(t, _)| !t.is_empty());
        let running: TaskSet = new.running.keys().copied().collect();
        let known = ended.iter().fold(new.waiting.union(&running), |all, (t, _)| all.union(t));
        if old.alive() > 0 || !old.ended.is_empty() {
            self.placed.insert(former.number, old);
        }
        self.hints.extend(running.iter().map(|t| (number, t)));
        self.placed.insert(number, new);
        let entry = self.jobs.entry(job).or_default();
        if BlobHash::of(&place.spec) == place.spec_hash {
            self.specs.extend(JobSpec::decode(&place.spec).ok().map(|s| (place.spec_hash, s)));
        }
        entry.spec = entry.spec.take().or_else(|| self.specs.get(&place.spec_hash).cloned());
        self.want(Want { job, ..place.want }, false);
        self.emit(number, job, known.clone(), EventKind::Accepted);
        for (t, e) in ended {
            self.emit(number, job, t, EventKind::Ended(e));
        }
        let unknown = tasks.subtract(&known);
        self.emit(number, job, unknown, EventKind::Returned(Reason::new(ReasonKind::EvidenceLost, "it is not known here any more")));
        self.obey(number);
    }
}
