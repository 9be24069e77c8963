//! Taking timings in: [`json`] reads the bytes ([`ordinary`] the shape that most lines have) or [`binary`] does (in the form of [`protobuf`]), [`admission`] says what each timing
//! is and which are refused, [`known`] which endpoints have a number, [`batch_keys`] what was already taken. An ordinary timing is [`packed`] into 64 bits.
//! What comes out is a [`Batch`]; `run` commits it. How much may be under way: [`memory`] in all, [`waiting`] for each sender.

pub mod admission;
pub mod batch_keys;
pub mod binary;
pub mod commit;
pub mod http;
pub mod json;
pub mod known;
pub mod memory;
pub mod ordinary;
pub mod packed;
pub mod protobuf;
pub mod waiting;

use serde::{Deserialize, Serialize};

use packed::Packed;

use crate::counting::{Outcome, Span, Tally};
use crate::endpoint::{EndpointId, EndpointKey};
use crate::time::{Slot, Timestamp};

/// How a timing ended at the door. Each ends in exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Counted, in time.
    Accepted,
    /// Counted before, under the same key.
    Duplicate,
    /// Its slot was judged already: counted in history; or over 24 h old: refused.
    Late,
    /// More than 2 min ahead: refused.
    Early,
    /// Cannot be read: refused.
    Malformed,
    /// Its endpoint is beyond a limit: counted under the overflow endpoint.
    OverLimit,
    /// Not taken for lack of room.
    Shed,
}

impl Fate {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Accepted, Self::Duplicate, Self::Late, Self::Early, Self::Malformed, Self::OverLimit, Self::Shed];

    /// Its label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::Early => "early",
            Self::Malformed => "malformed",
            Self::OverLimit => "over_limit",
            Self::Shed => "shed",
        }
    }
}

/// Timings by [`Fate`], in its order.
pub type Fates = [u64; 7];

/// Which endpoint, as far as a handler can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// It has a number.
    Known(EndpointId),
    /// Its place in [`Batch::keys`].
    Key(u32),
}

/// Requests that ended alike, of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Of which endpoint.
    pub whose: Whose,
    /// When.
    pub slot: Slot,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub span: Span,
    /// How many.
    pub tally: Tally,
}

/// What a timing says beside its duration. Kept in the log for what judges by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail<E = EndpointId> {
    /// Of which endpoint.
    pub endpoint: E,
    /// When.
    pub ts: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took at most, in microseconds.
    pub duration_us: u64,
    /// The trace.
    pub trace_id: Option<String>,
    /// Who waited.
    pub actor: Option<String>,
    /// The unit of work.
    pub key: Option<String>,
    /// Whether the unit of work starts here (else it ends).
    pub starts: bool,
}

impl<E> Detail<E> {
    /// Whether it names a trace at most.
    #[must_use]
    pub fn is_trace_alone(&self) -> bool {
        self.actor.is_none() && self.key.is_none() && !self.starts
    }
}

/// Requests that still run, as a sender said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// The service.
    pub service: String,
    /// The environment.
    pub env: String,
    /// The method.
    pub method: String,
    /// The route.
    pub route: String,
    /// For how long, in milliseconds.
    pub age_ms: u64,
    /// How many.
    pub n: u64,
}

/// What a sender says is running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The sender; empty when it has no name.
    pub sender: String,
    /// When it came, to the slot.
    pub at: Timestamp,
    /// What.
    pub running: Vec<InFlight>,
}

/// A body that was read: what is taken of it and what is not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The endpoints in it that have no number yet, and whether the sender marked them critical.
    pub keys: Vec<(EndpointKey, bool)>,
    /// When it was read: its packed timings are at most a day before.
    pub read_in: Slot,
    /// The ordinary timings.
    pub packed: Vec<Packed>,
    /// What else is counted.
    pub items: Vec<Item>,
    /// What is kept beside.
    pub details: Vec<Detail<Whose>>,
    /// What still runs.
    pub in_flight: Vec<InFlight>,
    /// Who says so; empty when it has no name.
    pub sender: String,
    /// Lines taken.
    pub accepted: u64,
    /// Lines refused.
    pub rejected: u64,
    /// The first refusals: place and reason.
    pub errors: Vec<(usize, String)>,
    /// Refused timings by fate.
    pub refused: Fates,
}

impl Batch {
    /// Whether there is nothing in it: a sender says that it is there.
    #[must_use]
    pub fn is_heartbeat(&self) -> bool {
        self.timings() == 0 && self.rejected == 0 && self.in_flight.is_empty()
    }

    /// All timings in it, taken or refused.
    #[must_use]
    pub fn timings(&self) -> u64 {
        self.items.iter().map(|i| i.tally.observed).chain(self.refused).chain([self.packed.len() as u64]).sum()
    }
}
