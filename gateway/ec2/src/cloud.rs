//! The contract of a provider of machines, kept by EC2. A machine is an instance with three tags, put on it by the call that makes it: `intergrid:gateway` is
//! this gateway's id, `intergrid:number` the intent's number, `Name` the agent's.
//!
//! Invariants: a launch whose token was made before is looked for by its tags, and only then asked for again, under the same idempotency token and with the
//! same bytes; a call that might have launched something is never answered with a refusal. It keeps no record of money or machines but the tokens' files.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::SdkError;
use aws_sdk_ec2::operation::run_instances::RunInstancesError;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder;
use aws_sdk_ec2::types::{
    Filter, HttpTokensState, IamInstanceProfileSpecification, Instance, InstanceInterruptionBehavior, InstanceMarketOptionsRequest,
    InstanceMetadataEndpointState, InstanceMetadataOptionsRequest, InstanceStateName, InstanceType, LaunchTemplateSpecification, MarketType,
    ResourceType, ShutdownBehavior, SpotInstanceType, SpotMarketOptions, Tag, TagSpecification,
};
use aws_smithy_types::base64;
use aws_smithy_types::date_time::{DateTime, Format};
use aws_smithy_types::retry::RetryConfig;
use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_gateway::config::Ec2Config;
use intergrid_gateway::durable::blocking;
use intergrid_gateway::rent::{Cloud, Launch};
use intergrid_proto::SiteId;
use intergrid_provision::{Outcome, Rate, Refused, Seen, SeenState};
use tokio::time::{sleep, timeout};

use crate::outcome::{Failed, failed};
use crate::tokens::{Token, Tokens};
use crate::user_data::{Told, USER_DATA_BYTES_MAX, user_data};

/// Whose it is.
pub const TAG_GATEWAY: &str = "intergrid:gateway";
/// For which intent it was made.
pub const TAG_NUMBER: &str = "intergrid:number";
/// A launch takes no longer, with its look and its repeats; the caller waits longer than that.
const LAUNCH_MAX_MS: u64 = 90_000;
/// A launch that is throttled is repeated so often within one call ...
const THROTTLED_MAX: u32 = 5;
/// ... after a random part of this, doubled each time.
const THROTTLED_MS: u64 = 500;
/// Machines that one page of a listing may have.
const PAGE_MAX: i32 = 500;
/// What is rented is paid for as this.
const SPOT_PRODUCT: &str = "Linux/UNIX";
/// Pages of a listing; more is taken for a failed look.
const PAGES_MAX: usize = 200;

/// What this provider is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The account's part.
    pub config: Ec2Config,
    /// The gateway's name.
    pub gateway: String,
    /// The gateway's id.
    pub site: SiteId,
    /// Its state directory.
    pub state: PathBuf,
    /// Its identity directory, with its CA's key.
    pub identity: PathBuf,
    /// A machine that is alone for so long ends.
    pub alone_ms: u64,
}

/// Machines of an account at EC2.
pub struct Ec2(Arc<Inner>);

struct Inner {
    client: Client,
    parts: Parts,
    tokens: Tokens,
}

impl Ec2 {
    /// With this client.
    pub fn new(client: Client, parts: Parts) -> Arc<Self> {
        let tokens = Tokens::new(&parts.state, parts.identity.clone());
        Arc::new(Ec2(Arc::new(Inner { client, parts, tokens })))
    }

    /// Would this launch be taken? An error says so, too. What ignores that it is a dry run is ended.
    pub(crate) async fn dry_run(&self, what: &Launch) -> Result<(), SdkError<RunInstancesError>> {
        let made = self.0.request(what, "#!/bin/sh\n").set_client_token(None).dry_run(true).send().await?;
        for id in made.instances().iter().filter_map(|instance| instance.instance_id()) {
            self.0.terminate(id.to_string()).await;
        }
        Ok(())
    }
}

impl Inner {
    async fn launch(&self, what: Launch) -> Outcome {
        let (tokens, label) = (self.tokens.clone(), what.label.clone());
        let (token, before) = match blocking(move || tokens.of(&label)).await {
            Ok(Token::New(token)) => (token, false),
            Ok(Token::Again(token)) => (token, true),
            Ok(Token::Spent) => return Outcome::Refused(Refused::TokenSpent, "its machine has ended".into()),
            Err(why) => return Outcome::Refused(Refused::by_us(&why), why.to_string()),
        };
        if before {
            match self.find(&what).await {
                None => return unknown("its earlier launch can't be looked for"),
                Some(Some(known)) => return known,
                // It may not be listed yet: the idempotency token finds it then.
                Some(None) => {}
            }
        }
        let outcome = self.run(&what, &token).await;
        match &outcome {
            Outcome::Refused(Refused::TokenSpent, _) => self.with_tokens(move |tokens| tokens.spend(&what.label)).await,
            Outcome::Refused(..) if !before => self.with_tokens(move |tokens| tokens.remove(&what.label)).await,
            _ => {}
        }
        outcome
    }

