//! Before against after a marker: a deploy names the one moment at which a step is likely, so less evidence is enough.
//!
//! # Source
//! Welch 1947 and the wander of [`super::fast`] after an hour and after six; from a day on, [`super::intervention`]. The times are fixed beforehand: 1, 6, 24, 48
//! and 72 hours after. What twenty percent more do to a quiet endpoint is within a day's wander as often as not; three days show it.

use serde::{Deserialize, Serialize};

use super::fast::{self, Cell, Fast, Mean};
use super::intervention::{self, Window};
use super::packed::Ring;
use super::{BLOCK_HOURS, cell_of};

/// Within a day it is judged after so many whole quarters (so at most 1 and 6 hours after), by what is usual in the window of [`super::fast`] of this place.
const EARLY: [(i64, usize); 2] = [(3, 0), (23, 3)];
/// Then after each of so many days.
const DAYS: i64 = 3;
/// Quarters of an hour in a day, and in a block.
const DAY: i64 = 96;
const BLOCK: i64 = 4 * BLOCK_HOURS;
/// What was before: so many whole days, and then so many blocks.
const DAYS_BEFORE: i64 = 18;
const BLOCKS_BEFORE: i64 = 8;
/// The least change that is worth a word.
const CHANGE_MIN: f32 = 0.05;
const REQUESTS_MIN: f32 = 8.0;
/// Markers that are watched at a time; more push out the oldest.
const MARKERS: usize = 2;
/// Over how many days it is asked how many markers there are, and the parts in which they are counted.
const OFTEN_DAYS: u32 = 28;
const PARTS: u16 = 64;

/// A marker that is being watched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Watched {
    quarter: i64,
    /// The day before it, and the part of its block.
    before: Cell,
    eve: Cell,
}

/// The markers that are being watched, and how many there are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Markers {
    watched: Vec<Watched>,
    /// Markers of the last four weeks in 64ths; each day counts for a 28th less than the next.
    often: u16,
}

/// What a marker changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The quarter in which the marker was set.
    pub marker: i64,
    /// Hours after it.
    pub hours: i64,
    /// How far beyond chance.
    pub score: f32,
    /// The change of the log level.
    pub change: f32,
    /// The least change that would have been seen with a chance of one half.
    pub visible: f32,
}

impl Verdict {
    /// The newest quarters of an hour that show it, a day at most.
    #[must_use]
    pub fn quarters(&self) -> usize {
        usize::try_from(self.hours * 4).unwrap_or(96).min(96)
    }
}

impl Markers {
    /// Sets a marker into the running quarter, which is not over yet. What changes from now on is rather its doing than that of one a day old or older, which is judged no
    /// more.
    pub fn set(&mut self, quarter: i64, fast: &Fast) {
        if self.watched.iter().any(|m| m.quarter == quarter) {
            return;
        }
        self.often = self.often.saturating_add(PARTS);
        self.watched.retain(|m| quarter - m.quarter < DAY);
        if self.watched.len() == MARKERS {
            self.watched.remove(0);
        }
        let part = usize::try_from(quarter.rem_euclid(BLOCK)).unwrap_or(0);
        let [before, eve] = [96, part].map(|quarters| fast.mean(quarters)).map(|mean| cell_of((mean.n, f64::from(mean.n * mean.level)), true));
        self.watched.push(Watched { quarter, before, eve });
    }

    /// Whether any is watched.
    #[must_use]
    pub fn are_watched(&self) -> bool {
        !self.watched.is_empty()
    }

    /// How many there were in the last four weeks, those of the last days most of all.
    #[must_use]
    pub fn often(&self) -> f32 {
        f32::from(self.often) / f32::from(PARTS)
    }

    /// Begins another day.
    #[expect(clippy::cast_possible_truncation, reason = "less than it was")]
    pub fn turn_day(&mut self) {
        self.often = (u32::from(self.often) * (OFTEN_DAYS - 1) / OFTEN_DAYS) as u16;
    }

    /// None is watched; how many there were stays.
    pub fn forget_watched(&mut self) {
        self.watched.clear();
    }

    /// Judges after a quarter that is over and was taken in; `blocks` are those that are over, before it.
    pub fn judge(&mut self, quarter: i64, fast: &Fast, blocks: &Ring<Cell>, variance: f32, threshold: f32) -> Option<Verdict> {
        let mut found: Option<Verdict> = None;
        for m in &self.watched {
            let Some((score, change)) = m.look(quarter, fast, blocks, variance) else { continue };
            let explains_more = |later: &Watched| later.quarter > m.quarter && later.step(quarter, fast, blocks, variance).is_some_and(|(s, _)| s > score);
            let is_late = quarter - m.quarter >= DAY - 1;
            if score > threshold && change > CHANGE_MIN && found.is_none_or(|f| score > f.score) && !(is_late && self.watched.iter().any(explains_more)) {
                let visible = threshold * change / score;
                found = Some(Verdict { marker: m.quarter, hours: (quarter + 1 - m.quarter) / 4, score, change, visible });
            }
        }
        self.watched.retain(|m| quarter + 1 - m.quarter < DAYS * DAY);
        found
    }
}

