//! The argument lists of Slurm's commands. Nothing that a user wrote is in them.

use std::ffi::OsString;
use std::fmt::Write as _;

use super::words;
use crate::command::Call;
use crate::lrms::{LrmsId, Submission};

/// What squeue prints of a task; the name comes last, as a user may have put anything into it.
const ENTRY_FIELDS: &str =
    "jobid:|,arrayjobid:|,arraytaskid:|,state:|,exit_code:|,numcpus:|,nodelist:|,restartcnt:|,partition:|,reason:|,username:|,name:";
/// An array's positions are written with so many characters at most: the most that Slurm lets be asked for, so that nobody's array fills the answer. Those of
/// ours need fewer.
pub const POSITIONS_CHARS_MAX: usize = 4_096;
/// Jobs that one scancel is told of; one more is another command.
pub const CANCEL_JOBS_MAX: usize = 200;
/// Jobs that one sacct is asked for.
pub const BOOKS_JOBS_MAX: usize = 500;

/// `sbatch`: always an array, so that each task is named alike; the script is its input.
pub fn sbatch(call: Call, s: &Submission) -> Call {
    let mut args: Vec<OsString> = ["--parsable", "--no-requeue", "--input=/dev/null", "--output=/dev/null"].map(OsString::from).into();
    let mut option = |name: &str, value: &dyn std::fmt::Display| args.push(format!("--{name}={value}").into());
    option("job-name", &s.tag);
    option("partition", &s.queue);
    option("array", &format_args!("1-{}", s.tasks.max(1)));
    // Slots of one machine are threads of one task of Slurm's; slots of several are ranks, as srun and mpirun count them.
    let (ranks, threads) = if s.shape.nodes > 1 { (s.shape.slots, 1) } else { (1, s.shape.slots) };
    option("nodes", &s.shape.nodes.max(1));
    option("ntasks-per-node", &ranks.max(1));
    option("cpus-per-task", &threads.max(1));
    if s.shape.memory_bytes > 0 {
        option("mem", &format_args!("{}M", s.shape.memory_bytes.div_ceil(1 << 20)));
    }
    if s.shape.gpus > 0 {
        option("gres", &format_args!("gpu:{}", s.shape.gpus));
    }
    if let Some(ms) = s.time_limit_ms {
        option("time", &ms.div_ceil(60_000).max(1));
    }
    let mut complaints = OsString::from("--error=");
    match &s.complaints {
        Some(path) => complaints.extend([path.as_os_str(), ".%a.e".as_ref()]),
        None => complaints.push("/dev/null"),
    }
    args.push(complaints);
    let mut directory = OsString::from("--chdir=");
    directory.push(&s.directory);
    args.push(directory);
    Call { gives_up_at: Some(words::TRIES_ON), ..call.args(args).stdin(s.script.as_bytes()) }
}

/// `squeue` of all tasks of all accounts, those that are over included. Each record ends with `mark`, which nobody else knows: a name may have a newline and
/// whatever looks like a record. It is passed in the environment, where other accounts can't read it.
///
/// What waits of an array is one record with all positions: `--array` forgets the last of a regular stride (seen with 22.05). Without `--array-unique` tasks
/// that have records of their own, held or requeued ones, would be told as the others of their array.
pub fn squeue(mut call: Call, mark: &str) -> Call {
    call.env.push(("SQUEUE_FORMAT2".into(), format!("{ENTRY_FIELDS}{mark}").into()));
    call.env.push(("SLURM_BITSTR_LEN".into(), POSITIONS_CHARS_MAX.to_string().into()));
    call.args(["--noheader", "--array-unique", "--states=all"])
}

/// Numbers of the jobs with exactly this name.
pub fn squeue_named(call: Call, tag: &str) -> Call {
    call.args(["--noheader", "--states=all", "--format=%F"]).arg(format!("--name={tag}"))
}

/// One line for each machine of each partition.
pub fn sinfo(call: Call) -> Call {
    call.args(["--noheader", "--Node", "--format=%R|%a|%l|%T|%C|%m|%N|%G|%s"])
}

/// The configuration of the controller.
pub fn show_config(call: Call) -> Call {
    call.args(["show", "config"])
}

/// What an account may do in the books.
pub fn admin_level(call: Call, account: &str) -> Call {
    call.args(["--noheader", "--parsable2", "show", "user", "format=AdminLevel"]).arg(format!("name={account}"))
}

/// Tasks of at most [`CANCEL_JOBS_MAX`] jobs.
pub fn scancel(call: Call, tasks: &[(LrmsId, Vec<u32>)], kill: bool) -> Call {
    let call = if kill { call.args(["--full", "--signal=KILL"]) } else { call };
    call.args(tasks.iter().filter(|(_, positions)| !positions.is_empty()).map(|(id, positions)| format!("{id}_[{}]", ranges(positions))))
}

