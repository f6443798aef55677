//! GPUs. Grid Engine has none of its own: a site counts them as a resource that its machines have so many of (a consumable complex), and what qconf prints of it is
//! read here. Pure; any text is taken.

use std::collections::BTreeMap;

/// How what a task asks for is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted {
    /// For each of its slots (`consumable YES`).
    BySlot,
    /// Once, whatever its slots (`consumable JOB`).
    Once,
}

impl Counted {
    /// What is asked for so that a task with so many slots is given so many; None: it can't be said exactly.
    pub fn request(self, gpus: u32, slots: u32) -> Option<u32> {
        match self {
            Counted::Once => Some(gpus),
            Counted::BySlot if gpus.is_multiple_of(slots.max(1)) => Some(gpus / slots.max(1)),
            Counted::BySlot => None,
        }
    }
}

/// How this complex is counted, by `qconf -sc`, or why it can't be asked for.
pub fn counted(text: &str, name: &str) -> Result<Counted, String> {
    let rows = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let Some(row) = rows.into_iter().find(|row| row.len() >= 6 && row[0] == name) else {
        return Err(format!("{name:?} is no complex of this cell (qconf -sc)"));
    };
    match (row[4], row[5]) {
        ("NO", _) => Err(format!("the complex {name:?} can't be requested (qconf -sc: requestable NO)")),
        (_, "YES") => Ok(Counted::BySlot),
        (_, "JOB") => Ok(Counted::Once),
        (_, other) => Err(format!("the complex {name:?} is not counted (qconf -sc: consumable {other})")),
    }
}

/// How many each of some machines has, by `qconf -se`.
pub fn of_machines(text: &str, name: &str) -> BTreeMap<String, u32> {
    let (mut machines, mut machine) = (BTreeMap::new(), "");
    let text = text.replace("\\\n", " ");
    for line in text.lines() {
        match line.split_once(char::is_whitespace) {
            Some(("hostname", value)) => machine = value.trim(),
            Some(("complex_values", values)) => {
                let number = |value: &str| value.trim().parse::<f64>().ok().filter(|n| (0.0..=f64::from(u32::MAX)).contains(n));
                let found = values.split(',').filter_map(|v| v.split_once('=')).find(|(key, _)| key.trim() == name);
                if let Some(n) = found.and_then(|(_, value)| number(value)).filter(|_| !machine.is_empty()) {
                    // A part of one is none.
                    machines.insert(machine.to_string(), n as u32);
                }
            }
            _ => {}
        }
    }
    machines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of Son of Grid Engine 8.1.9.
    const COMPLEXES: &str = include_str!("recorded/complexes.txt");
    const MACHINES: &str = include_str!("recorded/machines.txt");

    #[test]
    fn recorded_complexes_and_machines_are_read() {
        assert_eq!((Ok(Counted::BySlot), Ok(Counted::Once)), (counted(COMPLEXES, "gpu"), counted(COMPLEXES, "gpuj")));
        assert!(counted(COMPLEXES, "gpun").unwrap_err().contains("consumable NO"));
        assert!(counted(COMPLEXES, "nope").unwrap_err().contains("no complex"));
        assert!(counted(&COMPLEXES.replace("<=    YES         YES", "<=    NO          YES"), "gpu").unwrap_err().contains("requestable NO"));
        let of = |name| of_machines(MACHINES, name).into_iter().collect::<Vec<_>>();
        assert_eq!((vec![("localhost".to_string(), 2)], vec![("localhost".to_string(), 4)], vec![]), (of("gpu"), of("gpuj"), of("pu")));
        let two = format!("{MACHINES}{}", MACHINES.replace("localhost", "m2").replace("gpu=2,", "gpu=8.000000,"));
        assert_eq!(vec![2, 8], of_machines(&two, "gpu").into_values().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_asked_for_is_exact_or_not_asked_for() {
        assert_eq!((Some(3), Some(3)), (Counted::BySlot.request(3, 1), Counted::Once.request(3, 2)));
        assert_eq!((Some(2), None, None), (Counted::BySlot.request(4, 2), Counted::BySlot.request(3, 2), Counted::BySlot.request(1, 2)));
        assert_eq!(Some(1), Counted::BySlot.request(1, 0));
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,100}", more in "[a-z0-9=,. \n\\\\-]{0,60}") {
            for text in [&text, &more, &format!("hostname a\ncomplex_values {more}\n")] {
                let _ = (counted(text, "gpu"), of_machines(text, "gpu"));
            }
        }
    }
}
