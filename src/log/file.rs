//! The log's segments on disk: append, fdatasync, read back, find what is torn and what is damaged.
//!
//! `log/00000000000000000001.log` begins with the frame of that position: 16 bytes of head (`SBLOG`, version, first position), then
//! frames. Invalid bytes at the very end of the last segment are a torn write: cut off and reported. Invalid bytes with a valid frame
//! behind them, or in an older segment, are damage: nothing is started on them and nothing is deleted; `repair` sets them aside.
//! A failed fdatasync is never tried again (what the page cache then holds is unknown): the process ends and reads the disk anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::failpoint;
use super::record::{Decoded, Frame, HEADER_BYTES, Kind, Position, Section, decode, encode};

const MAGIC: [u8; 8] = *b"SBLOG\0\0\x02";
const HEAD_BYTES: usize = 16;

/// A segment is followed by a new one when it has passed this, if nothing else was said ([`Log::in_segments_of`]).
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system said no.
    #[error("{action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What it answered.
        #[source]
        source: io::Error,
    },
    /// Bytes in the middle are not what was written.
    #[error(
        "{} is damaged at byte {offset}: frames from position {from} on cannot be read, yet later ones can; \
         nothing was changed. To set the damaged segment aside and go on without those frames, run: slowburn repair --accept-loss {from} --data-dir {}",
        path.display(), data_dir.display(), from = from.0
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The first position that is lost.
        from: Position,
        /// For the command.
        data_dir: PathBuf,
    },
    /// The segment was written by a newer version.
    #[error("{} is not a log segment of version 2: it was written by another version of slowburn, or is another file", path.display())]
    Version {
        /// The segment.
        path: PathBuf,
    },
    /// Segments are missing.
    #[error("the log has no frame {from}: the segment before {} is missing", path.display(), from = from.0)]
    Missing {
        /// The segment after the hole.
        path: PathBuf,
        /// The first position that is missing.
        from: Position,
    },
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// A torn write that was cut off when the log was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub path: PathBuf,
    /// The bytes cut off.
    pub bytes: u64,
}

/// The log, open for appending. There is one per data directory.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    segment: File,
    segment_path: PathBuf,
    segment_bytes: u64,
    segment_bytes_max: u64,
    next: Position,
    buffer: Vec<u8>,
}

impl Log {
    /// Opens the log in `data_dir/log`, cutting off a torn end. An empty folder becomes a log that begins at position 1.
    ///
    /// # Errors
    /// [`Error::Damaged`] and its siblings; nothing is changed then.
    pub fn open(data_dir: &Path) -> Result<(Self, Option<Torn>), Error> {
        let dir = data_dir.join("log");
        fs::create_dir_all(&dir).map_err(io_error("cannot create", &dir))?;
        sync_dir(data_dir)?;
        let segments = segments(&dir)?;
        let Some((first, path)) = segments.last() else {
            return Ok((Self::create(dir, Position(1))?, None));
        };
        let contents = read_segment(path)?;
        if contents.len() < HEAD_BYTES && segments.len() == 1 || contents.len() < HEAD_BYTES && !has_frames(&contents) {
            // A crash between creating a segment and writing its head.
            fs::remove_file(path).map_err(io_error("cannot remove", path))?;
            return Ok((Self::create(dir, *first)?, Some(Torn { path: path.clone(), bytes: contents.len() as u64 })));
        }
        check_head(&contents, path)?;
        let (next, end) = scan(&contents, *first, path, data_dir)?;
        let segment = OpenOptions::new().append(true).open(path).map_err(io_error("cannot open", path))?;
        let torn = (end < contents.len()).then(|| Torn { path: path.clone(), bytes: (contents.len() - end) as u64 });
        if torn.is_some() {
            segment.set_len(end as u64).map_err(io_error("cannot truncate", path))?;
            segment.sync_all().map_err(io_error("cannot sync", path))?;
        }
        Ok((Self { dir, segment, segment_path: path.clone(), segment_bytes: end as u64, segment_bytes_max: SEGMENT_BYTES, next, buffer: Vec::new() }, torn))
    }

    fn create(dir: PathBuf, first: Position) -> Result<Self, Error> {
        let (segment, segment_path) = create_segment(&dir, first)?;
        Ok(Self { dir, segment, segment_path, segment_bytes: HEAD_BYTES as u64, segment_bytes_max: SEGMENT_BYTES, next: first, buffer: Vec::new() })
    }

    /// It with segments of another size.
    #[must_use]
    pub fn in_segments_of(self, segment_bytes_max: u64) -> Self {
        Self { segment_bytes_max, ..self }
    }

