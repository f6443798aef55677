//! `[cloud.ec2]`: where machines are rented at EC2, from what they are made, and how they find their gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use intergrid_proto::Refusal;
use intergrid_proto::net::http_authority;
use serde::Deserialize;
use toml::Spanned;

use super::super::Source;

/// Tags of a user; three more are ours, and EC2 takes fifty.
const TAGS_MAX: usize = 40;
const TAG_KEY_CHARS_MAX: usize = 128;
const TAG_VALUE_CHARS_MAX: usize = 256;
/// Each is an offer of each type.
const SUBNETS_MAX: usize = 16;
const SECURITY_GROUPS_MAX: usize = 16;
const URL_BYTES_MAX: usize = 1_024;
/// The currency of bids.
const SPOT_CURRENCY: &str = "USD";

/// An account at EC2, as far as machines need it. Credentials are not here: they come from where all tools find them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ec2Config {
    /// As `eu-central-1`.
    pub region: String,
    /// What speaks EC2's language elsewhere; absent: EC2 in that region.
    pub endpoint_url: Option<String>,
    /// Where machines reach this gateway: `host:port`.
    pub gateway: String,
    /// Image; absent: the launch template's.
    pub ami: Option<String>,
    /// Id, or name, of a launch template, of which the default version is taken; what stands here goes before what stands there.
    pub launch_template: Option<String>,
    /// Each is an offer of its own, with its own back-off; none: the account's default.
    pub subnets: Vec<String>,
    /// Ids; none: the default of the network.
    pub security_groups: Vec<String>,
    /// For logging in; absent: nobody can.
    pub key_name: Option<String>,
    /// Name or ARN. What it may do, every task can do.
    pub instance_profile: Option<String>,
    /// More tags of machines and their disks.
    pub tags: BTreeMap<String, String>,
    /// Where a machine is told that it is taken back, as `http://host[:port]`; absent: where EC2 has it.
    pub notices: Option<String>,
    /// Where machines get `grid-agent`; absent: it is in the image.
    pub agent: Option<AgentProgram>,
    /// Types without `slots` and `memory`: EC2 is asked for them at start, and before that they are 1 in the catalogue.
    pub measure: BTreeSet<String>,
}

impl Ec2Config {
    /// Fields that differ in another and may not while machines run.
    pub(super) fn fixed(&self, new: &Ec2Config) -> impl Iterator<Item = &'static str> {
        // A subnet is a part of an offer, and a type that is measured is one.
        let Ec2Config { region, endpoint_url, gateway, ami, launch_template, subnets: _, .. } = self;
        let Ec2Config { security_groups, key_name, instance_profile, tags, notices, agent, measure: _, .. } = self;
        [
            ("region", *region == new.region),
            ("endpoint_url", *endpoint_url == new.endpoint_url),
            ("gateway", *gateway == new.gateway),
            ("ami", *ami == new.ami),
            ("launch_template", *launch_template == new.launch_template),
            ("security_groups", *security_groups == new.security_groups),
            ("key_name", *key_name == new.key_name),
            ("instance_profile", *instance_profile == new.instance_profile),
            ("tags", *tags == new.tags),
            ("notices", *notices == new.notices),
            ("agent", *agent == new.agent),
        ]
        .into_iter()
        .filter(|(_, same)| !same)
        .map(|(field, _)| field)
    }
}

/// Where `grid-agent` can be had.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentProgram {
    /// `https://...`
    pub url: String,
    /// In hexadecimal digits.
    pub sha256: String,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Default)]
#[serde(rename_all = "kebab-case")]
enum Market {
    #[default]
    OnDemand,
    Spot,
}

/// The section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    region: Spanned<String>,
    endpoint_url: Option<Spanned<String>>,
    #[serde(deserialize_with = "gateway")]
    gateway: String,
    ami: Option<Spanned<String>>,
    launch_template: Option<Spanned<String>>,
    #[serde(default)]
    subnets: Vec<Spanned<String>>,
    #[serde(default)]
    security_groups: Vec<Spanned<String>>,
    key_name: Option<Spanned<String>>,
    instance_profile: Option<Spanned<String>>,
    #[serde(default)]
    tags: BTreeMap<Spanned<String>, String>,
    #[serde(default)]
    market: Market,
    notices: Option<Spanned<String>>,
    agent: Option<Spanned<AgentProgram>>,
}

impl Section {
    /// Are its machines rented on spot?
    pub(super) fn is_spot(&self) -> bool {
        self.market == Market::Spot
    }
}

