//! A local time of day in a time zone, and the instants at which it is that time.
//!
//! # Source
//! The IANA time zone database as the program was built with it, so that every machine that replays says the same. On a day on which the time does not
//! exist it is as much later as the clocks skip, on a day on which it comes twice it is the first (RFC 5545, 3.3.5).

use jiff::civil::DateTime;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

const DAY_S: i64 = 86_400;

/// A time of day, such as 05:00 in `America/Chicago`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(String, String)", into = "(String, String)")]
pub struct Daily {
    hour: i8,
    minute: i8,
    zone: TimeZone,
}

/// Why a text is no time of day.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DailyError {
    /// Not a time.
    #[error("`{0}` is not a time of day: expected HH:MM from 00:00 to 23:59")]
    Time(String),
    /// Not a zone.
    #[error("`{0}` is not a time zone: expected a name of the IANA database, such as America/Chicago or UTC")]
    Zone(String),
}

impl Daily {
    /// Reads `HH:MM` and the name of a time zone.
    ///
    /// # Errors
    /// Which of them is none.
    pub fn parse(by: &str, timezone: &str) -> Result<Self, DailyError> {
        let error = || DailyError::Time(by.to_owned());
        let number = |text: &str, max: i8| {
            let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|n| digits && *n <= max).ok_or_else(error)
        };
        let (hour, minute) = by.split_once(':').ok_or_else(error)?;
        let (hour, minute) = (number(hour, 23)?, number(minute, 59)?);
        let zone = TimeZoneDatabase::bundled().get(timezone).map_err(|_| DailyError::Zone(timezone.to_owned()))?;
        Ok(Self { hour, minute, zone })
    }

    /// The name of its zone.
    #[must_use]
    pub fn zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// Its time of day.
    #[must_use]
    pub fn time(&self) -> String {
        format!("{:02}:{:02}", self.hour, self.minute)
    }

    /// The first instant after `at` at which it is that time.
    #[must_use]
    pub fn after(&self, at: Timestamp) -> Timestamp {
        self.around(at).into_iter().find(|d| *d > at).unwrap_or_else(|| at.plus_ms(DAY_S * 1000))
    }

    /// The last instant up to `at` at which it was that time.
    #[must_use]
    pub fn last(&self, at: Timestamp) -> Timestamp {
        self.around(at).into_iter().rfind(|d| *d <= at).unwrap_or_else(|| at.plus_ms(-DAY_S * 1000))
    }

    /// Minutes on the clock of the wall from `at` to a deadline, at least 0: a job that starts at 01:00 is as long before 05:00 on every day of the year.
    #[must_use]
    pub fn minutes_before(&self, deadline: Timestamp, at: Timestamp) -> u16 {
        let nominal = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60;
        let on_wall = self.wall_s(deadline);
        // On a day on which it does not exist the deadline is later than its name.
        let by_name = on_wall - (on_wall - nominal + DAY_S / 2).rem_euclid(DAY_S) + DAY_S / 2;
        u16::try_from((by_name - self.wall_s(at)).max(0) / 60).unwrap_or(u16::MAX)
    }

    fn wall_s(&self, at: Timestamp) -> i64 {
        let offset = jiff::Timestamp::from_millisecond(at.0).map_or(0, |t| self.zone.to_offset(t).seconds());
        at.0.div_euclid(1000) + i64::from(offset)
    }

    fn around(&self, at: Timestamp) -> Vec<Timestamp> {
        let today = jiff::Timestamp::from_millisecond(at.0).map_or(DateTime::MIN, |t| self.zone.to_datetime(t)).date();
        let first = today.yesterday().and_then(jiff::civil::Date::yesterday).unwrap_or(today);
        // A day may be missing in a zone that moved over the date line.
        let days = first.series(jiff::Span::new().days(1)).take(6);
        days.filter_map(|d| self.zone.to_timestamp(d.at(self.hour, self.minute, 0, 0)).ok()).map(|t| Timestamp(t.as_millisecond())).collect()
    }
}

impl TryFrom<(String, String)> for Daily {
    type Error = DailyError;

    fn try_from((by, zone): (String, String)) -> Result<Self, DailyError> {
        Self::parse(&by, &zone)
    }
}

impl From<Daily> for (String, String) {
    fn from(daily: Daily) -> Self {
        (daily.time(), daily.zone().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[test]
    fn the_deadlines_of_a_zone_follow_its_clocks() {
        let chicago = Daily::parse("05:00", "America/Chicago").unwrap();
        for (after, deadline) in [
            ("2026-01-05T00:00:00Z", "2026-01-05T11:00:00Z"),
            ("2026-01-05T11:00:00Z", "2026-01-06T11:00:00Z"),
            // The clocks go forward on 8 March and back on 1 November 2026.
            ("2026-03-07T11:00:00Z", "2026-03-08T10:00:00Z"),
            ("2026-11-01T00:00:00Z", "2026-11-01T11:00:00Z"),
        ] {
            assert_eq!(chicago.after(at(after)), at(deadline));
            assert_eq!(chicago.last(at(deadline)), at(deadline));
        }
        let skipped = Daily::parse("02:30", "America/Chicago").unwrap();
        assert_eq!(skipped.after(at("2026-03-08T00:00:00-06:00")), at("2026-03-08T03:30:00-05:00"));
        assert_eq!(skipped.after(at("2026-03-08T03:30:00-05:00")), at("2026-03-09T02:30:00-05:00"));
        let twice = Daily::parse("01:30", "America/Chicago").unwrap();
        assert_eq!(twice.after(at("2026-11-01T00:00:00-05:00")), at("2026-11-01T01:30:00-05:00"));
        assert_eq!(twice.after(at("2026-11-01T01:30:00-05:00")), at("2026-11-02T01:30:00-06:00"));
        // 30 December 2011 did not happen in Samoa.
        let samoa = Daily::parse("05:00", "Pacific/Apia").unwrap();
        assert_eq!(samoa.after(at("2011-12-29T06:00:00-10:00")), at("2011-12-31T05:00:00+14:00"));
    }

    #[test]
    fn minutes_before_are_those_of_the_wall() {
        let chicago = Daily::parse("05:00", "America/Chicago").unwrap();
        for day in ["2026-03-07T01:00:00-06:00", "2026-03-08T01:00:00-06:00", "2026-03-09T01:00:00-05:00", "2026-11-01T01:00:00-05:00"] {
            assert_eq!(chicago.minutes_before(chicago.after(at(day)), at(day)), 240, "{day}");
        }
        let skipped = Daily::parse("02:30", "America/Chicago").unwrap();
        let night = at("2026-03-08T01:00:00-06:00");
        assert_eq!(skipped.minutes_before(skipped.after(night), night), 90);
        assert_eq!(skipped.minutes_before(skipped.after(night), skipped.after(night)), 0);
    }

    #[test]
    fn what_is_no_time_or_zone_is_refused() {
        for by in ["5:00", "24:00", "05:60", "0500", "05:0a", "+5:00", ""] {
            assert_eq!(Daily::parse(by, "UTC"), Err(DailyError::Time(by.to_owned())));
        }
        assert_eq!(Daily::parse("05:00", "Mars/Olympus"), Err(DailyError::Zone("Mars/Olympus".to_owned())));
        let daily = Daily::parse("23:59", "Europe/Berlin").unwrap();
        let stored = postcard::to_allocvec(&daily).unwrap();
        assert_eq!(postcard::from_bytes::<Daily>(&stored).unwrap(), daily);
    }
}
