//! Senders that go away, on the real engine with a clock moved by hand: what is told of it, over restarts, and what a replay of the log says.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking; modules that tests share")]

use serde_json::Value;
use slowburn::config::Config;
use slowburn::endpoint::PathTemplates;
use slowburn::ingest::batch_keys::{Identity, Sender};
use slowburn::ingest::known::KnownEndpoints;
use slowburn::run::replay::Replay;
use slowburn::time::Timestamp;
use slowburn::works::presence::Heard;

mod virtual_server;
use virtual_server::Server;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 3_600_000;
const START: i64 = 1_767_571_200_000;

const CONFIG: &str = r#"
judge_after = "15s"
[[endpoint]]
service = "cards"
route = "print.run"
kind = "job"
objectives = [{ latency = "30s", target = "99%", period = "30d" }]
notify = ["cards"]
[[receiver]]
name = "everybody"
webhook = { url = "http://127.0.0.1:9/" }
[[receiver]]
name = "cards"
webhook = { url = "http://127.0.0.1:9/" }
"#;

struct Night {
    server: Server,
    now: i64,
    seq: u64,
}

impl Night {
    /// Goes on until an instant; these report each minute, that they are there and now and then what they do.
    fn until(&mut self, end: i64, alive: &[(&str, &str)]) {
        while self.now < end {
            self.now += MINUTE;
            self.server.move_to(Timestamp(self.now));
            self.seq += 1;
            for (id, service) in alive {
                let sender = Sender { id: (*id).to_owned(), epoch: 1, seq: self.seq, dropped: 0, uptime_s: 0 };
                let (ts, route) = (self.now - 2_000, if *service == "cards" { "print.run" } else { "read" });
                let timing = format!(r#"{{"ts":{ts},"service":"{service}","kind":"job","route":"{route}","duration_ms":3}}"#);
                self.server.send_as(Identity::Sender(sender), if self.seq % 10 == 1 { &timing } else { "" });
            }
        }
    }

    fn heard(&self, service: &str) -> Heard {
        let service = (service.to_owned(), String::new());
        self.server.look(move |machine| machine.presence.heard(&service, machine.judge.judged_to().unwrap().end()))
    }
}

#[test]
fn workers_that_die_at_night_are_told_within_five_minutes_and_a_stop_of_the_server_is_no_death() {
    let everybody = [("worker-1", "cards"), ("worker-2", "cards"), ("web", "shop")];
    let mut night = Night { server: Server::start(CONFIG, Timestamp(START)), now: START, seq: 0 };
    night.until(START + 12 * HOUR, &everybody);
    // The server is away for ten minutes, in which everybody lives.
    night.now += 10 * MINUTE;
    night.server.crash_until(Timestamp(night.now), |_| ());
    assert_eq!(night.heard("cards"), Heard::Unknown);
    night.until(START + 25 * HOUR, &everybody);
    assert_eq!((night.heard("cards"), night.server.open_incidents().len()), (Heard::Alive, 0));

    let death = night.now;
    night.until(death + 5 * MINUTE, &everybody[2..]);
    assert_eq!((night.heard("cards"), night.heard("shop"), night.server.open_incidents().len()), (Heard::Dark, Heard::Alive, 1));
    let told = night.server.look(|machine| machine.judge.outbox().iter().map(|n| n.receiver.clone()).collect::<Vec<_>>());
    assert_eq!(told, ["cards"], "whoever is named with an endpoint of the service");
    // It starts anew while they are dead: they stay so, and it is not told again.
    night.server.crash();
    night.until(death + HOUR, &everybody[2..]);
    assert_eq!((night.heard("cards"), night.server.open_incidents().len()), (Heard::Dark, 1));
    let back = night.now;
    night.until(back + 3 * MINUTE, &everybody[1..]);
    assert_eq!((night.heard("cards"), night.server.open_incidents().len()), (Heard::Alive, 0));

    let (lines, dir) = night.server.stop();
    let said: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(said.len(), 2, "{lines}");
    let (opened, resolved) = (&said[0], &said[1]);
    assert_eq!((&opened["event"], &opened["kind"], &opened["severity"]), (&"opened".into(), &"silence".into(), &"critical".into()));
    let after = opened["at"].as_i64().unwrap() - death;
    assert!((0..=5 * MINUTE).contains(&after), "{after} ms");
    let summary = opened["summary"].as_str().unwrap();
    assert_eq!(summary, "Nobody reports for cards any more: its 2 senders (worker-1, worker-2) were last heard of at 2026-01-06 01:00 UTC.");
    assert_eq!((&resolved["event"], &resolved["id"]), (&"resolved".into(), &opened["id"]));
    assert!((0..=2 * MINUTE).contains(&(resolved["at"].as_i64().unwrap() - back)));

    let (templates, known, mut out) = (PathTemplates::default(), KnownEndpoints::default(), Vec::new());
    let mut replay = Replay::new(None, 15_000, Config::default_config().endpoint_limits, &templates, &known, Vec::new(), &mut out, |bad| panic!("{bad:?}"));
    replay.log(dir.path(), |_| ()).unwrap();
    replay.finish(None).unwrap();
    drop(replay);
    assert_eq!(String::from_utf8(out).unwrap(), lines);
}
