//! The families of endpoints in the text format 0.0.4, written piece by piece: a page of 100,000 endpoints is never in memory as text.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;

use crate::counting::{Cell, Outcome};
use crate::endpoint::{EndpointId, EndpointKey};
use crate::histogram::quantile::Quantile;
use crate::history::totals::Sums;
use crate::ingest::memory::Reservation;

/// Bounds of the classic histogram in microseconds; each objective's threshold is added.
const BOUNDS_US: [u64; 14] =
    [5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000];

/// Text that is written at a time.
const PIECE_BYTES: usize = 64 << 10;

/// What is exported of an endpoint.
#[derive(Clone, Debug)]
pub(super) struct Exported {
    pub(super) id: EndpointId,
    pub(super) key: Arc<EndpointKey>,
    pub(super) total: Sums,
    /// Of critical endpoints: bounds with what took no longer, and quantiles of what is recent.
    pub(super) detail: Option<Box<Detail>>,
}

/// What is exported of a critical endpoint beside.
#[derive(Clone, Debug, Default)]
pub(super) struct Detail {
    /// In microseconds, and requests not slower.
    bounds: Vec<(u64, u64)>,
    /// Label and microseconds; empty without a recent request.
    quantiles: Vec<(&'static str, u64)>,
}

impl Detail {
    pub(super) fn new(total: &Cell, recent: &Cell) -> Self {
        let mut bounds: Vec<u64> = BOUNDS_US.into_iter().chain(total.thresholds.iter().map(|t| t.threshold_us)).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let within = |us: u64| {
            let count = total.at_threshold(us);
            count.within.weight + count.failed_within.weight
        };
        let mut all = recent.passed.clone();
        all.merge(&recent.failed);
        let quantiles = ["0.5", "0.95", "0.99"].into_iter().filter_map(|text| Some((text, all.quantile_us(Quantile::parse(text).ok()?)?)));
        Self { bounds: bounds.into_iter().map(|us| (us, within(us))).collect(), quantiles: quantiles.collect() }
    }
}

impl Exported {
    /// All of them, however they ended.
    pub(super) fn requests(&self) -> u64 {
        self.total.outcomes.into_iter().fold(0, u64::saturating_add)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Requests,
    Durations,
    Latency,
}

impl Family {
    const ALL: [Self; 3] = [Self::Requests, Self::Durations, Self::Latency];

    fn head(self) -> &'static str {
        match self {
            Self::Requests => "# HELP slowburn_requests_total Requests by outcome.\n# TYPE slowburn_requests_total counter\n",
            Self::Durations => {
                "# HELP slowburn_request_duration_seconds Durations of requests; bounds at thresholds of objectives are exact, others within 1 %. \
                 Endpoints that are not critical have no bound but +Inf.\n# TYPE slowburn_request_duration_seconds histogram\n"
            }
            Self::Latency => {
                "# HELP slowburn_endpoint_latency_seconds Latency of critical endpoints over the last minute judged and what came since, absent without requests; \
                 sum and count are of all requests ever.\n# TYPE slowburn_endpoint_latency_seconds summary\n"
            }
        }
    }

    fn has(self, endpoint: &Exported) -> bool {
        self != Self::Latency || endpoint.detail.as_ref().is_some_and(|d| !d.quantiles.is_empty())
    }

