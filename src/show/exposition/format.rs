//! Which format, and whether packed: what `Accept` and `Accept-Encoding` ask for.
//!
//! Each format has the weight of the most specific range that names it; the heaviest wins, among equals the one named first, and a range with a star names none. What cannot be
//! understood counts for nothing, and who asks for nothing that there is gets text: a scrape that is answered in the plainest format is better than none.

use axum::http::{HeaderMap, HeaderName, header};

use super::protobuf::{NativeFields, SCRAPED};

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::show) enum Format {
    /// The text format 0.0.4.
    Text,
    /// The text format `OpenMetrics` 1.0.0.
    OpenMetrics,
    /// Messages of `io.prometheus.client`, each behind its length: the only one that can carry native histograms.
    Protobuf,
}

impl Format {
    /// In the order in which they are preferred where it is all the same to the client.
    pub(in crate::show) const ALL: [Self; 3] = [Self::Text, Self::OpenMetrics, Self::Protobuf];

    /// Its label.
    pub(in crate::show) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::OpenMetrics => "openmetrics",
            Self::Protobuf => "protobuf",
        }
    }

    /// The one that is asked for.
    pub(in crate::show) fn wanted(headers: &HeaderMap) -> Self {
        let accept = joined(headers, &header::ACCEPT);
        let ranges: Vec<(&str, u16)> = accept.split(',').filter_map(weighed).collect();
        let weight = |format: Self| {
            let matching = ranges.iter().enumerate().filter_map(|(at, (range, q))| Some((format.match_of(range)?, at, *q)));
            matching.min_by_key(|(how_widely, at, _)| (*how_widely, *at))
        };
        // What only a star names is behind what has a name at the same weight.
        let key = |(how_widely, at, q): (u8, usize, u16)| (u16::MAX - q, if how_widely == 0 { at } else { usize::MAX });
        let weighed = Self::ALL.into_iter().filter_map(|f| weight(f).filter(|w| w.2 > 0).map(|w| (key(w), f)));
        weighed.min_by_key(|(key, _)| *key).map_or(Self::Text, |(_, format)| format)
    }

    /// How it carries native histograms, where it can.
    pub(in crate::show) fn native(self) -> Option<NativeFields> {
        (self == Self::Protobuf).then_some(SCRAPED)
    }

    /// Whether a range names it: 0 by its own name, more the wider the range is.
    fn match_of(self, range: &str) -> Option<u8> {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next()?.to_ascii_lowercase();
        let parameter = |key: &str| {
            let found = parts.clone().filter_map(|p| p.split_once('=')).find(|(k, _)| k.trim().eq_ignore_ascii_case(key));
            found.map(|(_, v)| v.trim().trim_matches('"'))
        };
        let (kind, own) = match self {
            Self::Text => ("text/*", name == "text/plain" && parameter("version").is_none_or(|v| v == "0.0.4")),
            Self::OpenMetrics => ("application/*", name == "application/openmetrics-text" && parameter("version").is_none_or(|v| v == "1.0.0")),
            Self::Protobuf => (
                "application/*",
                name == "application/vnd.google.protobuf"
                    && parameter("proto") == Some("io.prometheus.client.MetricFamily")
                    && parameter("encoding") == Some("delimited"),
            ),
        };
        match name.as_str() {
            _ if own => Some(0),
            "*/*" => Some(2),
            wide => (wide == kind).then_some(1),
        }
    }

    /// For `Content-Type`.
    pub(in crate::show) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        }
    }
}

/// Whether the answer is to be packed with gzip: where it is named, or all are, and plain bytes are not asked for before it.
pub(in crate::show) fn wants_gzip(headers: &HeaderMap) -> bool {
    let accepted = joined(headers, &header::ACCEPT_ENCODING);
    let codings: Vec<(&str, u16)> = accepted.split(',').filter_map(weighed).collect();
    let weight = |names: &[&str]| {
        codings.iter().find(|(c, _)| names.iter().any(|n| c.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(n))).map(|c| c.1)
    };
    let gzip = weight(&["gzip", "x-gzip"]).or_else(|| weight(&["*"])).unwrap_or(0);
    gzip > 0 && gzip >= weight(&["identity"]).unwrap_or(0)
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(",")
}

