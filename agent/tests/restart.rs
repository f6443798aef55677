//! Agents and gateways that die and come back: nothing runs twice, nothing is lost in silence.

mod pool;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use intergrid_proto::link::{Attempts, Down};
use intergrid_proto::{Exit, Phase, ReasonKind, TaskSet};
use pool::{Agent, Gateway, lives, pid_in, sh};

fn stderr_of(config: &Path) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_grid-agent")).arg("--config").arg(config).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_comes_back_to_its_processes() {
    let g = Gateway::new().await;
    let config = g.config("slots = 2");
    let mut agent = Agent::start(&config, false);
    g.attached().await;
    let (note, stop) = (g.dir.path().join("pid"), g.dir.path().join("stop"));
    g.place(1, 0..1, &sh(&format!("echo $$ > {}; while ! test -e {}; do sleep 0.05; done", note.display(), stop.display())));
    g.place(2, 0..1, &sh("sleep 1000"));
    g.until("both run", |k| k.hinted(1, Phase::Running) && k.hinted(2, Phase::Running)).await;
    // One more, killed before its pid was written down: found by its directory.
    let pid = pid_in(&note).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    agent.kill();
    assert!(lives(pid));
    let _agent = Agent::start(&config, false);
    g.until("it is back", |k| k.link_is_up() && k.hints.iter().filter(|h| h.of.number == 1).count() >= 2).await;
    assert!(lives(pid));
    assert_eq!(0, g.lock().shares[0].slots_free, "they count against the slots");
    g.place(3, 0..1, &sh("true"));
    // Killable.
    g.cancel(2, 0..1);
    let e = g.end(2, 0).await;
    assert_eq!((Phase::Cancelled, Exit::Unknown, false), (e.phase, e.exit_at(0), e.lost));
    std::fs::write(&stop, "").unwrap();
    let e = g.end(1, 0).await;
    assert_eq!((Phase::Failed, Exit::Unknown, true, Some(ReasonKind::ExitUnknown)), (e.phase, e.exit_at(0), e.lost, e.reason.map(|r| r.kind)));
}

