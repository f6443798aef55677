//! `logs`: what tasks have printed, verified by its hash at this end; with `-f` also of tasks that have yet to end: as they print it where it can be had, and
//! the rest when they have ended.

use std::pin::pin;
use std::time::Duration;

use futures::stream::{StreamExt, iter};
use intergrid_proto::{BlobHash, Phase, Refusal, RefusalKind, TaskSet, pb};
use serde_json::json;
use tokio::sync::watch;

use crate::args::LogsArgs;
use crate::client::Client;
use crate::files::Incoming;
use crate::names::JobName;
use crate::out::Out;
use crate::render;
use crate::stop::{Result, Stop};
use crate::verbs::live::{Live, Shown};
use crate::verbs::{Context, jobs, wait};

/// What `--json` puts into one object.
const JSON_TEXT_BYTES_MAX: u64 = 16 << 20;
/// Outputs that are asked for ahead of the one that is printed.
const AHEAD_MAX: usize = 8;
/// What running tasks print is asked for so often, while somebody follows.
const LIVE_INTERVAL: Duration = Duration::from_millis(300);
/// Of a line that is longer, each part is told to be of its task.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Whose output, and which.
#[derive(Debug)]
pub struct Wish {
    job: JobName,
    streams: Streams,
    follow: bool,
}

/// Which of a task's streams are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Streams {
    /// stdout, there.
    Out,
    /// stderr, on stdout.
    Err,
    /// Each where it belongs.
    Both,
}

impl Streams {
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Streams::Out => &["stdout"],
            Streams::Err => &["stderr"],
            Streams::Both => &["stdout", "stderr"],
        }
    }
}

impl Wish {
    /// Check every word.
    pub fn parse(args: &LogsArgs) -> Result<Wish, Refusal> {
        let streams = if args.stderr { Streams::Err } else { Streams::Out };
        Ok(Wish { job: JobName::parse(&args.job)?, streams, follow: args.follow })
    }
}

/// Print them.
pub async fn run(context: &Context<'_>, wish: Wish) -> Result<()> {
    let tasks = wish.job.tasks.clone().unwrap_or_else(|| TaskSet::one(0));
    let named = JobName { tasks: Some(tasks.clone()), ..wish.job.clone() };
    let view = jobs::view(&context.client, &named).await?;
    let printer = Printer { out: context.out, client: &context.client, job: view.id.clone(), streams: wish.streams, label: tasks.len() > 1 };
    if wish.follow {
        let mut warning = wait::Warning::new(context.out);
        follow(&printer, &tasks, || (), |view| warning.see(view, None)).await?;
    } else {
        let left = printed(&printer, &tasks).await?;
        if let Some(first) = left.first() {
            let message = match tasks.len() {
                1 => format!("task {first} of job {} has not ended: its output is here when it has", view.id),
                n => format!(
                    "{} of {n} tasks of job {} have not ended: their output is here when they have; the first is {first}",
                    left.len(),
                    view.id
                ),
            };
            let remedy = format!("grid logs -f waits for it, grid explain {} says why it waits", view.id);
            return Err(Refusal::new(RefusalKind::NotFound, message).remedy(remedy).into());
        }
    }
    if wish.job.tasks.is_none() && view.tasks > 1 {
        context.out.next(format!("this is task 0 of {}; of others: grid logs {}[1]", view.tasks, view.id))?;
    }
    Ok(())
}

/// Print all that have ended; returns those that have not.
async fn printed(printer: &Printer<'_>, tasks: &TaskSet) -> Result<TaskSet> {
    let mut left = tasks.clone();
    while !left.is_empty() {
        let ended = ended_among(printer.client, &printer.job, &left).await?;
        if ended.is_empty() {
            break;
        }
        printer.print_all(&ended, &mut Live::default()).await?;
        left = left.subtract(&ended);
    }
    Ok(left)
}

