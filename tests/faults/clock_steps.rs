//! The machine's clock steps by an hour or a day, back or forward, while the server runs and between two runs: nothing acknowledged is lost, a closed slot stays closed, and
//! no incident opens or resolves because of it.

use slowburn::judge::Command;
use slowburn::run::clock::Clock;
use slowburn::time::{Slot, Timestamp};

use crate::common::{DAY, HOUR, Server, folder, promises};
use crate::data_dir::{RETENTION, SEGMENT_BYTES, START};

const OWED: &str = r#"
[[burn_window]]
long = "20s"
short = "10s"
factor = 2.0
severity = "critical"

[[endpoint]]
service = "s"
route = "/burning"
objectives = [{ availability = true, target = "90%", period = "30d" }]

[[endpoint]]
service = "s"
route = "/well"
objectives = [{ availability = true, target = "90%", period = "30d" }]
"#;

/// A server beside the time that its machine's clock shows.
struct Stepped {
    server: Server,
    machine_ms: i64,
    sent: u64,
}

impl Stepped {
    fn start(dir: &std::path::Path, machine_ms: i64) -> Self {
        let known = slowburn::run::recovery::open(dir, crate::common::LIMITS, RETENTION, Timestamp(machine_ms), false).unwrap();
        let judged = known.machine.judge.judged_to().map_or(Timestamp(0), Slot::end);
        drop(known);
        // As the server does: never behind what the log holds.
        Self { server: Server::start(dir, RETENTION, SEGMENT_BYTES, judged.max(Timestamp(machine_ms))), machine_ms, sent: 0 }
    }

    fn step(&mut self, by_ms: i64) {
        self.machine_ms += by_ms;
        self.server.at(Timestamp(self.machine_ms));
    }

    fn send(&mut self, route: &str, status: u16) {
        let ts = self.server.clock.now().0;
        let lines: Vec<String> = (0..20).map(|_| format!(r#"{{"service":"s","route":"/{route}","ts":{ts},"status":{status},"duration_ms":5}}"#)).collect();
        let (status, answer) = self.server.post(&lines.join("\n"), None);
        assert!(status.is_success() && answer.contains(r#""accepted":20"#), "{status} {answer}");
        self.sent += 20;
    }

    fn incidents(&self) -> Vec<(String, usize)> {
        let all = self.server.json("/api/v1/incidents");
        let one = |i: &serde_json::Value| (i["state"].as_str().unwrap().to_owned(), i["timeline"].as_array().unwrap().len());
        all["incidents"].as_array().unwrap().iter().map(one).collect()
    }

    fn counted(&self) -> u64 {
        self.server.look(|m| m.totals.iter().map(|c| c.sums.requests()).sum())
    }

    fn judged_to(&self) -> Slot {
        self.server.look(|m| m.judge.judged_to().unwrap())
    }
}

#[test]
fn a_step_of_the_clock_loses_nothing_and_opens_or_resolves_nothing() {
    let mut steps = 0;
    for between_runs in [false, true] {
        for step_ms in [-HOUR, HOUR, -DAY, DAY] {
            let dir = folder();
            let mut run = Stepped::start(dir.path(), START);
            run.server.decide(Command::Configure(Timestamp(START), promises(OWED))).unwrap();
            for _ in 0..6 {
                run.step(10_000);
                run.send("burning", 503);
                run.send("well", 200);
            }
            run.step(10_000);
            let (open, judged, what) = (run.incidents(), run.judged_to(), format!("{step_ms} ms, between runs: {between_runs}"));
            assert_eq!(open.len(), 1, "{what}: {open:?}");
            assert_ne!(open[0].0, "resolved", "{what}");
            let mut sent = run.sent;
            if between_runs {
                run.server.stop();
                run = Stepped::start(dir.path(), START + 70_000 + step_ms);
                run.step(0);
            } else {
                run.step(step_ms);
            }
            steps += 1;
            let after = run.incidents();
            assert!(after.len() == 1 && after[0].0 != "resolved", "{what}: {after:?} after {open:?}");
            assert!(run.judged_to() >= judged, "{what}: a closed slot is open again");
            assert_eq!(run.counted(), sent, "{what}");
            // Time goes on, or stands still until it has caught up; either way what is sent counts.
            let before = run.judged_to();
            run.sent = 0;
            for _ in 0..6 {
                run.step(10_000);
                run.send("burning", 503);
                run.send("well", 200);
            }
            sent += run.sent;
            assert_eq!(run.counted(), sent, "{what}");
            assert!(run.judged_to() >= before, "{what}");
            assert!(run.incidents().iter().filter(|i| i.0 != "resolved").count() == 1 && run.incidents().len() == 1, "{what}: {:?}", run.incidents());
            run.server.stop();
            let again = Stepped::start(dir.path(), START + DAY);
            assert_eq!(again.counted(), sent, "{what}: after another start");
            assert!(again.judged_to() >= before, "{what}: after another start");
            again.server.stop();
        }
    }
    println!("clock steps: {steps}");
    assert_eq!(steps, 8);
}

#[test]
fn the_clock_that_is_handed_on_never_steps_back() {
    let clock = Clock::not_before(Timestamp(i64::MAX / 2));
    assert_eq!(clock.now(), Timestamp(i64::MAX / 2), "the real clock is behind");
    let by_hand = Clock::by_hand(Timestamp(DAY));
    by_hand.move_to(Timestamp(HOUR));
    assert_eq!(by_hand.now(), Timestamp(DAY));
}
