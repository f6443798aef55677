//! SIGHUP: a gateway reads its configuration again, and goes by what may change while it runs: what can be rented, and for how much.
//!
//! All of it or nothing: where the file is wrong, or something else in it has changed, everything stays as it was, and the log says what.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use intergrid_proto::{Refusal, RefusalKind};
use intergrid_provision::Terms;
use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{CloudConfig, GatewayConfig, SiteConfig};
use crate::durable::blocking;
use crate::rent::NewTerms;

/// Asks elsewhere for what a file leaves out.
pub type Complete = fn(CloudConfig) -> BoxFuture<'static, Result<CloudConfig, Refusal>>;

/// From now on the signal does not end this process; what it brings comes out of the receiver. `config` is what the file said at the start.
pub fn on_hangup(file: &Path, config: GatewayConfig, complete: Complete) -> Result<NewTerms, Refusal> {
    let mut hangups = signal(SignalKind::hangup()).map_err(|e| Refusal::new(RefusalKind::Internal, format!("signals: {e}")))?;
    let (to, terms) = watch::channel(None);
    let mut reload = Reload { file: file.to_path_buf(), config, complete, to };
    let on_terminal = std::io::stderr().is_terminal();
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            if on_terminal && !std::io::stderr().is_terminal() {
                // It was closed: that is what the signal was for.
                _ = kill_process(getpid(), Signal::TERM);
                return;
            }
            match reload.again().await {
                Ok(changes) if changes.is_empty() => tracing::info!("the configuration was read again: nothing has changed"),
                Ok(changes) => tracing::info!("the configuration was read again: {}", changes.join("; ")),
                Err(why) => tracing::error!("the configuration was read again, and everything stays as it was: {why}"),
            }
        }
    });
    Ok(terms)
}

struct Reload {
    file: PathBuf,
    /// What holds.
    config: GatewayConfig,
    complete: Complete,
    to: watch::Sender<Option<Terms>>,
}

impl Reload {
    /// What has changed, in one clause each.
    async fn again(&mut self) -> Result<Vec<String>, Refusal> {
        let file = self.file.clone();
        let new = blocking(move || GatewayConfig::load(file)).await?;
        let fixed = fixed(&self.config, &new);
        if !fixed.is_empty() {
            let what = format!("{}: this can't change while the gateway runs: {}", self.file.display(), fixed.join("; "));
            return Err(Refusal::invalid(what).remedy("write it as it was, or start the gateway again: its machines go on, and are found again"));
        }
        let Some((old, cloud)) = self.config.cloud.as_ref().zip(new.cloud.clone()) else { return Ok(Vec::new()) };
        let changes = old.terms().changes(&cloud.terms());
        if changes.is_empty() {
            return Ok(changes);
        }
        self.to.send_replace(Some((self.complete)(cloud).await?.terms()));
        self.config = new;
        Ok(changes)
    }
}

