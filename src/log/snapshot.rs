//! The state at a position of the log, so that a start replays minutes and not months.
//!
//! `snapshots/POSITION.snapshot`: `SBSNAP`, version, crc32c of the rest, position, the state's bytes (its owner's). Written whole beside
//! its place, synced, renamed, the folder synced; the two newest are kept. One that does not check is passed over: the log has all.

use std::fs;
use std::path::{Path, PathBuf};

use super::disk_ops::{self, DiskFile};
use super::failpoint;
use super::file::{Error, io_error, sync_dir, write_error};
use super::record::Position;

const MAGIC: [u8; 8] = *b"SBSNAP\0\x02";
const KEPT: usize = 2;

/// The state as of, and with, a position.
pub type Kept = (Position, Vec<u8>);

/// Bytes that the disk is given at once: a commit of the log waits for what it was given before.
const PART_BYTES: usize = 4 << 20;

/// Writes a file so that after a crash either the old or the new one is there.
///
/// # Errors
/// [`Error::NoRoom`]: the old one stands. [`Error::Io`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("new");
    let mut file = DiskFile::create(&beside).map_err(write_error("cannot create", &beside))?;
    for (at, part) in bytes.chunks(PART_BYTES).enumerate() {
        if at > 0 {
            file.sync_data().map_err(io_error("cannot sync", &beside))?;
        }
        if let Err(source) = file.append(part) {
            // It would take the room that is missing.
            disk_ops::remove_file(&beside).map_err(io_error("cannot remove", &beside))?;
            return Err(write_error("cannot write", &beside)(source));
        }
    }
    file.sync_all().map_err(io_error("cannot sync", &beside))?;
    failpoint::pass("before rename");
    disk_ops::rename(&beside, path).map_err(io_error("cannot rename", &beside))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Writes the state as of (and with) a position and forgets all but the newest two.
///
/// # Errors
/// [`Error::Io`].
pub fn write(data_dir: &Path, position: Position, state: &[u8]) -> Result<(), Error> {
    let dir = data_dir.join("snapshots");
    disk_ops::create_dir_all(&dir).map_err(write_error("cannot create", &dir))?;
    sync_dir(data_dir)?;
    for path in unfinished(&dir)? {
        disk_ops::remove_file(&path).map_err(io_error("cannot remove", &path))?;
    }
    let mut bytes = MAGIC.to_vec();
    let mut body = position.0.to_le_bytes().to_vec();
    body.extend_from_slice(state);
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    write_whole(&dir.join(format!("{:020}.snapshot", position.0)), &bytes)?;
    let all = list(data_dir)?;
    for (_, path) in &all[..all.len().saturating_sub(KEPT)] {
        disk_ops::remove_file(path).map_err(io_error("cannot remove", path))?;
    }
    Ok(())
}

/// What crashes left before they renamed it.
fn unfinished(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(io_error("cannot list", dir))?;
    let paths = entries.map(|entry| entry.map(|e| e.path()).map_err(io_error("cannot list", dir)));
    paths.filter(|path| path.as_ref().map_or(true, |p| p.extension().is_some_and(|e| e == "new"))).collect()
}

/// The snapshots there are, oldest first, whether they check or not.
///
/// # Errors
/// [`Error::Io`].
pub fn list(data_dir: &Path) -> Result<Vec<(Position, PathBuf)>, Error> {
    let dir = data_dir.join("snapshots");
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(found) };
    for entry in entries {
        let path = entry.map_err(io_error("cannot list", &dir))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if let Some(position) = name.strip_suffix(".snapshot").and_then(|n| n.parse().ok()) {
            found.push((Position(position), path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest snapshot that checks, its position, and the paths of newer ones that do not.
///
/// # Errors
/// [`Error::Io`].
pub fn newest(data_dir: &Path) -> Result<(Option<Kept>, Vec<PathBuf>), Error> {
    let mut bad = Vec::new();
    for (position, path) in list(data_dir)?.into_iter().rev() {
        let bytes = fs::read(&path).map_err(io_error("cannot read", &path))?;
        match check(&bytes) {
            Some(state) => return Ok((Some((position, state.to_vec())), bad)),
            None => bad.push(path),
        }
    }
    Ok((None, bad))
}

fn check(bytes: &[u8]) -> Option<&[u8]> {
    let body = bytes.strip_prefix(&MAGIC)?;
    let crc = u32::from_le_bytes(body.get(..4)?.try_into().ok()?);
    (crc32c::crc32c(&body[4..]) == crc).then_some(())?;
    body.get(12..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_unfinished_goes_with_the_next_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), Position(1), &[1]).unwrap();
        let left = dir.path().join("snapshots").join(format!("{:020}.new", 2));
        fs::write(&left, [2]).unwrap();
        write(dir.path(), Position(3), &[3]).unwrap();
        assert!(!left.exists());
        assert_eq!(list(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_state_of_many_parts_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let state: Vec<u8> = (0..=250_u8).cycle().take(2 * PART_BYTES + 5).collect();
        write(dir.path(), Position(1), &state).unwrap();
        assert_eq!(newest(dir.path()).unwrap(), (Some((Position(1), state)), vec![]));
    }

    #[test]
    fn a_damaged_snapshot_is_passed_over_for_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        for p in 1..=3 {
            write(dir.path(), Position(p), &[u8::try_from(p).unwrap(); 9]).unwrap();
        }
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        assert_eq!(newest(dir.path()).unwrap(), (Some((Position(3), vec![3; 9])), vec![]));
        let path = list(dir.path()).unwrap()[1].1.clone();
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 4;
        fs::write(&path, bytes).unwrap();
        assert_eq!(newest(dir.path()).unwrap(), (Some((Position(2), vec![2; 9])), vec![path]));
    }
}
