//! Slowburn among its real neighbours: the built server, the shop behind the tower client, a mail server, Prometheus. What is simulated elsewhere happens here.
//!
//! A neighbour that is not installed is passed over with a notice; `SLOWBURN_REQUIRE_PEERS=1` makes that a failure (`.ci/run`).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_precision_loss, clippy::similar_names, reason = "counts far below 2^53; a server, what it served")]

#[path = "peers/kit.rs"]
#[allow(dead_code, reason = "other tests share it")]
mod kit;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kit::{Customers, MailServer, Prometheus, Server, Shop, counters, until};
use mail_parser::{Message, MessageParser};

const SHORT_WINDOWS: &str = r#"
[[burn_window]]
long = "30s"
short = "10s"
factor = 14.4
severity = "critical"

[[burn_window]]
long = "60s"
short = "20s"
factor = 6.0
severity = "critical"
"#;

/// One promise for `POST /orders`, one receiver; what is left out has its default.
fn config(smtp_port: u16, windows: &str) -> String {
    format!(
        r#"
judge_after = "1s"
public_url = "https://slowburn.example.com"

[[endpoint]]
service = "shop"
method = "POST"
route = "/orders"
objectives = [{{ latency = "800ms", target = "99%", period = "30d" }}]

[[receiver]]
name = "oncall"
email = {{ to = ["oncall@example.com"], from = "Slowburn <slowburn@example.com>", smtp = "smtp://127.0.0.1:{smtp_port}" }}
{windows}"#
    )
}

/// Lines of orders that took so long, so long ago.
fn orders(how_many: usize, duration_ms: u64, ago_ms: u64) -> String {
    let ts = kit::now_ms() - ago_ms;
    (0..how_many).fold(String::new(), |mut lines, _| {
        writeln!(lines, r#"{{"ts":{ts},"service":"shop","env":"prod","method":"POST","route":"/orders","status":201,"duration_ms":{duration_ms}}}"#).unwrap();
        lines
    })
}

/// The sum over all series of a name that have all these labels.
fn sum(samples: &std::collections::BTreeMap<String, f64>, name: &str, labels: &[&str]) -> f64 {
    let of_name = |series: &str| series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
    samples.iter().filter(|(series, _)| of_name(series) && labels.iter().all(|l| series.contains(l))).map(|(_, v)| v).sum()
}

fn parsed(mails: &[Vec<u8>]) -> Vec<Message<'_>> {
    mails.iter().map(|mail| MessageParser::default().parse(mail.as_slice()).unwrap()).collect()
}

/// The value of a line such as `Promised:  99 % good`.
fn fact<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

/// A page says which endpoint breaks which promise, and what was observed against what was promised, over which window, in how many requests.
fn assert_page(page: &Message<'_>) {
    assert_eq!(page.subject(), Some("[critical] POST /orders (shop, prod) breaks latency<=800ms"));
    assert!(page.in_reply_to().as_text().is_none() && page.references().as_text().is_none(), "a page begins a thread");
    let text = page.body_text(0).unwrap();
    assert_eq!(fact(&text, "Endpoint"), "POST /orders (shop, prod)");
    assert!(fact(&text, "Objective").starts_with("latency<=800ms, 99 % "), "{text}");
    assert_eq!(fact(&text, "Promised"), "99 % good");
    // 62.7 % good in 30s: 56 of 150 requests bad
    let words: Vec<&str> = fact(&text, "Observed").split([' ', ':']).filter(|w| !w.is_empty()).collect();
    let [good, "%", "good", "in", "30s" | "1m", bad, "of", n, "requests", "bad"] = words[..] else { panic!("{text}") };
    let (good, bad, n): (f64, f64, f64) = (good.parse().unwrap(), bad.parse().unwrap(), n.parse().unwrap());
    assert!(n >= 1.0 && bad <= n && (good - 100.0 * (n - bad) / n).abs() < 0.06 && good < 99.0, "{text}");
}