    /// Appends the samples of an endpoint; `labels` is room.
    fn write(self, out: &mut Vec<u8>, labels: &mut Vec<u8>, endpoint: &Exported) {
        put_labels(labels, &endpoint.key);
        let mut sample = |name: &str, label: &str, value: &[u8], number: &dyn Fn(&mut Vec<u8>)| {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(labels);
            out.extend_from_slice(label.as_bytes());
            out.extend_from_slice(value);
            out.extend_from_slice(if label.is_empty() { b"} " } else { b"\"} " });
            number(out);
            out.push(b'\n');
        };
        let Exported { total, detail, .. } = endpoint;
        let count = endpoint.requests();
        match self {
            Self::Requests => {
                for outcome in Outcome::ALL {
                    sample("slowburn_requests_total", ",outcome=\"", outcome.name().as_bytes(), &|out| put_number(out, total.outcomes[outcome as usize]));
                }
            }
            Self::Durations => {
                let mut bound = Vec::new();
                for &(us, within) in detail.iter().flat_map(|d| &d.bounds) {
                    bound.clear();
                    put_seconds(&mut bound, us);
                    sample("slowburn_request_duration_seconds_bucket", ",le=\"", &bound, &|out| put_number(out, within));
                }
                sample("slowburn_request_duration_seconds_bucket", ",le=\"", b"+Inf", &|out| put_number(out, count));
                sample("slowburn_request_duration_seconds_sum", "", b"", &|out| put_seconds(out, total.sum_us));
                sample("slowburn_request_duration_seconds_count", "", b"", &|out| put_number(out, count));
            }
            Self::Latency => {
                for &(quantile, us) in detail.iter().flat_map(|d| &d.quantiles) {
                    sample("slowburn_endpoint_latency_seconds", ",window=\"1m\",quantile=\"", quantile.as_bytes(), &|out| put_seconds(out, us));
                }
                sample("slowburn_endpoint_latency_seconds_sum", ",window=\"", b"1m", &|out| put_seconds(out, total.sum_us));
                sample("slowburn_endpoint_latency_seconds_count", ",window=\"", b"1m", &|out| put_number(out, count));
            }
        }
    }
}

/// `{service="…",env="…",…` without the end.
fn put_labels(out: &mut Vec<u8>, key: &EndpointKey) {
    out.clear();
    let parts = [("{service=\"", &key.service), ("\",env=\"", &key.env), ("\",kind=\"", &key.kind), ("\",method=\"", &key.method), ("\",route=\"", &key.route)];
    for (name, value) in parts {
        out.extend_from_slice(name.as_bytes());
        put_escaped(out, value);
    }
    out.push(b'"');
}

/// A label's value: backslash, quote and line feed are escaped.
fn put_escaped(out: &mut Vec<u8>, value: &str) {
    let mut rest = value.as_bytes();
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\\' | b'"' | b'\n')) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(match rest[at] {
            b'\\' => b"\\\\",
            b'"' => b"\\\"",
            _ => b"\\n",
        });
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    let (mut digits, mut at, mut rest) = ([0_u8; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10).to_le_bytes()[0];
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Microseconds as seconds: exact, as short as can be.
fn put_seconds(out: &mut Vec<u8>, us: u64) {
    put_number(out, us / 1_000_000);
    let mut fraction = us % 1_000_000;
    if fraction > 0 {
        out.push(b'.');
        let mut unit = 100_000;
        while fraction > 0 {
            out.push(b'0' + (fraction / unit).to_le_bytes()[0]);
            fraction %= unit;
            unit /= 10;
        }
    }
}

/// The rest of a page: text that stands first, then the families of endpoints, written as the reader takes them.
#[derive(Debug)]
pub(super) struct Page {
    first: Bytes,
    endpoints: Vec<Exported>,
    family: usize,
    next: usize,
    is_begun: bool,
    labels: Vec<u8>,
    _room: Option<Reservation>,
}

impl Page {
    pub(super) fn new(first: Vec<u8>, endpoints: Vec<Exported>) -> Self {
        Self { first: first.into(), endpoints, family: 0, next: 0, is_begun: false, labels: Vec::new(), _room: None }
    }

    /// Keeps the memory that was asked for until all of it is sent.
    pub(super) fn holding(self, room: Reservation) -> Self {
        Self { _room: Some(room), ..self }
    }

    /// All of it, for a page that is small.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(piece) = self.piece() {
            whole.extend_from_slice(&piece);
        }
        whole
    }

    fn piece(&mut self) -> Option<Bytes> {
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        let mut out = Vec::with_capacity(PIECE_BYTES + 4_096);
        while out.len() < PIECE_BYTES
            && let Some(family) = Family::ALL.get(self.family)
        {
            let Some(endpoint) = self.endpoints.get(self.next) else {
                (self.family, self.next, self.is_begun) = (self.family + 1, 0, false);
                continue;
            };
            self.next += 1;
            if family.has(endpoint) {
                if !std::mem::replace(&mut self.is_begun, true) {
                    out.extend_from_slice(family.head().as_bytes());
                }
                family.write(&mut out, &mut self.labels, endpoint);
            }
        }
        (!out.is_empty()).then(|| out.into())
    }
}

