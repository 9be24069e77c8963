//! Notifications over real sockets: mails against a small SMTP server with bad habits and against a real one, webhooks against a small
//! HTTP server. What needs a day of waiting is tested on paused time, beside the lanes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use mail_parser::MessageParser;
use sha2::Sha256;
use slowburn::incident::{Channel, Event, Notification};
use slowburn::notify::backoff::jitter;
use slowburn::notify::outbox::{Clock, Report};
use slowburn::notify::{Failure, Lanes, ReceiverConfig, Target, deliver};
use slowburn::time::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const NOW: Timestamp = Timestamp(1_766_534_415_000);

/// A notification about `POST /orders`; every move but the first follows `root1`.
fn notification(id: &str, event: Event) -> Notification {
    let line = serde_json::json!({
        "at": 1_766_534_400_000_i64, "event": event.name(), "id": "00c0ffee00c0ffee", "kind": "burn", "severity": "critical",
        "service": "shop", "env": "prod", "method": "POST", "route": "/orders/<b>\"ä\"", "summary": "POST /orders breaks latency<=800ms.\n.\nBcc: eve@example.com",
        "breach_at": null, "breach_from": null, "breach_to": null,
        "evidence": {
            "objective": "latency<=800ms", "target": "95 %", "endpoint_kind": "http", "state": "firing", "period_requests": 900, "period_bad": 20,
            "period": "30d", "budget_remaining_ratio": 0.5, "budget_exhausted_in_seconds": 7500, "bad_since_opened": 13, "requests_since_opened": 18,
            "windows": [{
                "long": "1h", "short": "5m", "factor": 14.4, "verdict": "firing", "requests_long": 18, "bad_long": 13, "observed_long": 18,
                "burn_long": 14.44, "requests_short": 4, "bad_short": 4, "burn_short": 20.0, "p_value": 0.000_045,
            }],
        },
    });
    Notification {
        id: id.to_owned(),
        receiver: "oncall".to_owned(),
        recipient: "oncall@example.com".to_owned(),
        channel: Channel::Email,
        root: (event != Event::Opened).then(|| "root1".to_owned()),
        line: serde_json::from_value(line).unwrap(),
    }
}

fn target(config: &str) -> Target {
    let config: ReceiverConfig = toml::from_str(config).unwrap();
    Target::new(&config, Some("https://slow.example")).unwrap()
}

fn mail_target(smtp: &str) -> Target {
    target(&format!("name = 'oncall'\nemail = {{ to = ['oncall@example.com'], from = 'Slowburn <slowburn@example.com>', smtp = '{smtp}' }}"))
}

/// What an SMTP server of the tests does wrong.
#[derive(Clone, Copy, Default)]
struct Habits {
    /// Its answers to `RCPT` and to the end of the data.
    rcpt: Option<&'static str>,
    data: Option<&'static str>,
    greeting: Option<&'static str>,
    /// It accepts the connection and says nothing.
    is_silent: bool,
    /// It says nothing after it took the mail.
    is_rude: bool,
    /// It waits so long before every byte of its greeting.
    tarpit_ms: u64,
}

type Mails = Arc<Mutex<Vec<String>>>;

/// An SMTP server that takes mails into a list.
async fn sink(habits: Habits) -> (SocketAddr, Mails, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (mails, mut tasks) = (Mails::default(), JoinSet::new());
    let taken = Arc::clone(&mails);
    tasks.spawn(async move {
        let mut clients = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let mails = Arc::clone(&taken);
            // A client that hangs up ends the talk.
            clients.spawn(async move { talk(stream, habits, &mails).await.ok() });
        }
    });
    (address, mails, tasks)
}