/// Also where its process has another environment by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_stays_its_tasks_over_a_restart_of_the_agent() {
    let g = Gateway::new().await;
    let config = g.config("slots = 4\ngpus = 2");
    let mut agent = Agent::start(&config, false);
    g.attached().await;
    let stop = g.dir.path().join("stop");
    let with = |gpus: u32, script: &str| {
        let mut spec = sh(script);
        spec.shape.gpus = gpus;
        spec
    };
    let seen = "echo $CUDA_VISIBLE_DEVICES,$ROCR_VISIBLE_DEVICES";
    g.place(1, 0..1, &with(1, &format!("{seen}; exec env -i sh -c 'while ! test -e {}; do sleep 0.05; done'", stop.display())));
    g.until("it runs", |k| k.hinted(1, Phase::Running)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    agent.kill();
    let _agent = Agent::start(&config, false);
    g.until("it is back", |k| k.link_is_up() && k.hints.iter().filter(|h| h.of.number == 1).count() >= 2).await;
    for number in [2, 3] {
        g.place(number, 0..1, &with(1, seen));
        assert_eq!(Phase::Done, g.end(number, 0).await.phase);
        assert_eq!("1,1\n", g.output(number, "stdout"), "the first has GPU 0");
    }
    std::fs::write(&stop, "").unwrap();
    g.end(1, 0).await;
    g.place(4, 0..1, &with(2, seen));
    assert_eq!(Phase::Done, g.end(4, 0).await.phase);
    assert!(["0,1,0,1\n", "1,0,1,0\n"].contains(&&*g.output(4, "stdout")), "{}", g.output(4, "stdout"));
    assert_eq!(0, std::fs::read_dir(g.state().join("gpus")).unwrap().count(), "nothing is noted of what is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_nobody_is_left_for_switches_itself_off() {
    let g = Gateway::new().await;
    let off = g.dir.path().join("off");
    let on_alone = |script: &str| format!("slots = 1\nalone_max = \"300ms\"\non_alone = [\"/bin/sh\", \"-c\", \"{script}\"]");
    let mut agent = g.agent(&on_alone(&format!("echo $PPID > {}", off.display())));
    g.attached().await;
    g.place(1, 0..1, &sh("sleep 3"));
    g.until("it runs", |k| k.hinted(1, Phase::Running)).await;
    g.cut(true);
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    assert!(!off.exists(), "something runs");
    assert_eq!((Some(0), agent.pid()), (agent.wait(), pid_in(&off).await), "once, by the agent");
    // Where that fails, it says so.
    let (code, said) = stderr_of(&g.config(&on_alone("exit 3")));
    assert!(code != Some(0) && said.contains("on_alone: /bin/sh: exit status: 3"), "{code:?} {said}");
}

/// A daemon that a task has started is not the task, though it has its environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_left_its_task_is_not_taken_for_it() {
    let g = Gateway::new().await;
    let config = g.config("slots = 1");
    let mut agent = Agent::start(&config, false);
    g.attached().await;
    let (note, away) = (g.dir.path().join("pid"), g.dir.path().join("away"));
    let daemon = format!("setsid sh -c 'echo $$ > {}; exec sleep 1000' &", away.display());
    g.place(1, 0..1, &sh(&format!("{daemon} echo $$ > {}; exec sleep 1000", note.display())));
    let (pid, daemon) = (pid_in(&note).await, pid_in(&away).await);
    agent.kill();
    let _agent = Agent::start(&config, false);
    g.until("it is back and says so", |k| k.hinted(1, Phase::Running)).await;
    g.cancel(1, 0..1);
    assert_eq!(Phase::Cancelled, g.end(1, 0).await.phase);
    assert_eq!((false, true), (lives(pid), lives(daemon)), "the task is stopped, and its daemon is nobody's");
    rustix::process::kill_process(rustix::process::Pid::from_raw(daemon).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_pid_was_not_written_down_is_found() {
    let g = Gateway::new().await;
    let config = g.config("slots = 1");
    let mut agent = Agent::start(&config, false);
    g.attached().await;
    let note = g.dir.path().join("pid");
    g.place(1, 0..1, &sh(&format!("echo $$ > {}; exec sleep 1000", note.display())));
    let pid = pid_in(&note).await;
    agent.kill();
    let _agent = Agent::start(&config, false);
    g.until("it is back and says so", |k| k.hinted(1, Phase::Running)).await;
    assert!(lives(pid));
    g.send(Down::Stale(vec![Attempts { number: 1, job: 1, tasks: TaskSet::one(0) }]));
    let e = g.end(1, 0).await;
    assert_eq!((Phase::Cancelled, Some(ReasonKind::Fenced)), (e.phase, e.reason.map(|r| r.kind)));
    assert!(!lives(pid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_middle_start_nothing_twice_and_lose_nothing() {
    let g = Gateway::new().await;
    let config = g.config("slots = 4");
    let log = g.dir.path().join("log");
    let spec = sh(&format!("echo $GRID_TASK_ID >> {}; sleep 0.01", log.display()));
    let mut agent = Agent::start(&config, false);
    let (mut number, mut next, mut kills, mut again) = (0, 0, 0, 0);
    let end = std::time::Instant::now() + 2 * pool::PATIENCE;
    while ended(&g.lock()) < 500 {
        assert!(std::time::Instant::now() < end, "{} of 500 have ended", ended(&g.lock()));
        g.attached().await;
        // As much as the window takes; what an agent has given back, because its predecessor's window was wider, goes first.
        let range = {
            let k = g.lock();
            let back = k.returned();
            let open = u64::from(next) - ended(&k) - (back.len() - again) as u64;
            let room = k.shares.first().map_or(0, |s| s.window.saturating_sub(open)) as u32;
            match back.get(again) {
                Some(task) if room > 0 => *task..task + 1,
                _ => next..(next + room).min(500),
            }
        };
        if range.is_empty() || !g.lock().link_is_up() {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        }
        number += 1;
        if range.start < next {
            again += 1
        } else {
            next = range.end
        }
        g.place(number, range.clone(), &spec);
        g.until("the placement is known", |k| k.accepted(number) || k.gave_back(number)).await;
        if kills < 12 && ended(&g.lock()) > 40 * kills {
            kills += 1;
            agent.kill();
            g.cut(false);
            agent = Agent::start(&config, false);
            g.attached().await;
            // What it had not accepted is sent again, with the same number.
            let known = |k: &pool::Known| k.accepted(number) || k.gave_back(number);
            if !known(&g.lock()) {
                g.place(number, range, &spec);
            }
            g.until("the last placement is known", known).await;
        }
    }
    let mut starts: BTreeMap<u32, u32> = BTreeMap::new();
    std::fs::read_to_string(&log).unwrap().lines().for_each(|l| *starts.entry(l.parse().unwrap()).or_default() += 1);
    assert!(starts.values().all(|n| *n == 1), "started twice: {:?}", starts.iter().filter(|(_, n)| **n > 1).collect::<Vec<_>>());
    let k = g.lock();
    let (done, lost) = (k.ended(Phase::Done), k.ended(Phase::Failed));
    assert_eq!((500, 0), (done + lost, k.ended(Phase::Cancelled)));
    assert!(lost <= 6 * kills, "{lost} lost by {kills} kills of 4 slots");
    eprintln!("500 tasks, {kills} kills: {done} done, {lost} with exit unknown, {} started", starts.len());
}

fn ended(k: &pool::Known) -> u64 {
    k.ended(Phase::Done) + k.ended(Phase::Failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_gateway_it_runs_on_and_tells_later() {
    let mut g = Gateway::new().await;
    let _agent = g.agent("slots = 4");
    g.attached().await;
    let go = g.dir.path().join("go");
    g.place(1, 0..4, &sh(&format!("while ! test -e {}; do sleep 0.02; done; echo out", go.display())));
    g.until("it runs", |k| k.hinted(1, Phase::Running)).await;
    g.cut(true);
    std::fs::write(&go, "").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    g.up().await;
    for t in 0..4 {
        assert_eq!(Phase::Done, g.end(1, t).await.phase);
    }
    assert_eq!("out\n", g.output(1, "stdout"));
    // A gateway that has lost its store gets the full state.
    g.place(2, 0..1, &sh("sleep 1000"));
    g.until("it runs", |k| k.hinted(2, Phase::Running)).await;
    (g.lock().sequence, g.lock().incarnation) = (0, 1);
    g.lock().events.clear();
    g.cut(false);
    g.until("the full state is told", |k| !k.resyncs.is_empty()).await;
    let k = g.lock();
    assert!(k.resyncs[0].ranges.iter().any(|r| r.of.number == 2 && r.phase == Phase::Running));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_wait_for_the_next_agent() {
    let mut g = Gateway::new().await;
    let config = g.config("slots = 1");
    let mut agent = Agent::start(&config, false);
    g.attached().await;
    let go = g.dir.path().join("go");
    g.place(1, 0..1, &sh(&format!("while ! test -e {}; do sleep 0.02; done; echo out", go.display())));
    g.until("it runs", |k| k.hinted(1, Phase::Running)).await;
    g.cut(true);
    std::fs::write(&go, "").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    agent.kill();
    let _agent = Agent::start(&config, false);
    g.up().await;
    let e = g.end(1, 0).await;
    assert_eq!((Phase::Done, "out\n"), (e.phase, g.output(1, "stdout").as_str()), "its exit record was durable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_leaves_tasks_and_a_lost_parent_does_not() {
    let g = Gateway::new().await;
    let config = g.config("slots = 2");
    let mut agent = Agent::start(&config, false);
    g.attached().await;
    let note = g.dir.path().join("pid");
    g.place(1, 0..1, &sh(&format!("echo $$ > {}; exec sleep 1000", note.display())));
    let pid = pid_in(&note).await;
    assert_eq!(Some(0), agent.terminate());
    assert!(lives(pid));
    let mut agent = Agent::start(&config, true);
    g.until("it is back", |k| k.hinted(1, Phase::Running)).await;
    std::fs::remove_file(&note).unwrap();
    g.place(2, 0..1, &sh(&format!("trap '' TERM; sleep 1000 & echo $! > {}; wait", note.display())));
    let second = pid_in(&note).await;
    assert_eq!(Some(0), agent.close_stdin());
    assert!(!lives(pid) && !lives(second));
    // The end was seen and written down: it is told when somebody asks again.
    let _agent = Agent::start(&config, false);
    assert_eq!(Exit::Signal(9), g.end(2, 0).await.exit_at(0));
    assert_eq!(Exit::Unknown, g.end(1, 0).await.exit_at(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_an_agent_says_why() {
    let g = Gateway::new().await;
    let config = g.config("");
    let mut agent = Agent::start(&config, false);
    g.attached().await;
    let (code, text) = stderr_of(&config);
    assert!(code == Some(7) && text.contains("in use by another agent"), "{text}");
    agent.kill();
    // The same spool, another gateway.
    let other = Gateway::new().await;
    let foreign = other.config("").with_file_name("foreign.toml");
    let text = std::fs::read_to_string(other.dir.path().join("agent.toml")).unwrap();
    std::fs::write(&foreign, text.replace("\"state\"", &format!("{:?}", g.state()))).unwrap();
    let (code, text) = stderr_of(&foreign);
    assert!(code == Some(1) && text.contains("belongs to gateway") && text.contains("remove the state directory"), "{text}");
    // Not its certificate.
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap().replace("name = \"a1\"", "name = \"a2\"")).unwrap();
    let (code, text) = stderr_of(&config);
    assert!(code == Some(1) && text.contains("not of agent \"a2\""), "{text}");
    let check = |config: &Path| Command::new(env!("CARGO_BIN_EXE_grid-agent")).arg("--config").arg(config).arg("--check-config").output().unwrap();
    let other = check(&config);
    assert!(other.status.code() == Some(1) && String::from_utf8_lossy(&other.stderr).contains("not of agent \"a2\""), "{other:?}");
    // Nor anybody's: no restart helps, and so says the code.
    let good = std::fs::read_to_string(&config).unwrap().replace("name = \"a2\"", "name = \"a1\"");
    let none = config.with_file_name("none.toml");
    let identity = good.lines().find(|l| l.starts_with("identity")).unwrap();
    std::fs::write(&none, good.replace(identity, "identity = \"nowhere\"")).unwrap();
    std::fs::write(&config, good).unwrap();
    let (code, text) = stderr_of(&none);
    assert!(code == Some(2) && text.contains("nowhere/"), "{text}");
    let (bad, well) = (check(&none), check(&config));
    assert!(bad.status.code() == Some(2) && String::from_utf8_lossy(&bad.stderr).contains("nowhere/"), "{bad:?}");
    assert!(well.status.success() && String::from_utf8_lossy(&well.stdout).ends_with("agent.toml is good\n"), "{well:?}");
    std::fs::write(&config, "nam = 1").unwrap();
    let (code, text) = stderr_of(&config);
    assert!(code == Some(2) && text.contains("agent.toml:1:1: "), "{text}");
    let out = Command::new(env!("CARGO_BIN_EXE_grid-agent")).arg("--confg").output().unwrap();
    assert!(out.status.code() == Some(2) && String::from_utf8_lossy(&out.stderr).contains("usage:"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_executed_where_it_is_told_so() {
    let g = Gateway::new().await;
    let ready = g.dir.path().join("ready");
    let config = g.config("slots = 64\nexecutor = \"null\"");
    let mut command = Command::new(env!("CARGO_BIN_EXE_grid-agent"));
    let mut child = command.arg("--config").arg(config).arg("--ready-file").arg(&ready).spawn().unwrap();
    g.attached().await;
    g.place(1, 0..64, &sh("echo never"));
    g.until("all have ended", |k| k.ended(Phase::Done) == 64).await;
    assert_eq!(0, g.lock().calls);
    let text = std::fs::read_to_string(&ready).unwrap();
    assert!(text.contains(&format!("\"pid\":{}", child.id())) && text.contains("\"name\":\"a1\""), "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
}