impl Watched {
    /// If it is time, the score of a step, and its size.
    fn look(&self, quarter: i64, fast: &Fast, blocks: &Ring<Cell>, variance: f32) -> Option<(f32, f32)> {
        let since = quarter - self.quarter;
        let before = fast::mean_of([self.before].into_iter());
        if let Some((_, window)) = EARLY.iter().find(|early| early.0 == since) {
            let after = fast.mean(usize::try_from(since).unwrap_or(0));
            if after.n < REQUESTS_MIN || before.n < REQUESTS_MIN {
                return None;
            }
            #[expect(clippy::cast_precision_loss, reason = "hours of a day")]
            let noise = fast::wander(((since + 1) / 4) as f32, 24.0) + variance * (1.0 / after.n + 1.0 / before.n);
            let change = after.level - before.level;
            return Some((fast.score(*window, change / noise.sqrt()), change));
        }
        if since < 1 || (since + 1) % DAY != 0 || fast.mean(96).n < REQUESTS_MIN || before.n < REQUESTS_MIN {
            return None;
        }
        self.step(quarter, fast, blocks, variance)
    }

    /// The score of a step at the marker, and its size; `None` within the first hour.
    fn step(&self, quarter: i64, fast: &Fast, blocks: &Ring<Cell>, variance: f32) -> Option<(f32, f32)> {
        if quarter - self.quarter < 4 {
            return None;
        }
        intervention::step(&self.windows(quarter, fast, blocks), variance)
    }

    /// What was before it and has been since, in windows, the oldest first: days and blocks before it, blocks after it, and the hours and quarters of the last day.
    fn windows(&self, quarter: i64, fast: &Fast, blocks: &Ring<Cell>) -> Vec<Window> {
        let place = |ago: i64| usize::try_from(ago).unwrap_or(0);
        let window = |from: i64, to: i64, mean: Mean| window(from - self.quarter, to - self.quarter, mean);
        // Of hours of which nothing is known, at either end, a window claims none.
        let known = |cells: &[Cell], end: i64, length: i64| {
            let is_known = |cell: &Cell| cell.1.get().is_some();
            let (first, last) = (cells.iter().position(is_known)?, cells.iter().rposition(is_known)?);
            let mean = fast::mean_of(cells[first..=last].iter().copied());
            window(end - i64::try_from(last + 1).ok()? * length, end - i64::try_from(first).ok()? * length, mean)
        };
        let newest_end = quarter - quarter.rem_euclid(BLOCK);
        let of_blocks = |newest: i64, number: i64| {
            let cells: Vec<Cell> = (place(newest)..place(newest + number)).map_while(|ago| blocks.back(ago)).collect();
            known(&cells, newest_end - newest * BLOCK, BLOCK)
        };
        let own = self.quarter - self.quarter.rem_euclid(BLOCK);
        // How many blocks ago the marker's own one was left, and the hours since.
        let before = (newest_end - own) / BLOCK;
        let hour = quarter - quarter.rem_euclid(4);
        // Hours are kept for a day: all that are after it, or as many as join on to a block.
        let after = (hour - self.quarter - 1) / 4 * 4;
        let day = if after <= DAY { hour - after } else { newest_end - (newest_end + DAY - hour) / BLOCK * BLOCK };
        let in_day = DAY / BLOCK;
        let days = (0..DAYS_BEFORE).rev().map(|day| of_blocks(before + BLOCKS_BEFORE + day * in_day, in_day));
        let days = days.chain((before..before + BLOCKS_BEFORE).rev().map(|block| of_blocks(block, 1)));
        let eve = window(own, self.quarter, fast::mean_of([self.eve].into_iter()));
        let after = ((newest_end - day + BLOCK - 1) / BLOCK..before - 1).rev().map(|block| of_blocks(block, 1));
        let hours: Vec<Cell> = (0..place((hour - day) / 4)).map_while(|ago| fast.hours.back(ago)).collect();
        let of_day = known(&hours, hour, 4);
        let of_hour = window(hour, quarter + 1, fast.mean(place(quarter + 1 - hour)));
        days.chain([eve]).chain(after).chain([of_day, of_hour]).flatten().collect()
    }
}

