//! Which series and labels there are, as Grafana's query builder and its variables ask. All that Slowburn ever knew, whatever the range of time.

use std::collections::BTreeSet;

use super::super::Site;
use super::super::promql::evaluate::Labels;
use super::super::promql::expression::{Leaf, NAME, parse_selector};
use super::current::Current;
use super::form::{Form, invalid};
use super::metric::{Metric, endpoint_labels};
use super::past::Catalogue;
use super::{Answer, Failure, broken, json};

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

/// All that there is at one moment, and what is asked for of it.
struct Asked {
    catalogue: Catalogue,
    current: Current,
    selectors: Vec<Leaf>,
}

impl Asked {
    /// Works an answer out beside the tasks that wait, as it may go over every series.
    async fn answer(site: &Site, form: &Form, work: impl FnOnce(&Self) -> Answer + Send + 'static) -> Result<Answer, Failure> {
        let selectors = selectors(form)?;
        let running = site.queries.begin().await?;
        let asked = Self { catalogue: Catalogue::of(site, true).await?, current: Current::of(site).await?, selectors };
        let answered = tokio::task::spawn_blocking(move || {
            // It runs to its end, also when whoever asked has gone.
            let _running = running;
            work(&asked)
        });
        answered.await.map_err(|e| broken(&e))
    }

    /// Tells the labels of each series that one of the selectors lets through; of none, of all.
    fn each(&self, mut tell: impl FnMut(Labels)) {
        let all = [Vec::new()];
        let lists: Vec<&Vec<_>> = if self.selectors.is_empty() { all.iter().collect() } else { self.selectors.iter().map(|s| &s.matchers).collect() };
        for matchers in lists {
            for metric in Metric::ALL {
                self.catalogue.each(metric, matchers, |_, key, parts| {
                    let mut labels = endpoint_labels(key);
                    labels.insert(NAME.to_owned(), metric.name().to_owned());
                    for (part, _) in parts {
                        tell(labels.clone().into_iter().chain(part.into_iter().map(|(name, value)| (name.to_owned(), value))).collect());
                    }
                });
            }
            self.current.series(matchers).for_each(|(labels, _)| tell(labels.clone()));
        }
    }
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
    let limit = limit(form)?;
    let work = move |asked: &Asked| {
        let mut names = BTreeSet::new();
        asked.each(|labels| names.extend(labels.into_keys()));
        cut(names, limit)
    };
    Asked::answer(site, form, work).await
}

/// The values of a label.
pub(super) async fn values(site: &Site, form: &Form, name: String) -> Result<Answer, Failure> {
    let limit = limit(form)?;
    let work = move |asked: &Asked| {
        let mut values = BTreeSet::new();
        asked.each(|mut labels| values.extend(labels.remove(&name)));
        // A metric without a series now is asked for as well.
        if name == NAME && asked.selectors.is_empty() {
            values.extend(asked.current.families.iter().map(|f| f.name.clone()));
        }
        cut(values, limit)
    };
    Asked::answer(site, form, work).await
}

/// The series that selectors let through.
pub(super) async fn series(site: &Site, form: &Form) -> Result<Answer, Failure> {
    let limit = limit(form)?;
    if form.all("match[]").next().is_none() {
        return Err(Failure::bad_data("no match[] parameter provided"));
    }
    let work = move |asked: &Asked| {
        let (mut found, mut notes) = (BTreeSet::new(), BTreeSet::new());
        asked.each(|labels| {
            if found.len() < limit || found.contains(&labels) {
                found.insert(labels);
            } else {
                notes.insert(format!("results truncated due to limit: there are more than {limit}"));
            }
        });
        Answer { data: json::of_labels(found.iter()), notes }
    };
    Asked::answer(site, form, work).await
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
