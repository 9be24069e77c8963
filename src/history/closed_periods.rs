//! Closed periods on disk: the durable truth of history.
//!
//! `history/minute/START.history` holds a day of minutes, `hour/` 32 days of hours, `day/` 512 days of days. A file is a sequence of frames, each one period's rows
//! sorted by endpoint. Late data are a further frame of the same period; a frame is named by the log position that closed it, and a name counts once.
//! Frames are synced before the snapshot that forgets their rows, so a torn end is written again from the log. Retention deletes whole files.
//!
//! Frame, version 1 (little endian):
//! ```text
//! "SBH1" · period i64 (Unix ms) · name u64 · rows u32 · body bytes u32 · crc32c of head and index u32
//! index: for each row: endpoint u32 · offset u32 · bytes u32 · crc32c u32      body: the rows
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::open_slots::{Row, put_row, take_row};
use crate::endpoint::EndpointId;
use crate::log::Position;
use crate::log::disk_ops::{self, DiskFile};
use crate::log::failpoint;
use crate::log::file::{Error as LogError, io_error, sync_dir, write_error};
use crate::time::{Tier, Timestamp};

const MAGIC: [u8; 4] = *b"SBH1";
const HEAD_BYTES: usize = 32;
const INDEX_ENTRY_BYTES: usize = 16;

/// Why history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system said no.
    #[error(transparent)]
    Io(#[from] LogError),
    /// Bytes are not what was written.
    #[error("{} is damaged at byte {offset}; the other files are not affected. To see all that is wrong, run: slowburn verify. \
         To have everything built again without this file, move it away", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
}

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// Of which tier.
    pub tier: Tier,
    /// The start of its period.
    pub period: Timestamp,
    /// The log position that closed it.
    pub name: Position,
    /// Its first byte in its file.
    pub offset: u64,
}

/// The files of all tiers.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    open: HashMap<PathBuf, (DiskFile, u64)>,
    unsynced: Vec<PathBuf>,
}

/// How long a file of a tier reaches, in milliseconds.
fn file_ms(tier: Tier) -> i64 {
    match tier {
        Tier::Minute => 86_400_000,
        Tier::Hour => 32 * 86_400_000,
        Tier::Day => 512 * 86_400_000,
    }
}

/// The file that holds a period.
fn file_path(dir: &Path, tier: Tier, period: Timestamp) -> PathBuf {
    let start = period.0.div_euclid(file_ms(tier)) * file_ms(tier);
    dir.join(tier.name()).join(format!("{start:015}.history"))
}

