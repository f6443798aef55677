//! The laws, one function each.

use futures::StreamExt;
use futures::future::BoxFuture;
use intergrid_proto::link::{Down, Ended, Kind, WantValue};
use intergrid_proto::{BlobHash, Exit, JobSpec, Phase, ReasonKind, SiteId, TaskSet};

use super::array::array;
use super::{Law, Options, Parent};

macro_rules! laws {
    ($($name:ident: $said:literal;)*) => {
        pub(super) const ALL: &[(&str, Law)] = &[$(($said, $name as Law),)*];
    };
}

laws! {
    attaches: "a child says hello and offers a share";
    succeeds: "a task whose program exits with 0 is accepted, then done";
    fails: "a task whose program exits with 3 has failed with exit 3";
    missing_program: "a program that does not exist is exit 127";
    sent_twice: "a placement that is sent again changes nothing";
    cancel_overtakes: "a cancel that comes before its placement prevents any start";
    cancel_running: "a cancel stops what runs";
    held_and_returned: "what is held does not start, and is given back when asked for";
    held_and_released: "what is held starts when it is wished to run";
    too_large: "what can never fit is returned, not queued";
    beyond_credit: "what is beyond the credit is returned or ends: none is lost";
    own_route: "a placement that has passed a child already is returned by it";
    fenced: "an attempt that no longer counts stops";
    acknowledged: "what was acknowledged does not come again";
    old_cursor: "what was not committed comes again";
    full_state: "a full state names what runs";
    array: "each task of interleaved arrays ends exactly once";
    asked: "a child answers for itself and all below";
    output: "what a task wrote can be read";
}

pub(super) type Kept<'a> = BoxFuture<'a, Result<(), String>>;

pub(super) const TRUE: [&str; 1] = ["/bin/true"];

pub(super) fn spec(argv: impl IntoIterator<Item = &'static str>) -> JobSpec {
    let mut spec = JobSpec::new(argv);
    spec.name = "law".into();
    spec
}

pub(super) fn sh(script: &'static str) -> JobSpec {
    spec(["/bin/sh", "-c", script])
}

pub(super) fn check(good: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if good { Ok(()) } else { Err(what()) }
}

/// A child and share with room for `slots`.
async fn room_for(p: &mut Parent, o: &Options, slots: u64) -> Result<(SiteId, String), String> {
    p.until(&format!("room for {slots} slots"), o.patience, |p| p.room().iter().any(|r| r.2 >= slots)).await?;
    p.room().into_iter().find(|r| r.2 >= slots).map(|(child, share, _)| (child, share)).ok_or_else(|| "the room is gone".to_string())
}

/// Place one task and wait for its end.
async fn one(p: &mut Parent, o: &Options, spec: JobSpec) -> Result<(SiteId, u64, Ended), String> {
    let (child, share) = room_for(p, o, 1).await?;
    let job = p.job(spec, 1);
    let n = p.place(child, &share, job, TaskSet::one(0));
    all_ended(p, o, n).await?;
    let ended = p.placements.get(&n).and_then(|p| p.ended.first()).map(|(_, e)| e.clone());
    ended.map(|e| (child, n, e)).ok_or_else(|| format!("placement {n} came back: {:?}", p.placements.get(&n).map(|p| &p.returned)))
}

async fn all_ended(p: &mut Parent, o: &Options, number: u64) -> Result<(), String> {
    p.until("an end of each task", o.patience, |p| p.placements.get(&number).is_some_and(|p| p.alive.is_empty())).await
}

async fn accepted(p: &mut Parent, o: &Options, number: u64) -> Result<(), String> {
    p.until("an acceptance", o.patience, |p| p.placements.get(&number).is_some_and(|p| p.accepted == p.place.tasks)).await
}

/// A payload that runs until it is stopped, and is said to run.
async fn running(p: &mut Parent, o: &Options) -> Result<(SiteId, u64, u64), String> {
    let (child, share) = room_for(p, o, 1).await?;
    let job = p.job(spec(["/bin/sleep", "3600"]), 1);
    let n = p.place(child, &share, job, TaskSet::one(0));
    p.until("a hint that it runs", o.patience, |p| p.placements.get(&n).is_some_and(|p| !p.ran.is_empty())).await?;
    Ok((child, job, n))
}

