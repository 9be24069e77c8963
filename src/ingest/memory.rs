//! How much memory there is, how much of it is taken, and what is refused from when on.
//!
//! Counted as it is asked for: bodies as they arrive and are unpacked (the room of their buffers, and the window of zstd), timings as they are read until they are on disk. Estimated:
//! queries, by a fixed sum and the endpoints they list. Looked at four times a second: what the whole process has in memory (the catalogue, open slots, histograms, connections, the
//! allocator's own), to which is added what was asked for since. Not seen before it is looked at: what one line is while it is parsed, one for each thread.
//!
//! What passes through may be a [`PASSING_SHARE`]th of the ceiling: an allocator rarely gives back what it had once, so what passes through could push out what stays. How full it is
//! is the fuller of the two: all of the ceiling, or that share. The order in which load is shed: [`TRACES_TO`], [`QUERIES_TO`], [`NEW_ENDPOINTS_TO`], [`NOISY_TO`], [`BATCHES_TO`], [`CRITICAL_TO`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// From here on no trace of a timing is kept, in thousandths of what there is.
pub const TRACES_TO: u64 = 750;
/// From here on slow queries are refused.
pub const QUERIES_TO: u64 = 800;
/// From here on new endpoints are counted under the overflow endpoint.
pub const NEW_ENDPOINTS_TO: u64 = 900;
/// From here on batches of a sender that has as much under way as others, or more, are refused, and further bodies of a sender that has one under way.
pub const NOISY_TO: u64 = 950;
/// From here on every batch is refused that has no timing of a critical endpoint.
pub const BATCHES_TO: u64 = 975;
/// From here on all are, but heartbeats.
pub const CRITICAL_TO: u64 = 1_000;

/// See the module.
pub const PASSING_SHARE: u64 = 4;

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// The memory of the process.
#[derive(Debug)]
pub struct Memory {
    ceiling: u64,
    reserved: AtomicU64,
    resident: AtomicU64,
    reserved_at_look: AtomicU64,
}

impl Memory {
    /// With a ceiling in bytes.
    #[must_use]
    pub fn new(ceiling: u64) -> Self {
        Self { ceiling: ceiling.max(1), reserved: AtomicU64::new(0), resident: AtomicU64::new(0), reserved_at_look: AtomicU64::new(0) }
    }

    /// Takes note of what the process has in memory.
    pub fn look(&self, resident_bytes: u64) {
        self.reserved_at_look.store(self.reserved(), Ordering::Relaxed);
        self.resident.store(resident_bytes, Ordering::Relaxed);
    }

    /// The ceiling in bytes.
    #[must_use]
    pub fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// Bytes asked for by what passes through.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Bytes in use: what was there at the last look, and what was asked for since.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used_with(self.reserved())
    }

    fn used_with(&self, reserved: u64) -> u64 {
        self.resident.load(Ordering::Relaxed).saturating_add(reserved.saturating_sub(self.reserved_at_look.load(Ordering::Relaxed)))
    }

    /// How full it is, in thousandths.
    #[must_use]
    pub fn per_mille(&self) -> u64 {
        self.per_mille_with(self.reserved())
    }

    fn per_mille_with(&self, reserved: u64) -> u64 {
        let all = self.used_with(reserved).saturating_mul(1_000).div_ceil(self.ceiling);
        all.max(reserved.saturating_mul(1_000 * PASSING_SHARE).div_ceil(self.ceiling))
    }

    /// The largest body that can be read at all: it is there packed and unpacked, or unpacked and as timings.
    #[must_use]
    pub fn body_bytes_max(&self) -> u64 {
        self.ceiling / PASSING_SHARE / 2
    }

    fn take(&self, bytes: u64, up_to_per_mille: u64) -> Result<(), NoRoom> {
        let fits = |reserved: u64| {
            let with = reserved.saturating_add(bytes);
            (self.per_mille_with(with) <= up_to_per_mille).then_some(with)
        };
        self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(drop).map_err(|_| NoRoom)
    }
}

/// Bytes that were asked for; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    memory: Arc<Memory>,
    bytes: u64,
    up_to_per_mille: u64,
}

