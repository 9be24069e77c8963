//! How surely a count of bad requests is more than luck: tails of the binomial distribution.
//!
//! # Source
//! P(X ≥ k | n, p) = `I_p(k, n − k + 1)`, the regularised incomplete beta function (Abramowitz & Stegun 1964, 26.5.24), by its
//! continued fraction (26.5.8) in the modified Lentz form (Press et al., Numerical Recipes, 2007, 6.4). The mathematics functions
//! are the pure-Rust `libm`, so that two machines decide alike.

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
