//! A holiday or a fault? When all of a service falls alike, nobody need get up; when one endpoint's share of it falls, something is broken.
//!
//! # Source
//! The ratio of two counts against their expected ratio: a binomial share (Przyborowski & Wilenski, Homogeneity of results in testing samples from
//! Poisson series, Biometrika 31, 1940) with the over-dispersion of shares on top.

use super::tail::signed_root;

/// Spread of an endpoint's share of its service from hour to hour.
pub const SHARE_SPREAD: f32 = 0.1;
/// Spread of a service's share of all traffic: a holiday empties offices more than kitchens.
pub const SERVICE_SPREAD: f32 = 0.25;
/// Requests that siblings must be expected to have.
const SIBLINGS_MIN: f32 = 20.0;

/// What the siblings say of a collapse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// Its share fell too: standard deviations.
    Fell(f32),
    /// The whole service fell alike.
    Kept(f32),
    /// They have too little traffic to tell.
    Unknown,
}

/// Compares an endpoint's requests (seen, expected) with those of the rest, of its service or of all, over the same quarters.
#[must_use]
pub fn share(own: (f32, f32), siblings: (f32, f32), spread: f32, threshold: f32) -> Share {
    if siblings.1 < SIBLINGS_MIN || siblings.0 < 1.0 {
        return Share::Unknown;
    }
    let common = siblings.0 / siblings.1;
    let expected = own.1 * common;
    let variance = expected + expected * expected * (1.0 / siblings.0 + spread * spread);
    let score = -signed_root(own.0, expected) * (expected / variance).sqrt();
    if score > threshold { Share::Fell(score) } else { Share::Kept(score) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_holiday_keeps_the_share_and_broken_orders_do_not() {
        assert!(matches!(share((65.0, 100.0), (650.0, 1000.0), SHARE_SPREAD, 3.0), Share::Kept(_)));
        assert!(matches!(share((30.0, 100.0), (650.0, 1000.0), SHARE_SPREAD, 3.0), Share::Fell(_)));
        assert!(matches!(share((30.0, 100.0), (980.0, 1000.0), SHARE_SPREAD, 3.0), Share::Fell(_)));
        assert_eq!(share((3.0, 10.0), (5.0, 10.0), SHARE_SPREAD, 3.0), Share::Unknown);
    }

    /// The conditional test of Przyborowski & Wilenski: 15 against 60 where 1 to 1 was expected has a binomial chance of 7e-8, about 5.3 standard deviations.
    #[test]
    fn without_spread_it_is_near_the_conditional_binomial() {
        let Share::Fell(score) = share((15.0, 60.0), (60.0, 60.0), SHARE_SPREAD, 0.0) else { panic!("it fell") };
        let without = -signed_root(15.0, 60.0) / (1.0_f32 + 1.0).sqrt();
        assert!(score < without && (without - 5.3).abs() < 0.4, "{score} {without}");
    }
}
