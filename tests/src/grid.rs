//! Sites in this process. A site's directory, certificates and configuration are made as `grid init` makes them; it listens on loopback, and everything
//! between sites and clients goes over TCP and mTLS.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use intergrid_gateway::backend::Backend;
use intergrid_gateway::backends::agents::{AgentPool, StaticProvider};
use intergrid_gateway::backends::fake::Fake;
use intergrid_gateway::backends::remote::{Remote, Source};
use intergrid_gateway::config::{BrokerConfig, ChildConfig, LimitsConfig, PeerConfig, SiteConfig, TrustConfig};
use intergrid_gateway::core::schedule::Burst;
use intergrid_gateway::core::schedule::FirstFit;
use intergrid_gateway::daemon::{Built, DaemonOptions, Running};
use intergrid_proto::link::{Hop, Kind};
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::{CertRole, Identity, Role};
use intergrid_proto::{Refusal, RefusalKind};

use crate::client::Client;

/// A store of a site that was stopped may be held a moment longer.
const STORE_WAIT: Duration = Duration::from_secs(5);

/// A directory with everything that belongs to one test's sites.
pub struct Grid {
    dir: tempfile::TempDir,
}

impl Default for Grid {
    fn default() -> Self {
        Self::new()
    }
}

/// Machines of a fake gateway: `<name>-m0`, ... of this size, with 8 GiB of memory each.
pub fn machines(name: &str, machines: usize, slots: u32) -> Arc<Fake> {
    Fake::new(&format!("{name}-m"), Kind::Agent, machines, slots, 8 << 30)
}

/// A child that is dialled where it listens.
pub fn at(child: &Running) -> (String, Option<String>) {
    (child.me.name.clone(), Some(child.endpoint.clone()))
}

/// A child that dials.
pub fn dials(name: &str) -> (String, Option<String>) {
    (name.to_string(), None)
}

fn is_held(r: &Refusal) -> bool {
    r.kind == RefusalKind::Unavailable && r.message.contains("store")
}

