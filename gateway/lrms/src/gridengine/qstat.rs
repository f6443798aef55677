//! What qstat and qsub print, read. Pure; any text is taken, and what does not parse is an error, never a guess.
//!
//! A name can't have '/', so that nobody's name closes a tag; it has no newline either.

use std::collections::{BTreeMap, BTreeSet};

use super::words;
use super::xml::{self, Event};
use crate::lrms::{Entry, LrmsId, State, Wait};
use crate::positions;

/// One look at the queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Look {
    /// Tasks whose job's name begins with the prefix, or whose number was asked for.
    pub entries: Vec<Entry>,
    /// Tasks that wait for their turn, of everybody, by the queue that they ask for, which may be a pattern; those that ask for none under the empty name.
    pub waiting: BTreeMap<String, u64>,
}

/// One `<job_list>`: a task, or some of an array that are alike.
#[derive(Default)]
struct Row<'a> {
    number: &'a str,
    name: String,
    owner: &'a str,
    state: &'a str,
    place: String,
    slots: &'a str,
    tasks: &'a str,
    queues: Vec<String>,
}

/// `qstat -xml -r` of all jobs of all accounts. All jobs of ours are arrays.
pub fn look(text: &str, prefix: &str, ids: &BTreeSet<LrmsId>) -> Result<Look, String> {
    let events = xml::events(text).map_err(|e| format!("qstat: {e}"))?;
    let mut look = Look::default();
    let (mut row, mut field) = (None, "");
    for event in &events {
        match event {
            Event::Open("job_list", _) => row = Some(Row::default()),
            Event::Close("job_list") => row.take().map_or(Ok(()), |row| look.row(&row, prefix, ids))?,
            Event::Open(name, _) => field = name,
            Event::Close(_) => field = "",
            Event::Text(text) => {
                if let Some(row) = row.as_mut() {
                    row.field(field, text);
                }
            }
        }
    }
    Ok(look)
}

impl<'a> Row<'a> {
    fn field(&mut self, name: &str, text: &'a str) {
        match name {
            "JB_job_number" => self.number = text,
            "JB_name" | "full_job_name" => self.name = text.to_string(),
            "JB_owner" => self.owner = text,
            "state" => self.state = text,
            "queue_name" => self.place = text.to_string(),
            "slots" => self.slots = text,
            "tasks" => self.tasks = text,
            "hard_req_queue" => self.queues.push(text.split('@').next().unwrap_or(text).to_string()),
            _ => {}
        }
    }
}

impl Look {
    fn row(&mut self, row: &Row, prefix: &str, ids: &BTreeSet<LrmsId>) -> Result<(), String> {
        let unreadable = |what: &str| format!("qstat: {what} of job {:?} can't be read", row.number.chars().take(40).collect::<String>());
        let (count, positions) = tasks(row.tasks).ok_or_else(|| unreadable("the tasks"))?;
        let state = words::state(row.state, None);
        if let State::Pending(wait, _) = &state
            // Nobody waits behind one that is held, or broken.
            && !matches!(wait, Wait::Broken | Wait::Held)
        {
            match row.queues.is_empty() {
                true => *self.waiting.entry(String::new()).or_default() += count,
                false => row.queues.iter().for_each(|q| *self.waiting.entry(q.clone()).or_default() += count),
            }
        }
        let id = row.number.parse().ok().map(LrmsId);
        if !row.name.starts_with(prefix) && (row.tasks.is_empty() || id.is_none_or(|id| !ids.contains(&id))) {
            return Ok(());
        }
        let id = id.ok_or_else(|| unreadable("the number"))?;
        let slots = row.slots.parse().map_err(|_| unreadable("the slots"))?;
        let machine = row.place.split_once('@').map_or("", |(_, machine)| machine);
        self.entries.extend(positions.into_iter().map(|position| Entry {
            id,
            position,
            tag: row.name.clone(),
            owner: row.owner.to_string(),
            state: state.clone(),
            slots,
            machine: machine.to_string(),
            restarts: u32::from(row.state.contains('R')),
        }));
        Ok(())
    }
}

