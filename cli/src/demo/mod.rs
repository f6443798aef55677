//! `demo`: a whole grid of grids on this machine, every part a process of its own with its own port, store and certificate, and a picture rendered on
//! it. Whatever happens, nothing is left running unless that was asked for.

mod layout;
mod picture;
mod process;
mod report;
pub mod tile;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use intergrid_proto::limits::TASKS_PER_JOB_MAX;
use intergrid_proto::link::Kind;
use intergrid_proto::net::CertRole;
use intergrid_proto::{Refusal, RefusalKind, TaskSet, pb};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use self::layout::{AGENT_SLOTS, BURST, Layout, PARTS, WAVES};
use self::process::{Proc, Running, read_ready};
use self::report::{Done, Site};
use crate::args::{DemoArgs, SpecArgs};
use crate::client::{Client, Home};
use crate::names::JobName;
use crate::out::{Out, Paint};
use crate::render;
use crate::stop::{Ending, Result, Stop, local};
use crate::verbs::{fetch, hosts, submit, wait};

/// Fewer tasks would not show that all sites take part.
const TASKS_MIN: u32 = 64;
/// More tiles than this make a picture that few programs open.
const TASKS_MAX: u32 = 4_096;
/// Until every agent is seen at the top.
const ATTACH_TIMEOUT_MS: u64 = 30_000;
/// Until the picture is rendered.
const JOB_TIMEOUT_MS: u64 = 600_000;
/// Between two looks.
const LOOK_INTERVAL_MS: u64 = 100;
/// The file that each task makes.
const OUTPUT: &str = "tile-{i}.png";

/// What `--keep` leaves for `--stop`.
#[derive(Serialize, Deserialize)]
struct Record {
    procs: Vec<Proc>,
}

/// Start, render, tell, stop.
pub async fn run(args: DemoArgs, out: &Out) -> Result<Ending> {
    if let Some(dir) = &args.stop {
        return stop_kept(dir, out).await;
    }
    if !(TASKS_MIN..=TASKS_MAX.min(TASKS_PER_JOB_MAX)).contains(&args.tasks) {
        return Err(Refusal::invalid(format!("--tasks {}: {TASKS_MIN} to {TASKS_MAX}", args.tasks)).into());
    }
    let program = std::env::current_exe().map_err(|e| local(format!("the running executable is not known: {e}")))?;
    let mut demo = Demo {
        out,
        program,
        layout: Layout { root: layout::fresh(args.dir.as_deref())? },
        picture: picture_path(args.dir.as_deref())?,
        tasks: args.tasks,
        keep: args.keep,
        began: Instant::now(),
        parts: Vec::new(),
    };
    let ended = tokio::select! {
        ended = demo.drive() => ended,
        name = crate::roles::interrupted() => Err(Refusal::invalid(format!("stopped by {name}")).remedy("nothing of the demo is left running").into()),
    };
    let went_well = matches!(ended, Ok(Ending::Well));
    if went_well && args.keep {
        demo.keep()?;
        return ended;
    }
    demo.end().await;
    let root = demo.layout.root.display();
    if !went_well {
        out.note(format!("the demo's files are left in {root}"));
    } else if args.dir.is_none() {
        std::fs::remove_dir_all(&demo.layout.root).map_err(|e| local(format!("{root} can't be removed: {e}")))?;
    }
    ended
}

/// With a directory of the user's it is there, else where the user is.
fn picture_path(dir: Option<&Path>) -> Result<PathBuf, Refusal> {
    let dir = match dir {
        Some(dir) => std::path::absolute(dir),
        None => std::env::current_dir(),
    };
    Ok(dir.map_err(|e| local(format!("the current directory is not known: {e}")))?.join("demo.png"))
}

struct Demo<'a> {
    out: &'a Out,
    program: PathBuf,
    layout: Layout,
    picture: PathBuf,
    tasks: u32,
    keep: bool,
    began: Instant,
    parts: Vec<Running>,
}