    async fn run(&self, what: &Launch, token: &str) -> Outcome {
        let p = &self.parts;
        let told = Told {
            label: &what.label,
            gateway: &p.config.gateway,
            slots: what.kind.slots,
            memory_bytes: what.kind.memory_bytes,
            gpus: what.kind.gpus,
            token,
            alone_ms: p.alone_ms,
            notices: p.config.notices.as_deref(),
            agent: p.config.agent.as_ref(),
        };
        let data = user_data(&told);
        if data.len() > USER_DATA_BYTES_MAX {
            let text = format!("what a machine is told has {} bytes, and EC2 takes {USER_DATA_BYTES_MAX}", data.len());
            return Outcome::Refused(Refused::Provider, text);
        }
        let mut tries = 0;
        loop {
            // Without repeats of the SDK's own: it would not tell us that one of several calls may have launched something.
            let once = aws_sdk_ec2::Config::builder().retry_config(RetryConfig::disabled());
            let call = self.request(what, &data).customize().config_override(once).send();
            let why = match call.await {
                Ok(made) => {
                    let launched = made.instances().first().and_then(known);
                    return launched.unwrap_or_else(|| unknown("EC2 names nothing that it has launched"));
                }
                Err(e) => failed(&e),
            };
            match why {
                Failed::Refused(Refused::Throttled, _) if tries < THROTTLED_MAX => {
                    sleep(Duration::from_millis(random_below(THROTTLED_MS << tries))).await;
                    tries += 1;
                }
                Failed::Refused(refused, text) => {
                    tracing::debug!(machine = %what.label, %text, "EC2 refuses a launch");
                    return Outcome::Refused(refused, text);
                }
                // Made from another configuration, before this one was read.
                Failed::OtherRequest => {
                    let found = self.find(what).await.flatten();
                    return found.unwrap_or_else(|| unknown("EC2 took it for another launch, which can't be found"));
                }
                Failed::Unknown(text) => {
                    tracing::warn!(machine = %what.label, %text, "not known whether EC2 has launched it");
                    return Outcome::Unknown(text);
                }
            }
        }
    }

    fn request(&self, what: &Launch, data: &str) -> RunInstancesFluentBuilder {
        let (config, spot) = (&self.parts.config, what.offer.spot);
        let metadata = InstanceMetadataOptionsRequest::builder()
            .http_tokens(HttpTokensState::Required)
            .http_endpoint(InstanceMetadataEndpointState::Enabled)
            .http_put_response_hop_limit(1)
            .build();
        let market = spot.then(|| {
            let options = SpotMarketOptions::builder()
                .max_price(what.price.ceiling.to_string())
                .spot_instance_type(SpotInstanceType::OneTime)
                .instance_interruption_behavior(InstanceInterruptionBehavior::Terminate);
            InstanceMarketOptionsRequest::builder().market_type(MarketType::Spot).spot_options(options.build()).build()
        });
        let template = config.launch_template.as_ref().map(|name| {
            let template = LaunchTemplateSpecification::builder();
            let template = if name.starts_with("lt-") { template.launch_template_id(name) } else { template.launch_template_name(name) };
            template.build()
        });
        let profile = config.instance_profile.as_ref().map(|name| {
            let profile = IamInstanceProfileSpecification::builder();
            if name.starts_with("arn:") { profile.arn(name).build() } else { profile.name(name).build() }
        });
        let tagged = |kind| TagSpecification::builder().resource_type(kind).set_tags(Some(self.tags(what))).build();
        self.client
            .run_instances()
            .client_token(client_token(self.parts.site, what.number))
            .min_count(1)
            .max_count(1)
            .instance_type(InstanceType::from(what.offer.machine.as_str()))
            .set_image_id(config.ami.clone())
            .set_launch_template(template)
            .set_subnet_id(Some(what.offer.zone.clone()).filter(|subnet| !subnet.is_empty()))
            .set_security_group_ids(Some(config.security_groups.clone()).filter(|groups| !groups.is_empty()))
            .set_key_name(config.key_name.clone())
            .set_iam_instance_profile(profile)
            .set_instance_market_options(market)
            .metadata_options(metadata)
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .user_data(base64::encode(data))
            .tag_specifications(tagged(ResourceType::Instance))
            .tag_specifications(tagged(ResourceType::Volume))
    }