impl Reservation {
    /// One of nothing, that may grow until the memory is as full as that.
    #[must_use]
    pub fn new(memory: &Arc<Memory>, up_to_per_mille: u64) -> Self {
        Self { memory: Arc::clone(memory), bytes: 0, up_to_per_mille }
    }

    /// Asks for more.
    ///
    /// # Errors
    /// [`NoRoom`]; what it has it keeps.
    pub fn grow(&mut self, bytes: u64) -> Result<(), NoRoom> {
        self.memory.take(bytes, self.up_to_per_mille)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives some back.
    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.memory.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How much it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

/// A buffer that asks before it grows. What comes in one piece is not copied.
#[derive(Debug)]
pub struct Buffer {
    held: Held,
    room: Reservation,
    bytes_max: usize,
    expected: usize,
}

#[derive(Debug)]
enum Held {
    /// The first piece, as it came.
    Piece(Bytes),
    Copied(Vec<u8>),
}

/// So much is read into before anything is asked for: a heartbeat always fits.
const FREE_BYTES: usize = 1 << 10;
/// The least that is asked for.
const STEP_BYTES: usize = 16 << 10;
/// Of what is said to come, so many times what has come is asked for at once, up to the size of an ordinary batch: who says much and sends little takes little.
const AHEAD: usize = 16;
/// See [`AHEAD`].
const AHEAD_BYTES_MAX: usize = 256 << 10;

impl Buffer {
    /// An empty one.
    #[must_use]
    pub fn new(room: Reservation, bytes_max: usize) -> Self {
        Self { held: Held::Copied(Vec::new()), room, bytes_max, expected: 0 }
    }

    /// So many bytes are said to come.
    #[must_use]
    pub fn expecting(self, bytes: u64) -> Self {
        Self { expected: usize::try_from(bytes).unwrap_or(usize::MAX), ..self }
    }

    /// What is in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Piece(bytes) => bytes,
            Held::Copied(bytes) => bytes,
        }
    }

