//! The N-th operation on disk fails, for every N until a run meets none: the engine ends, or goes on when there is room again; what was acknowledged is there after the
//! next start, once, and nothing is asked of a file again whose sync failed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use rustix::io::Errno;
use slowburn::log::disk_ops::Operation;
use slowburn::log::fault_plan::{self, Fault};
use slowburn::time::Timestamp;

use crate::common::{HOUR, Server, folder};
use crate::data_dir::{RETENTION, START, wrong};
use crate::extent;

const BATCHES: u64 = 30;

#[derive(Debug, Default)]
struct Seen {
    fired: AtomicU64,
    ended: AtomicU64,
    refused: AtomicU64,
    went_on: AtomicU64,
    not_opened: AtomicU64,
    met_none: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One run with one fault. Afterwards each acknowledged batch counts once, and any other at most once.
fn run(fault: Fault, seen: &Seen) {
    let dir = folder();
    let watch = fault_plan::watch(dir.path());
    watch.fail(fault);
    let what = format!("{fault:?}");
    let mut now = START;
    let mut acknowledged: BTreeMap<u64, bool> = BTreeMap::new();
    match Server::try_start(dir.path(), RETENTION, 2_000, Timestamp(now)) {
        Err(_) => add(&seen.not_opened),
        Ok(server) => {
            let (mut refusals, mut last) = (0, StatusCode::OK);
            // A few more where it has just been refused.
            for number in 0..BATCHES + 3 {
                if number >= BATCHES && last == StatusCode::OK {
                    break;
                }
                now += if number == BATCHES / 2 { 27 * HOUR } else { 15_000 };
                if watch.fired() > 0 && number >= BATCHES - 6 && last == StatusCode::INSUFFICIENT_STORAGE {
                    watch.heal();
                    // Longer than until a full disk is tried again.
                    std::thread::sleep(Duration::from_millis(350));
                }
                server.try_at(Timestamp(now));
                let body = format!(r#"{{"service":"s","route":"/{number}","ts":{now},"status":200,"duration_ms":5}}"#);
                let key = format!("k{number}");
                let (status, answer) = server.post(&body, Some(("idempotency-key", &key)));
                assert!(matches!(status.as_u16(), 200 | 503 | 507), "{what}: {status} {answer}");
                acknowledged.insert(number, status == StatusCode::OK);
                refusals += u64::from(status == StatusCode::INSUFFICIENT_STORAGE);
                last = status;
            }
            watch.heal();
            let end = server.end();
            if refusals > 0 {
                add(&seen.refused);
                assert_eq!(fault.error, Errno::NOSPC, "{what}");
            }
            match end {
                Ok(()) if watch.fired() > 0 => {
                    assert_eq!(last, StatusCode::OK, "{what}: it takes batches again by itself");
                    add(&seen.went_on);
                }
                Ok(()) => add(&seen.met_none),
                Err(_) => {
                    add(&seen.ended);
                    assert!(fault.error == Errno::IO, "{what}: there was no room, and the process ended");
                    assert_no_second_sync(&watch);
                }
            }
        }
    }
    seen.fired.fetch_add(watch.fired(), Ordering::Relaxed);
    drop(watch);
    let server = Server::try_start(dir.path(), RETENTION, 2_000, Timestamp(now)).unwrap_or_else(|e| panic!("{what}: the next start: {e}"));
    let endpoints = server.json("/api/v1/endpoints");
    let counted: BTreeMap<String, u64> =
        endpoints["endpoints"].as_array().unwrap().iter().map(|e| (e["route"].as_str().unwrap().to_owned(), e["requests"].as_u64().unwrap())).collect();
    for (number, acknowledged) in acknowledged {
        let count = counted.get(&format!("/{number}")).copied().unwrap_or(0);
        assert!(count <= 1 && (count == 1 || !acknowledged), "{what}: batch {number}, acknowledged: {acknowledged}, counts {count}");
        let asked = format!("/api/v1/quantiles?service=s&route=/{number}&from={}&to={}&q=0.5", START, now + HOUR);
        assert_eq!(server.json(&asked)["points"][0]["count"].as_u64().unwrap_or(0), count, "{what}: batch {number} in history");
    }
    server.stop();
    assert_eq!(wrong(dir.path()), Vec::<String>::new(), "{what}");
}

/// History is written by another thread than the log: that one may go on for a moment, with other files.
fn assert_no_second_sync(watch: &fault_plan::Watch) {
    let events = watch.events();
    for (_, path, after) in watch.failed().iter().filter(|f| f.0 == Operation::Sync) {
        let again = events[*after..].iter().any(|e| e.operation == Operation::Sync && e.path == *path);
        assert!(!again, "{}: a sync after one that failed", path.display());
    }
}

/// Tries each N until none is met; several at a time, since those without room wait for it.
fn every(step: u64, fault: Fault) -> (u64, Seen) {
    let (seen, next) = (Seen::default(), Mutex::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while seen.met_none.load(Ordering::Relaxed) == 0 {
                    let after = {
                        let mut next = next.lock().unwrap();
                        *next += step;
                        *next - step
                    };
                    run(Fault { after, ..fault }, &seen);
                }
            });
        }
    });
    let last = *next.lock().unwrap();
    (last, seen)
}

#[test]
fn the_nth_operation_fails_for_every_n() {
    let once = Fault::once(Errno::IO);
    let of = |operation| Fault { operation: Some(operation), ..once };
    let full = Fault { lasting: true, ..Fault::once(Errno::NOSPC) };
    let cases = [
        ("EIO, any", once),
        ("EIO, syncs", of(Operation::Sync)),
        ("EIO, appends cut short", Fault { bytes_done: 9, ..of(Operation::Append) }),
        ("ENOSPC, once", Fault::once(Errno::NOSPC)),
        ("ENOSPC, once, cut short", Fault { bytes_done: 21, ..Fault::once(Errno::NOSPC) }),
        ("ENOSPC until there is room", full),
        ("ENOSPC until there is room, cut short", Fault { bytes_done: 30, ..full }),
    ];
    let step = if extent(0, 1) == 1 { 1 } else { 11 };
    for (name, fault) in cases {
        let (tried, seen) = every(step, fault);
        println!("nth failure: {name}: N to {tried} in steps of {step}, {seen:?}");
        assert!(seen.fired.load(Ordering::Relaxed) >= 3, "{name}: {seen:?}");
        if fault.error == Errno::NOSPC {
            assert!(seen.went_on.load(Ordering::Relaxed) > 0 && seen.ended.load(Ordering::Relaxed) == 0, "{name}: {seen:?}");
        } else {
            assert!(seen.ended.load(Ordering::Relaxed) > 0 && seen.went_on.load(Ordering::Relaxed) == 0, "{name}: {seen:?}");
        }
    }
}
