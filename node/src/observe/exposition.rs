//! Prometheus's text format, version 0.0.4.

use std::fmt::{Display, Write as _};

use super::counters::DURATION_BOUNDS_US;
use super::labels::Label;

/// What the format is called in HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric, as the catalogue has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// `casbah_<noun>_<unit>[_total]`.
    pub name: &'static str,
    /// What its values mean.
    pub kind: Kind,
    /// What it is, in a sentence without its full stop.
    pub help: &'static str,
    /// What its series are told apart by.
    pub labels: &'static [Label],
}

/// What the values of a metric mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process runs.
    Counter,
    /// As it is now.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// Text in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

// === impl Kind ===

impl Kind {
    /// As the format has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

// === impl Exposition ===

impl Exposition {
    /// What was written.
    pub fn finish(self) -> String {
        self.text
    }

    /// Begins a metric, whose samples follow.
    pub fn metric(&mut self, metric: &Metric) {
        let Metric { name, kind, help, .. } = metric;
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let _infallible = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.name());
    }

    /// One sample of the metric that was begun last, with a value for each of its labels.
    pub fn sample(&mut self, metric: &Metric, labels: &[&str], value: impl Display) {
        self.line(metric.name, "", &pairs(metric, labels), &value);
    }

    /// The same for a histogram of durations: how many fell into each bucket alone, and their sum in seconds.
    pub fn histogram(&mut self, metric: &Metric, labels: &[&str], buckets: &[u64], sum_seconds: f64) {
        let mut pairs = pairs(metric, labels);
        let mut so_far = 0;
        let bounds = DURATION_BOUNDS_US.iter().map(|bound| (*bound as f64 / 1e6).to_string());
        for (count, bound) in buckets.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            so_far += count;
            pairs.push(("le", bound));
            self.line(metric.name, "_bucket", &pairs, &so_far);
            pairs.pop();
        }
        self.line(metric.name, "_sum", &pairs, &sum_seconds);
        self.line(metric.name, "_count", &pairs, &so_far);
    }

    fn line(&mut self, name: &str, suffix: &str, pairs: &[(&str, String)], value: &dyn Display) {
        let pairs: Vec<String> = pairs.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let _infallible = match pairs.is_empty() {
            true => writeln!(self.text, "{name}{suffix} {value}"),
            false => writeln!(self.text, "{name}{suffix}{{{}}} {value}", pairs.join(",")),
        };
    }
}

fn pairs(metric: &Metric, labels: &[&str]) -> Vec<(&'static str, String)> {
    metric.labels.iter().zip(labels).map(|(label, value)| (label.name, (*value).to_owned())).collect()
}

/// A value of a label, between quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { name: "why", values: &[] };
    const METRIC: Metric =
        Metric { name: "casbah_things_total", kind: Kind::Counter, help: "a \\ and\na break", labels: &[LABEL] };

    #[test]
    fn what_would_break_a_line_is_escaped() {
        let mut text = Exposition::default();
        text.metric(&METRIC);
        text.sample(&METRIC, &["a\"b\\c\nd"], 7);
        assert_eq!(
            text.finish(),
            "# HELP casbah_things_total a \\\\ and\\na break\n\
             # TYPE casbah_things_total counter\n\
             casbah_things_total{why=\"a\\\"b\\\\c\\nd\"} 7\n"
        );
    }

    #[test]
    fn a_metric_without_labels_has_no_braces() {
        let mut text = Exposition::default();
        let metric = Metric { labels: &[], ..METRIC };
        text.sample(&metric, &[], 0.5);
        assert_eq!(text.finish(), "casbah_things_total 0.5\n");
    }

    #[test]
    fn buckets_count_all_that_is_below_them() {
        let mut text = Exposition::default();
        let metric = Metric { name: "casbah_d_seconds", kind: Kind::Histogram, ..METRIC };
        let mut buckets = [0; DURATION_BOUNDS_US.len() + 1];
        buckets[0] = 2;
        buckets[2] = 1;
        buckets[DURATION_BOUNDS_US.len()] = 4;
        text.histogram(&metric, &["x"], &buckets, 1.25);
        let text = text.finish();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "casbah_d_seconds_bucket{why=\"x\",le=\"0.0001\"} 2");
        assert_eq!(lines[1], "casbah_d_seconds_bucket{why=\"x\",le=\"0.00025\"} 2");
        assert_eq!(lines[2], "casbah_d_seconds_bucket{why=\"x\",le=\"0.0005\"} 3");
        assert_eq!(lines[13], "casbah_d_seconds_bucket{why=\"x\",le=\"300\"} 3");
        assert_eq!(
            lines[14..],
            [
                "casbah_d_seconds_bucket{why=\"x\",le=\"+Inf\"} 7",
                "casbah_d_seconds_sum{why=\"x\"} 1.25",
                "casbah_d_seconds_count{why=\"x\"} 7"
            ]
        );
    }
}
