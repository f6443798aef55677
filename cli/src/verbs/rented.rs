//! `machines`, and `cost`: what the gateways below have rented, and what that costs, against the caps. Told with the sites, hop by hop.

use intergrid_proto::money::human_micro as money;
use intergrid_proto::{Shape, pb};
use serde_json::{Value, json};

use super::hosts;
use crate::out::{Out, Paint};
use crate::render::table::{Cell, Table};
use crate::render::{self, objects};
use crate::stop::{Ending, Result};
use crate::verbs::Context;

fn cap(micro: Option<u64>) -> String {
    micro.map_or_else(|| "-".into(), money)
}

/// Every site with its route, and those that could not be asked. A machine that is not attached is told of, and counted, by its gateway.
fn sites(host: &pb::Host) -> (Vec<(String, &pb::Host)>, Vec<String>) {
    let nodes: Vec<(String, &pb::Host)> = hosts::nodes(host, "").rows().into_iter().map(|(_, node)| node).collect();
    let is_machine = |h: &pb::Host| h.site.as_ref().is_some_and(|s| s.kind() == pb::Kind::Agent);
    let away = nodes.iter().filter(|(_, h)| !h.unreachable.is_empty() && !is_machine(h)).map(|(route, _)| route.clone()).collect();
    (nodes, away)
}

/// What is not in the answer is said.
fn note(out: &Out, away: &[String]) {
    if !away.is_empty() {
        out.note(format!("unreachable, so not counted here: {}", away.join(", ")));
    }
}

/// Each machine, and why it is there.
pub async fn machines(context: &Context<'_>, out: &Out) -> Result<Ending> {
    let host = hosts::ask(&context.client).await?;
    let (sites, away) = sites(&host);
    let all: Vec<(&str, &pb::Host, &pb::Machine)> = sites.iter().flat_map(|(route, h)| h.machines.iter().map(|m| (route.as_str(), *h, m))).collect();
    if out.json {
        let machines: Vec<Value> = all.iter().map(|(route, h, m)| machine(route, h, m)).collect();
        out.object(json!({ "machines": machines, "unreachable": away }))?;
        return Ok(Ending::Well);
    }
    note(out, &away);
    if all.is_empty() {
        out.line("no machine is rented")?;
    } else {
        let mut table = Table::new(&["MACHINE", "SITE", "TYPE", ">SLOTS", ">BUSY", ">PER HOUR", ">AGE", ">PAID FOR", "OWNER", "RENTED FOR", "STATE"]);
        for (route, h, m) in &all {
            // Pilots ask for no money.
            let paid = |text: String| if h.currency.is_empty() { "-".to_string() } else { text };
            table.row(vec![
                m.name.as_str().into(),
                (*route).into(),
                kind(m).into(),
                u64::from(m.slots).into(),
                m.busy.into(),
                paid(format!("{} {}", money(m.rate_micro), h.currency)).into(),
                render::duration(m.age_ms).into(),
                paid(render::duration(m.paid_ms)).into(),
                m.owner.as_str().into(),
                m.need.as_ref().map_or_else(|| "-".to_string(), need).into(),
                state(h, m),
            ]);
        }
        table.print(out)?;
    }
    out.next("next: grid cost")?;
    Ok(Ending::Well)
}

fn kind(m: &pb::Machine) -> String {
    let zone = if m.zone.is_empty() { String::new() } else { format!(" in {}", m.zone) };
    format!("{}{zone}{}", m.r#type, if m.spot { " (spot)" } else { "" })
}

/// Why its agent takes no new work, if it is told so, or says so itself.
fn draining<'a>(gateway: &'a pb::Host, m: &pb::Machine) -> Option<&'a pb::Reason> {
    gateway.below.iter().find(|b| b.site.as_ref().is_some_and(|s| s.name == m.name))?.draining.as_ref()
}

/// What it does; and who drains it, unless its gateway does and says why.
fn state(gateway: &pb::Host, m: &pb::Machine) -> Cell {
    match draining(gateway, m).filter(|r| !m.state.ends_with(&r.text)) {
        Some(r) => Cell::painted(format!("{}; {}", m.state, super::admin::draining(r)), Paint::Warn),
        None => Cell::painted(m.state.clone(), if m.unknown { Paint::Warn } else { Paint::Plain }),
    }
}

/// `3 tasks of 2 slots and 4 GiB of memory, alice`
fn need(n: &pb::Need) -> String {
    let shape = Shape { gpus: n.gpus, ..Shape::new(n.slots, n.memory_bytes) };
    format!("{} of {shape}, {}", render::count(n.tasks, "task"), n.principal)
}

fn machine(route: &str, gateway: &pb::Host, m: &pb::Machine) -> Value {
    let need = m.need.as_ref();
    let need = need.map(|n| json!({ "tasks": n.tasks, "slots": n.slots, "memory_bytes": n.memory_bytes, "gpus": n.gpus, "principal": n.principal }));
    json!({
        "machine": m.name, "site": route, "id": m.id, "type": m.r#type, "zone": m.zone, "spot": m.spot, "slots": m.slots, "busy": m.busy,
        "price_per_hour": money(m.rate_micro), "currency": gateway.currency, "age_ms": m.age_ms, "paid_ms": m.paid_ms, "owner": m.owner,
        "state": m.state, "unknown": m.unknown, "rented_for": need, "draining": draining(gateway, m).map(objects::reason),
    })
}

