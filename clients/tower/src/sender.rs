//! Who sends: the `Slowburn-Sender` header, by which a repeated batch is recognised, and a loss or a silence is seen.
//!
//! `ID; epoch=E; seq=N; dropped=D; uptime=S`: E names one run of the process, N the batch, D all timings that this run has
//! dropped so far (a sum since the start, so that a lost batch loses no news), S the seconds since the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;

const ID_BYTES_MAX: usize = 128;

#[derive(Debug, Clone)]
pub(crate) struct Sender {
    id: String,
    epoch: u64,
}

impl Sender {
    /// None if the id is not 1 to 128 of `A-Z a-z 0-9 . _ : -`.
    pub(crate) fn new(id: String, clock: &Clock) -> Option<Self> {
        let valid = (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(is_id_byte);
        valid.then(|| Self { id, epoch: epoch(clock) })
    }

    pub(crate) fn header(&self, seq: u64, dropped: u64, uptime: Duration) -> String {
        format!("{}; epoch={}; seq={seq}; dropped={dropped}; uptime={}", self.id, self.epoch, uptime.as_secs())
    }
}

/// `SERVICE.HOST.PID`, with what an id may not hold replaced. The end, which tells processes apart, is never cut.
pub(crate) fn default_id(service: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .unwrap_or_default();
    id_of(service, host.trim(), std::process::id())
}

fn id_of(service: &str, host: &str, pid: u32) -> String {
    let host = if host.is_empty() { "host" } else { host };
    let clean = |text: &str, max: usize| -> String { text.bytes().take(max).map(|b| if is_id_byte(b) { char::from(b) } else { '_' }).collect() };
    format!("{}.{}.{pid}", clean(service, 48), clean(host, 64))
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._:-".contains(&byte)
}

/// The start in Unix milliseconds, or a random number if the clock was never set. Two senders of one process never share it.
fn epoch(clock: &Clock) -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let wanted = clock.plausible_unix_ms().unwrap_or_else(|| fastrand::u64(1..1 << 40));
    let next = |last: u64| wanted.max(last + 1);
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last))).unwrap_or_default();
    next(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_names_sender_run_batch_and_losses() {
        let clock = Clock::start();
        let sender = Sender::new("shop-1".to_owned(), &clock).unwrap();
        let header = sender.header(7, 42, Duration::from_millis(61_900));
        assert_eq!(header, format!("shop-1; epoch={}; seq=7; dropped=42; uptime=61", sender.epoch));
    }

    #[test]
    fn two_senders_of_one_process_have_two_epochs() {
        let clock = Clock::start();
        let epochs: Vec<_> = (0..50).map(|_| epoch(&clock)).collect();
        assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "{epochs:?}");
    }

    #[test]
    fn ids_are_checked_and_the_default_is_always_valid() {
        let clock = Clock::start();
        for bad in ["", "a b", "a;b", "ü", &"x".repeat(129)] {
            assert!(Sender::new(bad.to_owned(), &clock).is_none(), "{bad}");
        }
        assert_eq!(id_of("my shop", "web-1", 42), "my_shop.web-1.42");
        let longest = id_of(&"ü".repeat(500), &"h".repeat(500), u32::MAX);
        assert!(longest.ends_with(&u32::MAX.to_string()));
        for id in [longest, id_of("s", "", 1), default_id("shop")] {
            assert!(Sender::new(id.clone(), &clock).is_some(), "{id}");
        }
    }
}
