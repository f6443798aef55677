//! Money, in whole millionths of a currency that is named: sums are exact, and what is charged is rounded up.

use std::fmt;

use crate::error::{Refusal, Result};

const MICROS: u64 = 1_000_000;
const HOUR_MS: u128 = 3_600_000;

/// An amount, in a currency.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Money {
    /// Millionths.
    pub micro: u64,
    /// ISO 4217.
    pub currency: String,
}

impl Money {
    /// `12.50USD` or `12.50 USD`.
    pub fn parse(text: &str) -> Result<Money> {
        let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (amount, currency) = text.split_at(at);
        let refused = |message: String| Refusal::invalid(message).remedy("write the amount and its currency: 12.50USD");
        if amount.trim_end().is_empty() || !is_currency(currency) {
            return Err(refused(format!("{text:?} is not an amount and its currency: digits, and three capital letters")));
        }
        let micro = parse_micro(amount.trim_end()).map_err(refused)?;
        Ok(Money { micro, currency: currency.to_string() })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", human_micro(self.micro), self.currency)
    }
}

/// Three capital letters, as ISO 4217 has them.
pub fn is_currency(text: &str) -> bool {
    text.len() == 3 && text.bytes().all(|b| b.is_ascii_uppercase())
}

/// `12`, `0.68`, `.5` to millionths: at most six decimals.
pub fn parse_micro(text: &str) -> std::result::Result<u64, String> {
    let fault = || format!("`{text}` is not an amount: digits, and at most six after the point");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && part.is_empty()) || part.len() > 6 || !digits(whole) || !digits(part) {
        return Err(fault());
    }
    // Of digits alone, all that can be wrong is that there are too many.
    let too_large = || format!("`{text}` is too large: at most {}", human_micro(u64::MAX));
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
    let part: u64 = format!("{part:0<6}").parse().map_err(|_| fault())?;
    whole.checked_mul(MICROS).and_then(|w| w.checked_add(part)).ok_or_else(too_large)
}

/// Millionths for people: two decimals, more where they count.
pub fn human_micro(micro: u64) -> String {
    let (whole, part) = (micro / MICROS, micro % MICROS);
    let part = format!("{part:06}");
    let kept = part.trim_end_matches('0').len().max(2);
    format!("{whole}.{}", &part[..kept])
}

/// What so many milliseconds cost at a rate per hour, both in millionths; rounded up.
pub fn over(micro_per_hour: u64, ms: u64) -> u64 {
    let micros = (u128::from(micro_per_hour) * u128::from(ms)).div_ceil(HOUR_MS);
    u64::try_from(micros).unwrap_or(u64::MAX)
}

/// The highest rate per hour at which so many milliseconds cost no more than this: `over` of it is within, of one millionth more it is not.
pub fn rate_within(micro: u64, ms: u64) -> u64 {
    let rate = (u128::from(micro) * HOUR_MS).checked_div(u128::from(ms)).unwrap_or(u128::MAX);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_have_a_currency() {
        let usd = |micro| Ok(Money { micro, currency: "USD".into() });
        assert_eq!([usd(12_500_000), usd(5_000_000), usd(0)], ["12.50USD", "5 USD", "0USD"].map(Money::parse));
        for bad in ["", "5", "USD", "5usd", "5 US", "5DOLLAR", "-1USD", "1e3USD", "0.1234567USD", "5 USD EUR"] {
            assert!(Money::parse(bad).is_err(), "{bad}");
        }
        for (bad, says) in [
            ("NaNEUR", "\"NaNEUR\" is not an amount and its currency"),
            ("12EUREUR", "\"12EUREUR\" is not an amount and its currency"),
            ("1e99EUR", "\"1e99EUR\" is not an amount and its currency"),
            ("1.2345678EUR", "`1.2345678` is not an amount: digits, and at most six after the point"),
            ("99999999999999999999EUR", "`99999999999999999999` is too large: at most 18446744073709.551615"),
            ("18446744073709.551616EUR", "`18446744073709.551616` is too large"),
        ] {
            let said = Money::parse(bad).unwrap_err().to_string();
            assert!(said.starts_with(says) && said.ends_with("12.50USD"), "{said}");
        }
        assert_eq!("12.50 USD", Money { micro: 12_500_000, currency: "USD".into() }.to_string());
    }

    proptest! {
        #[test]
        fn a_rate_within_is_the_highest(micro in 0u64..1 << 40, ms in 1u64..1 << 40) {
            let rate = rate_within(micro, ms);
            prop_assert!(over(rate, ms) <= micro);
            prop_assert!(over(rate + 1, ms) > micro);
        }
    }
}