impl Grid {
    /// With nothing in it.
    pub fn new() -> Self {
        crate::logs::keep();
        Grid { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Where a site's certificates are; made when first asked for.
    pub fn identity(&self, site: &str) -> PathBuf {
        let dir = self.dir.path().join(site).join("id");
        if !dir.exists() {
            issue::new_site(&dir, site, &[]).expect("a site's identity");
        }
        dir
    }

    /// A certificate of this site's CA.
    pub fn certificate(&self, site: &str, role: CertRole, label: &str) -> Arc<Identity> {
        let dir = self.dir.path().join(site).join(format!("{}-{label}", role.name()));
        if !dir.exists() {
            issue::issue(self.identity(site), role, label, &dir, Validity::default()).expect("a certificate");
        }
        Arc::new(Identity::load(&dir).expect("a certificate that loads"))
    }

    /// A site's own certificate.
    pub fn site_certificate(&self, site: &str) -> Arc<Identity> {
        Arc::new(Identity::load(self.identity(site)).expect("a certificate that loads"))
    }

    /// One entry of trust.
    pub fn trust(&self, site: &str, may: &[Role], on_behalf: &str) -> TrustConfig {
        let on_behalf = if on_behalf.is_empty() { Vec::new() } else { vec![on_behalf.to_string()] };
        TrustConfig { ca: self.identity(site).join("ca.pem"), may: may.iter().copied().collect::<BTreeSet<_>>(), on_behalf }
    }

    /// A site that lets its own users, admins and agents in, and lets these parents act for everybody.
    pub fn config(&self, name: &str, parents: &[&str]) -> SiteConfig {
        let mut trust = vec![self.trust(name, &[Role::User, Role::Admin, Role::Agent], "")];
        trust.extend(parents.iter().map(|p| self.trust(p, &[Role::Delegate], "*")));
        SiteConfig {
            name: name.to_string(),
            listen: "127.0.0.1:0".to_string(),
            state: self.dir.path().join(name).join("state"),
            identity: self.identity(name),
            trust,
            parent: None,
            limits: LimitsConfig { store_free_min_bytes: 1 << 20, ..LimitsConfig::default() },
            metrics: None,
            traces: None,
        }
    }

    /// A gateway over machines that are a fake.
    pub async fn gateway(&self, name: &str, parents: &[&str], backend: Arc<dyn Backend>) -> Running {
        self.gateway_of(self.config(name, parents), backend).await
    }

    /// A gateway over any backend. One that was just stopped is waited for.
    pub async fn gateway_of(&self, config: SiteConfig, backend: Arc<dyn Backend>) -> Running {
        waited(async || try_gateway(config.clone(), backend.clone()).await).await
    }

    /// A gateway to which agents may attach.
    pub async fn pool(&self, name: &str, parents: &[&str]) -> Running {
        let build = |parts: &intergrid_gateway::daemon::Parts| {
            let pool = AgentPool::new(Arc::new(StaticProvider), parts.blobs.clone(), parts.outputs.clone(), parts.above.clone());
            Ok(Built { backend: pool.clone(), policy: Box::new(FirstFit), pool: Some(pool), children: None })
        };
        let config = self.config(name, parents);
        Running::start(Kind::Gateway, config, DaemonOptions::default(), build).await.expect("a gateway")
    }

    /// The configuration of a broker over these children, see [`at`] and [`dials`].
    pub fn broker_config(&self, name: &str, parents: &[&str], children: &[(String, Option<String>)]) -> BrokerConfig {
        let mut site = self.config(name, parents);
        site.trust.extend(children.iter().filter(|(_, endpoint)| endpoint.is_none()).map(|(child, _)| self.trust(child, &[Role::Child], "")));
        let child = |(name, endpoint): &(String, Option<String>)| {
            let ca = self.identity(name).join("ca.pem");
            ChildConfig { name: name.clone(), endpoint: endpoint.clone(), ca }
        };
        BrokerConfig { site, children: children.iter().map(child).collect(), burst: Burst::default() }
    }

    /// A broker. One that was just stopped is waited for.
    pub async fn broker(&self, name: &str, parents: &[&str], children: &[(String, Option<String>)]) -> Running {
        self.broker_of(self.broker_config(name, parents, children)).await
    }

    /// A broker of a configuration.
    pub async fn broker_of(&self, config: BrokerConfig) -> Running {
        waited(async || intergrid_broker::daemon::start(config.clone()).await).await
    }

    /// That this site dials that parent.
    pub fn dialling(&self, mut config: SiteConfig, parent: &str, endpoint: &str) -> SiteConfig {
        config.parent = Some(PeerConfig { endpoint: endpoint.to_string(), ca: self.identity(parent).join("ca.pem") });
        config
    }

    /// A caller with a certificate of the called site's CA.
    pub async fn caller(&self, site: &Running, role: CertRole, label: &str) -> Client {
        let identity = self.certificate(&site.me.name, role, label);
        self.call(site, &identity).await.expect("a connection")
    }

    /// A user.
    pub async fn user(&self, site: &Running, label: &str) -> Client {
        self.caller(site, CertRole::User, label).await
    }

    /// A caller with any certificate.
    pub async fn call(&self, site: &Running, identity: &Identity) -> Result<Client, Refusal> {
        Client::connect(&site.endpoint, identity, &self.ca(&site.me.name)).await
    }

    /// A site as a backend of its parent, and the parent.
    pub fn remote(&self, child: &Running, parent: &str) -> (Arc<Remote>, Hop) {
        let identity = self.site_certificate(parent);
        let me = Hop { site: identity.id(), name: parent.to_string(), kind: Kind::Broker };
        let source = Source::Dial { endpoint: child.endpoint.clone() };
        (Remote::new(&child.me.name, self.ca(&child.me.name), identity, source), me)
    }

    /// A site's CA in PEM.
    pub fn ca(&self, site: &str) -> Vec<u8> {
        std::fs::read(self.identity(site).join("ca.pem")).expect("a CA")
    }

    /// Where all of it is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A gateway; refused where its store is in use.
pub async fn try_gateway(config: SiteConfig, backend: Arc<dyn Backend>) -> Result<Running, Refusal> {
    let built = |_: &_| Ok(Built { backend, policy: Box::new(FirstFit), pool: None, children: None });
    Running::start(Kind::Gateway, config, DaemonOptions::default(), built).await
}

async fn waited(mut start: impl AsyncFnMut() -> Result<Running, Refusal>) -> Running {
    let deadline = tokio::time::Instant::now() + STORE_WAIT;
    loop {
        match start().await {
            Ok(running) => return running,
            Err(r) if is_held(&r) && tokio::time::Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(r) => panic!("it does not start: {r}"),
        }
    }
}
