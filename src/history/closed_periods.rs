//! Closed periods on disk: the durable truth of history.
//!
//! `history/minute/START.history` holds a day of minutes, `quarter/` a day of quarters of an hour, `hour/` 32 days of hours, `day/` 512 days of days. A file is a sequence of frames, each one period's rows
//! sorted by endpoint. Late data are a further frame of the same period; a frame is named by the log position that closed it, and a name counts once.
//! Frames are synced, and followed by a mark that says so, before the snapshot that forgets their rows: what cannot be read behind the last mark is a torn end and is written
//! again from the log; before it, it is damage. Retention deletes whole files.
//!
//! The bytes of a frame are in `layout`, reading them in [`super::reader`].

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::layout::{MARK_BYTES, Pages, is_mark_at, mark};
use super::open_slots::{Row, put_row};
use super::reader::scan_file;
pub use super::reader::{Reader, Reading, Wanted};
use crate::log::Position;
use crate::log::disk_ops::{self, DiskFile};
use crate::log::failpoint;
use crate::log::file::{Error as LogError, io_error, sync_dir, write_error};
use crate::time::{Tier, Timestamp};

/// Why history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system said no.
    #[error(transparent)]
    Io(#[from] LogError),
    /// Bytes are not what was written.
    #[error("{} is damaged at byte {offset}; the other files are not affected. To see what can be saved, stop the server and run: slowburn repair", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
    /// Only what says that the bytes before were synced; whatever reads passes over it.
    #[error("{} has {marks} damaged marks: no count is lost. To have them written again, run: slowburn repair", path.display())]
    Marks {
        /// The file.
        path: PathBuf,
        /// How many.
        marks: usize,
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
    reader: Reader,
    open: HashMap<PathBuf, (DiskFile, u64)>,
    /// Those with frames behind their last mark.
    unsynced: Vec<PathBuf>,
    /// Where the last marks stood when the files were opened.
    durable_to: HashMap<PathBuf, u64>,
}

/// How long a file of a tier reaches, in milliseconds.
pub(super) fn file_ms(tier: Tier) -> i64 {
    match tier {
        Tier::Minute | Tier::Quarter => 86_400_000,
        Tier::Hour => 32 * 86_400_000,
        Tier::Day => 512 * 86_400_000,
    }
}

/// Where the file that holds a period begins.
pub(super) fn file_start(tier: Tier, period: Timestamp) -> i64 {
    period.0.div_euclid(file_ms(tier)) * file_ms(tier)
}

/// The file that holds a period.
pub(super) fn file_path(dir: &Path, tier: Tier, period: Timestamp) -> PathBuf {
    dir.join(tier.name()).join(format!("{:015}.history", file_start(tier, period)))
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
        let reader = Reader::new(data_dir);
        sync_dir(&dir)?;
        sync_dir(data_dir)?;
        let mut files = Self { reader, dir, open: HashMap::new(), unsynced: Vec::new(), durable_to: HashMap::new() };
        Tier::ALL.into_iter().try_for_each(|tier| files.forget_roll_up(tier))?;
        Ok(files)
    }

    /// Removes what a roll-up that was cut off left: it begins anew, and the room may be missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn forget_roll_up(&mut self, tier: Tier) -> Result<(), Error> {
        let path = self.reader.waiting_path(tier);
        if path.exists() {
            disk_ops::remove_file(&path).map_err(io_error("cannot remove", &path))?;
        }
        Ok(())
    }

    /// Appends a frame; durable after [`Files::sync`].
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// When a period has more than 4 GiB of rows.
    pub fn append(&mut self, tier: Tier, period: Timestamp, name: Position, rows: &[Row]) -> Result<Block, Error> {
        let (mut pages, mut body) = (Pages::default(), Vec::new());
        for row in rows {
            pages.push(row.endpoint, &mut body, |out| put_row(out, row)).expect("memory takes what is far below 4 GiB");
        }
        let mut frame = pages.finish(period, name, &mut body).expect("memory takes what is far below 4 GiB");
        frame.extend_from_slice(&body);
        self.append_bytes(tier, period, name, &frame, None)
    }

    /// Appends a frame whose body may wait in a file of its own.
    pub(super) fn append_bytes(&mut self, tier: Tier, period: Timestamp, name: Position, head: &[u8], body: Option<&File>) -> Result<Block, Error> {
        let path = file_path(&self.dir, tier, period);
        failpoint::pass("before history write");
        let (file, end) = self.file(&path)?;
        let offset = *end;
        match append_frame(file, head, body) {
            Ok(bytes) => *end += bytes,
            Err(source) => {
                file.truncate(offset).map_err(io_error("cannot truncate", &path))?;
                return Err(write_error("cannot append to", &path)(source).into());
            }
        }
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

    /// Whether a frame that the index knows is there. A power cut may keep the one and not the other. One that was durable is there even when it is damaged: the log may have
    /// only a part of what it counts, and whoever reads it is told.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn holds(&mut self, block: &Block) -> Result<bool, Error> {
        let path = file_path(&self.dir, block.tier, block.period);
        let end = self.file(&path)?.1;
        let was_durable = self.durable_to.get(&path).is_some_and(|to| block.offset < *to);
        Ok(block.offset < end && (was_durable || self.reader.begin().each(block, &Wanted::All, |_, _| Ok(())).is_ok()))
    }

    /// Cuts off what a power cut left torn behind the last marks, from the first frame on that does not check; nothing else. All of it is in the log behind the newest snapshot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn cut_torn(&mut self) -> Result<(), Error> {
        for tier in Tier::ALL {
            for (_, path) in files_of(&self.dir, tier)? {
                let file = File::open(&path).map_err(io_error("cannot open", &path))?;
                if let Some(at) = last_mark(&path, &file)? {
                    self.durable_to.insert(path, at);
                    continue;
                }
                let mut blocks = Vec::new();
                let scan = scan_file(&path, &file, |directory, offset| blocks.push(directory.block(tier, offset)))?;
                let mut reading = self.reader.begin();
                let behind = blocks.iter().skip_while(|block| block.offset < scan.synced_to);
                let unreadable = behind.filter(|block| reading.each(block, &Wanted::All, |_, _| Ok(())).is_err()).map(|block| block.offset).min();
                let torn = scan.torn.into_iter().chain(unreadable).min();
                self.durable_to.insert(path.clone(), scan.synced_to);
                let (file, end) = self.file(&path)?;
                if let Some(from) = torn {
                    file.truncate(from).map_err(io_error("cannot truncate", &path))?;
                    file.sync_all().map_err(io_error("cannot sync", &path))?;
                    *end = from;
                }
                // Whole frames may be in memory only, if a process was killed before it could sync them.
                self.unsynced.push(path);
            }
        }
        Ok(())
    }

    /// Makes all appended frames durable, and says so in their files.
    ///
    /// # Errors
    /// [`LogError::NoRoom`]: it can be tried again. Otherwise [`Error::Io`]; the process must then end.
    pub fn sync(&mut self) -> Result<(), Error> {
        while let Some(path) = self.unsynced.last().cloned() {
            let (file, end) = self.file(&path)?;
            file.sync_data().map_err(io_error("cannot sync", &path))?;
            if *end > 0 && last_mark(&path, file.file())?.is_none() {
                if let Err(source) = file.append(&mark(*end)) {
                    file.truncate(*end).map_err(io_error("cannot truncate", &path))?;
                    return Err(write_error("cannot append to", &path)(source).into());
                }
                *end += MARK_BYTES as u64;
                file.sync_data().map_err(io_error("cannot sync", &path))?;
            }
            self.unsynced.pop();
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
                self.unsynced.retain(|unsynced| *unsynced != path);
                disk_ops::remove_file(&path).map_err(io_error("cannot remove", &path))?;
                gone.push(path);
            }
        }
        Ok(gone)
    }
}