fn ended_as(p: &Parent, number: u64, phase: Phase) -> Result<Ended, String> {
    let ended = p.placements.get(&number).and_then(|p| p.ended.first()).map(|(_, e)| e.clone());
    match ended {
        Some(e) if e.phase == phase => Ok(e),
        other => Err(format!("not {} but {other:?}, returned {:?}", phase.name(), p.placements.get(&number).map(|p| &p.returned))),
    }
}

fn returned_as(p: &Parent, number: u64, kind: ReasonKind) -> Result<(), String> {
    let placement = p.placements.get(&number).ok_or("no such placement")?;
    let right = placement.ended.is_empty() && placement.returned.iter().all(|(_, r)| r.kind == kind);
    check(right, || format!("not returned as {} but returned {:?}, ended {:?}", kind.word(), placement.returned, placement.ended))
}

fn attaches<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let want = o.children.max(1);
        p.until("children with a share", o.patience, |p| {
            p.children.values().filter(|c| c.attached && c.advert.as_ref().is_some_and(|a| !a.shares.is_empty())).count() >= want
        })
        .await?;
        for (id, c) in &p.children {
            for s in c.advert.iter().flat_map(|a| &a.shares) {
                let right = s.machine_slots > 0 && s.slots_total > 0 && s.path.contains(id) | (c.hello.hop.kind == Kind::Agent) && s.credit_ms > 0;
                check(right, || format!("{} offers a share without slots, credit time or itself in its path: {s:?}", c.hello.hop.name))?;
            }
        }
        Ok(())
    })
}

fn succeeds<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (_, n, e) = one(p, o, spec(TRUE)).await?;
        ended_as(p, n, Phase::Done)?;
        check(e.exit_at(0) == Exit::Code(0) && e.attempts == 1 && e.reason.is_none(), || format!("{e:?}"))
    })
}

fn fails<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (_, n, e) = one(p, o, sh("exit 3")).await?;
        ended_as(p, n, Phase::Failed)?;
        let right = e.exit_at(0) == Exit::Code(3) && e.reason.as_ref().is_some_and(|r| r.kind == ReasonKind::ExitNonZero) && !e.lost;
        check(right, || format!("{e:?}"))
    })
}

fn missing_program<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (_, n, e) = one(p, o, spec(["/nowhere/nothing"])).await?;
        ended_as(p, n, Phase::Failed)?;
        let right = e.exit_at(0) == Exit::Code(127) && e.reason.as_ref().is_some_and(|r| r.kind == ReasonKind::NoSuchProgram);
        check(right, || format!("{e:?}"))
    })
}

fn sent_twice<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, share) = room_for(p, o, 1).await?;
        let job = p.job(spec(TRUE), 1);
        let n = p.place(child, &share, job, TaskSet::one(0));
        p.send_place(n);
        all_ended(p, o, n).await?;
        p.send_place(n);
        // A second start would be a second acceptance or end, which the parent finds.
        p.settle(o.quiet).await?;
        ended_as(p, n, Phase::Done).map(drop)
    })
}

fn cancel_overtakes<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, share) = room_for(p, o, 1).await?;
        let job = p.job(spec(TRUE), 1);
        let version = p.want(child, job, WantValue::Cancel, &TaskSet::one(0));
        p.until("the stored wish", o.patience, |p| p.children.get(&child).is_some_and(|c| c.wants_stored.get(&job) == Some(&version))).await?;
        p.forget_want(job);
        let n = p.place(child, &share, job, TaskSet::one(0));
        all_ended(p, o, n).await?;
        let e = ended_as(p, n, Phase::Cancelled)?;
        check(e.exit_at(0) == Exit::NotStarted, || format!("it started: {e:?}"))
    })
}

