//! Which batches were taken already: by `Idempotency-Key` for strangers, by (sender, epoch, sequence) for senders that name themselves.
//!
//! A key is kept with its answer for a day; the position of its frame is that of its counts, so both are on disk or neither. A sender costs constant memory however
//! long it lives: the highest sequence and a window of the 1,024 below it for each of its last few epochs. What is older than the window is a
//! repeat, since a sender sends in order and gives up long before.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::time::Timestamp;

/// How long a key is kept, in milliseconds: a day, and the hour in which it is swept.
pub const KEEP_MS: i64 = 25 * 3_600_000;

/// Keys at one time.
pub const KEYS_MAX: usize = 4_000_000;

/// The longest key or sender id, in bytes.
pub const KEY_BYTES_MAX: usize = 128;

/// Senders at one time; beyond it the one that was silent the longest is forgotten.
pub const SENDERS_MAX: usize = 10_000;

const WINDOW: u64 = 1_024;
const EPOCHS_MAX: usize = 4;
const ANSWERS_MAX: usize = 32;

/// What was answered to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// When it was committed.
    pub at: Timestamp,
    /// The hash of its body.
    pub body: u64,
    /// Lines taken.
    pub accepted: u64,
    /// Lines refused.
    pub rejected: u64,
}

/// What `Slowburn-Sender` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// Its name.
    pub id: String,
    /// Its start.
    pub epoch: u64,
    /// The number of the batch.
    pub seq: u64,
    /// Timings that it dropped since its start.
    pub dropped: u64,
    /// Since its start, in seconds.
    pub uptime_s: u64,
}

impl Sender {
    /// Reads `ID; epoch=E; seq=N; dropped=D; uptime=S`; unknown parameters are passed over.
    ///
    /// # Errors
    /// With what was expected.
    pub fn parse(header: &str) -> Result<Self, String> {
        let mut parts = header.split(';').map(str::trim);
        let id = parts.next().unwrap_or("").to_owned();
        if id.is_empty() || id.len() > KEY_BYTES_MAX || id.chars().any(char::is_control) {
            return Err(format!("Slowburn-Sender: expected an id of 1 to {KEY_BYTES_MAX} bytes before the first `;`"));
        }
        let (mut epoch, mut seq, mut dropped, mut uptime_s) = (None, None, 0, 0);
        for part in parts.filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("Slowburn-Sender: `{part}` is not NAME=NUMBER"))?;
            let number = || value.trim().parse::<u64>().map_err(|_| format!("Slowburn-Sender: `{part}` is not NAME=NUMBER"));
            match name.trim() {
                "epoch" => epoch = Some(number()?),
                "seq" => seq = Some(number()?),
                "dropped" => dropped = number()?,
                "uptime" => uptime_s = number()?,
                _ => {}
            }
        }
        match (epoch, seq) {
            (Some(epoch), Some(seq)) => Ok(Self { id, epoch, seq, dropped, uptime_s }),
            _ => Err("Slowburn-Sender: expected `epoch` and `seq`".to_owned()),
        }
    }
}

/// By what a batch is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nothing: each arrival counts.
    None,
    /// The hash of an `Idempotency-Key` and its scope.
    Key(u128),
    /// A sender's own count.
    Sender(Sender),
}

/// A batch as committed, in the frame of its counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The key, if it had one.
    pub key: Option<u128>,
    /// The sender, if it named itself.
    pub sender: Option<Sender>,
    /// What was answered.
    pub answer: Answered,
}

/// What is known of a batch that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is new.
    New,
    /// It was taken, with this answer if it is still kept.
    Repeat(Option<Answered>),
    /// The same key came with another body.
    OtherBody,
    /// There is no room for another key.
    Full,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Epoch {
    start: u64,
    highest: u64,
    /// Bit `n`: `highest - n` was taken.
    window: Vec<u64>,
    answers: VecDeque<(u64, Answered)>,
    last_seen: Timestamp,
}