impl Files {
    /// Opens `data_dir/history`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let dir = data_dir.join("history");
        for tier in Tier::ALL {
            let folder = dir.join(tier.name());
            disk_ops::create_dir_all(&folder).map_err(write_error("cannot create", &folder))?;
        }
        sync_dir(&dir)?;
        sync_dir(data_dir)?;
        Ok(Self { dir, open: HashMap::new(), unsynced: Vec::new() })
    }

    /// Appends a frame; durable after [`Files::sync`].
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// When a period has more than 4 GiB of rows.
    pub fn append(&mut self, tier: Tier, period: Timestamp, name: Position, rows: &[Row]) -> Result<Block, Error> {
        let (mut index, mut body) = (Vec::with_capacity(rows.len() * INDEX_ENTRY_BYTES), Vec::new());
        let u32_of = |n: usize| u32::try_from(n).expect("a period's rows are far below 4 GiB").to_le_bytes();
        for row in rows {
            let start = body.len();
            put_row(&mut body, row);
            index.extend_from_slice(&row.endpoint.0.to_le_bytes());
            index.extend_from_slice(&u32_of(start));
            index.extend_from_slice(&u32_of(body.len() - start));
            index.extend_from_slice(&crc32c::crc32c(&body[start..]).to_le_bytes());
        }
        let mut frame = MAGIC.to_vec();
        frame.extend_from_slice(&period.0.to_le_bytes());
        frame.extend_from_slice(&name.0.to_le_bytes());
        frame.extend_from_slice(&u32_of(rows.len()));
        frame.extend_from_slice(&u32_of(body.len()));
        let crc = crc32c::crc32c_append(crc32c::crc32c(&frame), &index);
        frame.extend_from_slice(&crc.to_le_bytes());
        frame.extend_from_slice(&index);
        frame.extend_from_slice(&body);
        let path = file_path(&self.dir, tier, period);
        failpoint::pass("before history write");
        let (file, end) = self.file(&path)?;
        let offset = *end;
        if let Err(source) = file.append(&frame) {
            file.truncate(offset).map_err(io_error("cannot truncate", &path))?;
            return Err(write_error("cannot append to", &path)(source).into());
        }
        *end += frame.len() as u64;
        failpoint::pass("after history write");
        if !self.unsynced.contains(&path) {
            self.unsynced.push(path);
        }
        Ok(Block { tier, period, name, offset })
    }

    /// The file, open for appending.
    fn file(&mut self, path: &Path) -> Result<&mut (DiskFile, u64), Error> {
        if !self.open.contains_key(path) {
            let file = DiskFile::open(path).map_err(write_error("cannot open", path))?;
            // Not only of a new one: who made it may have been killed before.
            path.parent().map_or(Ok(()), sync_dir)?;
            let end = file.file().metadata().map_err(io_error("cannot read", path))?.len();
            // A day has one file of each tier: those of days gone by need not stay open.
            if self.open.len() >= 16 && self.unsynced.is_empty() {
                self.open.clear();
            }
            self.open.insert(path.to_owned(), (file, end));
        }
        Ok(self.open.get_mut(path).expect("inserted above"))
    }

    /// Whether a frame that the index knows is there, whole. A power cut may keep the one and not the other.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn holds(&mut self, block: &Block) -> Result<bool, Error> {
        let path = file_path(&self.dir, block.tier, block.period);
        let (_, end) = self.file(&path)?;
        Ok(block.offset < *end && Reader { dir: self.dir.clone() }.rows_where(block, |_| true).is_ok())
    }

    /// Cuts off what a power cut left torn at the ends of files: from the first frame on that does not check and is not followed by one that was durable. All frames named
    /// before `replayed_from` were durable once, and so was what `was_durable` knows at a byte of a file or behind it; the others are written again from the log.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn cut_torn(&self, replayed_from: Position, was_durable: impl Fn(&Path, u64) -> bool) -> Result<(), Error> {
        let reader = Reader { dir: self.dir.clone() };
        for tier in Tier::ALL {
            for (_, path) in files_of(&self.dir, tier)? {
                let file = File::open(&path).map_err(io_error("cannot open", &path))?;
                let (mut torn_from, mut expected) = (None, 0);
                let scan = scan_file(&path, &file, |block, bytes| {
                    let block = Block { tier, ..block };
                    if block.name < replayed_from {
                        torn_from = None;
                    } else if block.offset > expected {
                        torn_from.get_or_insert(expected);
                    } else if torn_from.is_none() && reader.rows_where(&block, |_| true).is_err() {
                        torn_from = Some(block.offset);
                    }
                    expected = block.offset + bytes;
                })?;
                // A tail that still says an older name was whole once.
                let torn_from = torn_from.or((scan.end < scan.len && !says_older_name(&file, scan.end, replayed_from)).then_some(scan.end));
                if let Some(from) = torn_from.filter(|from| !was_durable(&path, *from)) {
                    let file = DiskFile::open(&path).map_err(io_error("cannot open", &path))?;
                    file.truncate(from).map_err(io_error("cannot truncate", &path))?;
                    file.sync_all().map_err(io_error("cannot sync", &path))?;
                }
            }
        }
        Ok(())
    }

    /// The file of a block.
    #[must_use]
    pub fn path_of(&self, block: &Block) -> PathBuf {
        file_path(&self.dir, block.tier, block.period)
    }

    /// Makes all appended frames durable.
    ///
    /// # Errors
    /// [`Error::Io`]; the process must then end.
    pub fn sync(&mut self) -> Result<(), Error> {
        for path in self.unsynced.drain(..) {
            if let Some((file, _)) = self.open.get(&path) {
                file.sync_data().map_err(io_error("cannot sync", &path))?;
            }
        }
        Ok(())
    }

    /// Deletes the files of a tier that end before an instant; says which periods went.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget(&mut self, tier: Tier, before: Timestamp) -> Result<Vec<PathBuf>, Error> {
        let mut gone = Vec::new();
        for (start, path) in files_of(&self.dir, tier)? {
            if start + file_ms(tier) <= before.0 {
                self.open.remove(&path);
                disk_ops::remove_file(&path).map_err(io_error("cannot remove", &path))?;
                gone.push(path);
            }
        }
        Ok(gone)
    }
}

fn files_of(dir: &Path, tier: Tier) -> Result<Vec<(i64, PathBuf)>, Error> {
    let folder = dir.join(tier.name());
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(found) };
    for entry in entries {
        let path = entry.map_err(io_error("cannot list", &folder))?.path();
        if let Some(start) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".history")).and_then(|n| n.parse().ok()) {
            found.push((start, path));
        }
    }
    found.sort();
    Ok(found)
}

