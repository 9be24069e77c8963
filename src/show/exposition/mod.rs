//! A page of metrics, written piece by piece in any of the formats: a page of 100,000 endpoints is never in memory as text.
//!
//! In protobuf a family says its length first, so each is written twice, once only to measure it: processor for memory.

pub(super) mod decided;
pub(super) mod exemplar;
pub(super) mod format;
pub(super) mod protobuf;
pub(super) mod series;
mod text;

use std::convert::Infallible;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Frame;
use prometheus::proto::{Metric, MetricType};

use self::format::Format;
use self::protobuf::NativeFields;
use super::family::Family;
use crate::counting::Cell;
use crate::endpoint::{EndpointId, EndpointKey};
use crate::histogram::native::Native;
use crate::histogram::quantile::Quantile;
use crate::history::exemplars::Exemplar;
use crate::history::totals::Sums;
use crate::ingest::memory::Reservation;

/// Bounds of the classic histogram in microseconds; each objective's threshold is added.
const BOUNDS_US: [u64; 14] =
    [5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000];

/// Bytes that are written, or endpoints that are measured, at a time.
const PIECE_BYTES: usize = 64 << 10;
const PIECE_ENDPOINTS: usize = 1_000;

/// What packing needs beside: its window, its tables, what waits to go out.
pub(super) const PACKER_BYTES: u64 = 512 << 10;

/// What a family counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::show) enum Kind {
    Counter,
    Gauge,
    /// A gauge that is always 1; what it says is in its labels.
    Info,
    Histogram,
    Summary,
}

/// What stands over the samples of a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    name: &'a str,
    help: &'a str,
    kind: Kind,
}

impl<'a> From<&'a Family> for Head<'a> {
    fn from(family: &'a Family) -> Self {
        let (name, help) = (family.0.name(), family.0.help());
        let kind = match family.0.get_field_type() {
            MetricType::COUNTER => Kind::Counter,
            _ if name.ends_with("_info") => Kind::Info,
            _ => Kind::Gauge,
        };
        Self { name, help, kind }
    }
}

fn put_family(out: &mut Vec<u8>, format: Format, family: &Family) {
    match format {
        Format::Text | Format::OpenMetrics => text::put_family(out, format, family),
        Format::Protobuf => protobuf::put_family(out, family),
    }
}

/// The number of a sample.
fn value_of(family: &Family, metric: &Metric) -> f64 {
    if family.0.get_field_type() == MetricType::COUNTER { metric.get_counter().get_value() } else { metric.get_gauge().get_value() }
}

/// What is exported of an endpoint.
#[derive(Clone, Debug)]
pub(super) struct Exported {
    pub(super) id: EndpointId,
    pub(super) key: Arc<EndpointKey>,
    pub(super) total: Sums,
    /// Of critical endpoints: bounds with what took no longer, and quantiles of what is recent.
    pub(super) detail: Option<Box<Detail>>,
    /// What is recent, in the order of its time.
    pub(super) exemplars: Box<[Exemplar]>,
}

/// What is exported of a critical endpoint beside.
#[derive(Clone, Debug, Default)]
pub(super) struct Detail {
    /// In microseconds, and requests not slower.
    bounds: Vec<(u64, u64)>,
    /// Label and microseconds; empty without a recent request.
    quantiles: Vec<(&'static str, u64)>,
    /// Where the format has them.
    native: Option<NativePart>,
}

/// A native histogram. Prometheus takes none whose buckets are not its count, so sum and count are those of the histograms here, not those of the counters.
#[derive(Clone, Debug)]
struct NativePart {
    count: u64,
    sum_us: u64,
    /// Its fields as they are sent, a kilobyte at most for the usual spread of latencies.
    fields: Box<[u8]>,
}

impl Detail {
    pub(super) fn new(total: &Cell, recent: &Cell, native: Option<NativeFields>) -> Self {
        let mut all = recent.passed.clone();
        all.merge(&recent.failed);
        let quantiles = ["0.5", "0.95", "0.99"].into_iter().filter_map(|text| Some((text, all.quantile_us(Quantile::parse(text).ok()?)?)));
        let native = native.map(|numbers| {
            let native = Native::of(&total.passed, &total.failed);
            NativePart { count: native.count(), sum_us: total.sum_us, fields: protobuf::native_fields(&native, numbers) }
        });
        Self { bounds: bounds_of(total), quantiles: quantiles.collect(), native }
    }

