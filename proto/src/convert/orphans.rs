//! What a child holds of older incarnations of its parent, to the wire and from it.

use super::{attempt_tasks, attempts, bad, few, phase_in, tasks_out};
use crate::error::{Refusal, Result};
use crate::ids::BlobHash;
use crate::limits::{COUNT_MAX, NAME_BYTES_MAX, TASKS_PER_JOB_MAX};
use crate::link::{Attempts, Former, Orphan, Orphans};
use crate::pb;

impl From<Former> for pb::Former {
    fn from(f: Former) -> Self {
        pb::Former { incarnation: f.incarnation, number: f.number, job: f.job }
    }
}

impl From<pb::Former> for Former {
    fn from(f: pb::Former) -> Self {
        Former { incarnation: f.incarnation, number: f.number, job: f.job }
    }
}

impl From<Orphan> for pb::Orphan {
    fn from(o: Orphan) -> Self {
        pb::Orphan {
            former: Some(o.former.into()),
            origin: Some(o.origin.into()),
            spec_hash: o.spec_hash.0.to_vec(),
            array_size: o.array_size,
            tasks: Some(tasks_out(&o.tasks)),
            phase: o.phase as i32,
            share: o.share,
            cost: o.cost,
            attempts: o.attempts,
        }
    }
}

impl TryFrom<pb::Orphan> for Orphan {
    type Error = Refusal;
    fn try_from(o: pb::Orphan) -> Result<Self> {
        let origin = o.origin.ok_or_else(|| bad("an orphan without an origin"))?;
        let tasks = attempt_tasks(o.tasks)?;
        if o.array_size > TASKS_PER_JOB_MAX || tasks.end() > o.array_size || o.share.len() > 2 * NAME_BYTES_MAX {
            return Err(bad("an orphan's tasks or share"));
        }
        Ok(Orphan {
            former: o.former.unwrap_or_default().into(),
            origin: origin.try_into()?,
            spec_hash: BlobHash::from_slice(&o.spec_hash).ok_or_else(|| bad("spec hash"))?,
            array_size: o.array_size,
            tasks,
            phase: phase_in(o.phase)?,
            share: o.share,
            cost: o.cost.min(COUNT_MAX),
            attempts: o.attempts,
        })
    }
}

impl From<Orphans> for pb::Orphans {
    fn from(o: Orphans) -> Self {
        pb::Orphans { orphans: o.orphans.into_iter().map(Into::into).collect(), last: o.last, complete_from: o.complete_from }
    }
}

impl TryFrom<pb::Orphans> for Orphans {
    type Error = Refusal;
    fn try_from(o: pb::Orphans) -> Result<Self> {
        few(&o.orphans)?;
        let orphans = o.orphans.into_iter().map(Orphan::try_from).collect::<Result<Vec<_>>>()?;
        let of: Vec<Attempts> = orphans.iter().map(|o| Attempts { number: o.former.number, job: o.former.job, tasks: o.tasks.clone() }).collect();
        attempts(of.len(), of.iter())?;
        Ok(Orphans { orphans, last: o.last, complete_from: o.complete_from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Origin, Up};
    use crate::{Phase, SiteId, TaskSet};

    #[test]
    fn orphans_come_back_and_are_bounded() {
        let orphan = Orphan {
            former: Former { incarnation: 3, number: 4, job: 5 },
            origin: Origin { site: SiteId([7; 16]), job: "j".into(), principal: "ann".into(), submitted_ms: 1_800_000_000_000 },
            spec_hash: BlobHash([1; 32]),
            array_size: 9,
            tasks: TaskSet::range(2..9),
            phase: Phase::Running,
            share: "s/m".into(),
            cost: 2,
            attempts: 3,
        };
        let up = Up::Orphans(Orphans { orphans: vec![orphan.clone()], last: true, complete_from: 3 });
        assert_eq!(up.clone(), Up::try_from(pb::Up::from(up)).unwrap());
        for bad in [
            pb::Orphan { array_size: 8, ..orphan.clone().into() },
            pb::Orphan { origin: None, ..orphan.clone().into() },
            pb::Orphan { phase: 0, ..orphan.clone().into() },
            pb::Orphan { spec_hash: vec![1], ..orphan.into() },
        ] {
            assert!(Orphan::try_from(bad).is_err());
        }
    }
}
