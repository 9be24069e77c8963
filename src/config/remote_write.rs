//! `[[remote_write]]`: stores that are sent what `/metrics` has.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::{Error, Millis, Source};
use crate::notify::{is_reference, resolve};

/// The protocol that a receiver is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// 2.0, and 1.0 when the receiver only knows that.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// `io.prometheus.write.v2.Request`.
    #[serde(rename = "2.0")]
    Two,
    /// `prometheus.WriteRequest`.
    #[serde(rename = "1.0")]
    One,
}

/// How histograms of critical endpoints are sent; those of others are classic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Histograms {
    /// Classic, and native beside to a receiver of 2.0.
    #[default]
    Auto,
    /// Classic and native.
    Both,
    /// Native where there are any.
    Native,
    /// Classic.
    Classic,
}

/// Which endpoints are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoints {
    /// Those of `/metrics`.
    #[default]
    Exported,
    /// Those of `/metrics/endpoints`.
    All,
}

/// How Slowburn says who it is. What is secret may be `env:NAME` or `file:PATH`, and is read when it is needed.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Authorization {
    /// Not at all.
    #[default]
    None,
    /// With a token.
    Bearer(String),
    /// With a name and a password.
    Basic(String, String),
}

impl std::fmt::Debug for Authorization {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Bearer(_) => "Bearer",
            Self::Basic(..) => "Basic",
        })
    }
}

