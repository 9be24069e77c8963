//! Where the machine meets the world: [`replay`] the virtual clock over recordings, [`clock`] the real one.

pub mod clock;
pub mod replay;
pub mod keep;
pub mod live;