    fn tags(&self, what: &Launch) -> Vec<Tag> {
        let ours = [(TAG_GATEWAY, self.parts.site.to_string()), (TAG_NUMBER, what.number.to_string()), ("Name", what.label.clone())]
            .map(|(k, v)| (k.to_string(), v));
        let theirs = self.parts.config.tags.iter().map(|(k, v)| (k.clone(), v.clone()));
        ours.into_iter().chain(theirs).map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
    }

    /// The machine of this number; None: the look failed.
    async fn find(&self, what: &Launch) -> Option<Option<Outcome>> {
        let found = self.describe(Some(what.number)).await?;
        // The number was given before, by a store of which this one is an old copy: what has another price is not what was asked for.
        let known = |instance: &Instance| match instance.instance_type().map(|kind| kind.as_str()) {
            Some(kind) if kind != what.offer.machine => Some(Outcome::Refused(Refused::TokenSpent, format!("its number has launched a {kind}"))),
            _ => known(instance),
        };
        // One that exists goes before one that is gone.
        let mut known: Vec<Outcome> = found.iter().filter_map(known).collect();
        known.sort_by_key(|outcome| !matches!(outcome, Outcome::Launched(_)));
        Some(known.into_iter().next())
    }

    /// All our instances, or those of one number; None: not all could be seen.
    async fn describe(&self, number: Option<u64>) -> Option<Vec<Instance>> {
        let tag = |key: &str, value: String| Filter::builder().name(format!("tag:{key}")).values(value).build();
        let mut filters = vec![tag(TAG_GATEWAY, self.parts.site.to_string())];
        filters.extend(number.map(|number| tag(TAG_NUMBER, number.to_string())));
        let (mut all, mut next) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let call = self.client.describe_instances().set_filters(Some(filters.clone())).max_results(PAGE_MAX).set_next_token(next.take());
            match call.send().await {
                Ok(page) => {
                    all.extend(page.reservations().iter().flat_map(|r| r.instances()).cloned());
                    next = page.next_token().filter(|token| !token.is_empty()).map(str::to_string);
                }
                Err(e) => {
                    tracing::warn!("EC2 does not say what machines there are: {:?}", failed(&e));
                    return None;
                }
            }
            if next.is_none() {
                return Some(all);
            }
        }
        tracing::warn!("EC2 lists more than {PAGES_MAX} pages of machines of this gateway; the look is given up");
        None
    }

    async fn list(&self) -> Option<Vec<Seen>> {
        let seen: Vec<Seen> = self.describe(None).await?.iter().filter_map(seen).collect();
        let exist: BTreeSet<u64> = seen.iter().filter(|s| s.state != SeenState::Ended).filter_map(|s| s.number).collect();
        let ended: Vec<u64> = seen.iter().filter(|s| s.state == SeenState::Ended).filter_map(|s| s.number).filter(|n| !exist.contains(n)).collect();
        let gateway = self.parts.gateway.clone();
        let keep = move |tokens: Tokens| {
            ended.into_iter().for_each(|number| tokens.spend(&format!("{gateway}-m{number}")));
            tokens.sweep();
        };
        self.with_tokens(keep).await;
        Some(seen)
    }

    async fn spot_prices(&self, types: BTreeSet<String>) -> Option<BTreeMap<String, Rate>> {
        let kinds: Vec<InstanceType> = types.iter().map(|name| InstanceType::from(name.as_str())).collect();
        let (mut highest, mut next) = (BTreeMap::new(), None);
        for _ in 0..PAGES_MAX {
            // From now on: of each place the price that holds.
            let call = self.client.describe_spot_price_history().set_instance_types(Some(kinds.clone())).product_descriptions(SPOT_PRODUCT);
            match call.start_time(SystemTime::now().into()).set_next_token(next.take()).send().await {
                Ok(page) => {
                    for price in page.spot_price_history() {
                        let (Some(kind), Some(text)) = (price.instance_type(), price.spot_price()) else { continue };
                        // One that can't be read is not known, and so the highest.
                        let digits = if text.contains('.') { text.trim_end_matches('0') } else { text };
                        let rate = digits.parse().unwrap_or(Rate(u64::MAX));
                        let most: &mut Rate = highest.entry(kind.as_str().to_string()).or_default();
                        *most = rate.max(*most);
                    }
                    next = page.next_token().filter(|token| !token.is_empty()).map(str::to_string);
                }
                Err(e) => {
                    tracing::warn!("EC2 does not say what spot machines cost, so the bids count: {:?}", failed(&e));
                    return None;
                }
            }
            if next.is_none() {
                return Some(highest);
            }
        }
        None
    }

    async fn with_tokens(&self, work: impl FnOnce(Tokens) + Send + 'static) {
        let tokens = self.tokens.clone();
        _ = tokio::task::spawn_blocking(move || work(tokens)).await;
    }

    async fn terminate(&self, id: String) -> Option<SeenState> {
        match self.client.terminate_instances().instance_ids(&id).send().await {
            Ok(answer) => {
                let change = answer.terminating_instances().iter().find(|change| change.instance_id() == Some(id.as_str()))?;
                state_of(change.current_state()?.name())
            }
            Err(e) => {
                tracing::warn!(%id, "EC2 does not end a machine: {:?}; it is told again", failed(&e));
                None
            }
        }
    }
}

