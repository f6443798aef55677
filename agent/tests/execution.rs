//! What a task sees, how it ends, and what is left of it: a real agent, real processes, real mTLS.

mod pool;

use std::time::{Duration, Instant};

use intergrid_proto::link::EventKind;
use intergrid_proto::spec::File;
use intergrid_proto::{Exit, Phase, ReasonKind};
use pool::{Gateway, lives, pid_in, sh};

fn kind(e: &intergrid_proto::link::Ended) -> Option<ReasonKind> {
    e.reason.as_ref().map(|r| r.kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_signals_and_programs_that_are_not() {
    let g = Gateway::new().await;
    let _agent = g.agent("slots = 2");
    g.attached().await;
    let plain = intergrid_proto::JobSpec::new;
    let cases = [
        (plain(["true"]), Phase::Done, Exit::Code(0), None),
        (sh("exit 3"), Phase::Failed, Exit::Code(3), Some(ReasonKind::ExitNonZero)),
        (sh("kill -11 $$"), Phase::Failed, Exit::Signal(11), Some(ReasonKind::ExitSignal)),
        (plain(["no-such-program-here"]), Phase::Failed, Exit::Code(127), Some(ReasonKind::NoSuchProgram)),
        (plain(["./absent"]), Phase::Failed, Exit::Code(127), Some(ReasonKind::NoSuchProgram)),
        (plain(["/etc/hostname"]), Phase::Failed, Exit::Code(126), Some(ReasonKind::NotExecutable)),
        (plain(["/tmp"]), Phase::Failed, Exit::Code(126), Some(ReasonKind::NotExecutable)),
    ];
    for (i, (spec, phase, exit, reason)) in cases.into_iter().enumerate() {
        let e = g.run(i as u64 + 1, &spec).await;
        assert_eq!((phase, exit, reason), (e.phase, e.exit_at(0), kind(&e)), "{:?}: {:?}", spec.argv, e.reason);
        assert_eq!((1, false), (e.attempts, e.lost));
    }
    assert_eq!(0, g.lock().calls, "tasks without output cost no call");
    assert!(g.lock().events.iter().filter(|e| e.what == EventKind::Accepted).count() == 7);
    // Directories go once the ends are durable.
    let tasks = g.state().join("tasks");
    let end = Instant::now() + pool::PATIENCE;
    while std::fs::read_dir(&tasks).unwrap().flatten().any(|e| !e.file_name().to_string_lossy().starts_with("spare")) {
        assert!(Instant::now() < end, "directories are left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_environment_in_a_directory_of_its_own() {
    let g = Gateway::new().await;
    let _agent = g.agent("slots = 2");
    g.attached().await;
    let mut spec = sh("env | grep -v ^_= | sort; pwd; echo \"$0\" >&2; ls -A; readlink /proc/self/fd/0");
    spec.argv.push("arg-{i}".into());
    spec.env = vec![("TILE".into(), "t{i}".into())];
    let e = g.run(1, &spec).await;
    assert_eq!(Phase::Done, e.phase);
    let dir = g.state().join("tasks/1.0");
    let dir = dir.display();
    let expected = format!(
        "GRID_ATTEMPT=1\nGRID_GPUS=0\nGRID_JOB_ID=abc123\nGRID_NODES=1\nGRID_SITE=campus\nGRID_SLOTS=1\nGRID_TASK_COUNT=1\nGRID_TASK_DIR={dir}\nGRID_TASK_ID=0\nHOME={dir}\n\
         LANG=C.UTF-8\nPATH=/usr/local/bin:/usr/bin:/bin\nPWD={dir}\nTILE=t0\nTMPDIR={dir}\n{dir}\n/dev/null\n"
    );
    assert_eq!(expected, g.output(1, "stdout"));
    assert_eq!("arg-0\n", g.output(1, "stderr"));
    assert!(e.wall_ms[0] < 20_000 && !e.cpu_us.is_empty() && e.route[0].name == "a1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_staged_and_outputs_come_back() {
    let g = Gateway::new().await;
    let _agent = g.agent("slots = 4");
    g.attached().await;
    let program = b"#!/bin/sh\ncat data > \"result-$1\"; stat -c %a tool data; echo tampered > data\n";
    let data = vec![b'd'; 300_000];
    let mut spec = intergrid_proto::JobSpec::new(["ignored", "{i}"]);
    let file = |name: &str, content: &[u8]| File { name: name.into(), hash: g.put(content), size: content.len() as u64, executable: false };
    spec.executable = Some(file("tool", program));
    spec.inputs = vec![file("data", &data)];
    spec.outputs = vec!["result-{i}".into()];
    g.place(1, 0..4, &spec);
    for t in 0..4 {
        let e = g.end(1, t).await;
        assert_eq!(Phase::Done, e.phase, "{:?}", e.reason);
        let k = g.lock();
        assert_eq!(Some(&data), k.outputs.get(&(1, t, format!("out/result-{t}"))), "an input is a task's own copy");
        assert_eq!(Some(&b"755\n644\n".to_vec()), k.outputs.get(&(1, t, "stdout".into())));
    }
    assert_eq!(3, g.lock().calls, "two fetches, one stream of outputs");

    spec.outputs = vec!["never-made".into()];
    let e = g.run(2, &spec).await;
    assert_eq!((Phase::Failed, Some(ReasonKind::StageOutFailed)), (e.phase, kind(&e)));
    assert!(e.reason.unwrap().text.contains("never-made"));

    spec.inputs = vec![File { hash: intergrid_proto::BlobHash::of(b"nowhere"), ..file("data", b"") }];
    let e = g.run(3, &spec).await;
    assert_eq!((Phase::Failed, Some(ReasonKind::StageInFailed), Exit::NotStarted, 0), (e.phase, kind(&e), e.exit_at(0), e.attempts));
    let wrong = file("data", b"right");
    g.lock().blobs.insert(wrong.hash, b"wrong".to_vec());
    spec.inputs = vec![wrong];
    assert_eq!(Some(ReasonKind::StageInFailed), kind(&g.run(4, &spec).await));

    g.lock().refuse = "disk full".into();
    let e = g.run(5, &sh("echo x")).await;
    assert_eq!((Phase::Failed, Some(ReasonKind::StageOutFailed)), (e.phase, kind(&e)));
    assert!(e.reason.unwrap().text.contains("disk full"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_and_memory_are_limited() {
    let g = Gateway::new().await;
    let _agent = g.agent("slots = 2\nmemory = \"2G\"");
    g.attached().await;
    let mut slow = sh("sleep 60 & wait");
    slow.time_limit_ms = Some(300);
    let e = g.run(1, &slow).await;
    assert_eq!((Some(ReasonKind::TimeLimit), Exit::Signal(15)), (kind(&e), e.exit_at(0)));
    assert!((300..5_000).contains(&e.wall_ms[0]), "{:?}", e.wall_ms);

    let mut greedy = sh("x=$(head -c 200000000 /dev/zero | tr '\\0' x); sleep 60");
    greedy.shape.memory_bytes = 50 << 20;
    let e = g.run(2, &greedy).await;
    assert_eq!((Some(ReasonKind::MemoryLimit), Exit::Signal(9), "sampled"), (kind(&e), e.exit_at(0), e.measured.as_str()));
    assert!(e.peak_bytes[0] > 50 << 20, "{:?}", e.peak_bytes);

    // Sampled at least once, also on a busy machine.
    let mut modest = sh("sleep 3");
    modest.shape.memory_bytes = 50 << 20;
    let e = g.run(3, &modest).await;
    assert!(e.phase == Phase::Done && (100_000..50 << 20).contains(&e.peak_bytes[0]), "{e:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_leaves_behind_is_ended_before_its_end_is_told() {
    let g = Gateway::new().await;
    let _agent = g.agent("slots = 2");
    g.attached().await;
    let note = g.dir.path().join("pid");
    // Beyond the reach of SIGTERM, and still holding stdout.
    let script = format!("trap '' TERM; sleep 1000 & echo $! > {}; exit 0", note.display());
    let e = g.run(1, &sh(&script)).await;
    assert_eq!(Phase::Done, e.phase);
    assert!(!lives(pid_in(&note).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_ends_the_group_even_one_that_ignores_it() {
    let g = Gateway::new().await;
    let _agent = g.agent("slots = 2");
    g.attached().await;
    let note = g.dir.path().join("pid");
    g.place(1, 0..1, &sh(&format!("trap '' TERM; echo $$ > {}; while :; do sleep 1000; done", note.display())));
    let pid = pid_in(&note).await;
    let began = Instant::now();
    g.cancel(1, 0..1);
    let e = g.end(1, 0).await;
    assert_eq!((Phase::Cancelled, Exit::Signal(9), Some(ReasonKind::CancelledByUser)), (e.phase, e.exit_at(0), kind(&e)));
    assert!(began.elapsed() >= Duration::from_secs(4) && !lives(pid));
    // One that listens ends at once.
    g.place(2, 0..1, &sh("sleep 1000"));
    g.until("it runs", |k| k.hinted(2, Phase::Running)).await;
    g.cancel(2, 0..1);
    assert_eq!(Exit::Signal(15), g.end(2, 0).await.exit_at(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_and_ends_are_seen_where_the_parent_ignores_them() {
    let g = Gateway::new().await;
    // What is ignored stays so over exec: a shell is the simplest way to have SIGCHLD ignored.
    let mut agent = std::process::Command::new("sh");
    agent.args(["-c", "trap '' CHLD; exec \"$0\" --config \"$1\" --die-with-parent"]).arg(pool::program()).arg(g.config("slots = 24"));
    let mut agent = agent.stdin(std::process::Stdio::piped()).spawn().unwrap();
    g.attached().await;
    let began = Instant::now();
    g.place(1, 0..24, &sh("sleep 0.5; exit $((GRID_TASK_ID % 2))"));
    for t in 0..24 {
        assert_eq!(Exit::Code((t % 2) as u8), g.end(1, t).await.exit_at(0));
    }
    assert!(began.elapsed() < Duration::from_secs(8), "they run side by side: {:?}", began.elapsed());
    agent.stdin.take();
    agent.wait().unwrap();
}