/// From one quarter to another, which count from the marker's own, if there were requests. The moment is the end of the marker's own quarter.
fn window(from: i64, to: i64, mean: Mean) -> Option<Window> {
    #[expect(clippy::cast_precision_loss, reason = "hours of weeks")]
    let hours = |quarter: i64| (quarter - 1) as f32 / 4.0;
    (mean.n > 0.0).then_some(Window { hours: (hours(from), hours(to)), mean })
}

#[cfg(test)]
mod tests {
    use super::super::packed::{Count, Level};
    use super::*;

    const FIRST: i64 = 20_458 * DAY;

    /// An endpoint's rings, at so many requests a quarter and a level that is asked for.
    struct Past {
        fast: Fast,
        blocks: Ring<Cell>,
    }

    impl Past {
        fn new() -> Self {
            Self { fast: Fast::default(), blocks: Ring::new(168) }
        }

        /// The newest hour was one of which nothing is known.
        fn forget_hour(&mut self) {
            let hours: Vec<Cell> = (1..self.fast.hours.len()).rev().filter_map(|ago| self.fast.hours.back(ago)).collect();
            self.fast.hours = Ring::new(24);
            hours.into_iter().chain([Cell::default()]).for_each(|hour| self.fast.hours.push(hour));
        }

        /// Takes in a quarter; hours and blocks end after it was judged.
        fn quarter(&mut self, quarter: i64, level: &impl Fn(i64) -> f32, judge: impl FnOnce(&Self)) {
            let cell = |quarters: i64| {
                let levels = (quarter + 1 - quarters..=quarter).map(level).map(f64::from);
                #[expect(clippy::cast_precision_loss, reason = "requests")]
                cell_of((8.0 * quarters as f32, 8.0 * levels.sum::<f64>()), true)
            };
            self.fast.quarters.push((Count::new(8), Level::new(level(quarter))));
            judge(self);
            if (quarter + 1) % 4 == 0 {
                self.fast.hours.push(cell(4));
            }
            if (quarter + 1) % BLOCK == 0 {
                self.blocks.push(cell(BLOCK));
            }
        }
    }

    /// At whatever time of the day it is set, all that was since is looked at, but for the rest of its own hour and, after the first day, of its own block, and nothing of
    /// both sides at once.
    #[test]
    fn windows_have_what_was_before_and_since_and_nothing_twice() {
        for offset in (0..DAY).step_by(5).chain([23, 24, 25, 95]) {
            let marker = FIRST + 25 * DAY + offset;
            // The level tells the side.
            let level = |quarter: i64| if quarter > marker { 0.5 } else { 0.0 };
            let (mut past, mut watched) = (Past::new(), None);
            for quarter in FIRST..marker + DAYS * DAY {
                if quarter == marker {
                    let mut markers = Markers::default();
                    markers.set(quarter, &past.fast);
                    watched = Some(markers.watched[0]);
                }
                past.quarter(quarter, &level, |past| {
                    let Some(watched) = watched.filter(|_| quarter > marker && (quarter + 1 - marker) % DAY == 0) else { return };
                    let windows = watched.windows(quarter, &past.fast, &past.blocks);
                    assert!(windows.windows(2).all(|two| two[0].hours.1 <= two[1].hours.0), "{offset} {windows:?}");
                    for window in &windows {
                        assert!(window.hours.1 <= -0.25 || window.hours.0 >= 0.0, "{offset} {window:?}");
                        assert!((window.mean.level - if window.hours.0 >= 0.0 { 0.5 } else { 0.0 }).abs() < 0.01, "{offset} {window:?}");
                    }
                    #[expect(clippy::cast_precision_loss, reason = "hours")]
                    let since = (quarter - marker) as f32 / 4.0;
                    let length = |after: bool| windows.iter().filter(|w| (w.hours.0 >= 0.0) == after).map(|w| w.hours.1 - w.hours.0).sum::<f32>();
                    let lost = if since < 24.0 { 0.75 } else { 6.75 };
                    assert!(length(true) >= since - lost && length(true) <= since, "{offset} {since} {windows:?}");
                    assert!(length(false) >= 20.0 * 24.0 - 6.0, "{offset} {windows:?}");
                    assert!(windows.len() <= intervention::WINDOWS_MAX && (windows.last().unwrap().hours.1 - since).abs() < 0.01);
                });
            }
        }
    }

