//! Batches that Slowburn has not yet acknowledged, in order, within a limit of bytes. When a new one does not fit, the oldest
//! goes and its timings are counted as dropped; only the one that is being sent at this moment stays.
//!
//! A batch is complete when it is first sent: then the line of running requests is added, since ages are only true when they
//! are told. From then on its number and its bytes never change, so that a repeat can be recognised.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::batch::Lines;

/// What a batch costs beside its body; it keeps many empty batches from being free.
const BATCH_OVERHEAD_BYTES: usize = 256;

/// A batch as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) seq: u64,
    pub(crate) body: Bytes,
    pub(crate) timings: u64,
    sent_before: bool,
}

#[derive(Debug)]
pub(crate) struct Queue {
    batches: VecDeque<Batch>,
    bytes: usize,
    bytes_limit: usize,
    seq_next: u64,
    sending: bool,
}

impl Queue {
    pub(crate) fn new(bytes_limit: usize) -> Self {
        Self { batches: VecDeque::new(), bytes: 0, bytes_limit, seq_next: 1, sending: false }
    }

    /// Returns the number of timings that had to go.
    #[must_use]
    pub(crate) fn push(&mut self, lines: Lines) -> u64 {
        let cost = lines.body.len() + BATCH_OVERHEAD_BYTES;
        let mut dropped = 0;
        while self.bytes + cost > self.bytes_limit {
            let Some(oldest) = self.batches.remove(usize::from(self.sending)) else {
                return dropped + lines.timings;
            };
            self.bytes -= cost_of(&oldest);
            dropped += oldest.timings;
        }
        // A boxed slice has no spare room that the limit would not see.
        let body = Bytes::from(lines.body.into_boxed_slice());
        self.bytes += cost;
        self.batches.push_back(Batch { seq: self.seq_next, body, timings: lines.timings, sent_before: false });
        self.seq_next += 1;
        dropped
    }

    /// The oldest batch, for an attempt. At its first, the line of running requests is added if it fits.
    pub(crate) fn begin_attempt(&mut self, in_flight: impl FnOnce() -> Vec<u8>) -> Option<Batch> {
        let head = self.batches.front_mut()?;
        self.sending = true;
        if !head.sent_before {
            head.sent_before = true;
            let line = in_flight();
            if !line.is_empty() && self.bytes + line.len() <= self.bytes_limit {
                self.bytes += line.len();
                head.body = [head.body.as_ref(), &line].concat().into();
            }
        }
        Some(head.clone())
    }

    /// The attempt failed and the batch stays.
    pub(crate) fn keep(&mut self) {
        self.sending = false;
    }

    /// The attempt ended the batch's stay; returns its timings.
    pub(crate) fn remove_sent(&mut self) -> u64 {
        self.sending = false;
        let Some(head) = self.batches.pop_front() else {
            return 0;
        };
        self.bytes -= cost_of(&head);
        head.timings
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.batches.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn timings(&self) -> u64 {
        self.batches.iter().map(|batch| batch.timings).sum()
    }
}

fn cost_of(batch: &Batch) -> usize {
    batch.body.len() + BATCH_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: usize, timings: u64) -> Lines {
        Lines { body: vec![b'x'; bytes], timings }
    }

    fn seqs(queue: &Queue) -> Vec<u64> {
        queue.batches.iter().map(|batch| batch.seq).collect()
    }

    #[test]
    fn the_oldest_goes_and_is_counted() {
        let mut queue = Queue::new(3 * (100 + BATCH_OVERHEAD_BYTES));
        assert_eq!((1..=3).map(|n| queue.push(lines(100, n))).sum::<u64>(), 0);
        assert_eq!(queue.push(lines(100, 4)), 1);
        assert_eq!(queue.push(lines(150, 5)), 2 + 3);
        assert_eq!(seqs(&queue), [4, 5]);
        assert_eq!(queue.timings(), 9);
        assert_eq!(queue.push(lines(100_000, 7)), 16, "one that can never fit empties the queue and goes too");
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn the_batch_that_is_being_sent_stays() {
        let mut queue = Queue::new(2 * (100 + BATCH_OVERHEAD_BYTES));
        assert_eq!(queue.push(lines(100, 1)) + queue.push(lines(100, 2)), 0);
        assert_eq!(queue.begin_attempt(Vec::new).unwrap().seq, 1);
        assert_eq!(queue.push(lines(100, 3)), 2);
        assert_eq!(seqs(&queue), [1, 3]);
        queue.keep();
        assert_eq!(queue.push(lines(100, 4)), 1);
        assert_eq!(seqs(&queue), [3, 4]);
    }

    #[test]
    fn a_batch_never_changes_after_its_first_attempt() {
        let mut queue = Queue::new(10_000);
        assert_eq!(queue.push(lines(3, 1)), 0);
        let first = queue.begin_attempt(|| b"ages".to_vec()).unwrap();
        assert_eq!(first.body, "xxxages");
        queue.keep();
        let again = queue.begin_attempt(|| b"other".to_vec()).unwrap();
        assert_eq!((again.seq, again.body), (first.seq, first.body));
        assert_eq!(queue.remove_sent(), 1);
        assert_eq!(queue.bytes(), 0);
        assert!(queue.begin_attempt(Vec::new).is_none());
    }

    #[test]
    fn under_random_use_the_bytes_are_those_of_the_batches_and_within_the_limit() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut queue = Queue::new(20_000);
        let (mut pushed, mut dropped, mut sent) = (0, 0, 0);
        for _ in 0..20_000 {
            if rng.u8(..4) > 0 {
                let timings = rng.u64(0..100);
                pushed += timings;
                dropped += queue.push(lines(rng.usize(0..4_000), timings));
            } else if queue.begin_attempt(|| vec![b'y'; rng.usize(0..500)]).is_some() {
                if rng.bool() {
                    queue.keep();
                } else {
                    sent += queue.remove_sent();
                }
            }
            assert!(queue.bytes() <= 20_000);
            assert_eq!(queue.bytes(), queue.batches.iter().map(cost_of).sum::<usize>());
            assert_eq!(pushed, dropped + sent + queue.timings());
        }
    }
}
