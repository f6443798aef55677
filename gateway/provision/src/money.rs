//! Money and rates, in whole millionths of the catalogue's one currency: sums are exact, and what is charged is rounded up.

use std::fmt;
use std::str::FromStr;

use intergrid_proto::money::{human_micro, over, parse_micro};
use serde::Deserialize;

use crate::limits::AMOUNT_MAX_MICRO;

/// An amount: millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Money(pub u64);

/// An amount per hour: millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Rate(pub u64);

impl Money {
    /// Sum; stays at the largest amount, which is above every cap.
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
        Money(over(self.0, ms))
    }

    /// Sum; stays at the largest rate, which is above every cap.
    pub fn plus(self, other: Rate) -> Rate {
        Rate(self.0.saturating_add(other.0))
    }
}

macro_rules! amounts {
    ($($name:ident),*) => { $(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&human_micro(self.0))
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match parse_micro(text)? {
                    micro if micro > AMOUNT_MAX_MICRO => Err(format!("`{text}` is too large: at most {}", human_micro(AMOUNT_MAX_MICRO))),
                    micro => Ok($name(micro)),
                }
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
        assert_eq!(Ok(Rate(AMOUNT_MAX_MICRO)), "1000000000000".parse());
        assert!(Rate(AMOUNT_MAX_MICRO) < Rate(u64::MAX).plus(Rate(1)), "no cap is as large as a sum that can't be written down");
        for bad in ["", ".", "-1", "1e3", "0.1234567", "1.2.3", "99999999999999999999", "1 ", "1000000000000.000001", "18446744073709.551615"] {
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
