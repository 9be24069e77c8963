//! The shape that nearly every line has, read in one pass: a flat object of the contract's plain fields, texts without escapes, numbers without exponents.
//!
//! Why beside a JSON parser: it is three quarters of what a timing costs. Whatever it does not read at sight it leaves to `serde_json` ([`super::json`]), so it decides nothing: a test
//! holds that both read the same out of any line.

/// A line of plain fields.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of the contract, and admission checks them")]
pub struct Ordinary<'a> {
    pub service: Option<&'a str>,
    pub env: Option<&'a str>,
    pub kind: Option<&'a str>,
    pub method: Option<&'a str>,
    pub route: Option<&'a str>,
    pub path: Option<&'a str>,
    pub ts_ms: Option<i64>,
    pub status: Option<u64>,
    pub outcome: Option<&'a str>,
    pub duration_ms: Option<f64>,
    pub duration_s: Option<f64>,
    pub duration_us: Option<f64>,
    pub weight: Option<u64>,
    pub critical: Option<bool>,
    pub trace_id: Option<&'a str>,
    pub actor: Option<&'a str>,
    pub key: Option<&'a str>,
    pub stage: Option<&'a str>,
}

/// A field of the contract that is plain.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Field {
    #[default]
    Ts,
    Service,
    Env,
    Kind,
    Method,
    Route,
    Path,
    Outcome,
    TraceId,
    Actor,
    Key,
    Stage,
    Status,
    Weight,
    DurationMs,
    DurationS,
    DurationUs,
    Critical,
}

/// By [`Field`]: its name, and how it begins in a line without white space.
const FIELDS: [(Field, &str, Head); 18] = [
    (Field::Ts, "ts", Head::of("\"ts\":")),
    (Field::Service, "service", Head::of("\"service\":")),
    (Field::Env, "env", Head::of("\"env\":")),
    (Field::Kind, "kind", Head::of("\"kind\":")),
    (Field::Method, "method", Head::of("\"method\":")),
    (Field::Route, "route", Head::of("\"route\":")),
    (Field::Path, "path", Head::of("\"path\":")),
    (Field::Outcome, "outcome", Head::of("\"outcome\":")),
    (Field::TraceId, "trace_id", Head::of("\"trace_id\":")),
    (Field::Actor, "actor", Head::of("\"actor\":")),
    (Field::Key, "key", Head::of("\"key\":")),
    (Field::Stage, "stage", Head::of("\"stage\":")),
    (Field::Status, "status", Head::of("\"status\":")),
    (Field::Weight, "weight", Head::of("\"weight\":")),
    (Field::DurationMs, "duration_ms", Head::of("\"duration_ms\":")),
    (Field::DurationS, "duration_s", Head::of("\"duration_s\":")),
    (Field::DurationUs, "duration_us", Head::of("\"duration_us\":")),
    (Field::Critical, "critical", Head::of("\"critical\":")),
];

/// Up to sixteen bytes that a text is compared with at once.
#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: u128,
    mask: u128,
    len: usize,
}

impl Head {
    const fn of(text: &str) -> Self {
        let (text, mut bytes, mut mask, mut at) = (text.as_bytes(), 0, 0, 0);
        while at < text.len() {
            bytes |= (text[at] as u128) << (8 * at);
            mask |= 0xff << (8 * at);
            at += 1;
        }
        Self { bytes, mask, len: text.len() }
    }

    /// Whether the bytes begin with it; also `false` when they are fewer than sixteen.
    fn begins(&self, bytes: &[u8]) -> bool {
        bytes.first_chunk().is_some_and(|first| (u128::from_le_bytes(*first) ^ self.bytes) & self.mask == 0)
    }
}

/// Reads lines one after the other. Most have the fields in the order of the line before, so each is compared with what is expected at its place before it is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    /// By place in the line: which field was there last.
    expected: [Field; FIELDS.len()],
}

