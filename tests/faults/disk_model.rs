//! What a disk may hold after a power cut: all that was synced, and of the rest any sectors in any order; names that were not synced, or not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use slowburn::log::disk_ops::Operation;
use slowburn::log::fault_plan::Event;

use crate::common::Chance;

pub const SECTOR: u64 = 512;

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Truncate(u64),
}

#[derive(Clone, Debug)]
enum NameChange {
    Dir(PathBuf),
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// How the power cut treats what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is gone.
    Gone,
    /// It is all there.
    There,
    /// The last write is there up to some byte, those before it are.
    Prefix,
    /// Any sectors of any writes are there; the length is as it would have been, the rest zeros.
    Sectors,
    /// The lengths are there, the contents are zeros.
    Zeros,
    /// Any sectors; the length ends with the last that is there.
    Short,
}

pub const FATES: [Fate; 6] = [Fate::Gone, Fate::There, Fate::Prefix, Fate::Sectors, Fate::Zeros, Fate::Short];

/// What the states built so far were made of.
#[derive(Clone, Debug, Default)]
pub struct Made {
    pub by_fate: BTreeMap<Fate, u64>,
    pub sectors_lost: u64,
    pub names_lost: u64,
    /// A later write is there and an earlier one of the same file is not.
    pub out_of_order: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    inodes: Vec<Inode>,
    now: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    dirs_now: BTreeSet<PathBuf>,
    dirs_durable: BTreeSet<PathBuf>,
    pending: Vec<NameChange>,
}

fn apply(contents: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Truncate(len) => contents.resize(*len as usize, 0),
        Change::Write { offset, bytes } => {
            let end = *offset as usize + bytes.len();
            contents.resize(contents.len().max(end), 0);
            contents[*offset as usize..end].copy_from_slice(bytes);
        }
    }
}

impl NameChange {
    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Dir(path) | Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path, _)) = self;
        path.parent() == Some(dir)
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, usize>, dirs: &mut BTreeSet<PathBuf>) {
        match self {
            Self::Dir(path) => drop(dirs.insert(path)),
            Self::Link(path, inode) => drop(names.insert(path, inode)),
            Self::Unlink(path) => drop(names.remove(&path)),
            Self::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
        }
    }
}

impl Disk {
    /// Nothing but the folder itself.
    pub fn new(dir: &Path) -> Self {
        let dirs = BTreeSet::from([dir.to_owned()]);
        Self { dirs_now: dirs.clone(), dirs_durable: dirs, ..Self::default() }
    }

    fn change_name(&mut self, change: NameChange) {
        change.clone().apply(&mut self.now, &mut self.dirs_now);
        self.pending.push(change);
    }

    /// Takes in an operation that was done.
    pub fn take(&mut self, event: &Event) {
        let path = &event.path;
        match event.operation {
            Operation::CreateDir => {
                let missing: Vec<PathBuf> = path.ancestors().take_while(|p| !self.dirs_now.contains(*p)).map(Path::to_owned).collect();
                missing.into_iter().rev().for_each(|p| self.change_name(NameChange::Dir(p)));
            }
            Operation::Create => {
                if let Some(inode) = self.now.get(path) {
                    self.inodes[*inode].pending.push(Change::Truncate(0));
                } else {
                    self.inodes.push(Inode::default());
                    self.change_name(NameChange::Link(path.clone(), self.inodes.len() - 1));
                }
            }
            Operation::Append => self.file(path).pending.push(Change::Write { offset: event.offset, bytes: event.bytes.clone() }),
            Operation::Truncate => self.file(path).pending.push(Change::Truncate(event.offset)),
            Operation::Sync => {
                let Inode { durable, pending } = self.file(path);
                pending.drain(..).for_each(|change| apply(durable, &change));
            }
            Operation::SyncDir => {
                for change in self.pending.extract_if(.., |c| c.is_in(path)) {
                    change.apply(&mut self.durable, &mut self.dirs_durable);
                }
            }
            Operation::Rename => {
                let from = event.renamed_from.clone().unwrap();
                let inode = self.now[&from];
                self.change_name(NameChange::Rename(from, path.clone(), inode));
            }
            Operation::Remove => self.change_name(NameChange::Unlink(path.clone())),
            // The index is a view: what sled has written is no part of this disk.
            Operation::IndexWrite => {}
        }
    }

    fn file(&mut self, path: &Path) -> &mut Inode {
        &mut self.inodes[self.now[path]]
    }

