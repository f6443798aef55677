//! A gateway whose machines are rented at EC2, as a process.

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Credentials;
use aws_sdk_ec2::types::{ArchitectureType, InstanceType};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_types::retry::RetryConfig;
use intergrid_gateway::config::{CloudConfig, CloudProvider, Ec2Config, GatewayConfig};
use intergrid_gateway::daemon::{DaemonOptions, over_rented, run_site};
use intergrid_proto::limits::GPUS_PER_MACHINE_MAX;
use intergrid_proto::link::Kind;
use intergrid_proto::{Refusal, RefusalKind};

use crate::cloud::{Ec2, Parts};
use crate::outcome::{Failed, failed};

/// A connection to EC2 is there by then.
const CONNECT_MAX_MS: u64 = 5_000;
/// One try of a call takes no longer ...
const TRY_MAX_MS: u64 = 30_000;
/// ... and a call with its repeats no longer than this.
const CALL_MAX_MS: u64 = 60_000;
/// Tries of a call that may be repeated as it is: all but launches.
const TRIES_MAX: u32 = 4;
/// Of a machine's memory its kernel and its agent take the rest: 15 of 16 parts are offered.
const OFFERED: (u64, u64) = (15, 16);

/// Serve until it is asked to end. Machines go on, and are found again.
pub async fn run(config: GatewayConfig, mut cloud: CloudConfig, ec2: Ec2Config, options: DaemonOptions) -> Result<(), Refusal> {
    let client = client(&ec2, None).await;
    measure(&client, &ec2, &mut cloud).await?;
    let site = config.site;
    run_site(Kind::Gateway, site.clone(), options, move |parts| {
        let machines = Ec2::new(
            client,
            Parts {
                config: ec2,
                gateway: parts.me.name.clone(),
                site: parts.me.site,
                state: site.state,
                identity: site.identity,
                alone_ms: cloud.alone_ms,
            },
        );
        Ok(over_rented(cloud, machines, parts))
    })
    .await
}

/// The sizes that a configuration leaves out, asked for anew.
pub async fn measured(mut cloud: CloudConfig) -> Result<CloudConfig, Refusal> {
    if let CloudProvider::Ec2(ec2) = cloud.provider.clone()
        && !ec2.measure.is_empty()
    {
        measure(&client(&ec2, None).await, &ec2, &mut cloud).await?;
    }
    Ok(cloud)
}

/// Speaks to EC2: TLS as everywhere in this program (rustls with ring); credentials are these, or by the default chain of AWS tools, asked for when they are
/// needed.
pub async fn client(config: &Ec2Config, credentials: Option<Credentials>) -> Client {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let ms = Duration::from_millis;
    let times =
        TimeoutConfig::builder().connect_timeout(ms(CONNECT_MAX_MS)).operation_attempt_timeout(ms(TRY_MAX_MS)).operation_timeout(ms(CALL_MAX_MS));
    let mut shared = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(config.region.clone()))
        .http_client(http)
        .retry_config(RetryConfig::standard().with_max_attempts(TRIES_MAX))
        .timeout_config(times.build());
    if let Some(credentials) = credentials {
        shared = shared.credentials_provider(credentials);
    }
    let mut own = aws_sdk_ec2::config::Builder::from(&shared.load().await);
    // Only EC2 is there; roles are still asked for at AWS.
    own.set_endpoint_url(config.endpoint_url.clone());
    Client::from_conf(own.build())
}

/// Ask for the sizes that the configuration leaves out.
pub async fn measure(client: &Client, config: &Ec2Config, cloud: &mut CloudConfig) -> Result<(), Refusal> {
    for name in &config.measure {
        let refuse = |kind, what: String| {
            Refusal::new(kind, format!("[[cloud.type]] {name:?}: its size is not known: {what}"))
                .remedy("correct that, or write its `slots` and `memory`")
        };
        let call = client.describe_instance_types().instance_types(InstanceType::from(name.as_str())).send();
        let answer = call.await.map_err(|e| match failed(&e) {
            Failed::Refused(_, text) => refuse(RefusalKind::Invalid, text),
            Failed::Unknown(text) => refuse(RefusalKind::Unavailable, text),
            Failed::OtherRequest => refuse(RefusalKind::Internal, "EC2 took it for another request".into()),
        })?;
        let about = answer.instance_types().first();
        let slots = about.and_then(|t| t.v_cpu_info()?.default_v_cpus()).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        let mib = about.and_then(|t| t.memory_info()?.size_in_mib()).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        let (Some(slots), Some(mib)) = (slots, mib) else {
            return Err(refuse(RefusalKind::Invalid, format!("there is no such type in {}", config.region)));
        };
        if let Some(kind) = cloud.catalogue.types.get_mut(name) {
            let architectures = about.and_then(|t| t.processor_info()).map_or(&[][..], |p| p.supported_architectures());
            let known = [(ArchitectureType::X8664, "x86_64"), (ArchitectureType::Arm64, "aarch64")];
            if let Some((_, architecture)) = known.into_iter().find(|(theirs, _)| architectures.contains(theirs)) {
                kind.architecture = architecture.to_string();
            }
            let gpus = about.and_then(|t| t.gpu_info()).map_or(&[][..], |g| g.gpus());
            kind.gpus = gpus.iter().filter_map(|g| u32::try_from(g.count()?).ok()).sum::<u32>().min(GPUS_PER_MACHINE_MAX);
            kind.slots = slots;
            kind.memory_bytes = (mib << 20) / OFFERED.1 * OFFERED.0;
            tracing::info!(machine = %name, slots, memory_bytes = kind.memory_bytes, gpus = kind.gpus, "measured");
        }
    }
    Ok(())
}
