//! `fetch`: the outputs of tasks, verified by their hash at this end.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{StreamExt, iter};
use intergrid_proto::spec::{check_file_name, substitute};
use intergrid_proto::{JobSpec, Phase, Refusal, RefusalKind, TaskSet, pb};
use serde_json::json;

use crate::args::FetchArgs;
use crate::client::Client;
use crate::files::Incoming;
use crate::names::JobName;
use crate::out::Out;
use crate::render;
use crate::stop::{Ending, Result, Stop, local};
use crate::verbs::Context;

/// Outputs on their way at once.
const FETCH_PARALLEL_MAX: usize = 8;

/// What to bring back, and where to.
#[derive(Debug)]
pub struct Wish {
    job: JobName,
    dir: PathBuf,
}

/// One output of one task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// Of this task.
    pub task: u32,
    /// In the task's directory.
    pub name: String,
    /// Here.
    pub to: PathBuf,
}

impl Wish {
    /// Check every word.
    pub fn parse(args: &FetchArgs) -> Result<Wish, Refusal> {
        let mut job = JobName::parse(&args.job)?;
        match (args.task, &job.tasks) {
            (Some(_), Some(_)) => return Err(Refusal::invalid(format!("{job} and --task both name tasks")).remedy("use one of them")),
            (Some(task), None) => job = JobName::parse(&format!("{}[{task}]", job.id))?,
            (None, _) => {}
        }
        Ok(Wish { job, dir: args.dir.clone() })
    }
}

/// Bring back every declared output of every done task.
pub async fn run(context: &Context<'_>, wish: Wish) -> Result<Ending> {
    let out = context.out;
    let view = super::jobs::view(&context.client, &wish.job).await?;
    let spec = JobSpec::decode(&view.spec)?;
    let done = done_tasks(&context.client, &view).await?;
    let wanted = match &wish.job.tasks {
        Some(tasks) => done.intersect(tasks),
        None => done,
    };
    let outputs = plan(&spec, view.tasks, &wanted, &wish.dir)?;
    if outputs.is_empty() {
        let (what, remedy) = match (spec.outputs.is_empty(), wanted.is_empty()) {
            (true, _) => ("declares no outputs", "declare them with --out when you submit; `grid logs` has what was printed"),
            (false, true) => ("has no task that is done among these", "wait for it with `grid wait`, or see `grid explain`"),
            (false, false) => ("has nothing to fetch", ""),
        };
        return Err(Refusal::new(RefusalKind::NotFound, format!("job {} {what}", view.id)).remedy(remedy).into());
    }
    let bytes = fetch(out, &context.client, &view.id, &outputs).await?;
    if out.json {
        let files: Vec<_> = outputs.iter().map(|o| json!({"task": o.task, "name": o.name, "path": o.to})).collect();
        out.object(json!({"job": view.id, "files": files, "bytes": bytes}))?;
    } else if out.terminal {
        let files = render::count(outputs.len() as u64, "file");
        out.line(format!("{files}, {}, verified, in {}", render::bytes(bytes), wish.dir.display()))?;
        out.next(format!("next: grid history {}", view.id))?;
    } else {
        outputs.iter().try_for_each(|o| out.line(o.to.display().to_string()))?;
    }
    Ok(Ending::Well)
}

/// The view names them by ranges, unless there are too many ranges; the history has them all.
async fn done_tasks(client: &Client, view: &pb::JobView) -> Result<TaskSet, Refusal> {
    let listed: u64 = view.ranges.iter().map(|r| render::tasks(r.tasks.as_ref()).len()).sum();
    if listed >= view.counts.iter().map(|c| c.tasks).sum() {
        let done = view.ranges.iter().filter(|r| r.phase == Phase::Done as i32);
        return Ok(done.fold(TaskSet::new(), |set, r| set.union(&render::tasks(r.tasks.as_ref()))));
    }
    let mut done = TaskSet::new();
    super::history::each(client, &super::history::whole(&view.id), |_, entry| {
        if !entry.stale && entry.ended.as_ref().is_some_and(|e| e.phase == Phase::Done as i32) {
            done = done.union(&render::tasks(entry.tasks.as_ref()));
        }
        Ok(())
    })
    .await
    .map_err(|stop| match stop {
        Stop::Refused(r) => r,
        Stop::PipeClosed => local("the output is closed"),
    })?;
    Ok(done)
}

/// Where each output goes: under its own name, and in a directory of its task where names would fall together.
pub fn plan(spec: &JobSpec, array: u32, tasks: &TaskSet, dir: &Path) -> Result<Vec<Output>, Refusal> {
    let mut outputs = Vec::new();
    for task in tasks.iter() {
        for declared in &spec.outputs {
            let name = substitute(declared, task);
            check_file_name("outputs", &name)?;
            let own = array > 1 && !declared.contains("{i}");
            let to = if own { dir.join(task.to_string()).join(&name) } else { dir.join(&name) };
            outputs.push(Output { task, name, to });
        }
    }
    Ok(outputs)
}

/// Bring them back, several at once; the first error ends it, and what is complete stays. Returns bytes.
pub async fn fetch(out: &Out, client: &Client, job: &str, outputs: &[Output]) -> Result<u64, Refusal> {
    for dir in outputs.iter().filter_map(|o| o.to.parent()) {
        std::fs::create_dir_all(dir).map_err(|e| local(format!("{} can't be made: {e}", dir.display())).remedy("choose another --dir"))?;
    }
    let bar = out.bar(outputs.len() as u64, "fetching");
    let bytes = AtomicU64::new(0);
    let mut fetches = iter(outputs)
        .map(|o| async {
            let named = |mut r: Refusal| {
                r.message = format!("{}[{}] {}: {}", job, o.task, o.name, r.message);
                r
            };
            let incoming = Incoming::open(client, job, o.task, &format!("out/{}", o.name)).await.map_err(named)?;
            bytes.fetch_add(incoming.save(&o.to).await.map_err(named)?, Ordering::Relaxed);
            bar.inc(1);
            Ok::<(), Refusal>(())
        })
        .buffer_unordered(FETCH_PARALLEL_MAX);
    while let Some(fetched) = fetches.next().await {
        fetched?;
    }
    drop(fetches);
    bar.finish_and_clear();
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fall_together_get_a_directory_each() {
        let mut spec = JobSpec::new(["x"]);
        spec.outputs = vec!["tile-{i}.png".into(), "log".into()];
        let paths = |array, tasks: std::ops::Range<u32>| -> Vec<String> {
            let outputs = plan(&spec, array, &TaskSet::range(tasks), Path::new("d")).unwrap();
            outputs.iter().map(|o| o.to.display().to_string()).collect()
        };
        assert_eq!(vec!["d/tile-3.png", "d/3/log", "d/tile-4.png", "d/4/log"], paths(64, 3..5));
        assert_eq!(vec!["d/tile-0.png", "d/log"], paths(1, 0..1));
    }

    #[test]
    fn a_task_is_named_once() {
        let args = |job: &str, task| FetchArgs { job: job.into(), dir: ".".into(), task };
        assert_eq!("7k[3]", Wish::parse(&args("7k", Some(3))).unwrap().job.to_string());
        assert!(Wish::parse(&args("7k[3]", Some(3))).is_err());
    }
}
