//! `submit`: words to a spec, its files by their content, one key. The key makes repeating safe: the same key and spec are the same job, so that a lost
//! answer is simply asked for again.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use intergrid_proto::limits::{GPUS_PER_MACHINE_MAX, NAME_BYTES_MAX, NODES_PER_TASK_MAX, SLOTS_PER_TASK_MAX, TASKS_PER_JOB_MAX};
use intergrid_proto::spec::{File, OnLost};
use intergrid_proto::units::{parse_bytes, parse_duration};
use intergrid_proto::{BlobHash, JobSpec, Money, Refusal, RefusalKind, Shape, pb};
use serde_json::json;

use crate::args::SpecArgs;
use crate::client::Client;
use crate::files::{self, Local};
use crate::names::{self, Program};
use crate::out::{Out, Paint};
use crate::stop::{Ending, Result, local};
use crate::verbs::{Context, wait};

/// A command line that is well-formed; its files have not been looked at.
#[derive(Debug)]
pub struct Plan {
    spec: JobSpec,
    program: Program,
    inputs: Vec<(PathBuf, String)>,
    key: Option<String>,
    tasks: u32,
    hold: bool,
}

/// A job that is ready to be sent.
#[derive(Clone, Debug)]
pub struct Submission {
    pub(super) spec: Vec<u8>,
    files: Vec<Local>,
    /// Its own key.
    pub key: String,
    /// Of the array.
    pub tasks: u32,
    hold: bool,
}

impl Plan {
    /// Check every word.
    pub fn parse(args: &SpecArgs, hold: bool) -> Result<Plan, Refusal> {
        let (tasks, at_once) = match &args.array {
            Some(text) => names::array(text)?,
            None => (args.tasks, None),
        };
        if args.tasks == 0 {
            return Err(Refusal::invalid("-n 0: a job has at least 1 task").remedy("give a number of tasks, or leave -n out"));
        }
        if tasks > TASKS_PER_JOB_MAX {
            let message = format!("-n {}: a job has at most {TASKS_PER_JOB_MAX} tasks", tasks);
            return Err(Refusal::new(RefusalKind::OverLimit, message).remedy("submit several jobs"));
        }
        if args.gpus > GPUS_PER_MACHINE_MAX {
            return Err(Refusal::invalid(format!("--gpus {}: a task has at most {GPUS_PER_MACHINE_MAX} on a machine", args.gpus)));
        }
        if !(1..=NODES_PER_TASK_MAX).contains(&args.nodes) {
            return Err(Refusal::invalid(format!("--nodes {}: a task has 1 to {NODES_PER_TASK_MAX} machines", args.nodes)));
        }
        if !(1..=SLOTS_PER_TASK_MAX).contains(&args.slots) {
            return Err(Refusal::invalid(format!("-c {}: a task has 1 to {SLOTS_PER_TASK_MAX} slots", args.slots)));
        }
        if let Some(key) = &args.key
            && (key.is_empty() || key.len() > NAME_BYTES_MAX)
        {
            return Err(Refusal::invalid(format!("--key: {} bytes", key.len())).remedy(format!("give 1 to {NAME_BYTES_MAX} bytes")));
        }
        let mut argv = args.command.clone();
        let program = names::program(argv.first().map_or("", String::as_str), args.stage)?;
        if let (Program::Staged(path), Some(first)) = (&program, argv.first_mut()) {
            *first = names::file_name(path).ok_or_else(|| local(format!("{} has no file name", path.display())))?;
        }
        let mut spec = JobSpec::new(argv);
        spec.name = args.name.clone().unwrap_or_default();
        spec.env = args.env.iter().map(|e| names::variable(e)).collect::<Result<_, _>>()?;
        spec.outputs = args.outputs.clone();
        let memory_bytes = flag("--mem", args.mem.as_deref(), parse_bytes)?.unwrap_or(0);
        spec.shape = Shape { slots: args.slots, memory_bytes, gpus: args.gpus, nodes: args.nodes };
        spec.time_limit_ms = flag("-t", args.time.as_deref(), parse_duration)?.map(|d| d.as_millis() as u64);
        if spec.time_limit_ms == Some(0) {
            return Err(Refusal::invalid("-t: a time limit of nothing").remedy("leave -t out for no limit"));
        }
        if let Some(timeout) = flag("--disconnect-timeout", args.disconnect_timeout.as_deref(), parse_duration)? {
            spec.disconnect_timeout_ms = timeout.as_millis() as u64;
        }
        spec.tasks_at_once = at_once;
        spec.max_cost = flag("--max-cost", args.max_cost.as_deref(), Money::parse)?;
        spec.on_lost = if args.no_requeue { OnLost::Wait } else { OnLost::Requeue };
        let inputs = args.inputs.iter().map(|i| names::input(i)).collect::<Result<_, _>>()?;
        // What any site would refuse is refused here, in the same words, before anything is hashed.
        JobSpec::decode(&spec.encode())?;
        Ok(Plan { spec, program, inputs, key: args.key.clone(), tasks, hold })
    }

