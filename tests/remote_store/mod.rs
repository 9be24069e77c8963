//! A receiver of remote-write as the published rules have it: reads by the published messages, refuses what they refuse, answers what a test tells it to.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking, and waits on the real clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};

/// A native histogram: its buckets by index.
#[derive(Clone, Debug, PartialEq)]
pub struct Native {
    pub count: u64,
    pub sum: f64,
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_count: u64,
    pub buckets: BTreeMap<i32, i64>,
}

/// What a series has at a moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Number {
    Sample(f64),
    Native(Native),
}

impl Number {
    /// Whether the series is no more.
    pub fn is_stale(&self) -> bool {
        let bits = match self {
            Self::Sample(value) => value.to_bits(),
            Self::Native(native) => native.sum.to_bits(),
        };
        bits == 0x7ff0_0000_0000_0002
    }
}

/// One series of a request.
#[derive(Clone, Debug)]
pub struct Series {
    pub labels: BTreeMap<String, String>,
    pub at: i64,
    pub start: i64,
    pub number: Number,
    /// Type by number, help, unit; 1.0 has them by family.
    pub metadata: Option<(i32, String, String)>,
    /// Trace, value, time.
    pub exemplars: Vec<(String, f64, i64)>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Got {
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub is_two: bool,
    pub series: Vec<Series>,
    /// In 1.0: family, type by number, help, unit.
    pub metadata: Vec<(String, i32, String, String)>,
    pub at: Instant,
    pub status: u16,
}

impl Got {
    /// Samples and native histograms.
    pub fn counts(&self) -> (u64, u64) {
        let samples = self.series.iter().filter(|s| matches!(s.number, Number::Sample(_))).count() as u64;
        (samples, self.series.len() as u64 - samples)
    }
}

/// What is answered.
pub enum Reply {
    /// 204 with what a receiver of 2.0 says it wrote: all.
    Written,
    /// A status, more headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Nothing, ever.
    Silence,
}

type Script = dyn Fn(usize, &Got) -> Reply + Send + Sync;

/// A receiver that listens until the test ends.
#[derive(Clone)]
pub struct Store {
    pub address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Store {
    /// One that answers as it is told; the first argument is how many requests came before.
    pub fn start(script: impl Fn(usize, &Got) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let store = Self { address: listener.local_addr().unwrap(), got: Arc::default() };
        let (script, got): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&store.got));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, got) = (Arc::clone(&script), Arc::clone(&got));
                std::thread::spawn(move || serve(stream, &*script, &got));
            }
        });
        store
    }

    /// All requests so far.
    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// The series of each moment that was taken and written, whole: the last one may still come.
    pub fn moments(&self) -> BTreeMap<i64, Vec<Series>> {
        let mut moments: BTreeMap<i64, Vec<Series>> = BTreeMap::new();
        for got in self.got().into_iter().filter(|g| g.status < 300) {
            for series in got.series {
                moments.entry(series.at).or_default().push(series);
            }
        }
        moments.pop_last();
        moments
    }
}

