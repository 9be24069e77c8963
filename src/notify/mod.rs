//! Telling people: one notification in, one attempt at its receiver out, and a lane per destination that tries until it is taken.
//!
//! The last step of a page. What is told was decided in the log before it comes here and keeps its id over every attempt, so a
//! crash between sending and the receipt repeats a message and never loses one. [`email`] and [`webhook`] are the channels,
//! [`letter`] is what a mail says, [`backoff`] how long to wait, [`outbox`] the lanes.
//!
//! Nothing here decides who is told, when, or of what; nothing reads a clock, rolls dice or starts a task by itself.

pub mod backoff;
pub mod email;
pub mod letter;
pub mod outbox;
pub mod webhook;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::Deserialize;

pub use email::{Email, EmailConfig};
pub use outbox::{LaneStatus, Lanes};
pub use webhook::{Webhook, WebhookConfig};

use crate::incident::Notification;
use crate::time::Timestamp;

/// A future that can be kept and moved between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A `[[receiver]]` of the configuration: a name and exactly one channel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiverConfig {
    /// What `notify` of an endpoint names.
    pub name: String,
    /// Mails to one or more addresses.
    #[serde(default)]
    pub email: Option<EmailConfig>,
    /// A signed HTTP POST.
    #[serde(default)]
    pub webhook: Option<WebhookConfig>,
}

impl ReceiverConfig {
    /// Whether it can be used, as far as that shows without resolving its secrets.
    ///
    /// # Errors
    /// With what was expected. No secret is in the text.
    pub fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err("a receiver needs a name without control characters".to_owned());
        }
        match (&self.email, &self.webhook) {
            (Some(email), None) => email.check(),
            (None, Some(webhook)) => webhook.check(),
            _ => Err(format!("receiver `{}` needs exactly one of email and webhook", self.name)),
        }
    }
}

/// Why a receiver cannot be made ready. No secret is in the text.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// A secret is in an environment variable that is not set.
    #[error("environment variable `{0}` is not set, or is not UTF-8")]
    Environment(String),
    /// A secret is in a file that cannot be read.
    #[error("cannot read the secret in `{path}`")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP client cannot be built.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// A receiver that is ready to be told: parsed, with its secrets.
#[derive(Clone, Debug)]
pub enum Target {
    /// By mail.
    Email(Email),
    /// By webhook.
    Webhook(Webhook),
    /// What a test of the lanes wants.
    #[cfg(test)]
    Script(outbox::tests::Script),
}

impl Target {
    /// The channel of a receiver. `public_url` is where people reach this server, for links.
    ///
    /// # Errors
    /// When the configuration is wrong or one of its secrets is not to be had.
    pub fn new(config: &ReceiverConfig, public_url: Option<&str>) -> Result<Self, TargetError> {
        config.check().map_err(TargetError::Config)?;
        match (&config.email, &config.webhook) {
            (Some(email), _) => Ok(Self::Email(Email::new(email, public_url)?)),
            (_, Some(webhook)) => Ok(Self::Webhook(Webhook::new(webhook)?)),
            _ => Err(TargetError::Config("a receiver needs a channel".to_owned())),
        }
    }

    /// Whom it tells one by one: the addresses of a mail; nobody by name for a webhook.
    #[must_use]
    pub fn recipients(&self) -> &[String] {
        match self {
            Self::Email(email) => email.recipients(),
            Self::Webhook(_) => &[],
            #[cfg(test)]
            Self::Script(script) => &script.recipients,
        }
    }

    /// The same with another limit on one attempt. For tests only: the contract's limits are the default.
    #[doc(hidden)]
    #[must_use]
    pub fn with_time_limit(self, limit: Duration) -> Self {
        match self {
            Self::Email(email) => Self::Email(email.with_time_limit(limit)),
            Self::Webhook(webhook) => Self::Webhook(webhook.with_time_limit(limit)),
            #[cfg(test)]
            script @ Self::Script(_) => script,
        }
    }
}

/// Why one attempt failed, and whether another may help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// Whether the receiver refused it for good.
    pub permanent: bool,
    /// How long the receiver asked to be left alone.
    pub retry_after: Option<Duration>,
    /// What happened. Holds no secret and no control character.
    pub reason: String,
}

