//! What goes down with a submission: the wrapper script, and the files from which it takes a task's words. No word of a user is ever part of a script.

use std::fmt::Write as _;
use std::path::Path;

use intergrid_agent::plan::{GPU_VARIABLES, PATH_DEFAULT, Plan, Task};
use intergrid_proto::Exit;

use crate::batches::{Part, Request};

/// The wrapper, without its first lines.
const WRAPPER: &str = include_str!("wrapper.sh");
/// A shell says so much more than a signal's number.
pub(crate) const SIGNAL_BASE: u8 = 128;
/// Of Linux, everywhere.
const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

/// One word as one line.
fn line(out: &mut String, word: &str) {
    for c in word.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('\n');
}

/// Variables that name a task's own directory.
pub fn dirs(plan: &Plan) -> Vec<&'static str> {
    let ours = ["HOME", "TMPDIR"].into_iter().filter(|name| plan.spec.env.iter().all(|(n, _)| n != name));
    ours.chain(["GRID_TASK_DIR"]).collect()
}

/// The script of a submission. `base` has been checked by [`check_base`], a tag is letters, digits and `-`.
pub fn script(base: &Path, tag: &str, request: &Request, parts: &[Part]) -> String {
    let (shape, dirs) = (&request.shape, request.dirs.join(" "));
    let (slots, memory_mib, gpus, nodes) = (shape.slots, shape.memory_bytes >> 20, shape.gpus, shape.nodes);
    let head = format!("grid_base='{}' grid_tag={tag} grid_dirs='{dirs}' grid_runs='{}'", base.display(), runs(parts));
    let asked = format!("grid_slots={slots} grid_memory={memory_mib} grid_gpus={gpus} grid_nodes={nodes}");
    format!("#!/bin/sh\n{head} {asked}\n{WRAPPER}")
}

/// Which task has which position, as `POSITION:INDEX:PART` for each run of indices: those of its first task, ascending.
fn runs(parts: &[Part]) -> String {
    let (mut out, mut position) = (String::new(), 1);
    for (n, part) in (1..).zip(parts) {
        for run in part.indices.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let space = if position == 1 { "" } else { " " };
            // Writing to a string can't fail.
            _ = write!(out, "{space}{position}:{}:{n}", run.first().copied().unwrap_or(0));
            position += run.len();
        }
    }
    out
}

/// The words of each part: a file's name and content. Only numbers of ours are in a name.
pub fn words(parts: &[Part]) -> impl Iterator<Item = (String, Vec<u8>)> {
    (1..).zip(parts).map(|(n, part)| (format!("w.{n}"), words_of(&part.plan, &part.task).into_bytes()))
}

/// Variables, a line of `--`, which is no variable, and arguments. `{i}` is filled in where the task runs.
fn words_of(plan: &Plan, task: &Task) -> String {
    let mut words = String::new();
    let mut put = |name: &str, value: &str| line(&mut words, &format!("{name}={value}"));
    for (name, value) in [("PATH", PATH_DEFAULT), ("LANG", "C.UTF-8")].iter().filter(|(n, _)| plan.spec.env.iter().all(|(m, _)| m != n)) {
        put(name, value);
    }
    // Which GPUs it has, who gave them has said.
    let is_told = |name: &String| plan.spec.shape.gpus > 0 && GPU_VARIABLES.contains(&name.as_str());
    plan.spec.env.iter().filter(|(name, _)| !is_told(name)).for_each(|(name, value)| put(name, value));
    if !plan.spec.trace_parent.is_empty() && plan.spec.env.iter().all(|(n, _)| n != "TRACEPARENT") {
        put("TRACEPARENT", &plan.spec.trace_parent);
    }
    put("GRID_JOB_ID", &task.job);
    put("GRID_TASK_ID", "{i}");
    put("GRID_ATTEMPT", &task.attempt.to_string());
    put("GRID_SITE", &task.site);
    put("GRID_SLOTS", &plan.spec.shape.slots.to_string());
    put("GRID_GPUS", &plan.spec.shape.gpus.to_string());
    put("GRID_NODES", &plan.spec.shape.nodes.to_string());
    put("GRID_TASK_COUNT", &task.array_size.to_string());
    line(&mut words, "--");
    match &plan.spec.executable {
        Some(file) => line(&mut words, &format!("./{}", file.name)),
        None => plan.spec.argv.first().iter().for_each(|program| line(&mut words, program)),
    }
    plan.spec.argv.iter().skip(1).for_each(|a| line(&mut words, a));
    words
}

