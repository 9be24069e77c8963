//! The built server over HTTP: what it takes, what it answers, what it refuses, and that bad input leaves everything else as it was.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::format_push_string,
    clippy::match_same_arms,
    clippy::large_stack_arrays,
    unreachable_pub,
    reason = "a test fails by panicking, waits on the real clock, and has one crate of modules"
)]

mod bad_input;
mod commands;
mod connections;
mod description;
mod overload;
#[path = "../proto/mod.rs"]
mod proto;
mod reading;
mod scrape;
mod security;
mod server;
mod timings;
