//! The provisioner's records as rows of the site's store: one row a record, numbered; from time to time a checkpoint takes their place.
//!
//! Law: what [`Book::rows`] returned and was committed is what [`Book::load`] reads. Tags never change their meaning; the golden test keeps the form.

use intergrid_proto::{Refusal, RefusalKind, Shape};
use intergrid_provision::{Billing, Ledger, Machine, MachineType, Money, Need, OfferKey, Price, Rate, Record, Stage, Why};
use prost::Message;

use crate::engine::Rows;
use crate::store::{Reader, StoreError};

/// The table's letter.
const TABLE: u8 = b'r';
/// So many rows are replaced by a checkpoint.
const ROWS_MAX: usize = 1_000;

/// Where the rows are.
#[derive(Debug, Default)]
pub struct Book {
    next: u64,
    /// Rows that are there, from the first to `next`.
    first: u64,
}

impl Book {
    /// All records, in order.
    pub fn load(reader: &dyn Reader) -> Result<(Book, Vec<Record>), Refusal> {
        let mut book: Option<Book> = None;
        let (mut records, mut fault) = (Vec::new(), None);
        let read = reader.scan(&[TABLE], &mut |key, value| {
            let number = key.get(1..).and_then(|k| k.try_into().ok()).map(u64::from_be_bytes);
            let (Some(number), Some(record)) = (number, Row::decode(value).ok().and_then(record)) else {
                fault = Some(StoreError::Damaged { path: "rented machines".into(), what: format!("row {key:?}") });
                return false;
            };
            book.get_or_insert(Book { first: number, next: number }).next = number + 1;
            records.push(record);
            true
        });
        match read.err().or(fault) {
            Some(e) => Err(Refusal::new(RefusalKind::Internal, e.to_string())),
            None => Ok((book.unwrap_or_default(), records)),
        }
    }

    /// To be committed; where rows have become many, `checkpoint` (which holds what `records` say) takes the place of all.
    pub fn rows(&mut self, records: &[Record], checkpoint: impl FnOnce() -> Vec<Record>) -> Rows {
        let mut rows = Rows::new();
        let whole = if (self.next - self.first) as usize + records.len() > ROWS_MAX { Some(checkpoint()) } else { None };
        if whole.is_some() {
            rows.extend((self.first..self.next).map(|n| (key(n), None)));
            self.first = self.next;
        }
        for record in whole.as_deref().unwrap_or(records) {
            rows.push((key(self.next), Some(row(record).encode_to_vec())));
            self.next += 1;
        }
        rows
    }
}

fn key(number: u64) -> Vec<u8> {
    [[TABLE].as_slice(), &number.to_be_bytes()].concat()
}

