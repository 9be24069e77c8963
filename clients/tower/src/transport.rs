//! One POST over one connection: HTTP/1.1, plain or (feature `https`) over TLS. It neither retries nor follows redirects;
//! the time limit is the caller's.
//!
//! A connection per batch: at one batch in ten seconds a kept connection would be closed by some proxy half of the time, and
//! the failure would look like one of the server. Rejected: a full HTTP client, for its pool, its redirects and its crates.

use std::future::Future;
use std::pin::pin;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What of an answer is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const PATH: &str = "/api/v1/timings";

/// What is sent.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    pub(crate) sender: String,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: Bytes,
}

/// Why nothing came back. All of it may pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("connecting")]
    Connect(#[source] std::io::Error),
    #[error("building the request")]
    Request(#[from] http::Error),
    #[error("speaking HTTP")]
    Http(#[from] hyper::Error),
}

/// Carries a post to Slowburn. Tests have their own.
pub(crate) trait Transport: Send + Sync + 'static {
    fn post(&self, post: Post) -> impl Future<Output = Result<Answer, Error>> + Send;
}

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum AddressError {
    #[error("it is not http://HOST[:PORT][/PATH] or https://…")]
    Form,
    #[error("https needs the feature \"https\" of slowburn-tower")]
    HttpsNotBuilt,
    #[cfg(feature = "https")]
    #[error("the certificates of the system cannot be used: {0}")]
    Certificates(String),
}

/// HTTP/1.1 to one address.
pub(crate) struct Http {
    host: String,
    port: u16,
    authority: HeaderValue,
    path: PathAndQuery,
    authorization: Option<HeaderValue>,
    #[cfg(feature = "https")]
    tls: Option<crate::tls::Tls>,
}

impl Http {
    /// `authorization` is the whole header.
    pub(crate) fn new(address: &str, authorization: Option<HeaderValue>) -> Result<Self, AddressError> {
        let uri: Uri = address.parse().map_err(|_| AddressError::Form)?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(AddressError::Form);
        };
        let https = *scheme == Scheme::HTTPS;
        if !(https || *scheme == Scheme::HTTP) || authority.as_str().contains('@') || uri.query().is_some() {
            return Err(AddressError::Form);
        }
        if https && cfg!(not(feature = "https")) {
            return Err(AddressError::HttpsNotBuilt);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(AddressError::Form);
        }
        let path = format!("{}{PATH}", uri.path().trim_end_matches('/'));
        Ok(Self {
            #[cfg(feature = "https")]
            tls: https.then(|| crate::tls::Tls::of_system(&host)).transpose()?,
            host,
            port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| AddressError::Form)?,
            path: path.parse().map_err(|_| AddressError::Form)?,
            authorization,
        })
    }

    fn request(&self, post: Post) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::post(self.path.as_str())
            .header(HOST, &self.authority)
            .header(USER_AGENT, concat!("slowburn-tower/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .header(CONTENT_TYPE, post.content_type)
            .header("slowburn-sender", post.sender);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(Full::new(post.body))
    }
}

impl Transport for Http {
    async fn post(&self, post: Post) -> Result<Answer, Error> {
        let request = self.request(post)?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(Error::Connect)?;
        #[cfg(feature = "https")]
        if let Some(tls) = &self.tls {
            let stream = tls.connect(stream).await.map_err(Error::Connect)?;
            return exchange(TokioIo::new(stream), request).await;
        }
        exchange(TokioIo::new(stream), request).await
    }
}

/// Runs the connection until the answer is there; dropping this closes it.
async fn exchange<Io>(io: Io, request: Request<Full<Bytes>>) -> Result<Answer, Error>
where
    Io: Read + Write + Unpin + Send + 'static,
{
    let (mut requests, connection) = http1::handshake(io).await?;
    let mut answer = pin!(async {
        let (head, body) = requests.send_request(request).await?.into_parts();
        // The status decides; a body that breaks off changes nothing.
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Answer { status: head.status, retry_after, body })
    });
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        // The connection may end before its last bytes are taken; the answer then says how it went.
        _ = connection => {}
    }
    answer.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_once() {
        let accepted = [
            ("http://127.0.0.1:9898", "127.0.0.1", 9898, "/api/v1/timings"),
            ("http://slowburn.local/", "slowburn.local", 80, "/api/v1/timings"),
            ("http://[::1]:1/behind/a/proxy/", "::1", 1, "/behind/a/proxy/api/v1/timings"),
        ];
        for (address, host, port, path) in accepted {
            let http = Http::new(address, None).unwrap_or_else(|error| panic!("{address}: {error}"));
            assert_eq!((http.host.as_str(), http.port, http.path.as_str()), (host, port, path));
        }
        for address in ["", "127.0.0.1:9898", "/x", "ftp://h/", "http://user:pass@h/", "http://h/?q=1"] {
            assert_eq!(Http::new(address, None).err(), Some(AddressError::Form), "{address}");
        }
        #[cfg(not(feature = "https"))]
        assert_eq!(Http::new("https://h/", None).err(), Some(AddressError::HttpsNotBuilt));
    }
}