/// One for each intent: within EC2's 64 characters, and never given twice.
fn client_token(site: SiteId, number: u64) -> String {
    format!("ig-{site}-{number}")
}

/// An instance that stops or is stopped still has a disk, and may run again: only `terminated` is the end.
fn state_of(name: Option<&InstanceStateName>) -> Option<SeenState> {
    match name? {
        InstanceStateName::Terminated => Some(SeenState::Ended),
        _ => Some(SeenState::Exists),
    }
}

fn known(instance: &Instance) -> Option<Outcome> {
    let id = instance.instance_id()?;
    Some(match state_of(instance.state().and_then(|s| s.name())) {
        Some(SeenState::Ended) => Outcome::Refused(Refused::TokenSpent, format!("{id} has ended")),
        _ => Outcome::Launched(id.to_string()),
    })
}

fn seen(instance: &Instance) -> Option<Seen> {
    let number = instance.tags().iter().find(|tag| tag.key() == Some(TAG_NUMBER)).and_then(|tag| tag.value()?.parse().ok());
    let state = state_of(instance.state().and_then(|s| s.name())).unwrap_or(SeenState::Exists);
    let machine = instance.instance_type().map(|kind| kind.as_str().to_string());
    let ended_ms = instance.state_transition_reason().filter(|_| state == SeenState::Ended).and_then(ended_ms);
    Some(Seen { id: instance.instance_id()?.to_string(), number, machine, state, ended_ms })
}

/// When it ended, of EC2's words that say it, as `User initiated (2026-11-23 09:36:58 GMT)`: ms since 1970, to the end of that second.
fn ended_ms(reason: &str) -> Option<u64> {
    let (_, at) = reason.strip_suffix(" GMT)").or(reason.strip_suffix(" UTC)"))?.rsplit_once('(')?;
    let at = DateTime::from_str(&format!("{}Z", at.replacen(' ', "T", 1)), Format::DateTime).ok()?;
    Some(u64::try_from(at.to_millis().ok()?).ok()? + 1_000)
}

fn unknown(why: &str) -> Outcome {
    Outcome::Unknown(why.into())
}

/// So that many who are throttled at once do not come again at once.
fn random_below(ms: u64) -> u64 {
    RandomState::new().build_hasher().finish() % ms.max(1)
}

impl Cloud for Ec2 {
    fn name(&self) -> &'static str {
        "ec2"
    }

    fn launch(&self, what: Launch) -> BoxFuture<'static, Outcome> {
        let inner = self.0.clone();
        async move { timeout(Duration::from_millis(LAUNCH_MAX_MS), inner.launch(what)).await.unwrap_or_else(|_| unknown("no answer in time")) }
            .boxed()
    }

    fn terminate(&self, id: String) -> BoxFuture<'static, Option<SeenState>> {
        let inner = self.0.clone();
        async move { inner.terminate(id).await }.boxed()
    }

    fn list(&self) -> BoxFuture<'static, Option<Vec<Seen>>> {
        let inner = self.0.clone();
        async move { inner.list().await }.boxed()
    }

    fn spot_prices(&self, types: BTreeSet<String>) -> BoxFuture<'static, Option<BTreeMap<String, Rate>>> {
        let inner = self.0.clone();
        async move { inner.spot_prices(types).await }.boxed()
    }

    /// They go on, or end by themselves.
    fn stop(&self, _: BTreeSet<String>) -> BoxFuture<'static, BTreeSet<String>> {
        async { BTreeSet::new() }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_instance_ended_is_read_where_it_is_said() {
        for zone in ["GMT", "UTC"] {
            assert_eq!(Some(1_795_426_619_000), ended_ms(&format!("User initiated (2026-11-23 09:36:58 {zone})")));
        }
        let unsaid = ["", "Server.SpotInstanceTermination", "User initiated", "User initiated (GMT)", "(1960-01-01 00:00:00 GMT)", "(soon GMT)"];
        assert_eq!([None; 6], unsaid.map(ended_ms));
    }

    #[test]
    fn an_idempotency_token_fits() {
        assert_eq!("ig-0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b-17", client_token(SiteId([11; 16]), 17));
        assert!(client_token(SiteId([255; 16]), u64::MAX).len() <= 64);
    }
}