/// A record, flat: what it is, and the fields that it has.
#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(uint32, tag = "1")]
    what: u32,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(uint64, tag = "3")]
    at_ms: u64,
    #[prost(uint64, tag = "4")]
    paid_ms: u64,
    /// The provider's name for a machine, or a budget's; why an offer is left alone.
    #[prost(string, tag = "5")]
    name: String,
    /// A reason, by its number; 0: none.
    #[prost(uint32, tag = "6")]
    why: u32,
    #[prost(bool, tag = "7")]
    never: bool,
    #[prost(uint64, tag = "8")]
    rate: u64,
    #[prost(message, optional, tag = "9")]
    rented: Option<Rented>,
    /// 1: asked, 2: named, 3: ended.
    #[prost(uint32, tag = "10")]
    stage: u32,
    #[prost(uint64, tag = "11")]
    settled_ms: u64,
    /// Day, amount, day, amount, ...
    #[prost(uint64, repeated, tag = "12")]
    days: Vec<u64>,
    #[prost(uint64, tag = "13")]
    before: u64,
    /// Of a budget.
    #[prost(string, optional, tag = "14")]
    above: Option<String>,
    /// Of what was spent: to the root, for one who has no budget. An older program knows of nobody of that name, and passes over it.
    #[prost(bool, tag = "15")]
    other: bool,
    /// Of a machine whose agent has not come yet. A version that did not write down when one came left it out.
    #[prost(bool, tag = "16")]
    awaited: bool,
    /// A machine's agent has come. An older program reads the number of a next machine, which it has passed already.
    #[prost(bool, tag = "17")]
    came: bool,
    /// Who stands below whom: name, name above, name, ... An older program reads the number of a next machine, likewise.
    #[prost(string, repeated, tag = "18")]
    tree: Vec<String>,
    /// A machine's times are set back. An older program reads the number of a next machine, likewise.
    #[prost(bool, tag = "19")]
    set_back: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Rented {
    #[prost(string, tag = "1")]
    machine: String,
    #[prost(string, tag = "2")]
    zone: String,
    #[prost(bool, tag = "3")]
    spot: bool,
    #[prost(uint32, tag = "4")]
    slots: u32,
    #[prost(uint64, tag = "5")]
    memory_bytes: u64,
    #[prost(string, tag = "6")]
    architecture: String,
    #[prost(uint32, optional, tag = "7")]
    machines_max: Option<u32>,
    #[prost(string, tag = "8")]
    owner: String,
    #[prost(uint64, tag = "9")]
    rate: u64,
    #[prost(uint64, tag = "10")]
    ceiling: u64,
    /// Seconds at least, where billed by the second; absent: by the hour.
    #[prost(uint32, optional, tag = "11")]
    min_s: Option<u32>,
    #[prost(uint32, tag = "12")]
    gpus: u32,
    /// What for; absent: it was not written down.
    #[prost(message, optional, tag = "13")]
    need: Option<Needed>,
}

/// Tasks of one machine each.
#[derive(Clone, PartialEq, Message)]
struct Needed {
    #[prost(uint32, tag = "1")]
    slots: u32,
    #[prost(uint64, tag = "2")]
    memory_bytes: u64,
    #[prost(uint32, tag = "3")]
    gpus: u32,
    #[prost(uint64, tag = "4")]
    tasks: u64,
    #[prost(string, tag = "5")]
    principal: String,
}

const INTENDED: u32 = 1;
const NAMED: u32 = 2;
const ENDING: u32 = 3;
const LEASED: u32 = 4;
const GONE: u32 = 5;
const FORGOTTEN: u32 = 6;
const KEPT: u32 = 7;
const SPENT: u32 = 8;
const NEXT: u32 = 9;
const CURRENCY: u32 = 10;
const LEFT_ALONE: u32 = 11;

const WHYS: [Why; 7] = [Why::Idle, Why::Budget, Why::Away, Why::Interrupted, Why::Surplus, Why::Ordered, Why::Leaving];
const STAGES: [Stage; 3] = [Stage::Asked, Stage::Named, Stage::Ended];

fn number_of<T: PartialEq>(all: &[T], one: T) -> u32 {
    all.iter().position(|w| *w == one).map_or(0, |n| n as u32 + 1)
}

fn of_number<T: Copy>(all: &[T], number: u32) -> Option<T> {
    all.get((number as usize).checked_sub(1)?).copied()
}

fn needed(need: &Need) -> Needed {
    let Need { shape: Shape { slots, memory_bytes, gpus, .. }, tasks, principal } = need.clone();
    Needed { slots, memory_bytes, gpus, tasks, principal }
}

fn need(n: Needed) -> Need {
    let shape = Shape { gpus: n.gpus, ..Shape::new(n.slots, n.memory_bytes) };
    Need { shape, tasks: n.tasks, principal: n.principal }
}

fn rented(offer: &OfferKey, kind: &MachineType, owner: &str, need: Option<&Need>, price: &Price) -> Option<Rented> {
    let OfferKey { machine, zone, spot } = offer.clone();
    let MachineType { slots, memory_bytes, gpus, architecture, machines_max } = kind.clone();
    let min_s = if let Billing::Second { min_s } = price.billing { Some(min_s) } else { None };
    let (owner, rate, ceiling) = (owner.to_string(), price.rate.0, price.ceiling.0);
    let need = need.map(needed);
    Some(Rented { machine, zone, spot, slots, memory_bytes, gpus, architecture, machines_max, owner, rate, ceiling, min_s, need })
}

