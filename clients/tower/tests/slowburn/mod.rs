//! A small server that plays Slowburn's part.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use slowburn_tower::{Builder, Slowburn};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Plays Slowburn: every batch goes to the test, answered as the test wishes.
pub(crate) struct Server {
    address: String,
    batches: mpsc::UnboundedReceiver<Batch>,
    pub(crate) answers: Arc<Mutex<Vec<(StatusCode, HeaderMap)>>>,
}

#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) status: StatusCode,
}

impl Batch {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        if self.header("content-type") == "application/json" {
            return serde_json::from_str::<Vec<Value>>(&self.body).unwrap();
        }
        self.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// `POST /orders 201` and so on, with the number of timings.
pub(crate) type Counted = BTreeMap<String, u64>;

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, batches) = mpsc::unbounded_channel();
        let answers: Arc<Mutex<Vec<(StatusCode, HeaderMap)>>> = Arc::default();
        let next = Arc::clone(&answers);
        let take = post(async move |headers: HeaderMap, body: String| {
            let (status, answer_headers) = next.lock().unwrap().pop().unwrap_or_default();
            sender.send(Batch { headers, body, status }).ok();
            (status, answer_headers, "{\"accepted\":0,\"rejected\":0,\"errors\":[]}")
        });
        let app = Router::new().route("/api/v1/timings", take);
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, batches, answers }
    }

    pub(crate) fn client(&self) -> Builder {
        Slowburn::builder(&self.address, "shop").env("prod").flush_every(Duration::from_millis(20))
    }

    pub(crate) async fn batch(&mut self) -> Batch {
        let batch = tokio::time::timeout(Duration::from_secs(20), self.batches.recv()).await;
        batch.expect("no batch came").unwrap()
    }

    /// The items of the next batches, until there are as many timings.
    pub(crate) async fn items(&mut self, timings: u64) -> Vec<Value> {
        let (mut items, mut seen) = (Vec::new(), 0);
        while seen < timings {
            for line in self.batch().await.lines() {
                if let Some(pairs) = line.get("values_us") {
                    seen += pairs.as_array().unwrap().iter().map(|pair| pair[1].as_u64().unwrap()).sum::<u64>();
                    items.push(line);
                }
            }
        }
        assert_eq!(seen, timings);
        items
    }

    pub(crate) async fn counted(&mut self, timings: u64) -> Counted {
        let mut counted = Counted::new();
        for item in self.items(timings).await {
            let ended = item.get("status").map_or_else(|| item["outcome"].as_str().unwrap().to_owned(), Value::to_string);
            let name = format!("{} {} {ended}", item["method"].as_str().unwrap(), item["route"].as_str().unwrap());
            for pair in item["values_us"].as_array().unwrap() {
                *counted.entry(name.clone()).or_default() += pair[1].as_u64().unwrap();
            }
        }
        counted
    }
}

pub(crate) fn counted<const N: usize>(expected: [(&str, u64); N]) -> Counted {
    expected.map(|(name, n)| (name.to_owned(), n)).into()
}
