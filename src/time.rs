//! Time as the rest of the program speaks of it: instants, 10 s slots, the tiers of history, half-open ranges.
//!
//! Everything is UTC and aligned to the Unix epoch. Nothing here reads a clock: only `run/clock.rs` does.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An instant in Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// The width of a slot, in milliseconds.
pub const SLOT_MS: i64 = 10_000;

/// The latest instant that is taken as one at all (the year 5138); later numbers are another unit by mistake.
pub const TIMESTAMP_MS_MAX: i64 = 100_000_000_000_000;

impl Timestamp {
    /// This instant moved by `ms` milliseconds (either way).
    #[must_use]
    pub fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Unix milliseconds from a decimal number, or an instant from RFC 3339 text.
    ///
    /// # Errors
    /// When the text is neither, or lies before 1970 or after the year 5138.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        let ms = match text.parse::<i64>() {
            Ok(ms) => ms,
            Err(_) => text.parse::<jiff::Timestamp>().map_err(|_| TimeError::Instant(text.to_owned()))?.as_millisecond(),
        };
        if (0..=TIMESTAMP_MS_MAX).contains(&ms) { Ok(Self(ms)) } else { Err(TimeError::Instant(text.to_owned())) }
    }
}

impl fmt::Display for Timestamp {
    /// `2026-01-05 00:00:10 UTC`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{}", at.strftime("%Y-%m-%d %H:%M:%S UTC")),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

/// A slot of [`SLOT_MS`] by its number since the epoch: `Slot(n)` covers `[n, n + 1) * SLOT_MS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot that holds the instant; instants before 1970 count as 1970.
    #[must_use]
    pub fn containing(at: Timestamp) -> Self {
        Self(u32::try_from((at.0 / SLOT_MS).max(0)).unwrap_or(u32::MAX - 1))
    }

    /// The last slot whose end is not after the instant; `None` before the first slot has ended.
    #[must_use]
    pub fn ended_by(at: Timestamp) -> Option<Self> {
        Self::containing(at).0.checked_sub(1).map(Self)
    }

    /// Its first instant.
    #[must_use]
    pub fn start(self) -> Timestamp {
        Timestamp(i64::from(self.0) * SLOT_MS)
    }

    /// The first instant after it.
    #[must_use]
    pub fn end(self) -> Timestamp {
        self.start().plus_ms(SLOT_MS)
    }

    /// The slot after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The slot `slots` before it, or the first there is.
    #[must_use]
    pub fn back(self, slots: u32) -> Self {
        Self(self.0.saturating_sub(slots))
    }
}

/// A resolution in which history is kept; the numbers stand in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// One row a minute.
    Minute = 0,
    /// One row an hour.
    Hour = 1,
    /// One row a day (UTC).
    Day = 2,
    /// One row a quarter of an hour, as it stood a minute after its end: what the detectors run over. No answer is read from it.
    Quarter = 3,
}

impl Tier {
    /// All tiers, finest first.
    pub const ALL: [Self; 4] = [Self::Minute, Self::Quarter, Self::Hour, Self::Day];

    /// The width of one period, in milliseconds.
    #[must_use]
    pub fn width_ms(self) -> i64 {
        match self {
            Self::Minute => 60_000,
            Self::Quarter => 900_000,
            Self::Hour => 3_600_000,
            Self::Day => 86_400_000,
        }
    }

    /// The start of the period that holds the instant.
    #[must_use]
    pub fn period_of(self, at: Timestamp) -> Timestamp {
        Timestamp(at.0.div_euclid(self.width_ms()) * self.width_ms())
    }

    /// Its name in paths and texts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Quarter => "quarter",
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }
}

/// `[from, to)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// The first instant inside.
    pub from: Timestamp,
    /// The first instant after it.
    pub to: Timestamp,
}

/// Why a text is no time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TimeError {
    /// Not an instant.
    #[error("`{0}` is not a time: expected Unix milliseconds or RFC 3339, such as 2026-01-05T00:00:00Z")]
    Instant(String),
    /// Not a length of time.
    #[error("`{0}` is not a duration: expected a number and one of us, ms, s, m, h, d, such as 800ms")]
    Duration(String),
}