/// A directory that may stand in a script: absolute, and of letters that no shell reads anything into.
pub fn check_base(base: &Path) -> Result<(), String> {
    let text = base.to_str().ok_or("it is not UTF-8")?;
    let good = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '@');
    match base.is_absolute() && text.chars().all(good) {
        true => Ok(()),
        false => Err(format!("{text:?} must begin with '/' and have only letters, digits and /._-+@")),
    }
}

/// What the wrapper writes at the end of a task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExitRecord {
    /// As a shell says it: 128 + n for signal n.
    pub code: u8,
    /// As who waited for it saw it; None: only the shell did.
    pub exit: Option<Exit>,
    /// The most memory that one of its processes had.
    pub peak_bytes: Option<u64>,
    /// The script was sent a signal meanwhile.
    pub was_asked: bool,
    /// From start to end, milliseconds.
    pub wall_ms: Option<u64>,
    /// User + system, microseconds.
    pub cpu_us: Option<u64>,
    /// `no-such-program`, ...; empty: the payload ran.
    pub fault: String,
}

impl ExitRecord {
    /// Somebody else may have ended it, and the LRMS knows more: the script was told to end; or the payload was told to, or killed, before the script
    /// heard of it, as an LRMS signals all processes of a job one by one, and the kernel kills for memory. A shell says so of its command by its code.
    pub fn ended_by_another(&self) -> bool {
        let signal = match self.exit.unwrap_or(Exit::Code(self.code)) {
            Exit::Signal(signal) => Some(signal),
            Exit::Code(code) => code.checked_sub(SIGNAL_BASE),
            Exit::Unknown | Exit::NotStarted => None,
        };
        self.was_asked || signal.is_some_and(|signal| signal == SIGKILL || signal == SIGTERM)
    }

    /// From its text; None: it is none, is not whole, or of a later version.
    pub fn parse(text: &str) -> Option<ExitRecord> {
        let (version, rest) = text.split_once('\n')?;
        let mut lines = match version {
            // Of a script that an older gateway has submitted, and that still ran: it has no last line.
            "v1" => rest.lines(),
            "v2" => rest.strip_suffix("\nend\n")?.lines(),
            _ => return None,
        };
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.trim().into();
        let mut next = |name| -> Option<String> { Option::<&str>::map(field(name), str::to_string) };
        let (code, term, from, to, fault) = (next("code")?, next("term")?, next("from")?, next("to")?, next("fault")?);
        let wall = seconds_ms(&to).zip(seconds_ms(&from)).and_then(|(to, from)| to.checked_sub(from));
        // Of the shell itself first, then of what it has waited for.
        let cpu: Option<u64> = lines.nth(1).and_then(|l| l.split_whitespace().map(minutes_us).sum());
        let how = lines.next().and_then(|l| l.strip_prefix("how ")).and_then(seen);
        let (exit, peak_bytes) = how.map_or((None, None), |(exit, peak)| (Some(exit), (peak > 0).then_some(peak)));
        Some(ExitRecord { code: code.parse().ok()?, exit, peak_bytes, was_asked: term == "1", wall_ms: wall, cpu_us: cpu, fault })
    }
}

/// `SIGNAL CODE KIB`
fn seen(text: &str) -> Option<(Exit, u64)> {
    let mut words = text.split(' ');
    let (signal, code, kib) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse::<u64>().ok()?);
    Some((if signal == 0 { Exit::Code(code) } else { Exit::Signal(signal) }, kib.saturating_mul(1_024)))
}

/// `12.34`
fn seconds_ms(text: &str) -> Option<u64> {
    let seconds: f64 = text.parse().ok().filter(|s: &f64| (0.0..1e12).contains(s))?;
    Some((seconds * 1_000.0).round() as u64)
}

