//! A subset of `PromQL` over what history holds: expressions as they are understood here ([`expression`]), and their values at many instants ([`evaluate`]). Knows no clock and
//! no file; where series come from is the business of whoever implements [`evaluate::Past`].
//!
//! Counters are not made up again as samples: a rate or an increase asks history what was counted in its window, and no sample is ever interpolated or extrapolated. Sums of
//! rates of histograms are sums of Slowburn's own histograms, and a quantile is read off the sum.

pub(super) mod aggregate;
pub(super) mod buckets;
pub(super) mod evaluate;
pub(super) mod expression;
pub(super) mod functions;
pub(super) mod matching;
mod place;