impl Demo<'_> {
    async fn drive(&mut self) -> Result<Ending> {
        self.say(format!("starting a grid of grids in {}", self.layout.root.display()))?;
        let spinner = self.out.spinner("starting brokers, gateways and agents");
        let started = self.start().await;
        spinner.finish_and_clear();
        let (client, host) = started?;
        if !self.out.json {
            hosts::print(self.out, &host, true)?;
            self.out.line("")?;
        }
        let (job, ending) = self.render(&client).await?;
        if ending != Ending::Well {
            return Ok(ending);
        }
        let done = self.bring_back(&client, &job).await?;
        self.tell(&done, &job)?;
        Ok(Ending::Well)
    }

    fn say(&self, text: String) -> Result<()> {
        if self.out.json { Ok(()) } else { self.out.line(text) }
    }

    /// Start all parts, children before the parents that dial them, and wait until the top sees every agent.
    async fn start(&mut self) -> Result<(Client, pb::Host)> {
        self.layout.make_identities()?;
        for wave in WAVES {
            let first = self.parts.len();
            for part in wave.iter().filter_map(|name| layout::named(name)) {
                self.layout.write_config(part, |name| self.endpoint(name))?;
                self.parts.push(Running::start(&self.program, &self.layout, part, self.keep)?);
            }
            for part in &mut self.parts[first..] {
                part.ready().await?;
            }
        }
        let top = PARTS[0].name;
        let endpoint = self.endpoint(top).ok_or_else(|| local(format!("{top} did not say where it serves")))?;
        let home = self.layout.home();
        crate::init::home(&self.layout.dir(top).join("identity"), &home, &endpoint, CertRole::Admin, "demo")?;
        let client = Home { dir: home, endpoint }.connect().await?;
        let host = self.attached(&client).await?;
        Ok((client, host))
    }

    fn endpoint(&self, name: &str) -> Option<String> {
        self.parts.iter().find(|p| p.part.name == name).map(|p| p.endpoint.clone()).filter(|e| !e.is_empty())
    }

    async fn attached(&mut self, client: &Client) -> Result<pb::Host, Refusal> {
        let deadline = Instant::now() + Duration::from_millis(ATTACH_TIMEOUT_MS);
        let wanted = layout::agents();
        loop {
            let host = hosts::ask(client).await?;
            let (agents, slots) = agents(&host);
            // The root can place only on what has been advertised to it.
            if agents >= wanted && slots >= wanted * AGENT_SLOTS && host.slots_total >= wanted * AGENT_SLOTS {
                return Ok(host);
            }
            for part in &mut self.parts {
                part.check()?;
            }
            if Instant::now() > deadline {
                let log = process::tail(&self.layout.log(BURST));
                let within = render::duration(ATTACH_TIMEOUT_MS);
                let message = format!("{agents} of {wanted} agents, {} slots are seen at the root after {within}\n{log}", host.slots_total);
                return Err(local(message).remedy(format!("look into the logs below {}", self.layout.root.display())));
            }
            sleep(Duration::from_millis(LOOK_INTERVAL_MS)).await;
        }
    }

    /// Submit the picture's tiles as an array, and follow it to its end.
    async fn render(&self, client: &Client) -> Result<(String, Ending)> {
        let program = self.program.display().to_string();
        let of = self.tasks.to_string();
        let command = [&program, "demo-tile", "--tile", "{i}", "--of", &of, "--out", OUTPUT];
        let args = SpecArgs {
            tasks: self.tasks,
            name: Some("demo".into()),
            slots: 1,
            nodes: 1,
            time: Some("5m".into()),
            outputs: vec![OUTPUT.into()],
            stage: true,
            command: command.map(str::to_owned).to_vec(),
            ..Default::default()
        };
        let submission = submit::Plan::parse(&args, false)?.prepare(self.out).await?;
        let job = submit::send(self.out, client, &submission).await?.job;
        self.say(format!("job {}: {} submitted at {}", self.out.paint(Paint::Bold, &job), render::count(self.tasks.into(), "task"), PARTS[0].name))?;
        let name = JobName::whole(&job);
        let mut progress = wait::Progress::new(self.out.job_bar(&job), &name);
        let follow = wait::follow(client, &name, |view| progress.see(view));
        let view = timeout(Duration::from_millis(JOB_TIMEOUT_MS), follow).await;
        progress.clear();
        let view =
            view.map_err(|_| Refusal::new(RefusalKind::Unavailable, format!("job {job} did not end within {}", render::duration(JOB_TIMEOUT_MS))))??;
        if render::in_phase(&view, intergrid_proto::Phase::Done) == u64::from(self.tasks) {
            return Ok((job, Ending::Well));
        }
        let why = view.counts.iter().filter_map(|c| c.reason.as_ref()).map(render::reason).collect::<Vec<_>>().join(", ");
        let message = format!("job {job}: {}; {why}", render::phases(&view.counts));
        self.out.error(&local(message).remedy(format!("look into the logs below {}", self.layout.root.display())));
        Ok((job, Ending::JobFailed))
    }

    /// Fetch the tiles, ask who computed them, and put the picture together.
    async fn bring_back(&self, client: &Client, job: &str) -> Result<BTreeMap<u32, Done>> {
        let spec = {
            let mut spec = intergrid_proto::JobSpec::new(["grid"]);
            spec.outputs = vec![OUTPUT.into()];
            spec
        };
        let outputs = fetch::plan(&spec, self.tasks, &TaskSet::range(0..self.tasks), &self.layout.outputs())?;
        fetch::fetch(self.out, client, job, &outputs).await?;
        let done = report::done(client, job, PARTS[0].name).await?;
        let tile = |o: &fetch::Output| -> Result<_, Refusal> {
            let site = done.get(&o.task).map_or("", |d| d.site.as_str());
            Ok(Some((picture::read_tile(&o.to)?, picture::tint(site))))
        };
        let tiles = outputs.iter().map(tile).collect::<Result<Vec<_>, _>>()?;
        let (width, height, pixels) = picture::assemble(&tiles);
        picture::write(&self.picture, width, height, &pixels)?;
        Ok(done)
    }

    fn tell(&self, done: &BTreeMap<u32, Done>, job: &str) -> Result<()> {
        let out = self.out;
        let took = self.began.elapsed();
        let (home, root) = (self.layout.home(), self.layout.root.display());
        if out.json {
            let endpoint = self.endpoint(PARTS[0].name).unwrap_or_default();
            return out.object(report::object(&home, &endpoint, &self.sites(), done, &self.picture, took));
        }
        report::table(done).print(out)?;
        out.line("")?;
        out.line(report::legend(out, done))?;
        out.line(format!("picture {}, {:.1} s", self.picture.display(), took.as_secs_f64()))?;
        if self.keep {
            let program = self.program.display();
            out.line("")?;
            out.line("It is left running. Try:")?;
            out.line(format!("  export INTERGRID_HOME={}", home.display()))?;
            for verb in
                ["hosts --tree", &format!("history {job}"), "run -n 3 -- hostname", "submit -n 1000 -- sleep 0.01", "wait last", "explain last"]
            {
                out.line(format!("  {program} {verb}"))?;
            }
            let part = &PARTS[2];
            let (kind, dir) = (part.kind.name(), self.layout.dir(part.name));
            let dir = dir.display();
            out.line(format!("kill any of its processes, and start it again, as {} with", part.name))?;
            out.line(format!("  {program} {kind} --config {dir}/config.toml --ready-file {dir}/ready.json 2>>{dir}/log &"))?;
            out.line("and stop it with")?;
            out.line(format!("  {program} demo --stop {root}"))?;
        }
        Ok(())
    }

    /// All parts, the provider's agents among them.
    fn sites(&self) -> Vec<Site> {
        let pid = |name: &str| self.parts.iter().find(|p| p.part.name == name).map(Running::pid);
        let own = PARTS.iter().map(|p| Site { name: p.name.into(), kind: p.kind.name(), pid: pid(p.name), parent: p.parent.map(str::to_owned) });
        let kind = Kind::Agent.name();
        let theirs = self.provided().into_iter().map(|(name, pid)| Site { name, kind, pid: Some(pid), parent: Some(BURST.into()) });
        own.chain(theirs).collect()
    }

    /// Agents that the `process` provider has started: their names and pids.
    fn provided(&self) -> Vec<(String, u32)> {
        let Ok(dirs) = std::fs::read_dir(self.layout.dir(BURST).join("state/agents")) else { return Vec::new() };
        let mut all: Vec<(String, u32)> = dirs
            .filter_map(|dir| {
                let dir = dir.ok()?;
                let ready = read_ready(&dir.path().join("ready.json"))?;
                let name = if ready.name.is_empty() { dir.file_name().to_string_lossy().into_owned() } else { ready.name };
                Some((name, ready.pid))
            })
            .collect();
        all.sort();
        all
    }

    fn procs(&self) -> Vec<Proc> {
        let pids = self.parts.iter().map(Running::pid).chain(self.provided().into_iter().map(|(_, pid)| pid));
        pids.filter_map(Proc::of).collect()
    }

    fn keep(&self) -> Result<(), Refusal> {
        let path = self.layout.record();
        let text = serde_json::to_string(&Record { procs: self.procs() }).unwrap_or_default();
        std::fs::write(&path, text).map_err(|e| local(format!("{} can't be written: {e}", path.display())))
    }

    async fn end(&mut self) {
        let spinner = self.out.spinner("stopping");
        let provided: Vec<Proc> = self.provided().into_iter().filter_map(|(_, pid)| Proc::of(pid)).collect();
        process::end(&mut self.parts, &provided, &self.layout.root).await;
        spinner.finish_and_clear();
    }
}