/// A sender as far as people need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct SenderState {
    epochs: Vec<Epoch>,
    /// When a batch of it came last.
    pub last_seen: Timestamp,
    /// What it said it dropped in all its lives.
    pub dropped: u64,
    dropped_by_epoch: BTreeMap<u64, u64>,
    /// How often two processes were seen under the one name.
    pub conflicts: u64,
    /// Of its last batch, in seconds.
    pub uptime_s: u64,
}

/// The senders, and what is counted over all of them, those that are forgotten too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Senders {
    by_id: BTreeMap<String, SenderState>,
    dropped: u64,
    conflicts: u64,
}

/// All keys and senders.
#[derive(Debug, Default)]
pub struct BatchKeys {
    keys: HashMap<u128, Answered>,
    by_age: VecDeque<(Timestamp, u128)>,
    senders: Senders,
}

/// The key of a batch: of the header's text and the scope of its token.
#[must_use]
pub fn key_of(scope: &str, text: &str) -> u128 {
    let hash = Sha256::new().chain_update((scope.len() as u64).to_le_bytes()).chain_update(scope).chain_update(text).finalize();
    u128::from_le_bytes(hash[..16].try_into().expect("a SHA-256 has 32 bytes"))
}

/// The hash by which bodies are compared.
#[must_use]
pub fn body_hash(body: &[u8]) -> u64 {
    u64::from_le_bytes(Sha256::digest(body)[..8].try_into().expect("a SHA-256 has 32 bytes"))
}

impl BatchKeys {
    /// Whether a batch is new.
    #[must_use]
    pub fn look(&self, identity: &Identity, body: u64) -> Known {
        let repeat = |answer: &Answered| if answer.body == body { Known::Repeat(Some(*answer)) } else { Known::OtherBody };
        match identity {
            Identity::None => Known::New,
            Identity::Key(key) => match self.keys.get(key) {
                Some(answer) => repeat(answer),
                None if self.keys.len() >= KEYS_MAX => Known::Full,
                None => Known::New,
            },
            Identity::Sender(sender) => {
                let epoch = self.senders.by_id.get(&sender.id).and_then(|s| s.epochs.iter().find(|e| e.start == sender.epoch));
                match epoch {
                    Some(epoch) if epoch.has(sender.seq) => {
                        epoch.answers.iter().find(|(seq, _)| *seq == sender.seq).map_or(Known::Repeat(None), |(_, a)| repeat(a))
                    }
                    _ => Known::New,
                }
            }
        }
    }

    /// Takes a committed batch in.
    pub fn apply(&mut self, committed: &Committed) {
        let at = committed.answer.at;
        if let Some(key) = committed.key
            && self.keys.insert(key, committed.answer).is_none()
        {
            self.by_age.push_back((at, key));
        }
        if let Some(sender) = &committed.sender {
            self.apply_sender(sender, committed.answer);
        }
    }

    fn apply_sender(&mut self, sender: &Sender, answer: Answered) {
        let Senders { by_id, dropped, conflicts } = &mut self.senders;
        if !by_id.contains_key(&sender.id)
            && by_id.len() >= SENDERS_MAX
            && let Some(oldest) = by_id.iter().min_by_key(|(_, s)| s.last_seen).map(|(id, _)| id.clone())
        {
            by_id.remove(&oldest);
        }
        let state = by_id.entry(sender.id.clone()).or_default();
        // A batch of an older start after one of a newer, or two bodies under one number: two processes use the name.
        let other_body = state.took_other_body(sender, answer.body);
        if other_body || state.is_behind(sender.epoch) {
            state.conflicts += 1;
            *conflicts += 1;
        }
        if other_body {
            return;
        }
        state.last_seen = state.last_seen.max(answer.at);
        state.uptime_s = sender.uptime_s;
        let said = state.dropped_by_epoch.entry(sender.epoch).or_default();
        let more = sender.dropped.saturating_sub(*said);
        state.dropped += more;
        *dropped += more;
        *said = sender.dropped.max(*said);
        if !state.epochs.iter().any(|e| e.start == sender.epoch) {
            if state.epochs.len() >= EPOCHS_MAX {
                let oldest = state.epochs.iter().enumerate().min_by_key(|(_, e)| e.last_seen).map_or(0, |(i, _)| i);
                let gone = state.epochs.remove(oldest);
                state.dropped_by_epoch.remove(&gone.start);
            }
            state.epochs.push(Epoch { start: sender.epoch, window: vec![0; (WINDOW / 64) as usize], ..Epoch::default() });
        }
        if let Some(epoch) = state.epochs.iter_mut().find(|e| e.start == sender.epoch) {
            epoch.take(sender.seq, answer);
        }
    }

