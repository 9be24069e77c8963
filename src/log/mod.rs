//! The log: one ordered, durable sequence of frames. What stands in it happened; everything else is derived from it or is a
//! file that it names. [`record`] is the frame, [`mod@file`] the segments on disk, [`snapshot`] the state at a position.

pub mod failpoint;
pub mod file;
pub mod record;
pub mod snapshot;

pub use file::{Error, Log};
pub use record::{Frame, Position, Section};
