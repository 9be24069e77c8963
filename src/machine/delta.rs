//! One frame's worth of change, and its bytes in the log.

use serde::{Deserialize, Serialize};

use crate::history::catalogue::Entry;
use crate::history::counts::Counts;
use crate::ingest::batch_keys::{BatchKeys, Committed, Senders};
use crate::ingest::{Detail, Fates, Report};
use crate::judge::Record;
use crate::log::record::{Frame, Kind, Position, Section};
use crate::time::{Slot, Timestamp};

/// One frame's worth of change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// New endpoints; they get the next numbers in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Entry>,
    /// Counts by slot and endpoint.
    #[serde(default, skip_serializing_if = "Counts::is_empty", rename = "cells")]
    pub counts: Counts,
    /// The batches whose counts these are, as far as they have a name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<Committed>,
    /// What single timings say beside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Detail>,
    /// What still runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_flight: Vec<Report>,
    /// Timings by fate.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fates: Fates,
    /// Decisions, and what they depend on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<Record>,
    /// In the archive only: what stood after this frame.
    #[serde(skip)]
    pub carried: Option<Box<Carried>>,
}

/// What stands at the end of an archived segment and cannot be told from what the archive keeps of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    pub(super) judged_to: Option<Slot>,
    pub(super) fates: Fates,
    pub(super) senders: Senders,
    pub(super) in_flight_reports: u64,
    pub(super) details: u64,
}

impl Carried {
    /// Goes on by a frame.
    #[must_use]
    pub fn after(mut self, delta: &Delta) -> Self {
        if let Some(carried) = &delta.carried {
            return (**carried).clone();
        }
        let mut keys = BatchKeys::restore(self.senders, Vec::new());
        for committed in &delta.batches {
            keys.apply(&Committed { key: None, ..committed.clone() });
        }
        for (total, more) in self.fates.iter_mut().zip(&delta.fates) {
            *total += more;
        }
        let closed = delta.records.iter().filter_map(|r| if let Record::SlotClosed(closed) = r { Some(closed.end) } else { None });
        Self {
            judged_to: self.judged_to.into_iter().chain(closed).max(),
            fates: self.fates,
            senders: keys.into_senders(),
            in_flight_reports: self.in_flight_reports + delta.in_flight.iter().map(|r| r.running.len() as u64).sum::<u64>(),
            details: self.details + delta.details_beyond_traces(),
        }
    }

    /// As a section.
    ///
    /// # Panics
    /// Never: its types are plain data.
    #[must_use]
    pub fn to_section(&self) -> Section {
        Section { kind: Kind::CARRIED, bytes: postcard::to_stdvec(self).expect("plain data") }
    }
}

fn is_zero(fates: &Fates) -> bool {
    *fates == Fates::default()
}

/// A frame's section is not what this version writes.
#[derive(Debug, thiserror::Error)]
#[error("frame {} of the log: its {section} cannot be read by this version", position.0)]
pub struct FrameError {
    position: Position,
    section: &'static str,
}

impl From<Record> for Delta {
    fn from(record: Record) -> Self {
        Self { records: vec![record], ..Self::default() }
    }
}

impl Delta {
    /// Its bytes.
    ///
    /// # Panics
    /// Never: its types have text keys and finite numbers.
    #[must_use]
    pub fn to_sections(&self) -> Vec<Section> {
        fn binary<T: Serialize>(value: &T) -> Vec<u8> {
            postcard::to_stdvec(value).expect("plain data")
        }
        let mut sections = Vec::new();
        let mut push = |there: bool, kind: Kind, bytes: &dyn Fn() -> Vec<u8>| {
            if there {
                sections.push(Section { kind, bytes: bytes() });
            }
        };
        push(!self.endpoints.is_empty(), Kind::ENDPOINTS, &|| binary(&self.endpoints));
        push(!self.counts.is_empty(), Kind::COUNTS, &|| self.counts.bytes().to_vec());
        push(!self.batches.is_empty(), Kind::BATCHES, &|| binary(&self.batches));
        push(!self.details.is_empty(), Kind::DETAILS, &|| binary(&self.details));
        push(!self.in_flight.is_empty(), Kind::IN_FLIGHT, &|| binary(&self.in_flight));
        push(!is_zero(&self.fates), Kind::OUTCOMES, &|| binary(&self.fates));
        push(!self.records.is_empty(), Kind::RECORDS, &|| serde_json::to_vec(&self.records).expect("text keys and finite numbers"));
        sections
    }

    /// Reads a frame; sections of unknown kinds are passed over.
    ///
    /// # Errors
    /// [`FrameError`] when a section of a known kind cannot be read.
    pub fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
        fn binary<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
            postcard::from_bytes(bytes).ok()
        }
        let mut delta = Self::default();
        for Section { kind, bytes } in &frame.sections {
            let read = match *kind {
                Kind::ENDPOINTS => binary(bytes).map(|v| delta.endpoints = v).ok_or("endpoints"),
                Kind::COUNTS => Counts::decode(bytes.clone()).map(|v| delta.counts = v).map_err(|_| "counts"),
                Kind::BATCHES => binary(bytes).map(|v| delta.batches = v).ok_or("batches"),
                Kind::DETAILS => binary(bytes).map(|v| delta.details = v).ok_or("details"),
                Kind::IN_FLIGHT => binary(bytes).map(|v| delta.in_flight = v).ok_or("requests in flight"),
                Kind::OUTCOMES => binary(bytes).map(|v| delta.fates = v).ok_or("outcomes"),
                Kind::RECORDS => serde_json::from_slice(bytes).map(|v| delta.records = v).map_err(|_| "records"),
                Kind::CARRIED => binary(bytes).map(|v| delta.carried = Some(Box::new(v))).ok_or("carried sums"),
                _ => Ok(()),
            };
            read.map_err(|section| FrameError { position: frame.position, section })?;
        }
        Ok(delta)
    }

    /// How many of its details say more than a trace: which of the others are in the log depends on the order in which they come.
    pub(super) fn details_beyond_traces(&self) -> u64 {
        self.details.iter().filter(|d| !d.is_trace_alone()).count() as u64
    }

    /// Takes the traces out of it, and what they were all of; how many there were.
    pub fn shed_traces(&mut self) -> u64 {
        let traces = self.details.iter_mut().filter_map(|d| d.trace_id.take()).count() as u64;
        self.details.retain(|d| !d.is_trace_alone());
        traces
    }

    /// A time at or before which it was written, if it tells one.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        let of = |record: &Record| match record {
            Record::SlotClosed(closed) => Some(closed.end.end()),
            Record::Started { at }
            | Record::Configured { at, .. }
            | Record::Delivered { at, .. }
            | Record::Unsilenced { at, .. }
            | Record::Reports { at, .. } => Some(*at),
            Record::Acked { ack, .. } => Some(ack.at),
            Record::Silenced(_) | Record::Marked(_) | Record::Found { .. } | Record::Learnt(_) => None,
        };
        self.records.iter().filter_map(of).chain(self.batches.iter().map(|b| b.answer.at)).min()
    }
}
