//! What sinfo and `scontrol show config` print, read. Pure; any text is taken.

use std::collections::BTreeMap;

use crate::lrms::Queue;

/// Partitions, in the order of their names. A machine of several partitions counts in each.
pub fn queues(text: &str, waiting: &BTreeMap<String, u64>) -> Result<Vec<Queue>, String> {
    let mut queues: BTreeMap<&str, Queue> = BTreeMap::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let unreadable = || format!("sinfo: {:?} is not a line of it", line.chars().take(80).collect::<String>());
        let fields: Vec<&str> = line.split('|').collect();
        let [name, available, time, state, cpus, memory, machine, gres, nodes] = fields[..] else { return Err(unreadable()) };
        let cpus: Vec<u32> = cpus.split('/').map(|n| n.parse().map_err(|_| unreadable())).collect::<Result<_, _>>()?;
        let [allocated, idle, _other, total] = cpus[..] else { return Err(unreadable()) };
        // `4000+` where machines of one line differ.
        let memory_mib: u64 = memory.trim_end_matches('+').parse().map_err(|_| unreadable())?;
        let queue = queues.entry(name).or_insert_with(|| Queue {
            name: name.to_string(),
            waiting: waiting.get(name).copied().unwrap_or(0),
            time_max_ms: duration_ms(time),
            closed: (available != "up").then(|| format!("the partition is {available}")),
            ..Queue::default()
        });
        queue.machine_slots = queue.machine_slots.max(total);
        queue.slots_all += u64::from(total);
        queue.machine_memory_bytes = queue.machine_memory_bytes.max(memory_mib.saturating_mul(1 << 20));
        if state.ends_with('*') {
            queue.unheard.push(machine.to_string());
        }
        let gpus = gpus(gres);
        queue.machine_gpus = queue.machine_gpus.max(gpus);
        // `1-infinite`: of one job.
        let most = nodes.rsplit('-').next().map_or(u32::MAX, count_of_nodes);
        queue.nodes_max = (queue.nodes_max + 1).min(most);
        if is_usable(state) {
            queue.gpus_total += u64::from(gpus);
            queue.machines += 1;
            queue.slots_total += u64::from(allocated) + u64::from(idle);
            queue.slots_free += u64::from(idle);
            queue.largest_free = queue.largest_free.max(idle);
        }
    }
    Ok(queues.into_values().collect())
}

/// `4`, `1K`; `infinite`: not limited.
fn count_of_nodes(text: &str) -> u32 {
    let thousands = text.strip_suffix(['K', 'k']).map(|n| n.parse::<u32>().map_or(u32::MAX, |n| n.saturating_mul(1_024)));
    thousands.or_else(|| text.parse().ok()).unwrap_or(u32::MAX)
}

/// GPUs of `gpu:2`, `gpu:tesla:2(S:0-1),gpu:a100:1`: those of all types.
fn gpus(gres: &str) -> u32 {
    // What is in parentheses are sockets and indices, with commas of their own.
    let mut depth = 0usize;
    let plain: String = gres
        .chars()
        .filter(|c| {
            depth = match c {
                '(' => depth + 1,
                ')' => depth.saturating_sub(1),
                _ => return depth == 0,
            };
            false
        })
        .collect();
    let one = |name: &str| name.strip_prefix("gpu").filter(|rest| rest.is_empty() || rest.starts_with(':')).map(count);
    plain.split(',').filter_map(one).fold(0, u32::saturating_add)
}

/// Of what follows the name: `:2`, `:tesla:2`, `:2K`; nothing, or a type alone: 1.
fn count(rest: &str) -> u32 {
    rest.rsplit(':').next().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Could Slurm start work there, now or when what runs has ended? `*` at the end: it does not answer.
fn is_usable(state: &str) -> bool {
    let word = state.trim_end_matches(['~', '#', '!', '%', '$', '@', '^', '-']);
    matches!(word, "idle" | "allocated" | "mixed" | "completing" | "planned")
}

/// `days-hours:minutes:seconds`; None: not limited, or not told.
pub fn duration_ms(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (days.parse::<u64>().ok()?, rest),
        None => (0, text),
    };
    let mut seconds = 0u64;
    for part in rest.split(':') {
        seconds = seconds.checked_mul(60)?.checked_add(part.parse().ok()?)?;
    }
    days.checked_mul(86_400)?.checked_add(seconds)?.checked_mul(1_000)
}

/// `scontrol show config`: keys and values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Controller(BTreeMap<String, String>);