impl Reader {
    /// Reads the object that begins at `*at`, and moves `*at` behind it. `None`, and `*at` is anywhere, when it is not of this shape.
    #[must_use]
    pub fn read<'a>(&mut self, text: &'a str, at: &mut usize) -> Option<Ordinary<'a>> {
        let bytes = text.as_bytes();
        let mut line = Ordinary::default();
        take(bytes, at, b'{')?;
        // No field comes twice, so there are not more than these.
        for expected in &mut self.expected {
            skip_space(bytes, at);
            let (_, _, head) = &FIELDS[*expected as usize];
            if head.begins(&bytes[*at..]) {
                *at += head.len;
            } else {
                let name = read_text(text, at)?;
                *expected = FIELDS.iter().find(|(_, field, _)| *field == name)?.0;
                skip_space(bytes, at);
                take(bytes, at, b':')?;
            }
            skip_space(bytes, at);
            match *expected {
                Field::Service => set(&mut line.service, read_text(text, at)?)?,
                Field::Env => set(&mut line.env, read_text(text, at)?)?,
                Field::Kind => set(&mut line.kind, read_text(text, at)?)?,
                Field::Method => set(&mut line.method, read_text(text, at)?)?,
                Field::Route => set(&mut line.route, read_text(text, at)?)?,
                Field::Path => set(&mut line.path, read_text(text, at)?)?,
                Field::Outcome => set(&mut line.outcome, read_text(text, at)?)?,
                Field::TraceId => set(&mut line.trace_id, read_text(text, at)?)?,
                Field::Actor => set(&mut line.actor, read_text(text, at)?)?,
                Field::Key => set(&mut line.key, read_text(text, at)?)?,
                Field::Stage => set(&mut line.stage, read_text(text, at)?)?,
                Field::Ts => set(&mut line.ts_ms, i64::try_from(read_whole(bytes, at)?).ok()?)?,
                Field::Status => set(&mut line.status, read_whole(bytes, at)?)?,
                Field::Weight => set(&mut line.weight, read_whole(bytes, at)?)?,
                Field::DurationMs => set(&mut line.duration_ms, read_number(text, at)?)?,
                Field::DurationS => set(&mut line.duration_s, read_number(text, at)?)?,
                Field::DurationUs => set(&mut line.duration_us, read_number(text, at)?)?,
                Field::Critical => set(&mut line.critical, read_bool(bytes, at)?)?,
            }
            skip_space(bytes, at);
            match bytes.get(*at)? {
                b',' => *at += 1,
                b'}' => {
                    *at += 1;
                    return Some(line);
                }
                _ => return None,
            }
        }
        None
    }
}

/// Passes over white space.
pub fn skip_space(bytes: &[u8], at: &mut usize) {
    while matches!(bytes.get(*at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
        *at += 1;
    }
}

fn take(bytes: &[u8], at: &mut usize, wanted: u8) -> Option<()> {
    (*bytes.get(*at)? == wanted).then(|| *at += 1)
}

/// A field that comes twice is for the general parser to refuse.
fn set<T>(field: &mut Option<T>, value: T) -> Option<()> {
    field.replace(value).is_none().then_some(())
}

fn read_text<'a>(text: &'a str, at: &mut usize) -> Option<&'a str> {
    let bytes = text.as_bytes();
    take(bytes, at, b'"')?;
    let start = *at;
    *at += plain_bytes(&bytes[start..]);
    let end = *at;
    take(bytes, at, b'"')?;
    text.get(start..end)
}

/// Bytes before the first quote, backslash or control character: eight at a time, by the test for a zero byte in a word.
///
/// # Source
/// Henry S. Warren, Hacker's Delight, 2nd ed., 6-1: the lowest byte found is exact, those above it may not be.
fn plain_bytes(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let mut plain = 0;
    for word in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let found = control | zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\')));
        if found != 0 {
            return plain + found.trailing_zeros() as usize / 8;
        }
        plain += 8;
    }
    plain + bytes[plain..].iter().take_while(|b| **b != b'"' && **b != b'\\' && **b >= 0x20).count()
}

