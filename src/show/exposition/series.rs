//! The same samples as of a page, one series after another, for who keeps series and not pages.

use super::exemplar::{Shown, of_bucket, of_outcome, shown};
use super::{Exported, Family, Head, Kind, NativePart, OfEndpoints, text, value_of};
use crate::counting::Outcome;
use crate::history::exemplars::Exemplar;

/// The number of a series.
#[derive(Clone, Copy, Debug)]
pub(in crate::show) enum Value<'a> {
    Number(f64),
    /// A native histogram; its buckets as [`super::protobuf::SENT`] has them.
    Native {
        count: u64,
        sum_seconds: f64,
        fields: &'a [u8],
    },
}

/// A series with its number of this moment.
#[derive(Clone, Copy, Debug)]
pub(in crate::show) struct Series<'a> {
    pub(in crate::show) name: &'a str,
    /// In no order; one that is empty is none.
    pub(in crate::show) labels: &'a [(&'a str, &'a str)],
    pub(in crate::show) value: Value<'a>,
    pub(in crate::show) kind: Kind,
    pub(in crate::show) help: &'a str,
    /// Whether it says in classic form what a native histogram beside it says too.
    pub(in crate::show) has_native: bool,
    /// In the order of their time.
    pub(in crate::show) exemplars: &'a [Shown<'a>],
}

/// The series of a family.
pub(in crate::show) fn of_family(family: &Family, each: &mut dyn FnMut(Series<'_>)) {
    let Head { name, help, kind } = Head::from(family);
    let mut labels = Vec::new();
    for metric in family.0.get_metric() {
        labels.clear();
        labels.extend(metric.get_label().iter().map(|pair| (pair.name(), pair.value())));
        each(Series { name, labels: &labels, value: Value::Number(value_of(family, metric)), kind, help, has_native: false, exemplars: &[] });
    }
}

/// The series of an endpoint, with some of its exemplars.
pub(in crate::show) fn of_endpoint(endpoint: &Exported, exemplars: &[Exemplar], each: &mut dyn FnMut(Series<'_>)) {
    let Exported { key, total, detail, .. } = endpoint;
    let own = [("service", key.service.as_str()), ("env", &key.env), ("kind", &key.kind), ("method", &key.method), ("route", &key.route)];
    let (count, sum) = (float(endpoint.requests()), seconds(total.sum_us));
    for family in OfEndpoints::ALL.into_iter().filter(|f| f.has(endpoint)) {
        let Head { help, kind, .. } = family.head();
        let native = detail.as_ref().and_then(|d| d.native.as_ref()).filter(|_| family == OfEndpoints::Durations);
        let mut put = |name: &str, more: &[(&str, &str)], value: Value<'_>, has_native: bool, exemplars: &[Shown<'_>]| {
            let mut labels = [("", ""); 7];
            labels[..own.len()].copy_from_slice(&own);
            labels[own.len()..own.len() + more.len()].copy_from_slice(more);
            each(Series { name, labels: &labels[..own.len() + more.len()], value, kind, help, has_native, exemplars });
        };
        let mut number_with = |name: &str, more: &[(&str, &str)], value: f64, exemplar: Option<Shown<'_>>| {
            put(name, more, Value::Number(value), native.is_some(), exemplar.as_slice());
        };
        match family {
            OfEndpoints::Requests => {
                for outcome in Outcome::ALL {
                    let exemplar = of_outcome(exemplars, outcome);
                    number_with("slowburn_requests_total", &[("outcome", outcome.name())], float(total.outcomes[outcome as usize]), exemplar);
                }
            }
            OfEndpoints::Durations => {
                let mut above = None;
                for &(us, within) in detail.iter().flat_map(|d| &d.bounds) {
                    let exemplar = of_bucket(exemplars, above, Some(us));
                    number_with("slowburn_request_duration_seconds_bucket", &[("le", &text::bound(us))], float(within), exemplar);
                    above = Some(us);
                }
                number_with("slowburn_request_duration_seconds_bucket", &[("le", "+Inf")], count, of_bucket(exemplars, above, None));
                number_with("slowburn_request_duration_seconds_sum", &[], sum, None);
                number_with("slowburn_request_duration_seconds_count", &[], count, None);
                if let Some(NativePart { count, sum_us, fields }) = native {
                    let all: Vec<Shown<'_>> = exemplars.iter().map(shown).collect();
                    put("slowburn_request_duration_seconds", &[], Value::Native { count: *count, sum_seconds: seconds(*sum_us), fields }, false, &all);
                }
            }
            OfEndpoints::Latency => {
                for &(quantile, us) in detail.iter().flat_map(|d| &d.quantiles) {
                    number_with("slowburn_endpoint_latency_seconds", &[("window", "1m"), ("quantile", quantile)], seconds(us), None);
                }
                number_with("slowburn_endpoint_latency_seconds_sum", &[("window", "1m")], sum, None);
                number_with("slowburn_endpoint_latency_seconds_count", &[("window", "1m")], count, None);
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
fn float(n: u64) -> f64 {
    n as f64
}

fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}
