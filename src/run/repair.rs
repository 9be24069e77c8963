//! `slowburn repair`: says what can be saved of damaged history, and with `--yes` does it. Nothing is deleted: damaged files stay under other names.

use std::path::{Path, PathBuf};

use super::disk::{self, Retention};
use super::recovery;
use crate::history::catalogue::{Entry, Limits};
use crate::history::closed_periods::{self, Block, Files};
use crate::history::index::{self, Index};
use crate::history::losses::{self, Loss};
use crate::history::repair::{Fate, InLog, Plan, plan, rewrite};
use crate::history::roll_up::RollUp;
use crate::judge::Record;
use crate::log::file;
use crate::log::record::{Kind, Position};
use crate::machine::Delta;
use crate::time::{Tier, Timestamp};

/// Names of endpoints in one line.
const NAMES_MAX: usize = 20;

/// What is damaged, what becomes of it, and by which names endpoints are known.
#[derive(Debug)]
pub struct Repair {
    data_dir: PathBuf,
    plans: Vec<Plan>,
    entries: Vec<Entry>,
}

/// Reads everything of a data directory that no server uses; changes nothing but, as any start does, the index.
///
/// # Errors
/// [`disk::Error`]: it is used, or the log is damaged, which is to be repaired first.
pub fn look(data_dir: &Path) -> Result<Repair, disk::Error> {
    let _lock = recovery::lock(data_dir)?;
    let (mut entries, mut in_log) = (Vec::new(), None);
    let first_counted = file::segments(&data_dir.join("log"))?.first().map_or(Position(1), |s| s.0);
    for frame in file::archive_and_log(data_dir)? {
        let frame = frame?;
        let delta = Delta::from_frame(&frame)?;
        entries.extend(delta.endpoints);
        if frame.section(Kind::GAP).is_some() {
            // What was given up there cannot be counted again.
            in_log = None;
        }
        if in_log.is_none() && frame.position >= first_counted {
            let end = delta.records.iter().find_map(|r| if let Record::SlotClosed(closed) = r { Some(closed.end.end()) } else { None });
            in_log = end.map(|end| InLog { first_close: frame.position, closed_to: Tier::Minute.period_of(end) });
        }
        // A log that is whole holds everything that was ever counted.
        if first_counted == Position(1) && frame.position == Position(1) {
            in_log = Some(InLog { first_close: Position(0), closed_to: Timestamp(i64::MIN / 2) });
        }
    }
    let index = index::folder(data_dir).is_dir().then(|| Index::open(data_dir).ok()).flatten();
    let plans = plan(data_dir, index.as_ref(), in_log)?;
    Ok(Repair { data_dir: data_dir.to_owned(), plans, entries })
}

impl Repair {
    /// Whether anything is damaged.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.plans.is_empty()
    }

    /// What is lost for good.
    pub fn losses(&self) -> impl Iterator<Item = &Loss> {
        self.plans.iter().flat_map(|p| &p.losses)
    }

    /// In words, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for plan in &self.plans {
            let kept = plan.frames.iter().filter(|f| matches!(f.1, Fate::Kept)).count();
            let path = plan.path.strip_prefix(&self.data_dir).unwrap_or(&plan.path);
            lines.push(format!("{}: {kept} of {} periods check, {} damaged marks", path.display(), plan.frames.len(), plan.marks));
            for (block, fate) in &plan.frames {
                let what = match fate {
                    Fate::Kept => continue,
                    Fate::FromLog => "is written again from the log",
                    Fate::FromFiner => "is rolled up again from finer periods",
                    Fate::Cut(_) => "keeps its rows that check",
                };
                lines.push(format!("  {} from {} {what}", block.tier.name(), block.period));
            }
            lines.extend(plan.losses.iter().map(|loss| format!("  lost: {}", self.words(loss))));
        }
        lines
    }

    fn words(&self, loss: &Loss) -> String {
        let Loss { tier, from, to, first, last } = loss;
        let named: Vec<String> = self.entries.iter().zip(0_u32..).filter(|(_, id)| (first.0..=last.0).contains(id)).map(|(e, _)| words_of(e)).collect();
        let whose = if loss.is_of_all() {
            "any endpoint".to_owned()
        } else if named.len() > NAMES_MAX {
            format!("{} and {} more", named[..NAMES_MAX].join(", "), named.len() - NAMES_MAX)
        } else {
            named.join(", ")
        };
        format!("{}s from {from} to {to}, of {whose}", tier.name())
    }

    /// Does it: what is lost is recorded first, so that at no moment an answer is silently low. Gives back the names of the damaged files.
    ///
    /// # Errors
    /// [`disk::Error`]; it can be done again.
    pub fn run(&self, limits: Limits, retention: Retention, now: Timestamp) -> Result<Vec<PathBuf>, disk::Error> {
        let lock = recovery::lock(&self.data_dir)?;
        let lost: Vec<Loss> = self.losses().cloned().collect();
        if !lost.is_empty() {
            losses::add(&self.data_dir.join("history"), &lost)?;
        }
        let aside = self.plans.iter().map(rewrite).collect::<Result<Vec<_>, _>>()?;
        self.roll_up_again()?;
        drop(lock);
        let mut opened = recovery::open(&self.data_dir, limits, retention, now, true)?;
        opened.keeper.checkpoint(&mut opened.machine, now)?;
        Ok(aside)
    }

    fn frames(&self, is: impl Fn(&Fate) -> bool) -> Vec<Block> {
        self.plans.iter().flat_map(|p| &p.frames).filter(|(_, fate)| is(fate)).map(|(block, _)| *block).collect()
    }

    /// Rolls up again what has all its finer periods. What has some of them in the log only is left to the rebuild, which does it where the log closes them.
    fn roll_up_again(&self) -> Result<(), disk::Error> {
        let (mut files, reader) = (Files::open(&self.data_dir)?, closed_periods::Reader::new(&self.data_dir));
        files.cut_torn()?;
        let mut left = self.frames(|fate| matches!(fate, Fate::FromLog));
        let mut missing = self.frames(|fate| matches!(fate, Fate::FromFiner));
        missing.sort_by_key(|b| (b.tier, b.period, b.name));
        for block in missing {
            let Block { tier, period, name, .. } = block;
            let end = Timestamp(period.0 + tier.width_ms());
            let in_period = |b: &Block| b.period >= period && b.period < end;
            let is_late = reader.blocks(tier)?.iter().chain(&left).any(|b| b.tier == tier && b.period == period && b.name < name);
            // What came late is in minutes of the same name; else it is all that came before.
            let fine = if tier == Tier::Day && !is_late { Tier::Hour } else { Tier::Minute };
            let is_part = |b: &Block| b.tier == fine && in_period(b) && if is_late { b.name == name } else { b.name <= name };
            if left.iter().any(is_part) {
                left.push(block);
                continue;
            }
            let parts: Vec<Block> = reader.blocks(fine)?.into_iter().filter(is_part).collect();
            RollUp::begin(&reader, tier, period, name, &parts)?.finish(&mut files)?;
        }
        Ok(files.sync()?)
    }
}

fn words_of(entry: &Entry) -> String {
    let key = &entry.key;
    let env = if key.env.is_empty() { String::new() } else { format!(", {}", key.env) };
    format!("{} {} ({}{env})", key.method, key.route, key.service).trim_start().to_owned()
}
