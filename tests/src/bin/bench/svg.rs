//! Charts as plain SVG: horizontal bars, each below its label, with the spread of their repetitions, readable on light and on dark.

use std::fmt::Write as _;

use crate::record::{HQ, LOOP, Spread};

const WIDTH: f64 = 820.0;
const LEFT: f64 = 8.0;
const VALUE_WIDTH: f64 = 90.0;
const BAR_HEIGHT: f64 = 16.0;
const STEP: f64 = 44.0;
const TOP: f64 = 60.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600;font-size:15px}.dim{fill:#57606a}
.ours{fill:#2a6fdb}.hq{fill:#d9822b}.loop{fill:#8b949e}.spread{stroke:#24292f;stroke-width:1.5;opacity:.65}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#9da7b3}.ours{fill:#5c9dff}.hq{fill:#f0a35e}.loop{fill:#768390}.spread{stroke:#e6edf3}}";

/// One bar.
pub struct Bar {
    /// What it shows.
    pub label: String,
    /// Whose it is: it chooses the colour.
    pub system: String,
    /// How long it is.
    pub spread: Spread,
}

/// A number as people read it: 3 digits that count.
pub fn number(v: f64) -> String {
    let grouped = |n: u64| {
        let digits = n.to_string();
        let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|c| std::str::from_utf8(c).unwrap_or_default()).collect();
        parts.join(",")
    };
    match v.abs() {
        a if v >= 0.0 && a.fract() == 0.0 => grouped(v as u64),
        a if a >= 99.95 => grouped(v.round().max(0.0) as u64),
        a if a >= 9.995 => format!("{v:.1}"),
        a if a >= 0.0005 || a == 0.0 => format!("{v:.2}").trim_end_matches('0').trim_end_matches('.').to_string(),
        _ => format!("{v:.1e}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A chart of bars.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let height = TOP + STEP * bars.len() as f64 - 18.0;
    let room = WIDTH - LEFT - VALUE_WIDTH;
    let most = bars.iter().map(|b| b.spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let x = |v: f64| LEFT + room * (v / most).clamp(0.0, 1.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         aria-label=\"{0}\">\n<style>{STYLE}</style>\n<text class=\"title\" x=\"8\" y=\"22\">{0}</text><text class=\"dim\" x=\"{1}\" y=\"22\" \
         text-anchor=\"end\">{2}; median, min to max</text>\n",
        escape(title),
        WIDTH - 8.0,
        escape(unit)
    );
    for (i, b) in bars.iter().enumerate() {
        let y = TOP + STEP * i as f64;
        let class = match b.system.as_str() {
            HQ => "hq",
            LOOP => "loop",
            _ => "ours",
        };
        let (text_y, middle) = (y + BAR_HEIGHT - 3.0, y + BAR_HEIGHT / 2.0);
        let end = x(b.spread.median);
        let label = escape(&b.label);
        _ = write!(
            out,
            "<text x=\"{LEFT}\" y=\"{:.1}\">{label}</text><rect class=\"{class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\"/>",
            y - 5.0,
            (end - LEFT).max(1.0)
        );
        let (low, high) = (x(b.spread.min), x(b.spread.max));
        if high - low > 1.0 {
            _ = write!(out, "<line class=\"spread\" x1=\"{low:.1}\" y1=\"{middle:.1}\" x2=\"{high:.1}\" y2=\"{middle:.1}\"/>");
        }
        _ = writeln!(out, "<text x=\"{:.1}\" y=\"{text_y:.1}\">{}</text>", end.max(high) + 6.0, number(b.spread.median));
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let all = [0.0, 0.25, 4.0, 12.34, 1_234_567.8, 99.97, 0.0001].map(number);
        assert_eq!(["0", "0.25", "4", "12.3", "1,234,568", "100", "1.0e-4"].map(String::from), all);
    }

    #[test]
    fn a_chart_is_well_formed() {
        let bar = |label: &str, v: f64| Bar { label: label.into(), system: HQ.into(), spread: Spread { median: v, min: v / 2.0, max: v * 2.0 } };
        let text = bars("a & b", "ms", &[bar("x<y", 3.0), bar("z", 0.0)]);
        assert!(text.contains("a &amp; b") && text.contains("x&lt;y") && text.trim_end().ends_with("</svg>"));
        assert_eq!((2, text.matches("<rect").count()), (text.matches("class=\"hq\"").count(), 2));
        assert!(!text.contains("NaN"));
    }
}
