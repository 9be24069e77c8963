//! One frame of the log: a position and typed sections. The owners of the sections define their bytes; a section of an
//! unknown kind is kept as it is.
//!
//! Layout (little endian), version 1:
//! ```text
//! payload bytes u32 · crc32c u32 (over position and payload) · position u64 · payload
//! payload = for each section: kind u16 · bytes u32 · …
//! ```

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
    pub const IN_FLIGHT: Self = Self(5);
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
pub const HEADER_BYTES: usize = 16;

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

/// Appends the frame's bytes.
///
/// # Panics
/// When the payload passes [`PAYLOAD_BYTES_MAX`], which admission makes impossible.
pub fn encode(out: &mut Vec<u8>, position: Position, sections: &[Section]) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&position.0.to_le_bytes());
    for section in sections {
        out.extend_from_slice(&section.kind.0.to_le_bytes());
        out.extend_from_slice(&u32::try_from(section.bytes.len()).expect("a section is far below 4 GiB").to_le_bytes());
        out.extend_from_slice(&section.bytes);
    }
    let payload = out.len() - start - HEADER_BYTES;
    assert!(payload <= PAYLOAD_BYTES_MAX, "a frame of {payload} bytes");
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&u32::try_from(payload).expect("checked above").to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
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
    let header = bytes.get(..HEADER_BYTES)?;
    let payload_bytes = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(header[4..8].try_into().ok()?);
    let position = Position(u64::from_le_bytes(header[8..16].try_into().ok()?));
    let end = HEADER_BYTES.checked_add(payload_bytes).filter(|_| payload_bytes <= PAYLOAD_BYTES_MAX && position.0 > 0)?;
    let checked = bytes.get(8..end)?;
    if crc32c::crc32c(checked) != crc {
        return None;
    }
    let (mut sections, mut rest) = (Vec::new(), &bytes[HEADER_BYTES..end]);
    while !rest.is_empty() {
        let head = rest.get(..6)?;
        let kind = Kind(u16::from_le_bytes(head[..2].try_into().ok()?));
        let len = u32::from_le_bytes(head[2..6].try_into().ok()?) as usize;
        let bytes = rest.get(6..6 + len)?.to_vec();
        rest = &rest[6 + len..];
        sections.push(Section { kind, bytes });
    }
    Some((Frame { position, sections }, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_and_no_flipped_bit_does() {
        let sections = vec![Section { kind: Kind::COUNTS, bytes: vec![1, 2, 3] }, Section { kind: Kind(999), bytes: vec![] }];
        let mut bytes = Vec::new();
        encode(&mut bytes, Position(7), &sections);
        assert_eq!(decode(&bytes), Decoded::Frame(Frame { position: Position(7), sections }, bytes.len()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged), Decoded::Invalid, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Decoded::Invalid);
        }
    }
}