    /// Forgets keys older than [`KEEP_MS`]; says which.
    pub fn sweep(&mut self, now: Timestamp) -> Vec<u128> {
        let mut gone = Vec::new();
        while let Some(&(at, key)) = self.by_age.front().filter(|(at, _)| at.0 + KEEP_MS < now.0) {
            self.by_age.pop_front();
            if self.keys.get(&key).is_some_and(|a| a.at == at) {
                self.keys.remove(&key);
                gone.push(key);
            }
        }
        gone
    }

    /// The senders by name.
    #[must_use]
    pub fn senders(&self) -> &BTreeMap<String, SenderState> {
        &self.senders.by_id
    }

    /// Timings that all senders ever said they dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.senders.dropped
    }

    /// How often two processes were seen under one name, ever.
    #[must_use]
    pub fn conflicts(&self) -> u64 {
        self.senders.conflicts
    }

    /// The keys there are, for the index and for comparing.
    #[must_use]
    pub fn keys(&self) -> &HashMap<u128, Answered> {
        &self.keys
    }

    /// What the snapshot keeps; keys are kept by the index.
    #[must_use]
    pub fn senders_snapshot(&self) -> Senders {
        self.senders.clone()
    }

    /// Puts other senders in the place of those known.
    pub fn set_senders(&mut self, senders: Senders) {
        self.senders = senders;
    }

    /// The senders alone.
    #[must_use]
    pub fn into_senders(self) -> Senders {
        self.senders
    }

    /// From the snapshot's senders and the index's keys.
    #[must_use]
    pub fn restore(senders: Senders, keys: Vec<(u128, Answered)>) -> Self {
        let mut by_age: Vec<(Timestamp, u128)> = keys.iter().map(|(key, a)| (a.at, *key)).collect();
        by_age.sort_unstable();
        Self { keys: keys.into_iter().collect(), by_age: by_age.into(), senders }
    }
}

impl SenderState {
    /// Whether a batch of that start would come after one of a newer start.
    #[must_use]
    pub fn is_behind(&self, epoch: u64) -> bool {
        self.epochs.iter().any(|e| e.start > epoch)
    }

    /// Whether that number was taken with another body. Such a batch is in the log for its conflict alone.
    fn took_other_body(&self, sender: &Sender, body: u64) -> bool {
        let taken = self.epochs.iter().find(|e| e.start == sender.epoch).and_then(|e| e.answers.iter().find(|(seq, _)| *seq == sender.seq));
        taken.is_some_and(|(_, answer)| answer.body != body)
    }
}

impl Epoch {
    fn has(&self, seq: u64) -> bool {
        if self.last_seen == Timestamp::default() || seq > self.highest {
            return false;
        }
        let back = self.highest - seq;
        back >= WINDOW || self.window[(back / 64) as usize] & (1 << (back % 64)) != 0
    }

    fn take(&mut self, seq: u64, answer: Answered) {
        if seq > self.highest || self.last_seen == Timestamp::default() {
            let by = if self.last_seen == Timestamp::default() { WINDOW } else { seq - self.highest };
            self.shift(by);
            self.highest = seq;
        }
        let back = self.highest - seq;
        if back < WINDOW {
            self.window[(back / 64) as usize] |= 1 << (back % 64);
        }
        self.last_seen = self.last_seen.max(answer.at);
        self.answers.push_back((seq, answer));
        if self.answers.len() > ANSWERS_MAX {
            self.answers.pop_front();
        }
    }

