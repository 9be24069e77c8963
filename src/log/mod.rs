//! The log: one ordered, durable sequence of frames. What stands in it happened; everything else is derived from it or is a
//! file that it names. [`record`] is the frame, [`mod@file`] the segments on disk, [`reader`] the way back, [`archive`] what becomes of old and damaged segments,
//! [`snapshot`] the state at a position.

pub mod archive;
pub mod disk_ops;
pub mod failpoint;
#[cfg(debug_assertions)]
pub mod fault_plan;
pub mod file;
pub mod reader;
pub mod record;
pub mod snapshot;

pub use file::{Error, Log};
pub use record::{Frame, Position, Section};
