//! What is watched: an endpoint is (service, env, kind, method, route), and how raw paths become routes.
//!
//! A `route` is a template that the sender knows and is taken verbatim; only a raw `path` is templated here, because
//! templating loses: `/read/4` may be a route of its own. Short hexadecimal words (`/cafe`, `/decade`) are words.

use serde::{Deserialize, Serialize};

/// The longest part of an endpoint key, in bytes of UTF-8.
pub const PART_BYTES_MAX: usize = 512;

/// The route that stands for every endpoint of a service beyond its limit.
pub const OVERFLOW_ROUTE: &str = "(other)";

/// The number of an endpoint in the catalogue: dense from 0, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointId(pub u32);

/// The identity of an endpoint; an absent part is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointKey {
    /// Who serves it.
    pub service: String,
    /// The environment (`prod`), or empty.
    pub env: String,
    /// `http`, `rpc`, `job`, ….
    pub kind: String,
    /// The HTTP method, or empty.
    pub method: String,
    /// The route template.
    pub route: String,
}

/// A borrowed [`EndpointKey`], for look-ups that allocate nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyRef<'a> {
    /// Who serves it.
    pub service: &'a str,
    /// The environment.
    pub env: &'a str,
    /// The kind.
    pub kind: &'a str,
    /// The method.
    pub method: &'a str,
    /// The route template.
    pub route: &'a str,
}

impl KeyRef<'_> {
    /// An owned copy.
    #[must_use]
    pub fn to_key(self) -> EndpointKey {
        EndpointKey {
            service: self.service.to_owned(),
            env: self.env.to_owned(),
            kind: self.kind.to_owned(),
            method: self.method.to_owned(),
            route: self.route.to_owned(),
        }
    }
}

impl hashbrown::Equivalent<EndpointKey> for KeyRef<'_> {
    fn equivalent(&self, key: &EndpointKey) -> bool {
        self.route == key.route && self.service == key.service && self.method == key.method && self.env == key.env && self.kind == key.kind
    }
}

impl hashbrown::Equivalent<std::sync::Arc<EndpointKey>> for KeyRef<'_> {
    fn equivalent(&self, key: &std::sync::Arc<EndpointKey>) -> bool {
        self.equivalent(&**key)
    }
}

impl EndpointKey {
    /// What stands for a service as a whole, or for several with an empty name.
    #[must_use]
    pub fn of_service(service: &str, env: &str, kind: &str) -> Self {
        Self { service: service.to_owned(), env: env.to_owned(), kind: kind.to_owned(), method: String::new(), route: String::new() }
    }

    /// It, borrowed; hashes alike.
    #[must_use]
    pub fn as_ref(&self) -> KeyRef<'_> {
        KeyRef { service: &self.service, env: &self.env, kind: &self.kind, method: &self.method, route: &self.route }
    }

    /// The endpoint that takes the timings of a service beyond its limit.
    #[must_use]
    pub fn overflow(service: &str) -> Self {
        Self { service: service.to_owned(), env: String::new(), kind: "http".to_owned(), method: String::new(), route: OVERFLOW_ROUTE.to_owned() }
    }

    /// Among others of its service: `POST /orders`.
    #[must_use]
    pub fn name(&self) -> String {
        let space = if self.method.is_empty() { "" } else { " " };
        format!("{}{space}{}", self.method, self.route)
    }

    /// For a person: `POST /orders (shop, prod)`.
    #[must_use]
    pub fn title(&self) -> String {
        let env = if self.env.is_empty() { String::new() } else { format!(", {}", self.env) };
        let kind = if self.kind == "http" { String::new() } else { format!(", {}", self.kind) };
        format!("{} ({}{env}{kind})", self.name(), self.service)
    }
}

