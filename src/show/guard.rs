//! Who may do what. Tokens with two scopes; and, because a page in any browser can reach a loopback port, a check of where a request comes from.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use sha2::Digest as _;
use subtle::ConstantTimeEq as _;

use super::Site;
use crate::config::Scope;
use crate::ingest::http::{Caller, Refusal};

/// Who a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Identified(pub Caller);

/// The address of the peer of a connection, which whoever accepts it adds to its requests.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Refuses what is not allowed before anything of it is read.
pub async fn guard(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    match check(&site, request.method(), request.uri().path(), request.headers()) {
        Ok(caller) => {
            let address = request.extensions().get::<Peer>().map(|p| p.0);
            request.extensions_mut().insert(Identified(Caller { address, ..caller }));
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

fn check(site: &Site, method: &Method, path: &str, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let changes = !matches!(*method, Method::GET | Method::HEAD);
    if site.loopback {
        same_host(site.port, headers)?;
    }
    if changes {
        same_site(headers)?;
    }
    let open = matches!(path, "/livez" | "/readyz");
    if site.tokens.is_empty() || open {
        return Ok(Caller::default());
    }
    let (token, scope) = token_of(site, headers)
        .ok_or_else(|| Refusal::new(StatusCode::UNAUTHORIZED, "token", "expected `Authorization: Bearer TOKEN` with a configured token"))?;
    let needs_admin = changes && path != "/api/v1/timings" && !super::prometheus::is_read(path);
    if needs_admin && scope != Scope::Admin {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "scope", "this token may send timings and read; this needs one with the scope admin"));
    }
    let scope = match scope {
        Scope::Ingest => "ingest",
        Scope::Admin => "admin",
    };
    Ok(Caller { scope, token: Some(token), address: None })
}

fn token_of(site: &Site, headers: &HeaderMap) -> Option<(usize, Scope)> {
    let (scheme, given) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let hash: [u8; 32] = sha2::Sha256::digest(given.trim()).into();
    // All are compared, so that the time tells nothing.
    let found = site.tokens.iter().enumerate().filter(|(_, t)| bool::from(t.hash.ct_eq(&hash))).map(|(n, t)| (n, t.scope));
    found.max_by_key(|(_, scope)| *scope == Scope::Admin)
}

/// A loopback server answers to loopback names only: a foreign name that resolves here is a page that rebinds.
fn same_host(port: u16, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(host) = headers.get(header::HOST) else { return Ok(()) };
    let host = host.to_str().unwrap_or("");
    let (name, given) = match host.rsplit_once(':') {
        Some((name, given)) if !given.contains(']') => (name, given.parse().ok()),
        _ => (host, Some(80)),
    };
    let name = name.trim_matches(['[', ']']);
    let loopback = name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if loopback && given == Some(port) {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::FORBIDDEN, "host", format!("the Host `{host}` is not this listener's")))
}

fn same_site(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).map(|v| v.to_str().unwrap_or("?").to_owned());
    let host = text("host").unwrap_or_default();
    let foreign_origin = text("origin").is_some_and(|o| o.split_once("://").is_none_or(|(_, from)| from != host));
    let foreign_fetch = text("sec-fetch-site").is_some_and(|s| s != "same-origin" && s != "none");
    if foreign_origin || foreign_fetch {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "cross_site", "a page of another site may not change anything here"));
    }
    Ok(())
}