    /// Sectors of a file's writes that are not synced.
    pub fn unsynced_sectors(&self, path: &Path) -> Vec<u64> {
        let Some(inode) = self.now.get(path) else { return Vec::new() };
        let mut sectors = BTreeSet::new();
        for change in &self.inodes[*inode].pending {
            if let Change::Write { offset, bytes } = change {
                sectors.extend(offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR));
            }
        }
        sectors.into_iter().collect()
    }

    /// A file as it is when, of what is not synced, just these sectors are there.
    pub fn with_sectors(&self, path: &Path, kept: &[u64], zero_filled: bool) -> Vec<u8> {
        let inode = &self.inodes[self.now[path]];
        sectors_of(inode, zero_filled, |sector, _| kept.contains(&sector)).0
    }

    /// Builds one state that a power cut may leave, below another folder.
    pub fn leave(&self, dir: &Path, to: &Path, fate: Fate, chance: &mut Chance, made: &mut Made) {
        let (mut names, mut dirs) = (self.durable.clone(), self.dirs_durable.clone());
        for change in &self.pending {
            let stays = match fate {
                Fate::Gone => false,
                Fate::There => true,
                _ => chance.below(2) == 0,
            };
            if stays {
                change.clone().apply(&mut names, &mut dirs);
            } else {
                made.names_lost += 1;
            }
        }
        *made.by_fate.entry(fate).or_default() += 1;
        fs::create_dir_all(to).unwrap();
        // A folder whose own name was lost takes all below it along.
        let has_way = |path: &Path| path.ancestors().skip(1).take_while(|p| p.starts_with(dir)).all(|p| dirs.contains(p));
        for found in dirs.iter().filter(|d| has_way(d)) {
            fs::create_dir_all(to.join(found.strip_prefix(dir).unwrap())).unwrap();
        }
        for (path, inode) in names.iter().filter(|(path, _)| has_way(path)) {
            let contents = contents_of(&self.inodes[*inode], fate, chance, made);
            fs::write(to.join(path.strip_prefix(dir).unwrap()), contents).unwrap();
        }
    }
}

fn contents_of(inode: &Inode, fate: Fate, chance: &mut Chance, made: &mut Made) -> Vec<u8> {
    let mut contents = inode.durable.clone();
    match fate {
        Fate::Gone => {}
        Fate::There => inode.pending.iter().for_each(|c| apply(&mut contents, c)),
        Fate::Prefix => {
            for (i, change) in inode.pending.iter().enumerate() {
                match change {
                    Change::Write { offset, bytes } if i + 1 == inode.pending.len() => {
                        let kept = chance.below(bytes.len() as u64 + 1) as usize;
                        apply(&mut contents, &Change::Write { offset: *offset, bytes: bytes[..kept].to_vec() });
                    }
                    _ => apply(&mut contents, change),
                }
            }
        }
        Fate::Zeros => contents = sectors_of(inode, true, |_, _| false).0,
        Fate::Sectors | Fate::Short => {
            let mut last_lost = None;
            let (left, lost) = sectors_of(inode, fate == Fate::Sectors, |_, write| {
                let stays = chance.below(2) == 0;
                if stays && last_lost.is_some_and(|lost| lost < write) {
                    made.out_of_order += 1;
                }
                if !stays {
                    last_lost = Some(write);
                }
                stays
            });
            made.sectors_lost += lost;
            contents = left;
        }
    }
    contents
}

/// The file with those sectors of its pending writes that stay (asked with the number of the write), and how many do not. Without zeros, the file ends with the last that stays.
fn sectors_of(inode: &Inode, zero_filled: bool, mut stays: impl FnMut(u64, usize) -> bool) -> (Vec<u8>, u64) {
    let (mut contents, mut lost) = (inode.durable.clone(), 0);
    for (number, change) in inode.pending.iter().enumerate() {
        let Change::Write { offset, bytes } = change else {
            apply(&mut contents, change);
            continue;
        };
        let end = offset + bytes.len() as u64;
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let (from, to) = ((sector * SECTOR).max(*offset), ((sector + 1) * SECTOR).min(end));
            if stays(sector, number) {
                let part = bytes[(from - offset) as usize..(to - offset) as usize].to_vec();
                apply(&mut contents, &Change::Write { offset: from, bytes: part });
            } else {
                lost += 1;
            }
        }
        if zero_filled && contents.len() < end as usize {
            contents.resize(end as usize, 0);
        }
    }
    (contents, lost)
}