fn row(record: &Record) -> Row {
    match record {
        Record::Intended { number, offer, kind, owner, need, price, at_ms, paid_ms, awaited } => {
            let rented = rented(offer, kind, owner, need.as_ref(), price);
            Row { what: INTENDED, number: *number, at_ms: *at_ms, paid_ms: *paid_ms, rented, awaited: *awaited, ..Row::default() }
        }
        Record::Named { number, id } => Row { what: NAMED, number: *number, name: id.clone(), ..Row::default() },
        Record::Came { number } => Row { what: NEXT, number: *number, came: true, ..Row::default() },
        Record::Ending { number, why } => Row { what: ENDING, number: *number, why: number_of(&WHYS, *why), ..Row::default() },
        Record::Leased { number, at_ms, rate_max, paid_ms } => {
            Row { what: LEASED, number: *number, at_ms: *at_ms, rate: rate_max.0, paid_ms: *paid_ms, ..Row::default() }
        }
        Record::SetBack { number, at_ms } => Row { what: NEXT, number: *number, at_ms: *at_ms, set_back: true, ..Row::default() },
        Record::Gone { number, at_ms, never } => Row { what: GONE, number: *number, at_ms: *at_ms, never: *never, ..Row::default() },
        Record::Forgotten { number } => Row { what: FORGOTTEN, number: *number, ..Row::default() },
        Record::Kept { machine: m } => Row {
            what: KEPT,
            number: m.number,
            at_ms: m.since_ms,
            paid_ms: m.paid_ms,
            name: m.id.clone(),
            why: m.ending.map_or(0, |why| number_of(&WHYS, why)),
            rented: rented(&m.offer, &m.kind, &m.owner, m.need.as_ref(), &m.price),
            stage: number_of(&STAGES, m.stage),
            settled_ms: m.settled_ms,
            awaited: m.awaited,
            ..Row::default()
        },
        Record::Spent { name, ledger, above } => Row {
            what: SPENT,
            name: name.clone(),
            rate: ledger.rate.0,
            days: ledger.days.iter().flat_map(|(day, money)| [*day, money.0]).collect(),
            before: ledger.before.0,
            above: above.clone(),
            ..Row::default()
        },
        Record::SpentFor { name, ledger } => {
            let (spent, other) = (Record::Spent { name: name.clone(), ledger: ledger.clone(), above: None }, true);
            Row { other, ..row(&spent) }
        }
        Record::Tree { nodes, at_ms } => {
            let tree = nodes.iter().flat_map(|(name, above)| [name.clone(), above.clone()]).collect();
            Row { what: NEXT, at_ms: at_ms.unwrap_or(0), tree, ..Row::default() }
        }
        Record::Next { number } => Row { what: NEXT, number: *number, ..Row::default() },
        Record::Currency { name } => Row { what: CURRENCY, name: name.clone(), ..Row::default() },
        Record::LeftAlone { offer, until_ms, times, why } => {
            let OfferKey { machine, zone, spot } = offer.clone();
            let rented = Some(Rented { machine, zone, spot, ..Rented::default() });
            Row { what: LEFT_ALONE, number: u64::from(*times), at_ms: *until_ms, name: why.clone(), rented, ..Row::default() }
        }
    }
}

