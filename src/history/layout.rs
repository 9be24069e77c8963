//! The bytes of a frame of history: one period's rows by endpoint, in pages, so that one row costs three small reads however many there are.
//!
//! Frame, version 2 (little endian):
//! ```text
//! "SBH2" · period i64 (Unix ms) · name u64 · rows u32 · pages u32 · body bytes u64 · crc32c of head and directory u32
//! directory: for each page: first endpoint u32 · offset in the body u32 · bytes of its index u32 · crc32c of its index u32
//! body: pages, each an index (for each row: endpoint, less the one before, LEB128 · bytes LEB128 · crc32c u32) and the rows
//! ```
//! Each crc is covered by the one above it, so nothing is trusted that was not checked, and what is not read needs no check.
//!
//! Between frames stand marks, each written and synced after all before it had been synced:
//! ```text
//! "SBHM" · its own offset in the file u64 · crc32c of these 12 bytes u32
//! ```
//! So bytes before a mark that cannot be read are damage, and those behind the last one a torn write that the log still has.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

use super::closed_periods::Block;
use crate::endpoint::EndpointId;
use crate::histogram::codec::{put_varint, take_varint};
use crate::log::Position;
use crate::time::{Tier, Timestamp};

const MAGIC: [u8; 4] = *b"SBH2";
const HEAD_BYTES: usize = 40;
const ENTRY_BYTES: usize = 16;

/// Rows in a page: its index is read whole for one row.
const PAGE_ROWS: u32 = 128;

/// Read at first: the head and the directory of 32,000 rows.
const FIRST_READ_BYTES: usize = HEAD_BYTES + 256 * ENTRY_BYTES;

const MARK: [u8; 4] = *b"SBHM";
pub(super) const MARK_BYTES: usize = 16;

/// What says that all before this offset of a file is durable.
pub(super) fn mark(offset: u64) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark[..4].copy_from_slice(&MARK);
    mark[4..12].copy_from_slice(&offset.to_le_bytes());
    let crc = crc32c::crc32c(&mark[..12]);
    mark[12..].copy_from_slice(&crc.to_le_bytes());
    mark
}

/// Whether the mark of this offset stands there.
pub(super) fn is_mark_at(file: &File, offset: u64) -> io::Result<bool> {
    let mut bytes = [0; MARK_BYTES];
    Ok(read_some(file, &mut bytes, offset)? == MARK_BYTES && bytes == mark(offset))
}

/// The next offset from `from` on at which a frame or a mark may begin; what looks like one need not be one.
pub(super) fn next_start(file: &File, from: u64) -> io::Result<Option<u64>> {
    let (mut at, mut bytes) = (from, vec![0; 1 << 16]);
    loop {
        let read = read_some(file, &mut bytes, at)?;
        if let Some(found) = bytes[..read].windows(4).position(|four| four == MAGIC || four == MARK) {
            return Ok(Some(at + found as u64));
        }
        if read < bytes.len() {
            return Ok(None);
        }
        // What begins with the last three bytes may go on behind them.
        at += read as u64 - 3;
    }
}

/// Rows on their way into a frame. They are written page by page; the head, which stands before them, is known at the end.
#[derive(Debug, Default)]
pub(super) struct Pages {
    directory: Vec<u8>,
    body_bytes: u64,
    rows: u32,
    index: Vec<u8>,
    page: Vec<u8>,
    in_page: u32,
    first: u32,
    before: u32,
}

impl Pages {
    /// Adds a row, of a higher endpoint than all before; `put` appends its bytes.
    pub(super) fn push(&mut self, endpoint: EndpointId, out: &mut impl Write, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if self.in_page == PAGE_ROWS {
            self.end_page(out)?;
        }
        if self.in_page == 0 {
            (self.first, self.before) = (endpoint.0, endpoint.0);
        }
        debug_assert!(self.in_page == 0 || endpoint.0 > self.before, "rows are sorted by endpoint");
        let start = self.page.len();
        put(&mut self.page);
        put_varint(&mut self.index, u64::from(endpoint.0 - self.before));
        put_varint(&mut self.index, (self.page.len() - start) as u64);
        self.index.extend_from_slice(&crc32c::crc32c(&self.page[start..]).to_le_bytes());
        self.before = endpoint.0;
        self.in_page += 1;
        self.rows += 1;
        Ok(())
    }

    fn end_page(&mut self, out: &mut impl Write) -> io::Result<()> {
        let offset = u32::try_from(self.body_bytes).map_err(|_| io::Error::other("a period has more than 4 GiB of rows"))?;
        let index_bytes = u32::try_from(self.index.len()).map_err(io::Error::other)?;
        for part in [self.first, offset, index_bytes, crc32c::crc32c(&self.index)] {
            self.directory.extend_from_slice(&part.to_le_bytes());
        }
        out.write_all(&self.index)?;
        out.write_all(&self.page)?;
        self.body_bytes += (self.index.len() + self.page.len()) as u64;
        self.index.clear();
        self.page.clear();
        self.in_page = 0;
        Ok(())
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// Writes the last page; gives back what stands before the body.
    pub(super) fn finish(mut self, period: Timestamp, name: Position, out: &mut impl Write) -> io::Result<Vec<u8>> {
        if self.in_page > 0 {
            self.end_page(out)?;
        }
        let pages = u32::try_from(self.directory.len() / ENTRY_BYTES).map_err(io::Error::other)?;
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&period.0.to_le_bytes());
        head.extend_from_slice(&name.0.to_le_bytes());
        head.extend_from_slice(&self.rows.to_le_bytes());
        head.extend_from_slice(&pages.to_le_bytes());
        head.extend_from_slice(&self.body_bytes.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &self.directory);
        head.extend_from_slice(&crc.to_le_bytes());
        head.extend_from_slice(&self.directory);
        Ok(head)
    }
}