    /// The position that the next frame gets.
    #[must_use]
    pub fn next(&self) -> Position {
        self.next
    }

    /// Adds a frame to what the next [`Log::commit`] writes, and names its position.
    pub fn stage(&mut self, sections: &[Section]) -> Position {
        let position = self.next;
        encode(&mut self.buffer, position, sections);
        self.next = position.next();
        position
    }

    /// Goes on at a later position; a gap frame stands for those between.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn skip_to(&mut self, position: Position) -> Result<(), Error> {
        put_gap(&mut self.buffer, self.next, Position(position.0 - 1));
        self.next = position;
        self.commit()
    }

    /// Writes the staged frames and waits until they are on disk.
    ///
    /// # Errors
    /// [`Error::Io`]; what is on disk is then unknown and the process must end.
    pub fn commit(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        failpoint::pass("before append");
        self.segment.write_all(&self.buffer).map_err(io_error("cannot append to", &self.segment_path))?;
        failpoint::pass("before fdatasync");
        self.segment.sync_data().map_err(io_error("cannot sync", &self.segment_path))?;
        failpoint::pass("after fdatasync");
        self.segment_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        if self.segment_bytes >= self.segment_bytes_max {
            (self.segment, self.segment_path) = create_segment(&self.dir, self.next)?;
            self.segment_bytes = HEAD_BYTES as u64;
        }
        Ok(())
    }
}

fn create_segment(dir: &Path, first: Position) -> Result<(File, PathBuf), Error> {
    let path = segment_path(dir, first);
    let mut file = OpenOptions::new().create_new(true).append(true).open(&path).map_err(io_error("cannot create", &path))?;
    file.write_all(&head(first)).map_err(io_error("cannot write", &path))?;
    file.sync_all().map_err(io_error("cannot sync", &path))?;
    sync_dir(dir)?;
    Ok((file, path))
}

fn head(first: Position) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..].copy_from_slice(&first.0.to_le_bytes());
    head
}

fn check_head(contents: &[u8], path: &Path) -> Result<(), Error> {
    if contents.get(..8) == Some(&MAGIC) { Ok(()) } else { Err(Error::Version { path: path.to_owned() }) }
}

fn segment_path(dir: &Path, first: Position) -> PathBuf {
    dir.join(format!("{:020}.log", first.0))
}

fn read_segment(path: &Path) -> Result<Vec<u8>, Error> {
    let mut contents = Vec::new();
    File::open(path).and_then(|mut f| f.read_to_end(&mut contents)).map_err(io_error("cannot read", path))?;
    Ok(contents)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("cannot sync", dir))
}