async fn talk(stream: TcpStream, habits: Habits, mails: &Mails) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(read).lines();
    while habits.is_silent && lines.next_line().await?.is_some() {}
    for byte in format!("{}\r\n", habits.greeting.unwrap_or("220 sink ESMTP")).bytes() {
        sleep(Duration::from_millis(habits.tarpit_ms)).await;
        write.write_all(&[byte]).await?;
    }
    while let Some(line) = lines.next_line().await? {
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "EHLO" => "250 sink",
            "RCPT" => habits.rcpt.unwrap_or("250 ok"),
            "DATA" => {
                write.write_all(b"354 go on\r\n").await?;
                let mut mail = String::new();
                while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                    mail.push_str(line.strip_prefix('.').unwrap_or(&line));
                    mail.push_str("\r\n");
                }
                if habits.data.is_none() {
                    mails.lock().unwrap().push(mail);
                }
                habits.data.unwrap_or("250 taken")
            }
            "QUIT" if habits.is_rude => continue,
            "QUIT" => "221 bye",
            _ => "250 ok",
        };
        write.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
    Ok(())
}

async fn mailed(habits: Habits, limit: Duration) -> (Result<(), Failure>, Vec<String>) {
    let (address, mails, _tasks) = sink(habits).await;
    let target = mail_target(&format!("smtp://{address}")).with_time_limit(limit);
    let result = deliver(&target, &notification("root1", Event::Opened), NOW).await;
    (result, mails.lock().unwrap().clone())
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_mail_arrives_as_it_was_meant() {
    let (result, mails) = mailed(Habits::default(), LONG).await;
    assert_eq!((result, mails.len()), (Ok(()), 1));
    assert_mail(&mails[0], "root1", None);
}

fn assert_mail(mail: &str, id: &str, root: Option<&str>) {
    let mail = MessageParser::default().parse(mail.as_bytes()).unwrap();
    let full = |id: &str| format!("{id}@slowburn.example.com");
    assert_eq!(mail.message_id(), Some(full(id).as_str()));
    assert_eq!(mail.in_reply_to().as_text(), root.map(full).as_deref());
    assert_eq!(mail.references().as_text(), root.map(full).as_deref());
    assert_eq!(mail.thread_name(), Some("POST /orders/<b>\"ä\" (shop, prod) breaks latency<=800ms"));
    assert_eq!(mail.header("Auto-Submitted").and_then(|h| h.as_text()), Some("auto-generated"));
    assert!(mail.bcc().is_none());
    let text = mail.body_text(0).unwrap();
    for wanted in ["27.8 % good in 1h: 13 of 18 requests bad", "95 % good", "50 % of 30d left", "https://slow.example/api/v1/incidents/00c0ffee00c0ffee"] {
        assert!(text.contains(wanted), "{wanted} is not in {text}");
    }
    let html = mail.body_html(0).unwrap();
    assert!(html.contains("/orders/&lt;b&gt;&quot;ä&quot;") && !html.contains("<b>"), "{html}");
}

#[tokio::test]
async fn what_a_mail_server_refuses_now_is_temporary_and_for_good_is_permanent() {
    for (habits, permanent, reason) in [
        (Habits { rcpt: Some("451 greylisted"), ..Habits::default() }, false, "greylisted"),
        (Habits { rcpt: Some("550 no such user"), ..Habits::default() }, true, "no such user"),
        (Habits { data: Some("452 disk full"), ..Habits::default() }, false, "disk full"),
        (Habits { data: Some("554 spam"), ..Habits::default() }, true, "spam"),
        (Habits { greeting: Some("421 busy"), ..Habits::default() }, false, "busy"),
        (Habits { greeting: Some("554 not you"), ..Habits::default() }, false, "not you"),
        (Habits { greeting: Some("nonsense"), ..Habits::default() }, false, "response"),
    ] {
        let (result, mails) = mailed(habits, LONG).await;
        let failure = result.unwrap_err();
        assert_eq!(failure.permanent, permanent, "{failure}");
        assert!(failure.reason.contains(reason), "{failure}");
        assert!(mails.is_empty());
    }
}

#[tokio::test]
async fn a_mail_server_that_is_away_or_hangs_is_a_temporary_failure() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let away = deliver(&mail_target(&format!("smtp://{free}")), &notification("root1", Event::Opened), NOW).await.unwrap_err();
    assert!(!away.permanent, "{away}");
    let limit = Duration::from_millis(300);
    for habits in [Habits { is_silent: true, ..Habits::default() }, Habits { tarpit_ms: 50, ..Habits::default() }] {
        let failure = timeout(LONG, mailed(habits, limit)).await.unwrap().0.unwrap_err();
        assert!(!failure.permanent && failure.reason.contains("300ms"), "{failure}");
    }
}

