//! The mail channel: one mail to one recipient over one SMTP connection.
//!
//! A mail is the same, byte for byte, at every attempt: its `Message-ID`, `Date` and boundary follow from the notification, so
//! a recipient who gets it twice sees it once. What it says is [`super::letter`]'s. Nothing is queued here, no connection is kept.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, Message};
use serde::Deserialize;
use tokio::time::timeout;

use super::{Failure, TargetError, chain, is_reference, letter, resolve};
use crate::incident::Notification;

/// How long one attempt may take, from looking up the server's name to its answer to the last byte.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// How long a server that took the mail may take to say goodbye.
const QUIT_LIMIT: Duration = Duration::from_secs(2);

/// The `email` of a receiver.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailConfig {
    /// The addresses. Each gets its own mail.
    pub to: Vec<String>,
    /// The sender, with or without a name. Its domain is in every `Message-ID`.
    pub from: String,
    /// `smtp://host:port` (clear text, port 25), `smtps://` (TLS, 465) or `smtp+starttls://` (TLS or nothing, 587); `user:pass@`
    /// may stand before the host. May be `env:NAME` or `file:PATH`.
    pub smtp: String,
    /// The user, where it is not in `smtp`. May be `env:NAME` or `file:PATH`.
    #[serde(default)]
    pub username: Option<String>,
    /// Its password. May be `env:NAME` or `file:PATH`.
    #[serde(default)]
    pub password: Option<String>,
}

impl std::fmt::Debug for EmailConfig {
    /// Without what may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmailConfig").field("to", &self.to).field("from", &self.from).finish_non_exhaustive()
    }
}

impl EmailConfig {
    /// Whether it can be used, as far as that shows without resolving its secrets.
    ///
    /// # Errors
    /// With what was expected.
    pub fn check(&self) -> Result<(), String> {
        if self.to.is_empty() {
            return Err("email.to needs at least one address".to_owned());
        }
        for to in &self.to {
            to.parse::<Address>().map_err(|_| format!("email.to: `{}` is not an address", letter::clean(to)))?;
        }
        sender(&self.from)?;
        if self.username.is_some() != self.password.is_some() {
            return Err("email.username and email.password go together".to_owned());
        }
        if !is_reference(&self.smtp) {
            Server::parse(&self.smtp, self.username.is_some())?;
        }
        Ok(())
    }
}

fn sender(from: &str) -> Result<Mailbox, String> {
    from.parse().map_err(|_| format!("email.from: `{}` is not an address", letter::clean(from)))
}

/// Whether and how a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    Clear,
    Tls,
    StartTls,
}

/// Where mails are handed in.
#[derive(Clone, PartialEq, Eq)]
struct Server {
    host: String,
    port: u16,
    security: Security,
    login: Option<(String, String)>,
}

impl Server {
    /// From an address such as `smtp://host:25`; `has_login` when user and password are given beside it.
    fn parse(text: &str, has_login: bool) -> Result<Self, String> {
        // The text may hold a password and is in no error.
        let url: reqwest::Url = text.parse().map_err(|_| "email.smtp is not an address such as smtp://127.0.0.1:25")?;
        let (security, usual_port) = match url.scheme() {
            "smtp" => (Security::Clear, 25),
            "smtps" => (Security::Tls, 465),
            "smtp+starttls" => (Security::StartTls, 587),
            _ => return Err("email.smtp begins with smtp://, smtps:// or smtp+starttls://".to_owned()),
        };
        let host = url.host_str().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).to_owned();
        if host.is_empty() {
            return Err("email.smtp names no host".to_owned());
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err("email.smtp ends after the port".to_owned());
        }
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, Some(password)) if !user.is_empty() => Some((decoded(user)?, decoded(password)?)),
            _ => return Err("email.smtp needs a user and a password, or neither".to_owned()),
        };
        if login.is_some() && has_login {
            return Err("email.smtp names a user, and so does email.username".to_owned());
        }
        let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if (login.is_some() || has_login) && security == Security::Clear && !is_loopback {
            return Err("email.smtp would send the password in clear text: use smtps:// or smtp+starttls://".to_owned());
        }
        Ok(Self { host, port: url.port().unwrap_or(usual_port), security, login })
    }
}

/// Undoes `%2F` and the like.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.first_chunk::<2>().filter(|_| byte == b'%');
        let value = hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        bytes.push(value.unwrap_or(byte));
        rest = if value.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).map_err(|_| "email.smtp: user and password are not UTF-8".to_owned())
}

/// The mail channel of a receiver, ready to send.
#[derive(Clone)]
pub struct Email {
    server: Server,
    from: Mailbox,
    to: Vec<String>,
    hello: ClientId,
    public_url: Option<String>,
    time_limit: Duration,
}

impl std::fmt::Debug for Email {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Email").field("host", &self.server.host).field("port", &self.server.port).field("to", &self.to).finish_non_exhaustive()
    }
}

