//! The webhook channel: one signed HTTP POST, by the Standard Webhooks convention.
//!
//! The body follows from the notification alone and is the same at every attempt; only the time of the attempt, and so the
//! signature, changes. Redirects are not followed, proxies not used, and a name that leads to this machine or to its link is not
//! called: only an address that the configuration spells out, or `localhost`, may do that. Nothing is retried here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, ClientBuilder, StatusCode, Url, redirect};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::backoff::RETRY_AFTER_MAX;
use super::{BoxFuture, Failure, TargetError, chain, is_reference, resolve};
use crate::incident::{Notification, Transition};
use crate::time::Timestamp;

/// How long one attempt may take.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The `webhook` of a receiver.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Where to post, `http` or `https`. May be `env:NAME` or `file:PATH`, for a URL that is itself a secret.
    pub url: String,
    /// What signs it: `whsec_` and base64. May be `env:NAME` or `file:PATH`. Without it nothing is signed.
    #[serde(default)]
    pub secret: Option<String>,
}

impl std::fmt::Debug for WebhookConfig {
    /// Without the URL, which may be a secret, and without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookConfig").field("signed", &self.secret.is_some()).finish_non_exhaustive()
    }
}

impl WebhookConfig {
    /// Whether it can be used, as far as that shows without resolving its secrets.
    ///
    /// # Errors
    /// With what was expected.
    pub fn check(&self) -> Result<(), String> {
        if !is_reference(&self.url) {
            address(&self.url)?;
        }
        match &self.secret {
            Some(secret) if !is_reference(secret) => key(secret).map(drop),
            _ => Ok(()),
        }
    }
}

fn address(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|_| "webhook.url is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("webhook.url begins with http:// or https://".to_owned());
    }
    Ok(url)
}

/// The bytes that sign.
fn key(secret: &str) -> Result<Vec<u8>, String> {
    let encoded = secret.strip_prefix("whsec_").ok_or("webhook.secret begins with whsec_")?;
    let key = STANDARD.decode(encoded).map_err(|_| "webhook.secret is not base64 after whsec_")?;
    if key.is_empty() { Err("webhook.secret is empty".to_owned()) } else { Ok(key) }
}

/// The webhook channel of a receiver, ready to send.
#[derive(Clone)]
pub struct Webhook {
    client: Client,
    url: Url,
    key: Option<Vec<u8>>,
    time_limit: Duration,
}

impl std::fmt::Debug for Webhook {
    /// Without the URL and the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("signed", &self.key.is_some()).finish_non_exhaustive()
    }
}

/// A client as everything that Slowburn sends out uses it: straight to that address and nowhere else.
pub fn client_for(url: &Url) -> ClientBuilder {
    // Somebody else may have installed it before; it is the only one that is compiled in.
    drop(rustls::crypto::ring::default_provider().install_default());
    let builder = match url.scheme() {
        // Without TLS and redirects nobody asks for certificates, and a machine may have none.
        "http" => Client::builder().tls_certs_only([]),
        _ => Client::builder(),
    };
    builder.redirect(redirect::Policy::none()).no_proxy().user_agent(concat!("slowburn/", env!("CARGO_PKG_VERSION")))
}

impl Webhook {
    /// Made ready from its configuration.
    ///
    /// # Errors
    /// When the configuration is wrong or a secret is not to be had.
    pub fn new(config: &WebhookConfig) -> Result<Self, TargetError> {
        Self::with_lookup(config, Arc::new(system_lookup))
    }

    fn with_lookup(config: &WebhookConfig, lookup: Lookup) -> Result<Self, TargetError> {
        let url = address(&resolve(&config.url)?).map_err(TargetError::Config)?;
        let key = match &config.secret {
            Some(secret) => Some(key(&resolve(secret)?).map_err(TargetError::Config)?),
            None => None,
        };
        let client = client_for(&url)
            // Notifications are rare: an idle connection would mostly be a dead one.
            .pool_max_idle_per_host(0)
            .dns_resolver(Guard { lookup })
            .build()
            .map_err(TargetError::Client)?;
        Ok(Self { client, url, key, time_limit: TIME_LIMIT })
    }