/// Digits without a sign and without a zero before others; what follows them is looked at by the caller.
fn read_digits(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let start = *at;
    let mut value = 0_u64;
    while let Some(digits) = bytes[*at..].first_chunk().copied().and_then(eight_digits) {
        value = value.wrapping_mul(100_000_000).wrapping_add(digits);
        *at += 8;
    }
    while let Some(digit) = bytes.get(*at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        *at += 1;
    }
    // 19 digits fit into 64 bits.
    let len = *at - start;
    (len > 0 && len <= 19 && (len == 1 || bytes[start] != b'0')).then_some(value)
}

/// The number that eight digits stand for, in three multiplications.
///
/// # Source
/// Daniel Lemire, "Quickly parsing eight digits" (2018), after Johnny Lee.
fn eight_digits(text: [u8; 8]) -> Option<u64> {
    let word = u64::from_le_bytes(text);
    let all_digits =
        word & 0xf0f0_f0f0_f0f0_f0f0 == 0x3030_3030_3030_3030 && word.wrapping_add(0x0606_0606_0606_0606) & 0xf0f0_f0f0_f0f0_f0f0 == 0x3030_3030_3030_3030;
    let pairs = (word & 0x0f0f_0f0f_0f0f_0f0f).wrapping_mul(10 << 8 | 1) >> 8 & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100 << 16 | 1) >> 16 & 0x0000_ffff_0000_ffff;
    all_digits.then_some(fours.wrapping_mul(10_000 << 32 | 1) >> 32)
}

fn read_whole(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let value = read_digits(bytes, at)?;
    let goes_on = matches!(bytes.get(*at), Some(b'.' | b'e' | b'E'));
    (!goes_on).then_some(value)
}

/// A decimal, correctly rounded: below 2^53 and divided by a power of ten that a double holds exactly, or by the standard library.
fn read_number(text: &str, at: &mut usize) -> Option<f64> {
    const POWERS: [f64; 16] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
    let (bytes, start) = (text.as_bytes(), *at);
    let mut value = read_digits(bytes, at)?;
    let mut digits_behind = 0;
    if bytes.get(*at) == Some(&b'.') {
        *at += 1;
        let behind = *at;
        while let Some(digit) = bytes.get(*at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10) {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            *at += 1;
        }
        digits_behind = *at - behind;
        if digits_behind == 0 {
            return None;
        }
    }
    if matches!(bytes.get(*at), Some(b'e' | b'E')) {
        return None;
    }
    let digits = *at - start - usize::from(digits_behind > 0);
    #[expect(clippy::cast_precision_loss, reason = "at most 15 digits, which a double holds exactly")]
    if digits < POWERS.len() {
        return Some(value as f64 / POWERS[digits_behind]);
    }
    text[start..*at].parse().ok()
}