/// Microseconds in a duration such as `800ms`, `1.5s`, `30d` (units: us, ms, s, m, h, d; at most 100 years).
///
/// # Errors
/// When the text is not such a duration or has a fraction of a microsecond.
pub fn parse_duration_us(text: &str) -> Result<u64, TimeError> {
    let error = || TimeError::Duration(text.to_owned());
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
    let unit_us: u64 = match &text[split..] {
        "us" | "µs" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(error()),
    };
    let (whole, fraction) = text[..split].split_once('.').unwrap_or((&text[..split], ""));
    if whole.is_empty() || whole.len() > 12 || fraction.len() > 6 || fraction.contains('.') {
        return Err(error());
    }
    let scale = 10_u64.pow(u32::try_from(fraction.len()).map_err(|_| error())?);
    let parts: u64 = format!("{whole}{fraction}").parse().map_err(|_| error())?;
    let scaled = parts.checked_mul(unit_us).ok_or_else(error)?;
    if !scaled.is_multiple_of(scale) || scaled / scale > 36_525 * 86_400_000_000 {
        return Err(error());
    }
    Ok(scaled / scale)
}

/// A duration for a person: the largest unit that divides it, such as `800ms`, `90s`, `30d`.
#[must_use]
pub fn format_duration_us(us: u64) -> String {
    const UNITS: [(u64, &str); 5] = [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms")];
    for (unit, name) in UNITS {
        if us >= unit && us.is_multiple_of(unit) {
            return format!("{}{name}", us / unit);
        }
    }
    format!("{us}us")
}

/// A length of time for a person, rounded to two units: `2 h 5 min`, `3 d 4 h`, `40 s`.
#[must_use]
pub fn humanize_ms(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let two = |a: i64, a_name: &str, b: i64, b_name: &str| {
        if b == 0 { format!("{a} {a_name}") } else { format!("{a} {a_name} {b} {b_name}") }
    };
    if d > 0 {
        two(d, "d", h, "h")
    } else if h > 0 {
        two(h, "h", m, "min")
    } else if m > 0 {
        two(m, "min", s, "s")
    } else {
        format!("{s} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_exactly_and_written_back() {
        for (text, us) in [("800ms", 800_000), ("1.5s", 1_500_000), ("30d", 2_592_000_000_000), ("137us", 137), ("0.25ms", 250), ("5m", 300_000_000)] {
            assert_eq!(parse_duration_us(text), Ok(us), "{text}");
        }
        assert_eq!(format_duration_us(800_000), "800ms");
        assert_eq!(format_duration_us(90_000_000), "90s");
        assert_eq!(format_duration_us(3_600_000_000), "1h");
        for text in ["", "5", "ms", "-1s", "1.s.", "0.0001ms", "1w", "99999999999999d", "٣s"] {
            assert!(parse_duration_us(text).is_err(), "{text}");
        }
    }

    #[test]
    fn instants_are_milliseconds_or_rfc_3339() {
        assert_eq!(Timestamp::parse("1766534400123"), Ok(Timestamp(1_766_534_400_123)));
        assert_eq!(Timestamp::parse("2025-12-24T00:00:00Z"), Ok(Timestamp(1_766_534_400_000)));
        assert_eq!(Timestamp::parse("2025-12-24T01:00:00+01:00"), Ok(Timestamp(1_766_534_400_000)));
        for text in ["", "yesterday", "-5", "99999999999999999"] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn slots_and_periods_are_aligned_and_half_open() {
        let slot = Slot::containing(Timestamp(19_999));
        assert_eq!((slot, slot.start(), slot.end()), (Slot(1), Timestamp(10_000), Timestamp(20_000)));
        assert_eq!(Slot::containing(Timestamp(20_000)), Slot(2));
        assert_eq!(Slot::ended_by(Timestamp(20_000)), Some(Slot(1)));
        assert_eq!(Slot::ended_by(Timestamp(9_999)), None);
        assert_eq!(Tier::Hour.period_of(Timestamp(3_600_000 * 5 + 7)), Timestamp(3_600_000 * 5));
    }
}
