//! Where the machine meets the world: [`serve`] runs a server, [`live`] its engine, [`disk`] what is on disk beside the log, [`recovery`] the way back from it at a start, [`replay`] the virtual clock over
//! recordings, [`both`] and [`compare`] two configurations over one recording, [`watching`] the thread of the detectors, [`clock`] the real one, [`memory`] what there is of it, [`remote_write`] what is sent to stores of metrics, [`tasks`] what runs beside.

pub mod both;
pub mod clock;
mod columns;
pub mod compare;
mod connection;
pub mod disk;
pub mod export;
pub mod history_writer;
pub mod live;
pub mod memory;
pub mod recording;
pub mod recovery;
pub mod remote_write;
pub mod repair;
pub mod replay;
pub mod replay_text;
pub mod replayed;
pub mod serve;
pub mod tasks;
pub mod verify;
pub mod watching;
