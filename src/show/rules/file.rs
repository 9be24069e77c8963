//! A file of Prometheus rules as YAML that people read: plain words where they can be, expressions over several lines.

use std::fmt::Write as _;

/// Rules that Prometheus evaluates one after the other, at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Unique in the file.
    pub name: String,
    /// Said above it.
    pub notes: Vec<String>,
    /// In the order of evaluation.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it makes.
    pub makes: Makes,
    /// `PromQL`, over several lines where that reads better.
    pub expr: String,
    /// Labels that it adds.
    pub labels: Vec<(&'static str, String)>,
    /// What is said to people; of alerts only.
    pub annotations: Vec<(&'static str, String)>,
}

/// What a rule makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Makes {
    /// A series of this name.
    Record(String),
    /// An alert of this name.
    Alert(&'static str),
}

/// The file, under these comments.
#[must_use]
pub fn text(comments: &str, groups: &[Group]) -> String {
    let mut out: String = comments.lines().fold(String::new(), |out, line| out + "# " + line + "\n").replace("# \n", "#\n");
    if groups.is_empty() {
        out.push_str("groups: []\n");
        return out;
    }
    out.push_str("groups:\n");
    for group in groups {
        out.push('\n');
        for note in &group.notes {
            line(&mut out, 2, &format!("# {}", escaped(note)));
        }
        line(&mut out, 2, &format!("- name: {}", word(&group.name)));
        line(&mut out, 4, "rules:");
        for rule in &group.rules {
            put(&mut out, rule);
        }
    }
    out
}

fn put(out: &mut String, rule: &Rule) {
    match &rule.makes {
        Makes::Record(name) => line(out, 6, &format!("- record: {name}")),
        Makes::Alert(name) => line(out, 6, &format!("- alert: {name}")),
    }
    if rule.expr.contains(['\n', '"']) {
        line(out, 8, "expr: |-");
        rule.expr.lines().for_each(|part| line(out, 10, part));
    } else {
        line(out, 8, &format!("expr: {}", word(&rule.expr)));
    }
    if !rule.labels.is_empty() {
        line(out, 8, "labels:");
        rule.labels.iter().for_each(|(name, value)| line(out, 10, &format!("{name}: {}", word(value))));
    }
    if !rule.annotations.is_empty() {
        line(out, 8, "annotations:");
        for (name, value) in &rule.annotations {
            let is_word = !value.contains(' ');
            line(out, 10, &if is_word { format!("{name}: {}", word(value)) } else { format!("{name}: >-") });
            value.lines().filter(|_| !is_word).for_each(|part| line(out, 12, part));
        }
    }
}

fn line(out: &mut String, indent: usize, text: &str) {
    writeln!(out, "{:indent$}{text}", "").expect("text takes all");
}

/// A value as it is where YAML reads that as a text, else in quotes.
fn word(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-()<>=".contains(c))
        && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if is_plain { text.to_owned() } else { format!("\"{}\"", escaped(text)) }
}

/// Text between the double quotes of YAML and of `PromQL` alike: both read backslashes as Go does. What is not letters, digits or ASCII is written by number:
/// YAML takes some of it for the end of a line, or refuses it.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c if !c.is_ascii() && c.is_alphanumeric() => out.push(c),
            c if u32::from(c) <= 0xffff => write!(out, "\\u{:04x}", u32::from(c)).expect("text takes all"),
            c => write!(out, "\\U{:08x}", u32::from(c)).expect("text takes all"),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_plain_where_yaml_reads_a_text() {
        for (text, written) in [
            ("shop", "shop"),
            ("latency<=800ms", "latency<=800ms"),
            ("/orders", "/orders"),
            ("vector(0.99)", "vector(0.99)"),
            ("5m", "\"5m\""),
            ("No", "\"No\""),
            ("", "\"\""),
            ("a: b", "\"a: b\""),
            ("/users/{id}", "\"/users/{id}\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("bücher", "\"bücher\""),
            ("a\u{2028}b\u{feff}\u{1f600}", "\"a\\u2028b\\ufeff\\U0001f600\""),
        ] {
            assert_eq!(word(text), written, "{text}");
        }
    }
}
