//! What was counted: the catalogue of endpoints and how fast it may grow ([`creation`]), what frames counted ([`counts`], [`gathered`]), open slots in memory ([`open_slots`]), closed periods in files ([`closed_periods`]), the index over
//! them ([`index`]), coarser periods from finer ones ([`roll_up`]), the slowest timings that carried a trace ([`exemplars`]),
//! what becomes of damaged files ([`repair`], [`losses`]), and reading across all of them ([`query`]), or by groups of endpoints ([`grouped`]).

pub mod catalogue;
pub mod closed_periods;
pub mod counts;
pub mod creation;
pub mod exemplars;
pub mod gathered;
pub mod grouped;
pub mod index;
mod index_store;
mod layout;
pub mod losses;
pub mod open_slots;
pub mod query;
pub mod reader;
pub mod repair;
pub mod roll_up;
pub mod sum;
pub mod totals;
