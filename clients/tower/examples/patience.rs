//! What a request pays while Slowburn is absent, hangs, or refuses: `cargo run --release -p slowburn-tower --example patience`.
//!
//! Each request of a service that does nothing is timed alone, with the layer, for some seconds of each kind of trouble while batches pile up and are retried. Printed are
//! the time of the median, the 99th and the 99.9th percentile, what waits and what was dropped.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use slowburn_tower::{RouteTemplate, Slowburn};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};

const CALLS: u32 = 1_000_000;

fn answer(_: Request<Empty<Bytes>>) -> Ready<Result<Response<Empty<Bytes>>, Infallible>> {
    ready(Ok(Response::new(Empty::new())))
}

/// A server that takes connections into its backlog and never reads them.
fn hanging() -> std::io::Result<(String, TcpListener)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok((format!("http://{}", listener.local_addr()?), listener))
}

/// A server that answers 503 to everything.
fn refusing() -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut head = [0; 4096];
            if stream.read(&mut head).is_ok() {
                // A peer that is gone needs no answer.
                drop(stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
            }
        }
    });
    Ok(url)
}

async fn measure(trouble: &str, url: &str) -> Result<(), Box<dyn std::error::Error>> {
    let slowburn = Slowburn::builder(url, "patience").critical("GET", "/orders").flush_every(Duration::from_secs(1)).queue_bytes_limit(256 << 10).start()?;
    let mut service = slowburn.layer().layer(service_fn(answer));
    let routes: Vec<RouteTemplate> = ["/orders", "/cart", "/products/{id}"].into_iter().map(|r| RouteTemplate(r.into())).collect();
    let mut nanos = Vec::with_capacity(CALLS as usize);
    for (n, route) in (0..CALLS).zip(routes.iter().cycle()) {
        let mut request = Request::new(Empty::new());
        request.extensions_mut().insert(route.clone());
        #[expect(clippy::disallowed_methods, reason = "a measurement")]
        let started = std::time::Instant::now();
        drop(service.ready().await?.call(request).await?);
        nanos.push(started.elapsed().as_nanos());
        if n % 250 == 0 {
            // So that the calls last for several flushes.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    nanos.sort_unstable();
    let at = |permille: usize| nanos[(nanos.len() - 1) * permille / 1000];
    let stats = slowburn.stats();
    println!(
        "{trouble:9} p50 {:5} ns, p99 {:6} ns, p99.9 {:7} ns; waiting {} batches of {} bytes, dropped {} timings",
        at(500),
        at(990),
        at(999),
        stats.queued_batches,
        stats.queued_bytes,
        stats.dropped_timings
    );
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (hanging, _kept) = hanging()?;
    measure("absent:", "http://127.0.0.1:1").await?;
    measure("hanging:", &hanging).await?;
    measure("refusing:", &refusing()?).await
}
