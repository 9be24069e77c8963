//! The log read back, and how a torn write is told from damage.
//!
//! Bytes that cannot be read are a torn write when they stand in the last segment and no head of a frame behind them says that they had been synced when it was
//! written ([`super::record`]): nothing in them had been acknowledged, whichever of their sectors came to be on disk. Anything else is damage: nothing is started on
//! it and nothing is deleted; `repair` sets it aside.

use std::path::{Path, PathBuf};

use super::file::{Error, HEAD_BYTES, head, read_segment, segments};
use super::record::{Decoded, Frame, HEADER_BYTES, Position, decode, decode_head, skim};

/// Whether bytes that begin with what should be the frame `next` had been synced once.
fn was_synced(bytes: &[u8], next: Position) -> bool {
    let last = bytes.len().saturating_sub(HEADER_BYTES - 1);
    (0..last).any(|at| decode_head(&bytes[at..]).is_some_and(|head| head.synced_before > next))
}

/// Whether these are the first bytes of the segment.
///
/// # Errors
/// [`Error::Version`], or [`Error::Damaged`] when only the head is wrong.
pub(super) fn check_head(contents: &[u8], first: Position, path: &Path, data_dir: &Path) -> Result<(), Error> {
    if contents.get(..HEAD_BYTES) == Some(&head(first)) {
        return Ok(());
    }
    match contents.get(HEAD_BYTES..).and_then(decode_head) {
        Some(_) => Err(damaged(path, 0, first, data_dir)),
        None => Err(Error::Version { path: path.to_owned() }),
    }
}

/// The position after the last frame of the last segment, and the byte after it.
///
/// # Errors
/// [`Error::Damaged`] when what follows is more than a torn write.
pub(super) fn find_end(contents: &[u8], first: Position, path: &Path, data_dir: &Path) -> Result<(Position, usize), Error> {
    let (mut next, mut at) = (first, HEAD_BYTES);
    while at < contents.len() {
        match skim(&contents[at..]) {
            Some((position, last, len)) if position == next => {
                next = last.next();
                at += len;
            }
            _ if was_synced(&contents[at..], next) => return Err(damaged(path, at, next, data_dir)),
            _ => break,
        }
    }
    Ok((next, at))
}

pub(super) fn damaged(path: &Path, at: usize, from: Position, data_dir: &Path) -> Error {
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

    /// The archive is written whole.
    fn may_be_torn(&self) -> bool {
        self.dense && self.segments.len() == 0
    }

    fn read_next(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if self.at >= self.contents.len() {
                let Some((first, path)) = self.segments.next() else { return Ok(None) };
                self.contents = read_segment(&path)?;
                if self.may_be_torn() && self.contents.len() <= HEAD_BYTES && self.contents != head(first) {
                    self.contents.clear();
                    return Ok(None);
                }
                check_head(&self.contents, first, &path, &self.data_dir)?;
                if let Some(next) = self.next.filter(|next| self.dense && *next != first) {
                    return Err(Error::Missing { path, from: next });
                }
                (self.path, self.at, self.next) = (path, HEAD_BYTES, Some(first));
                continue;
            }
            let expected = self.next.unwrap_or_default();
            // What is not asked for is passed over without a copy of it.
            if expected < self.skip_before
                && let Some((_, last, len)) = skim(&self.contents[self.at..]).filter(|(position, ..)| *position == expected)
            {
                self.at += len;
                self.next = Some(last.next());
                continue;
            }
            match decode(&self.contents[self.at..]) {
                Decoded::Frame(frame, len) if frame.position == expected || (!self.dense && frame.position >= expected) => {
                    self.at += len;
                    self.next = Some(frame.last_position().next());
                    if frame.position >= self.skip_before {
                        return Ok(Some(frame));
                    }
                }
                _ if self.may_be_torn() && !was_synced(&self.contents[self.at..], expected) => return Ok(None),
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
    let mut archived = Reader::archive(data_dir, Position(0))?;
    archived.segments = archived.segments.filter(|(begins, _)| *begins < first).collect::<Vec<_>>().into_iter();
    Ok(archived.chain(Reader::log(data_dir, Position(0))?))
}
