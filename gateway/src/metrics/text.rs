//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

/// A page under way.
#[derive(Default)]
pub struct Text {
    page: String,
    name: &'static str,
}

impl Text {
    fn metric(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        // Writing to a String does not fail.
        let _ = write!(self.page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.name = name;
        self
    }

    /// What goes up and down; its samples follow.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.metric(name, "gauge", help)
    }

    /// What only goes up.
    pub fn counter(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.metric(name, "counter", help)
    }

    /// Times, in buckets: each with its upper bound in seconds and how many were not above it.
    pub fn histogram(&mut self, name: &'static str, help: &str, buckets: &[(f64, u64)], count: u64, sum_s: f64) {
        self.metric(name, "histogram", help);
        for (bound, n) in buckets {
            self.line("_bucket", &[("le", &bound.to_string())], n);
        }
        self.line("_bucket", &[("le", "+Inf")], count);
        self.line("_sum", &[], sum_s);
        self.line("_count", &[], count);
    }

    /// A number of the metric that was named last.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.line("", labels, value);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
        let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.page, "{}{suffix}{braces} {value}", self.name);
    }

    /// The whole page.
    pub fn end(self) -> String {
        self.page
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_prometheus_reads_them() {
        let mut t = Text::default();
        t.gauge("a", "A.").sample(&[], 3);
        t.counter("b_total", "B.").sample(&[("x", "p\"q\\r\ns"), ("y", "z")], 4);
        t.histogram("c_seconds", "C.", &[(0.5, 1), (1.0, 2)], 3, 4.25);
        let want = "# HELP a A.\n# TYPE a gauge\na 3\n# HELP b_total B.\n# TYPE b_total counter\nb_total{x=\"p\\\"q\\\\r\\ns\",y=\"z\"} 4\n\
            # HELP c_seconds C.\n# TYPE c_seconds histogram\nc_seconds_bucket{le=\"0.5\"} 1\nc_seconds_bucket{le=\"1\"} 2\n\
            c_seconds_bucket{le=\"+Inf\"} 3\nc_seconds_sum 4.25\nc_seconds_count 3\n";
        assert_eq!(want, t.end());
    }
}
