//! Which tasks are given to the LRMS together: those that ask for the same and wait at the same time, of whatever jobs they are. Pure, so that tests drive it
//! without a cluster.
//!
//! The first of a kind goes at once. What comes while a submission of its kind is under way goes with the next, and what is full waits for no other: nothing
//! waits for time to pass, and the slower the LRMS answers, the more go together. Where it had no room for several jobs at once, each goes by itself for a while.
//! Invariant: what waits has a carrier, who takes it or leaves it to another.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use intergrid_agent::plan::{Plan, Task};
use intergrid_proto::{BlobHash, Shape};

use crate::command::Account;
use crate::limits::{CROWDED_MS, SUBMISSIONS_AT_ONCE_MAX};
use crate::script::dirs;

/// What a submission says once for all of its tasks, to the LRMS or in its script, and whose they are: only those that have all of it in common go together.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// Partition or queue.
    pub queue: String,
    /// Runs them.
    pub account: Account,
    /// For whom: limits are his, and so is an account of a pool.
    pub principal: String,
    /// What each needs.
    pub shape: Shape,
    /// As its job asks for it; None: not limited.
    pub time_limit_ms: Option<u64>,
    /// Files that are there once for all: name, content, and is it a program?
    pub files: Vec<(String, BlobHash, bool)>,
    /// Variables that name the task's own directory.
    pub dirs: Vec<&'static str>,
}

impl Request {
    /// Of tasks of a plan.
    pub fn new(queue: &str, account: &Account, principal: &str, plan: &Plan) -> Self {
        Request {
            queue: queue.to_string(),
            account: account.clone(),
            principal: principal.to_string(),
            shape: plan.spec.shape.clone(),
            time_limit_ms: plan.spec.time_limit_ms,
            files: plan.files().map(|(file, executable)| (file.name.clone(), file.hash, executable)).collect(),
            dirs: dirs(plan),
        }
    }

    /// Limits of the LRMS are of these.
    fn whose(&self) -> (String, Account) {
        (self.queue.clone(), self.account.clone())
    }
}

/// Some tasks that have their words in common: of one placement.
#[derive(Clone, Debug)]
pub struct Part {
    /// Any of them.
    pub task: Task,
    /// What they run.
    pub plan: Arc<Plan>,
    /// All of them, in order.
    pub indices: Vec<u32>,
}

/// What goes together.
#[derive(Debug)]
pub struct Batch {
    /// The submission's name.
    pub tag: String,
    /// Positions go by their order.
    pub parts: Vec<Part>,
    room: usize,
}

/// What waits of one kind.
#[derive(Debug, Default)]
struct Line {
    full: VecDeque<Batch>,
    /// Takes more; after all that are full.
    open: Option<Batch>,
    /// Those who take from it, and how many of them have a submission under way.
    carriers: usize,
    under_way: usize,
}

/// All that waits to be given to the LRMS.
#[derive(Debug, Default)]
pub struct Batches {
    lines: HashMap<Request, Line>,
    /// Queues and accounts for which the LRMS had no room for several jobs together, and when.
    crowded: HashMap<(String, Account), u64>,
}

impl Batches {
    /// Some tasks wait now: with those of their kind that wait already, or in submissions of at most `size` with names of their own. Which are where, in order.
    pub fn join(&mut self, request: &Request, part: Part, size: usize, now: u64, tag: impl Fn() -> String) -> Vec<(String, Vec<u32>)> {
        let is_alone = self.crowded.get(&request.whose()).is_some_and(|since| now < since + CROWDED_MS);
        let line = self.lines.entry(request.clone()).or_default();
        if is_alone {
            line.full.extend(line.open.take());
        }
        let (mut joined, mut rest) = (Vec::new(), &part.indices[..]);
        while !rest.is_empty() {
            let batch = line.open.get_or_insert_with(|| Batch { tag: tag(), parts: Vec::new(), room: size.max(1) });
            let (now, later) = rest.split_at(batch.room.min(rest.len()));
            (batch.room, rest) = (batch.room - now.len(), later);
            batch.parts.push(Part { indices: now.to_vec(), ..part.clone() });
            joined.push((batch.tag.clone(), now.to_vec()));
            if is_alone || batch.room == 0 {
                line.full.extend(line.open.take());
            }
        }
        joined
    }