/// The segments of a folder with their first positions, in order.
///
/// # Errors
/// [`Error::Io`].
pub fn segments(dir: &Path) -> Result<Vec<(Position, PathBuf)>, Error> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(io_error("cannot list", dir)(e)),
    };
    for entry in entries {
        let path = entry.map_err(io_error("cannot list", dir))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if let Some(first) = name.strip_suffix(".log").and_then(|n| n.parse().ok()) {
            found.push((Position(first), path));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a valid frame begins anywhere in the bytes.
fn has_frames(bytes: &[u8]) -> bool {
    (0..bytes.len().saturating_sub(HEADER_BYTES)).any(|at| matches!(decode(&bytes[at..]), Decoded::Frame(..)))
}

/// The position after the last frame, and the byte after it. Fails if a valid frame stands behind invalid bytes.
fn scan(contents: &[u8], first: Position, path: &Path, data_dir: &Path) -> Result<(Position, usize), Error> {
    let (mut next, mut at) = (first, HEAD_BYTES);
    while at < contents.len() {
        match decode(&contents[at..]) {
            Decoded::Frame(frame, len) if frame.position == next => {
                next = frame.last_position().next();
                at += len;
            }
            _ if has_frames(&contents[at + 1..]) => return Err(damaged(path, at, next, data_dir)),
            _ => break,
        }
    }
    Ok((next, at))
}

fn damaged(path: &Path, at: usize, from: Position, data_dir: &Path) -> Error {
    Error::Damaged { path: path.to_owned(), offset: at as u64, from, data_dir: data_dir.to_owned() }
}

/// Reads the frames of a folder of segments in order.
#[derive(Debug)]
pub struct Reader {
    data_dir: PathBuf,
    segments: std::vec::IntoIter<(Position, PathBuf)>,
    contents: Vec<u8>,
    path: PathBuf,
    at: usize,
    next: Option<Position>,
    dense: bool,
    skip_before: Position,
}

impl Reader {
    /// The frames of `data_dir/log` from a position on (or from the first that is kept).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn log(data_dir: &Path, from: Position) -> Result<Self, Error> {
        Self::open(data_dir, "log", from, true)
    }

    /// The frames of `data_dir/archive` from a segment's first position on. It keeps what has no counts, so positions have holes.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn archive(data_dir: &Path, from: Position) -> Result<Self, Error> {
        Self::open(data_dir, "archive", from, false)
    }

    fn open(data_dir: &Path, folder: &str, from: Position, dense: bool) -> Result<Self, Error> {
        let mut all = segments(&data_dir.join(folder))?;
        let before = all.partition_point(|(first, _)| *first <= from).saturating_sub(1);
        all.drain(..before);
        Ok(Self {
            data_dir: data_dir.to_owned(),
            segments: all.into_iter(),
            contents: Vec::new(),
            path: PathBuf::new(),
            at: 0,
            next: None,
            dense,
            skip_before: from,
        })
    }

    fn read_next(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if self.at >= self.contents.len() {
                let Some((first, path)) = self.segments.next() else { return Ok(None) };
                self.contents = read_segment(&path)?;
                if self.contents.len() < HEAD_BYTES && self.segments.len() == 0 {
                    return Ok(None);
                }
                check_head(&self.contents, &path)?;
                if let Some(next) = self.next.filter(|next| self.dense && *next != first) {
                    return Err(Error::Missing { path, from: next });
                }
                (self.path, self.at, self.next) = (path, HEAD_BYTES, Some(first));
                continue;
            }
            let expected = self.next.unwrap_or_default();
            match decode(&self.contents[self.at..]) {
                Decoded::Frame(frame, len) if frame.position == expected || (!self.dense && frame.position >= expected) => {
                    self.at += len;
                    self.next = Some(frame.last_position().next());
                    if frame.position >= self.skip_before {
                        return Ok(Some(frame));
                    }
                }
                _ if self.segments.len() == 0 && !has_frames(&self.contents[self.at + 1..]) => return Ok(None),
                _ => return Err(damaged(&self.path, self.at, expected, &self.data_dir)),
            }
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Frame, Error>;

    /// The next frame; a torn end is the end; after an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        let item = self.read_next().transpose();
        if matches!(item, Some(Err(_))) {
            self.segments = Vec::new().into_iter();
            self.contents.clear();
            self.at = 0;
        }
        item
    }
}

/// The frames of the archive, then those of the log. A segment that a crash left in both counts once, as the log has it.
///
/// # Errors
/// [`Error::Io`].
pub fn archive_and_log(data_dir: &Path) -> Result<impl Iterator<Item = Result<Frame, Error>>, Error> {
    let first = segments(&data_dir.join("log"))?.first().map_or(Position(u64::MAX), |s| s.0);
    let archived = Reader::archive(data_dir, Position(0))?.filter(move |f| f.as_ref().map_or(true, |f| f.position < first));
    Ok(archived.chain(Reader::log(data_dir, Position(0))?))
}

/// Moves the frames of a closed segment into `archive/`, each with the sections that `kept` keeps of it or gives it, then deletes the segment. `kept` is told which frame
/// is the last.
///
/// # Errors
/// [`Error::Io`] or [`Error::Damaged`]; the segment is then still there.
pub fn archive_segment<E: From<Error>>(data_dir: &Path, path: &Path, mut kept: impl FnMut(Frame, bool) -> Result<Vec<Section>, E>) -> Result<(), E> {
    let (contents, dir) = (read_segment(path)?, data_dir.join("archive"));
    check_head(&contents, path)?;
    let first = Position(u64::from_le_bytes(contents[8..HEAD_BYTES].try_into().expect("a head has 16 bytes")));
    let (mut out, mut at) = (head(first).to_vec(), HEAD_BYTES);
    while at < contents.len() {
        let Decoded::Frame(frame, len) = decode(&contents[at..]) else { return Err(damaged(path, at, first, data_dir).into()) };
        at += len;
        let position = frame.position;
        let sections = kept(frame, at == contents.len())?;
        if !sections.is_empty() {
            encode(&mut out, position, &sections);
        }
    }
    fs::create_dir_all(&dir).map_err(io_error("cannot create", &dir))?;
    super::snapshot::write_whole(&segment_path(&dir, first), &out)?;
    fs::remove_file(path).map_err(io_error("cannot remove", path))?;
    Ok(sync_dir(&data_dir.join("log"))?)
}

