//! The task against a server of these tests, at paused time.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::time::sleep;

use super::*;
use crate::record::Outcome;

mod server;

use server::{LIMIT, Mode, Run, Seen};

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_sender_tells_that_it_lives() {
    let run = Run::start(Mode::Well);
    seconds(60).await;
    let seen = run.seen();
    assert!((5..=7).contains(&seen.len()), "{}", seen.len());
    for (i, seen) in seen.iter().enumerate() {
        assert_eq!((seen.post.body.as_ref(), seen.post.content_type), (b"[]".as_ref(), "application/json"));
        assert_eq!(seen.field("seq"), i as u64 + 1);
        assert_eq!(seen.field("epoch"), run.seen()[0].field("epoch"));
    }
    let gaps: Vec<_> = seen.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert!(gaps.iter().all(|gap| (9_000..=11_001).contains(&gap.as_millis())), "{gaps:?}");
    assert!(gaps.windows(2).any(|pair| pair[0] != pair[1]), "no jitter: {gaps:?}");
    assert!(seen[4].field("uptime") >= 36);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_keeps_number_and_bytes_and_nothing_is_lost() {
    let run = Run::start(Mode::Answering(503, None));
    run.orders(1_000..1_010);
    let _running = run.begin();
    for _ in 0..30 {
        seconds(10).await;
        run.orders(2_000..2_003);
    }
    run.set(Mode::Well);
    seconds(90).await;
    let seen = run.seen();
    let repeats: Vec<_> = seen.iter().filter(|seen| seen.field("seq") == 1).collect();
    assert!(repeats.len() > 5);
    assert!(repeats.iter().all(|seen| seen.post.body == repeats[0].post.body));
    assert!(repeats[0].lines().iter().any(|line| line.get("in_flight").is_some()), "the ages are frozen with the batch");
    let stored: Vec<_> = seen.iter().filter(|seen| seen.stored).map(|seen| seen.field("seq")).collect();
    assert_eq!(stored, (1..=stored.len() as u64).collect::<Vec<_>>());
    assert_eq!(run.stored_timings(), 10 + 30 * 3);
    assert_eq!(run.dropped(), 0);
}

#[tokio::test(start_paused = true)]
async fn attempts_become_rarer_and_obey_retry_after() {
    let run = Run::start(Mode::Absent);
    seconds(3_600).await;
    let attempts = run.seen().len();
    assert!((60..400).contains(&attempts), "60 s at most and 30 s on average between two: {attempts}");
    assert!(run.seen().windows(2).all(|pair| pair[1].at - pair[0].at <= Duration::from_millis(60_002)));

    run.set(Mode::Answering(429, Some("300")));
    seconds(3_600).await;
    let asked: Vec<_> = run.seen().split_off(attempts + 1).windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert!(asked.len() >= 9 && asked.iter().all(|gap| gap.as_secs() >= 300), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_costs_bounded_memory_and_the_loss_is_told_first() {
    for mode in [Mode::Absent, Mode::Hanging, Mode::Answering(503, Some("5"))] {
        let run = Run::start(mode);
        let mut most = 0;
        for _ in 0..120 {
            run.orders(100_000..100_500);
            seconds(10).await;
            most = most.max(run.gauges.queued_bytes.load(Ordering::Relaxed));
        }
        assert!(most <= LIMIT, "{most} bytes");
        assert!(most > LIMIT / 2, "the limit was not reached: {most} bytes");
        let failed = run.seen().len();
        run.set(Mode::Well);
        seconds(120).await;
        let seen = run.seen();
        let first = seen[failed..].iter().find(|seen| seen.stored).unwrap();
        assert_eq!(first.field("dropped"), run.dropped());
        assert!(run.dropped() > 0);
        assert_eq!(run.stored_timings() + run.dropped(), 120 * 500, "{mode:?}");
        let last = seen.iter().rfind(|seen| seen.timings() > 0).unwrap();
        assert!(last.field("seq") >= 100, "the newest survive: {}", last.field("seq"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_dropped_and_counted() {
    let run = Run::start(Mode::Answering(401, None));
    run.orders(1_000..1_007);
    seconds(15).await;
    assert_eq!(run.dropped(), 7);
    run.set(Mode::Well);
    run.orders(1_000..1_002);
    seconds(75).await;
    let first = run.seen().into_iter().find(|seen| seen.stored).unwrap();
    assert_eq!(first.field("dropped"), 7);
    assert_eq!(run.stored_timings(), 2);
}

#[tokio::test(start_paused = true)]
async fn items_that_the_server_refuses_are_its_to_count() {
    let run = Run::start(Mode::RefusingItems);
    run.orders(1_000..1_007);
    seconds(15).await;
    assert_eq!((run.dropped(), run.gauges.queued_batches.load(Ordering::Relaxed)), (0, 0));
    assert_eq!(run.stored_timings(), 7);
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_told_with_its_age_until_it_ends() {
    let run = Run::start(Mode::Well);
    let begun = run.begin();
    let started = run.recorder.clock.now();
    seconds(45).await;
    let told = run.seen();
    assert!(told.len() >= 4);
    for seen in &told {
        assert_eq!(seen.post.content_type, "application/x-ndjson");
        let age_ms = u64::try_from((seen.at - started).as_millis()).unwrap();
        let expected = serde_json::json!([{"in_flight": [
            {"service": "shop", "env": "prod", "method": "POST", "route": "/orders", "age_ms": age_ms, "n": 1},
        ]}]);
        assert_eq!(serde_json::Value::from(seen.lines()), expected);
    }
    run.recorder.end(&begun, Outcome::Timeout, run.recorder.clock.now());
    seconds(15).await;
    let after = &run.seen()[told.len()..];
    assert_eq!(after[0].lines()[0]["outcome"], "timeout");
    assert!(after.iter().flat_map(Seen::lines).all(|line| line.get("in_flight").is_none()));
}

#[tokio::test(start_paused = true)]
async fn many_different_durations_are_sent_early_and_exactly() {
    let run = Run::start(Mode::Well);
    seconds(15).await;
    run.orders(1_000_000..1_012_000);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(run.stored_timings(), 10_000, "two full shards, before the flush");
    seconds(11).await;
    let values: BTreeMap<u64, u64> = run
        .seen()
        .iter()
        .flat_map(Seen::lines)
        .filter_map(|line| line.get("values_us")?.as_array().cloned())
        .flatten()
        .map(|pair| (pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap()))
        .collect();
    assert_eq!(values, (1_000_000..1_012_000).map(|us| (us, 1)).collect());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_sends_what_there_is_and_ends_the_task() {
    let run = Run::start(Mode::Well);
    run.orders(1_000..1_010);
    assert_eq!(run.shut_down().await, Unsent { timings: 0 });
    assert_eq!(run.stored_timings(), 10);
    run.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_takes_two_seconds_at_most_and_says_what_is_left() {
    for mode in [Mode::Absent, Mode::Hanging, Mode::Answering(503, Some("60"))] {
        let run = Run::start(mode);
        run.orders(1_000..1_010);
        seconds(31).await;
        run.orders(1_000..1_005);
        let asked = run.recorder.clock.now();
        assert_eq!(run.shut_down().await, Unsent { timings: 15 }, "{mode:?}");
        let took = run.recorder.clock.now() - asked;
        assert!(took <= Duration::from_millis(2_002), "{mode:?} {took:?}");
        run.task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_no_backoff() {
    let run = Run::start(Mode::Answering(503, Some("600")));
    run.orders(1_000..1_010);
    seconds(31).await;
    run.set(Mode::Well);
    assert_eq!(run.shut_down().await, Unsent { timings: 0 });
    assert_eq!(run.stored_timings(), 10);
}

#[tokio::test(start_paused = true)]
async fn when_all_handles_are_gone_the_rest_is_sent_and_the_task_ends() {
    let run = Run::start(Mode::Well);
    run.orders(1_000..1_010);
    drop(run.farewells);
    run.task.await.unwrap();
    let timings: u64 = run.server.seen.lock().unwrap().iter().map(Seen::timings).sum();
    assert_eq!(timings, 10);
}

#[test]
fn each_status_is_delivered_tried_again_or_refused() {
    let verdict = |status: u16| {
        let status = StatusCode::from_u16(status).unwrap();
        judge(&Answer { status, retry_after: None, body: Bytes::new() }, std::time::UNIX_EPOCH)
    };
    for status in [200, 202, 204] {
        assert_eq!(verdict(status), Verdict::Delivered { refused: None });
    }
    for status in [408, 425, 429, 500, 502, 503, 504, 507] {
        assert_eq!(verdict(status), Verdict::Again { trouble: Trouble::Status(status), asked: None });
    }
    for status in [301, 400, 401, 403, 404, 413, 415, 422] {
        assert_eq!(verdict(status), Verdict::Refused { trouble: Trouble::Status(status) });
    }
}
