//! Reading frames: the rows of the endpoints that are wanted, as bytes, in as few reads as it takes. Shares nothing with the writer.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::closed_periods::{Block, Error, file_path, file_start, files_of};
use super::layout::{Directory, MARK_BYTES, Page, Place, is_mark_at, next_start};
use super::losses::{self, Loss};
use super::open_slots::{Row, take_row};
use crate::endpoint::EndpointId;
use crate::histogram::codec;
use crate::log::file::io_error;
use crate::time::Tier;

/// Files that one reading keeps open.
const OPEN_FILES_MAX: usize = 16;

/// Bytes that are read with two rows rather than to read twice.
const GAP_BYTES_MAX: usize = 4_096;

/// Which endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Every one.
    All,
    /// These, sorted.
    These(Vec<EndpointId>),
}

impl Wanted {
    /// How many, unless every one.
    pub(super) fn count(&self) -> Option<usize> {
        if let Self::These(ids) = self { Some(ids.len()) } else { None }
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, id: EndpointId) -> bool {
        match self {
            Self::All => true,
            Self::These(ids) => ids.binary_search(&id).is_ok(),
        }
    }
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

    /// Where the rows of a roll-up wait.
    pub(super) fn waiting_path(&self, tier: Tier) -> PathBuf {
        self.dir.join(format!("roll-up-{}.waiting", tier.name()))
    }

    /// Begins to read: files stay open until it ends, and no longer, so that what retention deletes gives its room back.
    #[must_use]
    pub fn begin(&self) -> Reading {
        Reading { dir: self.dir.clone(), files: Vec::new(), directory: Directory::default(), index: Vec::new(), places: Vec::new(), rows: Vec::new() }
    }

    /// What a repair could not bring back.
    ///
    /// # Errors
    /// [`Error`].
    pub fn losses(&self) -> Result<Vec<Loss>, Error> {
        losses::read(&self.dir)
    }