#[test]
fn slow_orders_page_a_person_and_their_end_answers_in_the_same_thread() {
    if !kit::has_mail_server() || !kit::has_shop() {
        return;
    }
    // Kept, so that somebody can read the mails.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers-page");
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).unwrap();
    let mail_server = MailServer::start(&dir);
    let server = Server::start(&dir, &config(mail_server.port, SHORT_WINDOWS));
    let shop = Shop::start(server.address, 20);
    let customers = shop.customers(8);
    until("a healthy start is judged", 120, || {
        let served = sum(&server.samples(), "slowburn_requests_total", &["/orders"]);
        served >= 100.0 && server.get("/api/v1/objectives")["objectives"][0]["windows"][0]["requests_long"].as_u64() >= Some(50)
    });
    assert!(mail_server.mails().is_empty() && server.incidents().is_empty());

    for episode in 0..2 {
        shop.set("mode=slow&factor=8");
        let start = kit::now();
        until("the page", 120, || mail_server.mails().len() > 2 * episode);
        eprintln!("episode {episode}: paged after {:.0?}", start.elapsed());
        assert_eq!(server.incidents().iter().filter(|i| i["state"] == "firing").count(), 1);
        shop.set("mode=healthy");
        let start = kit::now();
        until("the resolve", 120, || mail_server.mails().len() > 2 * episode + 1);
        eprintln!("episode {episode}: resolved after {:.0?}", start.elapsed());
    }
    customers.go_home();

    let mails = mail_server.mails();
    let mails = parsed(&mails);
    let [first, first_end, second, second_end] = &mails[..] else { panic!("{} mails", mails.len()) };
    for (page, end) in [(first, first_end), (second, second_end)] {
        assert_page(page);
        assert_eq!(end.in_reply_to().as_text(), page.message_id());
        assert_eq!(end.references().as_text(), page.message_id());
        assert_eq!(end.subject(), Some("Re: [resolved] POST /orders (shop, prod) breaks latency<=800ms"));
        let ended = end.body_text(0).unwrap();
        assert!(fact(&ended, "Why now").starts_with("good again: "), "{ended}");
        // 52 of 1776 requests bad; windows as short as these forget too soon to compare it with the page.
        let in_all: Vec<u64> = fact(&ended, "In all").split(' ').filter_map(|w| w.parse().ok()).collect();
        assert!(in_all.len() == 2 && in_all[0] > 0 && in_all[1] > in_all[0], "{ended}");
    }
    assert_ne!(first.message_id(), second.message_id());
    // The reads beside went through the client as well, and nobody was told of them.
    assert!(sum(&server.samples(), "slowburn_requests_total", &["/products"]) > 0.0);
}

