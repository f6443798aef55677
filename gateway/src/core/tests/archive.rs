//! Jobs that are over leave memory, and are there when somebody speaks of them.

use intergrid_proto::link::WantValue;
use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, Phase, RefusalKind, SiteId, TaskSet};

use super::world::{open, own_disk};
use super::{World, sleep, tower};
use crate::core::fit::ENTRIES_MIN;
use crate::core::state::{CHUNK_TASKS, Job};
use crate::core::{Input, archive, rows};
use crate::store::{Batch, MemDisk, Reader, Store};

/// All leave soon.
fn world(checkpoint: u64) -> World {
    let mut w = World::new();
    (w.away, w.checkpoint) = ((100, 100), checkpoint);
    w
}

fn in_memory(w: &World, site: SiteId) -> usize {
    let s = w.sites[&site].core.state();
    s.jobs.len() + s.leaving.len() + s.by_key.len() + s.by_parent.len() + s.adopted.len() + s.specs.len()
}

fn past(w: &World, site: SiteId, job: u64) -> Job {
    archive::read(&w.sites[&site].disk, job, true).unwrap().expect("a past job")
}

#[test]
fn what_is_over_leaves_memory_at_every_level_and_is_shown_as_before() {
    for checkpoint in [1, 7, 20_000] {
        let mut w = world(checkpoint);
        let sites = tower(&mut w, 2);
        let mut spec = JobSpec::new(["false"]);
        spec.attempts_max = 1;
        let (good, _) = w.submit(sites[0], "good", JobSpec::new(["true"]), 5_000).unwrap();
        let (bad, _) = w.submit(sites[0], "bad", spec, 3).unwrap();
        while w.count(sites[0], good, Phase::Done) < 5_000 || w.sites[&sites[0]].core.state().jobs[&bad].open() > 0 {
            w.away = (1 << 40, 1 << 40);
            w.pass(100);
        }
        let core = &w.sites[&sites[0]].core;
        let before = [good, bad].map(|n| core.job_view(n, true).unwrap());
        w.away = (100, 100);
        // What was to leave late is looked at again when it was due.
        sites.iter().for_each(|s| w.restart(*s));
        w.pass(5_000);
        for site in &sites {
            assert_eq!(0, in_memory(&w, *site), "checkpoint {checkpoint}, {}: {:?}", w.sites[site].hop.name, w.sites[site].core.state());
        }
        let core = &w.sites[&sites[0]].core;
        for (job, before) in [good, bad].into_iter().zip(before) {
            let now = core.view(&past(&w, sites[0], job), true);
            assert_eq!((&now.counts, &now.ranges, &now.key), (&before.counts, &before.ranges, &before.key));
            let brief = archive::read(&w.sites[&sites[0]].disk, job, false).unwrap().unwrap();
            assert_eq!(before.counts, core.view(&brief, false).counts, "without its cells");
        }
        assert_eq!(vec![bad, good], archive::list(&w.sites[&sites[0]].disk, None, u64::MAX, 10).unwrap());
        assert_eq!(vec![good], archive::list(&w.sites[&sites[0]].disk, None, bad, 10).unwrap());
    }
}

#[test]
fn a_key_finds_its_past_job_and_a_restart_loads_none() {
    let mut w = world(7);
    let site = tower(&mut w, 0)[0];
    let (job, _) = w.submit(site, "k", JobSpec::new(["true"]), 40).unwrap();
    w.pass(3_000);
    assert_eq!(0, in_memory(&w, site));
    w.restart(site);
    assert_eq!(0, in_memory(&w, site), "nothing past is loaded");
    assert_eq!(Ok((job, true)), w.submit(site, "k", JobSpec::new(["true"]), 40));
    assert_eq!(RefusalKind::Conflict, w.submit(site, "k", JobSpec::new(["false"]), 40).unwrap_err().kind);
    let (other, existed) = w.submit(site, "k2", JobSpec::new(["true"]), 40).unwrap();
    assert!(other > job && !existed, "numbers go on");
    w.want(site, job, WantValue::Cancel, None);
    w.pass(3_000);
    assert_eq!(40, past(&w, site, job).count(Phase::Done), "a cancel of what is done changes nothing");
    assert_eq!(0, in_memory(&w, site), "what came back goes again");
    assert_eq!(80, w.agents.values().map(|a| a.starts().len()).sum::<usize>());
}

