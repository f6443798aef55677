//! What squeue prints, read. Pure; any text is taken, and what does not parse is an error, never a guess.

use std::collections::{BTreeMap, BTreeSet};

use super::words;
use crate::lrms::{Entry, LrmsId, State};
use crate::positions;

/// Fields of a record before the name.
const FIELDS: usize = 11;
/// Of a job that is no array.
const NO_ARRAY: &str = "N/A";

/// One look at the queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Look {
    /// Tasks whose job's name begins with the prefix, or whose number was asked for.
    pub entries: Vec<Entry>,
    /// Tasks that wait for their turn, of everybody, by partition.
    pub waiting: BTreeMap<String, u64>,
}

/// Records that end with `mark` each. A name is what stands between the last field and the mark, newlines and bars included.
/// All jobs of ours are arrays.
pub fn look(text: &str, mark: &str, prefix: &str, ids: &BTreeSet<LrmsId>) -> Result<Look, String> {
    let mut look = Look::default();
    let mut parts = text.split(mark).peekable();
    while let Some(part) = parts.next() {
        let record = part.strip_prefix('\n').unwrap_or(part);
        if parts.peek().is_none() {
            return match record.trim().is_empty() {
                true => Ok(look),
                false => Err(format!("squeue: its answer is cut off in {:?}", short(record))),
            };
        }
        let fields: Vec<&str> = record.splitn(FIELDS + 1, '|').collect();
        let unreadable = || format!("squeue: {:?} is not a record", short(record));
        let [job, array, task, state, status, cpus, machines, restarts, partitions, reason, owner, name] = fields[..] else {
            return Err(unreadable());
        };
        let state = words::state(state, reason, status.parse().ok(), restarts.parse().unwrap_or(0));
        let listed = tasks(task);
        if let State::Pending(wait, why) = &state
            && words::is_in_line(*wait, why)
        {
            let count = listed.as_ref().map_or(1, |(count, _)| *count);
            for partition in partitions.split(',') {
                *look.waiting.entry(partition.to_string()).or_default() += count;
            }
        }
        let number = if array.is_empty() { job } else { array };
        let id = number.parse().ok().map(LrmsId);
        if !name.starts_with(prefix) && (task == NO_ARRAY || id.is_none_or(|id| !ids.contains(&id))) {
            continue;
        }
        let id = id.ok_or_else(unreadable)?;
        let slots = cpus.parse().map_err(|_| unreadable())?;
        let restarts = restarts.parse().map_err(|_| unreadable())?;
        let (_, positions) = listed.ok_or_else(unreadable)?;
        look.entries.extend(positions.into_iter().map(|position| Entry {
            id,
            position,
            tag: name.to_string(),
            owner: owner.to_string(),
            state: state.clone(),
            slots,
            machine: machines.to_string(),
            restarts,
        }));
    }
    Ok(look)
}

/// Numbers of jobs, one a line; an array with several lines counts once.
pub fn ids(text: &str) -> Result<Vec<LrmsId>, String> {
    let mut ids = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let number = line.split(['_', '.']).next().unwrap_or(line);
        let id = LrmsId(number.parse().map_err(|_| format!("{:?} is not the number of a job", short(line)))?);
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// What `sbatch --parsable` answers: the number, and perhaps the cluster.
pub fn submitted(text: &str) -> Option<LrmsId> {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty());
    let line = lines.next()?;
    let number = line.split(';').next()?.trim();
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (plain && lines.next().is_none()).then(|| number.parse().ok().filter(|n| *n > 0).map(LrmsId))?
}

/// `7`, `1-19:2%8`, `3,5-9,20-40`, `N/A` of a job that is no array, nothing of an array that was removed task by task: how many, and those of them that can
/// be ours. Of what is cut off with `...`, and is none of ours, it is what is whole.
fn tasks(text: &str) -> Option<(u64, Vec<u32>)> {
    let text = text.split_once('%').map_or(text, |(text, _)| text);
    match text.strip_suffix("...") {
        _ if text.is_empty() => Some((0, Vec::new())),
        _ if position(text) == Some(1) => Some((1, vec![1])),
        Some(cut) => positions::read(cut.rsplit_once(',')?.0),
        None => positions::read(text),
    }
}

