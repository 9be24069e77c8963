//! `kill -9` under load, at named places and at random moments: nothing acknowledged is lost, nothing counts twice, every incident has one page and one resolve.
//!
//! Sixteen clients post batches of known contents until each is acknowledged; half of the batches are sent a second time while the first is still under way, some
//! answers are thrown away, and batches acknowledged long ago are sent again. The load breaks and keeps four objectives in turn. One data directory lives through all.
//! `SLOWBURN_KILLS=200` kills more often, `SLOWBURN_SEED` repeats a run's choices (not its timing).

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "a test fails by panicking and waits on the real clock"
)]

#[path = "server/receivers.rs"]
mod receivers;
mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use receivers::{Receiver, Told};
use serde_json::Value;
use server::{Connection, Server, get, run, wait_until};

const CLIENTS: u64 = 16;
const ORDERS: u64 = 4;
const SLOT_MS: u64 = 10_000;
const JUDGE_AFTER_MS: u64 = 1_000;
const THRESHOLD_MS: u64 = 100;
/// Between two batches of one client: the load, not a wait for something.
const PACE: Duration = Duration::from_millis(60);
/// Acknowledged batches that a client may send again.
const REMEMBERED: usize = 300;

/// Passed by every commit.
const AT_COMMITS: [&str; 3] = ["before append", "before fdatasync", "after fdatasync"];
/// Passed when a slot closes, or by what follows from it.
const AT_CLOSES: [&str; 5] = ["in slot close", "before history write", "after history write", "before rename", "between send and receipt"];
const RANDOM: &str = "random moments";

#[derive(Clone, Copy)]
enum Plan {
    Point(&'static str, u64),
    Moment(u64),
}

/// What to do around one slot end after another. Each stands for a start of the server; what is due and was not done is done at the next start.
const CHAINS: [&[Plan]; 4] = [
    &[
        Plan::Point("in slot close", 1),
        Plan::Point("before history write", 1),
        Plan::Point("after history write", 1),
        Plan::Point("between send and receipt", 1),
    ],
    &[Plan::Point("between send and receipt", 1), Plan::Point("between send and receipt", 1)],
    &[Plan::Point("before rename", 1), Plan::Point("between send and receipt", 1)],
    // Long enough for a snapshot.
    &[Plan::Moment(4_000), Plan::Point("after history write", 2)],
];

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Until the next slot end is judged.
fn due_in_ms() -> u64 {
    SLOT_MS - (now_ms() - JUDGE_AFTER_MS) % SLOT_MS
}

/// What clients and the one who kills share.
#[derive(Default)]
struct World {
    address: Mutex<Option<SocketAddr>>,
    calm: AtomicBool,
    stop: AtomicBool,
    repeated_in_flight: AtomicU64,
    thrown_away: AtomicU64,
    lost: AtomicU64,
    repeated_later: AtomicU64,
    duplicates: AtomicU64,
}

/// Requests by route: all, and those within the threshold.
type Counts = BTreeMap<String, (u64, u64)>;

struct Batch {
    headers: String,
    body: String,
    counts: Counts,
    timings: u64,
}

struct Client {
    number: u64,
    world: Arc<World>,
    random: Random,
    sent: u64,
    connections: [Option<Connection>; 2],
    acknowledged: Counts,
    remembered: VecDeque<Batch>,
}

impl Client {
    fn run(mut self) -> (u64, Counts) {
        while !self.world.stop.load(Ordering::SeqCst) {
            let start = Instant::now();
            let batch = self.batch();
            self.post(&batch, false);
            for (route, (total, good)) in &batch.counts {
                let sum = self.acknowledged.entry(route.clone()).or_default();
                *sum = (sum.0 + total, sum.1 + good);
            }
            self.remembered.push_back(batch);
            if self.remembered.len() > REMEMBERED {
                self.remembered.pop_front();
            }
            if self.random.below(8) == 0 {
                let index = usize::try_from(self.random.below(self.remembered.len() as u64)).unwrap();
                let old = self.remembered.remove(index).unwrap();
                self.post(&old, true);
                self.world.repeated_later.fetch_add(1, Ordering::Relaxed);
            }
            wait_until(PACE, || (start.elapsed() >= PACE).then_some(()));
        }
        (self.sent, self.acknowledged)
    }