    /// Whether more came than it takes.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.bytes().len() > self.bytes_max
    }

    /// Gives up what is in it.
    pub fn clear(&mut self) {
        self.held = Held::Copied(Vec::new());
        self.room.shrink(u64::MAX);
    }

    /// Adds a piece to it; the first is kept as it is.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn push_piece(&mut self, piece: Bytes) -> Result<(), NoRoom> {
        if !self.bytes().is_empty() || piece.len() > self.bytes_max {
            return self.push(&piece);
        }
        if piece.len() > FREE_BYTES {
            self.room.grow((piece.len() as u64).saturating_sub(self.room.bytes()))?;
        }
        self.held = Held::Piece(piece);
        Ok(())
    }

    /// Adds to it. One byte more than it takes is kept, to tell.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn push(&mut self, more: &[u8]) -> Result<(), NoRoom> {
        let len = self.bytes().len();
        let more = &more[..more.len().min((self.bytes_max + 1).saturating_sub(len))];
        let wanted = len + more.len();
        let has = match &self.held {
            Held::Piece(_) => 0,
            Held::Copied(bytes) => bytes.capacity(),
        };
        if wanted > has {
            let capacity = if wanted <= FREE_BYTES {
                FREE_BYTES
            } else {
                // By half each time, so that few copies are made and little is asked for in vain.
                let ahead = self.expected.min(wanted.saturating_mul(AHEAD)).min(AHEAD_BYTES_MAX);
                let capacity = wanted.max(has + has / 2).max(ahead).max(STEP_BYTES).min(self.bytes_max + 1);
                self.room.grow((capacity as u64).saturating_sub(self.room.bytes()))?;
                capacity
            };
            match &mut self.held {
                Held::Piece(piece) => {
                    let mut bytes = Vec::with_capacity(capacity);
                    bytes.extend_from_slice(piece);
                    self.held = Held::Copied(bytes);
                }
                Held::Copied(bytes) => bytes.reserve_exact(capacity - len),
            }
        }
        if let Held::Copied(bytes) = &mut self.held {
            bytes.extend_from_slice(more);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_passes_through_has_its_share_and_what_stays_leaves_less_of_it() {
        let memory = Arc::new(Memory::new(4_000));
        let mut one = Reservation::new(&memory, NOISY_TO);
        assert_eq!((one.grow(900), one.grow(51)), (Ok(()), Err(NoRoom)));
        assert_eq!((memory.per_mille(), memory.used()), (900, 900));
        let mut critical = Reservation::new(&memory, CRITICAL_TO);
        assert_eq!((critical.grow(100), critical.grow(1)), (Ok(()), Err(NoRoom)));
        // What was asked for is among what is looked at.
        memory.look(3_000);
        assert_eq!((memory.used(), memory.per_mille()), (3_000, 1_000));
        drop((one, critical));
        assert_eq!((memory.reserved(), memory.per_mille()), (0, 750));
        memory.look(3_700);
        assert_eq!(Reservation::new(&memory, NEW_ENDPOINTS_TO).grow(1), Err(NoRoom));
        let mut last = Reservation::new(&memory, CRITICAL_TO);
        assert_eq!((last.grow(300), last.grow(1)), (Ok(()), Err(NoRoom)));
    }

    fn capacity(buffer: &Buffer) -> u64 {
        match &buffer.held {
            Held::Piece(bytes) => bytes.len() as u64,
            Held::Copied(bytes) => bytes.capacity() as u64,
        }
    }

    #[test]
    fn a_piece_that_is_all_is_not_copied_and_what_is_only_said_takes_no_more_than_its_share_of_what_came() {
        let memory = Arc::new(Memory::new(400 << 20));
        let buffer = || Buffer::new(Reservation::new(&memory, CRITICAL_TO), 16 << 20).expecting(16 << 20);
        let (mut whole, piece) = (buffer(), Bytes::from(vec![7; 9_000]));
        whole.push_piece(piece.clone()).unwrap();
        assert_eq!((whole.bytes().as_ptr(), memory.reserved()), (piece.as_ptr(), 9_000));
        whole.push_piece(piece.slice(..1_000)).unwrap();
        assert_eq!((whole.bytes(), memory.reserved()), (vec![7; 10_000].as_slice(), 10_000 * AHEAD as u64));
        whole.push(&vec![7; 200_000]).unwrap();
        assert_eq!(memory.reserved(), AHEAD_BYTES_MAX as u64);
        whole.push(&vec![7; 100_000]).unwrap();
        assert_eq!(memory.reserved(), AHEAD_BYTES_MAX as u64 * 3 / 2);
        drop(whole);
        let mut over = buffer();
        over.push_piece(Bytes::from(vec![7; (16 << 20) + 5])).unwrap();
        assert!(over.is_over() && memory.reserved() == (16 << 20) + 1);
    }

    proptest! {
        #[test]
        fn a_buffer_has_what_came_up_to_one_byte_too_many(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3_000), 0..12), bytes_max in 0usize..20_000, expected in any::<u64>(), shift in 0u32..64,
        ) {
            let memory = Arc::new(Memory::new(4 << 20));
            let mut buffer = Buffer::new(Reservation::new(&memory, CRITICAL_TO), bytes_max).expecting(expected >> shift);
            for piece in &pieces {
                buffer.push_piece(Bytes::copy_from_slice(piece)).unwrap();
                prop_assert!(capacity(&buffer) <= memory.reserved().max(FREE_BYTES as u64));
            }
            let all = pieces.concat();
            prop_assert_eq!(buffer.bytes(), &all[..all.len().min(bytes_max + 1)]);
            drop(buffer);
            prop_assert_eq!(memory.reserved(), 0);
        }
    }

    #[test]
    fn a_buffer_asks_for_what_it_has_and_a_heartbeat_needs_nothing() {
        let memory = Arc::new(Memory::new(4 << 20));
        let mut buffer = Buffer::new(Reservation::new(&memory, CRITICAL_TO), 100_000);
        buffer.push(b"[]").unwrap();
        assert_eq!(memory.reserved(), 0);
        for _ in 0..20 {
            buffer.push(&[b' '; 10_000]).unwrap();
            assert!(capacity(&buffer) <= memory.reserved(), "{} {}", capacity(&buffer), memory.reserved());
        }
        assert!(buffer.is_over());
        assert_eq!((buffer.bytes().len(), memory.reserved()), (100_001, 100_001));
        buffer.clear();
        assert_eq!(memory.reserved(), 0);
        memory.look(5 << 20);
        assert_eq!((buffer.push(b"[]"), buffer.push(&[b' '; 2_000])), (Ok(()), Err(NoRoom)));
    }
}
