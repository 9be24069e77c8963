//! Connections that promise a request and do not send it: they go, and those that work stay.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::server::{Answer, Server, within};

const ONE: &str = r#"{"service":"shop","route":"/orders","duration_ms":1}"#;

/// Whether the server has closed it.
fn is_closed(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0; 1024]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn ask(stream: &mut TcpStream, server: &Server) -> Answer {
    let port = server.port();
    let head =
        format!("POST /api/v1/timings HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{ONE}", ONE.len());
    stream.write_all(head.as_bytes()).unwrap();
    Answer::read_one(stream)
}

#[test]
fn a_thousand_half_requests_and_silent_connections_go_while_timings_are_taken() {
    let server = Server::start("[limits]\nconnections = 3000\n", &[]);
    let mut kept = server.connect();
    ask(&mut kept, &server).taken(1, 0);
    let (start, silent) = (Instant::now(), server.connect());
    let half: Vec<TcpStream> = (0..1_000)
        .map(|n| {
            let mut stream = server.connect();
            stream.write_all(&b"POST /api/v1/timings HTTP/1.1\r\nHost: 127.0.0.1\r\n"[..3 + n % 40]).unwrap();
            stream
        })
        .collect();
    let opened = start.elapsed();
    let mut slowest = Duration::ZERO;
    let mut taken = 1;
    within(Duration::from_secs(8) + opened, "half requests are closed", || {
        let sent = Instant::now();
        server.send(&[], ONE).taken(1, 0);
        taken += 1;
        slowest = slowest.max(sent.elapsed());
        half.iter().all(is_closed)
    });
    println!("1000 half requests (opened in {opened:?}) were closed after {:?}; the slowest of {taken} batches took {slowest:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(4), "they had their time");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(!is_closed(&silent), "nothing was promised yet");
    within(Duration::from_secs(12).saturating_sub(start.elapsed()), "a silent connection is closed", || is_closed(&silent));
    // It has waited twice as long as a head may take: between two requests that is nothing.
    ask(&mut kept, &server).taken(1, 0);
    assert_eq!(server.requests("shop"), taken + 1);
}

#[test]
fn one_connection_over_the_limit_is_closed_at_once() {
    let server = Server::start("[limits]\nconnections = 3\n", &[]);
    let mut kept: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
    for stream in &mut kept {
        ask(stream, &server).taken(1, 0);
    }
    let over = server.connect();
    within(Duration::from_secs(2), "one more is closed", || is_closed(&over));
    for stream in &mut kept {
        ask(stream, &server).taken(1, 0);
    }
    drop(kept.pop());
    within(Duration::from_secs(2), "there is room again", || {
        let stream = server.connect();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        matches!((&stream).read(&mut [0]), Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut))
    });
}