#[tokio::test]
async fn a_mail_that_was_taken_does_not_go_out_again_for_lack_of_a_goodbye() {
    let (result, mails) = mailed(Habits { is_rude: true, ..Habits::default() }, LONG).await;
    assert_eq!((result, mails.len()), (Ok(()), 1));
}

#[tokio::test]
async fn a_server_without_starttls_gets_no_mail_when_tls_was_asked_for() {
    let (address, mails, _tasks) = sink(Habits::default()).await;
    let failure = deliver(&mail_target(&format!("smtp+starttls://{address}")), &notification("root1", Event::Opened), NOW).await.unwrap_err();
    assert!(!failure.permanent, "{failure}");
    assert!(mails.lock().unwrap().is_empty());
}

/// Python with a real SMTP server, ended with the test.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

const PEER: &str = r#"
import asyncio, json
from aiosmtpd.smtp import SMTP
class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("gone@"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"
    async def handle_DATA(self, server, session, envelope):
        print(json.dumps([envelope.mail_from, envelope.rcpt_tos, envelope.content.decode("ascii")]), flush=True)
        return "250 OK"
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler()), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_real_mail_server_takes_the_thread_of_an_incident() {
    if !Command::new("python3").args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
        assert_ne!(std::env::var("SLOWBURN_REQUIRE_PEERS").as_deref(), Ok("1"), "python3 with aiosmtpd==1.4.6 is required");
        eprintln!("skipped: python3 with aiosmtpd==1.4.6 is not installed");
        return;
    }
    let mut peer = Peer(Command::new("python3").args(["-c", PEER]).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(peer.0.stdout.take().unwrap()).lines();
    let port = lines.next().unwrap().unwrap();
    let target = mail_target(&format!("smtp://127.0.0.1:{port}"));
    for (id, event, root) in [("root1", Event::Opened, None), ("n2", Event::Escalated, Some("root1")), ("n3", Event::Resolved, Some("root1"))] {
        assert_eq!(deliver(&target, &notification(id, event), NOW).await, Ok(()));
        let (from, to, mail): (String, Vec<String>, String) = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!((from.as_str(), to), ("slowburn@example.com", vec!["oncall@example.com".to_owned()]));
        assert_mail(&mail, id, root);
    }
    let gone = Notification { recipient: "gone@example.com".to_owned(), ..notification("n4", Event::Opened) };
    assert!(deliver(&target, &gone, NOW).await.unwrap_err().permanent);
}

/// What a webhook got: id, timestamp, signature, body.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    id: String,
    timestamp: String,
    signature: String,
    body: Bytes,
}

#[derive(Clone)]
struct Hook {
    calls: Arc<Mutex<Vec<Call>>>,
    /// The answer to the n-th call, from 0.
    answer: Arc<dyn Fn(usize) -> Response + Send + Sync>,
}

async fn took(State(hook): State<Hook>, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    assert_eq!(header("content-type"), "application/json");
    let call = Call { id: header("webhook-id"), timestamp: header("webhook-timestamp"), signature: header("webhook-signature"), body };
    let number = {
        let mut calls = hook.calls.lock().unwrap();
        calls.push(call);
        calls.len() - 1
    };
    let response = (hook.answer)(number);
    if response.status() == StatusCode::PROCESSING {
        std::future::pending::<()>().await;
    }
    response
}

