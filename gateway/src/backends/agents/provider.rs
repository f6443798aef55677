//! Makers of machines. A provider sees to it that machines are there; what they do, they are told over their links.

use std::collections::BTreeSet;

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_proto::Refusal;

use crate::backend::Account;

/// A maker of machines.
pub trait Provider: Send + Sync + 'static {
    /// One word, as in the configuration.
    fn name(&self) -> &'static str;

    /// The machines that it keeps: label, and why it is not up; empty: it is, as far as is known.
    fn machines(&self) -> Vec<(String, String)>;

    /// May an agent of this label call? Certificates outlive machines.
    fn admits(&self, _label: &str) -> Result<(), Refusal> {
        Ok(())
    }

    /// May it come, or come back? Not while its machine is being ended; one that only takes no new work may bring home what it has.
    fn admits_anew(&self, label: &str) -> Result<(), Refusal> {
        self.admits(label)
    }

    /// What is rented, and what that costs; empty where nothing is.
    fn account(&self) -> Account {
        Account::default()
    }

    /// The engine is up: may this provider begin, by what was written down?
    fn check(&self) -> Result<(), Refusal> {
        Ok(())
    }

    /// Begin, inside a tokio runtime: agents shall dial this endpoint.
    fn start(&self, endpoint: String);

    /// End what was made; done when it is gone. Those of `busy` run something: where this provider finds its machines again, they are left for its next start.
    fn stop(&self, busy: BTreeSet<String>) -> BoxFuture<'static, ()>;
}

/// Machines come by themselves: somebody else starts their agents.
#[derive(Clone, Copy, Debug, Default)]
pub struct StaticProvider;

impl Provider for StaticProvider {
    fn name(&self) -> &'static str {
        "static"
    }

    fn machines(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn start(&self, _: String) {}

    fn stop(&self, _: BTreeSet<String>) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}
