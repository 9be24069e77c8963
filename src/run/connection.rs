//! A connection that is closed when nothing moves on it for too long. hyper's own time limit begins with the first byte of a request, so
//! a peer that connects and says nothing would keep its place for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// A stream that ends with `TimedOut` when it idles.
#[derive(Debug)]
pub(super) struct IdleLimited {
    stream: TcpStream,
    limit: Duration,
    idle: Pin<Box<Sleep>>,
}

impl IdleLimited {
    pub(super) fn new(stream: TcpStream, limit: Duration) -> Self {
        Self { stream, limit, idle: Box::pin(sleep(limit)) }
    }

    fn moved(&mut self) {
        let until = Instant::from_std(self.idle.deadline().into_std().max(tokio_now() + self.limit));
        self.idle.as_mut().reset(until);
    }

    fn check<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(done) => {
                self.moved();
                Poll::Ready(done)
            }
            Poll::Pending => self.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

use std::future::Future as _;

/// Tokio's own clock, which tests can pause.
#[expect(clippy::disallowed_methods, reason = "idle time is about real time; nothing that is stored depends on it")]
fn tokio_now() -> std::time::Instant {
    Instant::now().into_std()
}

impl AsyncRead for IdleLimited {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.check(cx, polled)
    }
}

impl AsyncWrite for IdleLimited {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.check(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
