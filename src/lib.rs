//! Slowburn keeps watch over the latency of every endpoint and gets a person paged when a critical one breaks its promise.
//!
//! This is the map. Data moves one way, in the order of the modules below; each imports only those above it (`tests/tidy.rs` holds it).
//!
//! ```text
//! bytes ─► ingest ─► log ─► machine (slots · judge) ─► log ─► notify ─► people
//!          read,     one    count, decide:             what was       at least once,
//!          admit     frame  pure, no clock             decided        under a fixed id
//!                    per
//!                    commit,          history: closed minutes, hours, days in files
//!                    fsync, "200"     show: API · PromQL · /metrics · remote-write · health read slots, history
//! run/watching  the detectors, beside: closed quarters of an hour in, what they find back into the log
//! run/live    real clock, sockets, disk  ┐ the very same machine, frame for frame
//! run/replay  virtual clock, recordings  ┘
//! ```
//!
//! One timing walks `ingest::http → ingest::json` (or `ingest::binary`) `→ ingest::admission → ingest::commit → run::live → log::file → machine → history::open_slots → judge →
//! incident → log::file → notify::outbox → notify::email`. There is one return, to the log, and it is the point: what stands in the log happened, and everything else follows from it.
//!
//! Invariants, each with a test that fails when it is broken:
//!
//! 1. Time and chance are arguments. Only [`run::clock`] reads a clock, and what it hands on never steps back (`clippy.toml` bans the rest).
//! 2. Flow is one way (`tests/tidy.rs`).
//! 3. Every timing ends in exactly one counted [`ingest::Fate`].
//! 4. Order of arrival within a slot, number of senders and of restarts change nothing that is stored or said; sums are integers ([`counting`]).
//! 5. Acknowledged is on disk, whatever becomes of power, disk and clock; a batch with a name counts once ([`ingest::batch_keys`], `tests/recovery.rs`, `tests/faults/main.rs`).
//! 6. Index and snapshots deleted at any time: every answer is the same again ([`run::recovery`], `tests/history.rs`).
//! 7. The log of a live run, replayed, gives the same lines byte for byte ([`run::replay`], `tests/replay.rs`).
//! 8. A notification is decided in the log before it is sent; a resolve is never lost ([`notify::outbox`]).
//! 9. Everything has a limit that can be set ([`config`]); critical endpoints never fall under those for others ([`history::catalogue`]).
//! 10. Every decision carries its evidence ([`incident::Evidence`]).
//! 11. What detectors find live, after a crash and in a replay is the same ([`detect::fleet`], [`run::watching`], `tests/watching.rs`).
//!
//! Absent on purpose: averaged percentiles, a verdict without enough requests ([`judge::evidence`]), a second clock, locks around state.

pub mod time;

pub mod endpoint;
pub mod objective;

pub mod histogram;

pub mod counting;

pub mod log;

pub mod ingest;

pub mod incident;

pub mod history;

pub mod judge;

pub mod works;

pub mod detect;

pub mod machine;

pub mod notify;

pub mod config;

pub mod show;

pub mod run;

pub mod cli;
