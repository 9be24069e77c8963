//! Before against after a marker: a deploy names the one moment at which a step is likely, so less evidence is enough.
//!
//! # Source
//! Welch 1947 and the wander of [`super::fast`], at three times that were fixed beforehand: 1, 6 and 24 hours after.

use serde::{Deserialize, Serialize};

use super::fast::{self, Fast, Mean};
use super::slow;

/// When a marker is judged: whole quarters after its own (so at most 1, 6 and 24 hours after it), and the window of [`super::fast`] whose past tells how large such changes usually are.
const AFTER: [(i64, usize); 3] = [(3, 0), (23, 3), (95, 5)];
/// The least change that is worth a word.
const CHANGE_MIN: f32 = 0.05;
const REQUESTS_MIN: f32 = 8.0;
/// Markers that are watched at a time; more push out the oldest.
const MARKERS: usize = 2;

/// A marker that is being watched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Watched {
    quarter: i64,
    before: (f32, f32),
    after: (f32, f32),
}

/// The markers that are being watched.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Markers(Vec<Watched>);

/// What a marker changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The quarter in which the marker was set.
    pub marker: i64,
    /// Hours after it.
    pub hours: i64,
    /// How far beyond chance.
    pub score: f32,
    /// The change of the log level.
    pub change: f32,
    /// The least change that would have been seen with a chance of one half.
    pub visible: f32,
}

impl Markers {
    /// Sets a marker into the running quarter, which is not over yet.
    pub fn set(&mut self, quarter: i64, fast: &Fast) {
        if self.0.iter().any(|m| m.quarter == quarter) {
            return;
        }
        if self.0.len() == MARKERS {
            self.0.remove(0);
        }
        let before = fast.mean(96);
        self.0.push(Watched { quarter, before: (before.n, before.level), after: (0.0, 0.0) });
    }

    /// Takes in a quarter that is over; its place in time decides which marker it comes after.
    pub fn judge(
        &mut self,
        quarter: i64,
        cell: Mean,
        fast: &Fast,
        variance: f32,
        threshold: f32,
        days_before: impl Fn(usize) -> (Vec<f32>, f32),
    ) -> Option<Verdict> {
        let mut found: Option<Verdict> = None;
        for m in self.0.iter_mut().filter(|m| quarter > m.quarter) {
            m.after.0 += cell.n;
            m.after.1 += cell.n * cell.level;
            let Some((quarters, window)) = AFTER.iter().find(|a| a.0 == quarter - m.quarter) else { continue };
            if m.after.0 < REQUESTS_MIN || m.before.0 < REQUESTS_MIN {
                continue;
            }
            let hours = (quarters + 1) / 4;
            #[expect(clippy::cast_precision_loss, reason = "hours of a day")]
            let noise = fast::wander(hours as f32, 24.0) + variance * (1.0 / m.after.0 + 1.0 / m.before.0);
            let mut change = m.after.1 / m.after.0 - m.before.1;
            let mut score = fast.score(*window, change / noise.sqrt());
            if hours == 24 {
                // A whole day is one more daily level.
                let (mut levels, requests) = days_before(95);
                levels.push(m.after.1 / m.after.0);
                if let Some((t, size)) = slow::known_step(&levels, variance / requests.max(1.0)).filter(|(t, _)| *t > score) {
                    (score, change) = (t, size);
                }
            }
            if score > threshold && change > CHANGE_MIN && found.is_none_or(|f| score > f.score) {
                let visible = threshold * change / score;
                found = Some(Verdict { marker: m.quarter, hours, score, change, visible });
            }
        }
        let last = AFTER[AFTER.len() - 1].0;
        self.0.retain(|m| quarter - m.quarter < last);
        found
    }
}
