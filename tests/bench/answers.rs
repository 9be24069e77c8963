//! How long answers take, and how long the disk under them takes.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// What a commit under load is like.
const APPEND_BYTES: usize = 16 << 10;
const APPENDS: usize = 200;

/// Durations of one kind.
pub struct Answers(Histogram<u64>);

impl Answers {
    pub fn new(microseconds: impl IntoIterator<Item = u32>) -> Self {
        let mut histogram = Histogram::new(3).unwrap();
        for value in microseconds {
            histogram.record(u64::from(value)).unwrap();
        }
        Self(histogram)
    }

    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// A quantile in milliseconds.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Appends and syncs, one after the other, in the folder's file system.
pub fn disk_sync(folder: &Path) -> Answers {
    let path = folder.join("sync");
    let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let block = [0x5a; APPEND_BYTES];
    let durations: Vec<u32> = (0..APPENDS)
        .map(|_| {
            let start = Instant::now();
            file.write_all(&block).unwrap();
            file.sync_data().unwrap();
            micros(start.elapsed())
        })
        .collect();
    std::fs::remove_file(path).unwrap();
    Answers::new(durations)
}

pub fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
