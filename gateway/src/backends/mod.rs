//! Backends: what runs tasks for a gateway. Each passes [`crate::laws`].

use intergrid_proto::link::Hop;
use intergrid_proto::share::totals;
use intergrid_proto::{Phase, Share, pb};

pub mod agents;
pub(crate) mod bulk;
pub mod child_end;
pub mod fake;
pub mod remote;
#[cfg(test)]
mod tests;

/// Messages to one child that wait to be carried; a child that does not keep up loses its link, and what is due is said again when it is back.
pub const LINK_QUEUE_MESSAGES_MAX: usize = 8_192;

/// A child as its advertisement shows it, for those that cannot be asked.
fn host(hop: &Hop, backend: &str, shares: &[Share]) -> pb::Host {
    let (slots_total, slots_free) = totals(shares);
    pb::Host {
        site: Some(hop.clone().into()),
        slots_total,
        slots_free,
        memory_bytes: shares.iter().map(|s| s.machine_memory_bytes.saturating_mul(u64::from(s.machines))).sum(),
        gpus: shares.iter().map(|s| s.gpus_total).fold(0, u64::saturating_add),
        running: slots_total - slots_free,
        waiting: shares.iter().map(|s| s.waiting).sum(),
        shares: shares.iter().cloned().map(Into::into).collect(),
        backend: backend.to_string(),
        age_ms: shares.iter().map(|s| s.age_ms).min().unwrap_or(0),
        ..Default::default()
    }
}

/// Phases with no task in them are not named.
fn counts(list: impl IntoIterator<Item = (Phase, u64)>) -> Vec<pb::PhaseCount> {
    list.into_iter().filter(|(_, tasks)| *tasks > 0).map(|(phase, tasks)| pb::PhaseCount { phase: phase as i32, tasks, reason: None }).collect()
}

/// A pause between half and all of this, so that those who lost a parent together do not come back together.
fn jitter(pause_ms: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    pause_ms - random % (pause_ms / 2).max(1)
}