/// 1 for a job that is no array.
pub fn position(task: &str) -> Option<u32> {
    match task {
        NO_ARRAY | "" => Some(1),
        task => task.parse().ok().map(|n| if n == words::NO_TASK { 1 } else { n }),
    }
}

/// Its beginning, for a complaint.
pub(super) fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use intergrid_proto::Exit;
    use proptest::prelude::*;

    use super::*;
    use crate::lrms::{How, Wait};

    /// Of Slurm 22.05.8.
    const RECORDED: &str = include_str!("recorded/squeue.txt");
    /// Arrays that wait, as [`super::super::calls::squeue`] asks for them: with tasks that are held, requeued, cancelled one by one, or all at once.
    const ARRAYS: &str = include_str!("recorded/squeue_arrays.txt");
    const MARK: &str = "Znonce";

    #[test]
    fn a_recorded_queue_is_read() {
        let look = look(RECORDED, MARK, "ig-", &BTreeSet::new()).unwrap();
        let of = |id, position| look.entries.iter().find(|e| e.id == LrmsId(id) && e.position == position).unwrap();
        assert_eq!(6, look.entries.len());
        assert!(matches!(&of(20, 1).state, State::Ended(over) if over.how == How::Removed));
        assert_eq!((State::Running, "n1"), (of(20, 3).state.clone(), of(20, 3).machine.as_str()));
        assert_eq!((State::Pending(Wait::Requeued, "BeginTime".into()), 1), (of(21, 1).state.clone(), of(21, 1).restarts));
        assert_eq!((State::Suspended, "ann"), (of(22, 1).state.clone(), of(22, 1).owner.as_str()));
        assert!(matches!(&of(27, 1).state, State::Ended(over) if over.exit == Some(Exit::Code(7))));
        // Nobody waits behind what is held, or may not begin yet.
        assert_eq!(BTreeMap::from([("batch".to_string(), 1), ("short".to_string(), 1)]), look.waiting);
    }

    #[test]
    fn a_job_that_was_renamed_is_found_by_its_number() {
        let found = |ids: &[u64]| look(&RECORDED.replace("|ig-", "|"), MARK, "ig-", &ids.iter().copied().map(LrmsId).collect()).unwrap().entries;
        let of = |ids: &[u64]| found(ids).into_iter().map(|e| (e.id.0, e.position, e.tag)).collect::<Vec<_>>();
        assert_eq!(vec![(20, 1, "arr".to_string()), (20, 3, "arr".to_string())], of(&[20]));
        // No array: another's, who was given a number again.
        assert_eq!((vec![], vec![]), (of(&[]), of(&[15, 22])));
    }

    #[test]
    fn recorded_arrays_are_read_task_by_task() {
        let look = look(ARRAYS, MARK, "ig-", &BTreeSet::new()).unwrap();
        let of = |id, position| look.entries.iter().find(|e| e.id == LrmsId(id) && e.position == position).map(|e| (&e.state, e.restarts));
        assert_eq!((71, Some(&37), Some(&3)), (look.entries.len(), look.waiting.get("batch"), look.waiting.get("short")));
        let waiting = super::look(&ARRAYS.replace("JobHeldUser", "Priority"), MARK, "ig-", &BTreeSet::new()).unwrap().waiting;
        assert_eq!((Some(&345), Some(&289)), (waiting.get("batch"), waiting.get("short")), "with those that were held");
        assert!((1..=40).all(|position| of(1, position).is_some()));
        assert_eq!(Some((&State::Pending(Wait::Turn, "Resources".into()), 0)), of(1, 29));
        assert_eq!(Some((&State::Pending(Wait::Held, "JobHeldAdmin".into()), 0)), of(1, 30));
        assert_eq!(Some((&State::Pending(Wait::Requeued, "BeginTime".into()), 1)), of(1, 1));
        assert_eq!(Some((&State::Running, 0)), of(1, 2));
        assert!((1..=40).all(|position| of(2, position).is_some() == (position % 2 == 0)), "each of a stride, the last too");
        assert!((1..=3).all(|position| matches!(of(3, position), Some((State::Ended(over), 0)) if over.how == How::Removed)));
        assert!((of(6, 1).is_some(), of(12, 1), of(12, 2).is_some()) == (true, None, true));
    }

    #[test]
    fn what_waits_of_an_array_is_read_with_all_positions() {
        assert_eq!(Some((10, (1..20).step_by(2).collect())), tasks("1-19:2"));
        assert_eq!(Some((10, (1..20).step_by(2).collect())), tasks("1-19:2%8"));
        assert_eq!(Some((7, vec![1, 3, 5, 6, 7, 8, 9])), tasks("1,3,5-9%1"));
        assert_eq!((Some((1, vec![1])), Some((1, vec![1])), Some((1, vec![4]))), (tasks("N/A"), tasks("1"), tasks("4")));
        assert_eq!((Some((0, vec![])), Some((0, vec![]))), (tasks(""), tasks("%8")), "all of it was removed, and no task 1 is among it");
        assert_eq!((Some((2, vec![1, 3])), Some((2, vec![1, 3]))), (tasks("1,3,1..."), tasks("1,3,5-...%8")));
        for bad in ["19-1:2", "1-", "[1-3]", "...", "5...", "x", "N/A..."] {
            assert_eq!(None, tasks(bad), "{bad}");
        }
        // Nobody else's array is in the way, whatever it is.
        let text = format!("7|7|9-1|PENDING|0|1||0|batch|None|eve|x{MARK}\n8|8|0-4000000:2|PENDING|0|1||0|batch|None|eve|ig-x{MARK}\n");
        let look = look(&text, MARK, "ig-", &BTreeSet::new()).unwrap();
        assert_eq!((501, Some(&2_000_002)), (look.entries.len(), look.waiting.get("batch")));
    }

    #[test]
    fn a_name_is_no_record() {
        let forged = "99|20|1|FAILED|256|1|n1|0|batch|None|eve|ig-1";
        let text = format!("1|1|N/A|RUNNING|0|1|n1|0|batch|None|eve|a|b\n{forged}\n{MARK}\n2|2|N/A|RUNNING|0|1|n1|0|batch|None|ann|ig-2{MARK}\n");
        let entries = look(&text, MARK, "ig-", &BTreeSet::new()).unwrap().entries;
        assert_eq!(vec![LrmsId(2)], entries.iter().map(|e| e.id).collect::<Vec<_>>());
        assert!(look(&text[..text.len() - 3], MARK, "ig-", &BTreeSet::new()).is_err(), "cut off");
        assert!(look("slurm_load_jobs error: no", MARK, "ig-", &BTreeSet::new()).is_err());
        assert_eq!(Ok(Look::default()), look("", MARK, "ig-", &BTreeSet::new()));
    }

    #[test]
    fn answers_are_numbers_and_nothing_else() {
        assert_eq!(Some(LrmsId(17)), submitted("17\n"));
        assert_eq!(Some(LrmsId(17)), submitted("17;cluster\n"));
        for bad in ["", "\n", "Submitted batch job 17", "17 18", "17\n18\n", "-1", "0", "99999999999999999999999"] {
            assert_eq!(None, submitted(bad), "{bad:?}");
        }
        assert_eq!(Ok(vec![LrmsId(7), LrmsId(9)]), ids("7\n7\n9_3\n"));
        assert!(ids("seven").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,200}", more in "[0-9|a-zA-Z_\n]{0,200}") {
            for text in [&text, &more, &format!("{more}{MARK}\n{text}")] {
                let _ = (look(text, MARK, "ig-", &BTreeSet::new()), ids(text), submitted(text), position(text), tasks(text));
                let _ = look(&format!("1|1|{text}|PENDING|0|1||0|batch|None|ann|ig-1{MARK}\n"), MARK, "ig-", &BTreeSet::new());
            }
        }

        #[test]
        fn any_name_leaves_the_others_alone(name in "(?s).{0,60}") {
            prop_assume!(!name.contains(MARK) && !name.starts_with("ig-"));
            let text = format!("1|1|N/A|PENDING|0|1||0|batch|None|eve|{name}{MARK}\n2|2|4|RUNNING|0|2|n1|0|batch|None|ann|ig-2{MARK}\n");
            let seen = look(&text, MARK, "ig-", &BTreeSet::new()).unwrap();
            prop_assert_eq!(1, seen.entries.len());
            prop_assert_eq!((LrmsId(2), 4, 2), (seen.entries[0].id, seen.entries[0].position, seen.entries[0].slots));
            prop_assert_eq!(Some(&1), seen.waiting.get("batch"));
        }
    }
}
