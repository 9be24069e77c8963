//! More than there is room for: what goes first, what never goes, and that every timing is counted however it ends.
//!
//! How full the memory is is set by bodies that begin and do not end, and do not say how long they are: what they have sent so far is held. The limits are tiny: 16 MiB for what passes through.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::server::{Answer, Server, within};

/// For memory of 128 MiB: what passes through.
const PASSING: u64 = 32 << 20;

const CONFIG: &str = "[[endpoint]]\nservice = 'shop'\nroute = '/critical'\n[limits]\nmemory = '128MiB'\n";

fn gauge(server: &Server, name: &str) -> u64 {
    let answer = server.request("GET", "/metrics", &[], b"");
    assert_eq!(answer.status, 200, "metrics are always there: {}", answer.text());
    let text = answer.text();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.parse().unwrap()
}

fn passing(server: &Server) -> u64 {
    gauge(server, "slowburn_process_memory_passing_bytes")
}

/// Bodies that began: dropped, they are cut off.
struct Held(Vec<TcpStream>);

/// Begins bodies until what passes through is at so many thousandths.
fn hold(server: &Server, per_mille: u64) -> Held {
    let mut held = Held(Vec::new());
    let some = vec![b' '; 1 << 20];
    // Each of a sender of its own, which may have one body beyond 95 %.
    while let now = passing(server)
        && now * 1_000 < PASSING * per_mille
    {
        let missing = usize::try_from(PASSING * per_mille / 1_000 - now).unwrap();
        let mut stream = server.connect();
        let head = format!(
            "POST /api/v1/timings HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nSlowburn-Sender: held-{}; epoch=1; seq=1\r\n\r\nf00000\r\n",
            server.port(),
            held.0.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&some[..(missing / 2).clamp(20_000, some.len())]).unwrap();
        held.0.push(stream);
        let start = Instant::now();
        while passing(server) == now && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(2));
        }
        // A busy machine reads what was written in pieces: all of it, before it is said how much is missing.
        let (mut last, mut still) = (passing(server), 0);
        while still < 3 && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
            let now = passing(server);
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
    }
    let full = passing(server) * 1_000 / PASSING;
    assert!((per_mille..per_mille + 20).contains(&full), "{full} is not {per_mille}");
    held
}

fn free(server: &Server, held: Held) {
    drop(held);
    within(Duration::from_secs(10), "bodies that were cut off give back their room", || passing(server) == 0);
}

