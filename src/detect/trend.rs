//! The plain explanation of a rise: its slope, and on how many days it rose.
//!
//! # Source
//! Slope: Theil, Proc. Kon. Ned. Akad. Wetensch. A 53, 1950, and Sen, JASA 63, 1968, with Sen's interval. Trend: Mann, Econometrica 13, 1945, and
//! Kendall, Rank Correlation Methods, 1948. They explain; they do not decide: neighbouring days are alike, and both would find trends in quiet series.

use serde::{Deserialize, Serialize};

/// A trend in words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// Median slope of all pairs of days: change of the log level a day.
    pub slope: f32,
    /// Its interval of 80 %.
    pub from: f32,
    /// The upper end.
    pub to: f32,
    /// Days above the median of the three before them.
    pub rising: usize,
    /// Days that were compared so.
    pub days: usize,
}

/// Mann and Kendall's S: pairs that rise less pairs that fall.
#[must_use]
pub fn mann_kendall(levels: &[f32]) -> i32 {
    let pairs = levels.iter().enumerate().flat_map(|(i, a)| levels[i + 1..].iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| i32::from(b > a) - i32::from(b < a)).sum()
}

/// The trend of daily levels, the oldest first; `None` with fewer than four.
#[must_use]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pairs of days")]
pub fn trend(levels: &[f32]) -> Option<Trend> {
    let n = levels.len();
    if n < 4 {
        return None;
    }
    let mut slopes: Vec<f32> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (levels[j] - levels[i]) / (j - i) as f32)).collect();
    slopes.sort_by(f32::total_cmp);
    let pairs = slopes.len();
    let slope = if pairs % 2 == 1 { slopes[pairs / 2] } else { f32::midpoint(slopes[pairs / 2 - 1], slopes[pairs / 2]) };
    // Sen 1968: the ranks (pairs ∓ z·√Var S)/2, Var S = n(n − 1)(2n + 5)/18.
    let n_real = n as f32;
    let reach = 1.2816 * (n_real * (n_real - 1.0) * (2.0 * n_real + 5.0) / 18.0).sqrt();
    let low = f32::midpoint(pairs as f32, -reach).floor().max(0.0) as usize;
    let high = (f32::midpoint(pairs as f32, reach).ceil() as usize).min(pairs - 1);
    let median_of_three = |w: &[f32]| w[0].max(w[1]).min(w[0].min(w[1]).max(w[2]));
    let rising = levels.windows(4).filter(|w| w[3] > median_of_three(&w[..3])).count();
    Some(Trend { slope, from: slopes[low], to: slopes[high], rising, days: n - 3 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Orders of n values by their S.
    fn permutations(values: &mut Vec<f32>, at: usize, seen: &mut Vec<i32>) {
        if at == values.len() {
            seen.push(mann_kendall(values));
            return;
        }
        for i in at..values.len() {
            values.swap(at, i);
            permutations(values, at + 1, seen);
            values.swap(at, i);
        }
    }

    #[test]
    fn s_is_distributed_as_in_kendalls_table() {
        let mut seen = Vec::new();
        permutations(&mut vec![1.0, 2.0, 3.0, 4.0, 5.0], 0, &mut seen);
        // Kendall 1948, table 1, n = 5: P(S ≥ s).
        for (s, p) in [(0, 0.592), (2, 0.408), (4, 0.242), (6, 0.117), (8, 0.042), (10, 0.0083)] {
            let share = f64::from(u32::try_from(seen.iter().filter(|x| **x >= s).count()).unwrap()) / 120.0;
            assert!((share - p).abs() < 5e-4, "{s}: {share}");
        }
        let variance = seen.iter().map(|s| f64::from(s * s)).sum::<f64>() / 120.0;
        assert!((variance - 5.0 * 4.0 * 15.0 / 18.0).abs() < 1e-9);
    }

    #[test]
    fn the_slope_shrugs_off_an_outlier_and_its_interval_holds_it() {
        let mut levels: Vec<f32> = (0..21_u8).map(|d| 0.02 * f32::from(d) + if d % 3 == 0 { 0.004 } else { 0.0 }).collect();
        levels[7] += 3.0;
        let t = trend(&levels).unwrap();
        assert!((t.slope - 0.02).abs() < 0.001 && t.from <= 0.02 && t.to >= 0.02, "{t:?}");
        assert_eq!(t.days, 18);
        assert!(t.rising >= 16, "{t:?}");
    }
}
