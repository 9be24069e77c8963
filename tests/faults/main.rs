//! The disk and the clock at their worst: power cuts at every operation, the N-th operation that fails, flipped bits, full disks, clock steps, and seeded runs of all of it.
//!
//! `SLOWBURN_FAULTS=full cargo test --test faults -- --nocapture` runs it in full; without, a part of each that takes seconds. `SLOWBURN_SEED` repeats a run.
//! Every test counts the faults that fired and fails when there were too few: a test that injects nothing proves nothing.

#![cfg(debug_assertions)]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    unreachable_pub,
    reason = "a test fails by panicking, counts little, waits on the real clock, and has one crate of modules"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../server/mod.rs"]
mod server;

mod clock_steps;
mod data_dir;
mod disk_model;
mod flipped_bit;
mod full_disk;
mod nth_failure;
mod power_cut;
mod repair_command;
mod simulated_log;

/// So many in short, so many in full.
fn extent(short: u64, full: u64) -> u64 {
    let given = std::env::var("SLOWBURN_FAULTS").unwrap_or_default();
    match given.as_str() {
        "full" => full,
        "" => short,
        number => number.parse().expect("SLOWBURN_FAULTS is `full` or a number"),
    }
}
