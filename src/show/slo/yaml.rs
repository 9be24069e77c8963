//! YAML as a tree in which every value knows its line, within limits: files come from anywhere, and an alias of an alias of an alias can be a billion values.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span};

/// The longest input, in bytes.
pub(super) const BYTES_MAX: usize = 16 << 20;

/// Values in one input, those that aliases repeat among them.
const VALUES_MAX: usize = 1 << 20;

/// Entries of one map: each new key is compared with all.
const ENTRIES_MAX: usize = 10_000;

/// Lists and maps within each other.
const DEPTH_MAX: usize = 64;

/// What is wrong, and on which line (from 1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Error {
    pub(super) line: usize,
    pub(super) message: String,
}

/// A value and its line (from 1).
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

/// A value. What it is beyond a text depends on who asks: `99.9` is a number to one, digits to another.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Nothing,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(super) fn text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    /// The items of a list; nothing is an empty one.
    pub(super) fn list(&self) -> Option<&[Self]> {
        match &self.value {
            Value::List(items) => Some(items),
            Value::Nothing => Some(&[]),
            Value::Text(_) | Value::Map(_) => None,
        }
    }

    /// The entries of a map; nothing is an empty one.
    pub(super) fn map(&self) -> Option<&[(String, Self)]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            Value::Nothing => Some(&[]),
            Value::Text(_) | Value::List(_) => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.map()?.iter().find(|(k, _)| k == key).map(|(_, v)| v).filter(|v| !matches!(v.value, Value::Nothing))
    }

    /// What stands under keys within keys.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    fn values(&self) -> usize {
        1 + match &self.value {
            Value::Nothing | Value::Text(_) => 0,
            Value::List(items) => items.iter().map(Self::values).sum(),
            Value::Map(entries) => entries.iter().map(|(_, v)| v.values()).sum(),
        }
    }
}

/// The documents of an input that are not empty.
///
/// # Errors
/// The first place that is no YAML, or beyond a limit.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, Error> {
    let mut reading = Reading::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| Error { line: e.marker().line(), message: e.info() })?;
        reading.take(event, span)?;
    }
    Ok(reading.documents)
}

/// A list or a map that is not complete yet.
struct Open {
    node: Node,
    anchor: usize,
    key: Option<String>,
    /// What `<<` brings: entries of the map's own come before them, wherever they stand.
    merged: Vec<(String, Node)>,
}

#[derive(Default)]
struct Reading {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchored: HashMap<usize, (Node, usize)>,
    values: usize,
}

impl Reading {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Error> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_nothing = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if is_nothing { Value::Nothing } else { Value::Text(text.into_owned()) };
                self.put(Node { line, value }, anchor, 1)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(Node { line, value: Value::List(Vec::new()) }, anchor),
            Event::MappingStart(_, anchor, _) => self.begin(Node { line, value: Value::Map(Vec::new()) }, anchor),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(mut done) = self.open.pop() else { return Ok(()) };
                if let Value::Map(entries) = &mut done.node.value {
                    add_missing(entries, done.merged);
                }
                self.put(done.node, done.anchor, 1)
            }
            Event::Alias(anchor) => {
                // An anchor of a list or map that is still open is not among them: it would hold itself.
                let Some((node, values)) = self.anchored.get(&anchor) else {
                    return Err(Error { line, message: "an alias of what holds it".to_owned() });
                };
                if self.values + values > VALUES_MAX {
                    return Err(too_many(line));
                }
                let (node, values) = (Node { line, value: node.value.clone() }, *values);
                self.put(node, 0, values)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: Node, anchor: usize) -> Result<(), Error> {
        if self.open.len() >= DEPTH_MAX {
            return Err(Error { line: node.line, message: format!("more than {DEPTH_MAX} lists and maps within each other") });
        }
        self.open.push(Open { node, anchor, key: None, merged: Vec::new() });
        Ok(())
    }

    fn put(&mut self, node: Node, anchor: usize, values: usize) -> Result<(), Error> {
        let line = node.line;
        self.values += values;
        if self.values > VALUES_MAX {
            return Err(too_many(line));
        }
        if anchor != 0 {
            // Kept again: what anchors hold counts too.
            let held = node.values();
            self.values += held;
            self.anchored.insert(anchor, (node.clone(), held));
        }
        let Some(Open { node: outer, key, merged, .. }) = self.open.last_mut() else {
            if !matches!(node.value, Value::Nothing) {
                self.documents.push(node);
            }
            self.anchored.clear();
            return Ok(());
        };
        match (&mut outer.value, key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some(_)) if entries.len() >= ENTRIES_MAX => {
                return Err(Error { line, message: format!("more than {ENTRIES_MAX} entries in a map") });
            }
            (Value::Map(_), Some(key)) if key == "<<" => merge(merged, &node)?,
            (Value::Map(entries), Some(name)) => match entries.iter_mut().find(|(k, _)| *k == name) {
                None => entries.push((name, node)),
                Some((_, there)) => return Err(Error { line, message: format!("`{name}` is there twice, first on line {}", there.line) }),
            },
            (Value::Map(_), None) => match node.value {
                Value::Text(text) => *key = Some(text),
                _ => return Err(Error { line, message: "a key that is no text".to_owned() }),
            },
            (Value::Nothing | Value::Text(_), _) => unreachable!("only lists and maps are open"),
        }
        Ok(())
    }
}

