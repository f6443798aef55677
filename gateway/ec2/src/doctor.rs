//! Examines an account at EC2 before it is needed: may the gateway look, are the types known, and would a launch of each offer be taken? Nothing is launched: EC2
//! has dry runs.

use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::ProvideErrorMetadata;
use intergrid_gateway::config::{CloudConfig, Ec2Config, GatewayConfig};
use intergrid_gateway::rent::{Cloud, Launch};
use intergrid_proto::Refusal;
use intergrid_proto::net::Identity;

use crate::cloud::{Ec2, Parts};
use crate::daemon::measure;
use crate::outcome::{Failed, failed};

/// What EC2 says to a dry run that would have gone well.
const WOULD_GO: &str = "DryRunOperation";

/// What was looked at, and what is well or wrong with it.
pub type Found = (String, Result<String, String>);

/// Look at the account of this gateway.
pub async fn examine(client: Client, config: &GatewayConfig, cloud: &CloudConfig, ec2: &Ec2Config) -> Result<Vec<Found>, Refusal> {
    let (site, mut cloud) = (config.site.clone(), cloud.clone());
    let site_id = Identity::load(&site.identity)?.id();
    let types = match measure(&client, ec2, &mut cloud).await {
        Ok(()) => Ok(format!("{} in the catalogue", cloud.catalogue.types.len())),
        Err(why) => Err(why.to_string()),
    };
    let (gateway, alone_ms) = (site.name, cloud.alone_ms);
    let label = format!("{gateway}-m0");
    let machines = Ec2::new(client, Parts { config: ec2.clone(), gateway, site: site_id, state: site.state, identity: site.identity, alone_ms });
    let listed = match machines.list().await {
        Some(seen) => Ok(format!("{} of this gateway are listed in {}", seen.len(), ec2.region)),
        None => Err("they can't be listed; the log says why".to_string()),
    };
    let mut found = vec![("types".to_string(), types), ("machines".to_string(), listed)];
    for offer in &cloud.catalogue.offers {
        let (Some(kind), Some(price)) = (cloud.catalogue.types.get(&offer.key.machine).cloned(), offer.price) else { continue };
        let what = Launch { number: 0, label: label.clone(), offer: offer.key.clone(), kind, price, endpoint: String::new() };
        let would_go = match machines.dry_run(&what).await {
            Ok(()) => Err("EC2 takes no dry runs here: it was launched, and ended at once".into()),
            Err(e) if e.as_service_error().and_then(|e| e.code()) == Some(WOULD_GO) => {
                Ok(format!("would be launched, at {} {} an hour at most", price.ceiling, cloud.catalogue.currency))
            }
            Err(e) => Err(match failed(&e) {
                Failed::Refused(_, text) | Failed::Unknown(text) => text,
                Failed::OtherRequest => "EC2 took it for another launch".into(),
            }),
        };
        found.push((offer.key.to_string(), would_go));
    }
    Ok(found)
}
