//! The command line: exit codes, what is said, one process for a data directory.

use std::time::Duration;

use crate::server::{Server, slowburn, within};

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_configuration_that_is_wrong_names_the_place_the_key_and_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let path = file.to_str().unwrap();
    for (text, place, parts) in [
        ("listen = '127.0.0.1:0'\nlistn = '127.0.0.1:1'\n", "2:1", &["listn", "expected", "listen"][..]),
        ("[limits]\nconections = 5\n", "2:1", &["conections", "connections"]),
        ("[[endpoint]]\nservice = 's'\nroute = '/a'\nobjectives = [{ latensy = '1s', target = '99%' }]\n", "4:17", &["latensy", "latency"]),
        ("[[receiver]]\nname = 'a'\nemial = {}\n", "3:1", &["emial", "email"]),
        ("[limits]\nconnections = 'many'\n", "2:15", &["connections", "expected a whole number"]),
        ("judge_after = 'soon'\n", "1:15", &["judge_after", "800ms"]),
        ("listen = \n", "1:", &[]),
    ] {
        std::fs::write(&file, text).unwrap();
        for command in ["serve", "check"] {
            let output = slowburn(&[command, "--config", path]);
            let said = said(&output);
            assert_eq!(output.status.code(), Some(2), "{command} {text}: {said}");
            assert!(said.contains(&format!("{path}:{place}")), "{text}: {said}");
            for part in parts {
                assert!(said.contains(part), "{text}: {part} is not in {said}");
            }
        }
    }
    assert_eq!(slowburn(&["serve", "--config", "/nowhere/c.toml"]).status.code(), Some(2));
}

#[test]
fn exit_codes_tell_well_from_failed_from_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["check"], 0),
        (&["print-config"], 0),
        (&["rules"], 0),
        (&["rules", "--runbooks", "a b"], 2),
        (&[], 2),
        (&["sing"], 2),
        (&["serve", "--colour"], 2),
        (&["serve", "--listen", "here"], 2),
        (&["replay"], 2),
        (&["replay", "/nowhere.ndjson"], 1),
        (&["verify", "--data-dir", "/nowhere"], 1),
        (&["export", "--data-dir", empty], 1),
    ] {
        let output = slowburn(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        assert!(code == 0 || !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_listener_for_everybody_needs_a_token_before_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let output = slowburn(&["serve", "--listen", listen, "--data-dir", data.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("[[token]]"), "{}", said(&output));
    }
    assert!(!data.exists(), "nothing was touched");
}

#[test]
fn a_second_process_on_the_same_data_ends_with_a_clear_text_and_the_first_goes_on() {
    let mut server = Server::start("", &[]);
    let data = server.data_dir();
    let output = slowburn(&["serve", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains(data.to_str().unwrap()) && said(&output).contains("another slowburn"), "{}", said(&output));
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 200);
    // A port that is taken, another directory.
    let other = tempfile::tempdir().unwrap();
    let output = slowburn(&["serve", "--listen", &format!("127.0.0.1:{}", server.port()), "--data-dir", other.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("cannot listen on"), "{}", said(&output));
    assert_eq!(server.terminate(), Some(0), "ended as asked");
}

#[test]
fn port_0_picks_a_free_one_and_ready_means_ready() {
    let (a, b) = (Server::start("", &[]), Server::start("", &[]));
    assert!(a.port() != 0 && a.port() != b.port(), "{} {}", a.url(), b.url());
    within(Duration::from_secs(5), "ready", || a.request("GET", "/readyz", &[], b"").status == 200);
    assert_eq!(a.request("GET", "/livez", &[], b"").status, 200);
}
