//! Recorded lines, read and parsed ahead of the engine on a thread of their own, a chunk at a time: parsing is half of what a replay costs, and nothing in it depends on the
//! state.
//!
//! A line of the usual shape becomes a few numbers, its endpoint a place in the recording's own list of keys; any other line goes on as it is. What a line means, and whether
//! it is taken, is for the engine to say.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::SyncSender;

use crate::counting::Outcome;
use crate::endpoint::{EndpointKey, KeyRef};
use crate::ingest::known::join;
use crate::ingest::ordinary::Reader;

/// The longest line that is read.
pub const LINE_BYTES_MAX: u64 = 16 << 20;

/// Bytes of lines in a chunk, about.
const CHUNK_BYTES: usize = 1 << 20;

/// Lines of a recording.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Keys that come first in it; they go on the end of the list of keys.
    pub keys: Vec<EndpointKey>,
    /// Its lines, one after the other.
    pub lines: Vec<Line>,
    /// The bytes of those that are not of the usual shape.
    pub text: Vec<u8>,
    /// Bytes read for it.
    pub bytes: u64,
}

/// A line of a recording.
#[derive(Clone, Copy, Debug)]
pub enum Line {
    /// Of the usual shape, not yet known to be taken.
    Timing {
        /// The place of its endpoint in the list of keys.
        key: u32,
        /// When, in Unix milliseconds.
        ts_ms: i64,
        /// How long it took, in whole microseconds.
        us: u32,
        /// How it ended.
        outcome: Outcome,
    },
    /// Another; its bytes in the chunk's text.
    Other {
        /// From.
        start: u32,
        /// To.
        end: u32,
    },
    /// Longer than [`LINE_BYTES_MAX`].
    TooLong,
}

/// Reads a file (`.gz` and `.zst` unpacked, `-` for standard input) and sends its chunks, until its end or until nobody listens.
pub fn read(path: &Path, to: &SyncSender<io::Result<Chunk>>) {
    let read = || -> io::Result<()> {
        let (mut reader, mut places) = (open(path)?, Places::default());
        let mut line = Vec::with_capacity(1 << 12);
        loop {
            let mut chunk = Chunk::default();
            while chunk.bytes < CHUNK_BYTES as u64 {
                line.clear();
                let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
                if read == 0 {
                    drop(to.send(Ok(chunk)));
                    return Ok(());
                }
                chunk.bytes += read as u64;
                if read as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
                    chunk.bytes += reader.skip_until(b'\n')? as u64;
                    chunk.lines.push(Line::TooLong);
                } else {
                    chunk.push(&line, &mut places);
                }
            }
            if to.send(Ok(chunk)).is_err() {
                return Ok(());
            }
        }
    };
    if let Err(error) = read() {
        drop(to.send(Err(error)));
    }
}

/// The list of keys, by their joined text; and what lines look like.
#[derive(Default)]
struct Places {
    by_text: HashMap<Vec<u8>, u32, foldhash::quality::RandomState>,
    joined: Vec<u8>,
    reader: Reader,
}

impl Chunk {
    fn push(&mut self, line: &[u8], places: &mut Places) {
        let timing = std::str::from_utf8(line).ok().and_then(|text| self.timing(text.trim_end(), places));
        let start = u32::try_from(self.text.len()).unwrap_or(u32::MAX);
        self.lines.push(timing.unwrap_or_else(|| {
            self.text.extend_from_slice(line);
            Line::Other { start, end: u32::try_from(self.text.len()).unwrap_or(u32::MAX) }
        }));
    }

    fn timing(&mut self, text: &str, places: &mut Places) -> Option<Line> {
        let mut read_to = 0;
        let line = places.reader.read(text, &mut read_to).filter(|_| read_to == text.len())?;
        let (us, outcome) = line.plain_timing().filter(|_| line.critical != Some(true))?;
        let ts_ms = line.ts_ms?;
        let key = KeyRef {
            service: line.service?,
            env: line.env.unwrap_or(""),
            kind: line.kind.unwrap_or("http"),
            method: line.method.unwrap_or(""),
            route: line.route?,
        };
        join(&key, &mut places.joined);
        let known = places.by_text.get(&places.joined).copied();
        let place = if let Some(place) = known {
            place
        } else {
            let place = u32::try_from(places.by_text.len()).ok()?;
            places.by_text.insert(places.joined.clone(), place);
            self.keys.push(key.to_key());
            place
        };
        Some(Line::Timing { key: place, ts_ms, us: u32::try_from(us).ok()?, outcome })
    }
}

/// Opens an input; unpacks `.gz` and `.zst`; `-` is standard input.
fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    const BUFFER: usize = 1 << 20;
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::with_capacity(BUFFER, io::stdin())));
    }
    let file = File::open(path)?;
    let read: Box<dyn Read> = match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, file))),
        Some("zst") => Box::new(ruzstd::decoding::StreamingDecoder::new(BufReader::with_capacity(BUFFER, file)).map_err(|e| io::Error::other(e.to_string()))?),
        _ => Box::new(file),
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER, read)))
}