/// Steps too: peak memory is theirs. Each field ends with `mark`, which is new with each look: a name may have a newline and whatever looks like a record.
/// sacct takes it in no other way than as an argument.
pub fn sacct(mut call: Call, ids: &[LrmsId], mark: &str) -> Call {
    // Seconds since 1970.
    call.env.push(("SLURM_TIME_FORMAT".to_string(), "%s".into()));
    let ids: Vec<String> = ids.iter().map(LrmsId::to_string).collect();
    let format = "--format=JobID,State,ExitCode,Start,NodeList,MaxRSS,ElapsedRaw,TotalCPU,JobName";
    call.args(["--noheader", "--parsable", "--allusers", "--starttime=1970-01-02", format])
        .args([format!("--delimiter={mark}"), format!("--jobs={}", ids.join(","))])
}

/// Numbers of the jobs with exactly this name.
pub fn sacct_named(call: Call, tag: &str) -> Call {
    call.args(["--noheader", "--parsable2", "--allusers", "--allocations", "--starttime=1970-01-02", "--format=JobID"]).arg(format!("--name={tag}"))
}

/// `1-3,7`
pub fn ranges(positions: &[u32]) -> String {
    let mut sorted = positions.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut out = String::new();
    let mut rest = sorted.as_slice();
    while let [first, ..] = rest {
        let n = rest.iter().zip(*first..=u32::MAX).take_while(|(p, expected)| **p == *expected).count();
        let comma = if out.is_empty() { "" } else { "," };
        let _ = match n {
            1 => write!(out, "{comma}{first}"),
            _ => write!(out, "{comma}{first}-{}", rest[n - 1]),
        };
        rest = &rest[n..];
    }
    out
}

#[cfg(test)]
mod tests {
    use intergrid_proto::Shape;

    use super::*;
    use crate::command::Account;
    use crate::limits::SUBMISSION_TASKS_MAX;

    fn words(call: &Call) -> String {
        call.args.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_submission_is_asked_for_in_slurms_terms() {
        let submission = Submission {
            tag: "ig-7-1".into(),
            account: Account::Own,
            queue: "batch".into(),
            tasks: 20,
            shape: Shape::new(4, (1 << 30) + 1),
            time_limit_ms: Some(60_001),
            directory: "/shared/a b".into(),
            complaints: Some("/shared/run/t".into()),
            script: "#!/bin/sh\n".into(),
        };
        let call = sbatch(Call::new("sbatch"), &submission);
        let all = words(&call);
        for part in [
            "--job-name=ig-7-1",
            "--array=1-20",
            "--nodes=1 --ntasks-per-node=1 --cpus-per-task=4",
            "--mem=1025M",
            "--time=2",
            "--no-requeue",
            "--chdir=/shared/a b",
            "--error=/shared/run/t.%a.e",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert_eq!(b"#!/bin/sh\n".to_vec(), call.stdin);
        let plain = Submission { tasks: 1, shape: Shape::default(), time_limit_ms: None, complaints: None, ..submission.clone() };
        let all = words(&sbatch(Call::new("sbatch"), &plain));
        assert!(
            all.contains("--array=1-1")
                && all.contains("--error=/dev/null")
                && !all.contains("--mem")
                && !all.contains("--gres")
                && !all.contains("--time"),
            "{all}"
        );
        let wide = Submission { shape: Shape { gpus: 2, nodes: 3, ..Shape::new(4, 0) }, ..submission };
        let all = words(&sbatch(Call::new("sbatch"), &wide));
        assert!(all.contains("--nodes=3 --ntasks-per-node=4 --cpus-per-task=1 --gres=gpu:2"), "{all}");
    }

    #[test]
    fn what_waits_of_an_array_of_ours_is_never_cut_off() {
        let call = squeue(Call::new("squeue"), "Zmark");
        assert_eq!("--noheader --array-unique --states=all", words(&call));
        assert!(call.env.contains(&("SLURM_BITSTR_LEN".into(), "4096".into())), "{:?}", call.env);
        for hole in 2..9 {
            let left: Vec<u32> = (1..=SUBMISSION_TASKS_MAX as u32).filter(|position| position % hole != 0).collect();
            // `%` and the most tasks at once; three characters less than asked for are cut already.
            assert!(ranges(&left).len() + 11 + 3 < POSITIONS_CHARS_MAX, "{hole}");
        }
    }

    #[test]
    fn many_tasks_are_few_words() {
        assert_eq!("1-3,7", ranges(&[7, 1, 2, 3, 3]));
        assert_eq!("", ranges(&[]));
        assert_eq!(format!("{}", u32::MAX), ranges(&[u32::MAX]));
        let call = scancel(Call::new("scancel"), &[(LrmsId(20), vec![4, 5]), (LrmsId(21), vec![1]), (LrmsId(22), vec![])], true);
        assert_eq!("--full --signal=KILL 20_[4-5] 21_[1]", words(&call));
    }
}
