//! The layer in real services, against a small server that plays Slowburn's part. Nothing here sleeps: tests wait for batches.

#![expect(clippy::unwrap_used, reason = "tests fail by it")]

mod slowburn;

use std::convert::Infallible;
use std::future::{Ready, pending, ready};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, Empty};
use serde_json::Value;
use slowburn::{Server, counted};
use slowburn_tower::{RouteTemplate, Slowburn, StartError, Unsent};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tower::{Layer as _, ServiceExt as _, service_fn};

fn request(method: Method, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

async fn ask(app: &Router, method: Method, path: &str) -> StatusCode {
    let response = app.clone().oneshot(request(method, path)).await.unwrap();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

#[tokio::test]
async fn routes_are_named_by_their_template_and_outcomes_by_the_status() {
    let mut server = Server::start().await;
    let slowburn = server.client().critical("POST", "/orders").start().unwrap();
    let admin = Router::new().route("/users/{user}", get(async || "a user"));
    let app = Router::new()
        .route("/products/{id}", get(async |Path(id): Path<u32>| format!("product {id}")))
        .route("/orders", post(async || StatusCode::CREATED).get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .nest("/admin", admin)
        .layer(slowburn.layer())
        .route("/control", get(async || "not timed"));
    for id in 0..5 {
        assert_eq!(ask(&app, Method::GET, &format!("/products/{id}")).await, 200);
    }
    assert_eq!(ask(&app, Method::GET, "/products/not-a-number").await, 400);
    assert_eq!(ask(&app, Method::POST, "/orders").await, 201);
    assert_eq!(ask(&app, Method::GET, "/orders").await, 500);
    assert_eq!(ask(&app, Method::DELETE, "/orders").await, 405);
    assert_eq!(ask(&app, Method::GET, "/admin/users/7?x=1").await, 200);
    assert_eq!(ask(&app, Method::GET, "/wp-login.php").await, 404);
    assert_eq!(ask(&app, Method::GET, "/control").await, 200);
    let expected = counted([
        ("GET /products/{id} 200", 5),
        ("GET /products/{id} 400", 1),
        ("POST /orders 201", 1),
        ("GET /orders 500", 1),
        ("DELETE /orders 405", 1),
        ("GET /admin/users/{user} 200", 1),
        ("GET (unmatched) 404", 1),
    ]);
    assert_eq!(server.counted(11).await, expected);
    assert_eq!(slowburn.stats().dropped_timings, 0);
}

#[tokio::test]
async fn items_carry_service_environment_and_an_aligned_time_that_is_not_ahead() {
    let mut server = Server::start().await;
    let slowburn = server.client().token("s3cret").sender("shop-web-1").start().unwrap();
    let app = Router::new().route("/a", get(async || "a")).layer(slowburn.layer());
    ask(&app, Method::GET, "/a").await;
    let batch = loop {
        let batch = server.batch().await;
        if batch.header("content-type") == "application/x-ndjson" {
            break batch;
        }
        assert_eq!((batch.header("content-type"), batch.body.as_str()), ("application/json", "[]"), "a heartbeat");
    };
    assert_eq!(batch.header("authorization"), "Bearer s3cret");
    let fields: Vec<_> = batch.header("slowburn-sender").split("; ").collect();
    let names: Vec<_> = fields.iter().map(|field| field.split('=').next().unwrap()).collect();
    assert_eq!(names, ["shop-web-1", "epoch", "seq", "dropped", "uptime"]);
    let item = &batch.lines()[0];
    assert_eq!((&item["service"], &item["env"]), (&Value::from("shop"), &Value::from("prod")));
    #[expect(clippy::disallowed_methods, reason = "the server's side of the clock")]
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let ts = u128::from(item["ts"].as_u64().unwrap());
    assert!(ts.is_multiple_of(10_000) && ts <= now_ms && ts + 30_000 > now_ms, "{ts} at {now_ms}");
}

async fn panics() {
    panic!("on purpose");
}

#[tokio::test]
async fn failures_of_every_kind_have_their_outcome() {
    let mut server = Server::start().await;
    let slowburn = server.client().start().unwrap();
    let broken = || {
        let parts = futures_util::stream::iter([Ok(Bytes::from("half")), Err(std::io::Error::other("cut"))]);
        Response::new(Body::from_stream(parts))
    };
    let app = Router::new()
        .route("/broken-body", get(async move || broken()))
        .route("/dropped-body", get(async || Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>())))
        .route("/hangs", get(pending::<()>))
        .route("/panics", get(panics))
        .route("/strange", get(async || StatusCode::from_u16(799).unwrap()))
        .layer(slowburn.layer());

    let response = app.clone().oneshot(request(Method::GET, "/broken-body")).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    drop(app.clone().oneshot(request(Method::GET, "/dropped-body")).await.unwrap());
    let hanging = app.clone().oneshot(request(Method::GET, "/hangs"));
    assert!(tokio::time::timeout(Duration::ZERO, hanging).await.is_err(), "the client gave up");
    let panicking = tokio::spawn(app.clone().oneshot(request(Method::GET, "/panics")));
    assert!(panicking.await.unwrap_err().is_panic());
    ask(&app, Method::GET, "/strange").await;

    let failing = service_fn(|_: Request<Body>| ready(Err::<Response<Body>, _>("no upstream")));
    assert!(slowburn.layer().layer(failing).oneshot(request(Method::GET, "/")).await.is_err());
    let expected = counted([
        ("GET /broken-body error", 1),
        ("GET /dropped-body 200", 1),
        ("GET /hangs timeout", 1),
        ("GET /panics error", 1),
        ("GET /strange error", 1),
        ("GET (unmatched) error", 1),
    ]);
    assert_eq!(server.counted(6).await, expected);
}

#[tokio::test]
async fn a_timing_lasts_to_the_end_of_the_body_and_is_in_flight_until_then() {
    let mut server = Server::start().await;
    let slowburn = server.client().critical("GET", "/export").start().unwrap();
    let (finish, finished) = oneshot::channel::<Bytes>();
    let finished = Arc::new(Mutex::new(Some(finished)));
    let export = get(async move || {
        let rest = finished.lock().unwrap().take().unwrap();
        Body::from_stream(futures_util::stream::once(rest)).into_response()
    });
    let app = Router::new().route("/export", export).layer(slowburn.layer());
    let response = app.clone().oneshot(request(Method::GET, "/export")).await.unwrap();
    assert_eq!(response.status(), 200, "the head is there");
    let reading = tokio::spawn(response.into_body().collect());
    let age_ms = loop {
        let lines = server.batch().await.lines();
        let told: Vec<_> = lines.iter().filter_map(|line| line["in_flight"].as_array()).flatten().collect();
        if let Some(oldest) = told.first().filter(|group| group["age_ms"].as_u64().unwrap() >= 50) {
            assert_eq!((&oldest["route"], &oldest["n"]), (&Value::from("/export"), &Value::from(1)));
            break oldest["age_ms"].as_u64().unwrap();
        }
    };
    finish.send(Bytes::from("the end")).unwrap();
    assert_eq!(reading.await.unwrap().unwrap().to_bytes(), "the end");
    let items = server.items(1).await;
    let value_us = items[0]["values_us"][0][0].as_u64().unwrap();
    assert!(value_us >= age_ms * 1_000, "{value_us} us after {age_ms} ms in flight");
}

#[tokio::test]
async fn other_services_name_their_routes_by_extension_or_function() {
    let mut server = Server::start().await;
    let by_host = |head: &slowburn_tower::Head<'_>| match head.uri.path() {
        "/unknown" => None,
        path => Some(format!("{}-like", &path[..2]).into()),
    };
    let slowburn = server.client().route_with(by_host).start().unwrap();
    let answer = |_: Request<Empty<Bytes>>| -> Ready<Result<_, Infallible>> { ready(Ok(Response::new(Empty::<Bytes>::new()))) };
    let service = slowburn.layer().layer(service_fn(answer));
    for (path, template) in [("/x1", None), ("/x2", None), ("/unknown", None), ("/x3", Some("/named/{by}/extension"))] {
        let mut request = Request::get(path).body(Empty::new()).unwrap();
        if let Some(template) = template {
            request.extensions_mut().insert(RouteTemplate(template.into()));
        }
        // An empty body is never polled: the timing must not wait for it.
        let response = service.clone().oneshot(request).await.unwrap();
        std::mem::forget(response);
    }
    let expected = counted([("GET /x-like 200", 2), ("GET (unmatched) 200", 1), ("GET /named/{by}/extension 200", 1)]);
    assert_eq!(server.counted(4).await, expected);
}

#[tokio::test]
async fn a_refused_attempt_is_repeated_byte_for_byte_under_its_number() {
    let mut server = Server::start().await;
    let retry_after = HeaderMap::from_iter([("retry-after".parse().unwrap(), "0".parse().unwrap())]);
    server.answers.lock().unwrap().push((StatusCode::SERVICE_UNAVAILABLE, retry_after));
    let slowburn = server.client().start().unwrap();
    let app = Router::new().route("/a", get(async || "a")).layer(slowburn.layer());
    ask(&app, Method::GET, "/a").await;
    let (first, second) = (server.batch().await, server.batch().await);
    assert_eq!((first.status, second.status), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK));
    assert!(first.header("slowburn-sender").contains("; seq=1;"));
    assert!(second.header("slowburn-sender").contains("; seq=1;"));
    assert_eq!(first.body, second.body);
}