    /// The memory that it needs.
    pub(super) fn bytes(&self) -> u64 {
        let lists = size_of_val(&*self.bounds) + size_of_val(&*self.quantiles) + self.native.as_ref().map_or(0, |n| n.fields.len());
        (size_of::<Self>() + lists) as u64
    }
}

/// The bounds of the classic histogram with what took no longer. What lies in the same bucket of the grid as a bound counts with it, so that 5 ms are within 5 ms; but
/// with no more than an exact count above it says.
fn bounds_of(total: &Cell) -> Vec<(u64, u64)> {
    within_bounds(total, &bounds_with(total.thresholds.iter().map(|t| t.threshold_us)))
}

/// The bounds of the classic histogram of an endpoint with these thresholds.
pub(super) fn bounds_with(thresholds_us: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut bounds: Vec<u64> = BOUNDS_US.into_iter().chain(thresholds_us).collect();
    bounds.sort_unstable();
    bounds.dedup();
    bounds
}

/// A bound in seconds as labels have it.
pub(super) fn bound_text(us: u64) -> String {
    let mut text = Vec::new();
    text::put_bound(&mut text, us);
    String::from_utf8(text).expect("digits and points")
}

/// Bounds, ascending, with what took no longer.
pub(super) fn within_bounds(total: &Cell, bounds: &[u64]) -> Vec<(u64, u64)> {
    let mut most = u64::MAX;
    let mut within: Vec<(u64, u64)> = Vec::with_capacity(bounds.len());
    for us in bounds.iter().copied().rev() {
        let count = total.at_threshold(us);
        let is_exact = total.thresholds.iter().any(|t| t.threshold_us == us);
        let unsure = if is_exact { 0 } else { count.unsure.weight + count.failed_unsure.weight };
        most = most.min(count.within.weight + count.failed_within.weight + unsure);
        within.push((us, most));
    }
    within.reverse();
    within
}

impl Exported {
    /// The memory that it needs.
    pub(super) fn bytes(&self) -> u64 {
        (size_of::<Self>() + size_of_val(&*self.exemplars)) as u64 + self.detail.as_ref().map_or(0, |d| d.bytes())
    }

    pub(super) fn has_no_detail(&self) -> bool {
        self.detail.is_none()
    }

    /// All of them, however they ended.
    pub(super) fn requests(&self) -> u64 {
        self.total.outcomes.into_iter().fold(0, u64::saturating_add)
    }
}

/// A family of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OfEndpoints {
    Requests,
    Durations,
    Latency,
}

impl OfEndpoints {
    const ALL: [Self; 3] = [Self::Requests, Self::Durations, Self::Latency];

    fn head(self) -> Head<'static> {
        let (name, help, kind) = match self {
            Self::Requests => ("slowburn_requests_total", "Requests by outcome.", Kind::Counter),
            Self::Durations => (
                "slowburn_request_duration_seconds",
                "Durations of requests; bounds at thresholds of objectives are exact, others within 1 %. Endpoints that are not critical have no bound but +Inf.",
                Kind::Histogram,
            ),
            Self::Latency => (
                "slowburn_endpoint_latency_seconds",
                "Latency of critical endpoints over the last minute judged and what came since, absent without requests; sum and count are of all requests ever.",
                Kind::Summary,
            ),
        };
        Head { name, help, kind }
    }

    fn has(self, endpoint: &Exported) -> bool {
        self != Self::Latency || endpoint.detail.as_ref().is_some_and(|d| !d.quantiles.is_empty())
    }
}