impl Controller {
    /// Lines without a `=` are headings.
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.trim().to_string(), value.trim().to_string()));
        Controller(text.lines().filter_map(pair).collect())
    }

    /// Does it show this account its own jobs only? `level`: what sacctmgr says that it may do.
    pub fn hides_jobs_from(&self, account: &str, level: &str) -> bool {
        let private = self.get("PrivateData").is_some_and(|data| data.split(',').any(|d| matches!(d.trim(), "jobs" | "all")));
        let chief = self.get("SlurmUser").and_then(|user| user.split('(').next());
        private && account != "root" && chief != Some(account) && !matches!(level.trim(), "Operator" | "Administrator")
    }

    /// A value; None where it is absent or `(null)`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|v| !v.is_empty() && *v != "(null)")
    }

    /// A whole number; what follows it is its unit.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.split_whitespace().next()?.parse().ok()
    }

    /// From SIGTERM to SIGKILL.
    pub fn kill_wait_ms(&self) -> Option<u64> {
        self.number("KillWait")?.checked_mul(1_000)
    }

    /// Positions of one array: 1 to this.
    pub fn array_tasks_max(&self) -> Option<u32> {
        let size = self.number("MaxArraySize")?.checked_sub(1)?;
        let jobs = self.number("MaxJobCount").unwrap_or(u64::MAX);
        u32::try_from(size.min(jobs)).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of Slurm 22.05.8.
    const SINFO: &str = include_str!("recorded/sinfo.txt");
    const CONFIG: &str = include_str!("recorded/config.txt");

    #[test]
    fn recorded_partitions_are_read() {
        let queues = queues(SINFO, &BTreeMap::from([("batch".to_string(), 7)])).unwrap();
        assert_eq!(vec!["batch", "short"], queues.iter().map(|q| q.name.as_str()).collect::<Vec<_>>());
        let (batch, short) = (&queues[0], &queues[1]);
        // Of four machines one is drained and one does not answer.
        assert_eq!((2, 8, 5, 4, 7), (batch.machines, batch.slots_total, batch.slots_free, batch.largest_free, batch.waiting));
        assert_eq!((4, 4_000 << 20, Some(86_400_000), &None), (batch.machine_slots, batch.machine_memory_bytes, batch.time_max_ms, &batch.closed));
        assert_eq!((vec!["n4".to_string()], 0), (batch.unheard.clone(), short.unheard.len()));
        assert_eq!((Some(600_000), Some("the partition is down"), 0), (short.time_max_ms, short.closed.as_deref(), short.waiting));
    }

    #[test]
    fn gpus_are_counted() {
        for (gres, n) in [
            ("(null)", 0),
            ("", 0),
            ("gpu:2", 2),
            ("gpu:tesla:2(S:0-1)", 2),
            ("gpu:a:2(S:0,1),gpu:b:1,lustre:4", 3),
            ("gpu", 1),
            ("gpu:tesla", 1),
            ("gpus:7", 0),
        ] {
            assert_eq!(n, gpus(gres), "{gres}");
        }
        let line = |machine: &str, nodes: &str| format!("g|up|infinite|idle|0/8/0/8|4000|{machine}|gpu:2(S:0)|{nodes}\n");
        let all = queues(&(line("a", "1-infinite") + &line("b", "1-infinite")), &BTreeMap::new()).unwrap();
        assert_eq!((2, 4, 2), (all[0].machine_gpus, all[0].gpus_total, all[0].nodes_max));
        let few = queues(&(line("a", "1") + &line("b", "1")), &BTreeMap::new()).unwrap();
        assert_eq!((1, 2_048, u32::MAX), (few[0].nodes_max, count_of_nodes("2K"), count_of_nodes("infinite")));
    }

    #[test]
    fn a_recorded_configuration_is_read() {
        let config = Controller::parse(CONFIG);
        assert_eq!((Some(1_000), Some("22.05.8"), Some(60)), (config.array_tasks_max(), config.get("SLURM_VERSION"), config.number("MinJobAge")));
        assert_eq!((None, Some(30_000)), (config.get("AccountingStorageBackupHost"), config.kill_wait_ms()));
    }

    #[test]
    fn times_are_read() {
        for (text, ms) in [
            ("10:00", Some(600_000)),
            ("1-00:00:00", Some(86_400_000)),
            ("2-01:00:01", Some(176_401_000)),
            ("30", Some(30_000)),
            ("infinite", None),
            ("n/a", None),
            ("", None),
            ("99999999999999999-0", None),
        ] {
            assert_eq!(ms, duration_ms(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,200}", more in "[0-9|a-z/*:\n-]{0,200}") {
            for text in [&text, &more] {
                let _ = (queues(text, &BTreeMap::new()), duration_ms(text), Controller::parse(text).array_tasks_max());
            }
        }
    }
}