fn serve(stream: TcpStream, script: &Script, all: &Mutex<Vec<Got>>) -> Option<()> {
    let mut write = stream.try_clone().ok()?;
    let mut read = BufReader::new(stream);
    loop {
        let mut headers = BTreeMap::new();
        let mut line = String::new();
        if read.read_line(&mut line).ok()? == 0 {
            return None;
        }
        assert!(line.starts_with("POST /api/v1/push HTTP/1.1"), "{line}");
        loop {
            line.clear();
            read.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        read.read_exact(&mut body).ok()?;
        let mut got = decoded(headers, body);
        let mut all = all.lock().unwrap();
        let reply = script(all.len(), &got);
        let (samples, histograms) = got.counts();
        let (status, more) = match reply {
            Reply::Written => (204, written(samples, histograms)),
            Reply::Status(status, more) => (status, more),
            Reply::Silence => (0, vec![]),
        };
        got.status = status;
        all.push(got);
        drop(all);
        if status == 0 {
            // Until the sender has enough of it.
            let mut rest = Vec::new();
            read.read_to_end(&mut rest).ok()?;
            return None;
        }
        let text = if status < 300 { "" } else { "as the test has it" };
        let more: String = more.into_iter().flat_map(|(name, value)| [name.to_owned(), ": ".to_owned(), value, "\r\n".to_owned()]).collect();
        let length = if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", text.len()) };
        write!(write, "HTTP/1.1 {status} X\r\n{length}{more}\r\n{text}").ok()?;
    }
}

/// The headers by which a receiver of 2.0 says what it wrote.
pub fn written(samples: u64, histograms: u64) -> Vec<(&'static str, String)> {
    vec![
        ("X-Prometheus-Remote-Write-Samples-Written", samples.to_string()),
        ("X-Prometheus-Remote-Write-Histograms-Written", histograms.to_string()),
        // Of these nothing is counted.
        ("X-Prometheus-Remote-Write-Exemplars-Written", "0".to_owned()),
    ]
}

fn message(file: &str, name: &str) -> MessageDescriptor {
    let files = protox::compile([file], [format!("{}/tests/proto", env!("CARGO_MANIFEST_DIR"))]).unwrap_or_else(|e| panic!("{e:?}"));
    DescriptorPool::from_file_descriptor_set(files).unwrap().get_message_by_name(name).unwrap()
}

fn decoded(headers: BTreeMap<String, String>, body: Vec<u8>) -> Got {
    static ONE: OnceLock<MessageDescriptor> = OnceLock::new();
    static TWO: OnceLock<MessageDescriptor> = OnceLock::new();
    assert_eq!(headers["content-encoding"], "snappy");
    assert!(headers["user-agent"].starts_with("slowburn/"));
    let is_two = match (headers["content-type"].as_str(), headers["x-prometheus-remote-write-version"].as_str()) {
        ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0") => true,
        ("application/x-protobuf", "0.1.0") => false,
        other => panic!("{other:?}"),
    };
    let plain = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
    let descriptor = if is_two {
        TWO.get_or_init(|| message("remote_write_2.proto", "io.prometheus.write.v2.Request"))
    } else {
        ONE.get_or_init(|| message("remote_write_1.proto", "prometheus.WriteRequest"))
    };
    let request = DynamicMessage::decode(descriptor.clone(), plain.as_slice()).unwrap();
    assert_known(&request);
    let series = if is_two { series_of_two(&request) } else { series_of_one(&request) };
    assert!(!series.is_empty() && series.len() <= 2_000 && plain.len() < 2 << 20, "{} series in {} bytes", series.len(), plain.len());
    let metadata = if is_two { vec![] } else { list(&request, "metadata").iter().map(family).collect() };
    Got { headers, body, is_two, series, metadata, at: Instant::now(), status: 0 }
}

/// No field that the description does not have, at any depth.
fn assert_known(message: &DynamicMessage) {
    assert_eq!(message.unknown_fields().count(), 0, "{message}");
    for (_, value) in message.fields() {
        match value {
            Value::Message(inner) => assert_known(inner),
            Value::List(values) => values.iter().filter_map(Value::as_message).for_each(assert_known),
            _ => {}
        }
    }
}

fn list(message: &DynamicMessage, field: &str) -> Vec<DynamicMessage> {
    message.get_field_by_name(field).unwrap().as_list().unwrap().iter().map(|v| v.as_message().unwrap().clone()).collect()
}

fn field(message: &DynamicMessage, name: &str) -> Value {
    message.get_field_by_name(name).unwrap().into_owned()
}

fn text(message: &DynamicMessage, name: &str) -> String {
    field(message, name).as_str().unwrap().to_owned()
}

fn family(metadata: &DynamicMessage) -> (String, i32, String, String) {
    let kind = field(metadata, "type").as_enum_number().unwrap();
    (text(metadata, "metric_family_name"), kind, text(metadata, "help"), text(metadata, "unit"))
}

/// By the rules for labels: sorted, none twice, none empty.
fn checked(labels: Vec<(String, String)>) -> BTreeMap<String, String> {
    assert!(labels.is_sorted_by(|a, b| a.0 < b.0), "{labels:?}");
    assert!(labels.iter().all(|(name, value)| !name.is_empty() && !value.is_empty()), "{labels:?}");
    let labels: BTreeMap<_, _> = labels.into_iter().collect();
    assert!(labels.contains_key("__name__"));
    labels
}

/// One sample or one histogram, never both.
fn number(series: &DynamicMessage) -> (Number, i64, i64) {
    let (samples, histograms) = (list(series, "samples"), list(series, "histograms"));
    let start = |of: &DynamicMessage| of.get_field_by_name("start_timestamp").map_or(0, |v| v.as_i64().unwrap());
    match (&samples[..], &histograms[..]) {
        ([sample], []) => (Number::Sample(field(sample, "value").as_f64().unwrap()), field(sample, "timestamp").as_i64().unwrap(), start(sample)),
        ([], [histogram]) => (Number::Native(native(histogram)), field(histogram, "timestamp").as_i64().unwrap(), start(histogram)),
        _ => panic!("{series}"),
    }
}

fn native(histogram: &DynamicMessage) -> Native {
    assert!(histogram.has_field_by_name("count_int") && field(histogram, "negative_spans").as_list().unwrap().is_empty());
    let (mut buckets, mut index, mut count) = (BTreeMap::new(), 0, 0);
    let deltas = field(histogram, "positive_deltas");
    let mut deltas = deltas.as_list().unwrap().iter();
    for span in list(histogram, "positive_spans") {
        index += field(&span, "offset").as_i32().unwrap();
        for _ in 0..field(&span, "length").as_u32().unwrap() {
            count += deltas.next().unwrap().as_i64().unwrap();
            if count != 0 {
                buckets.insert(index, count);
            }
            index += 1;
        }
    }
    assert!(deltas.next().is_none());
    let native = Native {
        count: field(histogram, "count_int").as_u64().unwrap(),
        sum: field(histogram, "sum").as_f64().unwrap(),
        schema: field(histogram, "schema").as_i32().unwrap(),
        zero_threshold: field(histogram, "zero_threshold").as_f64().unwrap(),
        zero_count: field(histogram, "zero_count_int").as_u64().unwrap(),
        buckets,
    };
    assert_eq!(native.count, native.zero_count + native.buckets.values().sum::<i64>().cast_unsigned(), "Prometheus refuses others");
    native
}

fn exemplar(name: &str, trace_id: String, of: &DynamicMessage) -> (String, f64, i64) {
    assert_eq!(name, "trace_id");
    (trace_id, field(of, "value").as_f64().unwrap(), field(of, "timestamp").as_i64().unwrap())
}

fn series_of_two(request: &DynamicMessage) -> Vec<Series> {
    let symbols = field(request, "symbols");
    let symbols: Vec<&str> = symbols.as_list().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!(symbols[0], "");
    assert_eq!(symbols.iter().collect::<BTreeSet<_>>().len(), symbols.len(), "a symbol is there twice");
    let symbol = |reference: u32| symbols[reference as usize].to_owned();
    let series = |series: &DynamicMessage| {
        let references = field(series, "labels_refs");
        let references: Vec<u32> = references.as_list().unwrap().iter().map(|r| r.as_u32().unwrap()).collect();
        assert!(references.len().is_multiple_of(2));
        let labels = checked(references.chunks(2).map(|pair| (symbol(pair[0]), symbol(pair[1]))).collect());
        let metadata = field(series, "metadata");
        let metadata = metadata.as_message().unwrap();
        let kind = field(metadata, "type").as_enum_number().unwrap();
        let [help, unit] = ["help_ref", "unit_ref"].map(|name| symbol(field(metadata, name).as_u32().unwrap()));
        assert!(kind != 0 && !help.is_empty());
        let (number, at, start) = number(series);
        let exemplar = |of: &DynamicMessage| {
            let references = field(of, "labels_refs");
            let references: Vec<u32> = references.as_list().unwrap().iter().map(|r| r.as_u32().unwrap()).collect();
            let [name, value] = references[..] else { panic!("{references:?}") };
            exemplar(&symbol(name), symbol(value), of)
        };
        let exemplars = list(series, "exemplars").iter().map(exemplar).collect();
        Series { labels, at, start, number, metadata: Some((kind, help, unit)), exemplars }
    };
    list(request, "timeseries").iter().map(series).collect()
}

fn series_of_one(request: &DynamicMessage) -> Vec<Series> {
    let series = |series: &DynamicMessage| {
        let labels = list(series, "labels").iter().map(|l| (text(l, "name"), text(l, "value"))).collect();
        let (number, at, start) = number(series);
        let exemplar = |of: &DynamicMessage| {
            let [label] = &list(of, "labels")[..] else { panic!("{of}") };
            exemplar(&text(label, "name"), text(label, "value"), of)
        };
        let exemplars = list(series, "exemplars").iter().map(exemplar).collect();
        Series { labels: checked(labels), at, start, number, metadata: None, exemplars }
    };
    list(request, "timeseries").iter().map(series).collect()
}
