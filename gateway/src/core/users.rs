//! Users: what they submit and wish. A job is theirs where it was submitted; below it is its parent's.

use intergrid_proto::limits::{HOPS_MAX, TASK_RANGES_MAX};
use intergrid_proto::link::{Origin, WantValue};
use intergrid_proto::spec::without_trace;
use intergrid_proto::{BlobHash, JobNo, Phase, Refusal, RefusalKind, SiteId, TaskSet};

use super::change::{self, What};
use super::limits::*;
use super::planted::{Plant, planted};
use super::state::Spec;
use super::steps::Step;
use super::{Core, Submission};

impl Core {
    pub(super) fn submit(&mut self, submission: Submission) -> Result<(u64, bool), Refusal> {
        let Submission { owner, owner_name, key, spec, tasks, hold, chain } = submission;
        let hash = BlobHash::of(&spec.bytes);
        if let Some(job) = self.state.by_key.get(&(owner, key.as_str().into())).and_then(|n| self.state.jobs.get(n)) {
            // Each try of one submission may be of a trace of its own.
            let same = job.spec_hash == hash || without_trace(&job.spec.bytes) == without_trace(&spec.bytes);
            if (same && job.size == tasks) || planted(Plant::AnySpec) {
                return Ok((job.no, true));
            }
            let message = format!("the key {key:?} belongs to job {}, which has another spec or number of tasks", JobNo(job.no));
            return Err(Refusal::new(RefusalKind::Conflict, message).remedy("use a new key for a new job"));
        }
        self.room_for_new()?;
        self.room_to_wait(&owner_name, &spec)?;
        let job = self.state.next_job + 1;
        let origin = Origin { site: self.me.site, job: JobNo(job).id(), principal: owner_name.clone(), submitted_ms: self.now.unix_ms };
        let (owner, route) = (owner.0.to_vec(), vec![self.me.site.0.to_vec()]);
        let new =
            change::JobNew { job, key, owner, owner_name, size: tasks, route, hops_left: HOPS_MAX, chain, ..self.new_job(&origin, hash, &spec) };
        self.record(What::Job(new));
        self.step_of(job, Step::Accepted);
        self.record(What::Tasks(change::TasksAdded {
            job,
            number: 0,
            share: String::new(),
            tasks: TaskSet::range(0..tasks).to_runs(),
            ..Default::default()
        }));
        if hold {
            self.user_wants(job, WantValue::Hold, None)?;
        }
        self.arrived(job);
        Ok((job, false))
    }

    /// A job that waits takes a place, and a shape of its own makes each pass longer: nobody may have so many that others find no place.
    fn room_to_wait(&self, user: &str, spec: &Spec) -> Result<(), Refusal> {
        let (mut all, mut own, mut shapes, mut known) = (0, 0, 0, false);
        for (queue, jobs) in &self.state.waiting {
            all += jobs.len();
            if queue.principal == user && queue.route.len() == 1 {
                own += jobs.len();
                shapes += 1;
                // A time limit makes a shape of its own, and so does a cap.
                known |= queue.shape == spec.parsed.shape
                    && queue.time_limit_ms == spec.parsed.time_limit_ms
                    && spec.parsed.max_cost.is_none()
                    && queue.capped.is_none();
            }
        }
        let refused = if all >= self.jobs_waiting_max {
            format!("{} jobs wait here already", self.jobs_waiting_max)
        } else if own >= self.jobs_waiting_max - all {
            format!("{own} jobs of {user} wait here, and no more places are left than that for others")
        } else if shapes >= SHAPES_WAITING_MAX && !known {
            let message = format!(
                "jobs of {user} wait in {shapes} shapes (what they need, their time limits, caps on cost of their own), at most {SHAPES_WAITING_MAX} are taken"
            );
            return Err(Refusal::new(RefusalKind::OverLimit, message)
                .remedy("round up what the tasks need and their time limits, put tasks under one --max-cost into one array, or wait"));
        } else {
            return Ok(());
        };
        Err(Refusal::new(RefusalKind::OverLimit, refused).remedy("submit one array instead of many jobs, or wait"))
    }

    pub(super) fn user_wants(&mut self, job: u64, value: WantValue, tasks: Option<TaskSet>) -> Result<u64, Refusal> {
        let unknown = || Refusal::new(RefusalKind::NotFound, format!("no job {} here", JobNo(job)));
        let j = self.state.jobs.get(&job).ok_or_else(unknown)?;
        // Whose parent has lost its store is nobody's but ours: it runs on, and can be ended here only.
        let orphaned =
            |p: &SiteId| self.state.links.get(p).is_none_or(|l| j.ups.values().all(|e| e.open == 0 || e.incarnation != l.peer_incarnation));
        if let Some(parent) = j.parent.filter(|p| !orphaned(p)) {
            let name = self.state.links.get(&parent).map_or("", |l| l.name.as_str()).to_string();
            let message = format!("job {} was placed here by {name}, as its job {}", JobNo(job), j.origin.job);
            return Err(Refusal::new(RefusalKind::NotAuthorised, message).remedy("ask where it was submitted"));
        }
        let tasks = tasks.unwrap_or_else(|| j.all()).intersect(&j.all());
        let open = j.select(&tasks, |c| c.phase().is_some_and(|p| !p.is_terminal()));
        if open.is_empty() {
            return Ok(0);
        }
        let mut want = j.want.clone();
        (want.job, want.version) = (job, want.version + 1);
        let cancelled = want.tasks(WantValue::Cancel, &open);
        // A cancel is never taken back.
        let open = if value == WantValue::Cancel { open } else { open.subtract(&cancelled) };
        want.set(value, &open);
        let ranges = want.range_count();
        if ranges > TASK_RANGES_MAX {
            let message = format!("what is wished of job {} would have {ranges} ranges of tasks, at most {TASK_RANGES_MAX} are kept", JobNo(job));
            return Err(Refusal::new(RefusalKind::OverLimit, message).remedy("name fewer and longer ranges, or all tasks"));
        }
        self.record(What::Want(change::WantSet { job, parent: Vec::new(), want: Some(want.into()) }));
        if value == WantValue::Run {
            // What is in doubt may run: nobody can decide of it before those below have said what they hold.
            let settled = self.is_settled(job);
            let held = self.state.jobs[&job].select(&open, |c| c.phase() == Some(Phase::Held) && c.down == 0 && (settled || !c.is_doubtful()));
            self.set_phase(job, &held, Phase::Queued, true);
        }
        self.enforce_want(job);
        Ok(open.len())
    }
}
