//! The argument lists of Grid Engine's commands. Nothing that a user wrote is in them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::command::Call;
use crate::lrms::{LrmsId, Submission};
use crate::verdict::NOT_HERE_CODE;

/// Ranges of tasks that one qdel is told of; one more is another command.
pub const CANCEL_RANGES_MAX: usize = 500;
/// Machines that one qconf is asked for.
pub const MACHINES_MAX: usize = 100;
/// Jobs in error that one qstat is asked for.
pub const ERRORS_JOBS_MAX: usize = 200;

/// How a task's wishes are said at this site.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// The parallel environment for several slots on one machine.
    pub environment: Option<String>,
    /// The resource, for each slot, that bounds memory.
    pub memory: Option<String>,
    /// The complex by which GPUs are counted.
    pub gpu_complex: Option<String>,
}

/// `qsub`: always an array, so that each task is named alike; the script is its input. `-w e`: what no machine can ever run is refused at once. `-notify`: a
/// job hears SIGUSR2 some time before it is killed. `-b n`: it is a script, whatever a file of defaults says. `gpus`: what is asked for of the complex
/// that counts them.
pub fn qsub(call: Call, s: &Submission, terms: &Terms, gpus: u32) -> Call {
    const ALWAYS: &str = "-terse -w e -b n -r n -notify -m n -j n -S /bin/sh -i /dev/null -o /dev/null -e /dev/null";
    let mut args: Vec<OsString> = ALWAYS.split(' ').map(OsString::from).collect();
    // No line of the script is an option.
    args.extend(["-C", ""].map(OsString::from));
    let mut option = |name: &str, value: String| args.extend([OsString::from(name), value.into()]);
    option("-N", s.tag.clone());
    option("-q", s.queue.clone());
    option("-t", format!("1-{}", s.tasks.max(1)));
    let slots = s.shape.slots.max(1);
    if let Some(environment) = terms.environment.as_ref().filter(|_| slots > 1) {
        option("-pe", environment.clone());
        args.push(slots.to_string().into());
    }
    let mut resources = Vec::new();
    if let Some(ms) = s.time_limit_ms {
        resources.push(format!("h_rt={}", ms.div_ceil(1_000).max(1)));
    }
    if let Some(memory) = terms.memory.as_ref().filter(|_| s.shape.memory_bytes > 0) {
        resources.push(format!("{memory}={}M", s.shape.memory_bytes.div_ceil(u64::from(slots)).div_ceil(1 << 20)));
    }
    if let Some(complex) = terms.gpu_complex.as_ref().filter(|_| gpus > 0) {
        resources.push(format!("{complex}={gpus}"));
    }
    if !resources.is_empty() {
        args.extend(["-l".into(), resources.join(",").into()]);
    }
    // A directory that is not there would put the job into error, and leave it in the queue: the script looks itself.
    args.extend(["-wd", "/"].map(OsString::from));
    let mut script = b"cd '".to_vec();
    for byte in s.directory.as_os_str().as_bytes() {
        match byte {
            b'\'' => script.extend(b"'\\''"),
            byte => script.push(*byte),
        }
    }
    script.extend(format!("' || exit {NOT_HERE_CODE}\n{}", s.script).bytes());
    call.args(args).stdin(script)
}

/// All tasks of all accounts, with what they ask for; waiting tasks of an array that are alike are one row. `-s` says what goes without saying: a file
/// of defaults may say otherwise.
pub fn qstat(call: Call) -> Call {
    call.args(["-u", "*", "-s", "prs", "-xml", "-r"])
}

/// Why jobs are in error.
pub fn qstat_jobs(call: Call, ids: &[LrmsId]) -> Call {
    call.arg("-j").arg(ids.iter().map(LrmsId::to_string).collect::<Vec<_>>().join(","))
}

/// All machines with their queues, and what is left of the slots of one that has so many for all of them together.
pub fn qhost(call: Call) -> Call {
    call.args(["-q", "-F", "slots", "-xml"])
}

/// The configuration of these queues.
pub fn qconf_queues(call: Call, queues: &[String]) -> Call {
    call.arg("-sq").args(queues)
}

/// Begins with its version.
pub fn qconf_help(call: Call) -> Call {
    call.arg("-help")
}

/// All complexes.
pub fn qconf_complexes(call: Call) -> Call {
    call.arg("-sc")
}

