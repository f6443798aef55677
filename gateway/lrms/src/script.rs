//! What goes down with a submission: the wrapper script, and the files from which it takes a task's words. No word of a user is ever part of a script.

use std::path::Path;

use intergrid_agent::plan::{PATH_DEFAULT, Plan, Task};

/// The wrapper, without its first lines.
const WRAPPER: &str = include_str!("wrapper.sh");

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

/// The script of a submission. `base` has been checked by [`check_base`], a tag is letters, digits and `-`.
pub fn script(base: &Path, tag: &str, first: u32, plan: &Plan) -> String {
    let ours = ["HOME", "TMPDIR"].into_iter().filter(|name| plan.spec.env.iter().all(|(n, _)| n != name));
    let dirs: Vec<&str> = ours.chain(["GRID_TASK_DIR"]).collect();
    format!("#!/bin/sh\ngrid_base='{}' grid_tag={tag} grid_first={first} grid_dirs='{}'\n{WRAPPER}", base.display(), dirs.join(" "))
}

/// Its files: name and content. `{i}` is filled in where the task runs.
pub fn files(plan: &Plan, task: &Task, indices: &[u32]) -> Vec<(String, Vec<u8>)> {
    let (mut argv, mut env) = (String::new(), String::new());
    match &plan.spec.executable {
        Some(file) => line(&mut argv, &format!("./{}", file.name)),
        None => plan.spec.argv.first().iter().for_each(|program| line(&mut argv, program)),
    }
    plan.spec.argv.iter().skip(1).for_each(|a| line(&mut argv, a));
    let mut put = |name: &str, value: &str| line(&mut env, &format!("{name}={value}"));
    for (name, value) in [("PATH", PATH_DEFAULT), ("LANG", "C.UTF-8")].iter().filter(|(n, _)| plan.spec.env.iter().all(|(m, _)| m != n)) {
        put(name, value);
    }
    plan.spec.env.iter().for_each(|(name, value)| put(name, value));
    if !plan.spec.trace_parent.is_empty() && plan.spec.env.iter().all(|(n, _)| n != "TRACEPARENT") {
        put("TRACEPARENT", &plan.spec.trace_parent);
    }
    put("GRID_JOB_ID", &task.job);
    put("GRID_TASK_ID", "{i}");
    put("GRID_ATTEMPT", &task.attempt.to_string());
    put("GRID_SITE", &task.site);
    put("GRID_SLOTS", &plan.spec.shape.slots.to_string());
    put("GRID_TASK_COUNT", &task.array_size.to_string());
    let mut out = vec![("a".to_string(), argv.into_bytes()), ("e".to_string(), env.into_bytes())];
    let first = indices.first().copied().unwrap_or(0);
    for (position, index) in (1u32..).zip(indices).filter(|(position, index)| u64::from(**index) != u64::from(first) + u64::from(*position) - 1) {
        out.push((format!("i.{position}"), format!("{index}\n").into_bytes()));
    }
    out
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
    /// From its text; None: it is none, or of a later version.
    pub fn parse(text: &str) -> Option<ExitRecord> {
        let mut lines = text.lines();
        if lines.next()? != "v1" {
            return None;
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.trim().into();
        let mut next = |name| -> Option<String> { Option::<&str>::map(field(name), str::to_string) };
        let (code, term, from, to, fault) = (next("code")?, next("term")?, next("from")?, next("to")?, next("fault")?);
        let wall = seconds_ms(&to).zip(seconds_ms(&from)).and_then(|(to, from)| to.checked_sub(from));
        // Of the shell itself first, then of what it has waited for.
        let cpu: Option<u64> = lines.nth(1).and_then(|l| l.split_whitespace().map(minutes_us).sum());
        Some(ExitRecord { code: code.parse().ok()?, was_asked: term == "1", wall_ms: wall, cpu_us: cpu, fault })
    }
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
    use std::process::{Command, Stdio};

    use intergrid_proto::JobSpec;
    use proptest::prelude::*;

    use super::*;
    use crate::hand::files::{Ask, serve};

    fn task(index: u32) -> Task {
        Task { number: 1, index, attempt: 2, job: "abcdef".into(), array_size: 9, site: "campus".into() }
    }

    /// The real script, run by the real shell, for each position: exit codes. What it leaves is in the directory.
    fn run(dir: &Path, spec: &JobSpec, indices: &[u32], times: usize) -> Vec<i32> {
        let plan = Plan::new(&spec.encode()).unwrap();
        let n = u32::try_from(indices.len()).unwrap();
        serve(dir, Ask::Open, b"").unwrap();
        serve(dir, Ask::Prepare("t".into(), n), b"").unwrap();
        for (name, bytes) in files(&plan, &task(0), indices) {
            serve(dir, Ask::Put("t".into(), name, 0o600, 0), &bytes).unwrap();
        }
        let text = script(dir, "t", indices[0], &plan);
        let file = dir.join("script");
        std::fs::write(&file, text).unwrap();
        let one = |position: u32| {
            let mut command = Command::new("/bin/sh");
            command.arg(&file).env_clear().env("PATH", "/usr/bin:/bin").env("SLURM_ARRAY_TASK_ID", position.to_string());
            command.stdin(Stdio::null()).status().unwrap().code().unwrap()
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
        let mut spec = JobSpec::new(["/bin/sh", "-c", "printf '%s|' \"$@\" \"$A\" \"$GRID_TASK_ID\" \"$HOME\"; exit \"$GRID_TASK_ID\"", "sh"]);
        spec.argv.extend(["{i} of {i}", "", "a'b\"c $HOME `x` \\n", "two\nlines\n", "-n", "*"].map(String::from));
        spec.env = vec![("A".into(), "v\\{i}".into()), ("odd-name".into(), "x".into())];
        // The second time round each finds its claim.
        assert_eq!(vec![5, 6, 9, 120, 120, 120], run(&base, &spec, &[5, 6, 9], 2));
        for (position, index) in [(1, 5), (3, 9)] {
            let out = std::fs::read_to_string(base.join(format!("t/{position}/stdout"))).unwrap();
            let home = base.join(format!("t/{position}/w"));
            let expected = format!("{index} of {index}||a'b\"c $HOME `x` \\n|two\nlines\n|-n|*|v\\{index}|{index}|{}|", home.display());
            assert_eq!(expected, out);
            let r = record(&base, position);
            assert!(r.code == index && !r.was_asked && r.fault.is_empty() && r.wall_ms.is_some() && r.cpu_us.is_some(), "{r:?}");
        }
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
        assert_eq!(137, record(&base, 1).code);
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
            let _ = ExitRecord::parse(&format!("v1\ncode {text}\nterm 0\nfrom {text}\nto 1e999\nfault \n0m0s\n{text}m{text}s"));
        }
    }
}
