//! What the layer adds to a request: `cargo run --release -p slowburn-tower --example cost`.
//!
//! A service that does nothing is called with and without the layer, in turns, on one thread and on two. The difference is the
//! cost. The best turn is shown beside the median: on a shared machine the others measure the neighbours.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Empty;
use slowburn_tower::{RouteTemplate, Slowburn};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

const CALLS: u32 = 200_000;
const TURNS: usize = 15;

type Empties = Empty<Bytes>;

fn answer(_: Request<Empties>) -> Ready<Result<Response<Empties>, Infallible>> {
    ready(Ok(Response::new(Empty::new())))
}

/// Nanoseconds per call.
fn turn<S>(mut service: S) -> f64
where
    S: Service<Request<Empties>, Error = Infallible>,
{
    let routes: Vec<RouteTemplate> = (0..20).map(|i| RouteTemplate(format!("/catalogue/{i}/{{id}}").into())).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        #[expect(clippy::disallowed_methods, reason = "a measurement")]
        let started = std::time::Instant::now();
        for route in routes.iter().cycle().take(CALLS as usize) {
            let mut request = Request::new(Empty::new());
            *request.method_mut() = Method::GET;
            request.extensions_mut().insert(route.clone());
            let Ok(response) = service.ready().await.expect("never fails").call(request).await;
            std::hint::black_box(response);
        }
        started.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    })
}

fn on_threads<S>(threads: usize, service: &S) -> f64
where
    S: Service<Request<Empties>, Error = Infallible> + Clone + Send + Sync,
{
    let times: Vec<f64> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| turn(service.clone()))).collect();
        running.into_iter().map(|thread| thread.join().expect("no turn panics")).collect()
    });
    times.iter().sum::<f64>() / f64::from(u32::try_from(threads).expect("few threads"))
}

fn summary(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    format!("median {:6.0} ns, best {:6.0} ns", times[times.len() / 2], times[0])
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Nobody listens there: the layer must not care.
    let slowburn = Slowburn::builder("http://127.0.0.1:1", "cost").flush_every(Duration::from_secs(1)).start()?;
    for threads in [1, 2] {
        let (bare, timed) = (service_fn(answer), slowburn.layer().layer(service_fn(answer)));
        let mut turns: [Vec<f64>; 3] = Default::default();
        for _ in 0..TURNS {
            let without = on_threads(threads, &bare);
            let with = on_threads(threads, &timed);
            for (times, time) in turns.iter_mut().zip([without, with, with - without]) {
                times.push(time);
            }
        }
        let [without, with, added] = turns.map(summary);
        println!("{threads} thread(s): without {without}; with {with}; added {added} per request");
    }
    Ok(())
}