    fn shift(&mut self, by: u64) {
        if by >= WINDOW {
            self.window.fill(0);
            return;
        }
        let (words, bits) = ((by / 64) as usize, by % 64);
        for i in (0..self.window.len()).rev() {
            let from = i.checked_sub(words).map_or(0, |j| self.window[j]);
            let carried = if bits == 0 { 0 } else { i.checked_sub(words + 1).map_or(0, |j| self.window[j] >> (64 - bits)) };
            self.window[i] = (from << bits) | carried;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn answer(body: u64) -> Answered {
        Answered { at: Timestamp(1_000), body, accepted: 1, rejected: 0 }
    }

    fn sender(epoch: u64, seq: u64) -> Sender {
        Sender { id: "a".into(), epoch, seq, dropped: 0, uptime_s: 0 }
    }

    fn commit(keys: &mut BatchKeys, sender: Sender, body: u64) {
        keys.apply(&Committed { key: None, sender: Some(sender), answer: answer(body) });
    }

    proptest! {
        #[test]
        fn the_window_knows_what_a_set_knows(seqs in prop::collection::vec(1u64..3_000, 1..200)) {
            let (mut keys, mut set) = (BatchKeys::default(), BTreeSet::new());
            for seq in seqs {
                let known = keys.look(&Identity::Sender(sender(1, seq)), seq) != Known::New;
                let highest = set.last().copied().unwrap_or(0);
                prop_assert_eq!(known, set.contains(&seq) || seq + WINDOW <= highest, "seq {} highest {}", seq, highest);
                if !known {
                    commit(&mut keys, sender(1, seq), seq);
                    set.insert(seq);
                }
            }
        }
    }

    #[test]
    fn a_repeat_gives_the_first_answer_and_another_body_is_told_apart() {
        let mut keys = BatchKeys::default();
        let key = key_of("", "k");
        keys.apply(&Committed { key: Some(key), sender: None, answer: answer(7) });
        assert_eq!(keys.look(&Identity::Key(key), 7), Known::Repeat(Some(answer(7))));
        assert_eq!(keys.look(&Identity::Key(key), 8), Known::OtherBody);
        assert_eq!(keys.look(&Identity::Key(key_of("token", "k")), 8), Known::New);
        assert_eq!(keys.sweep(Timestamp(1_000 + KEEP_MS)), []);
        assert_eq!(keys.sweep(Timestamp(1_001 + KEEP_MS)), [key]);
        assert_eq!(keys.look(&Identity::Key(key), 8), Known::New);
    }

    #[test]
    fn two_processes_with_one_name_are_noticed_and_a_restart_is_not_one() {
        let mut keys = BatchKeys::default();
        commit(&mut keys, sender(1, 1), 1);
        commit(&mut keys, sender(2, 1), 2);
        assert_eq!(keys.senders()["a"].conflicts, 0);
        commit(&mut keys, sender(1, 2), 3);
        assert_eq!(keys.senders()["a"].conflicts, 1);
        commit(&mut keys, sender(1, 2), 4);
        assert_eq!((keys.senders()["a"].conflicts, keys.conflicts()), (2, 2));
        assert_eq!(keys.look(&Identity::Sender(sender(1, 2)), 3), Known::Repeat(Some(answer(3))));
    }

    #[test]
    fn what_a_sender_dropped_is_counted_once() {
        let mut keys = BatchKeys::default();
        for (epoch, seq, dropped) in [(1, 1, 0), (1, 2, 5), (1, 3, 5), (2, 1, 2)] {
            commit(&mut keys, Sender { dropped, ..sender(epoch, seq) }, 1);
        }
        assert_eq!((keys.senders()["a"].dropped, keys.dropped()), (7, 7));
    }

    #[test]
    fn the_header_is_read() {
        let read = Sender::parse("shop-1; epoch=17; seq=3; dropped=2; uptime=60").unwrap();
        assert_eq!(read, Sender { id: "shop-1".into(), epoch: 17, seq: 3, dropped: 2, uptime_s: 60 });
        for header in ["", "; epoch=1; seq=1", "a; epoch=1", "a; epoch=x; seq=1", "a; seq"] {
            assert!(Sender::parse(header).is_err(), "{header}");
        }
    }
}
