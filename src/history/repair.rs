//! What can be saved of a damaged file of history, and the file written again with it. The damaged one is kept under another name.
//!
//! Each frame is one of four: it checks, and is copied; the log still has everything that it counts, and it is left out, so that a rebuild writes it again; finer periods have it, and
//! it is left out to be rolled up again; or its rows that check are kept under its name, and the others are a [`Loss`]. A frame whose head cannot be read is known by the index,
//! if that has one at its place; else all that the file covers may lack something.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::closed_periods::{Block, Error, Wanted, file_ms, files_of};
use super::index::Index;
use super::layout::{Directory, Pages, mark};
use super::losses::Loss;
use super::reader::{Reader, scan_file};
use crate::endpoint::EndpointId;
use crate::log::Position;
use crate::log::disk_ops::{self, DiskFile};
use crate::log::file::{io_error, sync_dir, write_error};
use crate::time::{Tier, Timestamp};

/// What a log holds whole.
#[derive(Clone, Copy, Debug)]
pub struct InLog {
    /// Its first slot end; what later ones closed can be counted again.
    pub first_close: Position,
    /// Up to where minutes were closed then: of these, later frames hold only what came later.
    pub closed_to: Timestamp,
}

/// Before a minute begins, so much of it may have been counted.
const EARLY_MS: i64 = 600_000;

impl InLog {
    fn has(&self, block: &Block) -> bool {
        let is_late = block.period.0 + 60_000 <= self.closed_to.0;
        block.tier == Tier::Minute && block.name > self.first_close && (is_late || block.period.0 >= self.closed_to.0 + EARLY_MS)
    }
}

/// What becomes of a frame.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It checks.
    Kept,
    /// A rebuild writes it again.
    FromLog,
    /// It is rolled up again.
    FromFiner,
    /// Its rows that check are kept.
    Cut(Vec<(EndpointId, EndpointId)>),
}

/// A damaged file.
#[derive(Debug)]
pub struct Plan {
    /// Which.
    pub path: PathBuf,
    /// Its frames in their order.
    pub frames: Vec<(Block, Fate)>,
    /// Marks that cannot be read: nothing is lost with them.
    pub marks: usize,
    /// What is lost for good.
    pub losses: Vec<Loss>,
}

/// Looks at every file; gives back the damaged ones, finer tiers first.
///
/// # Errors
/// [`Error::Io`].
pub fn plan(data_dir: &Path, index: Option<&Index>, in_log: Option<InLog>) -> Result<Vec<Plan>, Error> {
    let (dir, reader) = (data_dir.join("history"), Reader::new(data_dir));
    let mut plans = Vec::new();
    let mut lost = super::losses::read(&dir)?;
    let mut begins = [None; Tier::ALL.len()];
    for tier in Tier::ALL {
        let files = files_of(&dir, tier)?;
        begins[tier as usize] = files.first().map(|f| Timestamp(f.0));
        let newest = files.last().map(|f| f.0);
        for (start, path) in files {
            let file = File::open(&path).map_err(io_error("cannot open", &path))?;
            let mut found = Vec::new();
            let scan =
                scan_file(&path, &file, |directory, offset| found.push((directory.block(tier, offset), directory.end())))?.followed(newest > Some(start));
            // Behind the newest mark of all the log has it, and the next start cuts it off.
            let is_torn = scan.torn.is_some() && newest > Some(start);
            let mut reading = reader.begin();
            let mut bad: Vec<Block> = Vec::new();
            for (block, _) in &found {
                if reading.each_row(block, &Wanted::All, |_| ()).is_err() {
                    bad.push(*block);
                }
            }
            if scan.unreadable.is_empty() && scan.bad_marks == 0 && bad.is_empty() && !is_torn {
                continue;
            }
            let mut plan = Plan { path, frames: Vec::new(), marks: scan.bad_marks, losses: Vec::new() };
            let to = Timestamp(start + file_ms(tier));
            let known = index.map(|i| i.blocks(tier, Timestamp(start), to)).unwrap_or_default();
            for offset in &scan.unreadable {
                match known.iter().find(|b| b.offset == *offset) {
                    Some(block) => bad.push(*block),
                    None => plan.losses.push(Loss { tier, from: Timestamp(start), to, first: EndpointId(0), last: EndpointId(u32::MAX) }),
                }
            }
            let mut all: Vec<Block> = found.iter().map(|f| f.0).chain(bad.iter().copied()).collect();
            all.sort_by_key(|b| b.offset);
            all.dedup();
            let of_finer = |block: &Block| {
                // What came late is in minutes of the same name.
                let is_late = all.iter().any(|b| b.period == block.period && b.name < block.name);
                let finer = if tier == Tier::Day && !is_late { Tier::Hour } else { Tier::Minute };
                let to = Timestamp(block.period.0 + tier.width_ms());
                let is_kept = tier > finer && begins[finer as usize].is_some_and(|from: Timestamp| from <= block.period);
                is_kept && !lost.iter().any(|l: &Loss| l.tier < tier && l.from < to && l.to > block.period)
            };
            for block in &all {
                let fate = if !bad.contains(block) {
                    Fate::Kept
                } else if block.offset >= scan.synced_to || in_log.is_some_and(|log| log.has(block)) {
                    Fate::FromLog
                } else if of_finer(block) {
                    Fate::FromFiner
                } else {
                    let gone = salvage(&file, block).map_err(io_error("cannot read", &plan.path))?.1;
                    let period_to = Timestamp(block.period.0 + tier.width_ms());
                    plan.losses.extend(gone.iter().map(|(first, last)| Loss { tier, from: block.period, to: period_to, first: *first, last: *last }));
                    Fate::Cut(gone)
                };
                plan.frames.push((*block, fate));
            }
            lost.extend(plan.losses.iter().cloned());
            plans.push(plan);
        }
    }
    Ok(plans)
}

