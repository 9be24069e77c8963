//! The tower layer: names the route, starts the timing when the service is called, hands it on to the response body.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Extensions, HeaderMap, Method, Request, Response, Uri};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::sync::mpsc;
use tower_layer::Layer;
use tower_service::Service;

use crate::RouteTemplate;
use crate::body::TimedBody;
use crate::record::{Begun, Outcome, Recorder};
use crate::routes::{MethodId, UNMATCHED};
use crate::send::Farewell;

/// What of a request a route may be named by, see [`Builder::route_with`](crate::Builder::route_with).
#[derive(Debug)]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The address.
    pub uri: &'a Uri,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// What layers further out left, such as a router's match.
    pub extensions: &'a Extensions,
}

/// A user's way of naming routes.
pub(crate) type NameRoute = dyn Fn(&Head<'_>) -> Option<Cow<'static, str>> + Send + Sync;

/// What the handle, the layers and the running requests hold. When the last of them goes, so does the flush task.
pub(crate) struct Shared {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) name_route: Option<Box<NameRoute>>,
    pub(crate) farewells: mpsc::Sender<Farewell>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Times every request of the services that it wraps. Made by [`Slowburn::layer`](crate::Slowburn::layer).
#[derive(Debug, Clone)]
pub struct SlowburnLayer {
    pub(crate) shared: Arc<Shared>,
}

impl<S> Layer<S> for SlowburnLayer {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Timed<S> {
        Timed { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service whose requests are timed.
#[derive(Debug, Clone)]
pub struct Timed<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, Req, Res> Service<Request<Req>> for Timed<S>
where
    S: Service<Request<Req>, Response = Response<Res>>,
    Res: Body,
{
    type Response = Response<TimedBody<Res>>;
    type Error = S::Error;
    type Future = TimedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let timing = Timing::begin(&self.shared, &request);
        TimedFuture { inner: self.inner.call(request), timing: Some(timing) }
    }
}

pin_project! {
    /// The answer of a [`Timed`] service.
    #[derive(Debug)]
    pub struct TimedFuture<F> {
        #[pin]
        inner: F,
        timing: Option<Timing>,
    }
}

impl<F, Res, E> Future for TimedFuture<F>
where
    F: Future<Output = Result<Response<Res>, E>>,
    Res: Body,
{
    type Output = Result<Response<TimedBody<Res>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(cx));
        let mut timing = this.timing.take().expect("a future is not polled after it was ready");
        Poll::Ready(match answer {
            Ok(response) => {
                timing.outcome = Outcome::of(response.status());
                Ok(response.map(|body| TimedBody::new(body, timing)))
            }
            Err(error) => {
                timing.end(Outcome::Error);
                Err(error)
            }
        })
    }
}

/// A request that is running. Its drop is its end, whatever the reason, so that none is counted twice or never.
pub(crate) struct Timing {
    shared: Arc<Shared>,
    begun: Begun,
    /// Until there is an answer: `timeout`, for who waited has given up.
    outcome: Outcome,
}

impl Timing {
    fn begin<B>(shared: &Arc<Shared>, request: &Request<B>) -> Self {
        let recorder = &shared.recorder;
        let now = recorder.clock.now();
        let method = MethodId::of(request.method());
        let extensions = request.extensions();
        let begun = if let Some(RouteTemplate(template)) = extensions.get() {
            recorder.begin(method, template, now)
        } else if let Some(name) = shared.name_route.as_ref().and_then(|name_route| name_route(&head(request))) {
            recorder.begin(method, &name, now)
        } else {
            recorder.begin(method, matched_path(extensions), now)
        };
        Self { shared: Arc::clone(shared), begun, outcome: Outcome::Timeout }
    }

    pub(crate) fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        let outcome = if std::thread::panicking() { Outcome::Error } else { self.outcome };
        let recorder = &self.shared.recorder;
        recorder.end(&self.begun, outcome, recorder.clock.now());
    }
}

impl fmt::Debug for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timing").field("begun", &self.begun).field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

fn head<B>(request: &Request<B>) -> Head<'_> {
    Head { method: request.method(), uri: request.uri(), headers: request.headers(), extensions: request.extensions() }
}

#[cfg(feature = "axum")]
fn matched_path(extensions: &Extensions) -> &str {
    extensions.get::<axum::extract::MatchedPath>().map_or(UNMATCHED, axum::extract::MatchedPath::as_str)
}

#[cfg(not(feature = "axum"))]
fn matched_path(_: &Extensions) -> &str {
    UNMATCHED
}