/// Names of the machines that have so many of this complex, and perhaps of some whose name ends alike.
pub fn qconf_machines_with(call: Call, complex: &str) -> Call {
    call.args(["-sobjl", "exechost", "complex_values"]).arg(format!("*{complex}=*"))
}

/// The configuration of at most [`MACHINES_MAX`] machines.
pub fn qconf_machines(call: Call, machines: &[&str]) -> Call {
    call.args(machines.iter().flat_map(|machine| ["-se", *machine]))
}

/// An access list.
pub fn qconf_users(call: Call, name: &str) -> Call {
    call.args(["-su", name])
}

/// Names of all resource quota sets.
pub fn qconf_quotas(call: Call) -> Call {
    call.arg("-srqsl")
}

/// The configuration of all.
pub fn qconf_global(call: Call) -> Call {
    call.arg("-sconf")
}

/// The configuration of a parallel environment.
pub fn qconf_environment(call: Call, name: &str) -> Call {
    call.args(["-sp", name])
}

/// Names of all parallel environments.
pub fn qconf_environments(call: Call) -> Call {
    call.arg("-spl")
}

/// Removals, each of at most [`CANCEL_RANGES_MAX`] ranges.
pub fn qdel(call: impl Fn() -> Call, tasks: &[(LrmsId, Vec<u32>)]) -> Vec<Call> {
    let words: Vec<String> =
        tasks.iter().flat_map(|(id, positions)| ranges(positions).into_iter().map(move |range| format!("{id}.{range}"))).collect();
    words.chunks(CANCEL_RANGES_MAX).map(|words| call().args(words)).collect()
}

/// `1-3`, `7`
fn ranges(positions: &[u32]) -> Vec<String> {
    let mut sorted = positions.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let chunks = sorted.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    chunks.filter_map(|c| Some((c.first()?, c.last()?))).map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect()
}

#[cfg(test)]
mod tests {
    use intergrid_proto::Shape;

    use super::*;
    use crate::command::Account;

    fn words(call: &Call) -> String {
        call.args.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_submission_is_asked_for_in_grid_engines_terms() {
        let submission = Submission {
            tag: "ig-7-1".into(),
            account: Account::Own,
            queue: "batch".into(),
            tasks: 20,
            shape: Shape::new(4, (1 << 30) + 1),
            time_limit_ms: Some(60_001),
            directory: "/shared/a 'b".into(),
            complaints: Some("/shared/run/t".into()),
            script: "#!/bin/sh\n".into(),
        };
        let terms = Terms { environment: Some("smp".into()), memory: Some("h_vmem".into()), gpu_complex: Some("gpu".into()) };
        let call = qsub(Call::new("qsub"), &submission, &terms, 0);
        let all = words(&call);
        for part in ["-terse", "-N ig-7-1", "-q batch", "-t 1-20", "-pe smp 4", "-l h_rt=61,h_vmem=257M", "-r n", "-notify", "-wd /"] {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert_eq!("cd '/shared/a '\\''b' || exit 121\n#!/bin/sh\n", String::from_utf8(call.stdin.clone()).unwrap());
        assert!(words(&qsub(Call::new("qsub"), &submission, &terms, 2)).contains("-l h_rt=61,h_vmem=257M,gpu=2"));
        assert_eq!("-se m1 -se m2", words(&qconf_machines(Call::new("qconf"), &["m1", "m2"])));
        let plain = Submission { shape: Shape::default(), time_limit_ms: None, tasks: 1, ..submission };
        let all = words(&qsub(Call::new("qsub"), &plain, &terms, 0));
        assert!(all.contains("-t 1-1") && !all.contains("-pe") && !all.contains("-l "), "{all}");
    }

    #[test]
    fn many_tasks_are_few_words() {
        assert_eq!(vec!["1-3", "7"], ranges(&[7, 1, 2, 3, 3]));
        assert_eq!(vec![u32::MAX.to_string()], ranges(&[u32::MAX]));
        let calls = qdel(|| Call::new("qdel"), &[(LrmsId(20), vec![4, 5]), (LrmsId(21), vec![1]), (LrmsId(22), vec![])]);
        assert_eq!(vec!["20.4-5 21.1"], calls.iter().map(words).collect::<Vec<_>>());
        let odd: Vec<u32> = (0..1_200).map(|n| 2 * n).collect();
        assert_eq!(3, qdel(|| Call::new("qdel"), &[(LrmsId(1), odd)]).len());
    }
}
