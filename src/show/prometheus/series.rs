//! Which series and labels there are, as Grafana's query builder and its variables ask. All that Slowburn ever knew, whatever the range of time.

use std::collections::BTreeSet;

use super::super::Site;
use super::super::promql::evaluate::Labels;
use super::super::promql::expression::{Leaf, NAME, parse_selector};
use super::current::Current;
use super::form::{Form, invalid};
use super::metric::{Metric, endpoint_labels};
use super::past::Catalogue;
use super::{Answer, Failure, json};

/// Series in one list.
const LISTED_MAX: usize = 50_000;

fn selectors(form: &Form) -> Result<Vec<Leaf>, Failure> {
    form.all("match[]").map(|text| parse_selector(text).map_err(|e| invalid("match[]", e))).collect()
}

/// How many are wanted; 0 is all.
fn limit(form: &Form) -> Result<usize, Failure> {
    let asked = form.get("limit").map_or(Ok(0), |text| text.parse::<usize>().map_err(|_| invalid("limit", "expected a number")))?;
    Ok(if asked == 0 { LISTED_MAX } else { asked.min(LISTED_MAX) })
}

/// Tells the labels of each series that one of the selectors lets through; of none, of all.
async fn each(site: &Site, selectors: &[Leaf], mut tell: impl FnMut(Labels)) -> Result<(), Failure> {
    let (catalogue, current) = (Catalogue::of(site, true).await?, Current::of(site).await?);
    let all = [Vec::new()];
    let lists: Vec<&Vec<_>> = if selectors.is_empty() { all.iter().collect() } else { selectors.iter().map(|s| &s.matchers).collect() };
    for matchers in lists {
        for metric in Metric::ALL {
            catalogue.each(metric, matchers, |_, key, parts| {
                let mut labels = endpoint_labels(key);
                labels.insert(NAME.to_owned(), metric.name().to_owned());
                for (part, _) in parts {
                    tell(labels.clone().into_iter().chain(part.into_iter().map(|(name, value)| (name.to_owned(), value))).collect());
                }
            });
        }
        current.series(matchers).for_each(|(labels, _)| tell(labels.clone()));
    }
    Ok(())
}

fn cut(mut texts: BTreeSet<String>, limit: usize) -> Answer {
    let mut notes = BTreeSet::new();
    if texts.len() > limit {
        notes.insert(format!("results truncated due to limit: {} of {}", limit, texts.len()));
        texts = texts.into_iter().take(limit).collect();
    }
    Answer { data: json::of_texts(&texts), notes }
}

/// The names of labels.
pub(super) async fn labels(site: &Site, form: &Form) -> Result<Answer, Failure> {
    let mut names = BTreeSet::new();
    each(site, &selectors(form)?, |labels| names.extend(labels.into_keys())).await?;
    Ok(cut(names, limit(form)?))
}

/// The values of a label.
pub(super) async fn values(site: &Site, form: &Form, name: &str) -> Result<Answer, Failure> {
    let mut values = BTreeSet::new();
    each(site, &selectors(form)?, |mut labels| values.extend(labels.remove(name))).await?;
    // A metric without a series now is asked for as well.
    if name == NAME && form.get("match[]").is_none() {
        values.extend(Current::of(site).await?.families.into_iter().map(|f| f.name));
    }
    Ok(cut(values, limit(form)?))
}

/// The series that selectors let through.
pub(super) async fn series(site: &Site, form: &Form) -> Result<Answer, Failure> {
    let (selectors, limit) = (selectors(form)?, limit(form)?);
    if selectors.is_empty() {
        return Err(Failure::bad_data("no match[] parameter provided"));
    }
    let (mut found, mut notes) = (BTreeSet::new(), BTreeSet::new());
    each(site, &selectors, |labels| {
        if found.len() < limit || found.contains(&labels) {
            found.insert(labels);
        } else {
            notes.insert(format!("results truncated due to limit: there are more than {limit}"));
        }
    })
    .await?;
    Ok(Answer { data: json::of_labels(found.iter()), notes })
}

/// What each metric is.
pub(super) async fn metadata(site: &Site, form: &Form) -> Result<Answer, Failure> {
    let (wanted, limit) = (form.get("metric"), limit(form)?);
    let past = Metric::ALL.into_iter().filter_map(|m| m.described().map(|(kind, help)| (m.name().to_owned(), kind, help.to_owned())));
    let current = Current::of(site).await?.families.into_iter().map(|f| (f.name, f.kind, f.help));
    let all = past.chain(current).filter(|(name, ..)| wanted.is_none_or(|w| w == name)).take(limit);
    let data: serde_json::Map<String, serde_json::Value> =
        all.map(|(name, kind, help)| (name, serde_json::json!([{"type": kind, "help": help, "unit": ""}]))).collect();
    Ok(Answer { data: serde_json::Value::from(data).to_string(), notes: BTreeSet::new() })
}
