//! `soak N [FIRST_SEED] [--recovery] [--orders] [--trace] [--all]`: runs N seeds of the simulator, to the first that fails or to the last.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use intergrid_tests::sim::{Options, Run, report, sweep, trace};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = args.iter().filter_map(|a| a.parse().ok()).collect();
    let has = |flag: &str| args.iter().any(|a| a == flag);
    let Some(seeds) = numbers.first().copied() else {
        eprintln!("usage: tests/soak SEEDS [FIRST_SEED] [--recovery] [--orders] [--trace] [--all]");
        return ExitCode::from(2);
    };
    let first = numbers.get(1).copied().unwrap_or(1);
    let options = Options { recovery: has("--recovery"), orders: has("--orders"), ..Options::default() };
    if has("--trace") {
        let run = trace(first, options);
        run.trace.iter().for_each(|line| println!("{line}"));
        println!("{:?}", run.failure);
        return ExitCode::from(u8::from(run.failure.is_some()));
    }
    let (done, events, starts, ms) = <(AtomicU64, AtomicU64, AtomicU64, AtomicU64)>::default();
    let began = Instant::now();
    let each = |seed: u64, run: &Run| {
        if let Some(f) = run.failure.as_ref().filter(|_| has("--all")) {
            println!("seed {seed}: {} after {} ms: {}", f.invariant, f.at_ms, f.what);
        }
        events.fetch_add(run.events, Ordering::Relaxed);
        starts.fetch_add(run.starts, Ordering::Relaxed);
        ms.fetch_add(run.ms, Ordering::Relaxed);
        let n = done.fetch_add(1, Ordering::Relaxed) + 1;
        if n.is_multiple_of(1_000) {
            eprintln!("{n} seeds, {:.0} a second", n as f64 / began.elapsed().as_secs_f64());
        }
    };
    let failed = sweep(first, seeds, options, !has("--all"), &each);
    let (n, s) = (done.load(Ordering::Relaxed), began.elapsed().as_secs_f64());
    println!(
        "{n} seeds from {first} in {s:.1} s: {:.0} a second; {} events, {} payloads, {:.1} h of virtual time",
        n as f64 / s,
        events.load(Ordering::Relaxed),
        starts.load(Ordering::Relaxed),
        ms.load(Ordering::Relaxed) as f64 / 3_600_000.0
    );
    match failed {
        None => ExitCode::SUCCESS,
        Some((seed, failure)) => {
            println!("{}", report(seed, options, &failure));
            ExitCode::FAILURE
        }
    }
}
