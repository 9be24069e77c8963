//! One budget of false alarms, and the thresholds that follow from it.

use serde::{Deserialize, Serialize};

/// Scores from which an endpoint is reported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Creep and small steps by the mean level, and by p95.
    pub slow: f32,
    /// Steps within hours.
    pub fast: f32,
    /// The tail.
    pub tail: f32,
    /// Before against after a marker.
    pub marker: f32,
    /// Traffic against nothing changed, and against an ordinary lull.
    pub traffic: (f32, f32),
    /// Work out against work in.
    pub flow: f32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { slow: 4.8, fast: 5.5, tail: 5.0, marker: 4.0, traffic: (4.5, 2.0), flow: 6.0 }
    }
}
