//! A shop whose orders go bad on command: `cargo run -p slowburn-tower --example shop -- --load 50`.
//!
//! Twenty routes that read and `POST /orders`, timed by the layer. `POST /control` changes how it does, at run time; parameters
//! come in the query or as a JSON object, and `GET /control` shows them. It is not timed.
//!
//! - `mode=healthy`: an order takes about 180 ms and one look-up of 25 ms.
//! - `mode=creep&fill=0.9`: orders get random six-digit ids. One is drawn and looked up until it is free, so an order takes
//!   1/(1 − fill) look-ups on average; after 30 s it is given up with 504. Raise `fill` towards 1 and watch.
//! - `mode=slow&factor=1.4`: everything takes longer by that factor, as after the loss of a cache.
//! - `mode=fail`: orders fail at once with 500.
//! - `mode=hang`: orders do not answer until the mode changes.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, Request, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use clap::Parser;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use slowburn_tower::Slowburn;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

/// Routes that read: the template, an example of its path, the median in milliseconds.
const READS: [(&str, &str, f64); 20] = [
    ("/", "/", 12.0),
    ("/products", "/products", 35.0),
    ("/products/{id}", "/products/4711", 18.0),
    ("/products/{id}/reviews", "/products/4711/reviews", 40.0),
    ("/products/{id}/similar", "/products/4711/similar", 65.0),
    ("/products/{id}/stock", "/products/4711/stock", 9.0),
    ("/categories", "/categories", 14.0),
    ("/categories/{name}", "/categories/lamps", 45.0),
    ("/search", "/search?q=lamp", 90.0),
    ("/search/suggestions", "/search/suggestions?q=la", 11.0),
    ("/cart", "/cart", 16.0),
    ("/cart/shipping", "/cart/shipping", 55.0),
    ("/account", "/account", 22.0),
    ("/account/addresses", "/account/addresses", 13.0),
    ("/account/orders", "/account/orders", 48.0),
    ("/account/orders/{id}", "/account/orders/1234", 26.0),
    ("/wishlist", "/wishlist", 15.0),
    ("/offers", "/offers", 30.0),
    ("/offers/{id}", "/offers/9", 17.0),
    ("/stores/{city}", "/stores/london", 20.0),
];
const ORDER_BODY_MS: f64 = 180.0;
const LOOK_UP_MS: f64 = 25.0;
const ORDER_TIMEOUT_MS: f64 = 30_000.0;
/// Spread of the lognormal times.
const SIGMA: f64 = 0.35;
/// One request in so many of the own load is an order.
const ORDERS_ONE_IN: u32 = 100;

#[derive(Parser)]
struct Options {
    /// Where the shop listens; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: String,
    /// Where Slowburn is
    #[arg(long, default_value = "http://127.0.0.1:9898")]
    slowburn: String,
    /// The token for Slowburn, if it asks for one
    #[arg(long)]
    token: Option<String>,
    /// Milliseconds between two flushes
    #[arg(long, default_value_t = 10_000)]
    flush_ms: u64,
    /// All durations of the shop are multiplied by this: 0.01 is a hundred times as fast
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
    /// Requests a second that the shop makes to itself
    #[arg(long, default_value_t = 0.0)]
    load: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Healthy,
    Creep { fill: f64 },
    Slow { factor: f64 },
    Fail,
    Hang,
}

#[derive(Clone)]
struct Shop {
    mode: watch::Sender<Mode>,
    time_scale: f64,
}

impl Shop {
    async fn take(&self, milliseconds: f64) {
        let factor = if let Mode::Slow { factor } = *self.mode.borrow() { factor } else { 1.0 };
        sleep(Duration::from_secs_f64(milliseconds * factor * self.time_scale / 1_000.0)).await;
    }
}

async fn order(State(shop): State<Shop>) -> (StatusCode, &'static str) {
    let not_hanging = shop.mode.subscribe().wait_for(|mode| *mode != Mode::Hang).await.map(|mode| *mode);
    let fill = match not_hanging {
        Ok(Mode::Fail) | Err(_) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, "no order can be made\n");
        }
        Ok(Mode::Creep { fill }) => fill,
        Ok(_) => 0.0,
    };
    let body_ms = lognormal(ORDER_BODY_MS);
    let look_ups_max = (ORDER_TIMEOUT_MS - body_ms) / LOOK_UP_MS;
    let mut look_ups = 1.0;
    while look_ups <= look_ups_max && fastrand::f64() < fill {
        look_ups += 1.0;
    }
    if look_ups > look_ups_max {
        shop.take(ORDER_TIMEOUT_MS).await;
        return (StatusCode::GATEWAY_TIMEOUT, "no free number was found\n");
    }
    shop.take(body_ms + look_ups * LOOK_UP_MS).await;
    (StatusCode::CREATED, "ordered\n")
}