impl Failure {
    /// One that another attempt may mend.
    #[must_use]
    pub fn temporary(reason: impl std::fmt::Display) -> Self {
        Self { permanent: false, retry_after: None, reason: letter::clean(&reason.to_string()) }
    }

    /// One that no attempt will mend.
    #[must_use]
    pub fn permanent(reason: impl std::fmt::Display) -> Self {
        Self { permanent: true, ..Self::temporary(reason) }
    }
}

/// One attempt to tell a receiver. `now` dates the attempt; what is told depends on the notification alone.
///
/// # Errors
/// When the receiver did not take it.
pub async fn deliver(target: &Target, notification: &Notification, now: Timestamp) -> Result<(), Failure> {
    match target {
        Target::Email(email) => email.send(notification).await,
        Target::Webhook(webhook) => webhook.send(notification, now).await,
        #[cfg(test)]
        Target::Script(script) => (script.play)(notification.clone(), now).await,
    }
}

/// A notification that says it is a test, for `notify-test`.
#[must_use]
pub fn test_notification(receiver: &ReceiverConfig, recipient: &str, now: Timestamp) -> Notification {
    use crate::incident::{Broken, Channel, Event, Evidence, Grounds, Kind, State, Transition, derived_id};
    let id = derived_id(&["test", &receiver.name, recipient, &now.0.to_string()]);
    let broken = Broken {
        objective: "a test of this receiver".to_owned(),
        target: "100 %".to_owned(),
        windows: Vec::new(),
        period_requests: 0,
        period_bad: 0,
        period: "0 d".to_owned(),
        budget_remaining_ratio: 1.0,
        budget_exhausted_in_seconds: None,
        still_running: 0,
        bad_since_opened: 0,
        requests_since_opened: 0,
    };
    let evidence = Evidence { endpoint_kind: "http".to_owned(), state: State::Firing, slowest_trace: None, grounds: Grounds::Promise(Box::new(broken)) };
    Notification {
        id: id.clone(),
        receiver: receiver.name.clone(),
        recipient: recipient.to_owned(),
        channel: if receiver.email.is_some() { Channel::Email } else { Channel::Webhook },
        root: None,
        line: Transition {
            at: now,
            event: Event::Opened,
            id,
            kind: Kind::Burn,
            severity: crate::objective::Severity::Warning,
            service: "slowburn".to_owned(),
            env: String::new(),
            method: String::new(),
            route: "notify-test".to_owned(),
            summary: "This is a test: nothing is wrong. Whoever reads it would have been told.".to_owned(),
            breach_at: None,
            breach_from: None,
            breach_to: None,
            evidence,
        },
    }
}