type Rows = Vec<(EndpointId, Vec<u8>)>;

/// The rows of a frame that check, and which endpoints may have had others.
fn salvage(file: &File, block: &Block) -> io::Result<(Rows, Vec<(EndpointId, EndpointId)>)> {
    let (mut rows, mut gone, mut directory) = (Rows::new(), Vec::new(), Directory::default());
    let last = EndpointId(u32::MAX);
    if !directory.read(file, block.offset)? || (directory.period, directory.name) != (block.period, block.name) {
        return Ok((rows, vec![(EndpointId(0), last)]));
    }
    for n in 0..directory.pages() {
        let page = directory.page(n);
        let before_next = if n + 1 < directory.pages() { EndpointId(directory.page(n + 1).first.0.saturating_sub(1)) } else { last };
        let mut bytes = vec![0; page.bytes];
        let places = file.read_exact_at(&mut bytes, page.at).ok().and_then(|()| bytes.get(..page.index_bytes).and_then(|index| page.places(index)));
        let Some(places) = places else {
            gone.push((page.first, before_next));
            continue;
        };
        for place in places {
            match bytes.get(page.index_bytes + place.offset..).and_then(|b| b.get(..place.bytes)).filter(|row| place.checks(row)) {
                Some(row) => rows.push((place.endpoint, row.to_vec())),
                None => gone.push((place.endpoint, place.endpoint)),
            }
        }
    }
    Ok((rows, gone))
}

/// Writes the file again with what is kept; the damaged one stays beside it under the name that is given back.
///
/// # Errors
/// [`Error::Io`]; the file is then as it was.
pub fn rewrite(plan: &Plan) -> Result<PathBuf, Error> {
    let path = &plan.path;
    let (beside, cannot_read) = (path.with_extension("new"), || io_error("cannot read", path));
    let file = File::open(path).map_err(cannot_read())?;
    let mut out = DiskFile::create(&beside).map_err(write_error("cannot create", &beside))?;
    let (mut end, mut directory) = (0_u64, Directory::default());
    let mut put = |bytes: &[u8], end: &mut u64| {
        *end += bytes.len() as u64;
        out.append(bytes).map_err(write_error("cannot write", &beside))
    };
    for (block, fate) in &plan.frames {
        match fate {
            Fate::Kept => {
                directory.read(&file, block.offset).map_err(cannot_read())?;
                let (mut at, mut part) = (block.offset, vec![0; 1 << 16]);
                while at < directory.end() {
                    let bytes = usize::try_from(directory.end() - at).unwrap_or(usize::MAX).min(part.len());
                    file.read_exact_at(&mut part[..bytes], at).map_err(cannot_read())?;
                    put(&part[..bytes], &mut end)?;
                    at += bytes as u64;
                }
            }
            Fate::Cut(_) => {
                // Also without a row: under its name nothing partial is written then.
                let (rows, _) = salvage(&file, block).map_err(cannot_read())?;
                let (mut pages, mut body) = (Pages::default(), Vec::new());
                for (id, row) in rows {
                    pages.push(id, &mut body, |out| out.extend_from_slice(&row)).map_err(cannot_read())?;
                }
                let head = pages.finish(block.period, block.name, &mut body).map_err(cannot_read())?;
                put(&head, &mut end)?;
                put(&body, &mut end)?;
            }
            Fate::FromLog | Fate::FromFiner => {}
        }
    }
    if end > 0 {
        put(&mark(end), &mut 0)?;
    }
    out.sync_all().map_err(io_error("cannot sync", &beside))?;
    let named = |n: u32| path.with_extension(format!("history.damaged-{n}"));
    let aside = (1..u32::MAX).map(named).find(|p| !p.exists()).unwrap_or_else(|| named(u32::MAX));
    // A second name, then one rename: at no moment is there no file.
    std::fs::hard_link(path, &aside).map_err(io_error("cannot link", &aside))?;
    disk_ops::rename(&beside, path).map_err(io_error("cannot rename", &beside))?;
    path.parent().map_or(Ok(()), sync_dir)?;
    Ok(aside)
}
