//! How much a level has stepped up at a known moment.
//!
//! # Source
//! Intervention analysis (Box & Tiao, JASA 70, 1975) by generalised least squares (Aitken, Proc. R. Soc. Edinburgh 55, 1935) over means of windows of any length:
//! their covariances are those of the wander of [`super::fast`], and of the number of requests. What the level was in the last hours before tells more of what it
//! would have been than any mean of days. The scale is the endpoint's own, shrunk to the fleet's (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004); what is far beyond the
//! rest, as an incident of last week, counts for no more than three deviations (Huber, Robust Statistics, 1981, 7.7), whose scale is the median's.

use super::fast::{self, Mean};

/// How many windows of an endpoint's own the fleet's noise outweighs.
const FLEET_WINDOWS: f32 = 10.0;
/// Squares of residuals count up to so many times their scale.
const SQUARE_MAX: f32 = 9.0;
/// The median of the square of a standard normal.
const MEDIAN_SQUARE: f32 = 0.454_94;
/// Windows at most.
pub const WINDOWS_MAX: usize = 40;

/// The mean over some hours.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Window {
    /// Its begin and its end in hours since the moment, on one side of it.
    pub hours: (f32, f32),
    /// What it had: at least one request.
    pub mean: Mean,
}

/// Student's t of a step at the moment, and its size in log units. The windows are in the order of time and do not overlap, the newest [`WINDOWS_MAX`] count;
/// `variance` is that of one request. `None` with fewer than three windows, or with none on one side.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "windows")]
pub fn step(windows: &[Window], variance: f32) -> Option<(f32, f32)> {
    let windows = &windows[windows.len().saturating_sub(WINDOWS_MAX)..];
    let after = windows.iter().filter(|w| w.hours.0 >= 0.0).count();
    if windows.len() < 3 || after == 0 || after == windows.len() {
        return None;
    }
    // The covariances' factor by Cholesky; levels, the constant and the step divided by it, row by row.
    let wander = [fast::SLOW_WANDER, fast::FAST_WANDER].map(|process| Among::new(windows, process));
    let mut factor = [[0.0_f32; WINDOWS_MAX]; WINDOWS_MAX];
    let mut white = [[0.0_f32; 3]; WINDOWS_MAX];
    for (i, window) in windows.iter().enumerate() {
        let (earlier, rest) = factor.split_at_mut(i);
        let row = &mut rest[0];
        let mut left = variance / window.mean.n + wander.iter().map(|w| w.add_covariances(i, row)).sum::<f32>();
        let mut values = [window.mean.level - windows[0].mean.level, 1.0, if window.hours.0 >= 0.0 { 1.0 } else { 0.0 }];
        for (j, of_earlier) in earlier.iter().enumerate() {
            let common: f32 = row[..j].iter().zip(of_earlier).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - common) / of_earlier[j];
            left -= row[j] * row[j];
            for (value, earlier) in values.iter_mut().zip(white[j]) {
                *value -= row[j] * earlier;
            }
        }
        row[i] = left.max(f32::MIN_POSITIVE).sqrt();
        white[i] = values.map(|value| value / row[i]);
    }
    let white = &white[..windows.len()];
    let sum = |a: usize, b: usize| white.iter().map(|row| row[a] * row[b]).sum::<f32>();
    let (one_one, one_step, with_one) = (sum(1, 1), sum(1, 2), sum(0, 1));
    let information = sum(2, 2) - one_step * one_step / one_one;
    let size = (sum(0, 2) - with_one * one_step / one_one) / information;
    let level = (with_one - size * one_step) / one_one;
    let mut squares = [0.0_f32; WINDOWS_MAX];
    for (square, row) in squares.iter_mut().zip(white) {
        let residual = row[0] - level * row[1] - size * row[2];
        *square = residual * residual;
    }
    let squares = &mut squares[..windows.len()];
    squares.sort_unstable_by(f32::total_cmp);
    let most = SQUARE_MAX * (squares[windows.len() / 2] / MEDIAN_SQUARE).max(1.0);
    let rest: f32 = squares.iter().map(|square| square.min(most)).sum();
    let scale = (rest + FLEET_WINDOWS) / (windows.len() as f32 - 2.0 + FLEET_WINDOWS);
    Some((size * (information / scale).sqrt(), size))
}

/// What an Ornstein-Uhlenbeck process leaves in the means of some windows.
struct Among {
    variance: f32,
    windows: [OfWindow; WINDOWS_MAX],
}