impl Email {
    /// Made ready from its configuration. `public_url` is where people reach this server.
    ///
    /// # Errors
    /// When the configuration is wrong or a secret is not to be had.
    pub fn new(config: &EmailConfig, public_url: Option<&str>) -> Result<Self, TargetError> {
        config.check().map_err(TargetError::Config)?;
        let mut server = Server::parse(&resolve(&config.smtp)?, config.username.is_some()).map_err(TargetError::Config)?;
        if let (Some(user), Some(password)) = (&config.username, &config.password) {
            server.login = Some((resolve(user)?, resolve(password)?));
        }
        Ok(Self {
            server,
            from: sender(&config.from).map_err(TargetError::Config)?,
            to: config.to.clone(),
            hello: hello(),
            public_url: public_url.map(str::to_owned),
            time_limit: TIME_LIMIT,
        })
    }

    pub(super) fn recipients(&self) -> &[String] {
        &self.to
    }

    pub(super) fn with_time_limit(self, limit: Duration) -> Self {
        Self { time_limit: limit, ..self }
    }

    pub(super) async fn send(&self, notification: &Notification) -> Result<(), Failure> {
        let message = self.compose(notification).map_err(Failure::permanent)?;
        let mut connection = timeout(self.time_limit, self.hand_in(&message))
            .await
            .map_err(|_| Failure::temporary(format!("no answer from the mail server within {:?}", self.time_limit)))??;
        // The server has taken the mail: whether it says goodbye changes nothing. Were its silence an error, the mail would go out twice.
        drop(timeout(QUIT_LIMIT, connection.abort()).await);
        Ok(())
    }

    /// A connection by which the server has taken the message.
    async fn hand_in(&self, message: &Message) -> Result<AsyncSmtpConnection, Failure> {
        let server = &self.server;
        let tls = match server.security {
            Security::Clear => None,
            Security::Tls | Security::StartTls => Some(TlsParameters::new(server.host.clone()).map_err(|e| before_the_mail(&e))?),
        };
        let (at_once, later) = if server.security == Security::Tls { (tls, None) } else { (None, tls) };
        let address = (server.host.as_str(), server.port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(address, Some(self.time_limit), &self.hello, at_once, None).await.map_err(|e| before_the_mail(&e))?;
        if let Some(tls) = later {
            connection.starttls(tls, &self.hello).await.map_err(|e| before_the_mail(&e))?;
        }
        if let Some((user, password)) = &server.login {
            let credentials = Credentials::new(user.clone(), password.clone());
            connection.auth(DEFAULT_MECHANISMS, &credentials).await.map_err(|e| before_the_mail(&e))?;
        }
        connection.send(message.envelope(), &message.formatted()).await.map_err(|e| of_the_mail(&e))?;
        Ok(connection)
    }

    fn message_id(&self, notification_id: &str) -> String {
        format!("<{notification_id}@slowburn.{}>", self.from.email.domain())
    }

    fn compose(&self, notification: &Notification) -> Result<Message, String> {
        let line = &notification.line;
        let to: Address = notification.recipient.parse().map_err(|_| "the recipient is not an address".to_owned())?;
        let at_ms = u64::try_from(line.at.0).unwrap_or(0);
        let mut builder = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .date(SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms))
            .message_id(Some(self.message_id(&notification.id)))
            .subject(letter::subject(line, notification.root.is_none()))
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()));
        if let Some(root) = &notification.root {
            let root = self.message_id(root);
            builder = builder.in_reply_to(root.clone()).references(root);
        }
        let base = self.public_url.as_deref();
        let part = |kind, body| SinglePart::builder().header(kind).body(body);
        let body = MultiPart::alternative()
            // Random otherwise, and a repeated mail would not be the same.
            .boundary(format!("slowburn-{}", notification.id))
            .singlepart(part(ContentType::TEXT_PLAIN, letter::text(line, base)))
            .singlepart(part(ContentType::TEXT_HTML, letter::html(line, base)));
        builder.multipart(body).map_err(|e| format!("cannot compose the mail: {e}"))
    }
}

/// How this machine introduces itself: its full name; many servers refuse a bare host name, as containers have, but take an address.
fn hello() -> ClientId {
    match ClientId::default() {
        ClientId::Domain(name) if name.contains('.') => ClientId::Domain(name),
        _ => ClientId::Ipv4(Ipv4Addr::LOCALHOST),
    }
}

/// A server that refuses the connection or the password for good refuses no mail: somebody may set it right while the page waits.
fn before_the_mail(error: &lettre::transport::smtp::Error) -> Failure {
    Failure::temporary(chain(error))
}