/// Tasks that wait, by queue: who asks for `b*` waits for each of these that is called so, and who asks in a way that is not known here for any.
pub fn by_queue(waiting: &BTreeMap<String, u64>, queues: &[String]) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for (asked, n) in waiting {
        let mut count = |queue: &str| *out.entry(queue.to_string()).or_default() += n;
        match asked {
            asked if asked.contains(['[', '!', '|', '&', '(']) => count(""),
            asked if asked.contains(['*', '?']) => queues.iter().filter(|queue| fits(asked, queue)).for_each(|queue| count(queue.as_str())),
            asked => count(asked),
        }
    }
    out
}

/// Does a pattern of `*` and `?` fit a name? Users write it: it takes no longer than the one times the other.
fn fits(pattern: &str, name: &str) -> bool {
    // After so many letters of the name, is what was read of the pattern used up?
    let mut at: Vec<bool> = std::iter::once(true).chain(name.chars().map(|_| false)).collect();
    for p in pattern.chars() {
        let mut reached = false;
        at = match p {
            '*' => {
                let more = at.iter().map(|a| {
                    reached |= *a;
                    reached
                });
                more.collect()
            }
            p => std::iter::once(false).chain(at.iter().zip(name.chars()).map(|(a, c)| *a && (p == '?' || p == c))).collect(),
        };
    }
    at.last() == Some(&true)
}

/// `1-3:1`, `1,2,5-8:1`, `3-9:2`, or nothing for a job that is no array: how many, and those of them that can be ours.
fn tasks(text: &str) -> Option<(u64, Vec<u32>)> {
    if text.is_empty() { Some((1, vec![1])) } else { positions::read(text) }
}

/// Why tasks are in error: `error reason   2:   11/21/2026 17:52:50 [1004:11282]: error: can't chdir to /x`.
pub fn errors(text: &str) -> BTreeMap<(LrmsId, u32), String> {
    let (mut id, mut errors) = (None, BTreeMap::new());
    for line in text.lines() {
        if let Some(number) = line.strip_prefix("job_number:") {
            id = number.trim().parse().ok().map(LrmsId);
        } else if let Some((task, why)) = line.strip_prefix("error reason").and_then(|rest| rest.split_once(':'))
            && let (Some(id), Ok(task)) = (id, task.trim().parse())
        {
            let why = why.split_once("]: ").map_or(why, |(_, why)| why).trim();
            errors.insert((id, task), why.strip_prefix("error: ").unwrap_or(why).chars().take(crate::limits::COMPLAINT_CHARS_MAX).collect());
        }
    }
    errors
}

