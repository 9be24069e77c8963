//! The metrics of what is sent to receivers of remote-write.

use super::queue::{Fate, Queue};
use crate::show::family::{Family, float, label};
use crate::time::Timestamp;

pub(in crate::show) fn of_queues<'a>(queues: impl Iterator<Item = &'a Queue>, now: Timestamp) -> Vec<Family> {
    let gauge = |name: &str, help: &str| Family::gauge(&format!("slowburn_process_remote_write_{name}"), help);
    let mut samples = gauge("samples", "Samples for remote-write receivers that ended since the process started, by how.");
    let mut histograms = gauge("histograms", "Native histograms for remote-write receivers that ended since the process started, by how.");
    let mut requests = gauge("requests", "Attempts at remote-write requests since the process started, by status or error.");
    let mut bytes = gauge("sent_bytes", "Bytes of the bodies of all attempts at remote-write requests since the process started.");
    let mut waiting = gauge("queue_requests", "Requests that wait for a remote-write receiver.");
    let mut waiting_bytes = gauge("queue_bytes", "Bytes that wait for a remote-write receiver.");
    let mut lag = gauge("lag_seconds", "The age of the oldest samples that wait for a remote-write receiver; 0 when none wait.");
    let mut missed = gauge("missed_rounds", "Moments of which nothing was taken for a remote-write receiver since the process started, for lack of room.");
    for queue in queues {
        let remote = || label("remote", &queue.name);
        for fate in Fate::ALL {
            let (numbers, native) = queue.ended(fate);
            samples.add(vec![remote(), label("result", fate.name())], float(numbers));
            histograms.add(vec![remote(), label("result", fate.name())], float(native));
        }
        for (answer, count) in queue.answers() {
            requests.add(vec![remote(), label("answer", &answer)], float(count));
        }
        let length = queue.length();
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of an outage are far below 2^53")]
        let age = length.oldest.map_or(0.0, |oldest| (now.0 - oldest.0).max(0) as f64 / 1000.0);
        lag.add(vec![remote()], age);
        for (family, value) in
            [(&mut bytes, queue.sent_bytes()), (&mut waiting, length.requests), (&mut waiting_bytes, length.bytes), (&mut missed, queue.missed_rounds())]
        {
            family.add(vec![remote()], float(value));
        }
    }
    vec![samples, histograms, requests, bytes, waiting, waiting_bytes, lag, missed]
}
