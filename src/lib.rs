//! Slowburn.

pub mod time;
pub mod endpoint;
pub mod objective;
pub mod histogram;
pub mod counting;
pub mod log;
pub mod ingest;
pub mod history;
pub mod incident;
pub mod judge;
pub mod machine;
pub mod config;
pub mod run;
pub mod cli;
