//! How surely a count of bad requests is more than luck: tails of the binomial distribution.
//!
//! # Source
//! P(X ≥ k | n, p) = `I_p(k, n − k + 1)`, the regularised incomplete beta function (Abramowitz & Stegun 1964, 26.5.24), by its
//! continued fraction (26.5.8) in the modified Lentz form (Press et al., Numerical Recipes, 2007, 6.4). The mathematics functions
//! are the pure-Rust `libm`, so that two machines decide alike.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Counts of bad requests for which the turning points are kept.
const KEPT: usize = 256;

/// Below this probability a turning point is too far away to be searched for.
const KEPT_FROM: f64 = 1e-5;

/// For each small count of bad requests, the first number of requests at which something turns from false to true; found when first asked for. Both tails are monotonic in the
/// number of requests, and comparing two numbers costs a hundredth of adding up a tail.
#[derive(Debug, Default)]
struct Firsts(Box<[OnceLock<u64>]>);

impl Firsts {
    fn new(p: f64) -> Self {
        Self(if p >= KEPT_FROM { std::iter::repeat_with(OnceLock::new).take(KEPT).collect() } else { Box::default() })
    }

    fn of(&self, bad: u64, turned: impl Fn(u64) -> bool) -> Option<u64> {
        let kept = self.0.get(usize::try_from(bad).ok()?)?;
        Some(*kept.get_or_init(|| first(bad, turned)))
    }
}