/// Of all these tasks, each when it has ended; returns when all have. `before` is called before anything is printed, `see` with every view of them.
pub async fn follow(printer: &Printer<'_>, tasks: &TaskSet, before: impl Fn(), mut see: impl FnMut(&pb::JobView)) -> Result<()> {
    let (seen, mut news) = watch::channel(0);
    let job = JobName { id: printer.job.clone(), tasks: Some(tasks.clone()) };
    let following = async {
        let ended = wait::follow(printer.client, &job, |view| {
            see(view);
            seen.send_replace(render::ended(view));
        })
        .await;
        drop(seen);
        ended.map_err(Stop::from)
    };
    let printing = async {
        let (mut left, mut live) = (tasks.clone(), Live::default());
        while !left.is_empty() {
            // None: nothing is new. An error: all have ended.
            let changed = tokio::time::timeout(live.due_in(LIVE_INTERVAL), news.changed()).await.ok();
            if live.due_in(LIVE_INTERVAL).is_zero() && !matches!(changed, Some(Err(_))) {
                live.round(printer, &left, &before).await?;
            }
            if changed.is_none() {
                continue;
            }
            let ended = ended_among(printer.client, &printer.job, &left).await?;
            if !ended.is_empty() {
                before();
            }
            printer.print_all(&ended, &mut live).await?;
            left = left.subtract(&ended);
        }
        Ok(())
    };
    tokio::try_join!(following, printing).map(drop)
}

/// Those that have ended, or the first of them.
async fn ended_among(client: &Client, job: &str, tasks: &TaskSet) -> Result<TaskSet, Refusal> {
    let view = jobs::view(client, &JobName { id: job.to_owned(), tasks: Some(tasks.clone()) }).await?;
    let ended = view.ranges.iter().filter(|r| Phase::from_number(r.phase).is_some_and(Phase::is_terminal));
    Ok(ended.fold(TaskSet::new(), |set, r| set.union(&render::tasks(r.tasks.as_ref()))).intersect(tasks))
}

/// Prints outputs of a job.
pub struct Printer<'a> {
    /// Where to.
    pub out: &'a Out,
    /// Whom to ask.
    pub client: &'a Client,
    /// The job's id.
    pub job: String,
    /// Which outputs.
    pub streams: Streams,
    /// Each line begins with its task.
    pub label: bool,
}

impl Printer<'_> {
    /// Outputs of these tasks, in order, asked for ahead.
    fn outputs(&self, tasks: Vec<u32>) -> impl futures::Stream<Item = (u32, &'static str, Result<Incoming, Refusal>)> {
        let wanted: Vec<_> = tasks.into_iter().flat_map(|t| self.streams.names().iter().map(move |name| (t, *name))).collect();
        iter(wanted)
            .map(move |(task, name)| async move { (task, name, Incoming::open(self.client, &self.job, task, name).await) })
            .buffered(AHEAD_MAX)
    }

    /// Of tasks that have ended; what was shown of them before is not shown again.
    async fn print_all(&self, ended: &TaskSet, live: &mut Live) -> Result<()> {
        let mut outputs = pin!(self.outputs(ended.iter().collect()));
        while let Some((task, name, output)) = outputs.next().await {
            match output {
                Ok(incoming) => self.print(task, name, incoming, live.take(task, name)).await?,
                // Sites keep no empty output; nor is there one of a task that never started.
                Err(r) if r.kind == RefusalKind::NotFound => match live.take(task, name) {
                    Some(mut shown) => self.write(name, &shown.lines.rest())?,
                    None => self.nothing(task, name, &r)?,
                },
                Err(r) => return Err(r.into()),
            }
        }
        Ok(())
    }

    /// A person may have expected something.
    fn nothing(&self, task: u32, name: &str, why: &Refusal) -> Result<()> {
        let id = &self.job;
        if self.out.json {
            let hash = BlobHash::of(b"").to_string();
            return self.out.object(json!({"job": id, "task": task, "name": name, "size": 0, "hash": hash, "text": ""}));
        }
        if self.streams != Streams::Both && !self.label {
            let other = if name == "stdout" { "--stderr " } else { "" };
            self.out.note(format!("{}; see grid logs {other}{id}[{task}], grid show {id}, grid explain {id}", why.message));
        }
        Ok(())
    }

    /// Where it belongs.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.streams == Streams::Both && name == "stderr" { self.out.error_bytes(bytes) } else { self.out.bytes(bytes) }
    }

    async fn print(&self, task: u32, name: &'static str, incoming: Incoming, shown: Option<Shown>) -> Result<()> {
        if self.out.json {
            return self.object(task, name, incoming).await;
        }
        if let Some(shown) = shown {
            if self.print_rest(name, incoming, shown).await? {
                return Ok(());
            }
            self.out.note(format!("{name} of task {task} is not what was shown: that was of an attempt that was lost; this is all of it"));
            let again = Incoming::open(self.client, &self.job, task, name).await?;
            return self.print_rest(name, again, Shown::new(self.label.then_some(task))).await.map(drop);
        }
        self.print_rest(name, incoming, Shown::new(self.label.then_some(task))).await.map(drop)
    }

    /// What follows what was shown. False: it is another text.
    async fn print_rest(&self, name: &str, mut incoming: Incoming, mut shown: Shown) -> Result<bool> {
        while let Some(data) = incoming.part().await? {
            let Some(fresh) = shown.behind(&data) else { return Ok(false) };
            self.write(name, &shown.lines.take(fresh))?;
        }
        if !shown.is_whole() {
            return Ok(false);
        }
        self.write(name, &shown.lines.rest())?;
        self.out.flush()?;
        Ok(true)
    }

    async fn object(&self, task: u32, name: &str, mut incoming: Incoming) -> Result<()> {
        if incoming.size > JSON_TEXT_BYTES_MAX {
            let message = format!("{name} of {}[{task}] has {}, too much for one object", self.job, render::bytes(incoming.size));
            return Err(Refusal::new(RefusalKind::OverLimit, message).remedy("leave --json out").into());
        }
        let mut text = Vec::new();
        while let Some(data) = incoming.part().await? {
            text.extend(data);
        }
        let (hash, size, text) = (incoming.hash.to_string(), text.len(), String::from_utf8_lossy(&text));
        self.out.object(json!({"job": self.job, "task": task, "name": name, "size": size, "hash": hash, "text": text}))
    }
}