#[test]
fn a_crash_in_between_loses_neither_the_job_nor_its_key() {
    // Of each turn in which a job leaves or comes back: as if it had not been committed, and as if it just had.
    let (mut left, mut came) = (0, 0);
    for (round, kept) in (0..12usize).flat_map(|r| [(r, false), (r, true)]) {
        let mut w = world([1, 5, 20_000][round % 3]);
        let site = tower(&mut w, 0)[0];
        let (job, _) = w.submit(site, "k", JobSpec::new(["true"]), 3).unwrap();
        w.away = (1 << 40, 1 << 40);
        while w.count(site, job, Phase::Done) < 3 {
            w.pass(50);
        }
        let mut tick = |w: &mut World, ms: u64| {
            w.now.mono_ms += ms;
            let s = w.sites.get_mut(&site).unwrap();
            s.core.put_away_after(100, 100);
            s.core.may_leave(job);
            s.core.step(Input::Tick, w.now);
            let out = s.core.turn(w.now);
            left += s.core.state().leaving.len();
            out
        };
        if round % 2 == 1 {
            // It is past; then it comes back.
            for _ in 0..2 {
                let out = tick(&mut w, 1 << 41);
                w.sites[&site].disk.open().unwrap().commit(&out.batch).unwrap();
            }
            let s = w.sites.get_mut(&site).unwrap();
            let input = Input::SetWant { token: 1, job, value: WantValue::Cancel, tasks: None };
            s.core.recall(&input, &s.disk).unwrap();
            s.core.step(input, w.now);
            assert!(s.core.state().jobs.contains_key(&job));
            came += 1;
        }
        let out = tick(&mut w, if round % 2 == 1 { 0 } else { 1 << 41 });
        let s = w.sites.get_mut(&site).unwrap();
        if kept {
            s.disk.open().unwrap().commit(&out.batch).unwrap();
        }
        let (now, checkpoint) = (w.now, w.checkpoint);
        s.core = open(&s.hop, &s.disk, now, checkpoint);
        let live = s.core.state().jobs.contains_key(&job);
        assert_ne!(live, archive::is_past(&s.disk, job).unwrap(), "round {round}: in one of both");
        assert_eq!(live, kept == (round % 2 == 1), "round {round}, kept {kept}: as it was committed");
        w.away = (100, 100);
        w.restart(site);
        w.pass(5_000);
        assert_eq!(Ok((job, true)), w.submit(site, "k", JobSpec::new(["true"]), 3), "round {round}, kept {kept}");
        w.pass(5_000);
        assert_eq!(3, past(&w, site, job).count(Phase::Done));
        assert_eq!(3, w.agents.values().map(|a| a.starts().len()).sum::<usize>(), "round {round}: none started twice");
    }
    assert_eq!((24, 12), (left, came));
}

#[test]
fn a_parents_later_tasks_find_their_job() {
    let mut w = world(7);
    w.away = (1 << 40, 100);
    let sites = tower(&mut w, 2);
    let spec = JobSpec { tasks_at_once: Some(1), ..sleep(100) };
    let (job, _) = w.submit(sites[0], "k", spec, 6).unwrap();
    w.want(sites[0], job, WantValue::Hold, Some(TaskSet::range(3..6)));
    w.pass(4_000);
    assert_eq!(3, w.count(sites[0], job, Phase::Done));
    assert_eq!((0, 0), (in_memory(&w, sites[1]), in_memory(&w, sites[2])), "past, while more of it is to come");
    // The spec is not sent twice in a session.
    w.want(sites[0], job, WantValue::Run, None);
    w.pass(4_000);
    assert_eq!(6, w.count(sites[0], job, Phase::Done));
    for site in &sites[1..] {
        let all = archive::list(&w.sites[site].disk, None, u64::MAX, 10).unwrap();
        assert_eq!(1, all.len(), "one job for a parent's job, at {}", w.sites[site].hop.name);
        assert_eq!(6, past(&w, *site, all[0]).count(Phase::Done));
    }
    assert_eq!(0, in_memory(&w, sites[1]) + in_memory(&w, sites[2]));
}