/// The first number from `from` on at which it has turned.
fn first(from: u64, turned: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut step) = (from, 1_u64);
    while !turned(low.saturating_add(step)) {
        low = low.saturating_add(step);
        if low == u64::MAX {
            return low;
        }
        step = step.saturating_mul(2);
    }
    if turned(from) {
        return from;
    }
    // Not turned at `low`, turned at `high`.
    let mut high = low.saturating_add(step);
    while high - low > 1 {
        let middle = u64::midpoint(low, high);
        if turned(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// Whether luck is excluded: P(X ≥ bad | n, p) < α.
#[derive(Debug)]
pub struct Luck {
    p: f64,
    alpha: f64,
    firsts: Firsts,
}

impl Luck {
    /// Whether so many bad requests of `n` are more than luck.
    #[must_use]
    pub fn is_excluded(&self, bad: u64, n: u64) -> bool {
        let may_be = |n| binomial_tail(bad, n, self.p) >= self.alpha;
        self.firsts.of(bad, may_be).map_or_else(|| !may_be(n), |from| n < from)
    }
}

/// Whether the share of bad requests is surely under a limit: P(X ≤ bad | n, limit) < α.
#[derive(Debug)]
pub struct Fewness {
    limit: f64,
    alpha: f64,
    firsts: Firsts,
}

impl Fewness {
    /// Whether so few bad requests of `n` say that.
    #[must_use]
    pub fn is_sure(&self, bad: u64, n: u64) -> bool {
        let sure = |n| binomial_at_most(bad, n, self.limit) < self.alpha;
        self.firsts.of(bad, sure).map_or_else(|| sure(n), |from| n >= from)
    }
}

/// The turning points of all rules: those with the same numbers share them.
#[derive(Debug, Default)]
pub struct Turns {
    lucks: HashMap<[u64; 2], Arc<Luck>>,
    fewnesses: HashMap<[u64; 2], Arc<Fewness>>,
}

impl Turns {
    /// For a budget and the chance that luck may have.
    pub fn luck(&mut self, p: f64, alpha: f64) -> Arc<Luck> {
        Arc::clone(self.lucks.entry([p.to_bits(), alpha.to_bits()]).or_insert_with(|| Arc::new(Luck { p, alpha, firsts: Firsts::new(p) })))
    }

    /// For a limit and one minus the confidence.
    pub fn fewness(&mut self, limit: f64, alpha: f64) -> Arc<Fewness> {
        Arc::clone(self.fewnesses.entry([limit.to_bits(), alpha.to_bits()]).or_insert_with(|| Arc::new(Fewness { limit, alpha, firsts: Firsts::new(limit) })))
    }
}

/// P(X ≥ k) for X ~ Bin(n, p): the chance of at least `k` bad requests of `n` when each is bad with probability `p` in [0, 1].
#[must_use]
pub fn binomial_tail(k: u64, n: u64, p: f64) -> f64 {
    if k == 0 {
        return 1.0;
    }
    if k > n || p <= 0.0 {
        return 0.0;
    }
    if p >= 1.0 {
        return 1.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    let (a, b) = (k as f64, (n - k + 1) as f64);
    if k == n {
        // Exactly p for one of one: at a budget of α that is not less than α, however the fraction is rounded.
        return libm::pow(p, a);
    }
    incomplete_beta(a, b, p)
}

/// P(X ≤ k) for X ~ Bin(n, p).
#[must_use]
pub fn binomial_at_most(k: u64, n: u64, p: f64) -> f64 {
    if k >= n {
        return 1.0;
    }
    if p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    let (a, b) = ((n - k) as f64, (k + 1) as f64);
    incomplete_beta(a, b, 1.0 - p)
}

/// `I_x(a, b)` for 0 < x < 1, a, b > 0.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    let log_front = libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b) + a * libm::log(x) + b * libm::log1p(-x);
    let front = libm::exp(log_front);
    if x < (a + 1.0) / (a + b + 2.0) { front * continued_fraction(a, b, x) / a } else { 1.0 - front * continued_fraction(b, a, 1.0 - x) / b }
}

fn continued_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let not_zero = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / not_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut h = d;
    // Converges in O(sqrt(max(a, b))) steps; the bound is for counts of 10^9.
    for m in 1..100_000_u32 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / not_zero(1.0 + even * d);
        c = not_zero(1.0 + even / c);
        h *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / not_zero(1.0 + odd * d);
        c = not_zero(1.0 + odd / c);
        let step = d * c;
        h *= step;
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    h
}

/// A number rounded to three significant digits, as evidence is stored.
#[must_use]
pub fn three_digits(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "small counts")]
    fn direct_tail(k: u64, n: u64, p: f64) -> f64 {
        let choose = |i: u64| (0..i).fold(1.0, |c, j| c * (n - j) as f64 / (j + 1) as f64);
        (k..=n).map(|i| choose(i) * p.powi(i as i32) * (1.0 - p).powi((n - i) as i32)).sum()
    }

    #[test]
    fn tails_equal_direct_summation() {
        for n in [1, 2, 10, 35, 100] {
            for p in [0.001, 0.01, 0.05, 0.3, 0.72, 0.999] {
                for k in 0..=n {
                    let (ours, truth) = (binomial_tail(k, n, p), direct_tail(k, n, p));
                    assert!((ours - truth).abs() < 1e-11 * truth.max(1e-3), "k {k} n {n} p {p}: {ours} {truth}");
                    assert!((binomial_at_most(k, n, p) + binomial_tail(k + 1, n, p) - 1.0).abs() < 1e-10);
                }
            }
        }
    }

    #[test]
    fn turning_points_say_what_the_tails_say() {
        let mut turns = Turns::default();
        for p in [0.000_001, 0.000_1, 0.001, 0.01, 0.144, 0.6, 1.0] {
            let (luck, fewness) = (turns.luck(p, 0.001), turns.fewness(p, 0.05));
            for bad in [0, 1, 2, 3, 7, 40, 255, 256] {
                for n in (bad..bad + 300).chain((bad..30_000).step_by(97)) {
                    assert_eq!(luck.is_excluded(bad, n), binomial_tail(bad, n, p) < 0.001, "{bad} of {n} at {p}");
                    assert_eq!(fewness.is_sure(bad, n), binomial_at_most(bad, n, p) < 0.05, "{bad} of {n} at {p}");
                }
            }
        }
    }

    /// At 95 % the first request of all is bad with a chance of 0.05, which is not less than 0.05: nothing is said of it.
    #[test]
    fn one_bad_of_one_may_be_luck_where_the_budget_is_alpha() {
        for p in [0.001, 0.01, 0.05, 0.1, 0.3] {
            assert_eq!(binomial_tail(1, 1, p).to_bits(), p.to_bits());
            let mut turns = Turns::default();
            assert!(!turns.luck(p, p).is_excluded(1, 1) && turns.luck(p, p).is_excluded(2, 2));
        }
    }

    /// The figures of the low-traffic table: 99.9 %, 1 of 10 and 2 of 10.
    #[test]
    fn one_bad_of_ten_may_be_luck_and_two_are_not() {
        assert_eq!(three_digits(binomial_tail(1, 10, 0.001)).to_string(), "0.00996");
        assert_eq!(format!("{:.1e}", binomial_tail(2, 10, 0.001)), "4.5e-5");
    }

    /// `SciPy` 1.17: `binom.sf(k - 1, n, p)` and `binom.cdf(k, n, p)`.
    #[test]
    fn large_counts_equal_those_of_another_implementation() {
        for (k, n, p, tail, at_most) in [
            (1_100_u64, 1_000_000_u64, 0.001, 9.574_669_700_285e-4, 9.991_371_002_480e-1),
            (130, 863, 0.05, 1.290_960_184_987e-28, 1.0),
            (144, 10_000, 0.01, 1.896_386_773_937e-5, 9.999_871_576_348e-1),
            (20, 1_000, 0.001, 1.335_748_699_236e-19, 1.0),
            (3, 35, 0.01, 5.153_708_765_531e-3, 9.995_912_875_333e-1),
            (5_200, 100_000, 0.05, 1.995_480_069_653e-3, 9.980_933_448_097e-1),
            (50, 100_000_000, 1e-7, 1.854_712_329_838e-19, 1.0),
        ] {
            let close = |ours: f64, theirs: f64| (ours / theirs - 1.0).abs() < 1e-6;
            assert!(close(binomial_tail(k, n, p), tail), "k {k} n {n}: {}", binomial_tail(k, n, p));
            assert!(close(binomial_at_most(k, n, p), at_most), "k {k} n {n}: {}", binomial_at_most(k, n, p));
        }
    }
}