fn of_the_mail(error: &lettre::transport::smtp::Error) -> Failure {
    let reason = chain(error);
    if error.is_permanent() { Failure::permanent(reason) } else { Failure::temporary(reason) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use mail_parser::{MessageParser, MimeHeaders as _};

    use super::*;
    use crate::incident::Event;
    use crate::notify::tests::notification;

    fn config(smtp: &str) -> EmailConfig {
        EmailConfig {
            to: vec!["oncall@example.com".to_owned()],
            from: "Slowburn <slowburn@example.com>".to_owned(),
            smtp: smtp.to_owned(),
            username: None,
            password: None,
        }
    }

    fn mail(notification: &Notification) -> Vec<u8> {
        let email = Email::new(&config("smtp://127.0.0.1:25"), Some("https://slow.example")).unwrap();
        email.compose(notification).unwrap().formatted()
    }

    #[test]
    fn servers_are_read() {
        for (text, host, port, security) in [
            ("smtp://127.0.0.1:2525", "127.0.0.1", 2525, Security::Clear),
            ("smtp://mail.example/", "mail.example", 25, Security::Clear),
            ("smtps://[::1]", "::1", 465, Security::Tls),
            ("smtp+starttls://mail.example", "mail.example", 587, Security::StartTls),
        ] {
            let server = Server::parse(text, false).unwrap();
            assert_eq!((server.host.as_str(), server.port, server.security), (host, port, security), "{text}");
        }
        let server = Server::parse("smtps://me%40x:p%2Fq%25@mail.example", false).unwrap();
        assert_eq!(server.login, Some(("me@x".to_owned(), "p/q%".to_owned())));
        for text in ["mail.example:25", "http://mail.example", "smtp://", "smtp://a/b", "smtp://u@a", "smtps://a?tls=no"] {
            assert!(Server::parse(text, false).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_is_not_sent_in_clear_text_over_a_network() {
        assert!(Server::parse("smtp://u:p@mail.example", false).is_err());
        assert!(Server::parse("smtp://mail.example", true).is_err());
        assert!(Server::parse("smtps://u:p@mail.example", true).is_err(), "two users");
        for text in ["smtp://u:p@127.0.0.1", "smtp://u:p@localhost:25", "smtp://u:p@[::1]", "smtp+starttls://u:p@mail.example"] {
            assert!(Server::parse(text, false).is_ok(), "{text}");
        }
    }

    #[test]
    fn addresses_are_checked() {
        let mut wrong = config("smtp://127.0.0.1");
        wrong.to = vec!["nobody".to_owned()];
        assert!(wrong.check().is_err());
        wrong.to = Vec::new();
        assert!(wrong.check().is_err());
        let mut wrong = config("smtp://127.0.0.1");
        wrong.username = Some("u".to_owned());
        assert!(wrong.check().is_err());
    }

    #[test]
    fn mails_of_an_incident_make_a_thread() {
        let opened = mail(&notification("root1", Event::Opened));
        let resolved = mail(&notification("n2", Event::Resolved));
        let (opened, resolved) = (MessageParser::default().parse(&opened).unwrap(), MessageParser::default().parse(&resolved).unwrap());
        assert_eq!(opened.message_id(), Some("root1@slowburn.example.com"));
        assert!(opened.in_reply_to().as_text().is_none() && opened.references().as_text().is_none());
        assert_eq!(resolved.message_id(), Some("n2@slowburn.example.com"));
        assert_eq!(resolved.in_reply_to().as_text(), opened.message_id());
        assert_eq!(resolved.references().as_text(), opened.message_id());
        assert_eq!(opened.thread_name(), Some("POST /orders (shop, prod) breaks latency<=800ms"));
        assert_eq!(opened.thread_name(), resolved.thread_name());
        assert_eq!(opened.header("Auto-Submitted").and_then(|h| h.as_text()), Some("auto-generated"));
        assert_eq!(opened.date().unwrap().to_timestamp(), 1_766_534_400);
        assert!(opened.body_text(0).unwrap().contains("13 of 18 requests bad"));
        assert_eq!(opened.html_part(0).unwrap().content_type().unwrap().subtype(), Some("html"));
    }

    #[test]
    fn a_repeated_mail_is_the_same() {
        let one = notification("root1", Event::Opened);
        assert_eq!(mail(&one), mail(&one));
    }

    #[test]
    fn hostile_names_stay_where_they_belong() {
        let long = format!("/{}", "x".repeat(500));
        let wide = "/ä€😀".repeat(50);
        for hostile in
            ["<script>alert(1)</script>", "/a\r\nBcc: eve@example.com", "/\"quoted\" 'x'", "=?utf-8?Q?=0D=0ABcc:_eve?=", "\r\n.\r\nMAIL FROM:<x>", &long, &wide]
        {
            let mut told = notification("root1", Event::Opened);
            told.line.route = hostile.to_owned();
            told.line.summary = hostile.to_owned();
            let bytes = mail(&told);
            assert!(bytes.is_ascii());
            assert!(bytes.split(|b| *b == b'\n').all(|line| line.len() < 998), "{hostile}");
            let parsed = MessageParser::default().parse(&bytes).unwrap();
            assert!(parsed.bcc().is_none(), "{hostile}");
            assert_eq!(parsed.to().unwrap().first().unwrap().address(), Some("oncall@example.com"));
            let subject = parsed.subject().unwrap();
            assert!(subject.starts_with("[critical] POST ") && !subject.contains(['\r', '\n']), "{subject}");
            assert!(!parsed.body_html(0).unwrap().contains("<script"));
            assert!(parsed.body_text(0).unwrap().contains(&letter::clean(hostile)), "{hostile}");
        }
    }
}
