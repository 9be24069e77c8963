//! Timings as one protobuf message (`clients/proto/timings.proto`): a dictionary of endpoints, and columns of numbers.
//!
//! Each endpoint is looked up once a batch, so that a timing costs four numbers, a range check and a push. Columns are never unpacked into memory: what a body takes is
//! a small multiple of its bytes, and [`ENDPOINTS_MAX`] and [`TIMINGS_MAX`] bound what few bytes can ask for.

use super::InFlight;
use super::admission::{Admission, Beside, COUNT_MAX, Named, Naming, Numeric};
use super::protobuf::{Broken, Column, Fields, Value, signed, take_small_varint, take_varint};
use crate::time::Timestamp;

/// Endpoints of a batch, and groups of running requests.
pub const ENDPOINTS_MAX: usize = 100_000;

/// Timings of a batch.
pub const TIMINGS_MAX: usize = 1 << 20;

/// Why a body is refused as a whole.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not the message.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// A text is not UTF-8.
    #[error("field {0} of an entry is not UTF-8")]
    Text(u32),
    /// A column has another length than the first.
    #[error("`{column}` has {len} entries, expected {expected}, as `endpoint` has")]
    Length {
        /// Its name.
        column: &'static str,
        /// What it has.
        len: usize,
        /// What it should have.
        expected: usize,
    },
    /// An entry of the column `endpoint` leads nowhere.
    #[error("timing {at} is of endpoint {place}, but `endpoints` has {len}")]
    NoEndpoint {
        /// Which timing.
        at: usize,
        /// What it names.
        place: u64,
        /// How many there are.
        len: usize,
    },
    /// A detail leads nowhere, or stands before that of an earlier timing.
    #[error("a detail is of timing {0}: expected one of the {1} timings, at most one detail each, in their order")]
    Detail(u64, usize),
    /// More than a batch may have.
    #[error("it has over {0} {1}: send smaller batches")]
    TooMany(usize, &'static str),
}

/// The body, in pieces that are still bytes.
#[derive(Debug, Default)]
struct Parts<'a> {
    endpoints: Vec<&'a [u8]>,
    base_ts_ms: i64,
    columns: [Column<'a>; COLUMNS.len()],
    details: Vec<&'a [u8]>,
    in_flight: Vec<&'a [u8]>,
}

/// The columns, from field 3 on.
const COLUMNS: [&str; 6] = ["endpoint", "ts_delta_ms", "duration_us", "outcome", "weight", "count"];

/// Those that are always there.
const REQUIRED: [usize; 2] = [0, 2];

impl<'a> Parts<'a> {
    fn of(body: &'a [u8]) -> Result<Self, Refused> {
        let mut parts = Self::default();
        for field in Fields(body) {
            let (number, value) = field?;
            match (number, value) {
                (1, Value::Bytes(message)) => push(&mut parts.endpoints, message, ENDPOINTS_MAX, "endpoints")?,
                (2, Value::Varint(ms)) => parts.base_ts_ms = ms.cast_signed(),
                (3..=8, value) => parts.columns[number as usize - 3].add(number, value)?,
                (9, Value::Bytes(message)) => push(&mut parts.details, message, TIMINGS_MAX, "details")?,
                (10, Value::Bytes(message)) => push(&mut parts.in_flight, message, ENDPOINTS_MAX, "groups in flight")?,
                (1..=10, _) => return Err(Broken::Type(number).into()),
                _ => {}
            }
        }
        Ok(parts)
    }

    /// How many timings there are, when all columns agree on it.
    fn timings(&self) -> Result<usize, Refused> {
        let expected = self.columns[0].len();
        if expected > TIMINGS_MAX {
            return Err(Refused::TooMany(TIMINGS_MAX, "timings"));
        }
        for (at, column) in self.columns.iter().enumerate() {
            let len = column.len();
            if len != expected && (len > 0 || REQUIRED.contains(&at)) {
                return Err(Refused::Length { column: COLUMNS[at], len, expected });
            }
        }
        Ok(expected)
    }
}

fn push<'a>(into: &mut Vec<&'a [u8]>, message: &'a [u8], most: usize, what: &'static str) -> Result<(), Refused> {
    if into.len() == most {
        return Err(Refused::TooMany(most, what));
    }
    into.push(message);
    Ok(())
}

/// Reads a batch.
///
/// # Errors
/// When it is refused as a whole; nothing of it may be applied then, though the batch has some of it.
pub fn read(body: &[u8], admission: &mut Admission<'_>) -> Result<(), Refused> {
    let parts = Parts::of(body)?;
    let count = parts.timings()?;
    let mut endpoints = dictionary(&parts, admission)?;
    let base = if parts.base_ts_ms == 0 { admission.now() } else { Timestamp(parts.base_ts_ms) };
    if [4, 5].iter().all(|column| parts.columns[*column].is_empty()) && parts.details.is_empty() {
        read_timings::<true>(&parts, count, base, &mut endpoints, admission)?;
    } else {
        read_timings::<false>(&parts, count, base, &mut endpoints, admission)?;
    }
    for (at, message) in parts.in_flight.iter().enumerate() {
        admission.in_flight(count + at, in_flight(message)?);
    }
    Ok(())
}

