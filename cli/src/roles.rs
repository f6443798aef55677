//! The roles: this process as a gateway, a broker or an agent. `--check-config` reads everything that a start would read, and starts nothing.

use std::path::Path;

use futures::future::BoxFuture;
use intergrid_agent::{AgentConfig, Options};
use intergrid_gateway::config::{BrokerConfig, CloudConfig, CloudProvider, GatewayConfig};
use intergrid_gateway::daemon::{DaemonOptions, NEEDS_EC2};
use intergrid_gateway::reload::on_hangup;
use intergrid_proto::Refusal;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{HandArgs, RoleArgs};
use crate::env::Environment;
use crate::out::Out;
use crate::stop::{Ending, Result, local};
use crate::{log, memory};

/// One domain's machines as one resource.
pub async fn gateway(args: RoleArgs, environment: &Environment, out: &Out) -> Result<Ending> {
    let config = GatewayConfig::load(&args.config)?;
    if let (Some(CloudProvider::Ec2(_)), false) = (config.cloud.as_ref().map(|c| &c.provider), cfg!(feature = "ec2")) {
        let what = format!("{}: [cloud] provider = \"ec2\": this program is built without it", args.config.display());
        return Err(Refusal::invalid(what).remedy(NEEDS_EC2).into());
    }
    config.check()?;
    if args.check_config {
        return good(out, &args.config);
    }
    log::init(environment)?;
    memory::keep_small();
    let new_terms = Some(on_hangup(&args.config, config.clone(), complete)?);
    let options = DaemonOptions { new_terms, ..options(args) };
    #[cfg(feature = "ec2")]
    if let Some(cloud) = config.cloud.clone()
        && let CloudProvider::Ec2(ec2) = cloud.provider.clone()
    {
        intergrid_ec2::daemon::run(config, cloud, *ec2, options).await?;
        return Ok(Ending::Well);
    }
    match config.lrms.clone() {
        None => intergrid_gateway::daemon::run(config, options).await?,
        Some(lrms) => intergrid_lrms::daemon::run(config, lrms, options).await?,
    }
    Ok(Ending::Well)
}

/// What a catalogue leaves out, where its provider can say it.
fn complete(cloud: CloudConfig) -> BoxFuture<'static, std::result::Result<CloudConfig, Refusal>> {
    #[cfg(feature = "ec2")]
    return Box::pin(intergrid_ec2::daemon::measured(cloud));
    #[cfg(not(feature = "ec2"))]
    Box::pin(async { Ok(cloud) })
}

/// A gateway's hand in an account's directory, until standard input ends.
pub fn hand(args: &HandArgs) -> Result<Ending> {
    let served = intergrid_lrms::hand::serve(&args.base, std::io::stdin().lock(), std::io::stdout().lock());
    served.map_err(|e| local(format!("{}: {e}", args.base.display())))?;
    Ok(Ending::Well)
}

/// Gateways and brokers as one resource.
pub async fn broker(args: RoleArgs, environment: &Environment, out: &Out) -> Result<Ending> {
    let config = BrokerConfig::load(&args.config)?;
    if args.check_config {
        config.check()?;
        return good(out, &args.config);
    }
    log::init(environment)?;
    memory::keep_small();
    intergrid_broker::daemon::run(config, options(args)).await?;
    Ok(Ending::Well)
}

/// Tasks on this machine.
pub async fn agent(args: RoleArgs, environment: &Environment, out: &Out) -> Result<Ending> {
    let config = AgentConfig::load(&args.config)?;
    if args.check_config {
        config.check_identity()?;
        return good(out, &args.config);
    }
    log::init(environment)?;
    let options = Options { ready_file: args.ready_file, die_with_parent: args.die_with_parent };
    let asked = async {
        let name = interrupted().await;
        tracing::info!("ending: {name}");
    };
    intergrid_agent::run(config, options, asked).await?;
    Ok(Ending::Well)
}

/// Ends with the signal that asks us to end: its name.
pub async fn interrupted() -> &'static str {
    interrupted_by().await.0
}

/// Its name, and the exit code that a shell would tell it by.
pub async fn interrupted_by() -> (&'static str, u8) {
    let wait = async |kind: SignalKind| match signal(kind) {
        Ok(mut signals) => drop(signals.recv().await),
        // Without a handler the signal ends the process, and every part with it.
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => ("Ctrl-C", 130),
        () = wait(SignalKind::terminate()) => ("SIGTERM", 143),
        () = wait(SignalKind::hangup()) => ("SIGHUP", 129),
    }
}

fn options(args: RoleArgs) -> DaemonOptions {
    DaemonOptions { ready_file: args.ready_file, die_with_parent: args.die_with_parent, new_terms: None }
}

fn good(out: &Out, file: &Path) -> Result<Ending> {
    if out.json {
        out.object(json!({"config": file, "good": true}))?;
    } else {
        out.line(format!("{} is good", file.display()))?;
    }
    Ok(Ending::Well)
}
