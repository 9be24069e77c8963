//! Objectives from elsewhere: definitions of OpenSLO, Sloth and Pyrra become a part of a configuration, and a configuration becomes OpenSLO.
//!
//! ```text
//! import: yaml → openslo · sloth · pyrra → query (what is counted) → meaning (of which endpoint) → fragment
//! ```
//!
//! Pure: texts in, texts out. What is not carried over, or only nearly, is a [`Note`] with its place; nothing is left out without one.

mod burn;
mod export;
mod fragment;
mod meaning;
mod openslo;
mod pyrra;
mod query;
mod sloth;
mod yaml;

use std::fmt;

use crate::endpoint::Selector;
use crate::objective::{BurnWindow, Goal, percent_text, slots_name};
pub use export::of_promises as export;
use meaning::Meaning;
pub use meaning::{Labels, Role};
use yaml::Node;

/// Definitions in a file, in bytes at most.
pub const BYTES_MAX: usize = yaml::BYTES_MAX;

/// Whose definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `openslo/v1`.
    Openslo,
    /// `prometheus/v1`, or `sloth.slok.dev/v1` on Kubernetes.
    Sloth,
    /// `pyrra.dev/v1alpha1`.
    Pyrra,
}

/// What became of a part of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Carried over, with a difference.
    Approximately,
    /// Left out of an objective that was carried over.
    LeftOut,
    /// An objective that was not carried over.
    NotCarriedOver,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Approximately => "approximately",
            Self::LeftOut => "left out",
            Self::NotCarriedOver => "not carried over",
        })
    }
}

/// What a reader of the configuration must know of a definition: `slos.yml:12: orders: timeWindow: not carried over: …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The name of the definition.
    pub slo: String,
    /// Which part of it.
    pub field: String,
    /// What became of it.
    pub fate: Fate,
    /// Why.
    pub why: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}: {}: {}", self.file, self.line, self.slo, self.field, self.fate, self.why)
    }
}

/// Input that is no definitions.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{file}:{line}: {message}")]
pub struct Error {
    file: String,
    line: usize,
    message: String,
}

/// What was made of definitions.
#[derive(Debug, PartialEq, Eq)]
pub struct Imported {
    /// A part of a configuration, in TOML.
    pub fragment: String,
    /// In the order of the files.
    pub notes: Vec<Note>,
    /// Objectives that were carried over, one that is there twice twice.
    pub carried: usize,
    /// Objectives that were not.
    pub not_carried: usize,
}

impl Imported {
    /// What was made of them, in a line.
    #[must_use]
    pub fn closing(&self) -> String {
        let of = |fate: Fate| self.notes.iter().filter(|n| n.fate == fate).count();
        format!(
            "objectives carried over: {} of {}; differences: {}; parts left out: {}; each in a line above",
            self.carried,
            self.carried + self.not_carried,
            of(Fate::Approximately),
            of(Fate::LeftOut)
        )
    }
}

/// Reads definitions: files by name, with their text. Without a format each document says its own.
///
/// # Errors
/// The first file that cannot be read as definitions.
pub fn import(files: &[(String, String)], format: Option<Format>, labels: Labels) -> Result<Imported, Error> {
    let mut read = Vec::new();
    for (file, text) in files {
        let error = |e: yaml::Error| Error { file: file.clone(), line: e.line, message: e.message };
        if text.len() > BYTES_MAX {
            return Err(error(yaml::Error { line: 1, message: format!("more than {BYTES_MAX} bytes") }));
        }
        read.push((file.as_str(), yaml::documents(text).map_err(error)?));
    }
    let mut documents = Vec::new();
    for (file, nodes) in &read {
        if nodes.is_empty() {
            return Err(Error { file: (*file).to_owned(), line: 1, message: "no definition is in it".to_owned() });
        }
        for node in nodes {
            let items = node.get("items").filter(|_| node.get("kind").and_then(Node::text).is_some_and(|k| k.ends_with("List"))).and_then(Node::list);
            for node in items.unwrap_or(std::slice::from_ref(node)) {
                documents.push(Document::new(file, node, format)?);
            }
        }
    }
    let mut importer = Importer { labels, ..Importer::default() };
    for document in &documents {
        let other = format.filter(|f| document.format.is_some_and(|d| d != *f));
        match document.format.filter(|_| other.is_none()) {
            Some(Format::Openslo) => openslo::read(document, &documents, &mut importer),
            Some(Format::Sloth) => sloth::read(document, &mut importer),
            Some(Format::Pyrra) => pyrra::read(document, &mut importer),
            None => importer.note(document, &document.name(), document.node.line, "apiVersion", Fate::LeftOut, "no definition of objectives that is read here"),
        }
    }
    importer.notes.sort_by_key(|note| files.iter().position(|(file, _)| *file == note.file));
    Ok(Imported { fragment: fragment::text(files, &importer), notes: importer.notes, carried: importer.carried, not_carried: importer.not_carried })
}

/// A document of a file.
struct Document<'a> {
    file: &'a str,
    node: &'a Node,
    /// `None`: of none that is known.
    format: Option<Format>,
}