/// Agents that answer, and their slots.
fn agents(host: &pb::Host) -> (u64, u64) {
    let own = host.site.as_ref().is_some_and(|s| s.kind() == pb::Kind::Agent) && host.unreachable.is_empty() && host.slots_total > 0;
    let here = if own { (1, host.slots_total) } else { (0, 0) };
    host.below.iter().map(agents).fold(here, |(n, slots), (m, more)| (n + m, slots + more))
}

async fn stop_kept(dir: &Path, out: &Out) -> Result<Ending> {
    let shown = dir.display();
    let bad = |message: String| {
        Refusal::new(RefusalKind::NotFound, message).remedy("name the directory that `grid demo --keep` printed, the one that holds demo.json")
    };
    let root = dir.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => bad(format!("there is no directory {shown}")),
        _ => bad(format!("{shown} can't be read: {e}")),
    })?;
    let path = Layout { root: root.clone() }.record();
    let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => bad(format!("{shown} holds no demo that was left running")),
        _ => bad(format!("{} can't be read: {e}", path.display())),
    })?;
    let record: Record = serde_json::from_str(&text).map_err(|e| bad(format!("{} is damaged: {e}", path.display())))?;
    let mut procs = record.procs;
    // Those that were started again by hand.
    let others: Vec<Proc> = process::parts_below(&root).into_iter().filter(|p| !procs.contains(p)).collect();
    procs.extend(others);
    let running = procs.iter().filter(|p| p.lives()).count() as u64;
    if !process::end_kept(&procs, &root).await {
        return Err(Stop::Refused(Refusal::new(RefusalKind::Unavailable, "some of the demo's processes do not end").remedy("try it again")));
    }
    std::fs::remove_file(&path).map_err(|e| local(format!("{} can't be removed: {e}", path.display())))?;
    if out.json {
        out.object(serde_json::json!({"stopped": running, "dir": root}))?;
    } else {
        out.line(format!(
            "stopped {}; the files are left in {}",
            if running == 1 { "1 process".into() } else { format!("{running} processes") },
            root.display()
        ))?;
    }
    Ok(Ending::Well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_agents_that_answer_count() {
        let host = |kind: pb::Kind, slots_total, unreachable: &str, below| pb::Host {
            site: Some(pb::Hop { kind: kind.into(), ..Default::default() }),
            slots_total,
            unreachable: unreachable.into(),
            below,
            ..Default::default()
        };
        let below = vec![host(pb::Kind::Agent, 2, "", vec![]), host(pb::Kind::Agent, 2, "gone", vec![]), host(pb::Kind::Agent, 0, "", vec![])];
        let gateway = host(pb::Kind::Gateway, 2, "", below);
        assert_eq!((1, 2), agents(&host(pb::Kind::Broker, 2, "", vec![gateway])));
        assert_eq!(5, layout::agents());
    }
}