fn cancel_running<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, job, n) = running(p, o).await?;
        p.want(child, job, WantValue::Cancel, &TaskSet::one(0));
        all_ended(p, o, n).await?;
        let e = ended_as(p, n, Phase::Cancelled)?;
        check(e.exit_at(0) != Exit::NotStarted, || format!("it ran, and is said not to have started: {e:?}"))
    })
}

async fn held(p: &mut Parent, o: &Options) -> Result<(SiteId, u64, u64), String> {
    let (child, share) = room_for(p, o, 1).await?;
    let job = p.job(spec(TRUE), 1);
    p.want(child, job, WantValue::Hold, &TaskSet::one(0));
    let n = p.place(child, &share, job, TaskSet::one(0));
    accepted(p, o, n).await?;
    p.settle(o.quiet).await?;
    let right = p.placements.get(&n).is_some_and(|p| p.ran.is_empty() && p.alive.len() == 1);
    check(right, || format!("it did not wait: {:?}", p.placements.get(&n)))?;
    Ok((child, job, n))
}

fn held_and_returned<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, job, n) = held(p, o).await?;
        p.want(child, job, WantValue::Return, &TaskSet::one(0));
        all_ended(p, o, n).await?;
        returned_as(p, n, ReasonKind::AskedBack)
    })
}

fn held_and_released<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, job, n) = held(p, o).await?;
        p.want(child, job, WantValue::Run, &TaskSet::one(0));
        all_ended(p, o, n).await?;
        ended_as(p, n, Phase::Done).map(drop)
    })
}

fn too_large<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, share) = room_for(p, o, 1).await?;
        let shares = p.children.get(&child).and_then(|c| c.advert.as_ref()).map(|a| a.shares.clone()).unwrap_or_default();
        let mut large = spec(TRUE);
        large.shape.slots = shares.iter().map(|s| s.machine_slots).max().unwrap_or(0) + 1;
        let mut hungry = spec(TRUE);
        hungry.shape.memory_bytes = shares.iter().map(|s| s.machine_memory_bytes).max().unwrap_or(0) + 1;
        for spec in [large, hungry] {
            let job = p.job(spec, 1);
            let n = p.place(child, &share, job, TaskSet::one(0));
            all_ended(p, o, n).await?;
            returned_as(p, n, ReasonKind::NoFit)?;
        }
        Ok(())
    })
}

fn beyond_credit<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, share) = room_for(p, o, 1).await?;
        let room = p.room().iter().find(|r| r.0 == child && r.1 == share).map_or(1, |r| r.2);
        let tasks = u32::try_from(room).unwrap_or(u32::MAX).saturating_add(4).min(o.array_tasks.max(8));
        let job = p.job(spec(TRUE), tasks);
        let n = p.place(child, &share, job, TaskSet::range(0..tasks));
        all_ended(p, o, n).await?;
        let placement = p.placements.get(&n).ok_or("no such placement")?;
        let right =
            placement.returned.iter().all(|(_, r)| r.kind == ReasonKind::OverCredit) && placement.ended.iter().all(|(_, e)| e.phase == Phase::Done);
        check(right, || format!("{placement:?}"))
    })
}

fn own_route<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, share) = room_for(p, o, 1).await?;
        if p.children.get(&child).is_none_or(|c| c.hello.hop.kind == Kind::Agent) {
            // A machine passes nothing on.
            return Ok(());
        }
        let job = p.job(spec(TRUE), 1);
        let n = p.place_by_route(child, &share, job, TaskSet::one(0), vec![child]);
        all_ended(p, o, n).await?;
        returned_as(p, n, ReasonKind::Loop)
    })
}

fn fenced<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, job, n) = running(p, o).await?;
        let stale = intergrid_proto::link::Attempts { number: n, job, tasks: TaskSet::one(0) };
        p.backend.send(child, Down::Stale(vec![stale]));
        all_ended(p, o, n).await?;
        ended_as(p, n, Phase::Cancelled).map(drop)
    })
}

