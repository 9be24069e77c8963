//! Settings, checked once at the start.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::Slowburn;
use crate::batch::Origin;
use crate::clock::Clock;
use crate::layer::{Head, NameRoute, Shared, SlowburnLayer};
use crate::record::Recorder;
use crate::routes::{MethodId, Routes, is_valid_name};
use crate::send::{Courier, Gauges};
use crate::sender::{Sender, default_id};
use crate::transport::Http;

/// Different pairs of endpoint and duration that one shard holds before it is set aside.
const PAIRS_LIMIT: usize = 20_000;
const FLUSH_MIN: Duration = Duration::from_millis(10);
const FLUSH_MAX: Duration = Duration::from_secs(60);
const QUEUE_BYTES_MIN: usize = 64 * 1024;
const ROUTES_MAX: usize = 100_000;

/// Why it cannot start. All of it is in the settings; whether Slowburn can be reached plays no part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address is no `http://` or `https://` address, or TLS cannot be set up.
    #[error("reading the address {address:?}: {reason}")]
    Address {
        /// The address that was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A service or route needs 1 to 512 bytes without control characters, an environment at most as many.
    #[error("the name {name:?} is not 1 to 512 bytes without control characters")]
    Name {
        /// The name that was given.
        name: String,
    },
    /// A critical endpoint has a method that HTTP does not define.
    #[error("{method:?} is not a method of HTTP")]
    Method {
        /// The method that was given.
        method: String,
    },
    /// A sender id needs 1 to 128 of `A-Z a-z 0-9 . _ : -`.
    #[error("the sender id {id:?} is not 1 to 128 of A-Z a-z 0-9 . _ : -")]
    SenderId {
        /// The id that was given.
        id: String,
    },
    /// The token cannot stand in a header. It is not repeated here.
    #[error("the token holds characters that a header may not hold")]
    Token,
    /// A limit is out of its range.
    #[error("{limit} is out of its range, {range}")]
    Limit {
        /// Which one.
        limit: &'static str,
        /// What is allowed.
        range: &'static str,
    },
    /// There is no tokio runtime to run the flush task on.
    #[error("starting outside of a tokio runtime")]
    NoRuntime,
}

/// The settings of a [`Slowburn`].
#[must_use = "nothing happens before start()"]
pub struct Builder {
    address: String,
    service: String,
    env: String,
    critical: Vec<(String, String)>,
    token: Option<String>,
    sender_id: Option<String>,
    flush_every: Duration,
    route_limit: usize,
    queue_bytes_limit: usize,
    name_route: Option<Box<NameRoute>>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the token.
        f.debug_struct("Builder").field("address", &self.address).field("service", &self.service).finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new(address: String, service: String) -> Self {
        Self {
            address,
            service,
            env: String::new(),
            critical: Vec::new(),
            token: None,
            sender_id: None,
            flush_every: Duration::from_secs(10),
            route_limit: 1_000,
            queue_bytes_limit: 8 * 1024 * 1024,
            name_route: None,
        }
    }

    /// The environment, such as `prod`. Without it there is none.
    pub fn env(mut self, env: impl Into<String>) -> Self {
        self.env = env.into();
        self
    }

    /// An endpoint whose durations are kept to the exact microsecond and which is never counted as `(other)`. The method in
    /// any case; the route as its template stands in the router. What is critical to people is the server's configuration.
    pub fn critical(mut self, method: impl Into<String>, route: impl Into<String>) -> Self {
        self.critical.push((method.into(), route.into()));
        self
    }

    /// The token that Slowburn asks for, sent as `Authorization: Bearer`.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The name of this process among its siblings, such as `shop-web-1`: 1 to 128 of `A-Z a-z 0-9 . _ : -`, and no two
    /// processes may share it. Best one that a restart keeps. Without it: `SERVICE.HOST.PID`.
    pub fn sender(mut self, id: impl Into<String>) -> Self {
        self.sender_id = Some(id.into());
        self
    }

    /// The time between two flushes, 10 ms to 60 s, each varied by up to 10 %. Without it 10 s; much more than that and
    /// Slowburn judges before the timings are there.
    pub fn flush_every(mut self, interval: Duration) -> Self {
        self.flush_every = interval;
        self
    }

    /// The number of routes beside the critical ones, up to 100,000; without it 1,000. What comes later is `(other)`.
    pub fn route_limit(mut self, routes: usize) -> Self {
        self.route_limit = routes;
        self
    }

    /// The bytes of batches that may wait for Slowburn, at least 64 KiB; without it 8 MiB. Beyond it the oldest are dropped
    /// and counted.
    pub fn queue_bytes_limit(mut self, bytes: usize) -> Self {
        self.queue_bytes_limit = bytes;
        self
    }

