use http::Method;

use super::*;

fn recorder(pairs_limit: usize) -> Recorder {
    let critical = [(MethodId::of(&Method::POST), "/orders".to_owned())];
    Recorder::new(Clock::start(), Routes::new(1_000, &critical), pairs_limit)
}

fn timed(recorder: &Recorder, method: &Method, route: &str, took: Duration) {
    let now = recorder.clock.now();
    let begun = recorder.begin(MethodId::of(method), route, now);
    recorder.end(&begun, Outcome::Status(200), now + took);
}

fn pairs(drained: Vec<Counts>) -> Vec<(u64, u64)> {
    let mut pairs: Vec<_> = drained.into_iter().flat_map(|c| c.pairs).map(|(pair, n)| (pair.value_us, n)).collect();
    pairs.sort_unstable();
    pairs
}

#[test]
fn durations_are_rounded_once_half_up_and_held_in_range() {
    for (nanos, us) in [(0, 1), (1_499, 1), (1_500, 2), (2_499, 2), (999_500, 1_000), (182_400_499, 182_400)] {
        assert_eq!(whole_us(Duration::from_nanos(nanos)), us, "{nanos} ns");
    }
    assert_eq!(whole_us(Duration::from_secs(8 * 86_400)), VALUE_US_MAX);
    assert_eq!(whole_us(Duration::MAX), VALUE_US_MAX);
}

#[test]
fn bucket_edges_are_those_of_hdrhistogram() {
    let reference = hdrhistogram::Histogram::<u64>::new_with_bounds(1, VALUE_US_MAX, 2).unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    let random = (0..10_000).map(|_| rng.u64(1..VALUE_US_MAX) >> rng.u32(0..39));
    for value in (1..2_000).chain(random).chain([VALUE_US_MAX]).filter(|v| *v > 0) {
        assert_eq!(bucket_edge(value), reference.highest_equivalent(value).min(VALUE_US_MAX), "{value}");
    }
}

#[test]
fn a_critical_route_keeps_every_microsecond_and_the_others_keep_buckets() {
    let recorder = recorder(1_000);
    for us in [100_001, 100_002, 100_002] {
        timed(&recorder, &Method::POST, "/orders", Duration::from_micros(us));
    }
    assert_eq!(pairs(recorder.drain(true)), [(100_001, 1), (100_002, 2)]);
    for us in [100_001, 100_002] {
        timed(&recorder, &Method::GET, "/orders", Duration::from_micros(us));
    }
    assert_eq!(pairs(recorder.drain(true)), [(bucket_edge(100_001), 2)]);
    assert!(recorder.drain(true).is_empty());
}

#[test]
fn a_full_shard_is_set_aside_whole_and_wakes_the_flush() {
    let recorder = recorder(10);
    for us in 0..25 {
        timed(&recorder, &Method::POST, "/orders", Duration::from_micros(1_000 + us));
    }
    let set_aside: Vec<_> = recorder.drain(false).iter().map(|counts| counts.timings).collect();
    assert_eq!(set_aside, [10, 10]);
    assert_eq!(pairs(recorder.drain(true)), [1_020, 1_021, 1_022, 1_023, 1_024].map(|us| (us, 1)));
}

#[test]
fn without_a_flush_the_oldest_are_lost_and_counted() {
    let recorder = recorder(10);
    let sent = 10 * (SET_ASIDE_MAX as u64 + 3) + 4;
    for us in 0..sent {
        timed(&recorder, &Method::POST, "/orders", Duration::from_micros(1_000 + us));
    }
    assert_eq!(recorder.dropped.load(Ordering::Relaxed), 30);
    let kept = pairs(recorder.drain(true));
    assert_eq!(kept.len() as u64, sent - 30);
    assert_eq!(kept[0], (1_030, 1));
}

#[test]
fn a_timing_is_dated_by_the_slot_in_which_it_ended() {
    let recorder = recorder(10);
    let now = recorder.clock.now();
    let begun = recorder.begin(MethodId::of(&Method::GET), "/a", now);
    assert_eq!(recorder.running().len(), 1);
    let end = now + Duration::from_secs(35);
    recorder.end(&begun, Outcome::Timeout, end);
    assert_eq!(recorder.running().len(), 0);
    let drained = recorder.drain(true);
    let pair = drained[0].pairs.keys().next().unwrap();
    assert_eq!(u64::from(pair.slot), recorder.clock.unix_ms(end) / SLOT_MS);
    assert_eq!(pair.outcome, Outcome::Timeout);
}

#[test]
fn threads_lose_nothing() {
    let recorder = recorder(50);
    let drained = std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let recorder = &recorder;
            scope.spawn(move || {
                for i in 0..2_000 {
                    timed(recorder, &Method::POST, "/orders", Duration::from_micros(thread + i % 40 + 1));
                }
            });
        }
        let mut timings = 0;
        for _ in 0..100 {
            timings += recorder.drain(true).iter().map(|counts| counts.timings).sum::<u64>();
        }
        timings
    });
    let rest: u64 = recorder.drain(true).iter().map(|counts| counts.timings).sum();
    assert_eq!(drained + rest + recorder.dropped.load(Ordering::Relaxed), 8_000);
}