struct Head {
    period: Timestamp,
    name: Position,
    rows: usize,
    body_bytes: usize,
    crc: u32,
}

fn read_head(file: &File, offset: u64) -> Option<(Head, Vec<u8>)> {
    let mut head = [0_u8; HEAD_BYTES];
    file.read_exact_at(&mut head, offset).ok()?;
    let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let parsed = Head {
        period: Timestamp(i64::from_le_bytes(head[4..12].try_into().expect("eight bytes"))),
        name: Position(u64_at(12)),
        rows: u32_at(20) as usize,
        body_bytes: u32_at(24) as usize,
        crc: u32_at(28),
    };
    let remaining = file.metadata().ok()?.len().checked_sub(offset + HEAD_BYTES as u64)?;
    let index_bytes = parsed.rows.checked_mul(INDEX_ENTRY_BYTES)?;
    if head[..4] != MAGIC || (index_bytes + parsed.body_bytes) as u64 > remaining {
        return None;
    }
    let mut index = vec![0; index_bytes];
    file.read_exact_at(&mut index, offset + HEAD_BYTES as u64).ok()?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..28]), &index);
    (crc == parsed.crc).then_some((parsed, index))
}

/// Whether unreadable bytes look like a frame named before a position, but for a bit or two.
fn says_older_name(file: &File, at: u64, before: Position) -> bool {
    let mut head = [0_u8; 20];
    if file.read_exact_at(&mut head, at).is_err() {
        return false;
    }
    let differing: u32 = head.iter().zip(MAGIC).map(|(is, was)| (is ^ was).count_ones()).sum();
    differing <= 1 && u64::from_le_bytes(head[12..].try_into().expect("eight bytes")) < before.0
}

struct Scan {
    /// The byte after the last whole frame.
    end: u64,
    /// The first byte that belongs to no frame and has a frame behind it.
    damaged: Option<u64>,
    len: u64,
}

/// Visits each frame with its length, past what cannot be read.
fn scan_file(path: &Path, file: &File, mut visit: impl FnMut(Block, u64)) -> Result<Scan, Error> {
    let len = file.metadata().map_err(io_error("cannot read", path))?.len();
    let mut scan = Scan { end: 0, damaged: None, len };
    let mut at = 0;
    while at < len {
        let Some((head, index)) = read_head(file, at) else {
            let Some(next) = next_head(path, file, at + 1, len)? else { break };
            scan.damaged.get_or_insert(at);
            at = next;
            continue;
        };
        let bytes = (HEAD_BYTES + index.len() + head.body_bytes) as u64;
        visit(Block { tier: Tier::Minute, period: head.period, name: head.name, offset: at }, bytes);
        at += bytes;
        scan.end = at;
    }
    Ok(scan)
}

/// The next byte at which a whole head begins.
fn next_head(path: &Path, file: &File, from: u64, len: u64) -> Result<Option<u64>, Error> {
    let mut rest = vec![0; usize::try_from(len.saturating_sub(from)).unwrap_or(0)];
    file.read_exact_at(&mut rest, from).map_err(io_error("cannot read", path))?;
    let begins = rest.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC).map(|(at, _)| from + at as u64);
    Ok(begins.into_iter().find(|at| read_head(file, *at).is_some()))
}

/// Reads frames; shares nothing with the writer.
#[derive(Clone, Debug)]
pub struct Reader {
    dir: PathBuf,
}

