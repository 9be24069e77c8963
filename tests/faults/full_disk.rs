//! The built server on a small real file system that somebody else fills to the brim, and on a disk that fails by `SLOWBURN_FAIL_AT`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::extent;
use crate::server::{Server, get, wait_until};

const LONG: Duration = Duration::from_secs(30);

const MOUNTED: &str = r#"mount -t tmpfs -o size="$2" slowburn-test "$1" && echo mounted && exec sleep 86400"#;

/// A small tmpfs in a mount namespace of its own, which outlives the servers on it.
struct SmallDisk {
    holder: Child,
    place: PathBuf,
    /// The mount, as seen from outside.
    seen: PathBuf,
}

impl SmallDisk {
    fn mount(place: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(place).unwrap();
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", MOUNTED, "sh"]).arg(place).arg(size).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().ok()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take()?).read_line(&mut line).ok()?;
        let seen = PathBuf::from(format!("/proc/{}/root{}", holder.id(), place.display()));
        let disk = Self { holder, place: place.to_owned(), seen };
        (line == "mounted\n").then_some(disk)
    }

    /// Takes all room but so many bytes; says how many it took.
    fn fill_but(&self, left: u64) -> u64 {
        let mut ballast = OpenOptions::new().create(true).append(true).open(self.seen.join("ballast")).unwrap();
        for piece in [1 << 20, 4 << 10, 256, 1] {
            while self.free() >= left + piece as u64 || left == 0 {
                if ballast.write_all(&vec![7; piece]).is_err() {
                    break;
                }
            }
        }
        ballast.metadata().unwrap().len()
    }

    fn free(&self) -> u64 {
        slowburn::run::disk::free_bytes(&self.seen).unwrap()
    }

