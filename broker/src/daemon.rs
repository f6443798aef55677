//! A broker as a process: a gateway over a federation, nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use intergrid_gateway::backend::Backend;
use intergrid_gateway::backends::remote::{Remote, Source};
use intergrid_gateway::config::{BrokerConfig, ChildConfig, read_ca};
use intergrid_gateway::core::schedule::Burst;
use intergrid_gateway::daemon::{Built, DaemonOptions, Parts, Running, by_label, run_site};
use intergrid_proto::Refusal;
use intergrid_proto::link::Kind;
use tokio::sync::mpsc;

use crate::federation::Federation;
use crate::policy::Spread;

/// Connections of one child that dials, waiting to be taken.
const REVERSE_MAX: usize = 8;

/// Until it is asked to end.
pub async fn run(config: BrokerConfig, options: DaemonOptions) -> Result<(), Refusal> {
    let (children, burst) = (config.children.clone(), config.burst);
    run_site(Kind::Broker, config.site, options, move |parts| build(&children, burst, parts)).await
}

/// In this process; for tests.
pub async fn start(config: BrokerConfig) -> Result<Running, Refusal> {
    let (children, burst) = (config.children.clone(), config.burst);
    Running::start(Kind::Broker, config.site, DaemonOptions::default(), move |parts| build(&children, burst, parts)).await
}

fn build(children: &[ChildConfig], burst: Burst, parts: &Parts) -> Result<Built, Refusal> {
    let mut dialling = BTreeMap::new();
    let mut members: Vec<Arc<dyn Backend>> = Vec::new();
    for c in children {
        let source = match &c.endpoint {
            Some(endpoint) => Source::Dial { endpoint: endpoint.clone() },
            None => {
                let (tx, rx) = mpsc::channel(REVERSE_MAX);
                dialling.insert(c.name.clone(), tx);
                Source::Accepted(rx)
            }
        };
        members.push(Remote::new(&c.name, read_ca(&c.ca)?, parts.identity.clone(), source));
    }
    let children = (!dialling.is_empty()).then(|| by_label(dialling));
    Ok(Built { backend: Federation::new(members)?, policy: Box::new(Spread { burst }), pool: None, children })
}
