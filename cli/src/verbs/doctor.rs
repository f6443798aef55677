//! `doctor`: examines a gateway's configuration against this machine and, where there is a cluster behind it, against that. Says what to fix.

use intergrid_gateway::config::{AccountsConfig, CloudConfig, CloudProvider, Ec2Config, GatewayConfig, LrmsConfig, LrmsKind};
use intergrid_lrms::accounts::Accounts;
use intergrid_lrms::command::Account;
use intergrid_lrms::doctor::{Finding, Grade, Wish, examine};
use intergrid_lrms::gridengine::{self, GridEngine, GridEngineConfig};
use intergrid_lrms::slurm::{self, Slurm};
use intergrid_proto::Refusal;
use serde_json::json;

use crate::args::DoctorArgs;
use crate::out::{Out, Paint};
use crate::render::table::{Cell, Table};
use crate::stop::{Ending, Result};

/// Examine it. Ends with 1 where something is bad.
pub async fn run(args: DoctorArgs, out: &Out) -> Result<Ending> {
    let config = GatewayConfig::load(&args.config)?;
    let mut found = vec![match config.check() {
        Ok(()) => Finding::good("configuration", format!("{} is good", args.config.display())),
        Err(e) => Finding::bad("configuration", e.message, e.remedy),
    }];
    match &config.lrms {
        None => {}
        Some(lrms) => match lrms.kind {
            LrmsKind::Slurm => {
                let slurm = Slurm::new(slurm::SlurmConfig::of(lrms));
                found.extend(slurm::doctor::examine(&slurm).await);
                found.extend(examine(&slurm, &wish(lrms)?).await);
            }
            LrmsKind::GridEngine => {
                let engine = GridEngine::new(GridEngineConfig::of(lrms)?);
                let wish = wish(lrms)?;
                let accounts: Vec<Account> = wish.accounts.iter().map(|(account, _)| account.clone()).collect();
                found.extend(gridengine::doctor::examine(&engine).await);
                found.extend(gridengine::access::examine(&engine, &accounts).await);
                found.extend(examine(&engine, &wish).await);
            }
        },
    }
    if let Some(cloud) = &config.cloud
        && let CloudProvider::Ec2(ec2) = &cloud.provider
    {
        found.extend(account(&config, cloud, ec2).await?);
    }
    show(&found, out)?;
    let bad = found.iter().any(|f| f.grade == Grade::Bad);
    Ok(if bad { Ending::NotWell } else { Ending::Well })
}

/// What the configuration asks of the cluster.
#[cfg(feature = "ec2")]
async fn account(config: &GatewayConfig, cloud: &CloudConfig, ec2: &Ec2Config) -> Result<Vec<Finding>, Refusal> {
    let client = intergrid_ec2::daemon::client(ec2, None).await;
    let found = intergrid_ec2::doctor::examine(client, config, cloud, ec2).await?.into_iter();
    let one = |(what, how): intergrid_ec2::doctor::Found| match how {
        Ok(good) => Finding::good(what, good),
        Err(bad) => Finding::bad(what, bad, "docs/ec2.md says what is needed"),
    };
    Ok(found.map(one).collect())
}

#[cfg(not(feature = "ec2"))]
async fn account(_: &GatewayConfig, _: &CloudConfig, _: &Ec2Config) -> Result<Vec<Finding>, Refusal> {
    Ok(vec![Finding::bad("ec2", "this program is built without it", intergrid_gateway::daemon::NEEDS_EC2)])
}

fn wish(lrms: &LrmsConfig) -> Result<Wish, Refusal> {
    let accounts = match &lrms.accounts {
        AccountsConfig::Own => vec![(Account::Own, lrms.directory.clone().into())],
        rules @ AccountsConfig::Map(_) => {
            let all = Accounts::new(rules.clone()).map_err(Refusal::invalid)?.all();
            let place = |account: &Account| match account {
                Account::Own => lrms.directory.clone(),
                Account::Named(name) => lrms.directory.replace("{account}", name),
            };
            all.into_iter().map(|account| (account.clone(), place(&account).into())).collect()
        }
    };
    Ok(Wish { queues: lrms.queues.clone(), direct: lrms.direct(), limits: lrms.limits, accounts })
}

fn show(found: &[Finding], out: &Out) -> Result<()> {
    if out.json {
        let findings: Vec<_> = found.iter().map(|f| json!({"what": f.what, "grade": f.grade.word(), "seen": f.seen, "remedy": f.remedy})).collect();
        return out.object(json!({"findings": findings, "good": found.iter().all(|f| f.grade != Grade::Bad)}));
    }
    let mut table = Table::new(&["WHAT", "GRADE", "SEEN"]);
    for f in found {
        let paint = match f.grade {
            Grade::Good => Paint::Good,
            Grade::Warning => Paint::Warn,
            Grade::Bad => Paint::Bad,
        };
        table.row(vec![(&f.what).into(), Cell::painted(f.grade.word(), paint), (&f.seen).into()]);
    }
    table.print(out)?;
    for f in found.iter().filter(|f| !f.remedy.is_empty()) {
        out.line(format!("{}: {}", f.what, f.remedy))?;
    }
    Ok(())
}