impl<'a> Document<'a> {
    fn new(file: &'a str, node: &'a Node, given: Option<Format>) -> Result<Self, Error> {
        let text = |key: &str| node.get(key).and_then(Node::text);
        let (api, version) = (text("apiVersion"), text("version"));
        let format = match (api, version) {
            (Some(api), _) if api.starts_with("openslo/") => Some(Format::Openslo),
            (Some(api), _) if api.starts_with("sloth.slok.dev/") => Some(Format::Sloth),
            (Some(api), _) if api.starts_with("pyrra.dev/") => Some(Format::Pyrra),
            (Some(_), _) => None,
            (None, Some(version)) if version.starts_with("prometheus/") => Some(Format::Sloth),
            (None, _) if given.is_some() => given,
            (None, _) => {
                let message =
                    "neither OpenSLO, Sloth nor Pyrra: expected apiVersion: openslo/v1, sloth.slok.dev/v1 or pyrra.dev/v1alpha1, or version: prometheus/v1";
                return Err(Error { file: file.to_owned(), line: node.line, message: message.to_owned() });
            }
        };
        Ok(Self { file, node, format })
    }

    fn kind(&self) -> &'a str {
        self.node.get("kind").and_then(Node::text).unwrap_or("")
    }

    fn name(&self) -> String {
        self.node.at(&["metadata", "name"]).and_then(Node::text).unwrap_or("(no name)").to_owned()
    }
}

/// Why an objective is not carried over, and where that stands.
struct Refused {
    line: usize,
    field: String,
    why: String,
}

impl Refused {
    fn new(line: usize, field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { line, field: field.into(), why: why.into() }
    }
}

/// An objective that is carried over.
#[derive(Clone, Debug)]
struct Promised {
    /// `slos.yml:12`.
    place: String,
    slo: String,
    description: Option<String>,
    /// Under which rules for Prometheus know it.
    name: Option<String>,
    selector: Selector,
    goal: Goal,
    target_ppb: u64,
    period_slots: u32,
    critical: bool,
    digits: u8,
}

#[derive(Default)]
struct Importer {
    labels: Labels,
    notes: Vec<Note>,
    promised: Vec<Promised>,
    windows: Option<(Vec<BurnWindow>, String)>,
    carried: usize,
    not_carried: usize,
}

/// A definition while it is read.
struct Slo<'a> {
    document: &'a Document<'a>,
    importer: &'a mut Importer,
    name: String,
    line: usize,
    description: Option<String>,
    critical: bool,
    digits: u8,
}

impl Importer {
    fn note(&mut self, document: &Document<'_>, slo: &str, line: usize, field: &str, fate: Fate, why: impl Into<String>) {
        let why = why.into();
        self.notes.push(Note { file: document.file.to_owned(), line, slo: slo.to_owned(), field: field.to_owned(), fate, why });
    }
}

impl<'a> Slo<'a> {
    fn new(document: &'a Document<'a>, importer: &'a mut Importer, name: &str, line: usize) -> Self {
        Self { document, importer, name: name.to_owned(), line, description: None, critical: true, digits: 2 }
    }

    fn note(&mut self, line: usize, field: &str, fate: Fate, why: impl Into<String>) {
        self.importer.note(self.document, &self.name, line, field, fate, why);
    }

    fn refuse(&mut self, refused: Refused) {
        self.importer.not_carried += 1;
        self.note(refused.line, &refused.field, Fate::NotCarriedOver, refused.why);
    }

    /// Says of each entry that is not among the known ones that it is left out.
    fn leave_out_unknown(&mut self, node: Option<&Node>, path: &str, known: &[&str]) {
        for (name, value) in node.and_then(Node::map).into_iter().flatten().filter(|(name, _)| !known.contains(&name.as_str())) {
            let field = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.note(value.line, &field, Fate::LeftOut, "not understood");
        }
    }

    fn leave_out(&mut self, node: Option<&Node>, field: &str, why: &str) {
        let there = node.filter(|n| n.list().is_none_or(|l| !l.is_empty()) && n.map().is_none_or(|m| !m.is_empty()));
        if let Some(node) = there {
            self.note(node.line, field, Fate::LeftOut, why);
        }
    }

    /// Carries an objective over.
    fn carry(&mut self, meaning: &Meaning, field: &str, line: usize, target_ppb: u64, period_slots: u32, name: Option<String>) {
        let name = name.filter(|name| {
            let is_fit = crate::config::is_objective_name(name);
            if !is_fit {
                self.note(self.line, "name", Fate::LeftOut, "more than letters, digits, `-`, `_` and `.`, or longer than 63 bytes");
            }
            is_fit
        });
        let promised = Promised {
            place: format!("{}:{}", self.document.file, self.line),
            slo: self.name.clone(),
            description: self.description.clone(),
            name,
            selector: meaning.selector.clone(),
            goal: meaning.goal,
            target_ppb,
            period_slots,
            critical: self.critical,
            digits: self.digits,
        };
        let twin = self.importer.promised.iter().find(|p| p.selector == promised.selector && p.goal == promised.goal);
        if let Some(twin) = twin {
            let what = format!(
                "{} of this endpoint, {} in {}, comes from {} ({})",
                twin.goal.name(),
                percent_text(twin.target_ppb),
                slots_name(twin.period_slots),
                twin.slo,
                twin.place
            );
            if twin.target_ppb == target_ppb && twin.period_slots == period_slots {
                self.importer.carried += 1;
                self.note(line, field, Fate::LeftOut, format!("it is there already: {what}"));
            } else {
                self.refuse(Refused::new(line, field, format!("one goal has one target: {what}")));
            }
            return;
        }
        for difference in &meaning.differences {
            self.note(line, field, Fate::Approximately, difference.as_str());
        }
        self.importer.carried += 1;
        self.importer.promised.push(promised);
    }
}

/// A percentage such as `99.9`, in parts per billion.
fn percent_ppb(node: &Node) -> Result<u64, String> {
    let text = node.text().unwrap_or("");
    crate::objective::parse_percent_ppb(&format!("{}%", text.trim()))
        .map_err(|_| format!("`{text}` is not a percentage between 0 and 100 with at most 7 digits behind the point"))
}