/// Appends a frame whose body may wait in a file of its own; says how long it is.
fn append_frame(file: &mut DiskFile, head: &[u8], body: Option<&File>) -> std::io::Result<u64> {
    file.append(head)?;
    let mut bytes = head.len() as u64;
    if let Some(mut body) = body {
        let mut part = vec![0; 1 << 16];
        loop {
            let read = body.read(&mut part)?;
            if read == 0 {
                break;
            }
            file.append(&part[..read])?;
            bytes += read as u64;
        }
    }
    Ok(bytes)
}

/// Where the mark at the end of a file stands, if there is one.
fn last_mark(path: &Path, file: &File) -> Result<Option<u64>, Error> {
    let len = file.metadata().map_err(io_error("cannot read", path))?.len();
    let Some(at) = len.checked_sub(MARK_BYTES as u64) else { return Ok(None) };
    Ok(is_mark_at(file, at).map_err(io_error("cannot read", path))?.then_some(at))
}

pub(super) fn files_of(dir: &Path, tier: Tier) -> Result<Vec<(i64, PathBuf)>, Error> {
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

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::counting::{Cell, Outcome, Span, Tally};
    use crate::endpoint::EndpointId;
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
        files.sync().unwrap();
        let b = files.append(Tier::Minute, Timestamp(120_000), Position(6), &[row(1)]).unwrap();
        let reader = Reader::new(dir.path());
        assert_eq!(reader.blocks(Tier::Minute).unwrap(), [a, b]);
        assert_eq!(reader.row(&a, EndpointId(9)).unwrap(), Some(row(9)));
        assert_eq!(reader.row(&b, EndpointId(9)).unwrap(), None);
        let path = file_path(&dir.path().join("history"), Tier::Minute, Timestamp(0));
        let whole = fs::read(&path).unwrap();
        let begins = usize::try_from(b.offset).unwrap();
        // Cut short, or of the right length with a bit of any byte wrong.
        let cuts = (begins + 1..whole.len()).map(|cut| whole[..cut].to_vec());
        let flips = (begins..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            bytes
        });
        for torn in cuts.chain(flips) {
            fs::write(&path, &torn).unwrap();
            let mut files = Files::open(dir.path()).unwrap();
            files.cut_torn().unwrap();
            assert_eq!(reader.blocks(Tier::Minute).unwrap(), [a]);
            assert_eq!(files.append(Tier::Minute, Timestamp(120_000), Position(6), &[row(1)]).unwrap(), b);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn what_was_synced_is_never_cut_off_whichever_byte_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        for name in [5, 6] {
            files.append(Tier::Minute, Timestamp(60_000), Position(name), &[row(1), row(9)]).unwrap();
            files.sync().unwrap();
        }
        let reader = Reader::new(dir.path());
        let path = file_path(&dir.path().join("history"), Tier::Minute, Timestamp(0));
        let (whole, blocks) = (fs::read(&path).unwrap(), reader.blocks(Tier::Minute).unwrap());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            Files::open(dir.path()).unwrap().cut_torn().unwrap();
            let left = fs::read(&path).unwrap();
            if at < whole.len() - MARK_BYTES {
                assert_eq!(left, bytes, "byte {at}");
                let found = reader.blocks(Tier::Minute);
                let is_mark = (blocks[1].offset - MARK_BYTES as u64..blocks[1].offset).contains(&(at as u64));
                let reads = |f: &[Block]| f.iter().all(|b| reader.rows_where(b, |_| true).is_ok());
                // Of a mark nothing is lost; any other byte is met by whoever reads.
                assert!(found.as_ref().map_or(!is_mark, |f| *f == blocks && reads(f) == is_mark), "byte {at}");
                assert!(!reader.verify().unwrap().1.is_empty(), "byte {at}");
            } else {
                // Of the last mark nothing is lost, and the next sync puts another in its place.
                assert_eq!(left, whole[..whole.len() - MARK_BYTES], "byte {at}");
                let mut files = Files::open(dir.path()).unwrap();
                files.cut_torn().unwrap();
                files.sync().unwrap();
                assert_eq!(fs::read(&path).unwrap(), whole, "byte {at}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_never_silent() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        let rows: Vec<Row> = (0..130).map(|n| row(2 * n + 1)).collect();
        let block = files.append(Tier::Hour, Timestamp(0), Position(5), &rows).unwrap();
        let path = file_path(&dir.path().join("history"), Tier::Hour, Timestamp(0));
        let whole = fs::read(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let (reader, mut found_by_one) = (Reader::new(dir.path()), 0);
        for bit in 0..whole.len() * 8 {
            let byte = (bit / 8) as u64;
            file.write_all_at(&[whole[bit / 8] ^ (1 << (bit % 8))], byte).unwrap();
            assert!(reader.begin().each(&block, &Wanted::All, |_, _| Ok(())).is_err(), "bit {bit}");
            let mut cursor_says = reader.begin().cursor(&block);
            while let Ok(cursor) = &mut cursor_says {
                match cursor.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("bit {bit}"),
                    Err(e) => cursor_says = Err(e),
                }
            }
            // Whoever reads one row or a few meets the bit, or has the same answer.
            for id in [1, 3, 257, 259, 2] {
                match reader.row(&block, EndpointId(id)) {
                    Ok(found) => assert_eq!(found, (id % 2 == 1).then(|| row(id)), "bit {bit}"),
                    Err(_) => found_by_one += 1,
                }
            }
            let few = Wanted::These([0, 1, 5, 255, 257, 400].map(EndpointId).to_vec());
            let mut found = Vec::new();
            if reader.begin().each_row(&block, &few, |r| found.push(r)).is_ok() {
                assert_eq!(found, [1, 5, 255, 257].map(row), "bit {bit}");
            }
            file.write_all_at(&[whole[bit / 8]], byte).unwrap();
        }
        assert!(found_by_one > 0);
        let mut other = block;
        other.name = Position(6);
        assert!(reader.row(&other, EndpointId(1)).is_err(), "another frame than the index says");
    }

    #[test]
    fn any_choice_of_rows_is_what_filtering_all_gives() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        // More pages than the first read of a directory takes in.
        let rows: Vec<Row> = (0..40_000).map(|n| row(3 * n + 2)).collect();
        let block = files.append(Tier::Hour, Timestamp(0), Position(5), &rows).unwrap();
        let reader = Reader::new(dir.path());
        for step in [1, 2, 3, 50, 1_000, 60_000] {
            let ids: Vec<EndpointId> = (0..120_010).step_by(step).map(EndpointId).collect();
            let wanted = Wanted::These(ids);
            let mut found = Vec::new();
            reader.begin().each_row(&block, &wanted, |r| found.push(r)).unwrap();
            let filtered: Vec<Row> = rows.iter().filter(|r| wanted.contains(r.endpoint)).cloned().collect();
            assert_eq!(found, filtered, "every {step}");
        }
        assert_eq!(reader.rows_where(&block, |_| true).unwrap(), rows);
        assert_eq!(reader.blocks(Tier::Hour).unwrap(), [block]);
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
