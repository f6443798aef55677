//! The laws of a provider of machines ([`crate::rent::Cloud`]): what the provisioner relies on when it repeats a call, starts again, or looks. One suite for
//! all providers, each with the real thing behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use intergrid_provision::{Billing, MachineType, OfferKey, Outcome, Price, Rate, Refused, Seen, SeenState};
use tokio::time::{sleep, timeout};

use crate::rent::{Cloud, Launch};

/// The gateway that rents; its machines are `<gateway>-m<number>`.
pub const GATEWAY: &str = "burst";
/// A call ends within this, and what was ended is gone within it.
const CALL_MAX: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// So often a machine that has ended is looked at: a provider may then forget it, and its number stays spent.
const LOOKS: usize = 3;

/// Where machines are launched. Nothing is there when the laws begin.
pub trait Place: Sync {
    /// A type of machine that there is.
    fn machine_type(&self) -> String;

    /// The provider as a gateway has it that was just started: [`GATEWAY`], or another one beside it.
    fn open(&self, other: bool) -> BoxFuture<'_, Arc<dyn Cloud>>;

    /// Machines that run, counted where they are and not asked of the cloud.
    fn running(&self) -> usize;

    /// What the place may forget of calls, it forgets now.
    fn forget(&self) {}
}

fn kept(holds: bool, law: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("law broken: {}", law())) }
}

async fn ends<T>(call: BoxFuture<'static, T>, what: &str) -> Result<T, String> {
    timeout(CALL_MAX, call).await.map_err(|_| format!("law broken: a call ends in bounded time: {what}"))
}

async fn launch(cloud: &Arc<dyn Cloud>, machine_type: &str, number: u64) -> Result<Outcome, String> {
    let what = Launch {
        number,
        label: format!("{GATEWAY}-m{number}"),
        offer: OfferKey { machine: machine_type.into(), zone: String::new(), spot: false },
        kind: MachineType { slots: 1, memory_bytes: 64 << 20, gpus: 0, architecture: "x86_64".into(), machines_max: None },
        price: Price { rate: Rate(96_000), ceiling: Rate(96_000), billing: Billing::Second { min_s: 60 } },
        // Nobody answers there: whether its agent comes is not the provider's.
        endpoint: "127.0.0.1:1".into(),
    };
    ends(cloud.launch(what), "launch").await
}

async fn launched(cloud: &Arc<dyn Cloud>, machine_type: &str, number: u64) -> Result<String, String> {
    match launch(cloud, machine_type, number).await? {
        Outcome::Launched(id) => Ok(id),
        other => Err(format!("law broken: machine {number} is launched, or is there: {other:?}")),
    }
}

async fn listed(cloud: &Arc<dyn Cloud>) -> Result<Vec<Seen>, String> {
    ends(cloud.list(), "list").await?.ok_or_else(|| "the look failed".to_string())
}

/// Those that exist: number, name.
async fn existing(cloud: &Arc<dyn Cloud>) -> Result<Vec<(Option<u64>, String)>, String> {
    let seen = listed(cloud).await?.into_iter().filter(|s| s.state != SeenState::Ended);
    let mut there: Vec<_> = seen.map(|s| (s.number, s.id)).collect();
    there.sort();
    Ok(there)
}

async fn until_running(place: &dyn Place, machines: usize) -> Result<(), String> {
    let began = Instant::now();
    while place.running() != machines {
        kept(began.elapsed() < CALL_MAX, || format!("what was launched runs, and what was ended is gone: {} run, not {machines}", place.running()))?;
        sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// All laws; the first that is broken, in words.
pub async fn check(place: &dyn Place) -> Result<(), String> {
    let (kind, cloud) = (place.machine_type(), place.open(false).await);
    kept(listed(&cloud).await?.is_empty(), || "nothing is listed before anything is launched".into())?;

    // One number, one machine: asked again, by a gateway that was started again, and where what could be forgotten is.
    let one = launched(&cloud, &kind, 1).await?;
    let again = place.open(false).await;
    for (cloud, who) in [(&cloud, "the same gateway"), (&again, "a gateway that was started again")] {
        let same = launched(cloud, &kind, 1).await?;
        kept(same == one, || format!("a launch that is repeated by {who} gives the same machine: {same}, not {one}"))?;
    }
    place.forget();
    let same = launched(&place.open(false).await, &kind, 1).await?;
    kept(same == one && place.running() == 1, || format!("nor is it launched twice: {same} and {one}, {} run", place.running()))?;
    let two = launched(&again, &kind, 2).await?;
    kept(two != one, || format!("another number is another machine: {two}, {one}"))?;
    // Launched may be before it is seen to run.
    until_running(place, 2).await?;

    // What may exist is listed under its number, and to nobody else.
    for cloud in [&cloud, &again] {
        let there = existing(cloud).await?;
        kept(there == [(Some(1), one.clone()), (Some(2), two.clone())], || format!("what exists is listed under its number: {there:?}"))?;
    }
    let others = listed(&place.open(true).await).await?;
    kept(others.is_empty(), || format!("another gateway sees none of ours: {others:?}"))?;

    // A number is spent with its machine, also when nobody remembers that any more.
    ends(cloud.terminate(one.clone()), "terminate").await?;
    until_running(place, 1).await?;
    for look in 0..LOOKS {
        for cloud in [&cloud, &again, &place.open(false).await] {
            let there = existing(cloud).await?;
            kept(there == [(Some(2), two.clone())], || format!("what is gone does not exist, and the other does: {there:?}"))?;
            let outcome = launch(cloud, &kind, 1).await?;
            kept(matches!(outcome, Outcome::Refused(Refused::TokenSpent, _)), || {
                format!("a number is spent with its machine, look {look}: {outcome:?}")
            })?;
        }
    }
    kept(place.running() == 1, || format!("nothing is launched for a number that is spent: {} run", place.running()))?;

    let unknown = ends(cloud.terminate("nobody-knows-it".into()), "terminate").await?;
    kept(unknown != Some(SeenState::Exists), || "what there is not does not exist".into())?;
    ends(again.terminate(two), "terminate").await?;
    until_running(place, 0).await?;
    let there = existing(&cloud).await?;
    kept(there.is_empty(), || format!("nothing is left: {there:?}"))?;
    let others = listed(&place.open(true).await).await?;
    kept(others.is_empty(), || format!("nor does another gateway see the end of ours: {others:?}"))
}