#[derive(Clone, Copy, Default)]
struct OfWindow {
    /// Variance of the mean, and how it goes with what is outside, in units of the process' own variance.
    own: f32,
    outside: f32,
    /// What is left of the process after the gap before it, and after the window itself.
    after_gap: f32,
    after_it: f32,
}

impl Among {
    fn new(windows: &[Window], (sd, time_constant): (f32, f32)) -> Self {
        let mut of = [OfWindow::default(); WINDOWS_MAX];
        let mut before = windows[0].hours.0;
        for (of, window) in of.iter_mut().zip(windows) {
            let (from, to) = window.hours;
            let after_it = libm::expf((from - to) / time_constant);
            let outside = (1.0 - after_it) * time_constant / (to - from);
            *of = OfWindow { own: fast::mean_variance(to - from, time_constant), outside, after_gap: libm::expf((before - from) / time_constant), after_it };
            before = to;
        }
        Self { variance: sd * sd, windows: of }
    }

    /// Adds the covariances of a window's mean with those of earlier ones; its own variance.
    fn add_covariances(&self, window: usize, row: &mut [f32]) -> f32 {
        let OfWindow { own, outside, after_gap, .. } = self.windows[window];
        let mut left = self.variance * outside * after_gap;
        for (covariance, earlier) in row[..window].iter_mut().zip(&self.windows).rev() {
            // What is less is nothing beside the number of requests, and slow to multiply.
            if left < 1e-12 {
                break;
            }
            *covariance += left * earlier.outside;
            left *= earlier.after_it * earlier.after_gap;
        }
        self.variance * own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(of: &[((f32, f32), f32, f32)]) -> Vec<Window> {
        of.iter().map(|(hours, n, level)| Window { hours: *hours, mean: Mean { n: *n, level: *level } }).collect()
    }

    /// Generalised least squares with the inverse of the whole matrix, its covariances summed over a fine grid, computed apart with numpy: a step of 0.23026,
    /// t = 3.57627 with the scale shrunk by ten windows.
    #[test]
    fn it_is_generalised_least_squares_under_wander_and_sampling() {
        let of = [
            ((-60.0, -36.0), 240.0, 0.02),
            ((-36.0, -12.0), 200.0, -0.03),
            ((-12.0, -6.0), 50.0, 0.05),
            ((-6.0, -0.25), 40.0, 0.01),
            ((0.0, 5.0), 45.0, 0.21),
            ((8.0, 14.0), 60.0, 0.26),
        ];
        let (t, size) = step(&windows(&of), 0.25).unwrap();
        assert!((size - 0.230_265).abs() < 2e-4 && (t - 3.576_27).abs() < 3e-3, "{t} {size}");
        // What all have in common is no step.
        let moved = of.map(|(hours, n, level)| (hours, n, level + 1.5));
        assert!((step(&windows(&moved), 0.25).unwrap().0 - t).abs() < 1e-3);
    }

    /// An incident of last week does not hide what is plain, and a level that is always unsteady does.
    #[test]
    fn one_wild_window_long_before_hides_little_and_an_unsteady_past_hides_much() {
        let past = |wild: f32, unsteady: f32| {
            let noise = |i: u8| unsteady * f32::from(i * 5 % 11) / 100.0;
            let before = (0..28_u8).map(|i| (f32::from(i) * 6.0 - 168.0, noise(i) + if i == 8 { wild } else { 0.0 }));
            let after = (0..4_u8).map(|i| (f32::from(i) * 6.0, noise(i) + 0.3));
            let of: Vec<_> = before.chain(after).map(|(from, level)| ((from, from + 6.0), 700.0, level)).collect();
            step(&windows(&of), 0.25).unwrap().0
        };
        let (calm, wild, unsteady) = (past(0.0, 1.0), past(1.5, 1.0), past(0.0, 6.0));
        assert!(wild > 0.5 * calm && unsteady < 0.3 * calm, "{calm} {wild} {unsteady}");
    }

    #[test]
    fn without_both_sides_there_is_no_verdict() {
        let before = ((-24.0, 0.0), 100.0, 0.0);
        assert_eq!(step(&[], 0.25), None);
        assert_eq!(step(&windows(&[((-72.0, -48.0), 100.0, 0.0), ((-48.0, -24.0), 100.0, 0.1), before]), 0.25), None);
        assert_eq!(step(&windows(&[before, ((0.0, 24.0), 100.0, 0.1)]), 0.25), None);
    }
}