/// What differs and may not, by its name in the file.
fn fixed(old: &GatewayConfig, new: &GatewayConfig) -> Vec<String> {
    // A field that comes has to be put here, or to be let change.
    let GatewayConfig { site, agents, lrms, pilots, cloud, joined_by: _ } = old;
    let SiteConfig { name, listen, state, identity, trust, parent, limits, metrics, traces } = site;
    let of = &new.site;
    let same = [
        ("name", *name == of.name),
        ("listen", *listen == of.listen),
        ("state", *state == of.state),
        ("identity", *identity == of.identity),
        ("trust", *trust == of.trust),
        ("parent", *parent == of.parent),
        ("limits", *limits == of.limits),
        ("metrics", *metrics == of.metrics),
        ("traces", *traces == of.traces),
        ("agents", *agents == new.agents),
        ("slurm, gridengine or map", *lrms == new.lrms),
        ("pilots", *pilots == new.pilots),
        ("cloud", cloud.is_some() == new.cloud.is_some()),
    ];
    let differ = same.into_iter().filter(|(_, same)| !same).map(|(field, _)| field.to_string());
    let rented = cloud.iter().zip(&new.cloud).flat_map(|(old, new)| old.fixed(new));
    differ.chain(rented).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"name = "burst"
listen = "127.0.0.1:0"
state = "state"
identity = "identity"

[[trust]]
ca = "ca.pem"
may = ["user"]

[cloud]
provider = "ec2"
slots_max = 8
idle = "1m"
alone = "5m"
currency = "USD"
budget = { hour = "1" }

[cloud.ec2]
region = "eu-central-1"
gateway = "grid.example.org:7411"
ami = "ami-1"
subnets = ["subnet-1"]

[[cloud.type]]
name = "m1"
slots = 1
memory = "1G"
price = "0.10"
billing = "second"

[[cloud.owner]]
name = "lab"
hour = "0.50"

[[cloud.owner]]
name = "ann"
of = "lab"
hour = "0.20"
"#;

    fn complete(cloud: CloudConfig) -> BoxFuture<'static, Result<CloudConfig, Refusal>> {
        Box::pin(async move {
            match cloud.catalogue.types.contains_key("none") {
                true => Err(Refusal::invalid("there is no such type")),
                false => Ok(cloud),
            }
        })
    }

    #[tokio::test]
    async fn what_may_change_is_taken_and_all_else_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("burst.toml");
        std::fs::write(&file, FILE).unwrap();
        let (to, terms) = watch::channel(None);
        let mut reload = Reload { file: file.clone(), config: GatewayConfig::load(&file).unwrap(), complete, to };
        assert_eq!(Ok(Vec::new()), reload.again().await);
        for (old, new, want) in [
            ("name = \"burst\"", "name = \"other\"", "runs: name"),
            ("127.0.0.1:0", "127.0.0.1:1", "runs: listen"),
            ("may = [\"user\"]", "may = [\"admin\"]", "runs: trust"),
            ("\"5m\"", "\"6m\"", "runs: cloud.alone"),
            ("\"USD\"", "\"EUR\"", "runs: cloud.currency"),
            ("eu-central-1", "eu-west-1", "runs: cloud.ec2.region"),
            ("ami-1", "ami-2", "runs: cloud.ec2.ami"),
            ("name = \"ann\"", "name = \"bob\"", "runs: cloud.owner \"ann\""),
            ("of = \"lab\"\n", "", "runs: cloud.owner \"ann\""),
            ("price = \"0.10\"", "price = 0.10", "28:9: invalid type: floating point `0.1`, expected a string, in `price`"),
            ("hour = \"1\"", "hour = 1", "in `hour`"),
            ("name = \"m1\"", "name = \"none\"", "there is no such type"),
        ] {
            // The price would change, too.
            let text = FILE.replacen(old, new, 1).replacen("price = \"0.10\"", "price = \"0.20\"", 1);
            std::fs::write(&file, text).unwrap();
            let refused = reload.again().await.expect_err(new).to_string();
            assert!(refused.contains(want), "{new}: {refused}");
            assert!(terms.borrow().is_none(), "{new}: nothing is taken");
        }
        let more = "\n[[cloud.type]]\nname = \"m2\"\nslots = 2\nmemory = \"1G\"\nprice = \"0.20\"\nbilling = \"hour\"\n";
        let text =
            FILE.replace("0.10", "0.12").replace("\"1m\"", "\"2m\"").replace("hour = \"0.20\"", "hour = \"0.30\"").replace("subnet-1", "subnet-2");
        std::fs::write(&file, text + more).unwrap();
        let said = reload.again().await.unwrap();
        let want =
            ["m1 in subnet-1 is no longer rented", "m1 in subnet-2 is rented at 0.12 USD per hour", "m2 in subnet-2 is rented at 0.20 USD per hour"];
        assert_eq!([&want[..], &["caps of ann", "limits"]].concat(), said);
        let taken = terms.borrow().clone().unwrap();
        assert_eq!((2, 120_000), (taken.catalogue.offers.len(), taken.settings.idle_ms));
        assert_eq!(Ok(Vec::new()), reload.again().await, "that is what holds now");
    }
}
