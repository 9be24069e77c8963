//! One recording through two engines side by side, each with a configuration of its own: read once, so that standard input and a log that still grows are the same to both.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::recording::{self, Chunk};
use super::replay::{BadLine, CHUNKS_AHEAD, Error, Input, Logged, Replay, logged};
use super::replayed::Replayed;
use crate::config::Config;
use crate::endpoint::PathTemplates;
use crate::incident::Marker;
use crate::ingest::known::KnownEndpoints;
use crate::time::Timestamp;

/// Where a recording comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Timings or exports, one after the other.
    Files(&'a [PathBuf]),
    /// The log of a data directory.
    Log(&'a Path),
}

/// A configuration, and whether it was given by hand or stands for what the recording brings.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Given by hand.
    pub given: bool,
}

/// What goes through both engines.
enum Piece {
    Begin(PathBuf),
    Lines(Chunk),
    Frame(Logged),
}

/// Runs a recording through the engine under both configurations. Bad lines are told once.
///
/// # Errors
/// [`Error::Read`], [`Error::Log`] and [`Error::Frame`].
pub fn both(
    source: Source<'_>,
    sides: [Side<'_>; 2],
    markers: &[Marker],
    until: Option<Timestamp>,
    progress: impl FnMut(u64),
    mut on_bad: impl FnMut(&BadLine) + Send,
) -> Result<[Replayed; 2], Error> {
    std::thread::scope(|scope| {
        let (to_first, first) = sync_channel(CHUNKS_AHEAD);
        let (to_second, second) = sync_channel(CHUNKS_AHEAD);
        let first = scope.spawn(move || through(sides[0], markers, until, &first, |line| on_bad(line)));
        let second = scope.spawn(move || through(sides[1], markers, until, &second, |_| ()));
        let engines = [to_first, to_second];
        let fed = feed(source, &engines, progress);
        // Nothing more comes: they end.
        drop(engines);
        let [first, second] = [first, second].map(|engine| engine.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let ran = [first?, second?];
        fed.map(|()| ran)
    })
}

/// One of the two.
fn through(
    side: Side<'_>,
    markers: &[Marker],
    until: Option<Timestamp>,
    pieces: &Receiver<Arc<Piece>>,
    on_bad: impl FnMut(&BadLine),
) -> Result<Replayed, Error> {
    let (config, known) = (side.config, KnownEndpoints::default());
    let templates = PathTemplates::new(&config.path_patterns);
    let own = side.given.then(|| config.promises.clone());
    let mut replay = Replay::new(own, config.promises.judge_after_ms, config.endpoint_limits, &templates, &known, markers.to_vec(), io::sink(), on_bad);
    let mut input = Input::new(Path::new(""));
    for piece in pieces {
        match &*piece {
            Piece::Begin(path) => input = Input::new(path),
            Piece::Lines(chunk) => replay.chunk(chunk, &mut input)?,
            Piece::Frame(frame) => replay.logged(frame)?,
        }
    }
    replay.finish(until)?;
    Ok(replay.replayed())
}

/// Reads the recording and hands each piece to both; stops early when one of them has stopped, which says why itself.
fn feed(source: Source<'_>, engines: &[SyncSender<Arc<Piece>>; 2], mut progress: impl FnMut(u64)) -> Result<(), Error> {
    let hand_out = |piece: Piece| {
        let piece = Arc::new(piece);
        engines.iter().all(|engine| engine.send(Arc::clone(&piece)).is_ok())
    };
    match source {
        Source::Files(paths) => {
            for path in paths {
                if !hand_out(Piece::Begin(path.clone())) {
                    return Ok(());
                }
                std::thread::scope(|scope| {
                    let (sender, chunks) = sync_channel(CHUNKS_AHEAD);
                    scope.spawn(move || recording::read(path, &sender));
                    for chunk in chunks {
                        let chunk = chunk.map_err(|source| Error::Read { path: path.clone(), source })?;
                        progress(chunk.bytes);
                        if !hand_out(Piece::Lines(chunk)) {
                            break;
                        }
                    }
                    Ok::<(), Error>(())
                })?;
            }
        }
        Source::Log(dir) => {
            for frame in logged(dir)? {
                let frame = frame?;
                progress(u64::from(frame.counted));
                if !hand_out(Piece::Frame(frame)) {
                    break;
                }
            }
        }
    }
    Ok(())
}
