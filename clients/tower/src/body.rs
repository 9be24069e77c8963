//! The response body, watched until its end: a user waits for the last byte, not for the first.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::layer::Timing;
use crate::record::Outcome;

pin_project! {
    /// A response body that ends its request's timing: at its end, at an error (outcome `error`), or when it is dropped.
    #[derive(Debug)]
    pub struct TimedBody<B> {
        #[pin]
        inner: B,
        // Ends the timing when it is dropped.
        timing: Option<Timing>,
    }
}

impl<B: Body> TimedBody<B> {
    pub(crate) fn new(inner: B, timing: Timing) -> Self {
        // A server never polls a body that says it is empty.
        let timing = if inner.is_end_stream() { None } else { Some(timing) };
        Self { inner, timing }
    }
}

impl<B: Body> Body for TimedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let polled = ready!(this.inner.as_mut().poll_frame(cx));
        match &polled {
            Some(Ok(_)) if !this.inner.is_end_stream() => {}
            Some(Err(_)) => {
                if let Some(timing) = this.timing.take() {
                    timing.end(Outcome::Error);
                }
            }
            Some(Ok(_)) | None => *this.timing = None,
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
