//! One frame of the log: a position and typed sections. The owners of the sections define their bytes; a section of an
//! unknown kind is kept as it is.
//!
//! Layout (little endian), version 3:
//! ```text
//! payload bytes u32 · crc32c of the payload u32 · position u64 · unsynced before u32 · crc32c of these 20 bytes u32 · payload
//! payload = for each section: kind u16 · bytes u32 · …
//! ```
//! `unsynced before` is how many frames had been written since the last sync: all before those was durable when this one was written. So bytes that cannot be read are a
//! torn write when nothing behind them says that they had been synced, and damage when something does. The head has its own sum, so that looking for frames
//! among garbage costs the same for each byte, whatever lengths it pretends.

/// The number of a frame: dense, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a section holds. Numbers are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(pub u16);

impl Kind {
    /// New endpoints of the catalogue (postcard).
    pub const ENDPOINTS: Self = Self(1);
    /// Counts: cells by endpoint and slot.
    pub const COUNTS: Self = Self(2);
    /// Batch keys and sender sequences with their answers (postcard).
    pub const BATCHES: Self = Self(3);
    /// What single timings carry beside their duration: trace, actor, key, stage (postcard).
    pub const DETAILS: Self = Self(4);
    /// Requests still running, as senders said (postcard).
    pub const IN_FLIGHT: Self = Self(10);
    /// Decisions and what they rest on (JSON).
    pub const RECORDS: Self = Self(6);
    /// How many timings ended in which outcome of ingest (postcard).
    pub const OUTCOMES: Self = Self(7);
    /// In the archive, at the end of each segment: sums up to there that follow from sections which the archive forgets (postcard).
    pub const CARRIED: Self = Self(9);
    /// Frames that a repair gave up, up to and with the position inside (u64).
    pub const GAP: Self = Self(8);
}

/// A typed part of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What the bytes are.
    pub kind: Kind,
    /// As their owner wrote them.
    pub bytes: Vec<u8>,
}

/// A frame as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub position: Position,
    /// Its parts, in the order written.
    pub sections: Vec<Section>,
}

/// The bytes before the payload.
pub const HEADER_BYTES: usize = 24;

/// The largest payload that is written or believed.
pub const PAYLOAD_BYTES_MAX: usize = 256 << 20;

impl Frame {
    /// Its first section of that kind.
    #[must_use]
    pub fn section(&self, kind: Kind) -> Option<&[u8]> {
        self.sections.iter().find(|s| s.kind == kind).map(|s| s.bytes.as_slice())
    }

    /// The last position that it accounts for: its own, or the end of the gap that it stands for.
    #[must_use]
    pub fn last_position(&self) -> Position {
        let gap = self.section(Kind::GAP).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        Position(gap.max(self.position.0))
    }
}

/// Appends the frame's bytes; so many frames before it may not be durable yet.
///
/// # Panics
/// When the payload passes [`PAYLOAD_BYTES_MAX`], which admission makes impossible.
pub fn encode(out: &mut Vec<u8>, position: Position, unsynced_before: u32, sections: &[Section]) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    for section in sections {
        out.extend_from_slice(&section.kind.0.to_le_bytes());
        out.extend_from_slice(&u32::try_from(section.bytes.len()).expect("a section is far below 4 GiB").to_le_bytes());
        out.extend_from_slice(&section.bytes);
    }
    let payload = start + HEADER_BYTES;
    let payload_bytes = out.len() - payload;
    assert!(payload_bytes <= PAYLOAD_BYTES_MAX, "a frame of {payload_bytes} bytes");
    let payload_crc = crc32c::crc32c(&out[payload..]);
    let head = &mut out[start..payload];
    head[..4].copy_from_slice(&u32::try_from(payload_bytes).expect("checked above").to_le_bytes());
    head[4..8].copy_from_slice(&payload_crc.to_le_bytes());
    head[8..16].copy_from_slice(&position.0.to_le_bytes());
    head[16..20].copy_from_slice(&unsynced_before.to_le_bytes());
    let head_crc = crc32c::crc32c(&head[..20]);
    head[20..].copy_from_slice(&head_crc.to_le_bytes());
}

