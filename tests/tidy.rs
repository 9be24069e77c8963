//! The layers and the conventions that no compiler checks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// The modules in the order of the flow: each may import itself and what stands before it.
const LAYERS: [&str; 16] = [
    "time",
    "endpoint",
    "objective",
    "histogram",
    "counting",
    "log",
    "ingest",
    "incident",
    "history",
    "judge",
    "works",
    "detect",
    "machine",
    "notify",
    "config",
    "show",
];
const LAST: [&str; 2] = ["run", "cli"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(source()).unwrap();
    inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The code before the tests, without comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let before_tests = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    before_tests.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_module_imports_a_later_one() {
    let order: Vec<&str> = LAYERS.iter().chain(&LAST).copied().collect();
    let place = |module: &str| order.iter().position(|m| *m == module);
    let mut wrong = Vec::new();
    for path in files(&source()) {
        let Some(own) = place(&module_of(&path)) else { continue };
        let code = code(&path);
        for used in code.split("crate::").skip(1) {
            let name: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if place(&name).is_some_and(|used| used > own) {
                wrong.push(format!("{} imports {name}", path.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_module_has_its_place() {
    let map = fs::read_to_string(source().join("lib.rs")).unwrap();
    let declared: Vec<&str> = map.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let order: Vec<&str> = LAYERS.iter().chain(&LAST).copied().collect();
    assert_eq!(declared, order, "the map declares the modules in the order of the flow");
    assert!(map.lines().count() < 150, "the map stays a map");
}

#[test]
fn what_thinks_touches_nothing_outside() {
    let pure = ["time", "endpoint", "objective", "histogram", "counting", "incident", "judge", "works", "detect", "machine"];
    let outside = ["tokio", "axum", "hyper", "sled", "std::fs", "std::net", "std::env", "tracing::", "reqwest", "lettre"];
    let only_in = [
        ("sled::", vec!["history/index_store.rs"]),
        ("axum::", vec!["ingest/http.rs", "show/", "run/"]),
        ("lettre::", vec!["notify/"]),
        // What is sent to stores of metrics is no notification: nobody is told, and what is lost is only a gap in a graph.
        ("reqwest::", vec!["notify/", "run/remote_write.rs"]),
    ];
    let mut wrong = Vec::new();
    for path in files(&source()) {
        let (module, code) = (module_of(&path), code(&path));
        let inside = path.strip_prefix(source()).unwrap().to_str().unwrap().to_owned();
        if pure.contains(&module.as_str()) {
            wrong.extend(outside.iter().filter(|o| code.contains(**o)).map(|o| format!("{inside} uses {o}")));
        }
        for (library, places) in &only_in {
            if code.contains(library) && !places.iter().any(|p| inside.starts_with(p)) {
                wrong.push(format!("{inside} uses {library}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_file_says_what_it_is() {
    let unsaid: Vec<_> = files(&source()).into_iter().filter(|p| !fs::read_to_string(p).unwrap().starts_with("//! ")).collect();
    assert_eq!(unsaid, Vec::<PathBuf>::new());
    let by_kind = ["utils.rs", "util.rs", "types.rs", "helpers.rs", "traits.rs", "common.rs", "misc.rs"];
    let named: Vec<_> = files(&source()).into_iter().filter(|p| by_kind.contains(&p.file_name().unwrap().to_str().unwrap())).collect();
    assert_eq!(named, Vec::<PathBuf>::new(), "files are named by meaning");
}

/// The invariants of the map name their tests; a name that leads nowhere is a promise that nobody keeps.
#[test]
fn the_tests_that_the_map_names_exist() {
    let map = fs::read_to_string(source().join("lib.rs")).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named: Vec<&str> = map.split('`').filter(|t| t.starts_with("tests/") || *t == "clippy.toml").collect();
    assert!(named.len() >= 4);
    for file in named {
        assert!(root.join(file).is_file(), "{file}");
    }
}

#[test]
fn no_vulnerable_or_foreign_builds_are_drawn_in() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    for banned in ["openssl-sys", "aws-lc-sys", "cmake", "native-tls", "protoc"] {
        assert!(!lock.contains(&format!("name = \"{banned}\"")), "{banned}");
    }
}
