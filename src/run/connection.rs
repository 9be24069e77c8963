//! A connection that is closed when nothing moves on it for too long.
//!
//! hyper has one limit for the head of a request, and it also runs while a connection waits for the next one: short enough against half requests it
//! would close every connection that is kept alive. So time is kept here, by what the peer owes: a first byte, a head, or nothing.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// The first byte of the first request must come within this.
const FIRST_BYTE_WAIT: Duration = Duration::from_secs(10);
/// From its first byte on, the head of a request must come within this.
const HEAD_WAIT: Duration = Duration::from_secs(5);
/// A connection on which nothing moves is closed after this.
const IDLE_WAIT: Duration = Duration::from_secs(75);

/// Requests of a connection: how many heads were read, and how many of them are answered. Both only grow, so that one that came and went between two looks is seen too.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay(Arc<[AtomicUsize; 2]>);

impl UnderWay {
    /// A request was read; its answer is ready when what this returns is dropped.
    pub(super) fn begin(&self) -> Answering {
        self.0[0].fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(&self.0))
    }

    fn read(&self) -> usize {
        self.0[0].load(Ordering::Relaxed)
    }

    fn answered(&self) -> usize {
        self.0[1].load(Ordering::Relaxed)
    }
}

/// See [`UnderWay::begin`].
#[derive(Debug)]
pub(super) struct Answering(Arc<[AtomicUsize; 2]>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0[1].fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A request may come.
    Waiting,
    /// Its head comes.
    Head,
    /// Its body comes, it is answered.
    Answering,
}

/// A stream that ends with `TimedOut` when the peer lets it wait.
#[derive(Debug)]
pub(super) struct TimeLimited {
    stream: TcpStream,
    under_way: UnderWay,
    seen: usize,
    phase: Phase,
    until: Pin<Box<Sleep>>,
}

impl TimeLimited {
    pub(super) fn new(stream: TcpStream, under_way: UnderWay) -> Self {
        Self { stream, under_way, seen: 0, phase: Phase::Waiting, until: Box::pin(sleep(FIRST_BYTE_WAIT)) }
    }

    fn wait(&mut self, phase: Phase, limit: Duration) {
        self.phase = phase;
        self.until.as_mut().reset(Instant::from_std(tokio_now() + limit));
    }

    fn check<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>, arrived: bool) -> Poll<io::Result<T>> {
        if self.under_way.read() > self.seen {
            self.seen = self.under_way.read();
            self.wait(Phase::Answering, IDLE_WAIT);
        }
        if self.phase == Phase::Answering && self.under_way.answered() == self.seen {
            self.wait(Phase::Waiting, IDLE_WAIT);
        }
        match polled {
            Poll::Ready(done) => {
                match self.phase {
                    Phase::Waiting if arrived => self.wait(Phase::Head, HEAD_WAIT),
                    Phase::Answering => self.wait(Phase::Answering, IDLE_WAIT),
                    Phase::Waiting | Phase::Head => {}
                }
                Poll::Ready(done)
            }
            Poll::Pending => self.until.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// Tokio's own clock, which tests can pause.
#[expect(clippy::disallowed_methods, reason = "idle time is about real time; nothing that is stored depends on it")]
fn tokio_now() -> std::time::Instant {
    Instant::now().into_std()
}

impl AsyncRead for TimeLimited {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let arrived = buf.filled().len() > before;
        self.check(cx, polled, arrived)
    }
}

impl AsyncWrite for TimeLimited {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.check(cx, polled, false)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