/// `1m2.345s`
fn minutes_us(text: &str) -> Option<u64> {
    let (minutes, seconds) = text.strip_suffix('s')?.split_once('m')?;
    let minutes: u64 = minutes.parse().ok()?;
    minutes.checked_mul(60_000_000)?.checked_add(seconds_ms(seconds)?.checked_mul(1_000)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use intergrid_proto::{JobSpec, Shape};
    use proptest::prelude::*;

    use super::*;
    use crate::command::Account;
    use crate::hand::files::{Ask, serve};

    fn task(index: u32) -> Task {
        Task { number: 1, index, attempt: 2, job: "abcdef".into(), array_size: 9, site: "campus".into() }
    }

    /// The real script, run by the real shell, for each position: exit codes. What it leaves is in the directory.
    fn run(dir: &Path, spec: &JobSpec, indices: &[u32], times: usize) -> Vec<i32> {
        run_with(dir, spec, indices, times, &[])
    }

    /// The same, with what an LRMS says of what was allocated.
    fn run_with(dir: &Path, spec: &JobSpec, indices: &[u32], times: usize, env: &[(&str, &str)]) -> Vec<i32> {
        run_parts(dir, &[(spec, indices)], times, env)
    }

    /// The same, of several jobs that go down together.
    fn run_parts(dir: &Path, jobs: &[(&JobSpec, &[u32])], times: usize, env: &[(&str, &str)]) -> Vec<i32> {
        let part = |(n, (spec, indices)): (u64, &(&JobSpec, &[u32]))| {
            let task = Task { number: n, job: format!("job{n}").into(), ..task(0) };
            Part { task, plan: Arc::new(Plan::new(&spec.encode()).unwrap()), indices: indices.to_vec() }
        };
        let parts: Vec<Part> = (1..).zip(jobs).map(part).collect();
        let n = u32::try_from(parts.iter().map(|p| p.indices.len()).sum::<usize>()).unwrap();
        let all: Vec<(String, Vec<u8>)> = words(&parts).collect();
        let lengths = all.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect();
        serve(dir, Ask::Prepare("t".into(), n, lengths), &all.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>()).unwrap();
        let text = script(dir, "t", &Request::new("q", &Account::Own, "ann", &parts[0].plan), &parts);
        let file = dir.join("script");
        std::fs::write(&file, text).unwrap();
        let one = |position: u32| {
            let mut command = Command::new("/bin/sh");
            command.arg(&file).env_clear().env("PATH", "/usr/bin:/bin").env("SLURM_ARRAY_TASK_ID", position.to_string());
            command.envs(env.iter().copied());
            command.stdin(Stdio::null()).process_group(0).status().unwrap().code().unwrap()
        };
        (0..times).flat_map(|_| (1..=n).map(one).collect::<Vec<_>>()).collect()
    }

    fn record(dir: &Path, position: u32) -> ExitRecord {
        ExitRecord::parse(&std::fs::read_to_string(dir.join(format!("run/t.{position}.x"))).unwrap()).unwrap()
    }

    fn base() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap().join("b");
        (dir, base)
    }

    #[test]
    fn each_task_runs_once_with_its_own_words() {
        let (_dir, base) = base();
        let mut spec =
            JobSpec::new(["/bin/sh", "-c", "printf '%s|' \"$@\" \"$A\" \"$GRID_TASK_ID\" \"$HOME\" \"$index\"; exit \"$GRID_TASK_ID\"", "sh"]);
        spec.argv.extend(["{i} of {i}", "", "a'b\"c $HOME `x` \\n", "two\nlines\n", "-n", "*"].map(String::from));
        spec.env = vec![("A".into(), "v\\{i}".into()), ("odd-name".into(), "x".into()), ("index".into(), "77".into())];
        // The second time round each finds its claim.
        assert_eq!(vec![5, 6, 9, 120, 120, 120], run(&base, &spec, &[5, 6, 9], 2));
        for (position, index) in [(1, 5), (3, 9)] {
            let out = std::fs::read_to_string(base.join(format!("t/{position}/stdout"))).unwrap();
            let home = base.join(format!("t/{position}/w"));
            let expected = format!("{index} of {index}||a'b\"c $HOME `x` \\n|two\nlines\n|-n|*|v\\{index}|{index}|{}|77|", home.display());
            assert_eq!(expected, out);
            let r = record(&base, position);
            assert!(r.code == index && !r.was_asked && r.fault.is_empty() && r.wall_ms.is_some() && r.cpu_us.is_some(), "{r:?}");
        }
    }

    /// Where the files are away, that code alone tells that nothing has begun.
    #[test]
    fn a_payload_does_not_end_as_a_script_that_could_not_begin() {
        let (_dir, base) = base();
        assert_eq!(vec![1], run(&base, &JobSpec::new(["/bin/sh", "-c", "exit 121"]), &[0], 1));
        assert_eq!(121, record(&base, 1).code);
    }

    #[test]
    fn a_word_may_have_any_number_of_indices_and_braces() {
        let (_dir, base) = base();
        let words = ["{i}".repeat(19_000), "{".repeat(300) + "{i}", "{{i} { {  *{i}\\n/{a\\{i}}{i{i}i}\n{i}é{".into(), "{i}{".into(), "{".into()];
        let mut spec = JobSpec::new(["printf", "%s|"]);
        spec.argv.extend(words.clone());
        assert_eq!(vec![0], run(&base, &spec, &[123], 1));
        let expected: String = words.iter().map(|word| word.replace("{i}", "123") + "|").collect();
        assert!(expected == std::fs::read_to_string(base.join("t/1/stdout")).unwrap());
    }

    #[test]
    fn each_job_that_goes_down_with_others_has_its_own_words_and_indices() {
        let (_dir, base) = base();
        let job = |word: &str| {
            let mut spec = JobSpec::new(["/bin/sh", "-c", "printf '%s|' \"$1\" \"$2\" \"$A\" \"$GRID_JOB_ID\" \"$GRID_TASK_ID\"", "sh"]);
            spec.argv.extend(["--".to_string(), format!("{word} {{i}}")]);
            spec.env = vec![("A".into(), word.to_string())];
            spec
        };
        let (one, two, three) = (job("one"), job("two"), job("three"));
        // The second time round each finds its claim.
        let exits = run_parts(&base, &[(&one, &[0]), (&two, &[3, 4, 9]), (&three, &[0])], 2, &[]);
        assert_eq!([[0; 5], [120; 5]].concat(), exits);
        for (position, word, job, index) in [(1, "one", 1, 0), (2, "two", 2, 3), (3, "two", 2, 4), (4, "two", 2, 9), (5, "three", 3, 0)] {
            let out = std::fs::read_to_string(base.join(format!("t/{position}/stdout"))).unwrap();
            assert_eq!(format!("--|{word} {index}|{word}|job{job}|{index}|"), out, "at position {position}");
        }
        // One that nobody knows of does nothing, and takes nothing.
        let mut stranger = Command::new("/bin/sh");
        stranger.arg(base.join("script")).env_clear().env("PATH", "/usr/bin:/bin").env("SLURM_ARRAY_TASK_ID", "0").stdin(Stdio::null());
        assert_eq!((Some(121), false), (stranger.status().unwrap().code(), base.join("run/t.0.c").exists()));
    }

    #[test]
    fn a_variable_may_have_a_name_that_a_shell_lives_by() {
        let (_dir, base) = base();
        let names =
            ["LC_ALL", "IFS", "UID", "EUID", "PPID", "OPTIND", "OPTARG", "PS4", "PWD", "ENV", "BASH_ENV", "SHELLOPTS", "LD_LIBRARY_PATH", "env"];
        let mut spec = JobSpec::new(["./print=all".to_string()]);
        spec.argv.extend(names.map(String::from));
        spec.env = names.iter().map(|name| (name.to_string(), format!("/{name} {{i}}"))).collect();
        // A program whose own name looks like a variable, as one of the job's inputs may be called.
        let dir = base.join("t/1/w");
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/usr/bin/printenv", dir.join("print=all")).unwrap();
        std::fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(vec![0], run_with(&base, &spec, &[5], 1, &[("LC_ALL", "C")]));
        let expected: String = names.iter().map(|name| format!("/{name} 5\n")).collect();
        assert_eq!(expected, std::fs::read_to_string(base.join("t/1/stdout")).unwrap());
    }

    #[test]
    fn faults_are_told_from_exits() {
        let cases: [(&[&str], i32, &str); 4] = [
            (&["/nowhere/nothing"], 127, "no-such-program"),
            (&["no-such-program-anywhere"], 127, "no-such-program"),
            (&["/etc/passwd"], 126, "not-executable"),
            (&["/bin/sh", "-c", "exit 127"], 127, ""),
        ];
        for (argv, code, fault) in cases {
            let (_dir, base) = base();
            assert_eq!(vec![code], run(&base, &JobSpec::new(argv.iter().copied()), &[0], 1), "{argv:?}");
            let r = record(&base, 1);
            assert_eq!((code, fault), (i32::from(r.code), r.fault.as_str()), "{argv:?}");
        }
        let (_dir, base) = base();
        assert_eq!(vec![137], run(&base, &JobSpec::new(["/bin/sh", "-c", "kill -9 $$"]), &[0], 1));
        assert_eq!((137, Some(Exit::Signal(9))), (record(&base, 1).code, record(&base, 1).exit));
    }

    #[test]
    fn an_exit_code_above_128_is_no_signal_and_memory_is_measured() {
        let (_dir, base) = base();
        let spec = JobSpec::new(["/bin/sh", "-c", "head -c 60000000 /dev/zero | tail | wc -c; exit 137"]);
        assert_eq!(vec![137], run(&base, &spec, &[0], 1));
        let r = record(&base, 1);
        assert!(r.exit == Some(Exit::Code(137)) && r.peak_bytes.is_some_and(|b| (60_000_000..400_000_000).contains(&b)), "{r:?}");
        // Where the site would lead perl astray, the shell alone sees to it; the job's own variables don't reach it.
        let (_dir, base) = self::base();
        let mut spec = JobSpec::new(["/bin/sh", "-c", "exit 3"]);
        let astray = ("PERL5OPT", "-Mno::such::thing");
        assert_eq!(vec![3], run_with(&base, &spec, &[0], 1, &[astray]));
        assert_eq!((3, None), (record(&base, 1).code, record(&base, 1).exit));
        let (_dir, base) = self::base();
        spec.env = vec![(astray.0.into(), astray.1.into())];
        assert_eq!(vec![3], run(&base, &spec, &[0], 1));
        assert_eq!((3, Some(Exit::Code(3))), (record(&base, 1).code, record(&base, 1).exit));
    }

    #[test]
    fn who_gets_less_than_he_asked_for_does_not_begin() {
        let (_dir, base) = base();
        let mut spec = JobSpec::new(["/bin/sh", "-c", "echo began"]);
        spec.shape.slots = 4;
        let with = |name: &str, value: &str| run_with(&base, &spec, &[0], 1, &[(name, value)]);
        assert_eq!(vec![126], with("SLURM_CPUS_ON_NODE", "3"));
        assert_eq!("less-slots", record(&base, 1).fault);
        assert!(std::fs::read_to_string(base.join("t/1/stdout")).unwrap().is_empty());
        std::fs::remove_dir_all(&base).unwrap();
        assert_eq!(vec![0], with("SLURM_CPUS_ON_NODE", "8"));
        std::fs::remove_dir_all(&base).unwrap();
        let mut spec = spec.clone();
        spec.shape.memory_bytes = 200 << 20;
        assert_eq!(vec![126], run_with(&base, &spec, &[0], 1, &[("SLURM_MEM_PER_NODE", "199")]));
        assert_eq!("less-memory", record(&base, 1).fault);
        for (shape, name, less, enough) in [
            (Shape { gpus: 2, ..Shape::default() }, "SLURM_GPUS_ON_NODE", "less-gpus", "2"),
            (Shape { nodes: 3, ..Shape::default() }, "SLURM_JOB_NUM_NODES", "less-machines", "3"),
        ] {
            spec.shape = shape;
            std::fs::remove_dir_all(&base).unwrap();
            assert_eq!(vec![126], run_with(&base, &spec, &[0], 1, &[("SLURM_JOB_ID", "7"), (name, "1")]));
            assert_eq!(less, record(&base, 1).fault);
            std::fs::remove_dir_all(&base).unwrap();
            assert_eq!(vec![0], run_with(&base, &spec, &[0], 1, &[("SLURM_JOB_ID", "7"), (name, enough)]));
        }
    }

    #[test]
    fn grid_engines_warnings_reach_a_payload_as_term_and_only_as_that() {
        let (_dir, base) = base();
        let words = "trap 'exit 5' TERM; kill -USR1 0; sleep 0.2; echo went on; kill -USR2 0; sleep 5 & wait; exit 6";
        assert_eq!(vec![5], run_with(&base, &JobSpec::new(["/bin/sh", "-c", words]), &[0], 1, &[("SGE_TASK_ID", "1")]));
        assert_eq!("went on\n", std::fs::read_to_string(base.join("t/1/stdout")).unwrap());
        assert!(record(&base, 1).was_asked);
    }

    #[test]
    fn a_payload_that_is_warned_again_is_told_once_and_waited_for() {
        let words = "trap 'echo told; sleep 0.3; kill -USR2 0; sleep 0.3; kill -USR2 0; sleep 0.3; echo clean; exit 5' TERM; \
                     kill -USR2 0; sleep 5 & wait; exit 6";
        let env = [("SGE_TASK_ID", "1"), ("PERL5LIB", "/nowhere")];
        // With perl, and without.
        for env in [&env[..1], &env[..]] {
            let (_dir, base) = base();
            assert_eq!(vec![5], run_with(&base, &JobSpec::new(["/bin/sh", "-c", words]), &[0], 1, env), "{env:?}");
            assert_eq!("told\nclean\n", std::fs::read_to_string(base.join("t/1/stdout")).unwrap(), "{env:?}");
            assert!(record(&base, 1).was_asked, "{env:?}");
        }
    }

    #[test]
    fn a_payload_is_told_from_its_first_instruction_on() {
        let spec = JobSpec::new(["/bin/sh", "-c", "trap 'exit 5' TERM; kill -USR2 0; sleep 5 & wait; exit 6"]);
        // Side by side: what sees to the end may not have had its turn yet.
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let (_dir, base) = base();
                    let indices: Vec<u32> = (0..8).collect();
                    assert_eq!(vec![5; 8], run_with(&base, &spec, &indices, 1, &[("SGE_TASK_ID", "1")]));
                });
            }
        });
    }

    #[test]
    fn a_record_is_whole_or_none() {
        let (_dir, base) = base();
        // As on a full disk.
        let full = JobSpec::new(["/bin/sh", "-c", "ln -s /dev/full ../../../run/t.1.x; exit 4"]);
        assert_eq!(vec![4], run(&base, &full, &[0], 1));
        assert!(std::fs::symlink_metadata(base.join("run/t.1.x")).is_err());

        let (_dir, base) = self::base();
        assert_eq!(vec![7], run(&base, &JobSpec::new(["/bin/sh", "-c", "exit 7"]), &[0], 1));
        let text = std::fs::read_to_string(base.join("run/t.1.x")).unwrap();
        assert_eq!(vec![text.len()], (0..=text.len()).filter(|n| ExitRecord::parse(&text[..*n]).is_some()).collect::<Vec<_>>());
        // What an older gateway's script has written.
        let old = text.replacen("v2", "v1", 1).replace("end\n", "");
        assert_eq!(ExitRecord::parse(&text), ExitRecord::parse(&old));
    }

    #[test]
    fn a_claim_that_can_t_be_written_is_nobodys() {
        let (_dir, base) = base();
        let spec = JobSpec::new(["/bin/sh", "-c", "echo began"]);
        assert_eq!(vec![0], run(&base, &spec, &[0], 1));
        std::fs::remove_file(base.join("run/t.1.c")).unwrap();
        // No file may have a byte, which is told as a disk that is full is.
        let full = |position: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "ulimit -f 0; trap '' XFSZ; exec /bin/sh \"$0\""]).arg(base.join("script"));
            command.env_clear().env("PATH", "/usr/bin:/bin").env("SLURM_ARRAY_TASK_ID", position);
            command.stdin(Stdio::null()).status().unwrap().code().unwrap()
        };
        assert_eq!((121, false), (full("1"), base.join("run/t.1.c").exists()));
        // Who comes next can have it, and who finds one that is empty, can't.
        std::fs::write(base.join("run/t.1.c"), "").unwrap();
        assert_eq!((120, true), (full("1"), base.join("run/t.1.c").exists()));
    }

    #[test]
    fn a_directory_that_a_shell_could_read_is_refused() {
        assert!(check_base(Path::new("/shared/grid-1/a.b")).is_ok());
        for bad in ["shared", "/a b", "/a'b", "/a$b", "/a;b", "/a\nb", "/a{i}"] {
            assert!(check_base(Path::new(bad)).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_record_or_none(text in "\\PC*") {
            let _ = ExitRecord::parse(&text);
            let lines = format!("code {text}\nterm 0\nfrom {text}\nto 1e999\nfault \n0m0s\n{text}m{text}s");
            let _ = (ExitRecord::parse(&format!("v1\n{lines}")), ExitRecord::parse(&format!("v2\n{lines}\nend\n")));
        }
    }
}
