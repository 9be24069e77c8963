//! The frames of a data directory, with what the archive still has of earlier decisions: as a replay takes them, and as the lines of an export.

use std::io::Write;
use std::path::Path;

use super::replay::Error;
use crate::log::file;
use crate::log::record::Position;
use crate::machine::Delta;

/// A frame of a data directory.
pub struct Logged {
    /// What it holds.
    pub delta: Delta,
    /// Whether it lies in the log and not in the archive, which has decisions only.
    pub counted: bool,
}

/// The frames of a data directory, in their order.
///
/// # Errors
/// [`Error::Log`] and [`Error::Frame`].
pub fn logged(data_dir: &Path) -> Result<impl Iterator<Item = Result<Logged, Error>>, Error> {
    let first_counted = file::segments(&data_dir.join("log"))?.first().map_or(Position(0), |s| s.0);
    let frames = file::archive_and_log(data_dir)?;
    Ok(frames.map(move |frame| {
        let frame = frame?;
        Ok(Logged { delta: Delta::from_frame(&frame)?, counted: frame.position >= first_counted })
    }))
}

/// A line of an export.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct ExportLine {
    /// The position in the log.
    pub frame: u64,
    /// What it holds.
    #[serde(flatten)]
    pub delta: Delta,
}

/// Writes the frames of a data directory, one a line, for [`super::replay::Replay::file`].
///
/// # Errors
/// [`Error`].
pub fn export(data_dir: &Path, mut out: impl Write) -> Result<u64, Error> {
    let mut frames = 0;
    for frame in file::archive_and_log(data_dir)? {
        let frame = frame?;
        let line = ExportLine { frame: frame.position.0, delta: Delta::from_frame(&frame)? };
        serde_json::to_writer(&mut out, &line).map_err(|e| Error::Write(e.into()))?;
        out.write_all(b"\n").map_err(Error::Write)?;
        frames += 1;
    }
    out.flush().map_err(Error::Write)?;
    Ok(frames)
}
