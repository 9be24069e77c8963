//! One budget of false alarms, and the thresholds that follow from it.
//!
//! What is proved and what is measured: nothing here is proved. Day-to-day wander of real services is neither independent nor Gaussian, and no bound holds
//! against it. Each table below is a measurement: how often quiet simulated endpoints (seasons, heavy tails, two modes, surges, lulls, noisy weeks, short
//! blips, a wander of 0.055 to 0.09 a day with a time constant of 36 h, four harmless markers in 45 days) reach a score, in alarms per endpoint and 30 days.
//! Between the points the rate falls exponentially, as the tail of a maximum does (Leadbetter, Lindgren & Rootzén, Extremes and Related Properties
//! of Random Sequences and Processes, 1983); beyond them it is extrapolated.

use serde::{Deserialize, Serialize};

/// Scores from which an endpoint is reported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Creep and small steps.
    pub slow: f32,
    /// Durations that draw apart.
    pub spread: f32,
    /// Steps within hours.
    pub fast: f32,
    /// The tail.
    pub tail: f32,
    /// Before against after a marker, where they are seldom ([`Thresholds::of_marker`]).
    pub marker: f32,
    /// Traffic against nothing changed, and against an ordinary lull.
    pub traffic: (f32, f32),
    /// Likewise, while the requests that do come take far longer.
    pub traffic_slower: (f32, f32),
    /// Work out against work in.
    pub flow: f32,
}

/// Scores and the false alarms per endpoint-month that they were measured to have, and the share of the budget.
///
/// The shares of latency add up to more than one: tails err on real services where simulated ones do not, spreads err by a wander that is assumed, and an alarm of one
/// family keeps the others quiet for a week. What all of them together have was measured on streams that no table is from: 0.9 of the budget (README).
struct Family {
    measured: &'static [(f32, f32)],
    share: f32,
}

const SLOW: Family = Family { measured: &[(3.9, 0.070), (4.4, 0.0306), (4.7, 0.0201), (4.9, 0.0125), (5.2, 0.0035)], share: 0.32 };
// Simulated endpoints whose spread wanders by 2 % a day besides (correlation 0.5 from one to the next), 1,900 months: by chance alone it is a quarter as often.
const SPREAD: Family = Family { measured: &[(3.87, 0.12), (4.23, 0.064), (4.75, 0.030), (5.43, 0.010), (6.25, 0.0035)], share: 0.3 };
const MARKER: Family = Family { measured: &[(2.6, 0.0454), (3.0, 0.0171), (3.4, 0.0056), (3.8, 0.0019), (4.2, 0.0009)], share: 0.35 };
/// Up to so many markers in four weeks are what it was measured with.
const SELDOM: f32 = 4.0;
const FAST: Family = Family { measured: &[(4.0, 0.02), (4.4, 0.009), (4.7, 0.0042), (5.0, 0.0021), (5.3, 0.0007)], share: 0.04 };
// Measured where it errs, on the hourly levels of real services (ten series, 500 months): simulated ones never reached these scores in 2,160 months.
const TAIL: Family = Family { measured: &[(4.2, 0.022), (4.6, 0.014), (5.0, 0.010), (5.8, 0.004), (6.5, 0.002)], share: 0.5 };
// Simulated counts, 36,000 months: plain, weekly, surges, lulls. Half of the budget is for what these do not have.
const TRAFFIC: Family =
    Family { measured: &[(2.6, 1.851), (3.0, 0.516), (3.4, 0.101), (3.8, 0.0219), (4.2, 0.0064), (4.6, 0.0029), (5.0, 0.0017), (5.6, 0.0008)], share: 0.5 };

/// How far below an ordinary lull traffic must be, in standard deviations, at 0.03 a month, and by how much more at a tenth of it: lulls are what is left of the tail.
const LULL: (f32, f32) = (1.95, 0.3);
/// Flows have a few parts in a thousand of false alarms at this score, and hardly fewer at a higher one.
const FLOW: f32 = 6.0;
/// A critical endpoint is told of sooner, at so many times the budget; of a creep, which is a warning and wakes nobody before its promise is near to break, sooner still.
/// Ten of them err together no more often than a hundred others.
const CRITICAL: f32 = 8.0;
const CRITICAL_SLOW: f32 = 20.0;

