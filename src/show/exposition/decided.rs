//! What follows from decisions alone, written once and shared by all scrapers: how objectives stand, open incidents, markers. It is the same from one evaluation to the next, and
//! the dearest part of `/metrics` for what it says: of each objective the odds of each window are computed.
//!
//! The rest is written for each scrape. Counters and histograms move with every batch: kept for the ten seconds of an evaluation, they would be as old as that under the time of
//! the scrape, and a `rate` over a minute of scrapes would be off by a sixth. They are cheap (100,000 endpoints take an eighth of a second), and Slowburn's own gauges change by
//! themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use axum::body::Bytes;

use super::format::Format;
use super::{Family, put_family};
use crate::log::record::Position;

/// A part that is longer is written for each scrape: some thousand objectives.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// The part in each format, as of a frame.
#[derive(Debug, Default)]
pub(in crate::show) struct Decided {
    parts: Mutex<[Option<(Position, Bytes)>; 3]>,
    written: AtomicU64,
    shared: AtomicU64,
}

impl Decided {
    /// The part, if it was written since anything was decided.
    pub(in crate::show) fn get(&self, format: Format, decided: Position) -> Option<Bytes> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = parts[format as usize].as_ref().filter(|(at, _)| *at == decided).map(|(_, part)| part.clone());
        if kept.is_some() {
            self.shared.fetch_add(1, Ordering::Relaxed);
        }
        kept
    }

    /// Writes the part, and keeps it until something else is decided.
    pub(in crate::show) fn write(&self, format: Format, decided: Position, families: &[Family]) -> Bytes {
        let mut part = Vec::new();
        for family in families {
            put_family(&mut part, format, family);
        }
        self.written.fetch_add(1, Ordering::Relaxed);
        let part = Bytes::from(part);
        let kept = (part.len() <= KEPT_BYTES_MAX).then(|| (decided, part.clone()));
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)[format as usize] = kept;
        part
    }

    /// How often it was written, and how often it was shared.
    pub(in crate::show) fn counts(&self) -> [u64; 2] {
        [&self.written, &self.shared].map(|n| n.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_shared_until_something_is_decided_and_not_kept_when_it_is_long() {
        let decided = Decided::default();
        let family = |samples: usize| {
            let mut family = Family::gauge("a", "A.");
            (0..samples).for_each(|n| family.add(vec![("n", format!("{n:0200}"))], 1.0));
            [family]
        };
        for format in Format::ALL {
            assert_eq!(decided.get(format, Position(1)), None);
            let part = decided.write(format, Position(1), &family(1));
            assert_eq!((decided.get(format, Position(1)), decided.get(format, Position(2))), (Some(part), None));
        }
        let texts = [Format::Text, Format::OpenMetrics].map(|format| decided.get(format, Position(1)).unwrap());
        assert!(texts[0] == texts[1] && texts[0] != decided.get(Format::Protobuf, Position(1)).unwrap());
        assert_eq!(decided.counts(), [3, 6]);
        assert!(decided.write(Format::Text, Position(2), &family(50_000)).len() > KEPT_BYTES_MAX);
        assert_eq!((decided.get(Format::Text, Position(2)), decided.get(Format::Text, Position(1))), (None, None));
    }
}