/// What `qsub -terse` answers: `13.1-6:1`, or `13` of a plain job.
pub fn submitted(text: &str) -> Option<LrmsId> {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty());
    let line = lines.next()?.trim();
    let (number, tasks) = line.split_once('.').unwrap_or((line, "1"));
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && tasks.bytes().all(|b| b.is_ascii_digit() || b"-:".contains(&b));
    (plain && lines.next().is_none()).then(|| number.parse().ok().filter(|n| *n > 0).map(LrmsId))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of Son of Grid Engine 8.1.9.
    const RECORDED: &str = include_str!("recorded/qstat.xml");
    const ERRORS: &str = include_str!("recorded/errors.txt");

    #[test]
    fn a_recorded_queue_is_read() {
        let look = look(RECORDED, "ig-", &BTreeSet::new()).unwrap();
        let of = |tag: &str, position| look.entries.iter().find(|e| e.tag == tag && e.position == position).unwrap();
        assert_eq!(12, look.entries.len());
        assert_eq!((State::Suspended, "localhost", 2, 37, "intergrid-t1"), {
            let e = of("ig-run", 1);
            (e.state.clone(), e.machine.as_str(), e.slots, e.id.0, e.owner.as_str())
        });
        assert_eq!((State::Running, State::Running), (of("ig-run", 2).state.clone(), of("ig-run", 4).state.clone()));
        assert_eq!(State::Pending(Wait::Turn, "qw".into()), of("ig-run", 5).state);
        assert_eq!(State::Pending(Wait::Held, "hqw".into()), of("ig-run", 6).state);
        assert_eq!(State::Pending(Wait::Broken, "Eqw".into()), of("ig-bad", 3).state);
        // Nobody waits behind what is held.
        assert_eq!(BTreeMap::from([("batch".to_string(), 1)]), look.waiting);
        // 2 of our own, and 4 that may go to either; the last asks for none.
        let waiting = super::look(&RECORDED.replace("hqw", "qw"), "ig-", &BTreeSet::new()).unwrap().waiting;
        assert_eq!((Some(&6), Some(&6), Some(&1)), (waiting.get("batch"), waiting.get("short"), waiting.get("")));
    }

    #[test]
    fn a_job_that_was_renamed_is_found_by_its_number() {
        let renamed = RECORDED.replace(">ig-run<", ">site<");
        let found = |ids: &[u64]| look(&renamed, "ig-", &ids.iter().copied().map(LrmsId).collect()).unwrap().entries;
        let of = |entries: &[Entry], id| entries.iter().filter(|e| e.id == LrmsId(id)).count();
        assert_eq!((0, 6, 12), (of(&found(&[]), 37), of(&found(&[37]), 37), found(&[37]).len()));
        assert!(found(&[37]).iter().all(|e| e.id != LrmsId(37) || e.tag == "site"));
        // No array: another's, who was given a number again.
        assert_eq!(0, of(&found(&[37, 41]), 41));
    }

    #[test]
    fn who_asks_for_a_pattern_waits_for_all_that_fit() {
        let queues = ["batch", "big", "short"].map(String::from);
        let waiting = |asked: &[(&str, u64)]| asked.iter().map(|(name, n)| (name.to_string(), *n)).collect::<BTreeMap<_, _>>();
        let counted = by_queue(&waiting(&[("b*", 3), ("*", 10), ("?hor?", 100), ("batch", 1_000), ("b", 5), ("!(big)", 7), ("", 1)]), &queues);
        assert_eq!(waiting(&[("batch", 1_013), ("big", 13), ("short", 110), ("b", 5), ("", 8)]), counted);
        for (pattern, name, is) in
            [("*a*a*", "a", false), ("*a*a*", "baba", true), ("?", "", false), ("*", "", true), ("a?c*", "abc", true), ("ab", "a", false)]
        {
            assert_eq!(is, fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn why_it_is_in_error_is_read() {
        let errors = errors(ERRORS);
        assert_eq!(Some("can't chdir to /nowhere/x: No such file or directory"), errors.get(&(LrmsId(39), 2)).map(String::as_str));
        assert_eq!(3, errors.len());
    }

    #[test]
    fn answers_are_numbers_and_nothing_else() {
        assert_eq!((Some(LrmsId(13)), Some(LrmsId(7))), (submitted("13.1-6:1\n"), submitted("7\n")));
        for bad in ["", "\n", "Your job 7 (\"x\") has been submitted", "7 8", "7\n8\n", "-1", "0", "7.x", "99999999999999999999999"] {
            assert_eq!(None, submitted(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,100}", more in "[0-9:,.-]{0,30}", cut in 0..RECORDED.len()) {
            for text in [&text, &more] {
                let _ = (look(text, "", &BTreeSet::new()), tasks(text), errors(text), submitted(text));
                let row = format!("<a><job_list><state>{more}</state><tasks>{more}</tasks><slots>{text}</slots></job_list></a>");
                let _ = look(&row, "", &BTreeSet::new());
                let _ = errors(&format!("job_number: {more}\nerror reason {more}: {text}"));
            }
            if RECORDED.is_char_boundary(cut) {
                prop_assert!(look(&RECORDED[..cut], "ig-", &BTreeSet::new()).is_err() || RECORDED[cut..].trim().is_empty());
            }
        }

        #[test]
        fn any_name_leaves_the_others_alone(name in "[^\n\t\r/:@*\\\\?]{0,60}") {
            prop_assume!(!name.trim_start().starts_with("ig-"));
            let name = name.replace('&', "&amp;").replace('>', "&gt;").replace('<', "%lt;");
            let text = RECORDED.replace("<JB_name>other</JB_name>", &format!("<JB_name>{name}</JB_name>"));
            prop_assert_eq!(12, look(&text, "ig-", &BTreeSet::new()).unwrap().entries.len());
        }
    }
}
