//! What has no past: the metrics of Slowburn itself, of objectives and incidents, as `/metrics` has them at this moment.

use std::collections::BTreeSet;

use prometheus::proto::MetricType;
use promql_parser::label::{MatchOp, Matcher};

use super::super::promql::evaluate::Labels;
use super::super::promql::expression::{Leaf, NAME, Over};
use super::super::{Site, metrics};
use super::Failure;
use super::metric::Metric;

/// A family.
pub(super) struct Described {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) kind: &'static str,
    pub(super) series: Vec<(Labels, f64)>,
}

/// All that has no past.
#[derive(Default)]
pub(super) struct Current {
    pub(super) families: Vec<Described>,
}

impl Current {
    pub(super) async fn of(site: &Site) -> Result<Self, Failure> {
        let families = metrics::without_endpoints(site).await?.into_iter().map(|family| {
            let family = family.0;
            let is_counter = family.get_field_type() == MetricType::COUNTER;
            let series = family.get_metric().iter().map(|metric| {
                let name = (NAME.to_owned(), family.name().to_owned());
                // An empty label is none.
                let labels = metric.get_label().iter().filter(|l| !l.value().is_empty()).map(|l| (l.name().to_owned(), l.value().to_owned()));
                let value = if is_counter { metric.get_counter().get_value() } else { metric.get_gauge().get_value() };
                (labels.chain([name]).collect(), value)
            });
            let series = series.collect();
            Described { name: family.name().to_owned(), help: family.help().to_owned(), kind: if is_counter { "counter" } else { "gauge" }, series }
        });
        let has_past = |name: &str| Metric::ALL.into_iter().any(|m| m.name() == name);
        Ok(Self { families: families.filter(|f| !has_past(&f.name)).collect() })
    }

    /// The series that matchers let through.
    pub(super) fn series<'a>(&'a self, matchers: &'a [Matcher]) -> impl Iterator<Item = &'a (Labels, f64)> {
        let is_wanted = |labels: &Labels| matchers.iter().all(|m| m.is_match(labels.get(&m.name).map_or("", String::as_str)));
        self.families.iter().flat_map(|f| &f.series).filter(move |(labels, _)| is_wanted(labels))
    }

    /// What a selector has of it; says where it asks for a past that there is not, or for what there is not at all.
    pub(super) fn matching(&self, leaf: &Leaf, has_past: bool, notes: &mut BTreeSet<String>) -> Vec<(Labels, f64)> {
        let named = leaf.matchers.iter().filter(|m| m.name == NAME);
        let exact: Vec<&str> = named.filter(|m| m.op == MatchOp::Equal).map(|m| m.value.as_str()).collect();
        let is_known = |name: &str| self.families.iter().any(|f| f.name == name);
        for name in exact.iter().filter(|name| !has_past && !is_known(name)) {
            notes.insert(format!("Slowburn has no metric {name}"));
        }
        if leaf.over == Over::Last {
            return self.series(&leaf.matchers).cloned().collect();
        }
        for name in exact.into_iter().filter(|name| is_known(name)) {
            notes.insert(no_history(name));
        }
        Vec::new()
    }
}

/// What is said where a past is asked for that there is not.
pub(super) fn no_history(name: &str) -> String {
    format!("{name} has no history in Slowburn: only what it is now is known")
}
