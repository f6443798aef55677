//! The verbs, asked over real mTLS of a service that answers from a script.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Parser;
use intergrid_proto::{BlobHash, JobSpec, Phase, RefusalKind, pb};

use super::fake::{Fake, out};
use super::{fetch, history, hosts, jobs, logs, run, submit, wait};
use crate::args::{Cli, Command, LogsArgs};
use crate::names::JobName;
use crate::stop::{Ending, Stop};
use crate::verbs::Context;

fn kind<T: std::fmt::Debug>(result: Result<T, Stop>) -> RefusalKind {
    match result {
        Err(Stop::Refused(r)) => r.kind,
        other => panic!("{other:?}"),
    }
}

async fn prepared(words: &[&str]) -> submit::Submission {
    let Command::Submit(args) = Cli::try_parse_from(["grid", "submit"].iter().chain(words)).unwrap().command else { panic!("not submit") };
    submit::Plan::parse(&args.spec, args.hold).unwrap().prepare(&out()).await.unwrap()
}

fn script(dir: &Path) -> String {
    let path = dir.join("prog");
    std::fs::write(&path, vec![b'#'; 700_000]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn a_program_is_staged_once_and_the_key_is_kept_through_repeats() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    let prog = script(fake.dir.path());
    let empty = fake.dir.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    let input = format!("{}=nothing", empty.display());
    let job = prepared(&["-n", "3", "--in", &input, "--stage", "--", &prog, "{i}"]).await;
    fake.state().submits_unavailable = 2;
    assert_eq!(Ending::Well, submit::run(&context, job.clone(), false).await.unwrap());
    submit::run(&context, job.clone(), false).await.unwrap();
    let state = fake.state();
    assert_eq!((2, 4), (state.puts, state.submits.len()), "each content once; two refusals, the answer, and the second time");
    assert!(state.submits.iter().all(|s| s == &state.submits[0]) && state.submits[0].key == job.key);
    let spec = JobSpec::decode(&state.submits[0].spec).unwrap();
    assert_eq!(BlobHash::of(&state.submits[0].spec).0[..], state.submits[0].spec_hash[..]);
    for file in spec.blobs() {
        assert_eq!(file.size, state.blobs[&file.hash.0.to_vec()].len() as u64, "{}", file.name);
    }
}

#[tokio::test]
async fn a_submission_that_stays_unanswered_names_its_key() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    fake.state().submits_unavailable = u32::MAX;
    let job = prepared(&["--key", "mine", "--", "hostname"]).await;
    let Err(Stop::Refused(refused)) = submit::run(&context, job, false).await else { panic!("taken") };
    assert_eq!((RefusalKind::Unavailable, "it may have been taken; repeat safely with --key mine"), (refused.kind, refused.remedy.as_str()));
}

#[tokio::test]
async fn waiting_goes_on_through_broken_streams_to_the_end() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    submit::run(&context, prepared(&["--", "hostname"]).await, false).await.unwrap();
    let wish = || wait::Wish::parse(&["last".into(), "7k".into()], None).unwrap();
    fake.state().watches_broken = 2;
    assert_eq!(Ending::Well, wait::run(&context, wish()).await.unwrap());
    fake.state().phase = Some(Phase::Failed);
    assert_eq!(Ending::JobFailed, wait::run(&context, wish()).await.unwrap());
    fake.state().phase = Some(Phase::Cancelled);
    assert_eq!(Ending::JobFailed, wait::run(&context, wish()).await.unwrap());
    fake.state().watch_hangs = true;
    assert_eq!(Ending::TimedOut, wait::run(&context, wait::Wish::parse(&["7k".into()], Some("200ms")).unwrap()).await.unwrap());
}

#[tokio::test]
async fn outputs_come_back_verified_or_not_at_all() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    submit::run(&context, prepared(&["-n", "2", "--out", "t-{i}", "--out", "log", "--", "x"]).await, false).await.unwrap();
    let put = |task, name: &str, content: &[u8], hash| fake.state().outputs.insert((task, format!("out/{name}")), (hash, content.to_vec()));
    for (task, name, content) in [(0, "t-0", "zero"), (0, "log", ""), (1, "t-1", "one, and more"), (1, "log", "l")] {
        put(task, name, content.as_bytes(), BlobHash::of(content.as_bytes()));
    }
    let dir = fake.dir.path().join("got");
    let wish = || fetch::Wish::parse(&crate::args::FetchArgs { job: "last".into(), dir: dir.clone(), task: None }).unwrap();
    assert_eq!(Ending::Well, fetch::run(&context, wish()).await.unwrap());
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(["zero", "", "one, and more", "l"].map(str::to_owned), ["t-0", "0/log", "t-1", "1/log"].map(read));
    std::fs::remove_dir_all(&dir).unwrap();
    put(1, "t-1", b"one, and mord", BlobHash::of(b"one, and more"));
    let Err(Stop::Refused(refused)) = fetch::run(&context, wish()).await else { panic!("taken") };
    assert!(refused.message.contains("7k2m9p[1] t-1") && refused.message.contains("not what its hash says"), "{refused}");
    assert!(std::fs::read_dir(&dir).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().contains("t-1")), "no part of it is left");
}