/// The head and the directory of a frame, checked.
#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) period: Timestamp,
    pub(super) name: Position,
    bytes: Vec<u8>,
    pages: usize,
    /// Where in the file.
    pub(super) body_at: u64,
    body_bytes: u64,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// No row of it is of a lower endpoint.
    pub(super) first: EndpointId,
    /// Where in the file.
    pub(super) at: u64,
    /// Of index and rows.
    pub(super) bytes: usize,
    pub(super) index_bytes: usize,
    index_crc: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Reads as much as there is.
fn read_some(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], at + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}

impl Directory {
    /// Reads the directory of the frame at `offset`; false when it does not check.
    pub(super) fn read(&mut self, file: &File, offset: u64) -> io::Result<bool> {
        self.bytes.resize(FIRST_READ_BYTES, 0);
        let read = read_some(file, &mut self.bytes, offset)?;
        if read < HEAD_BYTES || self.bytes[..4] != MAGIC {
            return Ok(false);
        }
        let rows = u32_at(&self.bytes, 20);
        self.pages = u32_at(&self.bytes, 24) as usize;
        if self.pages != rows.div_ceil(PAGE_ROWS) as usize {
            return Ok(false);
        }
        let end = HEAD_BYTES + self.pages * ENTRY_BYTES;
        if end > read {
            // A number that is wrong must not take gigabytes.
            if read < FIRST_READ_BYTES || end as u64 > file.metadata()?.len().saturating_sub(offset) {
                return Ok(false);
            }
            self.bytes.resize(end, 0);
            if read_some(file, &mut self.bytes[read..], offset + read as u64)? < end - read {
                return Ok(false);
            }
        }
        self.bytes.truncate(end);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.bytes[..HEAD_BYTES - 4]), &self.bytes[HEAD_BYTES..]);
        if crc != u32_at(&self.bytes, HEAD_BYTES - 4) {
            return Ok(false);
        }
        self.period = Timestamp(u64_at(&self.bytes, 4).cast_signed());
        self.name = Position(u64_at(&self.bytes, 12));
        self.body_bytes = u64_at(&self.bytes, 28);
        self.body_at = offset + end as u64;
        Ok(true)
    }

    /// Where the frame is, when it stands at this offset.
    pub(super) fn block(&self, tier: Tier, offset: u64) -> Block {
        Block { tier, period: self.period, name: self.name, offset }
    }

    /// The byte after the frame.
    pub(super) fn end(&self) -> u64 {
        self.body_at + self.body_bytes
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    pub(super) fn page(&self, n: usize) -> Page {
        let entry = &self.bytes[HEAD_BYTES + n * ENTRY_BYTES..];
        let offset = |n: usize| u64::from(u32_at(&self.bytes, HEAD_BYTES + n * ENTRY_BYTES + 4));
        let end = if n + 1 < self.pages { offset(n + 1) } else { self.body_bytes };
        Page {
            first: EndpointId(u32_at(entry, 0)),
            at: self.body_at + offset(n),
            bytes: usize::try_from(end.saturating_sub(offset(n))).unwrap_or(usize::MAX),
            index_bytes: u32_at(entry, 8) as usize,
            index_crc: u32_at(entry, 12),
        }
    }

    /// The first page from `from` on that an endpoint may be in.
    pub(super) fn page_of(&self, id: EndpointId, from: usize) -> Option<usize> {
        let (mut low, mut high) = (from, self.pages);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.page(middle).first <= id { low = middle + 1 } else { high = middle }
        }
        (low > from).then(|| low - 1)
    }
}

/// Where a row is, as the index of its page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) endpoint: EndpointId,
    /// Behind the index.
    pub(super) offset: usize,
    pub(super) bytes: usize,
    crc: u32,
}

impl Place {
    pub(super) fn checks(&self, row: &[u8]) -> bool {
        crc32c::crc32c(row) == self.crc
    }
}

impl Page {
    /// The places of its rows, by endpoint; `None` when the index does not check.
    pub(super) fn places<'a>(&self, index: &'a [u8]) -> Option<impl Iterator<Item = Place> + 'a> {
        if crc32c::crc32c(index) != self.index_crc {
            return None;
        }
        let (mut rest, mut endpoint, mut offset) = (index, self.first.0, 0);
        Some(std::iter::from_fn(move || {
            let gap = take_varint(&mut rest).ok()?;
            let bytes = usize::try_from(take_varint(&mut rest).ok()?).ok()?;
            let (crc, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            endpoint = endpoint.wrapping_add(u32::try_from(gap).ok()?);
            let place = Place { endpoint: EndpointId(endpoint), offset, bytes, crc: u32::from_le_bytes(*crc) };
            offset += bytes;
            Some(place)
        }))
    }
}