/// Sets a damaged segment aside (as `.damaged`) and writes it again without the frames from `from` to the next readable one, with a gap frame in their place.
///
/// # Errors
/// [`Error::Io`]; or [`Error::Missing`] when the log is not damaged at that position.
pub fn repair(data_dir: &Path, from: Position) -> Result<PathBuf, Error> {
    let dir = data_dir.join("log");
    let all = segments(&dir)?;
    let not_there = || Error::Missing { path: dir.clone(), from };
    let index = all.partition_point(|(first, _)| *first <= from).checked_sub(1).ok_or_else(not_there)?;
    let (first, path) = &all[index];
    let contents = read_segment(path)?;
    let (mut next, mut at, mut out) = (*first, HEAD_BYTES, head(*first).to_vec());
    let mut lost_from = None;
    while at < contents.len() {
        match decode(&contents[at..]) {
            Decoded::Frame(frame, len) if frame.position >= next => {
                if frame.position > next {
                    put_gap(&mut out, next, Position(frame.position.0 - 1));
                }
                out.extend_from_slice(&contents[at..at + len]);
                next = frame.last_position().next();
                at += len;
            }
            _ => {
                lost_from.get_or_insert(next);
                at += 1;
            }
        }
    }
    if let Some((following, _)) = all.get(index + 1).filter(|(following, _)| *following > next) {
        lost_from.get_or_insert(next);
        put_gap(&mut out, next, Position(following.0 - 1));
    }
    if lost_from != Some(from) {
        return Err(not_there());
    }
    let aside = path.with_extension("log.damaged");
    fs::copy(path, &aside).map_err(io_error("cannot copy", path))?;
    File::open(&aside).and_then(|f| f.sync_all()).map_err(io_error("cannot sync", &aside))?;
    super::snapshot::write_whole(path, &out)?;
    Ok(aside)
}

fn put_gap(out: &mut Vec<u8>, from: Position, to: Position) {
    encode(out, from, &[Section { kind: Kind::GAP, bytes: to.0.to_le_bytes().to_vec() }]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(byte: u8) -> Vec<Section> {
        vec![Section { kind: Kind::RECORDS, bytes: vec![byte; 20] }]
    }

    fn written(dir: &Path, frames: u8) {
        let (mut log, torn) = Log::open(dir).unwrap();
        assert_eq!(torn, None);
        for byte in 0..frames {
            log.stage(&section(byte));
        }
        log.commit().unwrap();
    }

    fn read(dir: &Path) -> Vec<u64> {
        Reader::log(dir, Position(0)).unwrap().map(|f| f.unwrap().position.0).collect()
    }

    #[test]
    fn every_cut_of_the_last_frames_leaves_the_whole_ones_and_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 3);
        let path = segment_path(&dir.path().join("log"), Position(1));
        let whole = fs::read(&path).unwrap();
        let frame = (whole.len() - HEAD_BYTES) / 3;
        for cut in HEAD_BYTES..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut log, torn) = Log::open(dir.path()).unwrap();
            let kept = (cut - HEAD_BYTES) / frame;
            assert_eq!(torn.map_or(0, |t| t.bytes), ((cut - HEAD_BYTES) % frame) as u64);
            assert_eq!(log.stage(&section(9)).0, kept as u64 + 1);
            log.commit().unwrap();
            assert_eq!(read(dir.path()).len(), kept + 1);
        }
    }

    #[test]
    fn damage_in_the_middle_is_refused_by_name_and_repaired_only_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 5);
        let path = segment_path(&dir.path().join("log"), Position(1));
        let mut bytes = fs::read(&path).unwrap();
        let frame = (bytes.len() - HEAD_BYTES) / 5;
        bytes[HEAD_BYTES + frame + 20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let text = Log::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("slowburn repair --accept-loss 2 --data-dir"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was changed");
        assert!(Reader::log(dir.path(), Position(0)).unwrap().any(|f| f.is_err()));
        assert!(repair(dir.path(), Position(3)).is_err(), "another position is not what was accepted");
        let aside = repair(dir.path(), Position(2)).unwrap();
        assert_eq!(fs::read(aside).unwrap(), bytes);
        assert_eq!(read(dir.path()), [1, 2, 3, 4, 5], "position 2 is now a gap");
        assert_eq!(Log::open(dir.path()).unwrap().0.next(), Position(6));
    }

    #[test]
    fn a_reader_starts_where_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 5);
        let positions: Vec<u64> = Reader::log(dir.path(), Position(4)).unwrap().map(|f| f.unwrap().position.0).collect();
        assert_eq!(positions, [4, 5]);
    }
}