/// Why a part of a key is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// A part that must be there is not.
    #[error("`{0}` is required")]
    Missing(&'static str),
    /// A part is over [`PART_BYTES_MAX`].
    #[error("`{0}` is longer than {PART_BYTES_MAX} bytes")]
    TooLong(&'static str),
    /// A part has a control character.
    #[error("`{0}` has a control character")]
    Control(&'static str),
}

/// Checks one part of a key: at most [`PART_BYTES_MAX`] bytes, no control characters, not empty if `required`.
///
/// # Errors
/// One variant of [`KeyError`] for each of the three.
pub fn check_part(name: &'static str, part: &str, required: bool) -> Result<(), KeyError> {
    if required && part.is_empty() {
        return Err(KeyError::Missing(name));
    }
    if part.len() > PART_BYTES_MAX {
        return Err(KeyError::TooLong(name));
    }
    if part.chars().any(char::is_control) {
        return Err(KeyError::Control(name));
    }
    Ok(())
}

/// Chooses endpoints: `service` and `route` are named, what is left out matches anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// The service, exactly.
    pub service: String,
    /// The route, exactly.
    pub route: String,
    /// The environment, if it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// The kind, if it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The method, if it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

impl Selector {
    /// Whether the endpoint is chosen.
    #[must_use]
    pub fn matches(&self, key: &EndpointKey) -> bool {
        let may = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        self.route == key.route && self.service == key.service && may(&self.method, &key.method) && may(&self.env, &key.env) && may(&self.kind, &key.kind)
    }
}

/// Turns raw paths into routes: configured patterns first, then identifiers by their look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathTemplates {
    patterns: Vec<Vec<String>>,
}

impl PathTemplates {
    /// Patterns such as `/users/{name}/posts`; a segment in braces matches any one segment.
    #[must_use]
    pub fn new(patterns: &[String]) -> Self {
        Self { patterns: patterns.iter().map(|p| p.split('/').map(str::to_owned).collect()).collect() }
    }

    /// The route of a raw path, without its query and fragment.
    #[must_use]
    pub fn route_of(&self, path: &str) -> String {
        let path = path.split(['?', '#']).next().unwrap_or("");
        let segments: Vec<&str> = path.split('/').collect();
        let is_variable = |s: &String| s.starts_with('{') && s.ends_with('}');
        for pattern in &self.patterns {
            if pattern.len() == segments.len() && pattern.iter().zip(&segments).all(|(p, s)| p == s || (is_variable(p) && !s.is_empty())) {
                return pattern.join("/");
            }
        }
        segments.iter().map(|s| if is_identifier(s) { "{id}" } else { s }).collect::<Vec<_>>().join("/")
    }
}

/// Numbers, UUIDs, dates, and hexadecimal words of 16 and more characters that have a digit.
fn is_identifier(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let hex = |b: &[u8]| b.iter().all(u8::is_ascii_hexdigit);
    let digits = |b: &[u8]| !b.is_empty() && b.iter().all(u8::is_ascii_digit);
    let uuid = bytes.len() == 36 && bytes.iter().enumerate().all(|(i, b)| if matches!(i, 8 | 13 | 18 | 23) { *b == b'-' } else { b.is_ascii_hexdigit() });
    let date = bytes.len() == 10 && bytes[4] == b'-' && bytes[7] == b'-' && digits(&bytes[..4]) && digits(&bytes[5..7]) && digits(&bytes[8..]);
    digits(bytes) || uuid || date || (bytes.len() >= 16 && hex(bytes) && bytes.iter().any(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_paths_lose_their_identifiers_and_keep_their_words() {
        let plain = PathTemplates::default();
        for (path, route) in [
            ("/orders/123", "/orders/{id}"),
            ("/cafe/decade", "/cafe/decade"),
            ("/u/550e8400-e29b-41d4-a716-446655440000/x?y=1", "/u/{id}/x"),
            ("/c/0123456789abcdef0", "/c/{id}"),
            ("/reports/2026-01-05", "/reports/{id}"),
            ("/v2/abcdefabcdefabcdef", "/v2/abcdefabcdefabcdef"),
            ("/", "/"),
        ] {
            assert_eq!(plain.route_of(path), route);
        }
        let configured = PathTemplates::new(&["/users/{name}".to_owned()]);
        assert_eq!(configured.route_of("/users/alice#top"), "/users/{name}");
        assert_eq!(configured.route_of("/users/"), "/users/");
    }

    #[test]
    fn parts_have_limits() {
        assert_eq!(check_part("route", "", true), Err(KeyError::Missing("route")));
        assert_eq!(check_part("route", &"a".repeat(513), true), Err(KeyError::TooLong("route")));
        assert_eq!(check_part("route", "a\nb", true), Err(KeyError::Control("route")));
        assert_eq!(check_part("env", "", false), Ok(()));
    }

    #[test]
    fn a_selector_matches_what_it_leaves_out() {
        let key = EndpointKey { service: "shop".into(), env: "prod".into(), kind: "http".into(), method: "POST".into(), route: "/orders".into() };
        let mut s = Selector { service: "shop".into(), route: "/orders".into(), env: None, kind: None, method: None };
        assert!(s.matches(&key));
        s.method = Some("GET".into());
        assert!(!s.matches(&key));
    }
}