/// `<<`: the entries of another map, or of several, of which the first that has a key counts.
fn merge(merged: &mut Vec<(String, Node)>, from: &Node) -> Result<(), Error> {
    let sources = if let Value::List(items) = &from.value { items.iter().collect() } else { vec![from] };
    for source in sources {
        let more = source.map().ok_or_else(|| Error { line: from.line, message: "`<<` takes maps".to_owned() })?;
        if merged.len() + more.len() > ENTRIES_MAX {
            return Err(Error { line: from.line, message: format!("more than {ENTRIES_MAX} entries in a map") });
        }
        add_missing(merged, more.to_vec());
    }
    Ok(())
}

fn add_missing(entries: &mut Vec<(String, Node)>, more: Vec<(String, Node)>) {
    for (name, value) in more {
        if !entries.iter().any(|(k, _)| *k == name) {
            entries.push((name, value));
        }
    }
}

fn too_many(line: usize) -> Error {
    Error { line, message: format!("more than {VALUES_MAX} values, those that aliases repeat among them") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> (usize, String) {
        let error = documents(text).unwrap_err();
        (error.line, error.message)
    }

    #[test]
    fn values_know_their_lines() {
        let found = documents("# nothing\n---\na: 1\nb:\n  - x\n  - c: ~\n    d: \"99.9\"\n---\n---\nf: {g: h}\n").unwrap();
        assert_eq!(found.len(), 2);
        let d = found[0].get("b").unwrap().list().unwrap()[1].get("d").unwrap();
        assert_eq!((d.text(), d.line), (Some("99.9"), 7));
        assert!(found[0].get("b").unwrap().list().unwrap()[1].get("c").is_none());
        assert_eq!(found[1].at(&["f", "g"]).unwrap().text(), Some("h"));
    }

    #[test]
    fn aliases_and_merges_are_what_they_repeat() {
        let found = documents("base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: *b\n").unwrap();
        assert_eq!(found[0].at(&["one", "x"]).and_then(Node::text), Some("1"));
        assert_eq!(found[0].at(&["one", "y"]).and_then(Node::text), Some("3"));
        assert_eq!(found[0].at(&["two", "y"]).and_then(Node::text), Some("2"));
    }

    #[test]
    fn there_is_an_end_to_everything() {
        let laugh = |n: usize| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
        let laughs = (1..12).map(laugh).fold("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |all, one| all + &one);
        assert!(error(&laughs).1.contains("more than 1048576 values"), "{:?}", error(&laughs));
        assert!(error(&("[".repeat(100) + &"]".repeat(100))).1.contains("within each other"));
        assert!(error(&"- ".repeat(100_000)).1.contains("within each other"));
        assert_eq!(error("a: &a [*a]\n").0, 1);
        assert_eq!(error("a: 1\na: 2\n"), (2, "`a` is there twice, first on line 1".to_owned()));
        assert_eq!(error("a: 1\n b: 2\n").0, 2);
        assert_eq!(error("a: *nobody\n").0, 1);
        assert_eq!(error("[a]: 1\n"), (1, "a key that is no text".to_owned()));
    }
}