    fn batch(&mut self) -> Batch {
        self.sent += 1;
        let (number, sent, now) = (self.number, self.sent, now_ms());
        let (mut body, mut counts) = (String::from("["), Counts::new());
        let mut add = |route: String, ts: u64, duration_ms: u64| {
            let comma = if body.len() > 1 { "," } else { "" };
            write!(body, r#"{comma}{{"ts":{ts},"service":"shop","method":"POST","route":"{route}","status":200,"duration_ms":{duration_ms}}}"#).unwrap();
            let count = counts.entry(route).or_default();
            *count = (count.0 + 1, count.1 + u64::from(duration_ms <= THRESHOLD_MS));
        };
        for order in (0..ORDERS).chain(0..ORDERS) {
            let burns = !self.world.calm.load(Ordering::Relaxed) && (now / SLOT_MS + order) % 5 < 2;
            // One right on the threshold, which is good.
            let good = if self.random.below(4) == 0 { THRESHOLD_MS } else { 10 + self.random.below(50) };
            add(format!("/orders/{order}"), now, if burns { THRESHOLD_MS + 1 + self.random.below(400) } else { good });
        }
        add(format!("/client/{number}"), now, 1 + sent % 50);
        if sent.is_multiple_of(3) {
            // For hours that are closed long since.
            add("/late".to_owned(), now - 1000 * (3_600 + self.random.below(20 * 3_600)), 5);
        }
        body.push(']');
        let headers = if number.is_multiple_of(2) {
            format!("Content-Type: application/json\r\nIdempotency-Key: {number}-{sent}\r\n")
        } else {
            // A sender starts anew now and then.
            let (epoch, seq) = (1 + sent / 500, sent % 500);
            format!("Content-Type: application/json\r\nSlowburn-Sender: client-{number}; epoch={epoch}; seq={seq}; dropped=0; uptime={seq}\r\n")
        };
        let timings = counts.values().map(|c| c.0).sum();
        Batch { headers, body, counts, timings }
    }

    /// Sends a batch until it is acknowledged. A repeat of one that was must be known.
    fn post(&mut self, batch: &Batch, is_repeat: bool) {
        let twice = self.random.below(2) == 0;
        loop {
            let Some(address) = wait_until(Duration::from_secs(120), || *self.world.address.lock().unwrap()) else { panic!("no server for two minutes") };
            let throws_away = self.random.below(12) == 0;
            let both = if twice { 0..2 } else { 0..1 };
            let sent = both.filter(|slot| self.send(*slot, address, batch)).collect::<Vec<usize>>();
            self.world.repeated_in_flight.fetch_add(u64::from(sent.len() == 2), Ordering::Relaxed);
            if sent.is_empty() {
                // It is gone: there will be another.
                wait_until(PACE, || (*self.world.address.lock().unwrap() != Some(address)).then_some(()));
                continue;
            }
            if throws_away {
                self.connections = [None, None];
                self.world.thrown_away.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let answers: Vec<Value> = sent.iter().filter_map(|slot| self.receive(*slot)).collect();
            self.world.lost.fetch_add(u64::from(answers.is_empty()), Ordering::Relaxed);
            let first = answers.iter().filter(|a| a["duplicate"] != true).count();
            self.world.duplicates.fetch_add((answers.len() - first) as u64, Ordering::Relaxed);
            assert!(first <= usize::from(!is_repeat), "counted twice: client {}, {} {answers:?}", self.number, batch.headers);
            for answer in &answers {
                assert_eq!((answer["accepted"].as_u64(), answer["rejected"].as_u64()), (Some(batch.timings), Some(0)), "{answer}");
            }
            if !answers.is_empty() {
                return;
            }
        }
    }

    fn send(&mut self, slot: usize, address: SocketAddr, batch: &Batch) -> bool {
        let connection = match self.connections[slot].take().filter(|c| c.address() == address) {
            Some(connection) => Ok(connection),
            None => Connection::open(address),
        };
        let sent = connection.and_then(|mut c| c.send("POST", "/api/v1/timings", &batch.headers, &batch.body).map(|()| c));
        self.connections[slot] = sent.ok();
        self.connections[slot].is_some()
    }

    fn receive(&mut self, slot: usize) -> Option<Value> {
        let Ok((status, body)) = self.connections[slot].as_mut()?.receive() else {
            self.connections[slot] = None;
            return None;
        };
        assert!(matches!(status, 200 | 503), "{status} {body}");
        (status == 200).then(|| serde_json::from_str(&body).unwrap())
    }
}

/// The one who kills.
struct Killer {
    world: Arc<World>,
    life: Arc<AtomicU64>,
    random: Random,
    config: PathBuf,
    data_dir: PathBuf,
    hits: BTreeMap<&'static str, u64>,
    chain: VecDeque<Plan>,
    slot_ends: usize,
}

impl Killer {
    fn kills(&self) -> u64 {
        self.hits.values().sum()
    }

    fn has_hit_all(&self) -> bool {
        AT_COMMITS.iter().chain(&AT_CLOSES).chain(&[RANDOM]).all(|name| self.hits.get(name).is_some_and(|hits| *hits >= 2))
    }

    /// What comes next, and how long it may take.
    fn plan(&mut self) -> (Plan, u64) {
        if let Some(next) = self.chain.pop_front() {
            return (next, 4_000);
        }
        let due_in = due_in_ms();
        if due_in < 2_500 {
            self.chain = CHAINS[self.slot_ends % CHAINS.len()].iter().copied().collect();
            self.slot_ends += 1;
            return (self.chain.pop_front().unwrap(), due_in + 4_000);
        }
        let count = 1 + self.random.below(250);
        let plan = match usize::try_from(self.random.below(4)).unwrap() {
            3 => Plan::Moment(self.random.below(3_000)),
            place => Plan::Point(AT_COMMITS[place], count),
        };
        (plan, 3_000)
    }

    /// One life of the server.
    fn kill_once(&mut self) {
        let (plan, limit_ms) = self.plan();
        let (armed, limit_ms) = match plan {
            Plan::Point(name, count) => (format!("{name}:{count}"), limit_ms),
            Plan::Moment(after_ms) => (String::new(), after_ms),
        };
        self.life.fetch_add(1, Ordering::SeqCst);
        let mut server = Server::start(&self.config, &self.data_dir, &[("SLOWBURN_KILL_AT", &armed)]);
        let own_end = wait_until(Duration::from_millis(limit_ms), || {
            if let Some(address) = server.said_address() {
                *self.world.address.lock().unwrap() = Some(address);
            }
            server.ended()
        });
        *self.world.address.lock().unwrap() = None;
        let lines = server.kill();
        let hit = lines.iter().find_map(|line| line.strip_prefix("killed at "));
        let known = AT_COMMITS.iter().chain(&AT_CLOSES).find(|name| Some(**name) == hit).copied();
        assert!(own_end.is_none() || known.is_some(), "the server ended by itself ({own_end:?}):\n{}", lines.join("\n"));
        check_lines(&lines);
        *self.hits.entry(known.unwrap_or(RANDOM)).or_default() += 1;
    }
}

/// No life may end in a panic, find damage, or lose its index.
fn check_lines(lines: &[String]) {
    let wrong = ["panicked", "set aside", "does not check", "\"ERROR\"", "is damaged"];
    let found: Vec<&String> = lines.iter().filter(|line| wrong.iter().any(|w| line.contains(w))).collect();
    assert!(found.is_empty(), "{found:?}");
}

fn config(dir: &Path, mail: SocketAddr, hook: SocketAddr) -> PathBuf {
    let mut text = format!(
        r#"
judge_after = "{JUDGE_AFTER_MS}ms"
snapshot_every = "1ms"
public_url = "https://slow.example"

[[receiver]]
name = "oncall"
email = {{ to = ["oncall@example.com"], from = "slowburn@example.com", smtp = "smtp://{mail}" }}

[[receiver]]
name = "bot"
webhook = {{ url = "http://{hook}/hook" }}

[[burn_window]]
long = "20s"
short = "10s"
factor = 10.0
severity = "critical"
"#
    );
    for order in 0..ORDERS {
        write!(
            text,
            "\n[[endpoint]]\nservice = \"shop\"\nmethod = \"POST\"\nroute = \"/orders/{order}\"\nnotify = [\"oncall\", \"bot\"]\n\
             objectives = [{{ latency = \"{THRESHOLD_MS}ms\", target = \"99%\", period = \"30d\" }}]\n"
        )
        .unwrap();
    }
    let path = dir.join("slowburn.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// What was acknowledged is what every reader of the API sees, to the last timing.
fn check_counts(address: SocketAddr, wanted: &Counts) {
    let endpoints = get(address, "/api/v1/endpoints?service=shop");
    let listed: BTreeMap<&str, u64> =
        endpoints["endpoints"].as_array().unwrap().iter().map(|e| (e["route"].as_str().unwrap(), e["requests"].as_u64().unwrap())).collect();
    let wanted_totals: BTreeMap<&str, u64> = wanted.iter().map(|(route, c)| (route.as_str(), c.0)).collect();
    assert_eq!(listed, wanted_totals, "requests by endpoint (left: the server, right: acknowledged)");
    let range = format!("from={}&to={}", now_ms() - 23 * 3_600_000, now_ms() + 60_000);
    for (route, (total, good)) in wanted {
        let asked = format!("service=shop&method=POST&route={route}&{range}");
        let points = get(address, &format!("/api/v1/quantiles?{asked}"));
        assert_eq!(points["points"][0]["count"], *total, "{route} in history: {points}");
        if route.starts_with("/orders") {
            let counts = get(address, &format!("/api/v1/counts?{asked}&threshold={THRESHOLD_MS}ms"));
            assert_eq!((counts["good"].as_u64(), counts["total"].as_u64()), (Some(*good), Some(*total)), "{route}: {counts}");
        }
    }
}

fn incidents(address: SocketAddr) -> Vec<Value> {
    get(address, "/api/v1/incidents")["incidents"].as_array().unwrap().clone()
}

/// How many notifications an incident's moves are owed.
fn moves(incident: &Value) -> usize {
    incident["timeline"].as_array().unwrap().len()
}

/// Everybody was told of every move of every incident exactly once, but for repeats under the same id: at most one in a life, of what an earlier life sent.
fn check_told(told: &[Told], incidents: &[Value]) -> usize {
    let (mut first_life, mut repeats) = (BTreeMap::<&str, u64>::new(), BTreeMap::<u64, u64>::new());
    for one in told {
        if let Some(before) = first_life.get(one.id.as_str()) {
            assert!(*before < one.life, "one life told twice: {one:?}");
            *repeats.entry(one.life).or_default() += 1;
        } else {
            first_life.insert(&one.id, one.life);
        }
    }
    assert!(repeats.values().all(|n| *n == 1), "a crash brings one repeat at most: {repeats:?}");
    for incident in incidents {
        let id = incident["id"].as_str().unwrap();
        let of_it: Vec<&Told> = told.iter().filter(|t| t.incident == id).collect();
        let distinct = |of: &dyn Fn(&Told) -> bool| of_it.iter().filter(|t| of(t)).map(|t| t.id.as_str()).collect::<BTreeSet<_>>();
        assert_eq!(distinct(&|_| true).len(), moves(incident), "one notification for each move of {id}: {of_it:?}");
        assert_eq!(distinct(&|t| t.resolved).len(), 1, "one resolve for {id}: {of_it:?}");
        assert!(!of_it[0].resolved && of_it.last().unwrap().resolved, "the page first, the resolve last: {of_it:?}");
    }
    let known: BTreeSet<&str> = incidents.iter().map(|i| i["id"].as_str().unwrap()).collect();
    assert!(told.iter().all(|t| known.contains(t.incident.as_str())), "told of an incident that the API does not know");
    told.len() - first_life.len()
}

/// In a mailbox an incident is one thread: one root, and all else in reply to it.
fn check_threads(mails: &[Told], incidents: &[Value]) {
    for incident in incidents {
        let of_it: Vec<&Told> = mails.iter().filter(|t| t.incident == *incident["id"].as_str().unwrap()).collect();
        let roots: BTreeSet<&str> = of_it.iter().filter(|t| t.reply_to.is_none()).map(|t| t.id.as_str()).collect();
        assert_eq!(roots.len(), 1, "one page for each incident: {of_it:?}");
        assert!(of_it.iter().filter_map(|t| t.reply_to.as_deref()).all(|to| roots.contains(to)), "{of_it:?}");
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap())
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story, in order")]
fn kill_9_loses_nothing_counts_nothing_twice_and_pages_once() {
    let start = Instant::now();
    let (kills, seed) = (setting("SLOWBURN_KILLS").unwrap_or(40), setting("SLOWBURN_SEED").unwrap_or_else(now_ms));
    println!("SLOWBURN_KILLS={kills} SLOWBURN_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let (world, life) = (Arc::<World>::default(), Arc::<AtomicU64>::default());
    let (mail, hook) = (Receiver::mail(&life), Receiver::webhook(&life));
    let config = config(dir.path(), mail.address, hook.address);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (world, random) = (Arc::clone(&world), Random(seed ^ (number + 1) << 48));
            let client = Client { number, world, random, sent: 0, connections: [None, None], acknowledged: Counts::new(), remembered: VecDeque::new() };
            std::thread::spawn(move || client.run())
        })
        .collect();
    let data_dir = dir.path().join("data");
    let mut killer = Killer {
        world: Arc::clone(&world),
        life: Arc::clone(&life),
        random: Random(seed),
        config: config.clone(),
        data_dir: data_dir.clone(),
        hits: BTreeMap::new(),
        chain: VecDeque::new(),
        slot_ends: 0,
    };
    while killer.kills() < kills || (!killer.has_hit_all() && killer.kills() < kills + 30) {
        killer.kill_once();
        assert!(clients.iter().all(|c| !c.is_finished()), "a client has failed: see above");
    }
    for (name, hits) in &killer.hits {
        println!("{hits:4} × {name}");
    }
    assert!(killer.has_hit_all(), "a place was hit less than twice: {:?}", killer.hits);
    let killed_in = start.elapsed();

    // From here on all is well: every incident ends, and everybody hears of it.
    world.calm.store(true, Ordering::SeqCst);
    life.fetch_add(1, Ordering::SeqCst);
    let mut server = Server::start(&config, &data_dir, &[]);
    let address = server.wait_listening();
    *world.address.lock().unwrap() = Some(address);
    let is_over = || {
        let all = incidents(address);
        let owed: usize = all.iter().map(moves).sum();
        let heard = |r: &Receiver| r.told().iter().map(|t| t.id.clone()).collect::<BTreeSet<_>>().len() >= owed;
        (all.iter().all(|i| i["state"] == "resolved") && heard(&mail) && heard(&hook)).then_some(())
    };
    let over = wait_until(Duration::from_secs(90), is_over);
    world.stop.store(true, Ordering::SeqCst);
    let (mut batches, mut wanted) = (0, Counts::new());
    for client in clients {
        let (sent, acknowledged) = client.join().unwrap();
        batches += sent;
        for (route, (total, good)) in acknowledged {
            let sum = wanted.entry(route).or_default();
            *sum = (sum.0 + total, sum.1 + good);
        }
    }
    let timings: u64 = wanted.values().map(|c| c.0).sum();
    let number = |n: &AtomicU64| n.load(Ordering::Relaxed);
    println!(
        "{batches} batches of {timings} timings acknowledged; {} repeated in flight, {} after a lost answer, {} after one thrown away, {} later; {} answered as duplicates",
        number(&world.repeated_in_flight),
        number(&world.lost),
        number(&world.thrown_away),
        number(&world.repeated_later),
        number(&world.duplicates),
    );
    check_counts(address, &wanted);
    let ended = incidents(address);
    assert!(over.is_some(), "an incident does not end, or a resolve is lost: {ended:?}\nmails: {:?}", mail.told());
    let (mails, calls) = (mail.told(), hook.told());
    let repeats = [check_told(&mails, &ended), check_told(&calls, &ended)];
    check_threads(&mails, &ended);
    println!(
        "{} incidents opened and resolved; {} mails and {} webhooks, {} and {} of them repeats",
        ended.len(),
        mails.len(),
        calls.len(),
        repeats[0],
        repeats[1]
    );
    assert!(ended.len() >= 2, "too few incidents to say anything");
    assert!(repeats.iter().sum::<usize>() as u64 >= killer.hits["between send and receipt"], "what was sent and not receipted is sent again");

    // The same again from log and history alone.
    check_lines(&server.kill());
    let names = |dir: &Path| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    let kept = [names(&data_dir), names(&data_dir.join("snapshots"))].concat();
    assert!(!kept.iter().any(|name| name.starts_with("index.bad") || name.ends_with(".new")), "crashes leave things lying about: {kept:?}");
    let data = data_dir.display().to_string();
    let (sound, said) = run(&["verify", "--redecide", "--data-dir", &data]);
    assert!(sound, "{said}");
    let (rebuilt, said) = run(&["rebuild-view", "--data-dir", &data, "--config", &config.display().to_string()]);
    assert!(rebuilt, "{said}");
    let mut server = Server::start(&config, &data_dir, &[]);
    let address = server.wait_listening();
    check_counts(address, &wanted);
    assert_eq!(incidents(address), ended);
    check_lines(&server.kill());
    assert_eq!((mail.told().len(), hook.told().len()), (mails.len(), calls.len()), "a rebuild tells nobody anything again");
    println!("killed {} times in {killed_in:.0?}; {:.0?} in all", killer.kills(), start.elapsed());
}

/// What a power cut can do that a kill cannot: the disk keeps one file and not the other.
mod power_cut {
    use std::fs::{self, OpenOptions};
    use std::path::Path;
    use std::sync::Arc;

    use slowburn::counting::{Cell, Outcome, Span, Tally};
    use slowburn::endpoint::{EndpointId, EndpointKey};
    use slowburn::histogram::Digits;
    use slowburn::history::catalogue::{Entry, Limits, Marked};
    use slowburn::history::closed_periods::Wanted;
    use slowburn::history::counts::Writer;
    use slowburn::history::query;
    use slowburn::history::sum::Sum;
    use slowburn::machine::Delta;
    use slowburn::run::disk::Retention;
    use slowburn::run::recovery::{self, Opened};
    use slowburn::time::{Slot, TimeRange, Timestamp};

    const NOW: Timestamp = Timestamp(6_100_000);

    fn open(data_dir: &Path) -> Opened {
        let limits = Limits { per_service: 10, total: 10, marked_critical_per_service: 1 };
        let day = 86_400_000;
        recovery::open(data_dir, limits, Retention { minutes_ms: 8 * day, hours_ms: 400 * day, log_ms: 2 * day }, NOW, false).unwrap()
    }

    fn take(opened: &mut Opened, delta: &Delta) {
        let position = opened.log.stage(&delta.to_sections());
        let effects = opened.machine.apply(position, delta);
        opened.log.commit().unwrap();
        opened.keeper.keep(position, delta, &effects).unwrap();
    }

    /// One request in a slot; of a new endpoint when there is none.
    fn one_request(opened: &Opened, slot: u32) -> Delta {
        let mut cell = Cell::new(&[], Digits::Two);
        cell.record(Outcome::Ok, Span::exact(500), Tally { weight: 1, observed: 1 });
        let part = |text: &str| text.to_owned();
        let key = EndpointKey { service: part("shop"), env: part(""), kind: part("http"), method: part("GET"), route: part("/") };
        let is_new = opened.machine.catalogue.entries().is_empty();
        let endpoints = is_new.then(|| Entry { key: Arc::new(key), marked: Marked::No }).into_iter().collect();
        let mut counts = Writer::default();
        counts.cell(Slot(slot), EndpointId(0), &cell);
        Delta { endpoints, counts: counts.finish(), ..Delta::default() }
    }

    /// In all that is stored, and in what the machine says of ever.
    fn counted(opened: &Opened) -> (u64, u64) {
        let Opened { machine, keeper, .. } = opened;
        let (all, kept) = (TimeRange { from: Timestamp(0), to: NOW }, keeper.kept(machine, NOW));
        let (wanted, mut found) = (Wanted::These(vec![EndpointId(0)]), 0);
        let mut taken = query::take(kept, &keeper.index, wanted.clone());
        taken.add_open(&machine.open, &wanted, all);
        taken.read(&keeper.reader(), &[all], Sum::default(), |_, cell| found += cell.total().weight).unwrap();
        (found, machine.total_of(EndpointId(0)).requests())
    }

    fn cut(file: &Path, by: u64) {
        let file = OpenOptions::new().write(true).open(file).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(by)).unwrap();
    }

    #[test]
    fn history_that_the_index_knows_and_the_disk_lost_is_written_again() {
        for cut_bytes in [1, u64::MAX] {
            let dir = tempfile::tempdir().unwrap();
            let mut opened = open(dir.path());
            for minute in [100, 101] {
                let delta = one_request(&opened, minute * 6);
                take(&mut opened, &delta);
                opened.keeper.checkpoint(&mut opened.machine, NOW).unwrap();
                let close = opened.machine.close(Slot(minute * 6 + 5));
                take(&mut opened, &close);
            }
            // The index is flushed with the next checkpoint, after history.
            opened.keeper.index.flush(opened.machine.position, None).unwrap();
            assert_eq!(counted(&opened), (2, 2));
            drop(opened);
            let minutes = fs::read_dir(dir.path().join("history/minute")).unwrap().next().unwrap().unwrap().path();
            // Only what was written after the last checkpoint can be lost.
            cut(&minutes, cut_bytes.min(fs::metadata(&minutes).unwrap().len() / 2));
            assert_eq!(counted(&open(dir.path())), (2, 2));
            assert_eq!(counted(&open(dir.path())), (2, 2));
        }
    }

    #[test]
    fn a_log_that_ends_before_the_snapshot_goes_on_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path());
        for slot in 600..603 {
            let delta = one_request(&opened, slot);
            take(&mut opened, &delta);
        }
        opened.keeper.checkpoint(&mut opened.machine, NOW).unwrap();
        drop(opened);
        fs::remove_dir_all(dir.path().join("log")).unwrap();
        let mut opened = open(dir.path());
        let delta = one_request(&opened, 603);
        take(&mut opened, &delta);
        drop(opened);
        assert_eq!(counted(&open(dir.path())), (4, 4), "what was acknowledged after the loss is read again");
    }
}