    /// How many more carriers this kind is to have.
    pub fn hire(&mut self, request: &Request) -> usize {
        let Some(line) = self.lines.get_mut(request) else { return 0 };
        let wanted = (line.under_way + line.full.len()).clamp(1, SUBMISSIONS_AT_ONCE_MAX);
        let more = wanted.saturating_sub(line.carriers);
        line.carriers += more;
        more
    }

    /// What a carrier submits now; None: nothing that is not another's, and he is no carrier any more.
    pub fn take(&mut self, request: &Request) -> Option<Batch> {
        let line = self.lines.get_mut(request)?;
        let next = line.full.pop_front().or_else(|| if line.under_way == 0 { line.open.take() } else { None });
        match next {
            Some(_) => line.under_way += 1,
            None => line.carriers -= 1,
        }
        if line.carriers == 0 {
            self.lines.remove(request);
        }
        next
    }

    /// What a carrier took is submitted, or not to be.
    pub fn done(&mut self, request: &Request) {
        if let Some(line) = self.lines.get_mut(request) {
            line.under_way -= 1;
        }
    }

    /// The LRMS did not take these now. It takes all or none, and may take one of several jobs: for a while each goes by itself.
    pub fn refused(&mut self, request: &Request, parts: &[Part], now: u64) {
        if parts.len() > 1 {
            self.crowded.insert(request.whose(), now);
        }
    }