pub(super) fn read(section: &Spanned<Section>, currency: &str, source: &Source) -> Result<Ec2Config, Refusal> {
    let s = section.get_ref();
    let wrong = |at: std::ops::Range<usize>, what: String| source.refuse(at, &format!("[cloud.ec2] {what}"));
    let id = |field: &str, prefix: &str, id: &Spanned<String>| match id.get_ref().strip_prefix(prefix) {
        Some(rest) if is_word(rest) => Ok(id.get_ref().clone()),
        _ => Err(wrong(id.span(), format!("{field}: {:?} is not an id, as {prefix}0123456789abcdef0", id.get_ref()))),
    };
    let ids = |field: &str, prefix: &str, max: usize, list: &[Spanned<String>]| {
        let ids = list.iter().map(|one| id(field, prefix, one)).collect::<Result<Vec<_>, _>>()?;
        match ids.iter().collect::<BTreeSet<_>>().len() == ids.len() && ids.len() <= max {
            true => Ok(ids),
            false => Err(wrong(list[0].span(), format!("{field}: at most {max}, each once"))),
        }
    };
    let text = |field: &str, text: &Option<Spanned<String>>| match text {
        Some(t) if t.get_ref().is_empty() || t.get_ref().chars().any(|c| c.is_control() || c.is_whitespace()) => {
            Err(wrong(t.span(), format!("{field}: {:?} is not a name; leave it out where there is none", t.get_ref())))
        }
        other => Ok(other.as_ref().map(|t| t.get_ref().clone())),
    };
    if !is_word(s.region.get_ref()) {
        return Err(wrong(s.region.span(), format!("region: {:?} is none; write it as \"eu-central-1\"", s.region.get_ref())));
    }
    if let Some(url) = s.endpoint_url.as_ref().filter(|url| !is_url(url.get_ref())) {
        return Err(wrong(url.span(), format!("endpoint_url: {:?} is none; write https://host:port", url.get_ref())));
    }
    // What speaks EC2's language elsewhere may have its machines here.
    if s.endpoint_url.is_none() && is_this_machine(&s.gateway) {
        let what = format!("gateway: {:?} is each machine itself; write an address of this gateway that machines at EC2 reach", s.gateway);
        return Err(wrong(section.span(), what));
    }
    if let Some(url) = s.notices.as_ref().filter(|url| http_authority(url.get_ref()).is_none()) {
        return Err(wrong(
            url.span(),
            format!("notices: {:?} is not the address of a service; write http://host or http://host:port", url.get_ref()),
        ));
    }
    if s.ami.is_none() && s.launch_template.is_none() {
        return Err(wrong(section.span(), "has neither `ami` nor `launch_template`: say from what machines are made".into()));
    }
    if let Some(agent) = &s.agent {
        let a = agent.get_ref();
        if !is_url(&a.url) {
            return Err(wrong(agent.span(), format!("agent: {:?} is not a URL; write https://...", a.url)));
        }
        if a.sha256.len() != 64 || !a.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong(agent.span(), "agent: sha256 has 64 digits 0-9a-f; `sha256sum grid-agent` says them".into()));
        }
    }
    if s.is_spot() && currency != SPOT_CURRENCY {
        return Err(wrong(section.span(), format!("market = \"spot\": bids are in {SPOT_CURRENCY}, and [cloud] has currency = {currency:?}")));
    }
    if s.tags.len() > TAGS_MAX {
        return Err(wrong(section.span(), format!("{} tags, at most {TAGS_MAX}", s.tags.len())));
    }
    for (key, value) in &s.tags {
        let k = key.get_ref();
        let ours = k == "Name" || k.starts_with("intergrid:") || k.to_ascii_lowercase().starts_with("aws:");
        let fits = (1..=TAG_KEY_CHARS_MAX).contains(&k.chars().count()) && value.chars().count() <= TAG_VALUE_CHARS_MAX;
        if ours || !fits {
            let rule = format!(
                "keys of 1 to {TAG_KEY_CHARS_MAX} characters, values of at most {TAG_VALUE_CHARS_MAX}; Name, intergrid:* and aws:* are not yours"
            );
            return Err(wrong(key.span(), format!("tags: {k:?}: {rule}")));
        }
    }
    Ok(Ec2Config {
        region: s.region.get_ref().clone(),
        endpoint_url: s.endpoint_url.as_ref().map(|url| url.get_ref().clone()),
        gateway: s.gateway.clone(),
        ami: s.ami.as_ref().map(|ami| id("ami", "ami-", ami)).transpose()?,
        launch_template: text("launch_template", &s.launch_template)?,
        subnets: ids("subnets", "subnet-", SUBNETS_MAX, &s.subnets)?,
        security_groups: ids("security_groups", "sg-", SECURITY_GROUPS_MAX, &s.security_groups)?,
        key_name: text("key_name", &s.key_name)?,
        instance_profile: text("instance_profile", &s.instance_profile)?,
        tags: s.tags.iter().map(|(key, value)| (key.get_ref().clone(), value.clone())).collect(),
        notices: s.notices.as_ref().map(|url| url.get_ref().clone()),
        agent: s.agent.as_ref().map(|agent| agent.get_ref().clone()),
        measure: BTreeSet::new(),
    })
}

/// It stands in a script that a machine runs, so it is host:port and nothing else.
fn gateway<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let at = super::super::endpoint(d)?;
    match at.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']')) {
        true => Ok(at),
        false => Err(serde::de::Error::custom(format!("{at:?} is not host:port, as in \"grid.example.org:7411\""))),
    }
}

/// For whoever dials this `host:port`.
fn is_this_machine(at: &str) -> bool {
    let host = at.rsplit_once(':').map_or(at, |(host, _)| host).trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.is_unspecified())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// It may stand in a script, in single quotes.
fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text.len() <= URL_BYTES_MAX
        && rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic() && !b"'\"\\`$<>".contains(&b)))
}