/// A webhook with its answers; 102 stands for none at all.
async fn hook(answer: impl Fn(usize) -> Response + Send + Sync + 'static) -> (Target, Hook, JoinSet<()>) {
    let hook = Hook { calls: Arc::default(), answer: Arc::new(answer) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let app = Router::new().route("/hook", post(took)).route("/elsewhere", post(took)).with_state(hook.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    let target = target(&format!("name = 'bot'\nwebhook = {{ url = '{url}', secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw' }}"));
    (target, hook, tasks)
}

/// Verified without the code that signed.
fn assert_signed(call: &Call) {
    let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap()).unwrap();
    mac.update(call.id.as_bytes());
    mac.update(b".");
    mac.update(call.timestamp.as_bytes());
    mac.update(b".");
    mac.update(&call.body);
    mac.verify_slice(&STANDARD.decode(call.signature.strip_prefix("v1,").unwrap()).unwrap()).unwrap();
}

#[tokio::test]
async fn a_webhook_is_signed_and_repeats_keep_id_and_body() {
    let (target, hook, _tasks) = hook(|n| if n == 0 { StatusCode::BAD_GATEWAY } else { StatusCode::NO_CONTENT }.into_response()).await;
    let told = notification("n1", Event::Opened);
    let failure = deliver(&target, &told, NOW).await.unwrap_err();
    assert!(!failure.permanent && failure.reason.contains("502"), "{failure}");
    assert_eq!(deliver(&target, &told, NOW.plus_ms(5_000)).await, Ok(()));
    let calls = hook.calls.lock().unwrap().clone();
    calls.iter().for_each(assert_signed);
    assert_eq!((calls[0].id.as_str(), &calls[0].body), ("n1", &calls[1].body));
    assert_eq!((calls[0].id.as_str(), calls[0].timestamp.as_str()), (calls[1].id.as_str(), "1766534415"));
    assert_eq!(calls[1].timestamp, "1766534420");
    let body: serde_json::Value = serde_json::from_slice(&calls[0].body).unwrap();
    assert_eq!((body["type"].as_str(), body["timestamp"].as_str()), (Some("incident.opened"), Some("2025-12-24T00:00:00Z")));
    assert_eq!(body["data"], serde_json::to_value(&told.line).unwrap());
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_gone_is_gone() {
    for answer in [|| Redirect::temporary("/elsewhere").into_response(), || StatusCode::GONE.into_response()] {
        let (target, hook, _tasks) = hook(move |_| answer()).await;
        assert!(deliver(&target, &notification("n1", Event::Opened), NOW).await.unwrap_err().permanent);
        assert_eq!(hook.calls.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_busy_webhook_says_when_to_come_again() {
    let (target, _hook, _tasks) = hook(|_| (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "17")]).into_response()).await;
    let failure = deliver(&target, &notification("n1", Event::Opened), NOW).await.unwrap_err();
    assert_eq!((failure.permanent, failure.retry_after), (false, Some(Duration::from_secs(17))));
}

/// The lanes over sockets: silence and 429 are tried again, in order; 410 is not; all receipts come.
#[tokio::test]
async fn lanes_carry_a_page_through_silence_and_refusal() {
    let (target, hook, _tasks) = hook(|n| match n {
        0 => StatusCode::PROCESSING.into_response(),
        1 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response(),
        3 => StatusCode::GONE.into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await;
    let ended = Arc::new(Mutex::new(Vec::new()));
    let ends = Arc::clone(&ended);
    let mut tasks = JoinSet::new();
    let ticks = AtomicI64::new(0);
    // One that makes the waits short.
    let seed = (0..100_000).find(|s| (1..3).all(|attempt| jitter(*s, "page", attempt) < 0.03)).unwrap();
    // A clock that only the lanes move.
    let clock: Clock = Arc::new(move || NOW.plus_ms(ticks.fetch_add(1_000, Ordering::Relaxed)));
    let report: Report = Arc::new(move |id, result, _| {
        ends.lock().unwrap().push((id, result.name()));
        Box::pin(async {})
    });
    let targets = HashMap::from([("oncall".to_owned(), target.with_time_limit(Duration::from_millis(200)))]);
    let lanes = Lanes::new(targets, &clock, seed, |_, task| drop(tasks.spawn(task)), &report);
    for (id, event) in [("page", Event::Opened), ("update", Event::Updated), ("resolve", Event::Resolved)] {
        lanes.push(notification(id, event));
    }
    let all = async {
        while ended.lock().unwrap().len() < 3 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), all).await.unwrap();
    lanes.close();
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let calls = hook.calls.lock().unwrap();
    calls.iter().for_each(assert_signed);
    assert!(calls.iter().map(|c| c.id.as_str()).eq(["page", "page", "page", "update", "resolve"]), "{calls:?}");
    let wanted = [("page", "sent"), ("update", "refused"), ("resolve", "sent")];
    assert_eq!(*ended.lock().unwrap(), wanted.map(|(id, result)| (id.to_owned(), result)));
}
