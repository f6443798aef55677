//! The contract of a provider of machines: launch, terminate, list. The provisioner says what and when; a cloud does it, and tells the truth of what it saw.
//!
//! Laws: a launch with the number of a machine that was launched returns that machine, or that it is gone, and never makes a second one; what may exist is
//! listed under its number; every call ends in bounded time; what is not known is [`Outcome::Unknown`], or None.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;
use futures::future::BoxFuture;
use intergrid_provision::{MachineType, OfferKey, Outcome, Price, Rate, Seen, SeenState};

/// A machine to be launched.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The intent's: idempotency token, and tag.
    pub number: u64,
    /// Name of its agent.
    pub label: String,
    /// What.
    pub offer: OfferKey,
    /// Its size.
    pub kind: MachineType,
    /// Its price, the bid among it.
    pub price: Price,
    /// Where its agent attaches: `host:port`.
    pub endpoint: String,
}

/// A provider of machines.
pub trait Cloud: Send + Sync + 'static {
    /// One word, as in the configuration.
    fn name(&self) -> &'static str;

    /// Launch a machine.
    fn launch(&self, what: Launch) -> BoxFuture<'static, Outcome>;

    /// End a machine, by the provider's name for it: how it is now, where that was said.
    fn terminate(&self, id: String) -> BoxFuture<'static, Option<SeenState>>;

    /// All machines of this gateway; None: the look failed.
    fn list(&self) -> BoxFuture<'static, Option<Vec<Seen>>>;

    /// What spot machines of these types cost now, per hour: of each the highest of all places where it may be launched. None: the look failed.
    /// Most providers have no such market.
    fn spot_prices(&self, _types: BTreeSet<String>) -> BoxFuture<'static, Option<BTreeMap<String, Rate>>> {
        async { Some(BTreeMap::new()) }.boxed()
    }

    /// Labels of the machines that [`stop`](Cloud::stop) would end now. A cloud leaves them all: they go on, or end by themselves.
    fn ends_at_stop(&self, _busy: &BTreeSet<String>) -> BTreeSet<String> {
        BTreeSet::new()
    }

    /// The gateway ends, in order. Machines of `busy` agents run something. Returns the labels of those that have ended by it, for certain.
    fn stop(&self, busy: BTreeSet<String>) -> BoxFuture<'static, BTreeSet<String>>;
}
