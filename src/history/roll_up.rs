//! A coarser period from its finer blocks: merged endpoint by endpoint, a page of each block in memory at a time, in steps as long as whoever does it can spare.
//!
//! The rows wait in a file of their own, since the head of a frame is known when all of them are, and late data may add another frame meanwhile.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufWriter, Seek as _, Write as _};
use std::path::PathBuf;

use super::closed_periods::{Block, Error, Files};
use super::layout::Pages;
use super::open_slots::{Row, put_row};
use super::reader::{Cursor, Reader};
use super::sum::Sum;
use crate::endpoint::EndpointId;
use crate::log::Position;
use crate::log::disk_ops::DiskFile;
use crate::log::file::{io_error, write_error};
use crate::time::{Tier, Timestamp};

/// How far a roll-up is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There are rows left.
    More,
    /// Everything is merged: it can be finished.
    Merged,
}

/// A coarser period on its way.
#[derive(Debug)]
pub struct RollUp {
    tier: Tier,
    period: Timestamp,
    name: Position,
    cursors: Vec<Cursor>,
    /// The endpoint of the row that each cursor is before.
    ahead: BinaryHeap<Reverse<(EndpointId, usize)>>,
    /// The row that each cursor is before.
    rows: Vec<Vec<u8>>,
    pages: Pages,
    waiting: BufWriter<DiskFile>,
    path: PathBuf,
}

impl RollUp {
    /// Begins one; `blocks` are the finer ones of the period.
    ///
    /// # Errors
    /// [`Error`].
    pub fn begin(reader: &Reader, tier: Tier, period: Timestamp, name: Position, blocks: &[Block]) -> Result<Self, Error> {
        let path = reader.waiting_path(tier);
        let file = DiskFile::create(&path).map_err(write_error("cannot create", &path))?;
        let mut reading = reader.begin();
        let cursors = blocks.iter().map(|block| reading.cursor(block)).collect::<Result<Vec<_>, _>>()?;
        let rows = vec![Vec::new(); cursors.len()];
        let (ahead, pages, waiting) = (BinaryHeap::new(), Pages::default(), BufWriter::with_capacity(1 << 16, file));
        let mut roll_up = Self { tier, period, name, cursors, ahead, rows, pages, waiting, path };
        for n in 0..roll_up.cursors.len() {
            roll_up.advance(n)?;
        }
        Ok(roll_up)
    }

    fn advance(&mut self, n: usize) -> Result<(), Error> {
        if let Some((endpoint, row)) = self.cursors[n].next()? {
            self.rows[n].clear();
            self.rows[n].extend_from_slice(row);
            self.ahead.push(Reverse((endpoint, n)));
        }
        Ok(())
    }

    /// Merges `rows_max` of the finer rows, and those that belong to the last endpoint of them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn step(&mut self, rows_max: usize) -> Result<Progress, Error> {
        let (mut merged, mut sum) = (0, Sum::default());
        while merged < rows_max {
            let Some(&Reverse((endpoint, _))) = self.ahead.peek() else { return Ok(Progress::Merged) };
            while let Some(&Reverse((next, n))) = self.ahead.peek()
                && next == endpoint
            {
                self.ahead.pop();
                sum.add_bytes(&self.rows[n]).map_err(|_| self.cursors[n].damaged())?;
                self.advance(n)?;
                merged += 1;
            }
            let row = Row { endpoint, cell: sum.take(), slots: Vec::new() };
            self.pages.push(endpoint, &mut self.waiting, |out| put_row(out, &row)).map_err(write_error("cannot write to", &self.path))?;
        }
        Ok(if self.ahead.is_empty() { Progress::Merged } else { Progress::More })
    }

    /// Appends what was merged as one frame, durable after [`Files::sync`]; `None` when there was nothing.
    ///
    /// # Errors
    /// [`Error`].
    pub fn finish(mut self, files: &mut Files) -> Result<Option<Block>, Error> {
        while self.step(usize::MAX)? == Progress::More {}
        let Self { tier, period, name, pages, mut waiting, path, .. } = self;
        let block = if pages.rows() == 0 {
            None
        } else {
            let head = pages.finish(period, name, &mut waiting).map_err(write_error("cannot write to", &path))?;
            waiting.flush().map_err(write_error("cannot write to", &path))?;
            let mut body = waiting.get_ref().file();
            body.rewind().map_err(io_error("cannot read", &path))?;
            Some(files.append_bytes(tier, period, name, &head, Some(body))?)
        };
        files.forget_roll_up(tier)?;
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::counting::{Cell, Outcome, Span, Tally};
    use crate::histogram::Digits;

    /// What an endpoint did in a minute: nothing now and then, and thresholds that come and go.
    fn row(id: u32, minute: u32) -> Row {
        let thresholds: &[u64] = if minute.is_multiple_of(2) { &[5_000] } else { &[] };
        let mut cell = Cell::new(thresholds, Digits::Two);
        for n in 0..=(id + minute) % 7 {
            let outcome = Outcome::ALL[((id + n) % 4) as usize];
            cell.record(outcome, Span::exact(u64::from(id * 31 + n * 1_000 + minute)), Tally { weight: 1 + u64::from(n), observed: 1 });
        }
        Row { endpoint: EndpointId(id), slots: vec![((minute % 6).to_le_bytes()[0], cell.counts_only())], cell }
    }

    #[test]
    fn a_roll_up_in_steps_is_the_merge_of_all_rows() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::open(dir.path()).unwrap();
        let (mut blocks, mut merged) = (Vec::new(), BTreeMap::<EndpointId, Cell>::new());
        for minute in 0..60 {
            let rows: Vec<Row> = (0..400).filter(|id| (id + minute) % 3 > 0).map(|id| row(id, minute)).collect();
            for row in &rows {
                let cell = merged.entry(row.endpoint).or_default();
                if cell.is_empty() { *cell = row.cell.clone() } else { cell.merge(&row.cell) }
            }
            blocks.push(files.append(Tier::Minute, Timestamp(i64::from(minute) * 60_000), Position(u64::from(minute) + 1), &rows).unwrap());
        }
        let reader = Reader::new(dir.path());
        let mut written = Vec::new();
        for rows_max in [1, 7, 1_000, usize::MAX] {
            let name = Position(100 + rows_max.min(5_000) as u64);
            let mut roll_up = RollUp::begin(&reader, Tier::Hour, Timestamp(0), name, &blocks).unwrap();
            let mut steps = 1;
            while roll_up.step(rows_max).unwrap() == Progress::More {
                steps += 1;
            }
            assert!(steps >= 16_000 / 60 / rows_max.min(400), "{steps} steps of {rows_max}");
            // Late data of the same hour come in between.
            files.append(Tier::Hour, Timestamp(0), Position(name.0 + 1), &[row(9, 3)]).unwrap();
            let block = roll_up.finish(&mut files).unwrap().unwrap();
            let rows = reader.rows_where(&block, |_| true).unwrap();
            assert!(rows.iter().all(|r| r.slots.is_empty()));
            assert_eq!(rows.iter().map(|r| (r.endpoint, r.cell.clone())).collect::<Vec<_>>(), merged.clone().into_iter().collect::<Vec<_>>());
            written.push(rows);
        }
        assert_eq!(reader.blocks(Tier::Hour).unwrap().len(), 2 * written.len());
        let none = RollUp::begin(&reader, Tier::Hour, Timestamp(0), Position(999), &[]).unwrap().finish(&mut files).unwrap();
        assert_eq!(none, None);
        assert!(!reader.waiting_path(Tier::Hour).exists());
    }
}