    pub(super) fn with_time_limit(self, limit: Duration) -> Self {
        Self { time_limit: limit, ..self }
    }

    pub(super) async fn send(&self, notification: &Notification, now: Timestamp) -> Result<(), Failure> {
        let body = body(&notification.line).map_err(Failure::permanent)?;
        let attempted_s = now.0.div_euclid(1000);
        let mut request = self
            .client
            .post(self.url.clone())
            .timeout(self.time_limit)
            .header("content-type", "application/json")
            .header("webhook-id", &notification.id)
            .header("webhook-timestamp", attempted_s.to_string());
        if let Some(key) = &self.key {
            request = request.header("webhook-signature", signature(key, &notification.id, attempted_s, &body));
        }
        // The URL may be a secret and is in no error.
        let answer = request.body(body).send().await.map_err(|e| Failure::temporary(chain(&e.without_url())))?;
        judge(answer.status(), answer.headers(), now)
    }
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    timestamp: String,
    data: &'a Transition,
}

/// The JSON that is posted about a line.
///
/// # Errors
/// When the line cannot be written as JSON, or its time not as a date.
pub fn body(line: &Transition) -> Result<String, String> {
    let at = jiff::Timestamp::from_millisecond(line.at.0).map_err(|e| format!("cannot write the time of the incident: {e}"))?;
    let body = Body { r#type: format!("incident.{}", line.event.name()), timestamp: at.to_string(), data: line };
    serde_json::to_string(&body).map_err(|e| format!("cannot write the incident as JSON: {e}"))
}

/// `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
///
/// # Panics
/// Never: HMAC takes a key of any length.
#[must_use]
pub fn signature(key: &[u8], id: &str, timestamp_s: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    mac.update(format!("{id}.{timestamp_s}.").as_bytes());
    mac.update(body.as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// What an answer means.
fn judge(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    let reason = format!("the receiver answered {status}");
    let again = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
    if !again {
        return Err(Failure::permanent(reason));
    }
    let retry_after = matches!(status.as_u16(), 429 | 503).then(|| asked_for(headers, now)).flatten();
    Err(Failure { retry_after, ..Failure::temporary(reason) })
}

/// The wait that `Retry-After` asks for, in seconds or as a date; at most a quarter of an hour.
pub(crate) fn asked_for(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a number holds are still a long wait.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let until = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_millisecond();
        Duration::from_millis(u64::try_from(until.saturating_sub(now.0)).unwrap_or(0))
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// Finds the addresses of a name.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

fn system_lookup(name: String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
}

/// A resolver that leaves out the addresses at which no name may point. It is asked when a connection is made, so a name that
/// changes its mind between check and use gains nothing. Addresses spelled out in the URL do not come here.
struct Guard {
    lookup: Lookup,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let is_named = name.as_str() == "localhost";
        let found = (self.lookup)(name.as_str().to_owned());
        Box::pin(async move {
            let mut addresses = found.await?;
            if addresses.is_empty() {
                return Err("the name has no address".into());
            }
            addresses.retain(|address| is_named || may_be_called(address.ip()));
            if addresses.is_empty() {
                return Err("the name leads to a local address, which only a literal address or localhost may".into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Whether a name may lead there: not to this machine, its link, or many.
fn may_be_called(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.octets()[0] == 0 || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast()),
        IpAddr::V6(ip) => {
            let embedded = compatible(ip).is_some_and(|ip| !may_be_called(IpAddr::V4(ip)));
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast() || embedded)
        }
    }
}

/// The IPv4 address inside an IPv6 address of the forms `::a.b.c.d` and `64:ff9b::a.b.c.d` (NAT64).
fn compatible(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = ip.octets();
    let (prefix, embedded) = octets.split_last_chunk::<4>()?;
    let is_nat64 = *prefix == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    let is_old = *prefix == [0; 12];
    (is_nat64 || is_old).then(|| Ipv4Addr::from(*embedded))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::incident::Event;
    use crate::notify::tests::notification;

    /// The example that the Standard Webhooks libraries test themselves with.
    #[test]
    fn signatures_equal_the_published_one() {
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let ours = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(ours, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn the_body_is_the_line_with_a_type_and_a_time() {
        let line = notification("a", Event::Opened).line;
        let json: serde_json::Value = serde_json::from_str(&body(&line).unwrap()).unwrap();
        assert_eq!(json["type"], "incident.opened");
        assert_eq!(json["timestamp"], "2025-12-24T00:00:00Z");
        assert_eq!(json["data"], serde_json::to_value(&line).unwrap());
    }

    #[test]
    fn answers_are_taken_as_they_are_meant() {
        let now = Timestamp(1_766_534_400_000);
        let judged = |status: u16, after: Option<&str>| {
            let headers = after.map(|a| (RETRY_AFTER, a.parse().unwrap())).into_iter().collect();
            judge(StatusCode::from_u16(status).unwrap(), &headers, now)
        };
        for status in [200, 202, 204] {
            assert_eq!(judged(status, None), Ok(()));
        }
        for status in [301, 302, 307, 400, 401, 403, 404, 410, 422] {
            assert!(judged(status, None).unwrap_err().permanent, "{status}");
        }
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert!(!judged(status, None).unwrap_err().permanent, "{status}");
        }
        let after = |status, text| judged(status, Some(text)).unwrap_err().retry_after.map(|d| d.as_secs());
        assert_eq!(after(429, "7"), Some(7));
        assert_eq!(after(503, "Wed, 24 Dec 2025 00:00:30 GMT"), Some(30));
        assert_eq!(after(503, "Tue, 23 Dec 2025 00:00:30 GMT"), Some(0));
        assert_eq!(after(429, "99999999999999999999999"), Some(900));
        assert_eq!(after(429, "soon"), None);
        assert_eq!(after(500, "7"), None);
    }

    #[test]
    fn names_may_not_lead_home() {
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::169.254.169.254",
        ] {
            assert!(!may_be_called(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["192.0.2.1", "10.0.0.1", "192.168.1.1", "2001:db8::1", "fd00::1", "::ffff:192.0.2.1", "64:ff9b::192.0.2.1"] {
            assert!(may_be_called(ip.parse().unwrap()), "{ip}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_called_and_localhost_is() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let home: Lookup = Arc::new(|_| Box::pin(async { Ok(vec!["127.0.0.1:0".parse().unwrap(), "[::ffff:127.0.0.1]:0".parse().unwrap()]) }));
        let told = notification("a", Event::Opened);
        for (host, is_called) in [("rebound.example", false), ("localhost", true), ("127.0.0.1", true), ("2130706433", true)] {
            let config = WebhookConfig { url: format!("http://{host}:{port}/hook"), secret: None };
            let webhook = Webhook::with_lookup(&config, Arc::clone(&home)).unwrap().with_time_limit(Duration::from_secs(5));
            let called = tokio::select! {
                accepted = listener.accept() => accepted.is_ok(),
                failed = webhook.send(&told, Timestamp(0)) => {
                    let failure = failed.unwrap_err();
                    assert!(!failure.permanent && failure.reason.contains("local address") && !failure.reason.contains("rebound"), "{failure}");
                    false
                }
            };
            assert_eq!(called, is_called, "{host}");
        }
    }

    #[test]
    fn configurations_are_checked() {
        let check = |url: &str, secret: Option<&str>| WebhookConfig { url: url.to_owned(), secret: secret.map(str::to_owned) }.check();
        assert_eq!(check("https://hooks.example/x", Some("env:HOOK_SECRET")), Ok(()));
        assert_eq!(check("env:HOOK_URL", Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")), Ok(()));
        for (url, secret) in
            [("ftp://x", None), ("hooks.example", None), ("http://x", Some("MfKQ")), ("http://x", Some("whsec_")), ("http://x", Some("whsec_*"))]
        {
            assert!(check(url, secret).is_err(), "{url} {secret:?}");
        }
    }
}