/// Each budget: what is charged, and what may be.
pub async fn cost(context: &Context<'_>, out: &Out) -> Result<Ending> {
    let host = hosts::ask(&context.client).await?;
    let (sites, away) = sites(&host);
    let all: Vec<(&str, &pb::Host, &pb::Spending)> = sites.iter().flat_map(|(route, h)| h.spending.iter().map(|s| (route.as_str(), *h, s))).collect();
    if out.json {
        let budgets: Vec<Value> = all.iter().map(|(route, h, s)| budget(route, &h.currency, s)).collect();
        out.object(json!({ "budgets": budgets, "unreachable": away }))?;
        return Ok(Ending::Well);
    }
    note(out, &away);
    if all.is_empty() {
        out.line("nothing can be rented here or below: no budget")?;
        return Ok(Ending::Well);
    }
    let mut table =
        Table::new(&["BUDGET", "SITE", "", ">PER HOUR", ">CAP", ">UNKNOWN", ">RESERVED", ">TODAY", ">CAP", ">MONTH", ">CAP", ">TOTAL", ">CAP"]);
    for (route, h, s) in &all {
        let name = if s.above.is_empty() { s.name.clone() } else { format!("{} (of {})", s.name, s.above) };
        let near = |n: u64, of: u64| u128::from(n) * 5 >= u128::from(of) * 4;
        let used = |n: u64, of: Option<u64>| Cell::painted(money(n), if of.is_some_and(|of| near(n, of)) { Paint::Warn } else { Paint::Plain });
        table.row(vec![
            name.into(),
            (*route).into(),
            h.currency.as_str().into(),
            used(s.rate_micro, s.rate_cap_micro),
            cap(s.rate_cap_micro).into(),
            Cell::painted(money(s.unknown_micro), if s.unknown_micro > 0 { Paint::Warn } else { Paint::Plain }),
            money(s.reserved_micro).into(),
            used(s.today_micro, s.today_cap_micro),
            cap(s.today_cap_micro).into(),
            used(s.month_micro, s.month_cap_micro),
            cap(s.month_cap_micro).into(),
            used(s.total_micro, s.total_cap_micro),
            cap(s.total_cap_micro).into(),
        ]);
    }
    table.print(out)?;
    out.next("charged: what was spent, and what is reserved: what machines can cost until their leases end. next: grid machines")?;
    Ok(Ending::Well)
}

fn budget(route: &str, currency: &str, s: &pb::Spending) -> Value {
    json!({
        "budget": s.name, "above": s.above, "site": route, "currency": currency,
        "per_hour": money(s.rate_micro), "per_hour_cap": s.rate_cap_micro.map(money), "per_hour_unknown": money(s.unknown_micro),
        "reserved": money(s.reserved_micro),
        "today": money(s.today_micro), "today_cap": s.today_cap_micro.map(money),
        "month": money(s.month_micro), "month_cap": s.month_cap_micro.map(money),
        "total": money(s.total_micro), "total_cap": s.total_cap_micro.map(money),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_written_as_people_do() {
        assert_eq!(("-".to_string(), "1.50".to_string()), (cap(None), cap(Some(1_500_000))));
    }

    #[test]
    fn a_machine_that_boots_is_counted_by_its_gateway() {
        let host = |name: &str, kind: pb::Kind, below| {
            let site = Some(pb::Hop { name: name.into(), kind: kind.into(), ..Default::default() });
            pb::Host { site, unreachable: "never since this site started".into(), below, ..Default::default() }
        };
        let root = host("root", pb::Kind::Broker, vec![host("burst", pb::Kind::Gateway, vec![host("burst-m1", pb::Kind::Agent, vec![])])]);
        let (all, away) = sites(&root);
        assert_eq!((3, vec!["root".to_string(), "root/burst".to_string()]), (all.len(), away));
    }

    #[test]
    fn a_machine_says_what_it_was_rented_for() {
        let mut m = pb::Machine { name: "burst-m1".into(), ..Default::default() };
        let burst = pb::Host { currency: "EUR".into(), ..Default::default() };
        assert_eq!(Value::Null, machine("burst", &burst, &m)["rented_for"], "of a site that does not know");
        m.need = Some(pb::Need { slots: 2, memory_bytes: 4 << 30, gpus: 1, tasks: 3, principal: "alice".into() });
        let told = json!({ "tasks": 3, "slots": 2, "memory_bytes": 4u64 << 30, "gpus": 1, "principal": "alice" });
        assert_eq!(told, machine("burst", &burst, &m)["rented_for"]);
        assert_eq!("3 tasks of 2 slots, 4 GiB of memory and 1 GPU, alice", m.need.as_ref().map(need).unwrap());
    }

    #[test]
    fn a_machine_that_is_drained_says_by_whom_and_why() {
        let agent = |by: &str, text: &str| pb::Host {
            site: Some(pb::Hop { name: "burst-m1".into(), ..Default::default() }),
            draining: Some(pb::Reason { text: text.into(), site_name: by.into(), age_ms: 2_000, ..Default::default() }),
            ..Default::default()
        };
        let of = |m: &pb::Machine, below| {
            let gateway = pb::Host { below, ..Default::default() };
            (state(&gateway, m), machine("burst", &gateway, m)["draining"]["text"].clone())
        };
        let mut m = pb::Machine { name: "burst-m1".into(), state: "working".into(), ..Default::default() };
        let plain = |text: &str| Cell::painted(text, Paint::Plain);
        let drained = Cell::painted("working; draining for 2s by ann: new disk", Paint::Warn);
        assert_eq!((drained, json!("new disk")), of(&m, vec![agent("ann", "new disk")]));
        assert_eq!((plain("working"), Value::Null), of(&m, vec![]), "it boots");
        m.state = "takes no new work: its time is over".into();
        let own = of(&m, vec![agent("provisioner", "its time is over")]);
        assert_eq!((plain(&m.state), json!("its time is over")), own, "what its gateway decided is said once");
        m.name = "burst-m2".into();
        assert_eq!(Value::Null, of(&m, vec![agent("ann", "new disk")]).1, "another is drained");
    }
}