impl Authorization {
    /// The value of the header, with secrets as they are now.
    ///
    /// # Errors
    /// When a secret is not to be had, or cannot be in a header.
    pub fn header(&self) -> Result<Option<HeaderValue>, String> {
        use base64::Engine as _;
        let secret = |setting: &str| resolve(setting).map_err(|e| e.to_string());
        let text = match self {
            Self::None => return Ok(None),
            Self::Bearer(token) => format!("Bearer {}", secret(token)?),
            Self::Basic(name, password) => {
                let both = format!("{}:{}", secret(name)?, secret(password)?);
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
            }
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| "a secret has characters that cannot be in a header".to_owned())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// A receiver that was checked.
#[derive(Clone)]
pub struct RemoteWrite {
    /// Its name in metrics and logs.
    pub name: String,
    /// Where to send, resolved.
    pub url: String,
    /// How far apart moments are.
    pub interval_ms: i64,
    /// How long one attempt may take.
    pub timeout_ms: i64,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// How histograms are sent.
    pub histograms: Histograms,
    /// Which endpoints are sent.
    pub endpoints: Endpoints,
    /// Who sends.
    pub authorization: Authorization,
    /// Headers that each request has beside its own.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Labels that each series has beside its own.
    pub labels: BTreeMap<String, String>,
    /// Bytes that may wait.
    pub queue_bytes: u64,
    /// Whether what is answered 429 is sent again.
    pub retry_on_429: bool,
}

impl std::fmt::Debug for RemoteWrite {
    /// Without the URL and the headers, which may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteWrite").field("name", &self.name).field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    url: Spanned<String>,
    name: Option<Spanned<String>>,
    interval: Option<Spanned<Millis>>,
    timeout: Option<Spanned<Millis>>,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    histograms: Histograms,
    #[serde(default)]
    endpoints: Endpoints,
    bearer_token: Option<Spanned<String>>,
    basic_auth: Option<Spanned<RawBasic>>,
    #[serde(default)]
    headers: BTreeMap<Spanned<String>, Spanned<String>>,
    #[serde(default)]
    labels: BTreeMap<Spanned<String>, Spanned<String>>,
    queue_bytes: Option<Spanned<u64>>,
    retry_on_429: Option<bool>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBasic {
    username: String,
    password: String,
}

const INTERVAL_MS: i64 = 15_000;
const TIMEOUT_MS: i64 = 30_000;
const QUEUE_BYTES: u64 = 64 << 20;
/// Two of the largest requests, so that one may wait while one is on its way.
const QUEUE_BYTES_MIN: u64 = 2 << 20;

/// What the protocol says for itself.
const RESERVED: [&str; 6] = ["content-type", "content-encoding", "content-length", "x-prometheus-remote-write-version", "user-agent", "host"];

pub(super) fn read(source: &Source<'_>, raw: &[Raw]) -> Result<Vec<RemoteWrite>, Error> {
    let mut found: Vec<RemoteWrite> = Vec::new();
    for (n, raw) in raw.iter().enumerate() {
        let remote = one(source, raw, n)?;
        if found.iter().any(|f| f.name == remote.name) {
            let message = format!("remote_write: the name `{}` is there twice", remote.name);
            return Err(raw.name.as_ref().map_or_else(|| source.error(&raw.url, message.clone()), |name| source.error(name, message.clone())));
        }
        found.push(remote);
    }
    Ok(found)
}

fn one(source: &Source<'_>, raw: &Raw, n: usize) -> Result<RemoteWrite, Error> {
    let url = resolve(raw.url.get_ref()).map_err(|e| source.error(&raw.url, format!("url: {e}")))?;
    let is_url = url.parse::<http::Uri>().is_ok_and(|u| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some_and(|h| !h.is_empty()));
    if !is_url {
        // It may be a secret that was read from elsewhere.
        let shown = if is_reference(raw.url.get_ref()) { raw.url.get_ref() } else { &url };
        return Err(source.error(&raw.url, format!("url: `{shown}` is not a URL such as \"https://mimir.example.com/api/v1/push\"")));
    }
    let name = raw.name.as_ref().map_or_else(|| format!("remote{}", n + 1), |name| name.get_ref().clone());
    if name.is_empty() {
        let at = raw.name.as_ref().map_or(raw.url.span(), Spanned::span);
        return Err(source.error(&Spanned::new(at, ()), "name: expected a name for metrics and logs"));
    }
    let milliseconds = |given: &Option<Spanned<Millis>>, default: i64, key: &str| match given {
        None => Ok(default),
        Some(ms) if (1_000..=3_600_000).contains(&ms.get_ref().0) => Ok(ms.get_ref().0),
        Some(ms) => Err(source.error(ms, format!("{key}: expected 1s to 1h"))),
    };
    let authorization = match (&raw.bearer_token, &raw.basic_auth) {
        (Some(_), Some(basic)) => return Err(source.error(basic, "basic_auth: expected either this or `bearer_token`")),
        (Some(token), None) => Authorization::Bearer(token.get_ref().clone()),
        (None, Some(basic)) => Authorization::Basic(basic.get_ref().username.clone(), basic.get_ref().password.clone()),
        (None, None) => Authorization::None,
    };
    let place = raw.bearer_token.as_ref().map(Spanned::span).or(raw.basic_auth.as_ref().map(Spanned::span));
    if let (Err(message), Some(span)) = (authorization.header(), place) {
        let key = if raw.bearer_token.is_some() { "bearer_token" } else { "basic_auth" };
        return Err(source.error(&Spanned::new(span, ()), format!("{key}: {message}")));
    }
    if let Some(bytes) = raw.queue_bytes.as_ref().filter(|b| *b.get_ref() < QUEUE_BYTES_MIN) {
        return Err(source.error(bytes, format!("queue_bytes: expected at least {QUEUE_BYTES_MIN}")));
    }
    Ok(RemoteWrite {
        name,
        url,
        interval_ms: milliseconds(&raw.interval, INTERVAL_MS, "interval")?,
        timeout_ms: milliseconds(&raw.timeout, TIMEOUT_MS, "timeout")?,
        protocol: raw.protocol,
        histograms: raw.histograms,
        endpoints: raw.endpoints,
        headers: headers(source, raw, &authorization)?,
        authorization,
        labels: labels(source, raw)?,
        queue_bytes: raw.queue_bytes.as_ref().map_or(QUEUE_BYTES, |b| *b.get_ref()),
        retry_on_429: raw.retry_on_429.unwrap_or(true),
    })
}

fn headers(source: &Source<'_>, raw: &Raw, authorization: &Authorization) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
    let mut found = Vec::new();
    for (key, value) in &raw.headers {
        let name: HeaderName = key.get_ref().parse().map_err(|_| source.error(key, format!("headers: `{}` is not the name of a header", key.get_ref())))?;
        if RESERVED.contains(&name.as_str()) || (name == http::header::AUTHORIZATION && *authorization != Authorization::None) {
            return Err(source.error(key, format!("headers: `{}` is set by Slowburn", key.get_ref())));
        }
        let text = resolve(value.get_ref()).map_err(|e| source.error(value, format!("headers.{}: {e}", key.get_ref())))?;
        let mut header = HeaderValue::from_str(&text).map_err(|_| source.error(value, format!("headers.{}: it cannot be in a header", key.get_ref())))?;
        header.set_sensitive(true);
        found.push((name, header));
    }
    Ok(found)
}

fn labels(source: &Source<'_>, raw: &Raw) -> Result<BTreeMap<String, String>, Error> {
    let mut found = BTreeMap::new();
    for (key, value) in &raw.labels {
        let name = key.get_ref();
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name || name.starts_with("__") {
            return Err(source.error(key, format!("labels: `{name}` is not the name of a label: letters, digits and _, no digit first, not __ first")));
        }
        found.insert(name.clone(), value.get_ref().clone());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(more: &str) -> Result<RemoteWrite, String> {
        let config = Config::parse("c.toml", &format!("[[remote_write]]\nurl = \"http://127.0.0.1:9009/api/v1/push\"\n{more}\n"));
        config.map(|c| c.remote_writes[0].clone()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let remote = read("").unwrap();
        assert_eq!((remote.name.as_str(), remote.interval_ms, remote.timeout_ms, remote.queue_bytes), ("remote1", 15_000, 30_000, 64 << 20));
        assert_eq!((remote.protocol, remote.histograms, remote.endpoints), (Protocol::Auto, Histograms::Auto, Endpoints::Exported));
        assert!(remote.retry_on_429 && remote.labels.is_empty() && remote.headers.is_empty());
        let all = read(
            "protocol = \"1.0\"\nhistograms = \"both\"\nendpoints = \"all\"\ninterval = \"1m\"\nlabels = { cluster = \"eu\", job = \"s\" }\n\
             headers = { X-Scope-OrgID = \"team\" }\nbasic_auth = { username = \"u\", password = \"p\" }",
        )
        .unwrap();
        assert_eq!((all.protocol, all.histograms, all.endpoints, all.interval_ms), (Protocol::One, Histograms::Both, Endpoints::All, 60_000));
        assert_eq!(all.authorization.header().unwrap().unwrap(), "Basic dTpw");
        assert_eq!((all.headers[0].0.as_str(), all.labels["cluster"].as_str()), ("x-scope-orgid", "eu"));
        assert!(!format!("{all:?}").contains("9009") && !format!("{:?}", all.authorization).contains("dTpw"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (more, place, words) in [
            ("uri = 1", "c.toml:3:1", "unknown field"),
            ("protocol = \"3.0\"", "c.toml:3:12", "2.0"),
            ("interval = \"10ms\"", "c.toml:3:12", "interval: expected 1s to 1h"),
            ("bearer_token = \"env:SLOWBURN_NOT_SET\"", "c.toml:3:16", "bearer_token: environment variable `SLOWBURN_NOT_SET`"),
            ("bearer_token = \"a\"\nbasic_auth = { username = \"u\", password = \"p\" }", "c.toml:4:14", "either"),
            ("headers = { Content-Type = \"x\" }", "c.toml:3:13", "set by Slowburn"),
            ("labels = { __name__ = \"x\" }", "c.toml:3:12", "`__name__`"),
            ("labels = { \"a-b\" = \"x\" }", "c.toml:3:12", "`a-b`"),
            ("queue_bytes = 5", "c.toml:3:15", "at least 2097152"),
            ("name = \"a\"\n[[remote_write]]\nname = \"a\"\nurl = \"http://b/\"", "c.toml:5:8", "there twice"),
            ("[[remote_write]]\nurl = \"mimir:9009\"", "c.toml:4:7", "url: `mimir:9009` is not a URL"),
            ("[[remote_write]]\nurl = \"ftp://mimir\"", "c.toml:4:7", "is not a URL"),
        ] {
            let error = read(more).unwrap_err();
            assert!(error.starts_with(place) && error.contains(words), "{more}: {error}");
        }
    }
}