/// Of which endpoints a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Every,
    WithNative,
    WithoutNative,
}

impl Whose {
    fn is(self, endpoint: &Exported) -> bool {
        let has_native = || endpoint.detail.as_ref().is_some_and(|d| d.native.is_some());
        match self {
            Self::Every => true,
            Self::WithNative => has_native(),
            Self::WithoutNative => !has_native(),
        }
    }
}

/// The families of a page. In protobuf the durations are two of one name: Prometheus 2 takes every sample of a family for a native histogram when the first one is, and adding an
/// empty one of schema 0 to others leaves powers of two.
fn families_of(format: Format) -> &'static [(OfEndpoints, Whose)] {
    const PLAIN: [(OfEndpoints, Whose); 3] =
        [(OfEndpoints::Requests, Whose::Every), (OfEndpoints::Durations, Whose::Every), (OfEndpoints::Latency, Whose::Every)];
    const APART: [(OfEndpoints, Whose); 4] = [
        (OfEndpoints::Requests, Whose::Every),
        (OfEndpoints::Durations, Whose::WithNative),
        (OfEndpoints::Durations, Whose::WithoutNative),
        (OfEndpoints::Latency, Whose::Every),
    ];
    if format == Format::Protobuf { &APART } else { &PLAIN }
}

/// Where in a family a page is.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// So many bytes of samples so far.
    Measuring(u64),
    Heading,
    Writing,
}

/// What a page does next.
#[derive(Debug)]
enum Step {
    Piece(Bytes),
    /// Nothing is ready yet, and nothing is waited for: others may have their turn.
    Busy,
    End,
}

/// The rest of a page: families that stand first, then the families of endpoints, written as the reader takes them.
#[derive(Debug)]
pub(super) struct Page {
    format: Format,
    first: Bytes,
    decided: Bytes,
    endpoints: Vec<Exported>,
    family: usize,
    next: usize,
    phase: Phase,
    room_for_labels: Vec<u8>,
    packer: Option<GzEncoder<Vec<u8>>>,
    is_over: bool,
    _room: Option<Reservation>,
}

impl Page {
    /// Of a family without a sample whoever reads it learns the name.
    pub(super) fn new(format: Format, families: &[Family], endpoints: Vec<Exported>) -> Self {
        let mut first = Vec::new();
        for family in families {
            put_family(&mut first, format, family);
        }
        let mut page = Self {
            format,
            first: first.into(),
            decided: Bytes::new(),
            endpoints,
            family: 0,
            next: 0,
            phase: Phase::Heading,
            room_for_labels: Vec::new(),
            packer: None,
            is_over: false,
            _room: None,
        };
        page.begin_family(0);
        page
    }

    /// The same, with families that are written already.
    pub(super) fn with(self, decided: Bytes) -> Self {
        Self { decided, ..self }
    }

    /// The same, packed.
    pub(super) fn packed(self) -> Self {
        Self { packer: Some(GzEncoder::new(Vec::new(), Compression::fast())), ..self }
    }

    /// Keeps the memory that was asked for until all of it is sent.
    pub(super) fn holding(self, room: Reservation) -> Self {
        Self { _room: Some(room), ..self }
    }

