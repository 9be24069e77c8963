//! What becomes of segments: old ones go to the archive, which keeps what was decided and forgets what was counted; damaged ones are set aside and written again without
//! what cannot be read, when somebody has accepted the loss.

use std::path::{Path, PathBuf};

use super::disk_ops::{self, DiskFile};
use super::file::{Error, HEAD_BYTES, gap_to, head, io_error, read_segment, segment_path, segments, sync_dir, write_error};
use super::reader::{check_head, damaged};
use super::record::{Decoded, Frame, Position, Section, decode, encode};
use super::snapshot::write_whole;

/// Moves the frames of a closed segment into `archive/`, each with the sections that `kept` keeps of it or gives it, then deletes the segment. `kept` is told which frame
/// is the last.
///
/// # Errors
/// [`Error`]; the segment is then still there.
pub fn archive_segment<E: From<Error>>(
    data_dir: &Path,
    (first, path): (Position, &Path),
    mut kept: impl FnMut(Frame, bool) -> Result<Vec<Section>, E>,
) -> Result<(), E> {
    let (contents, dir) = (read_segment(path)?, data_dir.join("archive"));
    check_head(&contents, first, path, data_dir)?;
    let (mut out, mut at, mut next) = (head(first).to_vec(), HEAD_BYTES, first);
    while at < contents.len() {
        let Decoded::Frame(frame, len) = decode(&contents[at..]) else { return Err(damaged(path, at, next, data_dir).into()) };
        at += len;
        next = frame.last_position().next();
        let position = frame.position;
        let sections = kept(frame, at == contents.len())?;
        if !sections.is_empty() {
            encode(&mut out, position, 0, &sections);
        }
    }
    disk_ops::create_dir_all(&dir).map_err(write_error("cannot create", &dir))?;
    sync_dir(data_dir)?;
    write_whole(&segment_path(&dir, first), &out)?;
    disk_ops::remove_file(path).map_err(io_error("cannot remove", path))?;
    Ok(sync_dir(&data_dir.join("log"))?)
}

/// Sets a damaged segment aside (as `.damaged`) and writes it again without the frames from `from` to the next readable one, with a gap frame in their place.
///
/// # Errors
/// [`Error::Io`]; or [`Error::Missing`] when neither log nor archive is damaged at that position.
pub fn repair(data_dir: &Path, from: Position) -> Result<PathBuf, Error> {
    for folder in ["log", "archive"] {
        let all = segments(&data_dir.join(folder))?;
        let Some(index) = all.partition_point(|(first, _)| *first <= from).checked_sub(1) else { continue };
        let (first, path) = &all[index];
        let contents = read_segment(path)?;
        // The archive has holes anyway.
        let following = all.get(index + 1).map(|s| s.0).filter(|_| folder == "log");
        let (lost_from, out) = without_damage(&contents, *first, following, folder == "log");
        if lost_from == Some(from) {
            let aside = path.with_extension("log.damaged");
            let mut copy = DiskFile::create(&aside).map_err(write_error("cannot create", &aside))?;
            copy.append(&contents).map_err(write_error("cannot write", &aside))?;
            copy.sync_all().map_err(io_error("cannot sync", &aside))?;
            write_whole(path, &out)?;
            return Ok(aside);
        }
    }
    Err(Error::Missing { path: data_dir.join("log"), from })
}

/// A segment's bytes without what cannot be read, and the first position that is lost; the first of all when only the head is wrong.
fn without_damage(contents: &[u8], first: Position, following: Option<Position>, gaps: bool) -> (Option<Position>, Vec<u8>) {
    let (mut next, mut at, mut out) = (first, HEAD_BYTES, head(first).to_vec());
    let mut lost_from = (contents.get(..HEAD_BYTES) != Some(&out)).then_some(first);
    let put_gap = |out: &mut Vec<u8>, from: Position, to: Position| encode(out, from, 0, &[gap_to(Position(to.0 - 1))]);
    while at < contents.len() {
        match decode(&contents[at..]) {
            Decoded::Frame(frame, len) if frame.position >= next => {
                if gaps && frame.position > next {
                    put_gap(&mut out, next, frame.position);
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
    if let Some(following) = following.filter(|following| *following > next) {
        lost_from.get_or_insert(next);
        put_gap(&mut out, next, following);
    }
    (lost_from, out)
}
