//! Where the machine meets the world: [`serve`] runs a server, [`live`] its engine, [`keep`] what is on disk beside the log, [`replay`] the virtual clock over
//! recordings, [`clock`] the real one, [`tasks`] what runs beside.

pub mod clock;
mod connection;
pub mod keep;
pub mod live;
pub mod replay;
pub mod serve;
pub mod tasks;
pub mod verify;