/// None: it is not one.
fn record(row: Row) -> Option<Record> {
    let number = row.number;
    Some(match row.what {
        INTENDED => intended(&row)?,
        NAMED => Record::Named { number, id: row.name },
        ENDING => Record::Ending { number, why: of_number(&WHYS, row.why)? },
        LEASED => Record::Leased { number, at_ms: row.at_ms, rate_max: Rate(row.rate), paid_ms: row.paid_ms },
        GONE => Record::Gone { number, at_ms: row.at_ms, never: row.never },
        FORGOTTEN => Record::Forgotten { number },
        KEPT => {
            let stage = of_number(&STAGES, row.stage)?;
            let machine = Machine::again(&intended(&row)?, stage, row.name, of_number(&WHYS, row.why), row.settled_ms)?;
            Record::Kept { machine: Box::new(machine) }
        }
        SPENT => {
            let days = row.days.chunks_exact(2).map(|d| (d[0], Money(d[1]))).collect();
            let ledger = Ledger { rate: Rate(row.rate), days, before: Money(row.before) };
            match row.other {
                true => Record::SpentFor { name: row.name, ledger },
                false => Record::Spent { name: row.name, ledger, above: row.above },
            }
        }
        NEXT if row.came => Record::Came { number },
        NEXT if row.set_back => Record::SetBack { number, at_ms: row.at_ms },
        NEXT if !row.tree.is_empty() => {
            let nodes = row.tree.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
            Record::Tree { nodes, at_ms: (row.at_ms > 0).then_some(row.at_ms) }
        }
        NEXT => Record::Next { number },
        CURRENCY => Record::Currency { name: row.name },
        LEFT_ALONE => {
            let Rented { machine, zone, spot, .. } = row.rented?;
            Record::LeftAlone { offer: OfferKey { machine, zone, spot }, until_ms: row.at_ms, times: number.try_into().ok()?, why: row.name }
        }
        _ => return None,
    })
}

