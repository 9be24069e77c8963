//! The log's segments on disk: append, fdatasync, go on in a new segment.
//!
//! `log/00000000000000000001.log` begins with the frame of that position: 16 bytes of head (`SBLOG`, version, first position), then
//! frames. A torn write at the end of the last segment is cut off and reported when the log is opened; damage is refused ([`super::reader`] tells them apart).
//! A write that finds no room on the disk is taken back, and the log goes on when there is room. A failed fdatasync is never tried again (what the page cache
//! then holds is unknown): the process ends and reads the disk anew.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub use super::archive::{archive_segment, repair};
use super::disk_ops::{self, DiskFile};
use super::failpoint;
pub use super::reader::{Reader, archive_and_log};
use super::reader::{check_head, find_end};
use super::record::{Kind, Position, Section, encode};

const MAGIC: [u8; 8] = *b"SBLOG\0\0\x03";
pub(super) const HEAD_BYTES: usize = 16;

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
    /// There is no room on the disk; what was to be written was taken back, and it can be tried again.
    #[error("there is no room on the disk for {}", path.display())]
    NoRoom {
        /// What was to be written.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The log failed before; what is on disk is unknown.
    #[error("the log in {} failed before: it has to be opened anew", path.display())]
    Failed {
        /// Its segment.
        path: PathBuf,
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
    /// The segment was written by another version.
    #[error("{} is not a log segment of version 3: it was written by another version of slowburn, or is another file", path.display())]
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

/// The error of a write that may find no room and left nothing behind.
pub(crate) fn write_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| if disk_ops::is_no_room(&source) { Error::NoRoom { path, source } } else { Error::Io { action, path, source } }
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
    segment: DiskFile,
    segment_path: PathBuf,
    segment_bytes: u64,
    segment_bytes_max: u64,
    next: Position,
    /// Frames before this position are durable.
    synced_before: Position,
    /// Staged frames, not written yet, from this position on.
    buffer: Vec<u8>,
    staged_from: Position,
    failed: bool,
}

impl Log {
    /// Opens the log in `data_dir/log`, cutting off a torn end. An empty folder becomes a log that begins at position 1.
    ///
    /// # Errors
    /// [`Error::Damaged`] and its siblings; nothing is changed then.
    pub fn open(data_dir: &Path) -> Result<(Self, Option<Torn>), Error> {
        let dir = data_dir.join("log");
        disk_ops::create_dir_all(&dir).map_err(write_error("cannot create", &dir))?;
        sync_dir(data_dir)?;
        let segments = segments(&dir)?;
        let Some((first, path)) = segments.last() else {
            return Ok((Self::create(dir, Position(1))?, None));
        };
        let contents = read_segment(path)?;
        if contents.len() <= HEAD_BYTES && contents != head(*first) {
            // A crash before the head was on disk: frames come after that.
            disk_ops::remove_file(path).map_err(io_error("cannot remove", path))?;
            let torn = Some(Torn { path: path.clone(), bytes: contents.len() as u64 });
            // It goes on in the segment before, which is whole: a disk that is full takes no new one.
            let log = if segments.len() > 1 { Self::open(data_dir)?.0 } else { Self::create(dir, *first)? };
            return Ok((log, torn));
        }
        check_head(&contents, *first, path, data_dir)?;
        let (next, end) = find_end(&contents, *first, path, data_dir)?;
        let segment = DiskFile::open(path).map_err(io_error("cannot open", path))?;
        let torn = (end < contents.len()).then(|| Torn { path: path.clone(), bytes: (contents.len() - end) as u64 });
        if torn.is_some() {
            segment.truncate(end as u64).map_err(io_error("cannot truncate", path))?;
        }
        // What a process that was killed wrote may be read and yet not be durable; everything from here on rests on it.
        segment.sync_all().map_err(io_error("cannot sync", path))?;
        sync_dir(&dir)?;
        Ok((Self::of(dir, segment, path.clone(), end as u64, next), torn))
    }

    fn create(dir: PathBuf, first: Position) -> Result<Self, Error> {
        let (segment, path) = create_segment(&dir, first)?;
        Ok(Self::of(dir, segment, path, HEAD_BYTES as u64, first))
    }

    fn of(dir: PathBuf, segment: DiskFile, segment_path: PathBuf, segment_bytes: u64, next: Position) -> Self {
        let segment_bytes_max = SEGMENT_BYTES;
        let buffer = Vec::new();
        Self { dir, segment, segment_path, segment_bytes, segment_bytes_max, next, synced_before: next, buffer, staged_from: next, failed: false }
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

    /// Adds a frame to what the next [`Log::write`] writes, and names its position.
    pub fn stage(&mut self, sections: &[Section]) -> Position {
        let position = self.next;
        self.stage_as(position, sections);
        self.next = position.next();
        position
    }

    fn stage_as(&mut self, position: Position, sections: &[Section]) {
        if self.buffer.is_empty() {
            self.staged_from = position;
        }
        // A sum of billions of frames without a sync does not come about.
        let unsynced_before = u32::try_from(position.0 - self.synced_before.0).unwrap_or(u32::MAX);
        encode(&mut self.buffer, position, unsynced_before, sections);
    }

    /// Goes on at a later position; a gap frame stands for those between.
    ///
    /// # Errors
    /// [`Error`].
    pub fn skip_to(&mut self, position: Position) -> Result<(), Error> {
        self.stage_as(self.next, &[gap_to(Position(position.0 - 1))]);
        self.next = position;
        self.commit()
    }

    /// Writes the staged frames; they are durable after [`Log::commit`].
    ///
    /// # Errors
    /// [`Error::NoRoom`]: the staged frames are gone and their positions free again, and the log can go on. After any other error the process must end.
    pub fn write(&mut self) -> Result<(), Error> {
        if self.failed {
            return Err(Error::Failed { path: self.segment_path.clone() });
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.try_write();
        self.failed = written.as_ref().is_err_and(|e| !matches!(e, Error::NoRoom { .. }));
        written
    }

    fn try_write(&mut self) -> Result<(), Error> {
        // All of a segment is durable before the next one begins.
        if self.segment_bytes >= self.segment_bytes_max && self.staged_from == self.synced_before {
            match create_segment(&self.dir, self.staged_from) {
                Ok((segment, path)) => (self.segment, self.segment_path, self.segment_bytes) = (segment, path, HEAD_BYTES as u64),
                Err(error) => {
                    self.unstage();
                    return Err(error);
                }
            }
        }
        failpoint::pass("before append");
        if let Err(source) = self.segment.append(&self.buffer) {
            self.unstage();
            let error = write_error("cannot append to", &self.segment_path)(source);
            if matches!(error, Error::NoRoom { .. }) {
                // Durably, so that no crash brings back what was refused.
                let path = &self.segment_path;
                self.segment.truncate(self.segment_bytes).map_err(io_error("cannot truncate", path))?;
                self.segment.sync_all().map_err(io_error("cannot sync", path))?;
            }
            return Err(error);
        }
        self.segment_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn unstage(&mut self) {
        self.buffer.clear();
        self.next = self.staged_from;
    }

    /// Writes the staged frames and waits until all that was written is on disk.
    ///
    /// # Errors
    /// As for [`Log::write`]: with [`Error::NoRoom`] frames written before are not on disk yet.
    pub fn commit(&mut self) -> Result<(), Error> {
        self.write()?;
        if self.synced_before == self.next {
            return Ok(());
        }
        failpoint::pass("before fdatasync");
        let synced = self.segment.sync_data();
        self.failed = synced.is_err();
        synced.map_err(io_error("cannot sync", &self.segment_path))?;
        failpoint::pass("after fdatasync");
        self.synced_before = self.next;
        Ok(())
    }
}

fn create_segment(dir: &Path, first: Position) -> Result<(DiskFile, PathBuf), Error> {
    let path = segment_path(dir, first);
    let mut file = DiskFile::create_new(&path).map_err(write_error("cannot create", &path))?;
    if let Err(source) = file.append(&head(first)) {
        // Else it would stand in the way of the next try.
        disk_ops::remove_file(&path).map_err(io_error("cannot remove", &path))?;
        return Err(write_error("cannot write", &path)(source));
    }
    file.sync_all().map_err(io_error("cannot sync", &path))?;
    sync_dir(dir)?;
    Ok((file, path))
}

pub(super) fn head(first: Position) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..].copy_from_slice(&first.0.to_le_bytes());
    head
}

/// What stands for the frames up to and with a position.
pub(super) fn gap_to(last: Position) -> Section {
    Section { kind: Kind::GAP, bytes: last.0.to_le_bytes().to_vec() }
}

pub(super) fn segment_path(dir: &Path, first: Position) -> PathBuf {
    dir.join(format!("{:020}.log", first.0))
}

pub(super) fn read_segment(path: &Path) -> Result<Vec<u8>, Error> {
    let mut contents = Vec::new();
    File::open(path).and_then(|mut f| f.read_to_end(&mut contents)).map_err(io_error("cannot read", path))?;
    Ok(contents)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    disk_ops::sync_dir(dir).map_err(io_error("cannot sync", dir))
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
            log.commit().unwrap();
        }
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

    #[test]
    fn one_write_whose_parts_came_to_disk_in_any_order_is_torn_and_not_damaged() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 2);
        let (mut log, _) = Log::open(dir.path()).unwrap();
        for byte in 0..3 {
            log.stage(&section(byte));
            // Several writes before one sync are one as far as a power cut goes.
            log.write().unwrap();
        }
        log.commit().unwrap();
        let path = segment_path(&dir.path().join("log"), Position(1));
        let mut bytes = fs::read(&path).unwrap();
        let frame = (bytes.len() - HEAD_BYTES) / 5;
        bytes[HEAD_BYTES + 2 * frame..][..frame].fill(0);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read(dir.path()), [1, 2]);
        let (log, torn) = Log::open(dir.path()).unwrap();
        assert_eq!((log.next(), torn.unwrap().bytes), (Position(3), 3 * frame as u64));
    }

    #[test]
    fn a_damaged_head_is_refused_and_repaired_without_loss() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 3);
        let path = segment_path(&dir.path().join("log"), Position(1));
        let whole = fs::read(&path).unwrap();
        for at in 0..HEAD_BYTES {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(Log::open(dir.path()), Err(Error::Damaged { offset: 0, from: Position(1), .. })));
            repair(dir.path(), Position(1)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn garbage_is_read_once_whatever_lengths_it_pretends() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), 1);
        let path = segment_path(&dir.path().join("log"), Position(1));
        let mut bytes = fs::read(&path).unwrap();
        // Read as a head at any eighth byte, it claims a megabyte that is there.
        bytes.extend([0, 0, 16, 0, 0, 0, 0, 0].repeat(8 << 17));
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Log::open(dir.path()).unwrap().1.unwrap().bytes, 8 << 20);
    }
}