#[tokio::test]
async fn requests_are_served_whatever_slowburn_does() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let absent = {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        closed.local_addr().unwrap()
    };
    for address in [silent.local_addr().unwrap(), absent] {
        let slowburn = Slowburn::builder(format!("http://{address}"), "shop").flush_every(Duration::from_millis(10)).start().unwrap();
        let app = Router::new().route("/a", get(async || "a")).layer(slowburn.layer());
        for _ in 0..500 {
            assert_eq!(ask(&app, Method::GET, "/a").await, 200);
        }
        assert_eq!(slowburn.shutdown().await, Unsent { timings: 500 }, "within 2 s");
        assert_eq!(ask(&app, Method::GET, "/a").await, 200, "after the shutdown too");
        assert_eq!(slowburn.shutdown().await, Unsent::default(), "a second one has nothing to do");
    }
}

#[tokio::test]
async fn a_shutdown_delivers_the_last_timings() {
    let mut server = Server::start().await;
    let slowburn = server.client().flush_every(Duration::from_secs(60)).start().unwrap();
    let app = Router::new().route("/a", get(async || "a")).layer(slowburn.layer());
    for _ in 0..50 {
        ask(&app, Method::GET, "/a").await;
    }
    assert_eq!(slowburn.shutdown().await, Unsent { timings: 0 });
    assert_eq!(server.counted(50).await, counted([("GET /a 200", 50)]));
}

