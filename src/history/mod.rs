//! What was counted: the catalogue of endpoints, open slots in memory ([`slots`]), closed periods in files ([`files`]), the index over
//! them in sled ([`store`]), and reading across all of them ([`query`]).

pub mod catalogue;
pub mod files;
pub mod query;
pub mod slots;
pub mod store;