/// Half an hour of orders, one in two seconds, of which one in so many is slow; the numbers follow from their place.
fn half_an_hour(slow_one_in: u64) -> String {
    (0..900_u64).fold(String::new(), |mut lines, n| {
        let spread = (n * 2_654_435_761) % 1_000;
        let duration_ms = if n % slow_one_in == slow_one_in - 1 { 1_500 } else { 120 + spread / 4 };
        let ts = 1_766_534_400_000 + n * 2_000;
        writeln!(lines, r#"{{"ts":{ts},"service":"shop","env":"prod","method":"POST","route":"/orders","status":201,"duration_ms":{duration_ms}}}"#).unwrap();
        lines
    })
}

#[test]
fn half_an_hour_of_health_is_not_worth_a_line() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.toml"), config(25, "")).unwrap();
    // Promised are 99 %: one slow order of 150 is what was agreed on, one of 5 is not.
    for (slow_one_in, is_healthy) in [(150, true), (5, false)] {
        std::fs::write(dir.path().join("t.ndjson"), half_an_hour(slow_one_in)).unwrap();
        let replay = Command::new(env!("CARGO_BIN_EXE_slowburn"))
            .args(["replay", "--config", "c.toml", "t.ndjson"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
        let said = String::from_utf8(replay.stdout).unwrap();
        assert_eq!(said.is_empty(), is_healthy, "{said}");
        assert!(is_healthy || said.contains("\"event\":\"opened\"") && said.contains("\"severity\":\"critical\""), "{said}");
    }
}

#[test]
fn one_slow_request_among_few_is_undecided_and_wakes_nobody() {
    if !kit::has_mail_server() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mail_server = MailServer::start(dir.path());
    let server = Server::start(dir.path(), &config(mail_server.port, ""));
    let minutes_ago = |n: u64| n * 60_000;
    let lines: String = (0..35).map(|n| orders(1, if n == 1 { 30_000 } else { 180 }, minutes_ago(n))).collect();
    assert_eq!(server.post("", &lines).1["accepted"], 35);
    let posted = kit::now_ms();
    until("everything posted was judged", 60, || server.has_judged(posted));
    let status = &server.get("/api/v1/objectives")["objectives"][0];
    assert_eq!((status["state"].as_str(), status["n"].as_u64(), status["bad"].as_u64()), (Some("undecided"), Some(35), Some(1)), "{status}");
    assert!(status["undecided_until"].as_u64().unwrap() > posted, "{status}");
    assert!(status["windows"].as_array().unwrap().iter().all(|w| w["verdict"] != "firing"), "{status}");
    let samples = server.samples();
    assert_eq!((sum(&samples, "slowburn_slo_undecided", &[]), sum(&samples, "slowburn_notifications_waiting", &[])), (1.0, 0.0));
    assert!(server.incidents().is_empty() && mail_server.mails().is_empty());
}

#[test]
fn a_mail_server_that_was_away_gets_each_mail_once() {
    if !kit::has_mail_server() {
        return;
    }
    let outage = Duration::from_secs(std::env::var("SLOWBURN_SMTP_OUTAGE_S").map_or(20, |s| s.parse().unwrap()));
    let dir = tempfile::tempdir().unwrap();
    let mut mail_server = MailServer::start(dir.path());
    let mut server = Server::start(dir.path(), &config(mail_server.port, SHORT_WINDOWS));
    mail_server.kill();
    let start = kit::now();
    let waiting = |server: &Server| sum(&server.samples(), "slowburn_notifications_waiting", &[]);
    until("a page is owed", 60, || {
        server.post("", &orders(5, 2_000, 0));
        waiting(&server) > 0.0
    });
    until("an attempt has failed", 60, || sum(&server.samples(), "slowburn_process_delivery_failures", &[]) > 0.0);
    // What is owed is owed by the log, not by the process.
    server.start_again();
    until("the outage is over", outage.as_secs() + 60, || {
        server.post("", &orders(5, 2_000, 0));
        assert_eq!(waiting(&server).to_bits(), 1.0_f64.to_bits(), "owed, and once");
        start.elapsed() >= outage
    });
    assert!(mail_server.mails().is_empty());
    let failures = sum(&server.samples(), "slowburn_process_delivery_failures", &[]);
    eprintln!("the mail server was away for {:.0?}; {failures} attempts failed since the restart", start.elapsed());
    mail_server.start_again();
    let start = kit::now();
    // Waits between attempts grow with the outage, up to 5 minutes.
    until("the page", 330, || {
        server.post("", &orders(5, 2_000, 0));
        !mail_server.mails().is_empty()
    });
    eprintln!("the page came {:.0?} after the mail server", start.elapsed());
    until("the resolve", 120, || {
        server.post("", &orders(20, 180, 0));
        mail_server.mails().len() > 1
    });
    until("both have receipts", 30, || waiting(&server) == 0.0);
    server.process.stop();
    server.start_again();
    let started = kit::now_ms();
    until("the next start has judged", 60, || server.has_judged(started));
    let mails = mail_server.mails();
    let mails = parsed(&mails);
    let [page, resolve] = &mails[..] else { panic!("{} mails", mails.len()) };
    assert_page(page);
    assert_eq!(resolve.in_reply_to().as_text(), page.message_id());
    assert_eq!(sum(&server.samples(), "slowburn_notifications_total", &[r#"receiver="oncall""#, r#"result="sent""#]).to_bits(), 2.0_f64.to_bits());
}

/// What `promtool check metrics` has to say; empty when all is well.
fn promtool(scrape: &str) -> String {
    said_of(scrape, "promtool", &["check", "metrics"])
}

/// What a program that reads a page has to say.
fn said_of(page: &str, program: &str, arguments: &[&str]) -> String {
    let mut reader = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    reader.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = reader.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() || !said.is_empty());
    String::from_utf8(said).unwrap()
}

/// Reads a page from standard input and says how many families and samples it has, which traces stand behind samples, and which units there are.
const OPEN_METRICS_READER: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read
families = list(read(sys.stdin.buffer.read().decode()))
samples = [s for f in families for s in f.samples]
traces = sorted((s.name, s.exemplar.labels['trace_id'], float(s.exemplar.value)) for s in samples if s.exemplar)
print(len(families), len(samples), traces, sorted({f.unit for f in families}))
";

#[test]
fn the_reference_reader_takes_the_open_metrics_page() {
    if !kit::has_open_metrics() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &config(kit::free_port(), SHORT_WINDOWS));
    assert_eq!(server.post("", &(orders(60, 180, 0) + &orders(60, 2_000, 0))).1["accepted"], 120);
    let traced = r#"{"service":"shop","route":"/traced","status":500,"duration_ms":2100,"trace_id":"a \"quoted\" \\ größer } # {"}"#;
    assert_eq!(server.post("", traced).1["accepted"], 1);
    let marker = r#"{"title":"a \"quoted\" title\\","version":"1"}"#;
    assert_eq!(kit::ask(server.address, "POST", "/api/v1/markers", "Content-Type: application/json\r\n", marker).unwrap().0, 200);
    until("an incident", 60, || !server.incidents().is_empty());
    for path in ["/metrics", "/metrics/endpoints", "/metrics/endpoints?service=nobody"] {
        let (status, page) = kit::ask(server.address, "GET", path, "Accept: application/openmetrics-text\r\n", "").unwrap();
        let said = said_of(&page, "python3", &["-c", OPEN_METRICS_READER]);
        let samples = page.lines().filter(|l| !l.starts_with('#')).count();
        let families = page.matches("# TYPE ").count();
        assert!(status == 200 && said.starts_with(&format!("{families} {samples} ")), "{said} {page}");
        let trace = r#"'a "quoted" \\ größer } # {'"#;
        let traces = format!("[('slowburn_request_duration_seconds_bucket', {trace}, 2.1), ('slowburn_requests_total', {trace}, 1.0)]");
        assert_eq!(said.contains(&traces), !path.contains('?'), "{said}");
        assert!(path != "/metrics" || said.trim().ends_with("['', 'bytes', 'ratio', 'seconds']"), "{said}");
    }
}

#[test]
fn prometheus_reads_what_slowburn_counts_and_no_counter_falls() {
    if !kit::has_prometheus() || !kit::has_shop() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Nobody answers there: attempts at delivery fail, and are counted too.
    let desk = "[[endpoint]]\nservice = 'desk'\nroute = '/tickets'\nobjectives = [{ availability = true, target = '99%' }]\n";
    let mut server = Server::start(dir.path(), &config(kit::free_port(), &format!("{SHORT_WINDOWS}\n{desk}")));
    let prometheus = Prometheus::start(dir.path(), server.address);
    let mut shop = Shop::start(server.address, 20);
    let customers = shop.customers(4);
    let tickets = || {
        let line = "{\"service\":\"desk\",\"route\":\"/tickets\",\"status\":503,\"duration_ms\":3}\n".repeat(20);
        assert_eq!(server.post("Slowburn-Sender: desk-1; epoch=1; seq=1; dropped=3; uptime=5\r\n", &line).0, 200);
    };
    tickets();
    until("an incident and a delivery that failed", 90, || {
        let samples = server.samples();
        sum(&samples, "slowburn_incident_active", &["desk"]) > 0.0 && sum(&samples, "slowburn_process_delivery_failures", &[]) > 0.0
    });
    tickets();
    // First, so that an endpoint that comes in between is on the other page only.
    let (status, endpoints) = kit::ask(server.address, "GET", "/metrics/endpoints", "", "").unwrap();
    let scrape = server.scrape();
    for name in ["slowburn_slo_burn_rate", "slowburn_endpoint_latency_seconds", "slowburn_request_duration_seconds_bucket", "slowburn_build_info"] {
        assert!(scrape.contains(&format!("\n{name}{{")), "{name} is not in {scrape}");
    }
    assert_eq!(promtool(&scrape), "", "{scrape}");
    assert_eq!((status, promtool(&endpoints)), (200, String::new()), "{endpoints}");
    let shared: Vec<String> = kit::samples(&endpoints).into_keys().filter(|series| series.contains("_total{service=")).collect();
    assert!(!shared.is_empty() && shared.iter().all(|series| kit::samples(&scrape).contains_key(series)), "few endpoints are on both pages: {shared:?}");

    let seen = |query: &str| until(query, 60, || prometheus.query(query).is_some_and(|v| v > 0.0));
    let p95 = r#"histogram_quantile(0.95, sum by (le) (rate(slowburn_request_duration_seconds_bucket{service="shop",route="/orders"}[30s])))"#;
    let all_seen = || {
        seen(r#"up{job="slowburn"} == 1"#);
        seen(r#"sum(rate(slowburn_requests_total{service="shop",route="/orders",outcome="ok"}[30s]))"#);
        seen(r#"slowburn_incident_active{service="desk",incident_kind="burn"}"#);
        seen(r#"slowburn_slo_error_budget_remaining_ratio{objective="latency<=800ms"}"#);
        seen(r#"slowburn_endpoint_latency_seconds{quantile="0.95",window="1m",route="/orders"}"#);
        seen(p95);
    };
    all_seen();
    let observed = prometheus.query(p95).unwrap();
    assert!((0.2..0.8).contains(&observed), "a healthy order takes about 0.2 s, p95 {observed}");

    for how in ["kill -9", "SIGTERM"] {
        let before = counters(&server.scrape());
        assert!(before.len() > 100, "{before:?}");
        if how == "SIGTERM" {
            assert!(server.process.stop().success());
        }
        server.start_again();
        let after = counters(&server.scrape());
        for (series, value) in before {
            assert!(after.get(&series).is_some_and(|a| *a >= value), "{how}: {series} was {value} and is {:?}", after.get(&series));
        }
        all_seen();
    }
    // Prometheus agrees, over all that it scraped.
    let names: std::collections::BTreeSet<String> = counters(&server.scrape()).into_keys().map(|s| s.split('{').next().unwrap().to_owned()).collect();
    for name in &names {
        assert_eq!(prometheus.query(&format!("max(resets({name}[15m]))")), Some(0.0), "{name}");
    }
    let (served, failed) = customers.go_home();
    assert!(shop.process.stop().success());
    let counted = sum(&server.samples(), "slowburn_requests_total", &[r#"service="shop""#, r#"method="POST""#, "/orders"]);
    // The shop's own load orders too, one in a hundred.
    assert!(counted >= served as f64 && failed == 0, "{served} orders were served over two restarts of Slowburn, {failed} failed, {counted} were counted");
}

#[test]
fn prometheus_reads_quantiles_off_native_histograms_as_slowburn_does() {
    if !kit::has_prometheus() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &config(kit::free_port(), ""));
    let prometheus = Prometheus::start_native(dir.path(), server.address);
    // From 3 ms to half a minute, most of them about 100 ms; one too many for ranks that end on a whole number.
    let body = |n: u64| (0..n).map(|k| orders(1, 3 + (k * k * k / 2_000_000) + (k * 2_654_435_761) % 150, 1_000)).collect::<String>();
    assert_eq!(server.post("", &body(3_001)).1["accepted"], 3_001);
    let native = r#"slowburn_request_duration_seconds{route="/orders"}"#;
    until("all of it is scraped", 60, || prometheus.query(&format!("histogram_count({native})")) == Some(3_001.0));
    let own = &server.get("/api/v1/quantiles?service=shop&route=/orders&q=0.01,0.5,0.9,0.95,0.99,0.999")["points"][0];
    assert_eq!(own["count"], 3_001);
    for (q, own) in own["values"].as_object().unwrap() {
        let (own, theirs) = (own.as_f64().unwrap(), prometheus.query(&format!("histogram_quantile({q}, {native})")).unwrap());
        eprintln!("quantile {q}: Slowburn {own} s, Prometheus {theirs} s, {:+.2} %", 100.0 * (theirs / own - 1.0));
        assert!((theirs / own - 1.0).abs() <= slowburn::histogram::native::BUCKET_ERROR_RATIO + 1e-9, "{q}: {theirs} for {own}");
    }
    // An endpoint that is not critical is no native histogram, and does not make a sum of them coarser.
    let help = r#"{"service":"shop","method":"GET","route":"/help","status":200,"duration_ms":5}"#;
    assert_eq!(server.post("", &format!("{help}\n").repeat(200)).1["accepted"], 200);
    until("another endpoint is scraped", 60, || prometheus.query(r#"slowburn_request_duration_seconds_count{route="/help"}"#) == Some(200.0));
    assert_eq!(prometheus.series("slowburn_request_duration_seconds"), Ok(1));
    let [alone, together] = [native, r#"sum by (service) (slowburn_request_duration_seconds{service="shop"})"#]
        .map(|h| prometheus.query(&format!("histogram_quantile(0.99, {h})")));
    assert!(alone.is_some() && alone == together, "{alone:?} {together:?}");
    let close = |query: &str, value: f64| {
        let theirs = prometheus.query(query).unwrap();
        assert!((theirs - value).abs() < 1e-6 * value, "{query}: {theirs} for {value}");
    };
    let samples = server.samples();
    close(&format!("histogram_sum({native})"), sum(&samples, "slowburn_request_duration_seconds_sum", &["/orders"]));
    // The share within 800 ms, which is inside of a bucket.
    let within = sum(&samples, "slowburn_request_duration_seconds_bucket", &["/orders", r#"le="0.8""#]) / 3_001.0;
    let theirs = prometheus.query(&format!("histogram_fraction(0, 0.8, {native})")).unwrap();
    assert!((theirs - within).abs() < 0.02, "{theirs} for {within}");

    // It rises as a counter does, so rates and sums over endpoints have quantiles too.
    assert_eq!(server.post("", &body(2_000)).1["accepted"], 2_000);
    let of_rates = format!("histogram_quantile(0.95, sum(rate({native}[30s])))");
    until(&of_rates, 60, || prometheus.query(&of_rates).is_some_and(|v| v > 0.003 && v < 30.0));
    assert_eq!(prometheus.query(&format!("max(resets({native}[5m]))")), Some(0.0));
    // Everything else is there as it is in text.
    assert_eq!(prometheus.query(r#"sum(slowburn_requests_total{route="/orders"})"#), Some(5_001.0));
    assert!(prometheus.query(r#"slowburn_endpoint_latency_seconds{quantile="0.95",window="1m"}"#).is_some_and(|v| v > 0.0));
    assert!(prometheus.query("slowburn_build_info") == Some(1.0) && prometheus.query("up") == Some(1.0));
}

#[test]
fn two_processes_under_one_name_and_what_senders_dropped_are_seen_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), "");
    let post = |server: &Server, epoch: u64, seq: u64, dropped: u64, body: &str| {
        server.post(&format!("Slowburn-Sender: shop-1; epoch={epoch}; seq={seq}; dropped={dropped}; uptime=60\r\n"), body).0
    };
    let seen = |server: &Server| {
        let senders = server.get("/api/v1/senders")["senders"].clone();
        assert_eq!(senders.as_array().unwrap().len(), 1, "{senders}");
        let samples = server.samples();
        let of = |name: &str| sum(&samples, name, &[]);
        assert_eq!(senders[0]["id"], "shop-1");
        assert_eq!(senders[0]["conflicts"].as_f64(), Some(of("slowburn_sender_conflicts_total")));
        assert_eq!(senders[0]["dropped"].as_f64(), Some(of("slowburn_sender_dropped_timings_total")));
        (senders[0]["conflicts"].as_u64().unwrap(), senders[0]["dropped"].as_u64().unwrap())
    };
    let (one, other) = (orders(1, 180, 0), orders(2, 180, 0));
    assert_eq!(post(&server, 1_000, 1, 0, &one), 200);
    assert_eq!(post(&server, 2_000, 1, 5, &one), 200, "a restart of the sender");
    assert_eq!(seen(&server), (0, 5));
    assert_eq!(post(&server, 1_000, 2, 2, &one), 200, "the older process still sends");
    assert_eq!(seen(&server), (1, 7));
    assert_eq!(post(&server, 2_000, 1, 5, &other), 422, "two bodies under one number");
    assert_eq!(seen(&server), (2, 7));
    server.start_again();
    assert_eq!(seen(&server), (2, 7), "after kill -9");
    assert_eq!(post(&server, 2_000, 1, 5, &one), 200, "the first body is still the one that was taken");
    server.process.stop();
    server.start_again();
    assert_eq!(seen(&server), (2, 7), "after SIGTERM");
    assert_eq!(sum(&server.samples(), "slowburn_requests_total", &["/orders"]).to_bits(), 3.0_f64.to_bits());
}

#[test]
fn a_stop_under_load_loses_nothing_and_wakes_nobody() {
    if !kit::has_mail_server() || !kit::has_shop() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mail_server = MailServer::start(dir.path());
    let mut server = Server::start(dir.path(), &config(mail_server.port, SHORT_WINDOWS));
    let mut shop = Shop::start(server.address, 0);
    let customers = shop.customers(4);
    let address = server.address;
    let line = "{\"service\":\"raw\",\"route\":\"/\",\"duration_ms\":5}\n";
    let senders = Customers::start(4, move || {
        let answer = kit::ask(address, "POST", "/api/v1/timings", "Content-Type: application/x-ndjson\r\n", line);
        answer.is_ok_and(|(status, body)| status == 200 && body.contains("\"accepted\":1"))
    });
    until("load", 60, || senders.served() > 200 && customers.served() > 50);
    let status = server.process.stop();
    assert_eq!(status.code(), Some(0));
    let (acknowledged, refused) = senders.go_home();
    server.start_again();
    let restarted = kit::now_ms();
    let raw = sum(&server.samples(), "slowburn_requests_total", &[r#"service="raw""#]);
    assert!(raw >= acknowledged as f64 && raw <= (acknowledged + refused) as f64, "{acknowledged} acknowledged, {refused} not, {raw} counted");

    // The shop's client has kept what it could not bring, and brings it now.
    let more = customers.served() + 50;
    until("more orders", 60, || customers.served() > more);
    let (served, failed) = customers.go_home();
    assert!(shop.process.stop().success());
    let counted = sum(&server.samples(), "slowburn_requests_total", &[r#"service="shop""#, "/orders"]);
    eprintln!("{acknowledged} timings acknowledged, {raw} counted; {served} orders served, {counted} counted");
    assert_eq!((counted.to_bits(), failed), ((served as f64).to_bits(), 0), "{served} orders served, {counted} counted");
    until("the time of the restart is judged", 60, || server.has_judged(restarted + 10_000));
    assert!(server.incidents().is_empty() && mail_server.mails().is_empty());
}