    /// All of it, for a page that is small.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        loop {
            match self.step() {
                Step::Piece(piece) => whole.extend_from_slice(&piece),
                Step::Busy => {}
                Step::End => return whole,
            }
        }
    }

    fn begin_family(&mut self, family: usize) {
        let phase = if self.format == Format::Protobuf { Phase::Measuring(0) } else { Phase::Heading };
        (self.family, self.next, self.phase) = (family, 0, phase);
    }

    fn step(&mut self) -> Step {
        let plain = self.plain_step();
        let Some(packer) = &mut self.packer else { return plain };
        let packed = match plain {
            Step::Busy => return Step::Busy,
            Step::Piece(piece) => {
                packer.write_all(&piece).expect("a Vec takes everything");
                std::mem::take(packer.get_mut())
            }
            Step::End => self.packer.take().map(|packer| packer.finish().expect("a Vec takes everything")).unwrap_or_default(),
        };
        // A packer keeps what is too little to pack.
        if packed.is_empty() { Step::Busy } else { Step::Piece(packed.into()) }
    }

    fn plain_step(&mut self) -> Step {
        for part in [&mut self.first, &mut self.decided] {
            if !part.is_empty() {
                return Step::Piece(std::mem::take(part));
            }
        }
        let mut out = Vec::with_capacity(PIECE_BYTES + 4_096);
        let mut measured = 0;
        while out.len() < PIECE_BYTES && measured < PIECE_ENDPOINTS {
            let Some((family, whose)) = families_of(self.format).get(self.family).copied() else { break };
            let has = |endpoint: &Exported| whose.is(endpoint) && family.has(endpoint);
            match (self.phase, self.endpoints.get(self.next)) {
                (Phase::Measuring(bytes), Some(endpoint)) => {
                    let start = out.len();
                    if has(endpoint) {
                        protobuf::put_samples(&mut out, &mut self.room_for_labels, family, endpoint);
                    }
                    self.phase = Phase::Measuring(bytes + (out.len() - start) as u64);
                    out.truncate(start);
                    (self.next, measured) = (self.next + 1, measured + 1);
                }
                (Phase::Measuring(0) | Phase::Heading | Phase::Writing, None) => self.begin_family(self.family + 1),
                (Phase::Measuring(bytes), None) => {
                    protobuf::put_head(&mut out, family.head(), bytes);
                    (self.next, self.phase) = (0, Phase::Writing);
                }
                (_, Some(endpoint)) if !has(endpoint) => self.next += 1,
                (Phase::Heading, Some(_)) => {
                    text::put_head(&mut out, self.format, family.head());
                    self.phase = Phase::Writing;
                }
                (Phase::Writing, Some(endpoint)) => {
                    self.next += 1;
                    match self.format {
                        Format::Text | Format::OpenMetrics => text::put_samples(&mut out, &mut self.room_for_labels, self.format, family, endpoint),
                        Format::Protobuf => protobuf::put_samples(&mut out, &mut self.room_for_labels, family, endpoint),
                    }
                }
            }
        }
        if self.family == families_of(self.format).len() && !std::mem::replace(&mut self.is_over, true) && self.format == Format::OpenMetrics {
            out.extend_from_slice(text::END);
        }
        match (out.is_empty(), self.is_over) {
            (false, _) => Step::Piece(out.into()),
            (true, false) => Step::Busy,
            (true, true) => Step::End,
        }
    }
}

impl HttpBody for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.step() {
            Step::Piece(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            Step::Busy => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Step::End => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::{Outcome, Span, Tally};
    use crate::histogram::Digits;

    fn pieces(page: &mut Page) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        loop {
            match page.step() {
                Step::Piece(piece) => pieces.push(piece.to_vec()),
                Step::Busy => {}
                Step::End => return pieces,
            }
        }
    }

    fn text(page: &mut Page) -> Vec<String> {
        pieces(page).into_iter().map(|p| String::from_utf8(p).unwrap()).collect()
    }

    fn plain(families: &[Family], endpoints: Vec<Exported>) -> Page {
        Page::new(Format::Text, families, endpoints)
    }

    fn exported(n: u32, detail: Option<Detail>) -> Exported {
        let key = EndpointKey { service: "s".into(), env: String::new(), kind: "http".into(), method: "GET".into(), route: format!("/{n}") };
        Exported {
            id: EndpointId(n),
            key: Arc::new(key),
            total: Sums { outcomes: [7, 2, 1, 0], sum_us: 1_500_000 + u64::from(n) },
            detail: detail.map(Box::new),
            exemplars: Box::default(),
        }
    }