/// Puts a task before each of its lines; without one bytes go through as they are.
#[derive(Debug)]
pub(super) struct Lines {
    label: Option<String>,
    begun: Vec<u8>,
}

impl Lines {
    pub(super) fn new(task: Option<u32>) -> Self {
        Lines { label: task.map(|t| format!("[{t}] ")), begun: Vec::new() }
    }

    /// Whole lines; what is begun waits for its end.
    pub(super) fn take(&mut self, data: &[u8]) -> Vec<u8> {
        let Some(label) = &self.label else { return data.to_vec() };
        let mut whole = Vec::with_capacity(data.len() + label.len());
        for part in data.split_inclusive(|b| *b == b'\n') {
            self.begun.extend_from_slice(part);
            if part.ends_with(b"\n") || self.begun.len() > LINE_BYTES_MAX {
                whole.extend_from_slice(label.as_bytes());
                whole.append(&mut self.begun);
                if !whole.ends_with(b"\n") {
                    whole.push(b'\n');
                }
            }
        }
        whole
    }

    /// A last line without an end gets one, so that the next task's does not go on in it.
    fn rest(&mut self) -> Vec<u8> {
        if self.begun.is_empty() { Vec::new() } else { self.take(b"\n") }
    }
}

/// The exit code of a job as a shell would tell it: 0 where all tasks are done, else that of the first that is not. None: it was not the payload that
/// failed, but what is around it.
pub async fn exit_code(client: &Client, job: &pb::JobView) -> Result<Option<u8>, Refusal> {
    let mut left = TaskSet::range(0..job.tasks);
    while !left.is_empty() {
        let view = jobs::view(client, &JobName { id: job.id.clone(), tasks: Some(left.clone()) }).await?;
        let before = left.len();
        for range in &view.ranges {
            let tasks = render::tasks(range.tasks.as_ref());
            if range.phase != Phase::Done as i32 {
                return Ok(range.exit.first().and_then(|n| shell_code(*n)));
            }
            left = left.subtract(&tasks);
        }
        if left.len() == before {
            break;
        }
    }
    Ok(Some(0))
}

fn shell_code(exit: u32) -> Option<u8> {
    use intergrid_proto::Exit;
    match Exit::from_number(exit) {
        Exit::Code(0) | Exit::NotStarted | Exit::Unknown => None,
        Exit::Code(code) => Some(code),
        Exit::Signal(signal) => u8::try_from(128 + u32::from(signal)).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_proto::Exit;

    #[test]
    fn lines_of_several_tasks_are_told_apart() {
        let mut lines = Lines::new(Some(3));
        let mut text = lines.take(b"one\ntw");
        text.extend(lines.take(b"o\n\nend"));
        text.extend(lines.rest());
        assert_eq!("[3] one\n[3] two\n[3] \n[3] end\n", String::from_utf8(text).unwrap());
        assert_eq!(b"as it is".to_vec(), Lines::new(None).take(b"as it is"));
    }

    #[test]
    fn exits_are_told_as_a_shell_does() {
        let code = |exit: Exit| shell_code(exit.to_number());
        assert_eq!((Some(3), Some(137), None), (code(Exit::Code(3)), code(Exit::Signal(9)), code(Exit::Unknown)));
        assert_eq!((None, None), (code(Exit::Code(0)), code(Exit::NotStarted)), "a job that failed although its payload did not");
    }
}