/// Drop the link, and wait until the child is back.
async fn reconnected(p: &mut Parent, o: &Options, child: SiteId) -> Result<(), String> {
    let before = p.children.get(&child).map_or(0, |c| c.hellos);
    p.backend.disconnect(child, "a law drops the link");
    p.until("the child to come back", o.patience, |p| p.children.get(&child).is_some_and(|c| c.attached && c.hellos > before)).await
}

fn acknowledged<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, ..) = one(p, o, spec(TRUE)).await?;
        let before = p.children.get(&child).map_or(0, |c| c.repeats);
        reconnected(p, o, child).await?;
        p.settle(o.quiet).await?;
        let view = p.children.get(&child).ok_or("no such child")?;
        check(view.repeats == before, || format!("{} events came again", view.repeats - before))
    })
}

fn old_cursor<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, share) = room_for(p, o, 1).await?;
        let look = |p: &Parent| p.children.get(&child).map_or((0, 0, 0), |c| (c.cursor.1, c.repeats, c.resyncs.0));
        p.acking = false;
        let (cursor, repeats, resyncs) = look(p);
        let job = p.job(spec(TRUE), 1);
        let n = p.place(child, &share, job, TaskSet::one(0));
        all_ended(p, o, n).await?;
        p.rewind(child, cursor);
        reconnected(p, o, child).await?;
        let came = p.until("the events again", o.patience, |p| look(p).1 >= repeats + 2 || look(p).2 > resyncs).await;
        p.acking = true;
        came?;
        // The next events are acknowledged with all before them.
        one(p, o, spec(TRUE)).await.map(drop)
    })
}

fn full_state<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, job, n) = running(p, o).await?;
        let before = p.children.get(&child).map_or(0, |c| c.resyncs.0);
        p.backend.send(child, Down::Resync);
        p.until("a full state", o.patience, |p| p.children.get(&child).is_some_and(|c| c.resyncs.0 > before)).await?;
        let ranges = p.children.get(&child).map(|c| c.resyncs.1.clone()).unwrap_or_default();
        let named = ranges.iter().any(|r| r.of.number == n && r.of.tasks.contains(0) && r.phase.is_below());
        check(named, || format!("placement {n} runs and is not in {ranges:?}"))?;
        p.want(child, job, WantValue::Cancel, &TaskSet::one(0));
        all_ended(p, o, n).await?;
        ended_as(p, n, Phase::Cancelled).map(drop)
    })
}

fn asked<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        let (child, job, n) = running(p, o).await?;
        let host = p.backend.hosts(child, o.patience).await.map_err(|e| format!("hosts: {e}"))?;
        check(host.slots_total > 0 && host.unreachable.is_empty(), || format!("{host:?}"))?;
        let explained = p.backend.explain(child, job, None, o.patience).await.map_err(|e| format!("explain: {e}"))?;
        check(explained.site.is_some() && explained.unreachable.is_empty(), || format!("{explained:?}"))?;
        p.want(child, job, WantValue::Cancel, &TaskSet::one(0));
        all_ended(p, o, n).await
    })
}

fn output<'a>(p: &'a mut Parent, o: &'a Options) -> Kept<'a> {
    Box::pin(async move {
        if !o.outputs {
            return Ok(());
        }
        let (child, n, _) = one(p, o, spec(["/bin/echo", "task", "{i}"])).await?;
        let job = p.placements.get(&n).map_or(0, |p| p.place.job);
        let content = p.backend.output(child, job, 0, "stdout".into()).await.map_err(|e| format!("stdout: {e}"))?;
        let mut bytes = Vec::new();
        let mut parts = content.parts;
        while let Some(part) = parts.next().await {
            bytes.extend_from_slice(&part.map_err(|e| format!("stdout: {e}"))?);
        }
        let right = bytes == b"task 0\n" && content.size == bytes.len() as u64 && content.hash == BlobHash::of(&bytes);
        check(right, || format!("stdout is {:?}", String::from_utf8_lossy(&bytes)))?;
        match p.backend.output(child, job, 0, "out/none".into()).await {
            Err(_) => Ok(()),
            Ok(_) => Err("an output that was not made can be read".into()),
        }
    })
}