    /// Every frame of a tier, in the order of its files.
    ///
    /// # Errors
    /// [`Error::Damaged`] when there is one that cannot be read: what is built on this would miss it without a word.
    pub fn blocks(&self, tier: Tier) -> Result<Vec<Block>, Error> {
        let mut found = Vec::new();
        for (_, path) in files_of(&self.dir, tier)? {
            let file = File::open(&path).map_err(io_error("cannot open", &path))?;
            let scan = scan_file(&path, &file, |directory, offset| found.push(directory.block(tier, offset)))?;
            if let Some(offset) = scan.damaged.or(scan.torn) {
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
        let mut row = None;
        self.begin().each_row(block, &Wanted::These(vec![id]), |r| row = Some(r))?;
        Ok(row)
    }

    /// The rows of the endpoints that are wanted.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the bytes do not check.
    pub fn rows_where(&self, block: &Block, wanted: impl Fn(EndpointId) -> bool) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        self.begin().each(block, &Wanted::All, |id, bytes| {
            if wanted(id) {
                rows.push(take_row(id, bytes)?);
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// Reads every byte of every file; gives back what does not check. A torn end of the newest file of a tier is none of it: the log has it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn verify(&self) -> Result<(u64, Vec<Error>), Error> {
        let (mut frames, mut wrong, mut reading) = (0, Vec::new(), self.begin());
        wrong.extend(self.losses().err());
        for tier in Tier::ALL {
            let all = files_of(&self.dir, tier)?;
            for (i, (_, path)) in all.iter().enumerate() {
                let file = File::open(path).map_err(io_error("cannot open", path))?;
                let mut blocks = Vec::new();
                let scan = scan_file(path, &file, |directory, offset| blocks.push(directory.block(tier, offset)))?.followed(i + 1 < all.len());
                let torn = scan.torn.filter(|_| i + 1 < all.len());
                wrong.extend(scan.damaged.or(torn).map(|offset| Error::Damaged { path: path.clone(), offset }));
                if scan.bad_marks > 0 {
                    wrong.push(Error::Marks { path: path.clone(), marks: scan.bad_marks });
                }
                for block in blocks {
                    frames += 1;
                    wrong.extend(reading.each_row(&block, &Wanted::All, |_| ()).err());
                }
            }
        }
        Ok((frames, wrong))
    }
}

/// What stands in a file.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Where the last mark stands: all before it was durable once.
    pub(super) synced_to: u64,
    /// The first byte before that mark that belongs to no frame.
    pub(super) damaged: Option<u64>,
    /// The first byte behind it that belongs to no frame.
    pub(super) torn: Option<u64>,
    /// Where each stretch before that mark begins that belongs to no frame.
    pub(super) unreadable: Vec<u64>,
    /// Marks that cannot be read, with something readable right behind them: no frame is that short, so nothing is lost.
    pub(super) bad_marks: usize,
    /// Whether all that is torn is as long as a mark, at the end: in a file that others follow it was one.
    pub(super) torn_is_mark: bool,
}

impl Scan {
    /// As a scan of a file that others follow.
    pub(super) fn followed(mut self, is_followed: bool) -> Self {
        if is_followed && self.torn_is_mark {
            self.torn = None;
            self.bad_marks += 1;
        }
        self
    }
}

/// Visits each frame's directory and place, past what cannot be read.
pub(super) fn scan_file(path: &Path, file: &File, mut visit: impl FnMut(&Directory, u64)) -> Result<Scan, Error> {
    let cannot_read = || io_error("cannot read", path);
    let len = file.metadata().map_err(cannot_read())?.len();
    let (mut at, mut directory, mut scan) = (0, Directory::default(), Scan::default());
    let (mut stretches, mut behind) = (Vec::new(), Directory::default());
    while at < len {
        if directory.read(file, at).map_err(cannot_read())? && directory.end() <= len {
            visit(&directory, at);
            at = directory.end();
        } else if is_mark_at(file, at).map_err(cannot_read())? {
            scan.damaged = scan.damaged.or(scan.torn.take());
            scan.unreadable.append(&mut stretches);
            scan.synced_to = at;
            at += MARK_BYTES as u64;
        } else {
            let next = next_start(file, at + 1).map_err(cannot_read())?.unwrap_or(len);
            let mark_end = at + MARK_BYTES as u64;
            let is_mark = mark_end < len && (is_mark_at(file, mark_end).map_err(cannot_read())? || behind.read(file, mark_end).map_err(cannot_read())?);
            if is_mark {
                scan.bad_marks += 1;
                at = mark_end;
                continue;
            }
            scan.torn.get_or_insert(at);
            stretches.push(at);
            at = next;
        }
    }
    scan.torn_is_mark = len >= MARK_BYTES as u64 && stretches == [len - MARK_BYTES as u64];
    Ok(scan)
}

/// A reading of one or more frames, with its open files and room to read into.
#[derive(Debug)]
pub struct Reading {
    dir: PathBuf,
    files: Vec<((Tier, i64), Arc<File>)>,
    directory: Directory,
    index: Vec<u8>,
    places: Vec<Place>,
    rows: Vec<u8>,
}

impl Reading {
    /// Visits the rows of the endpoints that are wanted, by endpoint.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the bytes do not check.
    pub fn each_row(&mut self, block: &Block, wanted: &Wanted, mut visit: impl FnMut(Row)) -> Result<(), Error> {
        self.each(block, wanted, |id, bytes| {
            visit(take_row(id, bytes)?);
            Ok(())
        })
    }

    /// Visits the bytes of the rows of the endpoints that are wanted, by endpoint; `visit` may say that they cannot be read.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the bytes do not check.
    pub fn each(&mut self, block: &Block, wanted: &Wanted, mut visit: impl FnMut(EndpointId, &[u8]) -> Result<(), codec::Error>) -> Result<(), Error> {
        let file = self.open(block)?;
        let damaged = || Error::Damaged { path: file_path(&self.dir, block.tier, block.period), offset: block.offset };
        let found = self.directory.read(&file, block.offset).map_err(|_| damaged())?;
        if !found || self.directory.period != block.period || self.directory.name != block.name {
            return Err(damaged());
        }
        let mut read = |page: &Page, ids: Option<&[EndpointId]>| {
            let mut room = Room { index: &mut self.index, places: &mut self.places, rows: &mut self.rows };
            room.read_page(&file, page, ids, &mut visit).ok_or_else(damaged)
        };
        match wanted {
            Wanted::All => (0..self.directory.pages()).try_for_each(|n| read(&self.directory.page(n), None)),
            Wanted::These(ids) => {
                let (mut ids, mut from) = (ids.as_slice(), 0);
                while let Some(&id) = ids.first() {
                    let Some(n) = self.directory.page_of(id, from) else {
                        // Before the first of all rows.
                        ids = &ids[1..];
                        continue;
                    };
                    let next = (n + 1 < self.directory.pages()).then(|| self.directory.page(n + 1).first);
                    let (here, after) = ids.split_at(next.map_or(ids.len(), |next| ids.partition_point(|id| *id < next)));
                    read(&self.directory.page(n), Some(here))?;
                    (ids, from) = (after, n + 1);
                    if next.is_none() {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    /// The file of a block.
    fn open(&mut self, block: &Block) -> Result<Arc<File>, Error> {
        let key = (block.tier, file_start(block.tier, block.period));
        if let Some((_, file)) = self.files.iter().find(|(known, _)| *known == key) {
            return Ok(Arc::clone(file));
        }
        let path = file_path(&self.dir, block.tier, block.period);
        let file = Arc::new(File::open(&path).map_err(io_error("cannot open", &path))?);
        if self.files.len() == OPEN_FILES_MAX {
            self.files.remove(0);
        }
        self.files.push((key, Arc::clone(&file)));
        Ok(file)
    }

    /// Begins to read all rows of a frame one after the other.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the directory does not check.
    pub(super) fn cursor(&mut self, block: &Block) -> Result<Cursor, Error> {
        let file = self.open(block)?;
        let path = file_path(&self.dir, block.tier, block.period);
        let mut directory = Directory::default();
        let damaged = || Error::Damaged { path: path.clone(), offset: block.offset };
        if !directory.read(&file, block.offset).map_err(|_| damaged())? || directory.period != block.period || directory.name != block.name {
            return Err(damaged());
        }
        Ok(Cursor { file, path, offset: block.offset, directory, next_page: 0, index: Vec::new(), places: Vec::new(), at: 0, rows: Vec::new() })
    }
}

/// Where a page is read into.
struct Room<'a> {
    index: &'a mut Vec<u8>,
    places: &'a mut Vec<Place>,
    rows: &'a mut Vec<u8>,
}

impl Room<'_> {
    /// Visits the wanted rows of a page; `None` when something does not check.
    fn read_page(
        &mut self,
        file: &File,
        page: &Page,
        ids: Option<&[EndpointId]>,
        visit: &mut impl FnMut(EndpointId, &[u8]) -> Result<(), codec::Error>,
    ) -> Option<()> {
        let rows_bytes = page.bytes.checked_sub(page.index_bytes)?;
        fill(file, self.index, page.index_bytes, page.at)?;
        let places = page.places(self.index)?;
        self.places.clear();
        match ids {
            None => self.places.extend(places),
            Some(mut ids) => {
                for place in places {
                    ids = &ids[ids.partition_point(|id| *id < place.endpoint)..];
                    match ids.first() {
                        None => break,
                        Some(id) if *id == place.endpoint => self.places.push(place),
                        Some(_) => {}
                    }
                }
            }
        }
        let mut left = self.places.as_slice();
        while let Some(first) = left.first() {
            // Rows that stand close together are read at once.
            let mut end = first.offset + first.bytes;
            let close = left.iter().take_while(|p| {
                let is_close = p.offset <= end + GAP_BYTES_MAX;
                end = if is_close { p.offset + p.bytes } else { end };
                is_close
            });
            let (run, after) = left.split_at(close.count());
            if end > rows_bytes {
                return None;
            }
            fill(file, self.rows, end - first.offset, page.at + (page.index_bytes + first.offset) as u64)?;
            for place in run {
                let row = &self.rows[place.offset - first.offset..][..place.bytes];
                if !place.checks(row) {
                    return None;
                }
                visit(place.endpoint, row).ok()?;
            }
            left = after;
        }
        Some(())
    }
}

fn fill(file: &File, into: &mut Vec<u8>, bytes: usize, at: u64) -> Option<()> {
    into.resize(bytes, 0);
    file.read_exact_at(into, at).ok()
}

/// All rows of a frame, one after the other, a page in memory at a time.
#[derive(Debug)]
pub(super) struct Cursor {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
    directory: Directory,
    next_page: usize,
    index: Vec<u8>,
    places: Vec<Place>,
    at: usize,
    rows: Vec<u8>,
}

impl Cursor {
    /// Goes to the next row, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<(EndpointId, &[u8])>, Error> {
        while self.at == self.places.len() {
            if self.next_page == self.directory.pages() {
                return Ok(None);
            }
            let page = self.directory.page(self.next_page);
            self.load(&page).ok_or_else(|| self.damaged())?;
            self.next_page += 1;
        }
        let place = self.places[self.at];
        let row = self.rows.get(place.offset..).and_then(|rows| rows.get(..place.bytes)).filter(|row| place.checks(row));
        self.at += 1;
        match row {
            Some(row) => Ok(Some((place.endpoint, row))),
            None => Err(self.damaged()),
        }
    }

    fn load(&mut self, page: &Page) -> Option<()> {
        let rows_bytes = page.bytes.checked_sub(page.index_bytes)?;
        fill(&self.file, &mut self.index, page.index_bytes, page.at)?;
        self.places.clear();
        self.places.extend(page.places(&self.index)?);
        self.at = 0;
        fill(&self.file, &mut self.rows, rows_bytes, page.at + page.index_bytes as u64)
    }

    pub(super) fn damaged(&self) -> Error {
        Error::Damaged { path: self.path.clone(), offset: self.offset }
    }
}