fn intended(row: &Row) -> Option<Record> {
    let r = row.rented.clone()?;
    Some(Record::Intended {
        number: row.number,
        offer: OfferKey { machine: r.machine, zone: r.zone, spot: r.spot },
        kind: MachineType { slots: r.slots, memory_bytes: r.memory_bytes, gpus: r.gpus, architecture: r.architecture, machines_max: r.machines_max },
        owner: r.owner,
        need: r.need.map(need),
        price: Price { rate: Rate(r.rate), ceiling: Rate(r.ceiling), billing: r.min_s.map_or(Billing::Hour, |min_s| Billing::Second { min_s }) },
        at_ms: row.at_ms,
        paid_ms: row.paid_ms,
        awaited: row.awaited,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Batch, MemStore, Store};

    fn records() -> Vec<Record> {
        let offer = OfferKey { machine: "m1.small".into(), zone: "eu-1a".into(), spot: true };
        let kind = MachineType { slots: 1, memory_bytes: 1 << 30, gpus: 0, architecture: "x86_64".into(), machines_max: Some(5) };
        let price = |billing| Price { rate: Rate(85_000), ceiling: Rate(100_000), billing };
        let one = |number, billing| Record::Intended {
            number,
            offer: offer.clone(),
            kind: kind.clone(),
            owner: "alice".into(),
            need: None,
            price: price(billing),
            at_ms: 1_000,
            paid_ms: 3_601_000,
            awaited: false,
        };
        let kept = |stage, ending| {
            Machine::again(&one(9, Billing::Hour), stage, "i-9".into(), ending, 7).map(|m| Record::Kept { machine: Box::new(m) }).unwrap()
        };
        let ledger = Ledger { rate: Rate(5), days: vec![(20_000, Money(6)), (20_001, Money(7))], before: Money(8) };
        let mut all = vec![one(1, Billing::Hour), one(2, Billing::Second { min_s: 60 }), Record::Named { number: 1, id: "i-1".into() }];
        all.extend(WHYS.map(|why| Record::Ending { number: 1, why }));
        all.push(Record::Leased { number: 1, at_ms: 2, rate_max: Rate(3), paid_ms: 4 });
        all.extend([true, false].map(|never| Record::Gone { number: 1, at_ms: 5, never }));
        all.push(Record::Forgotten { number: 1 });
        all.extend([kept(Stage::Named, None), kept(Stage::Ended, Some(Why::Idle))]);
        all.extend([Record::Spent { name: "lab".into(), ledger: ledger.clone(), above: None }, Record::Next { number: 77 }]);
        let other = Record::SpentFor { name: "carol".into(), ledger: Ledger { rate: Rate(0), ..ledger.clone() } };
        all.extend([Record::Spent { name: "lab".into(), ledger, above: Some("budget".into()) }, Record::Currency { name: "EUR".into() }]);
        let shape = Shape { gpus: 1, ..Shape::new(2, 4 << 30) };
        let mut needed = one(11, Billing::Hour);
        if let Record::Intended { need, .. } = &mut needed {
            *need = Some(Need { shape, tasks: 3, principal: "bob".into() });
        }
        let machine = Machine::again(&needed, Stage::Named, "i-11".into(), None, 7).map(Box::new).unwrap();
        all.extend([needed, Record::Kept { machine }, other]);
        all.push(Record::LeftAlone { offer: offer.clone(), until_ms: 6, times: 3, why: "none".into() });
        let mut booting = one(12, Billing::Hour);
        if let Record::Intended { awaited, .. } = &mut booting {
            *awaited = true;
        }
        let machine = Machine::again(&booting, Stage::Named, "i-12".into(), None, 7).map(Box::new).unwrap();
        all.extend([booting, Record::Kept { machine }, Record::Came { number: 12 }]);
        let nodes = [("budget", ""), ("lab", "budget")].map(|(name, above)| (name.to_string(), above.to_string())).to_vec();
        all.extend([None, Some(1_000)].map(|at_ms| Record::Tree { nodes: nodes.clone(), at_ms }));
        all.push(Record::SetBack { number: 12, at_ms: 7 });
        all
    }

    fn commit(store: &mut MemStore, rows: Rows) {
        store.commit(&Batch { rows, ..Batch::default() }).unwrap();
    }

    #[test]
    fn what_was_written_is_read() {
        let mut store = MemStore::new();
        let (mut book, none) = Book::load(&store).unwrap();
        assert!(none.is_empty());
        commit(&mut store, book.rows(&records(), Vec::new));
        assert_eq!(records(), Book::load(&store).unwrap().1);
        let next = [Record::Next { number: 78 }];
        commit(&mut store, book.rows(&next, Vec::new));
        assert_eq!([records(), next.to_vec()].concat(), Book::load(&store).unwrap().1);
        store.commit(&Batch { rows: vec![(key(1 << 40), Some(b"noise".to_vec()))], ..Batch::default() }).unwrap();
        assert!(Book::load(&store).unwrap_err().message.contains("damaged"));
    }

    #[test]
    fn a_checkpoint_takes_the_place_of_all() {
        let mut store = MemStore::new();
        let (mut book, _) = Book::load(&store).unwrap();
        for n in 0..2 * ROWS_MAX as u64 {
            let rows = book.rows(&[Record::Forgotten { number: n }], || vec![Record::Next { number: n }]);
            commit(&mut store, rows);
        }
        let (again, records) = Book::load(&store).unwrap();
        assert!(records.len() <= ROWS_MAX && matches!(records[0], Record::Next { .. }), "{}", records.len());
        assert_eq!((book.first, book.next), (again.first, again.next));
    }

    #[test]
    fn the_form_of_rows_does_not_change() {
        let bytes: Vec<String> = records().iter().map(|r| hex(&row(r).encode_to_vec())).collect();
        let golden: Vec<&str> = include_str!("rows.golden").lines().collect();
        assert_eq!(golden, bytes, "a row's form has changed: rows that were written must stay readable");
        // Of rows without the mark, no machine is known to be awaited: its end says nothing of its offer.
        let is_awaited = |r: &Record| match r {
            Record::Intended { number, awaited, .. } => awaited.then_some(*number),
            Record::Kept { machine } => machine.awaited.then_some(machine.number),
            _ => None,
        };
        assert_eq!(vec![12, 12], records().iter().filter_map(is_awaited).collect::<Vec<_>>());
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}
