//! `slowburn verify`: reads every byte that is kept, changes nothing, and says what does not check.

use std::path::Path;

use super::disk;
use super::recovery;
use super::replay::{self, Replay};
use crate::endpoint::PathTemplates;
use crate::history::catalogue::Limits;
use crate::history::closed_periods;
use crate::ingest::known::KnownEndpoints;
use crate::log::file::Reader;
use crate::log::record::Position;
use crate::log::snapshot;
use crate::machine::Delta;

/// What was read, and what is wrong.
#[derive(Debug, Default)]
pub struct Report {
    /// Frames of archive and log.
    pub frames: u64,
    /// Blocks of history.
    pub blocks: u64,
    /// Snapshots that check.
    pub snapshots: usize,
    /// What does not check, in words.
    pub wrong: Vec<String>,
}

/// Verifies a data directory that no server uses.
///
/// # Errors
/// When it is used, or cannot be read at all.
pub fn verify(data_dir: &Path) -> Result<Report, disk::Error> {
    let _lock = recovery::lock(data_dir)?;
    let mut report = Report::default();
    for frame in Reader::archive(data_dir, Position(0))?.chain(Reader::log(data_dir, Position(0))?) {
        match frame {
            Ok(frame) => {
                report.frames += 1;
                report.wrong.extend(Delta::from_frame(&frame).err().map(|e| e.to_string()));
            }
            Err(e) => report.wrong.push(e.to_string()),
        }
    }
    let (blocks, wrong) = closed_periods::Reader::new(data_dir).verify()?;
    report.blocks = blocks;
    report.wrong.extend(wrong.iter().map(ToString::to_string));
    let (_, bad) = snapshot::newest(data_dir)?;
    report.snapshots = snapshot::list(data_dir)?.len() - bad.len();
    report.wrong.extend(bad.iter().map(|p| format!("{} does not check; it is passed over, the log has all", p.display())));
    Ok(report)
}

/// Decides the whole log again and compares with what was decided then; the differences in words.
///
/// # Errors
/// When the log cannot be read.
pub fn redecide(data_dir: &Path, limits: Limits) -> Result<Vec<String>, replay::Error> {
    let mut recorded = Vec::new();
    for frame in Reader::log(data_dir, Position(0))? {
        for record in Delta::from_frame(&frame?)?.records {
            if let crate::judge::Record::SlotClosed(crate::judge::SlotClosed { transitions, .. }) | crate::judge::Record::Configured { transitions, .. } =
                record
            {
                recorded.extend(transitions.iter().filter_map(|t| serde_json::to_string(t).ok()));
            }
        }
    }
    let templates = PathTemplates::default();
    let mut out = Vec::new();
    let known = KnownEndpoints::default();
    let mut replay = Replay::new(None, 15_000, limits, &templates, &known, Vec::new(), &mut out, |_| ());
    replay.log(data_dir, |_| ())?;
    replay.finish_log()?;
    drop(replay);
    let again: Vec<String> = String::from_utf8_lossy(&out).lines().map(str::to_owned).collect();
    let differ = |here: &[String], there: &[String], what: &str| here.iter().filter(|l| !there.contains(l)).map(|l| format!("{what}: {l}")).collect::<Vec<_>>();
    let mut differences = differ(&recorded, &again, "decided then, not now");
    differences.extend(differ(&again, &recorded, "decided now, not then"));
    Ok(differences)
}