/// The endpoints of the dictionary: those that were read before by their bytes, the others by their parts.
fn dictionary(parts: &Parts<'_>, admission: &mut Admission<'_>) -> Result<Vec<Named>, Refused> {
    let before = admission.named_before(&parts.endpoints);
    let (mut named, mut read) = (Vec::with_capacity(before.len()), Vec::new());
    for (number, &message) in before.into_iter().zip(&parts.endpoints) {
        named.push(if let Some(id) = number {
            Named::Known(id)
        } else {
            let endpoint = admission.name(&naming(message)?);
            if let Named::Known(id) = endpoint {
                read.push((id, message));
            }
            endpoint
        });
    }
    admission.remember(&read);
    Ok(named)
}

/// `PLAIN`: without weights, counts and details, as most batches are: they are not asked for at each timing then.
fn read_timings<const PLAIN: bool>(
    parts: &Parts<'_>,
    count: usize,
    base: Timestamp,
    endpoints: &mut [Named],
    admission: &mut Admission<'_>,
) -> Result<(), Refused> {
    let mut details = parts.details.iter().map(|message| detail(message));
    let mut next_detail = details.next().transpose()?;
    let mut columns = parts.columns.each_ref().map(Column::packed);
    let [places, deltas, durations, outcomes, weights, counts] = &mut columns;
    let or = |column: &mut &[u8], absent: u64| if column.is_empty() { Ok(absent) } else { take_small_varint(column) };
    let counted = || {
        std::iter::from_fn({
            let mut rest = *counts;
            move || take_varint(&mut rest).ok()
        })
        .map(|n| n.min(COUNT_MAX))
        .sum()
    };
    if !admission.expect_timings(count, if counts.is_empty() { count as u64 } else { counted() }) {
        return Ok(());
    }
    for at in 0..count {
        let place = take_varint(places)?;
        let delta_ms = signed(if deltas.is_empty() { 0 } else { take_varint(deltas)? });
        let detail_here = next_detail.as_ref().filter(|d| !PLAIN && d.0 == at as u64).map(|d| d.1);
        let timing = Numeric {
            ts: Timestamp(base.0.saturating_add(delta_ms)),
            us: take_varint(durations)?,
            outcome: or(outcomes, 0)?,
            weight: if PLAIN { 1 } else { or(weights, 1)? },
            count: if PLAIN { 1 } else { or(counts, 1)? },
            beside: detail_here.as_ref(),
        };
        let len = endpoints.len();
        let endpoint = usize::try_from(place).ok().and_then(|place| endpoints.get_mut(place)).ok_or(Refused::NoEndpoint { at, place, len })?;
        admission.numeric(at, endpoint, &timing);
        if detail_here.is_some() {
            next_detail = details.next().transpose()?;
        }
    }
    next_detail.map_or(Ok(()), |(timing, _)| Err(Refused::Detail(timing, count)))
}

fn text(number: u32, bytes: &[u8]) -> Result<&str, Refused> {
    std::str::from_utf8(bytes).map_err(|_| Refused::Text(number))
}

fn naming(message: &[u8]) -> Result<Naming<'_>, Refused> {
    let mut naming = Naming::default();
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(service)) => naming.service = text(1, service)?,
            (2, Value::Bytes(env)) => naming.env = text(2, env)?,
            (3, Value::Bytes(kind)) => naming.kind = text(3, kind)?,
            (4, Value::Bytes(method)) => naming.method = text(4, method)?,
            (5, Value::Bytes(route)) => naming.route = text(5, route)?,
            (6, Value::Bytes(path)) => naming.path = text(6, path)?,
            (7, Value::Varint(critical)) => naming.critical = critical != 0,
            (number @ 1..=7, _) => return Err(Broken::Type(number).into()),
            _ => {}
        }
    }
    Ok(naming)
}

/// A detail with the place of its timing. An empty text is absent.
fn detail(message: &[u8]) -> Result<(u64, Beside<'_>), Refused> {
    let (mut timing, mut beside) = (0, Beside::default());
    let given = |number, bytes| text(number, bytes).map(|t| Some(t).filter(|t| !t.is_empty()));
    for field in Fields(message) {
        match field? {
            (1, Value::Varint(at)) => timing = at,
            (2, Value::Bytes(trace_id)) => beside.trace_id = given(2, trace_id)?,
            (3, Value::Bytes(actor)) => beside.actor = given(3, actor)?,
            (4, Value::Bytes(key)) => beside.key = given(4, key)?,
            (5, Value::Varint(stage)) => beside.stage = Some(["end", "start"].get(usize::try_from(stage).unwrap_or(usize::MAX)).unwrap_or(&"unknown")),
            (number @ 1..=5, _) => return Err(Broken::Type(number).into()),
            _ => {}
        }
    }
    Ok((timing, beside))
}

fn in_flight(message: &[u8]) -> Result<InFlight, Refused> {
    let mut running = InFlight { service: String::new(), env: String::new(), method: String::new(), route: String::new(), age_ms: 0, n: 1 };
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(service)) => text(1, service)?.clone_into(&mut running.service),
            (2, Value::Bytes(env)) => text(2, env)?.clone_into(&mut running.env),
            (3, Value::Bytes(method)) => text(3, method)?.clone_into(&mut running.method),
            (4, Value::Bytes(route)) => text(4, route)?.clone_into(&mut running.route),
            (5, Value::Varint(age_ms)) => running.age_ms = age_ms,
            (6, Value::Varint(n)) => running.n = n,
            (number @ 1..=6, _) => return Err(Broken::Type(number).into()),
            _ => {}
        }
    }
    Ok(running)
}
