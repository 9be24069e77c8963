//! Receivers that never die: a mailbox behind SMTP and a webhook, each remembering what it took.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test uses a part of it and fails by panicking")]

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mail_parser::MessageParser;

/// What was taken, by mail or webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `Message-ID` or `webhook-id`.
    pub id: String,
    /// A mail's `In-Reply-To`.
    pub reply_to: Option<String>,
    /// The incident that it is about.
    pub incident: String,
    /// Whether it says that it is over.
    pub resolved: bool,
    /// In which life of the sender the connection was opened.
    pub life: u64,
}

/// A receiver.
#[derive(Clone)]
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Receiver {
    /// A mail server that takes everything.
    pub fn mail(life: &Arc<AtomicU64>) -> Self {
        Self::start(life, take_mails)
    }

    /// A webhook that takes everything.
    pub fn webhook(life: &Arc<AtomicU64>) -> Self {
        Self::start(life, take_calls)
    }

    /// What it took, in order.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    fn start(life: &Arc<AtomicU64>, talk: fn(TcpStream, u64, &Mutex<Vec<Told>>) -> io::Result<()>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let receiver = Self { address: listener.local_addr().unwrap(), told: Arc::default() };
        let (life, told) = (Arc::clone(life), Arc::clone(&receiver.told));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (life, told) = (life.load(Ordering::SeqCst), Arc::clone(&told));
                // A sender that is killed ends the talk.
                std::thread::spawn(move || talk(stream, life, &told).ok());
            }
        });
        receiver
    }
}

fn take_mails(stream: TcpStream, life: u64, told: &Mutex<Vec<Told>>) -> io::Result<()> {
    let mut write = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    write.write_all(b"220 sink ESMTP\r\n")?;
    while let Some(line) = lines.next().transpose()? {
        let answer: &[u8] = match line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase().as_str() {
            "DATA" => {
                write.write_all(b"354 go on\r\n")?;
                let mut mail = String::new();
                loop {
                    match lines.next().transpose()? {
                        Some(line) if line == "." => break,
                        Some(line) => mail.extend([line.strip_prefix('.').unwrap_or(&line), "\r\n"]),
                        // Cut off: not taken.
                        None => return Ok(()),
                    }
                }
                told.lock().unwrap().push(read_mail(&mail, life));
                b"250 taken\r\n"
            }
            "QUIT" => b"221 bye\r\n",
            _ => b"250 ok\r\n",
        };
        write.write_all(answer)?;
    }
    Ok(())
}

fn read_mail(mail: &str, life: u64) -> Told {
    let mail = MessageParser::default().parse(mail.as_bytes()).unwrap();
    let text = mail.body_text(0).unwrap();
    let incident = text.split("/api/v1/incidents/").nth(1).unwrap().split_whitespace().next().unwrap();
    Told {
        id: mail.message_id().unwrap().to_owned(),
        reply_to: mail.in_reply_to().as_text().map(str::to_owned),
        incident: incident.to_owned(),
        resolved: mail.subject().unwrap().contains("[resolved]"),
        life,
    }
}

fn take_calls(stream: TcpStream, life: u64, told: &Mutex<Vec<Told>>) -> io::Result<()> {
    let mut write = stream.try_clone()?;
    let mut read = BufReader::new(stream);
    loop {
        let (mut id, mut length, mut line) = (String::new(), 0, String::new());
        while read.read_line(&mut line)? > 0 && line != "\r\n" {
            let (name, value) = line.trim_end().split_once(':').unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "webhook-id" => value.trim().clone_into(&mut id),
                "content-length" => length = value.trim().parse().unwrap(),
                _ => {}
            }
            line.clear();
        }
        if line.is_empty() {
            return Ok(());
        }
        let mut body = vec![0; length];
        read.read_exact(&mut body)?;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let incident = body["data"]["id"].as_str().unwrap().to_owned();
        told.lock().unwrap().push(Told { id, reply_to: None, incident, resolved: body["type"] == "incident.resolved", life });
        write.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
    }
}
