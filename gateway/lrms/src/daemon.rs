//! A gateway over a local resource manager, as a process.

use std::sync::Arc;

use intergrid_gateway::backend::Backend;
use intergrid_gateway::config::{GatewayConfig, LrmsConfig, LrmsKind, PilotsConfig, SiteConfig};
use intergrid_gateway::core::schedule::FirstFit;
use intergrid_gateway::daemon::{self, Built, DaemonOptions};
use intergrid_gateway::rent::{RentConfig, Rented};
use intergrid_proto::Refusal;
use intergrid_proto::link::Kind;
use intergrid_provision::Terms;

use crate::gridengine::{GridEngine, GridEngineConfig};
use crate::mixed::Mixed;
use crate::pilot::{self, Pilots};
use crate::slurm::{Slurm, SlurmConfig};
use crate::{Lrms, LrmsPool, Parts};

/// Serve until it is asked to end. Tasks in the LRMS go on, and are found again.
pub async fn run(config: GatewayConfig, lrms: LrmsConfig, options: DaemonOptions) -> Result<(), Refusal> {
    let (site, spoken) = (config.site, spoken_to(&lrms)?);
    match config.pilots {
        Some(pilots) => daemon::run_site(Kind::Gateway, site.clone(), options, move |parts| piloted((lrms, spoken), pilots, &site, parts)).await,
        None => daemon::run_site(Kind::Gateway, site.clone(), options, move |parts| build((lrms, spoken), site.state, parts)).await,
    }
}

/// Who speaks to it.
fn spoken_to(config: &LrmsConfig) -> Result<Arc<dyn Lrms>, Refusal> {
    match config.kind {
        LrmsKind::Slurm => Ok(Arc::new(Slurm::new(SlurmConfig::of(config)))),
        LrmsKind::GridEngine => Ok(Arc::new(GridEngine::new(GridEngineConfig::of(config)?))),
    }
}

/// The backend of a gateway whose state is there.
pub fn build(lrms: (LrmsConfig, Arc<dyn Lrms>), state: std::path::PathBuf, parts: &daemon::Parts) -> Result<Built, Refusal> {
    Ok(Built { backend: pool(lrms, state, parts)?, policy: Box::new(FirstFit), pool: None, children: None })
}

/// Its queues whose tasks are jobs, or were when they were placed.
fn pool((mut config, lrms): (LrmsConfig, Arc<dyn Lrms>), state: std::path::PathBuf, parts: &daemon::Parts) -> Result<Arc<LrmsPool>, Refusal> {
    config.queues = config.direct();
    let program = std::env::current_exe().map_err(|e| Refusal::invalid(format!("this program can't find itself: {e}")))?;
    LrmsPool::open(Parts {
        lrms,
        config,
        site: parts.me.site,
        state: state.join("lrms"),
        program,
        blobs: parts.blobs.clone(),
        outputs: parts.outputs.clone(),
        above: parts.above.clone(),
    })
}

/// The backend of a gateway that has agents as jobs: its tasks run under these, and in queues that are direct they are jobs themselves.
fn piloted((config, lrms): (LrmsConfig, Arc<dyn Lrms>), pilots: PilotsConfig, site: &SiteConfig, parts: &daemon::Parts) -> Result<Built, Refusal> {
    let PilotsConfig { settings, catalogue, budget, .. } = pilots.clone();
    let terms = Terms { settings, catalogue, budget };
    let rent = RentConfig { gateway: parts.me.name.clone(), terms, new_terms: None, time_max_ms: pilot::time_max_ms(&pilots) };
    let cloud = Pilots::new(lrms.clone(), &config, pilots, parts.me.site, site.identity.clone())?;
    let built = daemon::over_agents(Rented::new(rent, cloud, parts.engine.clone()), parts);
    let queues = pool((config, lrms), site.state.clone(), parts)?;
    if queues.configured().is_empty() {
        return Ok(built);
    }
    Ok(Built { backend: Mixed::new(queues, built.backend), ..built })
}