/// A setting that may be a secret kept elsewhere: `env:NAME`, `file:PATH` (one trailing line end is cut), or the value itself.
///
/// # Errors
/// When the variable or the file cannot be read.
pub fn resolve(setting: &str) -> Result<String, TargetError> {
    if let Some(name) = setting.strip_prefix("env:") {
        return std::env::var(name).map_err(|_| TargetError::Environment(name.to_owned()));
    }
    let Some(path) = setting.strip_prefix("file:") else {
        return Ok(setting.to_owned());
    };
    let text = std::fs::read_to_string(path).map_err(|source| TargetError::File { path: path.to_owned(), source })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// Whether a setting names a place where the value is, so that the value cannot be checked yet.
pub(crate) fn is_reference(setting: &str) -> bool {
    setting.starts_with("env:") || setting.starts_with("file:")
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some errors repeat their cause in their own text.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(crate) mod tests {
    use super::*;
    use crate::incident::{Broken, Channel, Event, Evidence, Grounds, Kind, State, Transition, Verdict, WindowEvidence};
    use crate::objective::Severity;

    /// A page about `POST /orders`.
    pub(crate) fn notification(id: &str, event: Event) -> Notification {
        let window = |long: &str, short: &str, factor, verdict| WindowEvidence {
            long: long.to_owned(),
            short: short.to_owned(),
            factor,
            verdict,
            requests_long: 18,
            bad_long: 13,
            observed_long: 18,
            burn_long: 14.44,
            requests_short: 4,
            bad_short: if event == Event::Resolved { 0 } else { 4 },
            burn_short: if event == Event::Resolved { 0.0 } else { 20.0 },
            p_value: 4.5e-5,
        };
        let broken = Broken {
            objective: "latency<=800ms".to_owned(),
            target: "95 %".to_owned(),
            windows: vec![window("1h", "5m", 14.4, Verdict::Firing), window("6h", "30m", 6.0, Verdict::Undecided)],
            period_requests: 900,
            period_bad: 20,
            period: "30d".to_owned(),
            budget_remaining_ratio: 0.5556,
            budget_exhausted_in_seconds: Some(7500),
            still_running: 0,
            bad_since_opened: 13,
            requests_since_opened: 18,
        };
        let evidence = Evidence {
            endpoint_kind: "http".to_owned(),
            state: if event == Event::Resolved { State::Resolved } else { State::Firing },
            slowest_trace: None,
            grounds: Grounds::Promise(Box::new(broken)),
        };
        Notification {
            id: id.to_owned(),
            receiver: "oncall".to_owned(),
            recipient: "oncall@example.com".to_owned(),
            channel: Channel::Email,
            root: (event != Event::Opened).then(|| "root1".to_owned()),
            line: Transition {
                at: Timestamp(1_766_534_400_000),
                event,
                id: "00c0ffee00c0ffee".to_owned(),
                kind: Kind::Burn,
                severity: Severity::Critical,
                service: "shop".to_owned(),
                env: "prod".to_owned(),
                method: "POST".to_owned(),
                route: "/orders".to_owned(),
                summary: "POST /orders (shop, prod) breaks latency<=800ms: 13 of 18 requests bad in 1h.".to_owned(),
                breach_at: None,
                breach_from: None,
                breach_to: None,
                evidence,
            },
        }
    }

    fn receiver(text: &str) -> Result<ReceiverConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_receiver_has_a_name_and_exactly_one_channel() {
        let webhook = r#"webhook = { url = "http://127.0.0.1:9/hook" }"#;
        let email = r#"email = { to = ["a@example.com"], from = "s@example.com", smtp = "smtp://127.0.0.1:25" }"#;
        for (text, right) in [
            (format!("name = \"x\"\n{webhook}"), true),
            (format!("name = \"x\"\n{email}"), true),
            (format!("name = \"x\"\n{webhook}\n{email}"), false),
            ("name = \"x\"".to_owned(), false),
            (format!("name = \"\"\n{webhook}"), false),
        ] {
            assert_eq!(receiver(&text).unwrap().check().is_ok(), right, "{text}");
        }
        assert!(receiver(&format!("name = \"x\"\nsms = 1\n{webhook}")).is_err());
        assert!(receiver("name = \"x\"\nwebhook = { url = \"http://a\", token = \"b\" }").is_err());
    }

    #[test]
    fn secrets_are_where_the_configuration_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hush\n").unwrap();
        assert_eq!(resolve(&format!("file:{}", file.path().display())).unwrap(), "hush");
        assert_eq!(resolve("env:CARGO_PKG_NAME").unwrap(), "slowburn");
        assert_eq!(resolve("plain").unwrap(), "plain");
        assert!(matches!(resolve("env:SLOWBURN_NOT_SET"), Err(TargetError::Environment(_))));
        assert!(matches!(resolve("file:/does/not/exist"), Err(TargetError::File { .. })));
    }

    #[test]
    fn no_secret_is_printed() {
        let config = receiver(
            r#"name = "x"
            webhook = { url = "http://127.0.0.1:9/canary", secret = "whsec_Y2FuYXJ5Y2FuYXJ5" }"#,
        )
        .unwrap();
        let target = Target::new(&config, None).unwrap();
        let mail = receiver(
            r#"name = "x"
            email = { to = ["a@example.com"], from = "s@example.com", smtp = "smtps://u:canary@mail.example", password = "canary" }"#,
        )
        .unwrap();
        let refused = Target::new(&mail, None).unwrap_err();
        for text in [format!("{config:?}"), format!("{target:?}"), format!("{mail:?}"), format!("{refused:?} {refused}")] {
            assert!(!text.contains("canary") && !text.contains("Y2FuYXJ5"), "{text}");
        }
    }
}