    /// Names the route of each request that carries no [`RouteTemplate`](crate::RouteTemplate); with `None` it is axum's
    /// `MatchedPath`, else `(unmatched)`. It is called once a request and must be quick.
    pub fn route_with(mut self, name: impl Fn(&Head<'_>) -> Option<Cow<'static, str>> + Send + Sync + 'static) -> Self {
        self.name_route = Some(Box::new(name));
        self
    }

    /// Starts the flush task on the current tokio runtime. Does no I/O but for reading the host's name and, for `https`, its
    /// root certificates.
    ///
    /// # Errors
    /// If a setting is wrong, or outside of a runtime. Never because Slowburn cannot be reached.
    pub fn start(self) -> Result<Slowburn, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        self.check_limits()?;
        let critical = self.checked_names()?;
        let authorization = self.authorization()?;
        let transport =
            Http::new(&self.address, authorization).map_err(|error| StartError::Address { address: self.address.clone(), reason: error.to_string() })?;
        let clock = Clock::start();
        let id = self.sender_id.unwrap_or_else(|| default_id(&self.service));
        let sender = Sender::new(id.clone(), &clock).ok_or(StartError::SenderId { id })?;
        let recorder = Arc::new(Recorder::new(clock, Routes::new(self.route_limit, &critical), PAIRS_LIMIT));
        let gauges = Arc::new(Gauges::default());
        let courier = Courier::new(
            Arc::clone(&recorder),
            transport,
            sender,
            Origin::new(&self.service, &self.env),
            (self.queue_bytes_limit, self.flush_every),
            Arc::clone(&gauges),
        );
        let (farewells, asked) = mpsc::channel(8);
        runtime.spawn(courier.run(asked));
        let shared = Arc::new(Shared { recorder, name_route: self.name_route, farewells });
        Ok(Slowburn { layer: SlowburnLayer { shared }, gauges })
    }

    fn check_limits(&self) -> Result<(), StartError> {
        if !(FLUSH_MIN..=FLUSH_MAX).contains(&self.flush_every) {
            return Err(StartError::Limit { limit: "flush_every", range: "10 ms to 60 s" });
        }
        if self.queue_bytes_limit < QUEUE_BYTES_MIN {
            return Err(StartError::Limit { limit: "queue_bytes_limit", range: "64 KiB or more" });
        }
        if self.route_limit > ROUTES_MAX {
            return Err(StartError::Limit { limit: "route_limit", range: "up to 100,000" });
        }
        Ok(())
    }

    fn checked_names(&self) -> Result<Vec<(MethodId, String)>, StartError> {
        let routes = self.critical.iter().map(|(_, route)| route);
        let env = Some(&self.env).filter(|env| !env.is_empty());
        for name in routes.chain(env).chain([&self.service]) {
            if !is_valid_name(name) {
                return Err(StartError::Name { name: name.clone() });
            }
        }
        let with_id = |(method, route): &(String, String)| match MethodId::named(method) {
            Some(id) => Ok((id, route.clone())),
            None => Err(StartError::Method { method: method.clone() }),
        };
        self.critical.iter().map(with_id).collect()
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, StartError> {
        let Some(token) = &self.token else {
            return Ok(None);
        };
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| StartError::Token)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Builder {
        Builder::new("http://127.0.0.1:1".to_owned(), "shop".to_owned())
    }

    #[tokio::test]
    async fn wrong_settings_are_refused_at_the_start() {
        let long = "x".repeat(513);
        let wrong = [
            (Builder::new("127.0.0.1:9898".to_owned(), "shop".to_owned()), "reading the address"),
            (Builder::new("http://h".to_owned(), String::new()), "the name \"\""),
            (shop().env(long.clone()), "the name"),
            (shop().critical("POST", ""), "the name"),
            (shop().critical("BREW", "/pot"), "\"BREW\" is not a method"),
            (shop().sender("a;b"), "the sender id \"a;b\""),
            (shop().token("a\nb"), "the token"),
            (shop().flush_every(Duration::ZERO), "flush_every"),
            (shop().queue_bytes_limit(1), "queue_bytes_limit"),
            (shop().route_limit(100_001), "route_limit"),
        ];
        for (builder, expected) in wrong {
            let error = builder.start().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error} for {expected}");
        }
        assert!(shop().env("prod").critical("post", "/orders").token("t").sender("s").start().is_ok());
    }

    #[test]
    fn without_a_runtime_it_says_so() {
        assert!(matches!(shop().start(), Err(StartError::NoRuntime)));
    }
}
