//! Prometheus rules: for each configured objective alerts by its burn windows and recording rules under the names that dashboards of Sloth and Pyrra read; and the
//! files of `alert-rules/`, which need no configuration.
//!
//! Pure: a configuration in, the texts of files out. What the rules cannot do that the judge can stands at the head of the file.

pub mod file;
mod objective;

use std::collections::BTreeSet;

use crate::judge::Promises;
use objective::Objective;
pub(super) use objective::{decimal, slug};

/// Rules that need no configuration, by the name of their file.
pub const STATIC: [(&str, &str); 2] = [
    ("slowburn-endpoints.rules.yml", include_str!("../../../alert-rules/slowburn-endpoints.rules.yml")),
    ("slowburn-itself.rules.yml", include_str!("../../../alert-rules/slowburn-itself.rules.yml")),
];

/// The name of the file of the objectives.
pub const OBJECTIVES_FILE: &str = "slowburn-objectives.rules.yml";

/// Where runbooks are found unless somebody says another place: in the repository.
pub const RUNBOOKS: &str = "docs/runbooks";

const COMMENTS: &str = "\
Written by `slowburn rules`; to be written anew when the objectives or burn windows of the configuration change.

Prometheus scrapes Slowburn at least four times in the shortest window here, with `honor_labels: true` where targets have a label `service` of their own.
Slowburn judges each objective by itself. These rules come near it, and are weaker:
- Evidence: Slowburn computes P(bad or more | requests, budget) exactly. Here a bound above it (Chernoff's, exp(-n (r ln(r/b) - r + b)), r the share of bad
  requests, b the budget) must be under alpha. At 99 % that takes 4 bad requests at 14.4 times, as Slowburn does, but 8 in place of 6 at 6 times, 16 in place of 12
  at 3 times. With many requests both say the same.
- Counts: increase() and rate() stretch what scrapes saw to the window, so counts are no whole numbers, what came before the first scrape of a series is missing, and a
  window begins and ends at a scrape. Slowburn counts each request in its slot of 10 s.
- Observations: Prometheus sees weights. A sampled timing that stands for 100 requests is one observation to Slowburn, and 100 to these rules.
- Late timings: Slowburn puts them where they belong. Here they count when they arrive.
- Hangs: requests that still run and are over their threshold burn in Slowburn while they run, and here once they end.
- Memory: an alert here ends as soon as a window is under its factor or empty. Slowburn holds an incident until fresh requests show that it is over, leaves it open
  when none come (unverified), and tells undecided from well.
- What needs a past of weeks is not here: creep with its date, steps, tails, missing traffic, flows. slowburn-endpoints.rules.yml has what Slowburn says of them.
";

/// A file of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleFile {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: String,
}

/// The rules of the objectives of a configuration; their runbooks are at `runbooks`, a URL or a path.
#[must_use]
pub fn of_objectives(promises: &Promises, runbooks: &str) -> RuleFile {
    let mut ids = BTreeSet::new();
    let mut groups = Vec::new();
    for (at, owed) in promises.endpoints.iter().enumerate() {
        for promise in &owed.promises {
            // An endpoint that several entries match is judged by the first that has the objective.
            let earlier = promises.endpoints[..at].iter().filter(|o| o.promises.iter().any(|p| p.goal == promise.goal)).map(|o| &o.selector);
            groups.push(Objective::new(owed, promise, earlier.collect(), &mut ids).group(runbooks));
        }
    }
    RuleFile { name: OBJECTIVES_FILE, text: file::text(COMMENTS, &groups) }
}

/// All files: of the objectives, and those that need no configuration.
#[must_use]
pub fn all(promises: &Promises, runbooks: &str) -> Vec<RuleFile> {
    let fixed =
        |(name, text): (&'static str, &str)| RuleFile { name, text: text.replace(&format!("runbook_url: {RUNBOOKS}/"), &format!("runbook_url: {runbooks}/")) };
    std::iter::once(of_objectives(promises, runbooks)).chain(STATIC.into_iter().map(fixed)).collect()
}