#[tokio::test]
async fn a_dropped_handle_harms_nobody_and_the_layer_goes_on() {
    let mut server = Server::start().await;
    let slowburn = server.client().start().unwrap();
    let app = Router::new().route("/a", get(async || "a")).layer(slowburn.layer());
    drop(slowburn);
    ask(&app, Method::GET, "/a").await;
    assert_eq!(server.counted(1).await, counted([("GET /a 200", 1)]));
    ask(&app, Method::GET, "/a").await;
    drop(app);
    assert_eq!(server.counted(1).await, counted([("GET /a 200", 1)]), "the rest goes with the last layer");
}

#[tokio::test]
async fn over_a_real_connection_each_request_counts_once() {
    let mut server = Server::start().await;
    let slowburn = server.client().start().unwrap();
    let app = Router::new().route("/a", get(async || "some body")).layer(slowburn.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    for method in ["GET", "HEAD", "GET"] {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let text = format!("{method} /a HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(server.counted(3).await, counted([("GET /a 200", 2), ("HEAD /a 200", 1)]));
}

#[test]
fn it_does_not_start_without_a_runtime() {
    let error = Slowburn::builder("http://127.0.0.1:1", "shop").start().unwrap_err();
    assert!(matches!(error, StartError::NoRuntime));
}
