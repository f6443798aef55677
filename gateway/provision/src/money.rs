//! Money and rates, in whole millionths of the catalogue's one currency: sums are exact, and what is charged is rounded up.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

const MICROS: u64 = 1_000_000;
const HOUR_MS: u128 = 3_600_000;

/// An amount: millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Money(pub u64);

/// An amount per hour: millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Rate(pub u64);

impl Money {
    /// Sum; stays at the largest amount.
    pub fn plus(self, other: Money) -> Money {
        Money(self.0.saturating_add(other.0))
    }

    /// Difference; 0 at least.
    pub fn less(self, other: Money) -> Money {
        Money(self.0.saturating_sub(other.0))
    }
}

impl Rate {
    /// What so many milliseconds cost, rounded up.
    pub fn over(self, ms: u64) -> Money {
        let micros = (u128::from(self.0) * u128::from(ms)).div_ceil(HOUR_MS);
        Money(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// Sum; stays at the largest rate.
    pub fn plus(self, other: Rate) -> Rate {
        Rate(self.0.saturating_add(other.0))
    }
}

/// `12`, `0.68`, `.5`: at most six decimals.
fn micros(text: &str) -> Result<u64, String> {
    let fault = || format!("`{text}` is not an amount: digits, and at most six after the point");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && part.is_empty()) || part.len() > 6 || !digits(whole) || !digits(part) {
        return Err(fault());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| fault())? };
    let part: u64 = format!("{part:0<6}").parse().map_err(|_| fault())?;
    whole.checked_mul(MICROS).and_then(|w| w.checked_add(part)).ok_or_else(fault)
}

fn show(micros: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (whole, part) = (micros / MICROS, micros % MICROS);
    let part = format!("{part:06}");
    let kept = part.trim_end_matches('0').len().max(2);
    write!(f, "{whole}.{}", &part[..kept])
}

macro_rules! amounts {
    ($($name:ident),*) => { $(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                show(self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                micros(text).map($name)
            }
        }

        /// From a string: a number with a point would be read as a binary fraction.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )* };
}
amounts!(Money, Rate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact() {
        assert_eq!(Ok(Money(680_000)), "0.68".parse());
        assert_eq!(Ok(Money(500_000)), ".5".parse());
        assert_eq!(Ok(Rate(10_000_000)), "10".parse());
        for bad in ["", ".", "-1", "1e3", "0.1234567", "1.2.3", "99999999999999999999", "1 "] {
            assert!(bad.parse::<Money>().is_err(), "{bad}");
        }
        assert_eq!(
            ["0.68", "0.0052", "12.00"],
            [Money(680_000), Money(5_200), Money(12_000_000)].map(|m| m.to_string()).each_ref().map(String::as_str)
        );
        assert_eq!(Money(680_000), Rate(680_000).over(3_600_000));
        assert_eq!(Money(1), Rate(1).over(1), "what is charged is rounded up");
        assert_eq!(Money(u64::MAX), Rate(u64::MAX).over(u64::MAX));
    }
}