#[test]
fn a_parent_that_goes_back_is_told_of_past_ends() {
    for on_lost in [OnLost::Wait, OnLost::Requeue] {
        let mut w = world(7);
        let sites = tower(&mut w, 1);
        let spec = JobSpec { on_lost, ..sleep(300) };
        let (job, _) = w.submit(sites[0], "k", spec, 8).unwrap();
        w.pass(200);
        let copy = w.sites[&sites[0]].disk.copy();
        w.pass(5_000);
        assert_eq!(0, in_memory(&w, sites[1]), "all that was below is past");
        w.restart_with(sites[0], copy);
        w.away = (1 << 40, 100);
        w.pass(80_000);
        assert_eq!(8, w.count(sites[0], job, Phase::Done), "{on_lost:?} {:#?}", w.warned);
        assert_eq!(8, w.agents.values().map(|a| a.starts().len()).sum::<usize>(), "{on_lost:?}: none started twice");
    }
}

#[test]
fn late_word_of_a_past_job_is_kept() {
    // An attempt is fenced two levels below while its link is cut; the job ends elsewhere, and the word of the first comes when all is past.
    let mut w = world(7);
    let sites = tower(&mut w, 1);
    let gateway = sites[1];
    let mut spec = sleep(2_000);
    spec.disconnect_timeout_ms = 500;
    let (job, _) = w.submit(sites[0], "k", spec, 2).unwrap();
    w.pass(1_000);
    let agent = *w.agents.keys().find(|a| !w.agents[a].starts().is_empty()).unwrap();
    w.cut(agent, gateway);
    w.pass(20_000);
    assert_eq!(0, in_memory(&w, sites[0]), "its site knows of nothing open");
    let entries = |w: &World| {
        let mut n = 0;
        own_disk(w, sites[0])
            .scan(&rows::history_prefix(job), &mut |_, _| {
                n += 1;
                true
            })
            .unwrap();
        n
    };
    let before = entries(&w);
    w.link(agent, gateway);
    w.pass(5_000);
    assert!(entries(&w) > before, "what the stale attempt used is in the history: {before}");
    assert_eq!(0, in_memory(&w, sites[0]) + in_memory(&w, gateway));
    assert_eq!(2, past(&w, sites[0], job).count(Phase::Done));
}

#[test]
fn nothing_leaves_before_its_parent_knows() {
    let mut w = world(7);
    let sites = tower(&mut w, 1);
    let (job, _) = w.submit(sites[0], "k", sleep(500), 2).unwrap();
    w.pass(400);
    w.cut(sites[1], sites[0]);
    w.pass(5_000);
    assert_eq!(1, w.sites[&sites[1]].core.state().jobs.len(), "its ends are not acknowledged");
    w.link(sites[1], sites[0]);
    w.pass(5_000);
    assert_eq!(2, past(&w, sites[0], job).count(Phase::Done));
    assert_eq!(0, in_memory(&w, sites[1]));
}

#[test]
fn when_many_jobs_have_left_nothing_keeps_room_for_them() {
    const JOBS: usize = 500;
    const ROOM_MAX: usize = 4 * ENTRIES_MIN;
    let mut w = world(20_000);
    let sites = tower(&mut w, 1);
    w.agent("large", JOBS as u32, sites[1]);
    w.pass(200);
    for k in 0..JOBS {
        w.submit(sites[0], &format!("k{k}"), sleep(5_000), 1).unwrap();
    }
    w.pass(3_000);
    let state = |w: &World, site: usize| {
        let s = w.sites[&sites[site]].core.state();
        let outbox = s.links.values().map(|l| l.outbox.capacity()).max().unwrap_or(0);
        (s.by_key.capacity(), s.by_parent.capacity(), outbox)
    };
    assert!(state(&w, 0).0 > ROOM_MAX && state(&w, 1).1 > ROOM_MAX, "{:?} and {:?}", state(&w, 0), state(&w, 1));
    w.cut(sites[1], sites[0]);
    w.pass(9_000);
    assert!(state(&w, 1).2 > ROOM_MAX, "ends wait for the parent: {:?}", state(&w, 1));
    w.link(sites[1], sites[0]);
    w.pass(10_000);
    for (k, site) in sites.iter().enumerate() {
        assert_eq!(0, in_memory(&w, *site));
        assert_eq!(JOBS, archive::list(&w.sites[site].disk, None, u64::MAX, 2 * JOBS).unwrap().len());
        let (by_key, by_parent, outbox) = state(&w, k);
        assert!(by_key.max(by_parent).max(outbox) <= ROOM_MAX, "{by_key} keys, {by_parent} names, {outbox} events");
    }
}