impl Reader {
    /// Of `data_dir/history`.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("history") }
    }

    /// Every frame of a tier, in the order of its files.
    ///
    /// # Errors
    /// [`Error::Damaged`] when there is one that cannot be read: what is built on this would miss it without a word.
    pub fn blocks(&self, tier: Tier) -> Result<Vec<Block>, Error> {
        let mut found = Vec::new();
        for (_, path) in files_of(&self.dir, tier)? {
            let file = File::open(&path).map_err(io_error("cannot open", &path))?;
            let scan = scan_file(&path, &file, |block, _| found.push(Block { tier, ..block }))?;
            if let Some(offset) = scan.damaged.or((scan.end < scan.len).then_some(scan.end)) {
                return Err(Error::Damaged { path, offset });
            }
        }
        Ok(found)
    }

    /// The row of one endpoint in a frame; `None` when it had no request.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the bytes do not check.
    pub fn row(&self, block: &Block, id: EndpointId) -> Result<Option<Row>, Error> {
        self.rows_where(block, |e| e == id).map(|mut rows| rows.pop())
    }

    /// The rows of the endpoints that are wanted.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the bytes do not check.
    pub fn rows_where(&self, block: &Block, wanted: impl Fn(EndpointId) -> bool) -> Result<Vec<Row>, Error> {
        let path = file_path(&self.dir, block.tier, block.period);
        let damaged = || Error::Damaged { path: path.clone(), offset: block.offset };
        let file = File::open(&path).map_err(io_error("cannot open", &path))?;
        let (head, index) = read_head(&file, block.offset).ok_or_else(damaged)?;
        let body_at = block.offset + (HEAD_BYTES + index.len()) as u64;
        if head.period != block.period || head.name != block.name {
            return Err(damaged());
        }
        let mut rows = Vec::new();
        for entry in index.chunks_exact(INDEX_ENTRY_BYTES) {
            let u32_at = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
            let id = EndpointId(u32_at(0));
            if wanted(id) {
                let mut bytes = vec![0; u32_at(8) as usize];
                file.read_exact_at(&mut bytes, body_at + u64::from(u32_at(4))).map_err(|_| damaged())?;
                if crc32c::crc32c(&bytes) != u32_at(12) {
                    return Err(damaged());
                }
                rows.push(take_row(id, &bytes).map_err(|_| damaged())?);
            }
        }
        Ok(rows)
    }

    /// Reads every byte of every file; gives back what does not check. A torn end of the newest file of a tier is none of it: the log has it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn verify(&self) -> Result<(u64, Vec<Error>), Error> {
        let (mut frames, mut wrong) = (0, Vec::new());
        for tier in Tier::ALL {
            let all = files_of(&self.dir, tier)?;
            for (i, (_, path)) in all.iter().enumerate() {
                let file = File::open(path).map_err(io_error("cannot open", path))?;
                let mut blocks = Vec::new();
                let scan = scan_file(path, &file, |block, _| blocks.push(Block { tier, ..block }))?;
                let torn = (scan.end < scan.len && i + 1 < all.len()).then_some(scan.end);
                wrong.extend(scan.damaged.or(torn).map(|offset| Error::Damaged { path: path.clone(), offset }));
                for block in blocks {
                    frames += 1;
                    wrong.extend(self.rows_where(&block, |_| true).err());
                }
            }
        }
        Ok((frames, wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::{Cell, Outcome, Span, Tally};
    use crate::histogram::Digits;

    fn row(id: u32) -> Row {
        let mut cell = Cell::new(&[], Digits::Two);
        cell.record(Outcome::Ok, Span::exact(u64::from(id) * 100), Tally { weight: 2, observed: 2 });
        Row { endpoint: EndpointId(id), cell, slots: vec![] }
    }

    #[test]
    fn frames_are_found_again_and_a_torn_end_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        let a = files.append(Tier::Minute, Timestamp(60_000), Position(5), &[row(1), row(9)]).unwrap();
        let b = files.append(Tier::Minute, Timestamp(120_000), Position(6), &[row(1)]).unwrap();
        files.sync().unwrap();
        let reader = Reader::new(dir.path());
        assert_eq!(reader.blocks(Tier::Minute).unwrap(), [a, b]);
        assert_eq!(reader.row(&a, EndpointId(9)).unwrap(), Some(row(9)));
        assert_eq!(reader.row(&b, EndpointId(9)).unwrap(), None);
        let path = file_path(&dir.path().join("history"), Tier::Minute, Timestamp(0));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert!(reader.blocks(Tier::Minute).is_err());
        let mut files = Files::open(dir.path()).unwrap();
        files.cut_torn(Position(6), |_, _| false).unwrap();
        let again = files.append(Tier::Minute, Timestamp(120_000), Position(6), &[row(1)]).unwrap();
        assert_eq!(again, b);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_flipped_bit_is_never_silent() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        let block = files.append(Tier::Hour, Timestamp(0), Position(5), &[row(1), row(9)]).unwrap();
        let path = file_path(&dir.path().join("history"), Tier::Hour, Timestamp(0));
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            assert!(Reader::new(dir.path()).rows_where(&block, |_| true).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn retention_deletes_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        for day in 0..3 {
            files.append(Tier::Minute, Timestamp(day * 86_400_000), Position(5), &[row(1)]).unwrap();
        }
        assert_eq!(files.forget(Tier::Minute, Timestamp(86_400_000 * 2 - 1)).unwrap().len(), 1);
        assert_eq!(Reader::new(dir.path()).blocks(Tier::Minute).unwrap().len(), 2);
    }
}