/// What the head of a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the frame.
    pub position: Position,
    /// All frames before this one were durable when it was written.
    pub synced_before: Position,
    payload_bytes: usize,
    payload_crc: u32,
}

/// Reads the head at the front of the bytes, whether or not its payload is there.
#[must_use]
pub fn decode_head(bytes: &[u8]) -> Option<Head> {
    let head = bytes.get(..HEADER_BYTES)?;
    let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let position = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
    let synced_before = position.checked_sub(u64::from(u32_at(16))).filter(|p| *p > 0)?;
    let payload_bytes = u32_at(0) as usize;
    // The sum comes last: most bytes that are no head are told by the rest.
    (payload_bytes <= PAYLOAD_BYTES_MAX && crc32c::crc32c(&head[..20]) == u32_at(20)).then_some(Head {
        position: Position(position),
        synced_before: Position(synced_before),
        payload_bytes,
        payload_crc: u32_at(4),
    })
}

/// What stands at the front of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A frame, and how many bytes it takes.
    Frame(Frame, usize),
    /// No frame that can be believed.
    Invalid,
}

/// Reads the frame at the front of the bytes.
#[must_use]
pub fn decode(bytes: &[u8]) -> Decoded {
    try_decode(bytes).map_or(Decoded::Invalid, |(frame, len)| Decoded::Frame(frame, len))
}

fn try_decode(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (head, payload) = checked(bytes)?;
    let section = |section: Option<(Kind, &[u8])>| section.map(|(kind, bytes)| Section { kind, bytes: bytes.to_vec() });
    let sections = sections(payload).map(section).collect::<Option<Vec<_>>>()?;
    Some((Frame { position: head.position, sections }, HEADER_BYTES + payload.len()))
}

/// Reads the frame at the front of the bytes as [`decode`] does, keeping nothing of it: its position, the last that it accounts for, and how many bytes it takes.
#[must_use]
pub fn skim(bytes: &[u8]) -> Option<(Position, Position, usize)> {
    let (head, payload) = checked(bytes)?;
    let mut last = head.position;
    let mut gap = None;
    for section in sections(payload) {
        let (kind, bytes) = section?;
        if kind == Kind::GAP {
            gap = gap.or(Some(bytes));
        }
    }
    if let Some(gap) = gap.and_then(|b| b.try_into().ok()).map(u64::from_le_bytes) {
        last = Position(gap.max(last.0));
    }
    Some((head.position, last, HEADER_BYTES + payload.len()))
}

/// The head at the front of the bytes and its payload, whose sum is right.
fn checked(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let head = decode_head(bytes)?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + head.payload_bytes)?;
    (crc32c::crc32c(payload) == head.payload_crc).then_some((head, payload))
}

/// The sections of a payload; `None` for one that is cut off, and nothing after it.
fn sections(payload: &[u8]) -> impl Iterator<Item = Option<(Kind, &[u8])>> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let section = take_section(&mut rest);
        if section.is_none() {
            rest = &[];
        }
        Some(section)
    })
}

fn take_section<'a>(rest: &mut &'a [u8]) -> Option<(Kind, &'a [u8])> {
    let (head, after) = rest.split_first_chunk::<6>()?;
    let [k0, k1, l0, l1, l2, l3] = *head;
    let (bytes, after) = after.split_at_checked(u32::from_le_bytes([l0, l1, l2, l3]) as usize)?;
    *rest = after;
    Some((Kind(u16::from_le_bytes([k0, k1])), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_and_no_flipped_bit_does() {
        let sections = vec![Section { kind: Kind::COUNTS, bytes: vec![1, 2, 3] }, Section { kind: Kind(999), bytes: vec![] }];
        let mut bytes = Vec::new();
        encode(&mut bytes, Position(7), 3, &sections);
        assert_eq!(decode_head(&bytes).unwrap().synced_before, Position(4));
        assert_eq!(skim(&bytes), Some((Position(7), Position(7), bytes.len())));
        assert_eq!(decode(&bytes), Decoded::Frame(Frame { position: Position(7), sections }, bytes.len()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged), Decoded::Invalid, "bit {bit}");
            assert_eq!(skim(&damaged), None, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Decoded::Invalid);
        }
    }
}
