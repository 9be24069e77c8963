//! A family of metrics as it is built for a scrape: a name, what it says, its kind, samples with labels. It is the `prometheus` crate's; the crate writes the text format, and
//! the others, which it cannot write, are written from it in [`super::exposition`].

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::endpoint::EndpointKey;

/// A label's name and value.
pub(super) type Label = (&'static str, String);

pub(super) fn label(name: &'static str, value: &str) -> Label {
    (name, value.to_owned())
}

pub(super) fn labels_of(key: &EndpointKey) -> Vec<Label> {
    vec![label("service", &key.service), label("env", &key.env), label("kind", &key.kind), label("method", &key.method), label("route", &key.route)]
}

pub(super) fn with(mut labels: Vec<Label>, name: &'static str, value: &str) -> Vec<Label> {
    labels.push(label(name, value));
    labels
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

/// Samples of one number each.
pub(super) struct Family(pub(super) MetricFamily);

impl Family {
    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self(family)
    }

    /// One whose numbers go up and down.
    pub(super) fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    /// One whose numbers never fall.
    pub(super) fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    /// Adds a sample.
    pub(super) fn add(&mut self, labels: Vec<Label>, value: f64) {
        let pair = |(name, value): Label| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value);
            pair
        };
        let mut metric = Metric::default();
        metric.set_label(labels.into_iter().map(pair).collect());
        if self.0.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.0.mut_metric().push(metric);
    }
}