async fn control(State(shop): State<Shop>, Query(query): Query<HashMap<String, String>>, body: Bytes) -> Result<impl IntoResponse, (StatusCode, String)> {
    let mode = parse_mode(&query, &body).map_err(|reason| (StatusCode::BAD_REQUEST, format!("{reason}\n")))?;
    shop.mode.send_replace(mode);
    Ok(described(mode))
}

fn parse_mode(query: &HashMap<String, String>, body: &[u8]) -> Result<Mode, &'static str> {
    let json: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).map_err(|_| "the body is not JSON")? };
    let text = |name: &str| match json.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(value) => Some(value.to_string()),
        None => query.get(name).cloned(),
    };
    let number = |name: &str, default: f64| text(name).map_or(Ok(default), |text| text.parse().map_err(|_| "not a number"));
    match text("mode").as_deref() {
        Some("healthy") => Ok(Mode::Healthy),
        Some("creep") => match number("fill", 0.35)? {
            fill if (0.0..1.0).contains(&fill) => Ok(Mode::Creep { fill }),
            _ => Err("fill is from 0 to less than 1"),
        },
        Some("slow") => match number("factor", 1.4)? {
            factor if (0.01..=1_000.0).contains(&factor) => Ok(Mode::Slow { factor }),
            _ => Err("factor is from 0.01 to 1000"),
        },
        Some("fail") => Ok(Mode::Fail),
        Some("hang") => Ok(Mode::Hang),
        _ => Err("mode is one of healthy, creep, slow, fail, hang"),
    }
}

fn described(mode: Mode) -> axum::Json<Value> {
    axum::Json(match mode {
        Mode::Healthy => json!({"mode": "healthy"}),
        Mode::Creep { fill } => {
            json!({"mode": "creep", "fill": fill, "look_ups_mean": 1.0 / (1.0 - fill)})
        }
        Mode::Slow { factor } => json!({"mode": "slow", "factor": factor}),
        Mode::Fail => json!({"mode": "fail"}),
        Mode::Hang => json!({"mode": "hang"}),
    })
}

/// A time around its median.
fn lognormal(median_ms: f64) -> f64 {
    let normal = (-2.0 * (1.0 - fastrand::f64()).ln()).sqrt() * (std::f64::consts::TAU * fastrand::f64()).cos();
    median_ms * (SIGMA * normal).exp()
}

fn shop_routes(shop: &Shop, slowburn: &Slowburn) -> Router {
    let mut timed = Router::new().route("/orders", post(order));
    for (template, _, median_ms) in READS {
        let read = async move |State(shop): State<Shop>| {
            shop.take(lognormal(median_ms)).await;
            "here you are\n"
        };
        timed = timed.route(template, get(read));
    }
    let shown = get(async |State(shop): State<Shop>| described(*shop.mode.borrow()));
    // What is added after the layer is not timed.
    timed.layer(slowburn.layer()).route("/control", shown.post(control)).with_state(shop.clone())
}

/// Requests at random times, to the routes in-process; who waits too long gives up.
async fn make_load(app: Router, per_second: f64, patience: Duration) {
    loop {
        let gap = -(1.0 - fastrand::f64()).ln() / per_second;
        sleep(Duration::from_secs_f64(gap)).await;
        let (method, path) =
            if fastrand::u32(..ORDERS_ONE_IN) == 0 { (Method::POST, "/orders") } else { (Method::GET, READS[fastrand::usize(..READS.len())].1) };
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("the paths of READS are valid");
        let answer = app.clone().oneshot(request);
        tokio::spawn(timeout(patience, async {
            let Ok(response) = answer.await;
            response.into_body().collect().await.ok();
        }));
    }
}

async fn asked_to_stop() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            interrupted = tokio::signal::ctrl_c() => interrupted,
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    if !(0.0..=1_000.0).contains(&options.time_scale) || !(0.0..=100_000.0).contains(&options.load) {
        return Err("--time-scale is from 0 to 1000, --load from 0 to 100000".into());
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut builder = Slowburn::builder(options.slowburn, "shop").env("prod").critical("POST", "/orders").flush_every(Duration::from_millis(options.flush_ms));
    if let Some(token) = options.token {
        builder = builder.token(token);
    }
    let slowburn = builder.start()?;

    let shop = Shop { mode: watch::Sender::new(Mode::Healthy), time_scale: options.time_scale };
    let app = shop_routes(&shop, &slowburn);
    let listener = TcpListener::bind(&options.listen).await?;
    writeln!(std::io::stderr(), "listening on http://{}", listener.local_addr()?)?;
    if options.load > 0.0 {
        let patience = Duration::from_secs_f64(1.2 * ORDER_TIMEOUT_MS / 1_000.0 * options.time_scale.max(0.01));
        tokio::spawn(make_load(app.clone(), options.load, patience));
    }
    tokio::select! {
        served = async { axum::serve(listener, app).await } => served?,
        asked = asked_to_stop() => asked?,
    }
    slowburn.shutdown().await;
    Ok(())
}
