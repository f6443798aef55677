//! Sizes and times as people write them, parsed in one place for every command line and configuration. A unit is required: a bare number is refused,
//! because half of its readers would guess another one.

use std::time::Duration;

use crate::error::{Refusal, Result};

/// Binary, as memory is counted; `KiB` and `KB` mean the same `K`.
const BYTES: [(&str, u64); 6] = [("B", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40), ("P", 1 << 50)];
const MILLISECONDS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// `4G`, `512M`, `64KiB`, `100B`: a whole number and a unit, in either case.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let bad = || Refusal::invalid(format!("size {text:?} is not a whole number with a unit")).remedy("write it like 512M, 2G or 100B");
    let (number, unit, rest) = split(text.trim()).ok_or_else(bad)?;
    let (letter, tail) = unit.split_at(1);
    let known =
        rest.is_empty() && matches!(tail.to_ascii_uppercase().as_str(), "" | "B" | "IB") && (tail.is_empty() || !letter.eq_ignore_ascii_case("B"));
    let scale = BYTES.iter().find(|(name, _)| known && letter.eq_ignore_ascii_case(name)).map(|(_, scale)| *scale).ok_or_else(bad)?;
    number.checked_mul(scale).ok_or_else(|| Refusal::invalid(format!("size {text:?} is beyond 16 EiB")))
}

/// `10m`, `300s`, `1h30m`, `250ms`, `2d`: whole numbers with units.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || Refusal::invalid(format!("time {text:?} is not whole numbers with units")).remedy("write it like 300s, 10m or 1h30m");
    let mut left = text.trim();
    let mut total: u64 = 0;
    loop {
        let (number, unit, rest) = split(left).ok_or_else(bad)?;
        let scale = MILLISECONDS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale).ok_or_else(bad)?;
        let sum = number.checked_mul(scale).and_then(|ms| total.checked_add(ms));
        total = sum.ok_or_else(|| Refusal::invalid(format!("time {text:?} is too long")))?;
        if rest.is_empty() {
            return Ok(Duration::from_millis(total));
        }
        left = rest;
    }
}

/// Milliseconds as [`parse_duration`] reads them, exactly: `1s`, `1h30m`, `1s500ms`.
pub fn format_duration(ms: u64) -> String {
    let mut text = String::new();
    let mut left = ms;
    for (name, scale) in MILLISECONDS.iter().rev() {
        if left >= *scale {
            text += &format!("{}{name}", left / scale);
            left %= scale;
        }
    }
    if text.is_empty() { "0ms".to_string() } else { text }
}

/// The first number, its unit, and what follows.
fn split(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, rest) = text.split_at(digits);
    let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    (!unit.is_empty()).then_some((number.parse().ok()?, unit, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, want) in [("100B", 100), ("4G", 4 << 30), ("512M", 512 << 20), ("64KiB", 64 << 10), ("2gb", 2 << 30), (" 0M ", 0), ("1T", 1 << 40)]
        {
            assert_eq!(Ok(want), parse_bytes(text), "{text}");
        }
        for text in ["", "4", "G", "4.5G", "-1G", "4X", "4iB", "4 G", "4G2M", "99999999999P", "99999999999999999999B", "4BB"] {
            let refused = parse_bytes(text).expect_err(text).to_string();
            assert!(refused.contains(text), "{refused}");
        }
        assert_eq!("size \"4\" is not a whole number with a unit; write it like 512M, 2G or 100B", parse_bytes("4").unwrap_err().to_string());
    }

    #[test]
    fn times() {
        let s = Duration::from_secs;
        for (text, want) in
            [("300s", s(300)), ("10m", s(600)), ("1h30m", s(5400)), ("250ms", Duration::from_millis(250)), ("2d", s(172_800)), ("0s", s(0))]
        {
            assert_eq!(Ok(want), parse_duration(text), "{text}");
        }
        for text in ["", "10", "m", "1.5h", "-1s", "10 m", "1h30", "10M", "10min", "99999999999999999d", "18446744073709551615ms1ms"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_as_they_are_written() {
        for (ms, want) in [(0, "0ms"), (500, "500ms"), (1_000, "1s"), (1_500, "1s500ms"), (600_000, "10m"), (5_400_000, "1h30m")] {
            assert_eq!(want, format_duration(ms));
        }
    }

    proptest! {
        #[test]
        fn any_time_is_read_as_it_was_written(ms: u64) {
            prop_assert_eq!(Ok(Duration::from_millis(ms)), parse_duration(&format_duration(ms)));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,12}") {
            let _ = (parse_bytes(&text), parse_duration(&text));
        }
    }
}