/// While most requests of an endpoint take ten times as long as nearly any used to, missing traffic is told at so many times the budget: it is so for less than half
/// an hour a day (on quiet endpoints never), and how many requests come by chance does not depend on it.
const SLOWER: f32 = 50.0;

impl Family {
    /// The score at which so many alarms are false.
    fn threshold(&self, rate: f32) -> f32 {
        let rate = rate * self.share;
        let after = self.measured.iter().skip(1).position(|(_, r)| *r < rate).unwrap_or(self.measured.len() - 2);
        let ((low, often), (high, seldom)) = (self.measured[after], self.measured[after + 1]);
        low + (high - low) * libm::logf(often / rate) / libm::logf(often / seldom)
    }

    /// By how much the score rises when so many times (e) less is asked for, where the fewest were measured.
    fn for_each_e_fold(&self) -> f32 {
        let [.., (low, often), (high, seldom)] = self.measured else { return 0.0 };
        (high - low) / libm::logf(often / seldom)
    }
}

impl Thresholds {
    /// Nothing is ever reported: for times that are only lived through.
    #[must_use]
    pub fn never() -> Self {
        let never = f32::MAX;
        Self { slow: never, spread: never, fast: never, tail: never, marker: never, traffic: (never, never), traffic_slower: (never, never), flow: never }
    }

    /// The score after a marker of which there were so many in four weeks: each is looked at, and all of them have one share of the budget.
    #[must_use]
    pub fn of_marker(&self, markers: f32) -> f32 {
        self.marker + MARKER.for_each_e_fold() * libm::logf((markers / SELDOM).max(1.0))
    }

    /// For a budget of false alarms per endpoint and 30 days, of each class: latency and traffic.
    #[must_use]
    pub fn of(false_alarms: f32, critical: bool) -> Self {
        let budget = false_alarms.clamp(1e-4, 1.0);
        let (rate, slow_rate) = if critical { (CRITICAL * budget, CRITICAL_SLOW * budget) } else { (budget, budget) };
        Self {
            slow: SLOW.threshold(slow_rate),
            spread: SPREAD.threshold(slow_rate),
            fast: FAST.threshold(rate),
            tail: TAIL.threshold(rate),
            marker: MARKER.threshold(rate),
            traffic: traffic(rate),
            traffic_slower: traffic(SLOWER * rate),
            flow: FLOW,
        }
    }
}

/// The bounds of traffic against nothing changed and against a lull.
fn traffic(rate: f32) -> (f32, f32) {
    (TRAFFIC.threshold(rate), LULL.0 + LULL.1 * libm::log10f(0.03 / rate))
}

impl Default for Thresholds {
    fn default() -> Self {
        Self::of(0.01, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_a_measured_rate_the_threshold_is_the_measured_score() {
        for family in [SLOW, SPREAD, MARKER, FAST, TAIL, TRAFFIC] {
            for (score, rate) in family.measured {
                assert!((family.threshold(rate / family.share) - score).abs() < 1e-4, "{score}");
            }
        }
    }

    #[test]
    fn so_many_times_the_markers_have_so_much_less_of_the_budget_each() {
        let at = |rate: f32| Thresholds { marker: MARKER.threshold(rate / MARKER.share), ..Thresholds::default() };
        let seldom = at(0.0019);
        assert!((seldom.of_marker(SELDOM) - seldom.marker).abs() < 1e-6 && (seldom.of_marker(0.0) - seldom.marker).abs() < 1e-6);
        assert!((seldom.of_marker(SELDOM * 19.0 / 9.0) - 4.2).abs() < 1e-4);
        assert!((seldom.of_marker(SELDOM * 19.0) - at(0.0001).marker).abs() < 1e-4, "as far beyond the table");
    }

    #[test]
    fn less_budget_asks_for_more_evidence_and_a_critical_endpoint_for_less() {
        let mut last = Thresholds::of(0.3, false);
        for budget in [0.1, 0.03, 0.01, 0.003, 0.001] {
            let now = Thresholds::of(budget, false);
            assert!(
                now.slow > last.slow
                    && now.spread > last.spread
                    && now.fast > last.fast
                    && now.tail > last.tail
                    && now.marker > last.marker
                    && now.traffic.0 > last.traffic.0
            );
            assert!(Thresholds::of(budget, true).slow < now.slow);
            last = now;
        }
    }
}