    /// Nothing is left of a submission, and all that it had is being removed: nothing joins it any more.
    pub fn leave(&mut self, tag: &str) {
        for line in self.lines.values_mut() {
            line.full.retain(|b| b.tag != tag);
            line.open = line.open.take().filter(|b| b.tag != tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::{BTreeMap, BTreeSet};

    use intergrid_proto::JobSpec;
    use intergrid_proto::spec::File;
    use proptest::prelude::*;

    use super::*;

    fn plan(change: impl FnOnce(&mut JobSpec)) -> Arc<Plan> {
        let mut spec = JobSpec::new(["/bin/true"]);
        change(&mut spec);
        Arc::new(Plan::new(&spec.encode()).unwrap())
    }

    fn part(number: u64, tasks: u32) -> Part {
        let task = Task { number, index: 0, attempt: 1, job: "abc".into(), array_size: tasks, site: "campus".into() };
        Part { task, plan: plan(|_| {}), indices: (0..tasks).collect() }
    }

    /// Names in order.
    #[derive(Default)]
    struct Names(Cell<u64>);

    impl Names {
        fn next(&self) -> String {
            self.0.set(self.0.get() + 1);
            format!("t{}", self.0.get())
        }
    }

    fn of(b: &Batch) -> (String, Vec<(u64, usize)>) {
        (b.tag.clone(), b.parts.iter().map(|p| (p.task.number, p.indices.len())).collect())
    }

    #[test]
    fn the_first_goes_at_once_and_what_comes_meanwhile_goes_together() {
        let (mut all, names) = (Batches::default(), Names::default());
        let kind = Request::new("q", &Account::Own, "ann", &plan(|_| {}));
        let join = |all: &mut Batches, number| all.join(&kind, part(number, 1), 3, 0, || names.next());
        assert_eq!((vec![("t1".to_string(), vec![0])], 1), (join(&mut all, 1), all.hire(&kind)));
        assert_eq!(("t1".to_string(), vec![(1, 1)]), of(&all.take(&kind).unwrap()));
        for number in [2, 3] {
            assert_eq!((vec![("t2".to_string(), vec![0])], 0), (join(&mut all, number), all.hire(&kind)), "one is under way");
        }
        all.done(&kind);
        assert_eq!(("t2".to_string(), vec![(2, 1), (3, 1)]), of(&all.take(&kind).unwrap()));
        // What is full waits for nobody; what is not, waits for the last that is under way.
        join(&mut all, 4);
        assert_eq!(vec![("t3".to_string(), vec![0, 1]), ("t4".to_string(), vec![2])], all.join(&kind, part(5, 3), 3, 0, || names.next()));
        assert_eq!((1, 0), (all.hire(&kind), all.hire(&kind)));
        assert_eq!(("t3".to_string(), vec![(4, 1), (5, 2)]), of(&all.take(&kind).unwrap()));
        all.done(&kind);
        assert!(all.take(&kind).is_none(), "left to the other carrier");
        all.done(&kind);
        assert_eq!(("t4".to_string(), vec![(5, 1)]), of(&all.take(&kind).unwrap()));
        all.done(&kind);
        assert!(all.take(&kind).is_none() && all.lines.is_empty() && all.hire(&kind) == 0);
    }

    #[test]
    fn what_differs_in_anything_never_goes_together() {
        let file = |name: &str, byte, executable| File { name: name.into(), hash: BlobHash([byte; 32]), size: 1, executable };
        let plain = plan(|_| {});
        let named = |name: &str| Account::named(name).unwrap();
        let kinds = [
            Request::new("q", &Account::Own, "ann", &plain),
            Request::new("short", &Account::Own, "ann", &plain),
            Request::new("q", &named("ann"), "ann", &plain),
            Request::new("q", &named("bob"), "ann", &plain),
            Request::new("q", &Account::Own, "bob", &plain),
        ];
        let changes: [fn(&mut JobSpec); 7] = [
            |s| s.shape.slots = 2,
            |s| s.shape.memory_bytes = 1 << 30,
            |s| s.shape.gpus = 1,
            |s| s.shape.nodes = 2,
            |s| s.time_limit_ms = Some(60_000),
            |s| s.env = vec![("HOME".into(), "/home/ann".into())],
            |s| s.env = vec![("TMPDIR".into(), "/scratch".into())],
        ];
        let files = [vec![file("a", 1, false)], vec![file("a", 2, false)], vec![file("a", 1, true)], vec![file("b", 1, false)]];
        let changed = changes.into_iter().map(plan);
        let changed = changed.chain(files.into_iter().map(|files| plan(|s| s.inputs = files)));
        let kinds: Vec<Request> = kinds.into_iter().chain(changed.map(|p| Request::new("q", &Account::Own, "ann", &p))).collect();
        let (mut all, names) = (Batches::default(), Names::default());
        for (n, kind) in (1..).zip(&kinds) {
            assert_eq!((format!("t{n}"), 1), (all.join(kind, part(n, 1), 9, 0, || names.next())[0].0.clone(), all.hire(kind)), "{kind:?}");
        }
        // Other words are no other kind.
        let other = plan(|s| (s.argv, s.env, s.name) = (vec!["/bin/echo".into(), "x".into()], vec![("A".into(), "b".into())], "other".into()));
        assert_eq!(kinds[0], Request::new("q", &Account::Own, "ann", &other));
    }

    #[test]
    fn what_there_is_no_room_for_together_goes_separately_for_a_while() {
        let (mut all, names) = (Batches::default(), Names::default());
        let [kind, other] = ["ann", "bob"].map(|who| Request::new("q", &Account::named(who).unwrap(), who, &plan(|_| {})));
        // How many submissions three jobs are.
        let three = |all: &mut Batches, kind, now| {
            let tags: BTreeSet<String> = (1..4).flat_map(|n| all.join(kind, part(n, 2), 9, now, || names.next())).map(|(tag, _)| tag).collect();
            tags.iter().for_each(|tag| all.leave(tag));
            tags.len()
        };
        // An array that is too large by itself is no reason.
        all.refused(&kind, &[part(1, 9)], 1_000);
        assert_eq!(1, three(&mut all, &kind, 1_001));
        all.join(&kind, part(1, 2), 9, 1_000, || names.next());
        all.refused(&kind, &[part(1, 2), part(2, 2)], 1_000);
        assert_eq!((3, 1), (three(&mut all, &kind, 1_001), three(&mut all, &other, 1_001)));
        assert_eq!((3, 1), (three(&mut all, &kind, 999 + CROWDED_MS), three(&mut all, &kind, 1_000 + CROWDED_MS)));
        // Like what is full, they wait for no other.
        (0..2).for_each(|n| _ = all.join(&kind, part(n, 2), 9, 1_001, || names.next()));
        assert_eq!(3, all.hire(&kind), "with the one that was there before");
    }

    #[test]
    fn nothing_joins_a_submission_of_which_nothing_is_left() {
        let (mut all, names) = (Batches::default(), Names::default());
        let kind = Request::new("q", &Account::Own, "ann", &plan(|_| {}));
        let first = all.join(&kind, part(1, 4), 3, 0, || names.next());
        assert_eq!(vec!["t1", "t2"], first.iter().map(|(tag, _)| tag.as_str()).collect::<Vec<_>>());
        assert_eq!(1, all.hire(&kind));
        all.leave("t1");
        all.leave("t2");
        assert_eq!("t3", all.join(&kind, part(2, 1), 3, 0, || names.next())[0].0);
        assert_eq!(("t3".to_string(), vec![(2, 1)]), of(&all.take(&kind).unwrap()));
    }

    proptest! {
        /// Whatever comes and ends when: each task is taken once, in order, in submissions within the bound, and none is left behind.
        #[test]
        fn all_that_waits_is_taken_once_within_bounds(
            size in 1..5usize,
            steps in proptest::collection::vec((0..4u8, 1..8u32, 0..2usize), 1..60),
        ) {
            let (mut all, names) = (Batches::default(), Names::default());
            let kinds = ["ann", "bob"].map(|who| Request::new("q", &Account::Own, who, &plan(|_| {})));
            // Of each kind: carriers without a submission, and with one.
            let mut idle = [0usize; 2];
            let mut busy = [0usize; 2];
            // Tasks of each kind, in order.
            type Tasks = BTreeMap<usize, Vec<(u64, u32)>>;
            let (mut put, mut taken): (Tasks, Tasks) = Default::default();
            let mut number = 0;
            // In the end all that is under way ends.
            let ends = (0..2_000).map(|n| (if n % 2 == 0 { 3 } else { 2 }, 1, n / 2 % 2));
            for (what, tasks, k) in steps.into_iter().chain(ends) {
                match what {
                    0 | 1 => {
                        number += 1;
                        let joined = all.join(&kinds[k], part(number, tasks), size, 0, || names.next());
                        prop_assert_eq!((0..tasks).collect::<Vec<_>>(), joined.into_iter().flat_map(|(_, indices)| indices).collect::<Vec<_>>());
                        put.entry(k).or_default().extend((0..tasks).map(|t| (number, t)));
                        idle[k] += all.hire(&kinds[k]);
                    }
                    2 if idle[k] > 0 => {
                        idle[k] -= 1;
                        if let Some(batch) = all.take(&kinds[k]) {
                            let of = |p: &Part| p.indices.iter().map(|i| (p.task.number, *i)).collect::<Vec<_>>();
                            let tasks: Vec<_> = batch.parts.iter().flat_map(of).collect();
                            prop_assert!((1..=size).contains(&tasks.len()));
                            prop_assert!(tasks.len() == size || busy[k] == 0, "one that has room waits for its like");
                            taken.entry(k).or_default().extend(tasks);
                            busy[k] += 1;
                        }
                    }
                    3 if busy[k] > 0 => {
                        busy[k] -= 1;
                        all.done(&kinds[k]);
                        idle[k] += 1;
                    }
                    _ => {}
                }
                prop_assert!(idle[k] + busy[k] <= SUBMISSIONS_AT_ONCE_MAX);
            }
            prop_assert_eq!((put, true), (taken, all.lines.is_empty()));
        }
    }
}
