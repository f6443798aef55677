//! Orders: what an administrator, or a job's owner, decides beyond wishes. Who may is checked here, what it does is the core's.

use std::time::Duration;

use intergrid_proto::limits::{NAME_BYTES_MAX, REASON_TEXT_BYTES_MAX, TREE_CALL_TIMEOUT_MS};
use intergrid_proto::net::identity::Role;
use intergrid_proto::net::trust::Peer;
use intergrid_proto::{JobNo, Refusal, RefusalKind, pb};

use super::Service;
use crate::core::orders::{Done, Order};

/// A site or machine as people name it.
fn named(what: &str, name: String) -> Result<String, Refusal> {
    let good = name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    if good { Ok(name) } else { Err(Refusal::invalid(format!("{what}: a name has at most {NAME_BYTES_MAX} bytes, without control characters"))) }
}

impl Service {
    pub(super) async fn ordered(&self, peer: &Peer, r: pb::OrderRequest) -> Result<pb::OrderReply, Refusal> {
        use pb::order_request::What;
        let by = peer.label.clone();
        let (order, target) = match r.what {
            Some(What::Drain(d)) => {
                peer.require(Role::Admin)?;
                if d.reason.trim().is_empty() || d.reason.len() > REASON_TEXT_BYTES_MAX / 4 || d.reason.chars().any(char::is_control) {
                    let message = format!("reason: 1 to {} bytes without control characters, for those whose work waits", REASON_TEXT_BYTES_MAX / 4);
                    return Err(Refusal::invalid(message));
                }
                let site = named("site", d.site)?;
                (Order::Drain { site: site.clone(), reason: d.reason, by }, Some(site))
            }
            Some(What::Resume(site)) => {
                peer.require(Role::Admin)?;
                let site = named("site", site)?;
                (Order::Resume { site: site.clone() }, Some(site))
            }
            Some(What::Lost(site)) => {
                peer.require(Role::Admin)?;
                let site = named("agent", site)?;
                (Order::Lost { site: site.clone(), by }, Some(site))
            }
            Some(What::Look(site)) => {
                peer.require(Role::Admin)?;
                let site = named("agent", site)?;
                (Order::Look { site: site.clone() }, Some(site))
            }
            Some(What::Cancel(c)) => {
                let job = self.find(peer, c.job).await?;
                let tasks = self.some_of(job, c.tasks).await?;
                (Order::Cancel { job, tasks }, None)
            }
            Some(What::Throttle(t)) => {
                let job = self.find(peer, t.job).await?;
                (Order::Throttle { job, at_once: t.tasks_at_once }, None)
            }
            None => {
                return Err(
                    Refusal::new(RefusalKind::MustUnderstand, "an order that this site does not know").remedy("ask a site of a later version")
                );
            }
        };
        let job = match &order {
            Order::Cancel { job, .. } | Order::Throttle { job, .. } => JobNo(*job).id(),
            _ => String::new(),
        };
        match self.engine.order(order).await {
            Ok(done) => Ok(reply(done, job)),
            Err(r) => Err(match target {
                Some(name) if r.kind == RefusalKind::NotFound => self.further_below(&name).await.unwrap_or(r),
                _ => r,
            }),
        }
    }

    /// Orders are not passed on: a site decides what it does with its own. Who is meant may be known further below; then whom to ask instead.
    async fn further_below(&self, name: &str) -> Option<Refusal> {
        let me = self.hosts_tree(Duration::from_millis(TREE_CALL_TIMEOUT_MS)).await.ok()?;
        let (route, endpoint) = me.below.iter().find_map(|h| route_to(h, name))?;
        let here = &self.engine.me().name;
        let message = format!("{name} is not attached to {here}: it is at {}", [vec![here.clone()], route].concat().join("/"));
        let remedy = match endpoint.is_empty() {
            true => "ask its own site".to_string(),
            false => format!("ask there, with --endpoint {endpoint} and an administrator's certificate of that site"),
        };
        Some(Refusal::new(RefusalKind::NotFound, message).remedy(remedy))
    }
}

/// The names down to it, and where to ask: a site itself, of an agent its gateway.
fn route_to(h: &pb::Host, name: &str) -> Option<(Vec<String>, String)> {
    let site = h.site.as_ref()?;
    if site.name == name || site.site.iter().map(|b| format!("{b:02x}")).collect::<String>() == name {
        return Some((vec![site.name.clone()], h.endpoint.clone()));
    }
    let (mut route, endpoint) = h.below.iter().find_map(|b| route_to(b, name))?;
    route.insert(0, site.name.clone());
    Some((route, if endpoint.is_empty() { h.endpoint.clone() } else { endpoint }))
}

fn reply(done: Done, job: String) -> pb::OrderReply {
    let at = done.at.into_iter().map(|(hop, active)| pb::SiteCount { site: hop.site.0.to_vec(), name: hop.name, active, ended: 0 }).collect();
    pb::OrderReply { site: done.site.map(Into::into), job, tasks: done.tasks, elsewhere: done.elsewhere, at }
}
