//! What was counted: the catalogue of endpoints, open slots in memory ([`open_slots`]), closed periods in files ([`closed_periods`]), the index over
//! them in sled ([`index`]), coarser periods from finer ones ([`roll_up`]), and reading across all of them ([`query`]).

pub mod catalogue;
pub mod closed_periods;
pub mod counts;
pub mod index;
mod layout;
pub mod open_slots;
pub mod query;
pub mod reader;
pub mod roll_up;
pub mod sum;
pub mod totals;
