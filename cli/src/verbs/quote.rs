//! What a submission may cost, shown before it is sent: where it could run, at what price, and the worst case. Somebody has to agree.

use intergrid_proto::money::human_micro;
use intergrid_proto::spec::OnLost;
use intergrid_proto::{JobSpec, Refusal, pb};

use crate::ask;
use crate::render;
use crate::render::table::Table;
use crate::stop::Result;
use crate::verbs::Context;
use crate::verbs::submit::Submission;

/// The most that it can come to.
#[derive(PartialEq, Eq, Debug)]
enum Worst {
    /// Millionths of a currency.
    Of(u64, String),
    /// Without a time limit and a cap, anything.
    Unbounded,
    /// Prices in several currencies, one of them each.
    Several(Vec<(u64, String)>),
}

impl std::fmt::Display for Worst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Worst::Of(micro, currency) => write!(f, "{} {currency}", human_micro(*micro)),
            Worst::Unbounded => f.write_str("no limit: give each task a time limit (-t), or the job a cap (--max-cost)"),
            Worst::Several(all) => {
                let all: Vec<String> = all.iter().map(|(micro, currency)| format!("{} {currency}", human_micro(*micro))).collect();
                f.write_str(&all.join(" or "))
            }
        }
    }
}

/// Shares that cost money and that the job can pay.
fn paid<'a>(spec: &JobSpec, shares: &'a [pb::QuotedShare]) -> Vec<&'a pb::QuotedShare> {
    let can_pay = |s: &&pb::QuotedShare| match &spec.max_cost {
        None => true,
        Some(cap) => cap.currency == s.currency && s.attempt_micro.is_some_and(|most| most <= cap.micro),
    };
    shares.iter().filter(|s| s.price_micro_per_slot_hour > 0).filter(can_pay).collect()
}

/// Every attempt of every task on the dearest share, and never more than the cap.
fn worst(spec: &JobSpec, tasks: u32, paid: &[&pb::QuotedShare]) -> Worst {
    if let Some(cap) = &spec.max_cost {
        let all = paid.iter().filter_map(|s| s.attempt_micro).max().unwrap_or(0).saturating_mul(attempts(spec, tasks));
        return Worst::Of(all.min(cap.micro), cap.currency.clone());
    }
    let mut by_currency: Vec<(u64, String)> = Vec::new();
    for s in paid {
        let Some(most) = s.attempt_micro.map(|m| m.saturating_mul(attempts(spec, tasks))) else { return Worst::Unbounded };
        match by_currency.iter_mut().find(|(_, c)| *c == s.currency) {
            Some((micro, _)) => *micro = most.max(*micro),
            None => by_currency.push((most, s.currency.clone())),
        }
    }
    match by_currency.pop() {
        Some((micro, currency)) if by_currency.is_empty() => Worst::Of(micro, currency),
        last => Worst::Several(by_currency.into_iter().chain(last).collect()),
    }
}

/// Attempts of all tasks together.
fn attempts(spec: &JobSpec, tasks: u32) -> u64 {
    let each = if spec.on_lost == OnLost::Wait { 1 } else { spec.attempts_max };
    u64::from(tasks) * u64::from(each)
}

/// May it be sent? Where it may cost money, that is shown on stderr, and asked unless `yes` has been said: who has agreed need not see it, so it is left out
/// where the site has no answer.
pub async fn agreed(context: &Context<'_>, job: &Submission, yes: bool) -> Result<()> {
    let spec = JobSpec::decode(&job.spec)?;
    if spec.max_cost.as_ref().is_some_and(|cap| cap.micro == 0) {
        return Ok(());
    }
    let request = pb::QuoteRequest { spec: job.spec.clone() };
    let reply = match context.client.call("quote", async |mut grid| grid.quote(request.clone()).await).await {
        Err(_) if yes => return Ok(()),
        reply => reply?,
    };
    let paid = paid(&spec, &reply.shares);
    if paid.is_empty() {
        return Ok(());
    }
    let worst = worst(&spec, job.tasks, &paid);
    let text = shown(context, &reply.shares, &paid, job.tasks, &worst);
    let can_ask = ask::can_ask() && !context.out.json;
    if yes || !can_ask {
        context.out.note(&text);
    }
    if yes {
        return Ok(());
    }
    if !can_ask {
        let message = format!("it may cost money, and nobody can be asked here; in the worst case: {worst}");
        let nothing = paid.first().map_or(String::new(), |s| format!(", --max-cost 0{} for what costs nothing", s.currency));
        return Err(Refusal::invalid(message).remedy(format!("--yes if you agree, --max-cost AMOUNT for less{nothing}")).into());
    }
    if ask::yes(&format!("{text}\nSubmit it?"))? {
        return Ok(());
    }
    Err(Refusal::invalid("nothing was submitted").into())
}

