//! Slowburn.
pub mod time;
pub mod endpoint;
pub mod objective;
pub mod histogram;
pub mod counting;
pub mod log;
pub mod incident;
pub mod judge;
pub mod history;
pub mod ingest;
pub mod notify;