fn timing(route: &str) -> String {
    format!(r#"{{"service":"shop","method":"POST","route":"{route}","duration_ms":5}}"#)
}

#[test]
fn traces_go_before_anything_else() {
    let server = Server::start(CONFIG, &[]);
    let traced = |trace: &str| format!(r#"{{"service":"shop","route":"/critical","duration_ms":5,"trace_id":"{trace}","key":"k"}}"#);
    let known = || server.get("/api/v1/endpoints")["endpoints"][0]["slowest_traces"][0]["trace_id"].as_str().map(str::to_owned);
    let held = hold(&server, 760);
    server.send_ndjson(traced("shed").as_bytes()).taken(1, 0);
    assert_eq!((gauge(&server, "slowburn_process_traces_shed"), known()), (1, None));
    free(&server, held);
    server.send_ndjson(traced("kept").as_bytes()).taken(1, 0);
    assert_eq!((gauge(&server, "slowburn_process_traces_shed"), known().as_deref()), (1, Some("kept")));
}

fn send_as(server: &Server, sender: &str, seq: u64, body: &str) -> Answer {
    server.send(&[("Slowburn-Sender", &format!("{sender}; epoch=1; seq={seq}"))], body)
}

#[track_caller]
fn is_refused(answer: &Answer, status: u16) {
    answer.refused(status, "");
    assert!(answer.header("retry-after").is_some_and(|s| s.parse::<u64>().is_ok_and(|s| s > 0)), "{answer:?}");
}

const QUERIES: [&str; 4] =
    ["/api/v1/quantiles?service=shop", "/api/v1/counts?service=shop&threshold=1s", "/metrics/endpoints?service=shop", "/api/v1/endpoints?service=shop"];

/// What is never shed, whatever happens.
fn the_rest_works(server: &Server, seq: u64) {
    for path in ["/livez", "/readyz", "/metrics", "/api/v1/incidents", "/api/v1/silences", "/api/v1/objectives"] {
        assert_eq!(server.request("GET", path, &[], b"").status, 200, "{path}");
    }
    let silence = serde_json::json!({"service": "shop", "duration": "1h", "comment": seq.to_string()});
    assert_eq!(server.post("/api/v1/silences", &silence).status, 200);
    send_as(server, "heart", seq, "[]").taken(0, 0);
}

#[test]
fn load_is_shed_in_order_and_every_timing_is_counted() {
    let server = Server::start(CONFIG, &[]);
    send_as(&server, "a", 1, &format!("[{},{}]", timing("/known"), timing("/critical"))).taken(2, 0);
    let mut accepted = 2;

    let held = hold(&server, 830);
    for path in QUERIES {
        is_refused(&server.request("GET", path, &[], b""), 503);
    }
    send_as(&server, "a", 2, &format!("[{},{}]", timing("/known"), timing("/new"))).taken(2, 0);
    accepted += 2;
    the_rest_works(&server, 1);
    server.expect_fate("over_limit", 0);
    free(&server, held);
    for path in QUERIES {
        assert_eq!(server.request("GET", path, &[], b"").status, 200, "{path}");
    }

    let held = hold(&server, 920);
    // A new endpoint is counted under the overflow endpoint of its service; a configured critical one, that is new too, is not.
    let critical = r#"{"service":"shop","method":"PUT","route":"/critical","duration_ms":5}"#;
    send_as(&server, "a", 3, &format!("[{},{},{critical}]", timing("/known"), timing("/newer"))).taken(3, 0);
    accepted += 2;
    server.expect_fate("over_limit", 1);
    the_rest_works(&server, 2);
    free(&server, held);

    let held = hold(&server, 977);
    let noise = format!("[{},{},{}]", timing("/known"), timing("/known"), timing("/newest"));
    is_refused(&send_as(&server, "a", 4, &noise), 503);
    send_as(&server, "a", 5, &format!("[{},{}]", timing("/known"), timing("/critical"))).taken(2, 0);
    accepted += 2;
    server.expect_fate("shed", 3);
    the_rest_works(&server, 3);
    assert_eq!(gauge(&server, "slowburn_process_queries_refused"), 4);
    free(&server, held);

    // The same batch again, now that there is room.
    send_as(&server, "a", 4, &noise).taken(3, 0);
    accepted += 3;
    server.expect_fate("accepted", accepted);
    server.expect_fate("over_limit", 1);
    server.expect_fate("shed", 3);
    assert_eq!(server.requests("shop"), accepted + 1, "what is over the limit is counted too");
    let routes: Vec<String> = server.get("/api/v1/endpoints?service=shop")["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| format!("{} {}", e["method"].as_str().unwrap(), e["route"].as_str().unwrap()))
        .collect();
    for there in ["POST /new", "POST /newest", "PUT /critical", " (other)"] {
        assert!(routes.iter().any(|r| r == there), "{there:?} is not in {routes:?}");
    }
    assert!(!routes.iter().any(|r| r == "POST /newer"), "{routes:?}");
}

/// Packs bytes with gzip, which is in the tests' reach through the command of that name.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[test]
fn large_bodies_from_many_connections_at_once_stay_below_the_ceiling() {
    const CONNECTIONS: usize = 200;
    const CEILING: u64 = 128 << 20;
    let server = Server::start(CONFIG, &[]);
    server.send(&[], &timing("/known")).taken(1, 0);
    // 8 MiB of what does not pack, and as much again of what does: 16 MiB unpacked.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        b'a' + u8::try_from(state >> 60).unwrap()
    })
    .take(8 << 20)
    .collect();
    let mut bomb = gzip(&noise);
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(&vec![b'\n'; (8 << 20) - 1_000]).unwrap();
    bomb.extend(packer.finish().unwrap());
    let before = server.resident_kib() << 10;
    let (done, highest, answered) = (AtomicBool::new(false), AtomicU64::new(0), std::sync::Mutex::new(std::collections::BTreeMap::<u16, u32>::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                highest.fetch_max(server.resident_kib() << 10, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let senders: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let (server, bomb, answered) = (&server, &bomb, &answered);
                scope.spawn(move || {
                    let headers = [("Content-Type", "application/x-ndjson"), ("Content-Encoding", "gzip")];
                    let status = server.request("POST", "/api/v1/timings", &headers, bomb).status;
                    *answered.lock().unwrap().entry(status).or_default() += 1;
                })
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let (grown, answered) = (highest.into_inner().saturating_sub(before), answered.into_inner().unwrap());
    std::thread::sleep(Duration::from_millis(1_500));
    println!("behind it {} MiB are resident, {} MiB before", server.resident_kib() >> 10, before >> 20);
    println!("{CONNECTIONS} bodies of {} MiB: {} MiB more resident, ceiling {} MiB; answers {answered:?}", bomb.len() >> 20, grown >> 20, CEILING >> 20);
    assert!(grown < CEILING + CEILING / 10, "{grown} bytes more");
    assert!(answered.get(&503).is_some_and(|n| *n > 0), "it was shed: {answered:?}");
    assert_eq!(answered.values().sum::<u32>(), 200);
    within(Duration::from_secs(5), "all goes on", || server.send(&[], &timing("/known")).status == 200);
}

#[test]
fn a_flood_of_names_ends_below_the_ceiling() {
    const CEILING: u64 = 96 << 20;
    let limits = "memory = '96MiB'\nendpoints = 10000000\nendpoints_per_service = 10000000\nnew_endpoints_per_second_per_service = 1000000\n";
    let server = Server::start(&format!("[[endpoint]]\nservice = 'shop'\nroute = '/critical'\n[limits]\n{limits}"), &[]);
    server.send(&[], &timing("/known")).taken(1, 0);
    let (mut sent, mut taken, mut refused, mut highest) = (1, 1, 0, 0);
    within(Duration::from_secs(100), "names are counted together", || {
        let lines: Vec<String> =
            (sent..sent + 500).map(|n| format!(r#"{{"service":"names","method":"GET","route":"/a/long/way/to/the/name/{n}","duration_ms":1}}"#)).collect();
        sent += 500;
        if server.send(&[], &format!("[{}]", lines.join(","))).status == 200 {
            taken += 500;
        } else {
            refused += 1;
        }
        highest = highest.max(server.resident_kib() << 10);
        server.fate("over_limit") + server.fate("shed") > 20_000
    });
    let endpoints = gauge(&server, "slowburn_endpoints");
    println!("{sent} names: {endpoints} endpoints, {} MiB resident at most, ceiling {} MiB", highest >> 20, CEILING >> 20);
    assert!(highest < CEILING + CEILING / 10, "{highest}");
    // A body that is not even read counts as one timing.
    within(Duration::from_secs(5), "each batch that was refused is counted, whole or as one", || {
        let shed = server.fate("shed");
        (refused..=500 * refused).contains(&shed) && (shed - refused).is_multiple_of(499)
    });
    let accepted = server.fate("accepted");
    assert_eq!(accepted + server.fate("over_limit"), taken);
    assert_eq!(endpoints, accepted + 1, "each that was accepted has a name of its own, the others one together");
}

#[test]
fn new_endpoints_come_at_a_rate_and_the_rest_is_counted_together() {
    let config = format!("{CONFIG}new_endpoints_per_second_per_service = 2\n");
    let server = Server::start(&config, &[]);
    let names = |service: &str, from: u64| {
        let lines: Vec<String> =
            (from..from + 100).map(|n| format!(r#"{{"service":"{service}","method":"GET","route":"/names/{n}","duration_ms":1}}"#)).collect();
        format!("[{}]", lines.join(","))
    };
    let begun = Instant::now();
    for service in ["burst", "other"] {
        server.send(&[], &names(service, 0)).taken(100, 0);
    }
    server.send(&[], &timing("/critical")).taken(1, 0);
    let over = server.fate("over_limit");
    let late = u64::try_from(begun.elapsed().as_millis()).unwrap() / 250 + 2;
    assert!((160 - late..=160).contains(&over), "{over} of 200 are over: 20 of each service come at once, and 2 a second");
    assert_eq!((server.requests("burst"), server.requests("other")), (100, 100));
    std::thread::sleep(Duration::from_millis(1_100));
    server.send(&[], &names("burst", 200)).taken(100, 0);
    assert!(server.fate("over_limit") < over + 100, "there is room again");
    // What was decided stands in the log: the next start counts the same.
    let count = server.get("/api/v1/endpoints?service=burst")["endpoints"].as_array().unwrap().len();
    let over = server.fate("over_limit");
    let server = server.restart(&config);
    assert_eq!((server.get("/api/v1/endpoints?service=burst")["endpoints"].as_array().unwrap().len(), server.fate("over_limit")), (count, over));
    assert_eq!(server.requests("burst"), 200);
}

#[test]
fn one_sender_that_floods_leaves_the_others_their_answers() {
    const FLOODING: usize = 60;
    static SEQ: AtomicU64 = AtomicU64::new(1);
    let server = Server::start("[limits]\nbatches_waiting = 16\n", &[]);
    let lines = |service: &str, n: usize| {
        let line = format!(r#"{{"service":"{service}","route":"/orders","duration_ms":5}}"#);
        format!("[{}]", vec![line; n].join(","))
    };
    let (flood, quiet) = (lines("flood", 100), lines("quiet", 10));
    let (done, taken, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        for _ in 0..FLOODING {
            let (server, flood, done, taken, refused) = (&server, &flood, &done, &taken, &refused);
            scope.spawn(move || {
                let mut stream = server.connect();
                let head = format!(
                    "POST /api/v1/timings HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nSlowburn-Sender: flood; epoch=",
                    server.port(),
                    flood.len()
                );
                while !done.load(Ordering::Relaxed) {
                    let seq = SEQ.fetch_add(1, Ordering::Relaxed);
                    stream.write_all(format!("{head}1; seq={seq}\r\n\r\n{flood}").as_bytes()).unwrap();
                    let answer = Answer::read_one(&mut stream);
                    match answer.status {
                        200 => taken.fetch_add(100, Ordering::Relaxed),
                        429 | 503 => {
                            is_refused(&answer, answer.status);
                            refused.fetch_add(100, Ordering::Relaxed)
                        }
                        other => panic!("{other} {}", answer.text()),
                    };
                }
            });
        }
        for seq in 1..=6 {
            std::thread::sleep(Duration::from_secs(1));
            let sent = Instant::now();
            send_as(&server, "quiet", seq, &quiet).taken(10, 0);
            slowest = slowest.max(sent.elapsed());
        }
        done.store(true, Ordering::Relaxed);
    });
    let (taken, refused) = (taken.into_inner(), refused.into_inner());
    println!("of a flood {taken} timings were taken and {refused} shed; the slowest of 6 quiet batches took {slowest:?}");
    assert!(refused > 0, "it was shed");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert_eq!((server.requests("quiet"), server.requests("flood")), (60, taken));
    server.expect_fate("shed", refused);
    server.expect_fate("accepted", taken + 60);
}

#[test]
fn few_queries_run_at_one_time_and_others_wait_for_a_bounded_time() {
    let server = Server::start("[limits]\nqueries = 1\nquery_wait = '50ms'\n", &[]);
    server.send(&[], &timing("/known")).taken(1, 0);
    let (answered, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let answer = server.request("GET", "/api/v1/quantiles?service=shop&from=0&step=400d", &[], b"");
                    if answer.status == 200 {
                        answered.fetch_add(1, Ordering::Relaxed);
                    } else {
                        is_refused(&answer, 503);
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let sent = Instant::now();
        server.send(&[], &timing("/known")).taken(1, 0);
        assert!(sent.elapsed() < Duration::from_secs(2), "timings do not wait for queries");
    });
    assert_eq!(answered.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed), 800);
    assert!(answered.into_inner() > 0);
    assert_eq!(gauge(&server, "slowburn_process_queries_refused"), refused.into_inner());
    // The address has not been read to its end by anybody: it is still there.
    let mut stream = server.connect();
    stream.write_all(format!("GET /livez HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n", server.port()).as_bytes()).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
}