/// Tasks that find room now where they cost nothing.
fn at_no_cost(all: &[pb::QuotedShare], tasks: u32) -> u64 {
    let free = all.iter().filter(|s| s.price_micro_per_slot_hour == 0).map(|s| s.slots_free / s.slots.max(1));
    free.fold(0, u64::saturating_add).min(tasks.into())
}

/// Where it would run, at what price, and the worst case.
fn shown(context: &Context<'_>, all: &[pb::QuotedShare], paid: &[&pb::QuotedShare], tasks: u32, worst: &Worst) -> String {
    let mut text = format!("this job may cost money: {}", render::count(tasks.into(), "task"));
    text += &match at_no_cost(all, tasks) {
        0 => ", and nothing is free where it costs none\n".to_string(),
        n => format!(", {n} of which find room now where they cost none\n"),
    };
    text.extend(table(paid).lines(context.out).into_iter().map(|line| line + "\n"));
    text + &format!("worst case, with every attempt to its time limit: {worst}")
}

fn table(paid: &[&pb::QuotedShare]) -> Table {
    let mut table = Table::new(&["WHERE", ">SLOTS A TASK", ">FREE", ">PER SLOT-HOUR", ">ONE ATTEMPT, AT MOST"]);
    for s in paid {
        let most = s.attempt_micro.map_or_else(|| "no limit".into(), |m| format!("{} {}", human_micro(m), s.currency));
        table.row(vec![
            s.key.as_str().into(),
            s.slots.into(),
            if s.away { "away".to_string() } else { format!("{} of {}", s.slots_free, s.slots_total) }.into(),
            format!("{} {}", human_micro(s.price_micro_per_slot_hour), s.currency).into(),
            most.into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use intergrid_proto::Money;

    fn share(price: u64, currency: &str, most: Option<u64>) -> pb::QuotedShare {
        let (price_micro_per_slot_hour, currency) = (price, currency.to_string());
        pb::QuotedShare { price_micro_per_slot_hour, currency, attempt_micro: most, slots: 1, ..Default::default() }
    }

    #[test]
    fn the_worst_case_is_every_attempt_on_the_dearest_and_never_more_than_the_cap() {
        let mut spec = JobSpec::new(["x"]);
        let shares = [share(0, "", Some(0)), share(5, "USD", Some(50)), share(7, "USD", Some(70)), share(9, "EUR", None)];
        let usd = |micro| Worst::Of(micro, "USD".to_string());
        assert_eq!(Worst::Unbounded, worst(&spec, 10, &paid(&spec, &shares)));
        assert_eq!(usd(70 * 10 * u64::from(spec.attempts_max)), worst(&spec, 10, &paid(&spec, &shares[..3])));
        spec.on_lost = OnLost::Wait;
        assert_eq!(usd(700), worst(&spec, 10, &paid(&spec, &shares[..3])));
        let euro = [share(5, "USD", Some(50)), share(9, "EUR", Some(90))];
        assert_eq!(Worst::Several(vec![(50, "USD".into()), (90, "EUR".into())]), worst(&spec, 1, &paid(&spec, &euro)));
        spec.max_cost = Some(Money { micro: 120, currency: "USD".into() });
        assert_eq!(usd(120), worst(&spec, 10, &paid(&spec, &shares)));
        assert_eq!(usd(70), worst(&spec, 1, &paid(&spec, &shares)));
        spec.max_cost = Some(Money { micro: 60, currency: "USD".into() });
        assert_eq!(vec![&shares[1]], paid(&spec, &shares));
        spec.max_cost = Some(Money { micro: 60, currency: "EUR".into() });
        assert!(paid(&spec, &shares).is_empty());
    }

    #[test]
    fn no_more_tasks_find_room_than_there_are() {
        let free = |slots_free, slots, price| pb::QuotedShare { slots_free, slots, ..share(price, "USD", None) };
        let shares = [free(5, 2, 0), free(4, 1, 0), free(9, 1, 5)];
        assert_eq!([0, 2, 6, 6], [0, 2, 6, 7].map(|tasks| at_no_cost(&shares, tasks)));
    }
}
