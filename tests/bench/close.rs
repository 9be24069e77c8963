//! Closing a slot of many active endpoints and judging it, in this process: what the thread spends on it that owns the machine.

use std::sync::Arc;

use slowburn::config::Config;
use slowburn::counting::Outcome;
use slowburn::endpoint::{EndpointId, EndpointKey};
use slowburn::history::catalogue::{Entry, Marked};
use slowburn::history::open_slots::ClosedMinute;
use slowburn::ingest::Batch;
use slowburn::ingest::packed::Packed;
use slowburn::judge::Record;
use slowburn::machine::{Delta, Machine};
use slowburn::time::{Slot, Timestamp};

use super::process::thread_cpu_ns;
use super::table::{Table, Target};
use super::traffic::Random;
use super::{Bench, SEED};

const ENDPOINTS: u32 = 100_000;

/// Of each endpoint in each slot.
const TIMINGS: u32 = 10;

/// Commits in a slot.
const COMMITS: u32 = 100;

/// The first slot of a minute, of an hour and of a day: 5 January 2026.
const FROM: Slot = Slot(176_757_120);

/// One entry matches all endpoints of a route, whatever their environment; one request in forty-five is slower than promised, one in two hundred fails.
const PROMISES: &str = r#"
[[endpoint]]
service = "judged"
route = "/judged"
objectives = [{ latency = "100ms", target = "99%", period = "30d" }, { availability = true, target = "99%", period = "30d" }]

[limits]
endpoints_per_service = 100000
endpoints = 100000
"#;

/// Milliseconds that this thread spends.
fn spent_ms<T>(work: impl FnOnce() -> T) -> (f64, T) {
    // What a running thread has spent is told as of the last time the scheduler looked at it.
    let now_ns = || {
        std::thread::yield_now();
        thread_cpu_ns()
    };
    let before = now_ns();
    let done = work();
    ((now_ns() - before) / 1e6, done)
}

fn machine(judged: u32) -> Machine {
    let config = Config::parse("bench.toml", PROMISES).unwrap();
    let mut machine = Machine::new(config.promises, config.endpoint_limits);
    let key = |n: u32| {
        let (service, env, route) = if n < judged {
            ("judged".to_owned(), format!("e{n}"), "/judged".to_owned())
        } else {
            (format!("s{:02}", n % 20), "prod".to_owned(), format!("/r/{n:05}"))
        };
        EndpointKey { service, env, kind: "http".to_owned(), method: "GET".to_owned(), route }
    };
    // The judged ones stand all over the numbers, as in life.
    let endpoints = (0..ENDPOINTS).map(|n| Entry { key: Arc::new(key((u64::from(n) * 7_919 % u64::from(ENDPOINTS)) as u32)), marked: Marked::No });
    let delta = Delta { endpoints: endpoints.collect(), ..Delta::default() };
    machine.apply(machine.position.next(), &delta);
    machine
}

/// Ten seconds of requests; milliseconds spent on taking them in.
fn live(machine: &mut Machine, slot: Slot, random: &mut Random) -> f64 {
    let mut spent = 0.0;
    for commit in 0..COMMITS {
        let timings = ENDPOINTS * TIMINGS / COMMITS;
        let packed = (0..timings).map(|n| {
            // Each endpoint in turn, in another order than that of the numbers.
            let id = (u64::from(commit * timings + n) * 7_919 % u64::from(ENDPOINTS)) as u32;
            let outcome = if random.below(200) == 0 { Outcome::Error } else { Outcome::Ok };
            Packed::new(slot, EndpointId(id), u64::from(random.duration_us(20_000.0)), outcome).unwrap()
        });
        let batch = Batch { read_in: slot, packed: packed.collect(), ..Batch::default() };
        let (ms, ()) = spent_ms(|| {
            let delta = machine.fold(&[&batch]);
            machine.apply(machine.position.next(), &delta);
        });
        spent += ms;
    }
    spent
}

pub fn close(bench: &mut Bench) {
    let minutes = if bench.long { 5 } else { 3 };
    for judged in [0, 1_000, 10_000] {
        let (mut machine, mut random) = (machine(judged), Random(SEED));
        let (mut folded, mut slots, mut whole_minutes, mut rows, mut said) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut closed_minutes, mut lines): (Vec<Arc<ClosedMinute>>, u64) = (Vec::new(), 0);
        for slot in (FROM.0..FROM.0 + minutes * 6).map(Slot) {
            folded.push(live(&mut machine, slot, &mut random));
            let (ms, (delta, effects)) = spent_ms(|| {
                let delta = machine.close(slot);
                let effects = machine.apply(machine.position.next(), &delta);
                (delta, effects)
            });
            let Some(Record::SlotClosed(closed)) = delta.records.first() else { unreachable!("a slot was closed") };
            lines += closed.transitions.len() as u64;
            // Pages beside, because a slot in which many objectives break at once is not every slot.
            let kind = match (effects.closed.is_empty(), closed.transitions.len()) {
                (false, _) => &mut whole_minutes,
                (true, 0..=10) => &mut slots,
                (true, _) => &mut said,
            };
            kind.push(ms);
            closed_minutes.extend(effects.closed);
        }
        for minute in closed_minutes {
            rows.push(spent_ms(|| minute.rows().map(|row| row.slots.len() as u64).sum::<u64>()).0);
        }
        assert_eq!(machine.history_to(), Timestamp(i64::from(FROM.0 + minutes * 6) * 10_000), "all slots were closed");
        Table::note(&format!("{judged} of 100k endpoints have two objectives, {TIMINGS} timings of each endpoint in a slot; {lines} incidents moved"));
        let row = |bench: &mut Bench, what: &str, values: &[f64], target: Target| {
            if !values.is_empty() {
                bench.table.row(&format!("{judged} judged: {what}"), "ms", values, target);
            }
        };
        row(bench, "taking a slot in", &folded, Target::None);
        row(bench, "closing a slot", &slots, Target::AtMost(1_000.0));
        row(bench, "closing a slot and its minute", &whole_minutes, Target::AtMost(1_000.0));
        row(bench, "closing a slot in which incidents move", &said, Target::AtMost(1_000.0));
        row(bench, "a minute's rows, made by the history thread", &rows, Target::None);
    }
}
