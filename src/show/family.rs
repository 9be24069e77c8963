//! A family of metrics as it is built for a scrape: a name, what it says, its kind, samples with labels.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::endpoint::EndpointKey;

pub(super) fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

pub(super) fn labels_of(key: &EndpointKey) -> Vec<LabelPair> {
    vec![label("service", &key.service), label("env", &key.env), label("kind", &key.kind), label("method", &key.method), label("route", &key.route)]
}

pub(super) fn with(mut labels: Vec<LabelPair>, name: &str, value: &str) -> Vec<LabelPair> {
    labels.push(label(name, value));
    labels
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

pub(super) struct Family(pub(super) MetricFamily);

impl Family {
    pub(super) fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self(family)
    }

    fn metric(&mut self, labels: Vec<LabelPair>) -> &mut Metric {
        let mut metric = Metric::default();
        metric.set_label(labels);
        self.0.mut_metric().push(metric);
        self.0.mut_metric().last_mut().expect("pushed above")
    }

    pub(super) fn counter(&mut self, labels: Vec<LabelPair>, value: u64) {
        let mut counter = Counter::default();
        counter.set_value(float(value));
        self.metric(labels).set_counter(counter);
    }

    pub(super) fn gauge(&mut self, labels: Vec<LabelPair>, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.metric(labels).set_gauge(gauge);
    }
}