#[tokio::test]
async fn logs_are_of_tasks_that_have_ended() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    submit::run(&context, prepared(&["-n", "4", "--", "x"]).await, false).await.unwrap();
    let logs = async |job: &str, stderr, follow| logs::run(&context, logs::Wish::parse(&LogsArgs { job: job.into(), stderr, follow }).unwrap()).await;
    logs("7k", false, false).await.unwrap();
    fake.state().outputs.insert((3, "stderr".into()), (BlobHash::of(b"x"), b"x".to_vec()));
    logs("7k[1-3]", true, false).await.unwrap();
    fake.state().phase = Some(Phase::Running);
    let Err(Stop::Refused(refused)) = logs("7k[1-3]", true, false).await else { panic!("found") };
    assert!(refused.kind == RefusalKind::NotFound && refused.message.contains("of 3 tasks") && refused.remedy.contains("logs -f"), "{refused}");
    fake.state().phase = Some(Phase::Done);
    logs("7k[1-3]", true, true).await.unwrap();
}

#[tokio::test]
async fn run_ends_as_its_payload_did() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    fake.state().outputs.insert((0, "stdout".into()), (BlobHash::of(b"well\n"), b"well\n".to_vec()));
    assert_eq!(Ending::Payload(0), run::run(&context, prepared(&["--", "x"]).await).await.unwrap());
    fake.state().phase = Some(Phase::Failed);
    assert_eq!(Ending::Payload(125), run::run(&context, prepared(&["--", "x"]).await).await.unwrap(), "exit 0, and failed all the same");
    fake.state().exit = 3;
    assert_eq!(Ending::Payload(3), run::run(&context, prepared(&["--", "x"]).await).await.unwrap());
}

#[tokio::test]
async fn wishes_name_their_tasks() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    submit::run(&context, prepared(&["--", "x"]).await, false).await.unwrap();
    let connect = async || Ok(Context { out: &out, client: fake.home.connect().await?.into() });
    jobs::set_want(connect, &["7k[2-4]".into(), "last".into()], jobs::Wish::Cancel).await.unwrap();
    let wants = fake.state().wants.clone();
    assert_eq!(vec![pb::WantValue::WantCancel as i32; 2], wants.iter().map(|w| w.value).collect::<Vec<_>>());
    assert_eq!((Some(vec![2, 3]), None), (wants[0].tasks.clone().map(|t| t.runs), wants[1].tasks.clone()));
}

#[tokio::test]
async fn questions_are_answered() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    let job = JobName::parse("7k").unwrap();
    assert_eq!(RefusalKind::NotFound, kind(jobs::show(&context, &out, &job).await));
    submit::run(&context, prepared(&["--", "x"]).await, false).await.unwrap();
    assert!(!jobs::show(&context, &out, &job).await.unwrap(), "this service tells no end");
    assert_eq!(Ending::Well, jobs::ls(&context, &out, 5).await.unwrap());
    assert_eq!(Ending::Well, history::run(&context, &job).await.unwrap());
    assert_eq!(2, hosts::ask(&context.client).await.unwrap().slots_total);
    assert_eq!(RefusalKind::Invalid, kind(jobs::ls(&context, &out, 0).await));
}

#[tokio::test]
async fn an_endpoint_where_nobody_answers_is_unreachable_at_once() {
    let fake = Fake::start().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = crate::client::Home { endpoint: port.to_string(), ..fake.home.clone() };
    let began = std::time::Instant::now();
    let refused = home.connect().await.err().unwrap();
    assert_eq!((RefusalKind::Unavailable, 7), (refused.kind, crate::stop::code(refused.kind)));
    assert!(began.elapsed().as_secs() < 2);
}

#[tokio::test]
async fn what_may_cost_money_is_not_sent_before_somebody_agrees() {
    let (fake, out) = (Fake::start().await, out());
    let context = fake.context(&out).await;
    let share = |price, attempt_micro| pb::QuotedShare {
        key: "burst/small".into(),
        price_micro_per_slot_hour: price,
        currency: "EUR".into(),
        slots: 1,
        attempt_micro,
        ..Default::default()
    };
    let agreed = async |words: &[&str], yes| super::quote::agreed(&context, &prepared(words).await, yes).await;
    fake.state().shares = vec![share(0, Some(0))];
    agreed(&["-t", "1h", "--", "x"], false).await.unwrap();
    fake.state().shares = vec![share(0, Some(0)), share(100_000, Some(100_000))];
    let Err(Stop::Refused(refused)) = agreed(&["-n", "3", "-t", "1h", "--no-requeue", "--", "x"], false).await else { panic!("sent") };
    assert!(refused.message.ends_with("in the worst case: 0.30 EUR") && refused.remedy.contains("--yes"), "{refused}");
    agreed(&["-t", "1h", "--", "x"], true).await.unwrap();
    agreed(&["--max-cost", "0EUR", "--", "x"], false).await.unwrap();
    agreed(&["--max-cost", "0.05EUR", "-t", "1h", "--", "x"], false).await.unwrap();
}