    fn make_room(&self) {
        fs::remove_file(self.seen.join("ballast")).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.seen.join("data")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

/// A server whose data directory is on a small disk.
struct Confined {
    child: Child,
    address: SocketAddr,
    said: PathBuf,
}

impl Confined {
    fn start(disk: &SmallDisk, config: &Path, said: &Path, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new("nsenter")
            .args(["--mount", "--target", &disk.holder.id().to_string(), env!("CARGO_BIN_EXE_slowburn")])
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(config)
            .arg("--data-dir")
            .arg(disk.place.join("data"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(said).unwrap())
            .spawn()
            .unwrap();
        let found = || fs::read_to_string(said).unwrap().lines().find_map(|l| l.strip_prefix("listening on http://")?.parse().ok());
        let found = wait_until(LONG, || found().map(Some).or_else(|| child.try_wait().unwrap().map(|_| None)));
        let address = found.flatten().unwrap_or_else(|| panic!("it does not listen:\n{}", fs::read_to_string(said).unwrap()));
        Self { child, address, said: said.to_owned() }
    }

    fn lines(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    fn check_alive(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "it ended:\n{}", self.lines());
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// SIGTERM, and its end.
    fn stop(mut self) -> ExitStatus {
        self.signal("-TERM");
        wait_until(LONG, || self.child.try_wait().unwrap()).unwrap_or_else(|| panic!("it does not end:\n{}", self.lines()))
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
    // Every other one late, so that each slot end has something for history.
    let late = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() - 90_000;
    let ts = if number.is_multiple_of(2) { String::new() } else { format!(r#""ts":{late},"#) };
    let body = format!(r#"{{{ts}"service":"s","route":"/{}","status":200,"duration_ms":5}}"#, number % 7);
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

fn ask(address: SocketAddr, path: &str) -> (u16, String) {
    let mut connection = crate::server::Connection::open(address).unwrap();
    connection.send("GET", path, "", "").unwrap();
    connection.receive().unwrap()
}

/// The disk of a test and its configuration; `None` where no file system can be mounted.
fn small_disk(dir: &Path, size: &str) -> Option<(SmallDisk, PathBuf)> {
    let config = dir.join("slowburn.toml");
    fs::write(&config, "judge_after = \"1s\"\nsnapshot_every = \"1s\"\n[disk]\nfree_bytes_min = 0\n").unwrap();
    let disk = SmallDisk::mount(&dir.join("disk"), size);
    if disk.is_none() {
        println!("full disk: no small file system can be mounted here; nth_failure has it by the seam");
    }
    Some((disk?, config))
}

/// What a sender has had acknowledged, and what was refused for lack of room.
#[derive(Default)]
struct Sent {
    number: u64,
    taken: u64,
    refused: u64,
}

impl Sent {
    /// Sends a batch, which is taken or refused for lack of room.
    fn send(&mut self, server: &mut Confined) -> bool {
        self.number += 1;
        let (status, answer) = post(server.address, self.number);
        match status {
            200 => self.taken += 1,
            503 | 507 => {
                assert!(answer.contains("retry-after: "), "{answer}");
                self.refused += 1;
            }
            _ => panic!("{answer}"),
        }
        server.check_alive();
        status == 200
    }

    /// On a disk that is full: it answers, is ready, and has all that was taken.
    fn look(&self, server: &Confined) {
        for path in ["/livez", "/readyz"] {
            let (status, body) = ask(server.address, path);
            assert_eq!(status, 200, "{path}: {body}\n{}", server.lines());
        }
        assert_eq!(counted(server.address), self.taken);
        assert_eq!(in_history(server.address), self.taken);
    }

    /// Sends until batches are taken again.
    fn send_until_taken(&mut self, server: &mut Confined) {
        let again = wait_until(LONG, || self.send(server).then_some(()));
        assert!(again.is_some(), "it does not take timings again:\n{}", server.lines());
    }
}

/// What the answers over the last day count.
fn in_history(address: SocketAddr) -> u64 {
    let count = |route: u64| {
        let answer = get(address, &format!("/api/v1/counts?service=s&route=/{route}&from=0&threshold=1s"));
        answer["total"].as_u64().unwrap_or(0)
    };
    (0..7).map(count).sum()
}

#[test]
fn a_disk_that_is_full_refuses_and_takes_again_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, config)) = small_disk(dir.path(), "24m") else { return };
    let mut server = Confined::start(&disk, &config, &dir.path().join("said"), &[]);
    let (mut sent, mut rounds) = (Sent::default(), 0);
    for _ in 0..extent(2, 8) {
        for _ in 0..100 {
            assert!(sent.send(&mut server), "there is room");
        }
        assert!(disk.fill_but(0) > 0);
        // Past two slot ends: history, index and snapshots find no room either.
        let (start, refused_before) = (Instant::now(), sent.refused);
        // On a machine that is busy few are sent.
        let enough = |sent: &Sent| sent.refused - refused_before >= 10 || start.elapsed() > LONG;
        while start.elapsed() < Duration::from_secs(12) || !enough(&sent) {
            // A file's last page may have had room.
            sent.send(&mut server);
            sent.look(&server);
            wait_until(Duration::from_millis(40), || None::<()>);
        }
        assert!(sent.refused - refused_before >= 10, "{} refused", sent.refused - refused_before);
        rounds += 1;
        disk.make_room();
        sent.send_until_taken(&mut server);
        sent.look(&server);
    }
    println!("full disk: {rounds} times filled to the brim, {} batches taken, {} refused", sent.taken, sent.refused);
    assert!(server.stop().success());
    let mut again = Confined::start(&disk, &config, &dir.path().join("again"), &[]);
    sent.look(&again);
    again.check_alive();
    drop(again);
    assert_eq!(crate::data_dir::wrong(&disk.data()), Vec::<String>::new());
}

/// How the server before ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By SIGTERM, on the full disk.
    Ordered,
    /// Killed when a minute that the log has closed was to be written to history: the next start has to, and finds no room.
    Killed,
    /// And the next start has no index either.
    KilledWithoutIndex,
}

fn start_on_a_full_disk(end: End) {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, config)) = small_disk(dir.path(), "24m") else { return };
    let (mut sent, mut waited, rounds) = (Sent::default(), 0, extent(1, 5));
    for round in 0..rounds {
        let said = |what: &str| dir.path().join(format!("{round}-{what}"));
        let kill: &[_] = if end == End::Ordered { &[] } else { &[("SLOWBURN_KILL_AT", "before history write:1")] };
        let mut server = Confined::start(&disk, &config, &said("before"), kill);
        for _ in 0..40 {
            assert!(sent.send(&mut server), "there is room");
        }
        if end == End::Ordered {
            disk.fill_but(0);
            while sent.send(&mut server) {}
            sent.look(&server);
            assert!(server.stop().success());
        } else {
            assert!(wait_until(LONG, || server.child.try_wait().unwrap()).is_some_and(|s| !s.success()), "nothing was written to history");
            assert!(server.lines().contains("killed at before history write"), "{}", server.lines());
            if end == End::KilledWithoutIndex {
                fs::remove_dir_all(disk.data().join("index")).unwrap();
            }
        }
        assert!(disk.fill_but(0) > 0);
        let mut server = Confined::start(&disk, &config, &said("after"), &[]);
        // What fits the log's last page is taken.
        let (taken_before, refused_before) = (sent.taken, sent.refused);
        while sent.refused - refused_before < 30 {
            let taken = sent.send(&mut server);
            assert!(sent.taken - taken_before < 100, "there is room\n{}", server.lines());
            if !taken {
                sent.look(&server);
                wait_until(Duration::from_millis(100), || None::<()>);
            }
        }
        let lines = server.lines();
        waited += u64::from(lines.contains("history waits until there is room"));
        assert!(lines.contains("no timings are taken until there is room") || waited > round, "it does not say so:\n{lines}");
        // What was refused is written down by a smaller frame, which may still fit: then the next batch finds out.
        let ready = wait_until(LONG, || {
            sent.send(&mut server);
            Some(ask(server.address, "/readyz").1).filter(|body| body.contains("the disk is full"))
        });
        assert!(ready.is_some(), "it does not say so:\n{}", server.lines());
        disk.make_room();
        sent.send_until_taken(&mut server);
        sent.look(&server);
        let metrics = ask(server.address, "/metrics").1;
        let shed = metrics.lines().find(|l| l.starts_with("slowburn_ingest_timings_total") && l.contains("\"shed\"")).unwrap_or("").to_owned();
        assert!(!shed.is_empty() && !shed.ends_with(" 0"), "what is refused is counted: {shed:?}");
        fs::remove_dir_all(disk.data().join("snapshots")).ok();
        let has_snapshot = || fs::read_dir(disk.data().join("snapshots")).is_ok_and(|mut d| d.next().is_some());
        assert!(wait_until(LONG, || has_snapshot().then_some(())).is_some(), "no snapshot when there is room:\n{}", server.lines());
        sent.look(&server);
        assert!(server.stop().success());
    }
    let mut server = Confined::start(&disk, &config, &dir.path().join("last"), &[]);
    sent.look(&server);
    server.check_alive();
    println!("full disk, {end:?}: {rounds} starts on it, {waited} with minutes to write, {} batches taken, {} refused", sent.taken, sent.refused);
    // The first minute needs a new file; later ones may fit its last page.
    assert!(end == End::Ordered || waited > 0, "history found room each time");
    assert!(server.stop().success());
    assert_eq!(crate::data_dir::wrong(&disk.data()), Vec::<String>::new());
}

#[test]
fn a_start_on_a_full_disk_comes_up_refuses_and_goes_on_by_itself() {
    start_on_a_full_disk(End::Ordered);
}

#[test]
fn a_start_on_a_full_disk_keeps_in_memory_the_minutes_that_history_has_no_room_for() {
    start_on_a_full_disk(End::Killed);
}

#[test]
fn a_start_on_a_full_disk_without_an_index_builds_it_in_memory() {
    start_on_a_full_disk(End::KilledWithoutIndex);
}

/// Posts markers that take 1.6 kB each in log and index.
fn mark(address: SocketAddr, markers: u64) {
    let mut connection = crate::server::Connection::open(address).unwrap();
    let long = "x".repeat(500);
    for _ in 0..markers {
        let body = format!(r#"{{"service":"{long}","title":"{long}","version":"{long}"}}"#);
        connection.send("POST", "/api/v1/markers", "Content-Type: application/json\r\n", &body).unwrap();
        let (status, answer) = connection.receive().unwrap();
        assert_eq!(status, 200, "{answer}");
    }
}

fn marked(address: SocketAddr) -> u64 {
    get(address, "/api/v1/markers")["markers"].as_array().unwrap().len() as u64
}

/// What sled itself does when its own writes find no room.
#[test]
fn an_index_that_finds_no_room_goes_on_in_memory_and_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let Some((disk, config)) = small_disk(dir.path(), "256m") else { return };
    let mut server = Confined::start(&disk, &config, &dir.path().join("said"), &[]);
    let (mut sent, mut markers, mut failed) = (Sent::default(), 0, 0);
    for _ in 0..extent(1, 3) {
        let failures = |server: &Confined| server.lines().matches("the index goes on in memory").count();
        let before = failures(&server);
        // A checkpoint while markers are posted takes some of them with it: then it had room, and more are posted.
        for _ in 0..6 {
            mark(server.address, 4_000);
            markers += 4_000;
            // More than a checkpoint asks for, and less than it needs.
            disk.fill_but((4 << 20) + (200 << 10));
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(13) && failures(&server) == before {
                sent.send(&mut server);
                sent.look(&server);
                wait_until(Duration::from_millis(100), || None::<()>);
            }
            if failures(&server) > before {
                break;
            }
            disk.make_room();
        }
        assert!(failures(&server) > before, "it had room:\n{}", server.lines());
        failed += 1;
        assert_eq!(marked(server.address), markers);
        disk.make_room();
        fs::remove_dir_all(disk.data().join("snapshots")).ok();
        let has_snapshot = || fs::read_dir(disk.data().join("snapshots")).is_ok_and(|mut d| d.next().is_some());
        let snapshot = wait_until(LONG, || {
            sent.send(&mut server);
            sent.look(&server);
            has_snapshot().then_some(())
        });
        assert!(snapshot.is_some(), "the index is not written anew:\n{}", server.lines());
        assert_eq!(marked(server.address), markers);
    }
    assert!(server.stop().success());
    let server = Confined::start(&disk, &config, &dir.path().join("again"), &[]);
    assert!(!server.lines().contains("building the index"), "{}", server.lines());
    sent.look(&server);
    assert_eq!(marked(server.address), markers);
    println!("index without room: failed {failed} times, {markers} markers, {} batches taken", sent.taken);
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