fn read_bool(bytes: &[u8], at: &mut usize) -> Option<bool> {
    for (word, value) in [("true", true), ("false", false)] {
        if bytes[*at..].starts_with(word.as_bytes()) {
            *at += word.len();
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::json::{Line, Text, Ts, read_line};
    use super::*;
    use proptest::prelude::*;

    fn same(ordinary: &Ordinary<'_>, line: &Line<'_>) -> bool {
        let text = |a: Option<&str>, b: &Option<Text<'_>>| a == b.as_ref().map(|t| &*t.0);
        let bits = |a: Option<f64>, b: Option<f64>| a.map(f64::to_bits) == b.map(f64::to_bits);
        text(ordinary.service, &line.service)
            && text(ordinary.env, &line.env)
            && text(ordinary.kind, &line.kind)
            && text(ordinary.method, &line.method)
            && text(ordinary.route, &line.route)
            && text(ordinary.path, &line.path)
            && text(ordinary.outcome, &line.outcome)
            && text(ordinary.trace_id, &line.trace_id)
            && text(ordinary.actor, &line.actor)
            && text(ordinary.key, &line.key)
            && text(ordinary.stage, &line.stage)
            && ordinary.ts_ms.map(Ts::Ms) == line.ts
            && (ordinary.status, ordinary.weight, ordinary.critical) == (line.status, line.weight, line.critical)
            && bits(ordinary.duration_ms, line.duration_ms)
            && bits(ordinary.duration_s, line.duration_s)
            && bits(ordinary.duration_us, line.duration_us)
            && line.values_us.is_none()
            && line.hdr.is_none()
            && line.in_flight.is_none()
    }

    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<u64>().prop_map(|n| n.to_string()),
            any::<f64>().prop_map(|n| n.to_string()),
            (0u64..1_000_000, 0usize..20).prop_map(|(n, digits)| format!("{n}.{}", "123456789012345678901".get(..digits).unwrap())),
            "[ -~é]{0,8}".prop_map(|s| format!("\"{s}\"")),
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("-1".to_owned()),
            Just("007".to_owned()),
            Just("1e3".to_owned()),
            Just("[[5,1]]".to_owned()),
            Just(r#""\u0041""#.to_owned()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn what_is_read_at_sight_is_what_the_general_parser_reads(
            fields in prop::collection::vec((0usize..22, value()), 0..5), space in prop_oneof![Just(""), Just(" "), Just("\t\r\n")], cut in 0usize..200,
            expected in prop::array::uniform18((0..FIELDS.len()).prop_map(|place| FIELDS[place].0)),
        ) {
            const NAMES: [&str; 22] = [
                "service", "env", "kind", "method", "route", "path", "ts", "status", "outcome", "duration_ms", "duration_s", "duration_us", "values_us", "hdr", "weight",
                "critical", "trace_id", "actor", "key", "stage", "in_flight", "other",
            ];
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{space}\"{}\"{space}:{space}{value}{space}", NAMES[*name])).collect();
            let whole = format!("{{{}}}", fields.join(","));
            let text = whole.get(..cut.max(1)).filter(|_| cut % 3 == 0).unwrap_or(&whole);
            let mut at = 0;
            // It may end before the text does: what follows is its caller's business, and no line then.
            let mut reader = Reader { expected };
            if let Some(ordinary) = reader.read(text, &mut at).filter(|_| at == text.len()) {
                let line = read_line(text);
                prop_assert!(line.as_ref().is_ok_and(|l| same(&ordinary, l)), "{}: {:?} {:?}", text, ordinary, line);
            }
        }
    }

    proptest! {
        #[test]
        fn eight_digits_are_a_number(text in "[ -~]{8}", number in 0u64..100_000_000) {
            let bytes = *text.as_bytes().first_chunk().unwrap();
            prop_assert_eq!(eight_digits(bytes), text.parse().ok().filter(|_| bytes.iter().all(u8::is_ascii_digit)));
            prop_assert_eq!(eight_digits(*format!("{number:08}").as_bytes().first_chunk().unwrap()), Some(number));
        }

        #[test]
        fn plain_bytes_end_where_a_search_by_byte_ends(bytes in prop::collection::vec(prop_oneof![8 => 0x20u8..=0xff, 1 => any::<u8>(), 1 => Just(b'"'), 1 => Just(b'\\')], 0..40)) {
            let wanted = bytes.iter().position(|b| *b == b'"' || *b == b'\\' || *b < 0x20).unwrap_or(bytes.len());
            prop_assert_eq!(plain_bytes(&bytes), wanted);
        }
    }

    #[test]
    fn the_line_of_the_contract_is_ordinary() {
        let text = r#"{"ts": 1766534400123, "service": "shop", "env": "prod", "method": "POST", "route": "/orders", "status": 201, "duration_ms": 182.4}"#;
        let mut reader = Reader::default();
        // The second time every field is where it is expected.
        for text in [text, text, &text.replace(": ", ":").replace(", ", ",")] {
            let read = reader.read(text, &mut 0).unwrap();
            assert_eq!((read.service, read.ts_ms, read.duration_ms, read.status), (Some("shop"), Some(1_766_534_400_123), Some(182.4), Some(201)));
        }
        assert_eq!(reader.expected.map(|field| FIELDS[field as usize].1)[..7], ["ts", "service", "env", "method", "route", "status", "duration_ms"]);
    }
}