impl HttpBody for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.piece().map(|piece| Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::{Span, Tally};
    use crate::histogram::Digits;

    fn text(page: &mut Page) -> Vec<String> {
        std::iter::from_fn(|| page.piece()).map(|p| String::from_utf8(p.to_vec()).unwrap()).collect()
    }

    fn exported(n: u32, detail: Option<Detail>) -> Exported {
        let key = EndpointKey { service: "s".into(), env: String::new(), kind: "http".into(), method: "GET".into(), route: format!("/{n}") };
        Exported {
            id: EndpointId(n),
            key: Arc::new(key),
            total: Sums { outcomes: [7, 2, 1, 0], sum_us: 1_500_000 + u64::from(n) },
            detail: detail.map(Box::new),
        }
    }

    #[test]
    fn numbers_and_labels_are_written_as_they_are_read() {
        let shown = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            put(&mut out);
            String::from_utf8(out).unwrap()
        };
        for n in [0, 1, 9, 10, 99, 100, 123_456_789, u64::MAX] {
            assert_eq!(shown(&|out| put_number(out, n)), n.to_string());
        }
        for (us, text) in [(0, "0"), (1, "0.000001"), (1_500_000, "1.5"), (20_000_000, "20"), (100_010, "0.10001"), (999_999, "0.999999")] {
            assert_eq!(shown(&|out| put_seconds(out, us)), text);
        }
        assert_eq!(shown(&|out| put_escaped(out, "a\"b\\c\nü\"")), "a\\\"b\\\\c\\nü\\\"");
    }

    #[test]
    fn a_page_in_pieces_has_each_family_once_with_all_its_samples() {
        let mut total = Cell::new(&[250_000, 300_000], Digits::Two);
        total.record(Outcome::Ok, Span::exact(20_000), Tally { weight: 7, observed: 7 });
        total.record(Outcome::Error, Span::exact(260_000), Tally { weight: 3, observed: 3 });
        let detail = Detail::new(&total, &total);
        let endpoints: Vec<Exported> = (0..3_000).map(|n| exported(n, n.is_multiple_of(1_000).then(|| detail.clone()))).collect();
        let pieces = text(&mut Page::new(b"first 1\n".to_vec(), endpoints.clone()));
        assert!(pieces.len() > 20 && pieces.iter().all(|p| p.len() < PIECE_BYTES + 4_096));
        let whole = pieces.concat();
        assert!(whole.starts_with("first 1\n# HELP slowburn_requests_total "));
        assert_eq!(whole.matches("# HELP").count(), 3);
        assert_eq!(whole.lines().filter(|l| l.starts_with("slowburn_requests_total{")).count(), 4 * 3_000);
        assert_eq!(whole.matches("le=\"+Inf\"").count(), 3_000);
        for line in [
            r#"slowburn_requests_total{service="s",env="",kind="http",method="GET",route="/1",outcome="client_error"} 2"#,
            r#"slowburn_request_duration_seconds_bucket{service="s",env="",kind="http",method="GET",route="/1000",le="0.3"} 10"#,
            r#"slowburn_request_duration_seconds_bucket{service="s",env="",kind="http",method="GET",route="/1",le="+Inf"} 10"#,
            r#"slowburn_request_duration_seconds_sum{service="s",env="",kind="http",method="GET",route="/1"} 1.500001"#,
            r#"slowburn_endpoint_latency_seconds_count{service="s",env="",kind="http",method="GET",route="/0",window="1m"} 10"#,
        ] {
            assert!(whole.lines().any(|l| l == line), "{line}");
        }
        // The parts are the whole: any cut of the endpoints gives the same samples.
        let samples = |page: &mut Page| {
            let mut lines: Vec<String> = text(page).concat().lines().filter(|l| !l.starts_with('#') && *l != "first 1").map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let mut parts: Vec<String> = endpoints.chunks(700).flat_map(|part| samples(&mut Page::new(Vec::new(), part.to_vec()))).collect();
        parts.sort();
        assert_eq!(parts, samples(&mut Page::new(Vec::new(), endpoints)));
        assert_eq!(text(&mut Page::new(Vec::new(), Vec::new())), Vec::<String>::new());
    }
}