#[test]
fn a_small_past_job_is_one_row_and_comes_back_whole() {
    let mut w = world(1);
    w.away = (1 << 40, 1 << 40);
    let site = tower(&mut w, 0)[0];
    let mut spec = JobSpec::new(["true"]);
    // More than a machine has.
    spec.shape.slots = 3;
    let tasks = [1, 5_000, 3 * CHUNK_TASKS + 1];
    let submit = |w: &mut World, n: u32| w.submit(site, &format!("k{n}"), spec.clone(), n).unwrap();
    let jobs = tasks.map(|n| submit(&mut w, n).0);
    for job in jobs {
        w.want(site, job, WantValue::Cancel, None);
    }
    w.pass(1_000);
    // As format 3 had it: all rows beside the header.
    let old = MemDisk::new();
    let state = w.sites[&site].core.state();
    let mut batch = Batch::default();
    for j in state.jobs.values() {
        assert!(j.open() == 0 && !j.inside);
        batch.rows.extend(rows::parts(j).into_iter().map(|k| (k.bytes(), state.row(k, 1))));
        batch.rows.push((archive::past_key(j.no), Some(rows::past_row(j))));
        batch.rows.push((rows::spec_key(j.spec_hash), Some(j.spec.bytes.clone())));
    }
    old.open().unwrap().commit(&batch).unwrap();
    let of = |j: &Job| (j.runs(|c| *c), j.counts, j.ups.clone(), j.want_version);
    let words = |j: &Job| format!("{:?}", of(j));
    let live: Vec<String> = state.jobs.values().map(|j| words(j)).collect();
    w.away = (100, 100);
    w.restart(site);
    w.pass(5_000);
    let beside = |w: &World, job: u64| {
        let mut n = 0;
        for table in [b'c', b'u'] {
            let each = &mut |_: &[u8], _: &[u8]| {
                n += 1;
                true
            };
            own_disk(w, site).scan(&rows::key(table, &[&job.to_be_bytes()]), each).unwrap();
        }
        n
    };
    for (k, job) in jobs.iter().enumerate() {
        let small = tasks[k] < 3 * CHUNK_TASKS;
        assert_eq!(live[k], words(&past(&w, site, *job)), "{} tasks", tasks[k]);
        assert_eq!(live[k], words(&archive::read(&old, *job, true).unwrap().unwrap()), "{} tasks, in format 3", tasks[k]);
        assert_eq!((small, small), (past(&w, site, *job).inside, beside(&w, *job) == 0), "{} tasks", tasks[k]);
    }
    // What comes back has its rows again with the same commit: a crash right after it loses nothing, however late its next checkpoint is.
    w.checkpoint = 1 << 40;
    w.away = (1 << 40, 1 << 40);
    w.restart(site);
    for (k, job) in jobs.iter().enumerate() {
        assert_eq!((*job, true), submit(&mut w, tasks[k]));
    }
    w.restart(site);
    let core = &w.sites[&site].core;
    for (k, job) in jobs.iter().enumerate() {
        assert_eq!(u64::from(tasks[k]), core.state().jobs[job].count(Phase::Cancelled), "{} tasks", tasks[k]);
        assert!(!archive::is_past(own_disk(&w, site), *job).unwrap() && beside(&w, *job) > 0);
    }
}
