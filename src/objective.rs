//! What is promised: objectives, their error budgets, and the burn windows by which a budget's use is judged.
//!
//! Ratios are kept as integers (parts per billion, thousandths), so that what was configured is what is compared.

use serde::{Deserialize, Serialize};

use crate::time::{SLOT_MS, format_duration_us, parse_duration_us};

/// One, in parts per billion.
pub const PPB: u64 = 1_000_000_000;

/// How much a person is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Look at it in the morning.
    Warning,
    /// Wake up.
    Critical,
}

impl Severity {
    /// `warning` or `critical`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What makes a request good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Not a failure, and at most so many microseconds.
    Latency {
        /// Whole microseconds, 1 to 7 days.
        threshold_us: u64,
    },
    /// Not a failure.
    Availability,
    /// At most so many microseconds, failure or not: what a quantile of all requests compares.
    Quantile {
        /// Whole microseconds.
        threshold_us: u64,
        /// The quantile, in parts per billion.
        quantile_ppb: u64,
    },
}

impl Goal {
    /// The threshold that must be counted exactly for it.
    #[must_use]
    pub fn threshold_us(self) -> Option<u64> {
        match self {
            Self::Latency { threshold_us } | Self::Quantile { threshold_us, .. } => Some(threshold_us),
            Self::Availability => None,
        }
    }

    /// Its name in labels and texts: `latency<=800ms`, `availability`, `p95<=800ms`.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Latency { threshold_us } => format!("latency<={}", format_duration_us(threshold_us)),
            Self::Availability => "availability".to_owned(),
            Self::Quantile { threshold_us, quantile_ppb } => {
                format!("p{}<={}", percent_text(quantile_ppb).trim_end_matches(" %"), format_duration_us(threshold_us))
            }
        }
    }
}

/// One pair of windows with its factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BurnWindow {
    /// The long window, in slots.
    pub long_slots: u32,
    /// The short window, in slots.
    pub short_slots: u32,
    /// Thousandths of the burn rate from which it fires; a rate of 1 uses the budget up in exactly its period.
    pub factor_milli: u64,
    /// What an incident of it is.
    pub severity: Severity,
    /// The probability that luck alone may have when it fires: P(X ≥ bad | n, budget) on the long window.
    pub alpha: f64,
}

impl BurnWindow {
    /// For a person: `1h`.
    #[must_use]
    pub fn long_name(&self) -> String {
        slots_name(self.long_slots)
    }

    /// For a person: `5m`.
    #[must_use]
    pub fn short_name(&self) -> String {
        slots_name(self.short_slots)
    }

    /// The factor as a number.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most a few million thousandths")]
    pub fn factor(&self) -> f64 {
        self.factor_milli as f64 / 1000.0
    }

    /// Whether so many bad requests of `n` burn at least at the factor: `bad >= factor * budget * n`, in double precision and in this order, as Prometheus and
    /// the naive evaluators compute it. Exact rationals differ from it only where the share equals factor times budget to the last request (99 of 330 at 6 × 5 %),
    /// and there two tools that watch the same requests should not say two things.
    #[must_use]
    pub fn burns(&self, bad: u64, n: u64, budget_ppb: u64) -> bool {
        reaches(self.share(budget_ppb), bad, n)
    }

    /// The share of bad requests from which it burns.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "at most 10^9")]
    pub fn share(&self, budget_ppb: u64) -> f64 {
        self.factor() * (budget_ppb as f64 / PPB as f64)
    }
}

/// Whether so many bad requests of `n` are at least that share ([`BurnWindow::burns`]).
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn reaches(share: f64, bad: u64, n: u64) -> bool {
    n > 0 && bad as f64 >= share * n as f64
}

/// The burn rate: the share of bad requests over the budget. 0 without requests.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
pub fn burn_rate(bad: u64, n: u64, budget_ppb: u64) -> f64 {
    if n == 0 { 0.0 } else { (bad as f64 / n as f64) / (budget_ppb as f64 / PPB as f64) }
}

/// A window's name from its slots.
#[must_use]
pub fn slots_name(slots: u32) -> String {
    format_duration_us(u64::from(slots) * 10_000_000)
}

/// Slots in a duration text such as `5m`: a multiple of 10 s, at least one slot, at most 31 days.
///
/// # Errors
/// With what was expected.
pub fn parse_slots(text: &str) -> Result<u32, String> {
    let us = parse_duration_us(text).map_err(|e| e.to_string())?;
    let slot_us = u64::try_from(SLOT_MS).unwrap_or(10_000) * 1000;
    if us == 0 || !us.is_multiple_of(slot_us) {
        return Err(format!("`{text}` is not a multiple of 10s"));
    }
    u32::try_from(us / slot_us).ok().filter(|s| *s <= 31 * 8640).ok_or_else(|| format!("`{text}` is longer than 31d"))
}

/// A percentage such as `99.9%` in parts per billion, strictly between 0 and 100 %.
///
/// # Errors
/// With what was expected.
pub fn parse_percent_ppb(text: &str) -> Result<u64, String> {
    let error = || format!("`{text}` is not a percentage between 0% and 100%, such as 99.9%");
    let number = text.strip_suffix('%').ok_or_else(error)?.trim();
    let ppb = parse_decimal(number, 7).ok_or_else(error)?;
    if ppb == 0 || ppb >= PPB { Err(error()) } else { Ok(ppb) }
}

/// A plain decimal number times `10^digits`, exactly; `None` when it is none or has more digits behind the point.
#[must_use]
pub fn parse_decimal(text: &str, digits: u32) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = usize::try_from(digits).ok()?;
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 9 || fraction.len() > digits || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    format!("{whole}{fraction:0<digits$}").parse().ok()
}

/// Parts per billion as a percentage for a person: `99.9 %`.
#[must_use]
pub fn percent_text(ppb: u64) -> String {
    let whole = ppb / 10_000_000;
    let fraction = format!("{:07}", ppb % 10_000_000);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { format!("{whole} %") } else { format!("{whole}.{fraction} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_exact() {
        assert_eq!(parse_percent_ppb("99.9%"), Ok(999_000_000));
        assert_eq!(parse_percent_ppb("95 %"), Ok(950_000_000));
        for text in ["100%", "0%", "99.9", "1e2%", "-5%", "99.99999999%", "%"] {
            assert!(parse_percent_ppb(text).is_err(), "{text}");
        }
        assert_eq!(percent_text(999_000_000), "99.9 %");
        assert_eq!(percent_text(950_000_000), "95 %");
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn a_burn_is_compared_as_the_naive_evaluator_compares_it() {
        let window = BurnWindow { long_slots: 360, short_slots: 30, factor_milli: 14_400, severity: Severity::Critical, alpha: 0.001 };
        for n in 0..2_000_u64 {
            for bad in [n * 72 / 100, n * 72 / 100 + 1] {
                assert_eq!(window.burns(bad, n, 50_000_000), n > 0 && bad as f64 >= 14.4 * 0.05 * n as f64, "{bad} of {n}");
            }
        }
        assert!(!window.burns(0, 0, 50_000_000));
        assert_eq!(window.long_name(), "1h");
    }

    #[test]
    fn goals_have_names() {
        assert_eq!(Goal::Latency { threshold_us: 800_000 }.name(), "latency<=800ms");
        assert_eq!(Goal::Quantile { threshold_us: 800_000, quantile_ppb: 950_000_000 }.name(), "p95<=800ms");
    }
}