    /// As a part of this trace, or of one of its own.
    pub fn traced(mut self, parent: Option<&str>) -> Result<Plan, Refusal> {
        self.spec.trace_parent = match parent {
            Some(parent) => parent.to_owned(),
            None => new_trace()?,
        };
        Ok(self)
    }

    /// Look at the files and hash them.
    pub async fn prepare(self, out: &Out) -> Result<Submission, Refusal> {
        let mut spec = self.spec;
        let mut files = Vec::with_capacity(self.inputs.len() + 1);
        if let Program::Staged(path) = &self.program {
            let file = files::hash(out, "program", path).await?;
            if !executable(path) {
                let shown = path.display();
                return Err(local(format!("program: {shown} is not executable")).remedy(format!("chmod +x {shown}")));
            }
            let name = spec.argv.first().cloned().unwrap_or_default();
            spec.executable = Some(File { name, hash: file.hash, size: file.size, executable: true });
            files.push(file);
        }
        for (path, name) in self.inputs {
            let file = files::hash(out, "--in", &path).await?;
            spec.inputs.push(File { name, hash: file.hash, size: file.size, executable: executable(&path) });
            files.push(file);
        }
        let spec = spec.encode();
        JobSpec::decode(&spec)?;
        let key = self.key.map_or_else(random_key, Ok)?;
        Ok(Submission { spec, files, key, tasks: self.tasks, hold: self.hold })
    }
}

/// A flag's value, or an error that names the flag.
fn flag<T>(name: &str, text: Option<&str>, parse: impl Fn(&str) -> Result<T, Refusal>) -> Result<Option<T>, Refusal> {
    let named = |mut r: Refusal| {
        r.message = format!("{name}: {}", r.message);
        r
    };
    text.map(|t| parse(t).map_err(named)).transpose()
}

fn executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o111 != 0)
}

/// 128 random bits.
fn random_key() -> Result<String, Refusal> {
    Ok(crate::render::hex(&random::<16>()?))
}

/// A traceparent of its own, sampled.
fn new_trace() -> Result<String, Refusal> {
    let (mut trace, mut parent) = (random::<16>()?, random::<8>()?);
    // Neither id may be 0.
    (trace[0], parent[0]) = (trace[0] | 1, parent[0] | 1);
    Ok(format!("00-{}-{}-01", crate::render::hex(&trace), crate::render::hex(&parent)))
}

fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0u8; N];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).map_err(|e| local(format!("no random bytes: {e}")))?;
    Ok(bytes)
}

/// Stage what is missing, then submit; repeated safely while the endpoint is unavailable.
pub async fn send(out: &Out, client: &Client, job: &Submission) -> Result<pb::SubmitReply, Refusal> {
    files::upload(out, client, &job.files).await?;
    match submit(client, job).await {
        // Content may be given up between the two calls; once more then.
        Err(r) if r.kind == RefusalKind::MissingBlob => {
            files::upload(out, client, &job.files).await?;
            submit(client, job).await
        }
        other => other,
    }
}

async fn submit(client: &Client, job: &Submission) -> Result<pb::SubmitReply, Refusal> {
    let request = pb::SubmitRequest {
        key: job.key.clone(),
        spec: job.spec.clone(),
        spec_hash: BlobHash::of(&job.spec).0.to_vec(),
        tasks: job.tasks,
        chain: Vec::new(),
        want_hold: u32::from(job.hold),
    };
    client.call("submit", async |mut grid| grid.submit(request.clone()).await).await.map_err(|r| match r.kind {
        RefusalKind::Unavailable => r.remedy(format!("it may have been taken; repeat safely with --key {}", job.key)),
        _ => r,
    })
}