    /// A deploy that is harmless is not accused of what the next one of the same day did.
    #[test]
    fn of_two_markers_of_a_day_the_one_that_explains_more_is_named() {
        let (first, second) = (FIRST + 25 * DAY + 41, FIRST + 25 * DAY + 65);
        let level = |quarter: i64| if quarter > second { 0.3 } else { 0.0 } + [0.0, 0.05, -0.04][usize::try_from((quarter / DAY) % 3).unwrap()];
        let (mut past, mut markers, mut found) = (Past::new(), Markers::default(), Vec::new());
        for quarter in FIRST..second + DAYS * DAY {
            if [first, second].contains(&quarter) {
                markers.set(quarter, &past.fast);
            }
            past.quarter(quarter, &level, |past| found.extend(markers.judge(quarter, &past.fast, &past.blocks, 0.25, 3.0)));
        }
        assert!(!found.is_empty() && found.iter().all(|verdict| verdict.marker == second), "{found:?}");
    }

    /// Of twenty hours nobody listened to after a marker nothing is claimed.
    #[test]
    fn a_window_claims_no_hours_of_which_nothing_is_known() {
        let marker = FIRST + 25 * DAY + 41;
        let (mut past, mut watched) = (Past::new(), None);
        for quarter in FIRST..marker + DAY {
            if quarter == marker {
                let mut markers = Markers::default();
                markers.set(quarter, &past.fast);
                watched = Some(markers.watched[0]);
            }
            past.quarter(quarter, &|_| 0.0, |past| {
                if quarter + 1 == marker + DAY {
                    let windows = watched.unwrap().windows(quarter, &past.fast, &past.blocks);
                    assert!(windows.iter().filter(|w| w.hours.0 >= 0.0).all(|w| w.hours.0 >= 19.0), "{windows:?}");
                }
            });
            if (marker..marker + 80).contains(&quarter) && (quarter + 1) % 4 == 0 {
                past.forget_hour();
            }
        }
    }

    /// What the day before could not have done is not laid at its door.
    #[test]
    fn a_marker_of_the_day_before_is_judged_no_more_when_another_is_set() {
        let (mut markers, past) = (Markers::default(), Past::new());
        markers.set(FIRST, &past.fast);
        markers.set(FIRST + DAY - 1, &past.fast);
        assert_eq!(markers.watched.iter().map(|m| m.quarter - FIRST).collect::<Vec<_>>(), [0, DAY - 1]);
        markers.set(FIRST + DAY, &past.fast);
        assert_eq!(markers.watched.iter().map(|m| m.quarter - FIRST).collect::<Vec<_>>(), [DAY - 1, DAY]);
    }

    /// Eight a day are 224 in four weeks, one a week is four; what is long ago is forgotten.
    #[test]
    fn it_is_known_how_many_there_were_in_four_weeks() {
        let (mut markers, past) = (Markers::default(), Past::new());
        let live = |markers: &mut Markers, days: i64, of_day: &dyn Fn(i64) -> i64| {
            for day in 0..days {
                for marker in 0..of_day(day) {
                    markers.set(FIRST + day * DAY + 4 * marker, &past.fast);
                }
                markers.turn_day();
            }
            markers.often()
        };
        let often = live(&mut markers, 140, &|_| 8);
        assert!((often - 8.0 * 27.0).abs() < 3.0, "{often}");
        let seldom = live(&mut markers, 280, &|day| i64::from(day % 7 == 0));
        assert!((seldom - 3.5).abs() < 0.8, "{seldom}");
        assert!(live(&mut markers, 200, &|_| 0) < 0.5);
    }

    #[test]
    fn a_step_is_told_after_a_day_and_a_small_one_after_three_and_none_is_not() {
        let told = |step: f32| {
            let marker = FIRST + 25 * DAY + 41;
            // A wander of about five percent from day to day.
            let wander = |quarter: i64| [0.0, 0.05, -0.04, 0.02, -0.06, 0.04, 0.01][usize::try_from((quarter / DAY) % 7).unwrap()];
            let level = |quarter: i64| wander(quarter) + if quarter > marker { step } else { 0.0 };
            let (mut past, mut markers, mut found) = (Past::new(), Markers::default(), Vec::new());
            for quarter in FIRST..=marker + DAYS * DAY {
                if quarter == marker {
                    markers.set(quarter, &past.fast);
                }
                past.quarter(quarter, &level, |past| found.extend(markers.judge(quarter, &past.fast, &past.blocks, 0.25, 3.6)));
            }
            assert!(markers.watched.is_empty(), "it is watched for three days");
            found.iter().map(|verdict| verdict.hours).collect::<Vec<_>>()
        };
        assert_eq!(told(0.0), [] as [i64; 0]);
        assert!(told(0.3).contains(&24), "{:?}", told(0.3));
        assert!(told(0.17).iter().all(|hours| *hours > 6) && told(0.17).contains(&72), "{:?}", told(0.17));
    }
}