    #[test]
    fn what_takes_as_long_as_a_bound_is_within_it_and_no_bound_holds_more_than_the_next() {
        let mut total = Cell::new(&[5_010, 250_000], Digits::Two);
        for us in [5_000, 5_004, 5_015, 10_000, 250_000, 250_001, 1_000_000] {
            total.record(if us == 10_000 { Outcome::Error } else { Outcome::Ok }, Span::exact(us), Tally { weight: 1, observed: 1 });
        }
        let bounds = bounds_of(&total);
        let within = |us: u64| bounds.iter().find(|b| b.0 == us).unwrap().1;
        assert_eq!([5_000, 5_010, 10_000, 100_000, 250_000, 500_000, 1_000_000, 10_000_000].map(within), [2, 2, 4, 4, 5, 6, 7, 7]);
        assert!(bounds.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
    }

    #[test]
    fn a_page_in_pieces_has_each_family_once_with_all_its_samples() {
        let mut total = Cell::new(&[250_000, 300_000], Digits::Two);
        total.record(Outcome::Ok, Span::exact(20_000), Tally { weight: 7, observed: 7 });
        total.record(Outcome::Error, Span::exact(260_000), Tally { weight: 3, observed: 3 });
        let detail = Detail::new(&total, &total, None);
        let endpoints: Vec<Exported> = (0..3_000).map(|n| exported(n, n.is_multiple_of(1_000).then(|| detail.clone()))).collect();
        let mut first = Family::gauge("first", "F.");
        first.add(vec![], 1.0);
        let pieces = text(&mut plain(&[first], endpoints.clone()));
        assert!(pieces.len() > 20 && pieces.iter().all(|p| p.len() < PIECE_BYTES + 4_096));
        let whole = pieces.concat();
        assert!(whole.starts_with("# HELP first F.\n# TYPE first gauge\nfirst 1\n# HELP slowburn_requests_total "));
        assert_eq!(whole.matches("# HELP").count(), 4);
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
            let mut lines: Vec<String> = text(page).concat().lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let mut parts: Vec<String> = endpoints.chunks(700).flat_map(|part| samples(&mut plain(&[], part.to_vec()))).collect();
        parts.sort();
        assert_eq!(parts, samples(&mut plain(&[], endpoints)));
        assert_eq!(text(&mut plain(&[], Vec::new())), Vec::<String>::new());
    }

    #[test]
    fn a_long_page_is_never_whole_in_memory_in_any_format() {
        let mut total = Cell::new(&[250_000], Digits::Two);
        for us in [20_000, 25_000, 3_000_000] {
            total.record(Outcome::Ok, Span::exact(us), Tally { weight: 3, observed: 3 });
        }
        for format in Format::ALL {
            let detail = Detail::new(&total, &total, format.native());
            assert!(detail.bytes() > 300, "{detail:?}");
            let endpoints: Vec<Exported> = (0..30_000).map(|n| exported(n, n.is_multiple_of(10_000).then(|| detail.clone()))).collect();
            let page = || Page::new(format, &[], endpoints.clone());
            let whole = page().into_bytes();
            let plain = pieces(&mut page());
            assert!(whole.len() > 5_000_000 && plain.concat() == whole);
            let packed = pieces(&mut page().packed());
            for pieces in [&plain, &packed] {
                assert!(pieces.len() > 10 && pieces.iter().all(|p| !p.is_empty() && p.len() < PIECE_BYTES + 4_096), "{format:?}: {}", pieces.len());
            }
            let mut unpacked = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(packed.concat().as_slice()), &mut unpacked).unwrap();
            assert!(unpacked == whole && packed.concat().len() < whole.len() / 5, "{format:?}");
            // One of nothing is read as well.
            let nothing = Page::new(format, &[], Vec::new()).into_bytes();
            assert_eq!(nothing, if format == Format::OpenMetrics { text::END } else { b"" });
        }
    }
}