/// Send, say so, and wait where that is wished.
pub async fn run(context: &Context<'_>, job: Submission, wait: bool) -> Result<Ending> {
    let out = context.out;
    let reply = send(out, &context.client, &job).await?;
    let id = &reply.job;
    if out.json {
        out.object(json!({"job": id, "tasks": job.tasks, "key": job.key, "existed": reply.existed}))?;
    } else if out.terminal {
        let what = if reply.existed { "was here already, with the same key" } else { "is accepted" };
        out.line(format!(
            "job {} {what}: {}, key {}, safe to repeat",
            out.paint(Paint::Bold, id),
            crate::render::count(job.tasks.into(), "task"),
            job.key
        ))?;
    } else {
        out.line(id)?;
    }
    if wait {
        return wait::run(context, wait::Wish::until_the_end(id)).await;
    }
    out.next(if job.hold { format!("next: grid release {id}") } else { format!("next: grid wait {id}") })?;
    Ok(Ending::Well)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn plan(words: &[&str]) -> Result<Plan, Refusal> {
        let cli = crate::args::Cli::try_parse_from(["grid", "submit"].iter().chain(words)).unwrap();
        let crate::args::Command::Submit(args) = cli.command else { panic!("not submit") };
        Plan::parse(&args.spec, args.hold)
    }

    #[test]
    fn words_become_a_spec() {
        let words =
            ["-n", "100", "-J", "r", "-c", "2", "--mem", "4G", "-G", "1", "-N", "3", "-t", "10m", "--env", "A=b", "--out", "t-{i}", "--no-requeue"];
        let plan = plan(&[&words[..], &["--disconnect-timeout", "30s", "--key", "k", "--hold", "--", "render", "{i}"]].concat()).unwrap();
        let spec = plan.spec;
        assert_eq!(Shape { slots: 2, memory_bytes: 4 << 30, gpus: 1, nodes: 3 }, spec.shape);
        assert_eq!((Some(600_000), 30_000), (spec.time_limit_ms, spec.disconnect_timeout_ms));
        assert_eq!((OnLost::Wait, "r", vec!["render".to_owned(), "{i}".into()]), (spec.on_lost, spec.name.as_str(), spec.argv));
        assert_eq!((100, true, Some("k"), Program::Site), (plan.tasks, plan.hold, plan.key.as_deref(), plan.program));
    }

    #[test]
    fn an_array_is_named_by_its_indices() {
        let of = |text: &str| plan(&["--array", text, "--", "x"]).map(|p| (p.tasks, p.spec.tasks_at_once));
        assert_eq!((Ok((64, Some(8))), Ok((64, None)), Ok((1, None))), (of("0-63%8"), of("0-63"), of("0")));
        assert!(crate::args::Cli::try_parse_from(["grid", "submit", "-n", "4", "--array", "0-3", "--", "x"]).is_err());
    }

    #[test]
    fn bad_words_name_their_flag() {
        for (words, says, kind) in [
            (&["-n", "0", "--", "x"][..], "-n 0", RefusalKind::Invalid),
            (&["-n", "4000001", "--", "x"], "-n 4000001", RefusalKind::OverLimit),
            (&["--array", "1-9", "--", "x"], "--array \"1-9\"", RefusalKind::Invalid),
            (&["--array", "0-9%0", "--", "x"], "--array \"0-9%0\"", RefusalKind::Invalid),
            (&["--array", "0-4000000", "--", "x"], "-n 4000001", RefusalKind::OverLimit),
            (&["-c", "0", "--", "x"], "-c 0", RefusalKind::Invalid),
            (&["--mem", "4", "--", "x"], "--mem", RefusalKind::Invalid),
            (&["-t", "10", "--", "x"], "-t", RefusalKind::Invalid),
            (&["-t", "0s", "--", "x"], "-t", RefusalKind::Invalid),
            (&["--env", "A", "--", "x"], "--env", RefusalKind::Invalid),
            (&["--env", "GRID_X=1", "--", "x"], "env", RefusalKind::Invalid),
            (&["--out", "a/b", "--", "x"], "outputs", RefusalKind::Invalid),
            (&["--in", "..", "--", "x"], "--in", RefusalKind::Invalid),
            (&["--key", "", "--", "x"], "--key", RefusalKind::Invalid),
            (&["--max-cost", "5", "-t", "1h", "--", "x"], "--max-cost", RefusalKind::Invalid),
            (&["--max-cost", "5USD", "--", "x"], "max_cost", RefusalKind::Invalid),
            (&["--", ""], "the command", RefusalKind::Invalid),
            (&["--", "bin/x"], "\"bin/x\"", RefusalKind::Invalid),
        ] {
            let refused = plan(words).expect_err(says);
            assert!(refused.message.starts_with(says) && refused.kind == kind, "{words:?}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_staged_program_must_exist_and_be_executable() {
        let out = Out::new(&Default::default(), false);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prog");
        let words = |p: &Path| ["--stage", "--"].into_iter().map(str::to_owned).chain([p.display().to_string()]).collect::<Vec<_>>();
        let prepare = async |p: &Path| plan(&words(p).iter().map(String::as_str).collect::<Vec<_>>()).unwrap().prepare(&out).await;
        assert!(prepare(&path).await.unwrap_err().message.ends_with("does not exist"));
        std::fs::write(&path, b"#!/bin/sh\n").unwrap();
        assert!(prepare(&path).await.unwrap_err().message.ends_with("is not executable"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let job = prepare(&path).await.unwrap();
        let spec = JobSpec::decode(&job.spec).unwrap();
        let staged = spec.executable.unwrap();
        assert_eq!(("prog", BlobHash::of(b"#!/bin/sh\n"), "prog", 32), (staged.name.as_str(), staged.hash, spec.argv[0].as_str(), job.key.len()));
    }
}
