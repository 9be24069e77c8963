//! The built server on a small real file system that somebody else fills to the brim, and on a disk that fails by `SLOWBURN_FAIL_AT`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::extent;
use crate::server::{Server, get, wait_until};

const LONG: Duration = Duration::from_secs(30);

const MOUNTED: &str = r#"mount -t tmpfs -o size=24m slowburn-test "$1" && shift && exec "$@""#;

/// A server in a mount namespace of its own, whose data directory is a small tmpfs.
struct Confined {
    child: Child,
    address: SocketAddr,
    /// The mount, as seen from outside.
    disk: PathBuf,
    said: PathBuf,
}

impl Confined {
    fn start(place: &Path, config: &Path, said: &Path) -> Option<Self> {
        let allowed = Command::new("unshare").args(["-m", "sh", "-c", MOUNTED, "sh"]).arg(place).arg("true").stderr(Stdio::null()).status();
        if !allowed.is_ok_and(|s| s.success()) {
            return None;
        }
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", MOUNTED, "sh"])
            .arg(place)
            .arg(env!("CARGO_BIN_EXE_slowburn"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(config)
            .arg("--data-dir")
            .arg(place.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(said).unwrap())
            .spawn()
            .unwrap();
        let found = || fs::read_to_string(said).unwrap().lines().find_map(|l| l.strip_prefix("listening on http://")?.parse().ok());
        let address = wait_until(LONG, found).unwrap_or_else(|| panic!("{}", fs::read_to_string(said).unwrap()));
        let disk = PathBuf::from(format!("/proc/{}/root{}", child.id(), place.display()));
        Some(Self { child, address, disk, said: said.to_owned() })
    }

    fn fill(&self) -> u64 {
        let mut ballast = File::create(self.disk.join("ballast")).unwrap();
        let mut bytes = 0;
        for piece in [1 << 20, 4 << 10, 256, 1] {
            while ballast.write_all(&vec![7; piece]).is_ok() {
                bytes += piece as u64;
            }
        }
        bytes
    }

    fn check_alive(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "it ended:\n{}", fs::read_to_string(&self.said).unwrap());
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Sends a batch with a key: the status and the whole answer.
fn post(address: SocketAddr, number: u64) -> (u16, String) {
    let body = format!(r#"{{"service":"s","route":"/{}","status":200,"duration_ms":5}}"#, number % 7);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let head = format!("POST /api/v1/timings HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/x-ndjson");
    write!(stream, "{head}\r\nIdempotency-Key: k{number}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer[9..12].parse().unwrap(), answer.to_ascii_lowercase())
}

fn counted(address: SocketAddr) -> u64 {
    get(address, "/api/v1/endpoints")["endpoints"].as_array().unwrap().iter().map(|e| e["requests"].as_u64().unwrap()).sum()
}

fn is_ready(address: SocketAddr) -> bool {
    let mut connection = crate::server::Connection::open(address).unwrap();
    connection.send("GET", "/readyz", "", "").unwrap();
    connection.receive().unwrap().0 == 200
}

#[test]
fn a_disk_that_is_full_refuses_and_takes_again_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (place, config) = (dir.path().join("disk"), dir.path().join("slowburn.toml"));
    fs::create_dir(&place).unwrap();
    fs::write(&config, "judge_after = \"1s\"\nsnapshot_every = \"1s\"\n[disk]\nfree_bytes_min = 0\n").unwrap();
    let Some(mut server) = Confined::start(&place, &config, &dir.path().join("said")) else {
        println!("full disk: no small file system can be mounted here; nth_failure has it by the seam");
        return;
    };
    let (mut number, mut taken, mut refused, mut rounds) = (0, 0, 0, 0);
    for _ in 0..extent(2, 8) {
        for _ in 0..100 {
            number += 1;
            let (status, answer) = post(server.address, number);
            assert_eq!(status, 200, "{answer}");
            taken += 1;
        }
        let ballast = server.fill();
        assert!(ballast > 0);
        // Past two slot ends: history, index and snapshots find no room either.
        let (start, mut refused_now) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(12) {
            number += 1;
            let (status, answer) = post(server.address, number);
            match status {
                // A file's last page may have had room.
                200 => taken += 1,
                503 | 507 => {
                    assert!(answer.contains("retry-after: "), "{answer}");
                    refused_now += 1;
                }
                _ => panic!("{answer}"),
            }
            server.check_alive();
            assert!(is_ready(server.address), "{}", fs::read_to_string(&server.said).unwrap());
            assert_eq!(counted(server.address), taken);
            wait_until(Duration::from_millis(40), || None::<()>);
        }
        assert!(refused_now > 50, "{refused_now} refused");
        refused += refused_now;
        rounds += 1;
        fs::remove_file(server.disk.join("ballast")).unwrap();
        number += 1;
        let again = wait_until(LONG, || (post(server.address, number).0 == 200).then_some(()));
        assert!(again.is_some(), "it does not take timings again");
        taken += 1;
        assert_eq!(counted(server.address), taken);
    }
    println!("full disk: {rounds} times filled to the brim, {taken} batches taken, {refused} refused");
    // What is on that disk goes with its server: another start reads a copy.
    let kept = dir.path().join("kept");
    assert!(Command::new("kill").args(["-STOP", &server.child.id().to_string()]).status().unwrap().success());
    crate::common::copy(&server.disk.join("data"), &kept);
    drop(server);
    let mut again = Server::start(&config, &kept, &[]);
    assert_eq!(counted(again.wait_listening()), taken);
    drop(again);
    assert_eq!(crate::data_dir::wrong(&kept), Vec::<String>::new());
}

#[test]
fn a_sync_that_fails_ends_the_process_and_the_next_one_has_all_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (config, data) = (dir.path().join("slowburn.toml"), dir.path().join("data"));
    fs::write(&config, "").unwrap();
    let (mut taken, mut fired) = (0, 0);
    for life in 0..extent(3, 12) {
        let mut server = Server::start(&config, &data, &[("SLOWBURN_FAIL_AT", &format!("sync:{}:EIO", 12 + life * 3))]);
        let address = server.wait_listening();
        for number in 0..100 {
            let Ok(mut connection) = crate::server::Connection::open(address) else { break };
            let body = format!(r#"{{"service":"s","route":"/{number}","status":200,"duration_ms":5}}"#);
            let headers = format!("Content-Type: application/x-ndjson\r\nIdempotency-Key: {life}-{number}\r\n");
            let answer = connection.send("POST", "/api/v1/timings", &headers, &body).and_then(|()| connection.receive());
            match answer {
                Ok((200, _)) => taken += 1,
                Ok((status, body)) => assert_eq!(status, 503, "{body}"),
                Err(_) => break,
            }
        }
        let status = wait_until(LONG, || server.ended()).expect("it goes on after a sync that failed");
        assert!(!status.success());
        let lines = server.kill();
        fired += lines.iter().filter(|l| l.starts_with("failed Sync")).count() as u64;
        assert!(lines.iter().any(|l| l.contains("reads the disk anew")), "{lines:?}");
    }
    let mut server = Server::start(&config, &data, &[]);
    let counted = counted(server.wait_listening());
    println!("failed syncs: {fired} fired, {taken} batches acknowledged, {counted} counted");
    assert_eq!(fired, extent(3, 12));
    // The batch whose sync failed may be there: nobody was told.
    assert!((taken..=taken + fired).contains(&counted), "{counted} counted of {taken}");
}