/// An entry of a list with its weight in thousandths; `None` when its weight is none.
fn weighed(entry: &str) -> Option<(&str, u16)> {
    let entry = entry.trim();
    let given = entry.split(';').skip(1).filter_map(|p| p.trim().split_once('=')).find(|(key, _)| key.trim().eq_ignore_ascii_case("q"));
    let Some((_, text)) = given else { return (!entry.is_empty()).then_some((entry, 1_000)) };
    let text = text.trim();
    let is_decimal = text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let weight: f64 = text.parse().ok().filter(|q| is_decimal && (0.0..=1.0).contains(q))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
    Some((entry, (weight * 1_000.0).round() as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|v| (name.clone(), v.parse().unwrap())).collect()
    }

    #[test]
    fn each_client_gets_the_format_it_asks_for() {
        use Format::{OpenMetrics, Protobuf, Text};
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        let native_2_42 = format!(
            "{protobuf},application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        );
        let native_3 = format!(
            "{protobuf};q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
        );
        for (accept, format) in [
            // Prometheus 2.0 to 2.4.
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Text),
            // 2.5 to 2.30: an OpenMetrics that nobody speaks any more.
            ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Text),
            // From then on.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (&native_2_42, Protobuf),
            // 3.x, without native histograms and with them.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                OpenMetrics,
            ),
            (&native_3, Protobuf),
            ("text/plain;version=1.0.0;q=0.9,text/plain;version=0.0.4;q=0.8,*/*;q=0.1", Text),
            // curl, a browser, nobody.
            ("*/*", Text),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Text),
            ("", Text),
            // Weights and what they belong to.
            ("application/openmetrics-text;q=0.3, text/plain;q=0.4", Text),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.3", OpenMetrics),
            ("APPLICATION/OpenMetrics-Text ; Version=\"1.0.0\" ; Q=1.0", OpenMetrics),
            ("application/openmetrics-text;q=0, */*", Text),
            ("text/plain;q=0, */*", OpenMetrics),
            ("text/plain;q=0.1, */*;q=0.2", OpenMetrics),
            ("application/*", OpenMetrics),
            ("text/*;q=0.5, application/*;q=0.4", Text),
            // Nothing that there is.
            ("application/json", Text),
            ("application/vnd.google.protobuf", Text),
            ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", Text),
            ("application/openmetrics-text;version=2.0.0", Text),
            ("text/plain;q=0", Text),
            // No header at all.
            ("application/openmetrics-text;q=much, text/plain;q=0.1", Text),
            ("application/openmetrics-text;q=1.5", Text),
            ("application/openmetrics-text;q=", Text),
            (";;,,=;q=,/;,application/openmetrics-text", OpenMetrics),
            ("application/openmetrics-text;version", OpenMetrics),
        ] {
            assert_eq!(Format::wanted(&headers(&header::ACCEPT, &[accept])), format, "{accept}");
        }
        assert_eq!(Format::wanted(&HeaderMap::new()), Text);
        assert_eq!(Format::wanted(&headers(&header::ACCEPT, &["text/plain;q=0.5", "application/openmetrics-text"])), OpenMetrics);
        let mut strange = HeaderMap::new();
        strange.insert(header::ACCEPT, axum::http::HeaderValue::from_bytes(b"application/openmetrics-text;\xff").unwrap());
        assert_eq!(Format::wanted(&strange), Text);
    }

    #[test]
    fn it_is_packed_for_those_who_ask_for_it() {
        for (accept, packed) in [
            ("gzip", true),
            ("gzip, deflate, br, zstd", true),
            ("deflate, GZIP;q=0.5", true),
            ("*", true),
            ("identity;q=0.5, gzip", true),
            ("", false),
            ("identity", false),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("*;q=0", false),
            ("identity, gzip;q=0.5", false),
            ("zstd", false),
            ("gzip;q=x", false),
        ] {
            assert_eq!(wants_gzip(&headers(&header::ACCEPT_ENCODING, &[accept])), packed, "{accept}");
        }
        assert!(!wants_gzip(&HeaderMap::new()));
    }
}
