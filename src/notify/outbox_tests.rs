//! Tests of the lanes on paused time, against receivers that follow a script. No socket is opened here.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;
use crate::incident::Event;
use crate::notify::tests::notification;

type Play = Arc<dyn Fn(Notification, Timestamp) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// A receiver that behaves as a test says.
#[derive(Clone)]
pub struct Script {
    pub(in crate::notify) recipients: Vec<String>,
    pub(in crate::notify) play: Play,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

const START: Timestamp = Timestamp(1_766_534_400_000);

/// What was tried and what was reported, with the second at which it was.
type Seen = Arc<Mutex<Vec<(u64, String)>>>;

struct World {
    lanes: Lanes,
    tasks: JoinSet<()>,
    tried: Seen,
    ended: Seen,
    begun: Instant,
}

/// Lanes over receivers whose answer depends on the notification and the number of its attempt (from 1).
fn world(receivers: &[(&str, &[&str])], answer: impl Fn(&Notification, usize) -> Result<(), Failure> + Send + Sync + 'static) -> World {
    #[expect(clippy::disallowed_methods, reason = "tokio's own clock, which is paused here")]
    let begun = Instant::now();
    let clock: Clock = Arc::new(move || START.plus_ms(i64::try_from(begun.elapsed().as_millis()).unwrap()));
    let (tried, ended) = (Seen::default(), Seen::default());
    let (attempts, ends) = (Arc::clone(&tried), Arc::clone(&ended));
    let play: Play = Arc::new(move |told, now| {
        let mut attempts = attempts.lock().unwrap();
        let key = format!("{} {}", told.recipient, told.id);
        attempts.push((u64::try_from((now.0 - START.0) / 1000).unwrap(), key.clone()));
        let answer = answer(&told, attempts.iter().filter(|(_, k)| *k == key).count());
        Box::pin(async move { answer })
    });
    let report: Report = Arc::new(move |id, result, detail| {
        let ends = Arc::clone(&ends);
        Box::pin(async move {
            // A receipt takes a moment to be durable.
            sleep(Duration::from_millis(10)).await;
            ends.lock().unwrap().push((begun.elapsed().as_secs(), format!("{id} {} {detail}", result.name()).trim_end().to_owned()));
        })
    });
    let targets = receivers.iter().map(|(name, to)| {
        let recipients = to.iter().map(|t| (*t).to_owned()).collect();
        ((*name).to_owned(), Target::Script(Script { recipients, play: Arc::clone(&play) }))
    });
    let mut tasks = JoinSet::new();
    let lanes = Lanes::new(targets.collect(), &clock, 7, |_, task| drop(tasks.spawn(task)), &report);
    World { lanes, tasks, tried, ended, begun }
}

impl World {
    fn push(&self, receiver: &str, recipient: &str, id: &str) {
        let told = Notification { receiver: receiver.to_owned(), recipient: recipient.to_owned(), ..notification(id, Event::Opened) };
        self.lanes.push(told);
    }

    async fn until(&self, second: u64) {
        tokio::time::sleep_until(self.begun + Duration::from_secs(second)).await;
    }

    fn tried(&self) -> Vec<String> {
        self.tried.lock().unwrap().iter().map(|(_, key)| key.trim().to_owned()).collect()
    }

    fn ended(&self) -> Vec<String> {
        self.ended.lock().unwrap().iter().map(|(_, key)| key.clone()).collect()
    }

    fn status(&self, receiver: &str) -> LaneStatus {
        self.lanes.status().into_iter().find(|s| s.receiver == receiver).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolve_never_overtakes_its_page() {
    let world = world(&[("bot", &[])], |told, attempt| if told.id == "page" && attempt < 4 { Err(Failure::temporary("busy")) } else { Ok(()) });
    world.push("bot", "", "page");
    world.push("bot", "", "resolve");
    world.until(60).await;
    assert_eq!(world.tried(), ["page", "page", "page", "page", "resolve"]);
    assert_eq!(world.ended(), ["page sent", "resolve sent"]);
    let status = world.status("bot");
    assert_eq!((status.attempts, status.failures, status.queued, status.last_error), (5, 3, 0, None));
}

#[tokio::test(start_paused = true)]
async fn a_dead_destination_delays_no_other() {
    let world = world(&[("bot", &[]), ("mail", &["a", "b"])], |told, _| if told.id.starts_with("dead") { Err(Failure::temporary("gone")) } else { Ok(()) });
    world.push("bot", "", "dead1");
    world.push("mail", "a", "dead2");
    world.push("mail", "b", "alive");
    world.push("mail", "taken out", "kept");
    world.until(1).await;
    assert_eq!(world.ended(), ["kept sent", "alive sent"]);
    assert_eq!(world.status("bot").last_error.as_deref(), Some("gone"));
    assert_eq!(world.status("bot").queued, 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_day_it_expires_with_its_last_error_and_the_next_is_tried() {
    let world = world(&[("bot", &[])], |told, _| if told.id == "page" { Err(Failure::temporary("no route")) } else { Ok(()) });
    world.push("bot", "", "page");
    world.until(86_399).await;
    assert!(world.ended().is_empty());
    let tries = world.tried().len();
    assert!((288..1500).contains(&tries), "about every 150 s on average: {tries}");
    world.until(86_401).await;
    assert_eq!(world.ended(), ["page expired no route"]);
    world.push("bot", "", "late");
    world.until(86_402).await;
    assert_eq!(world.ended()[1], "late expired its day was over before it could be tried");
}

#[tokio::test(start_paused = true)]
async fn refusals_are_final_and_the_lane_goes_on() {
    let world = world(&[("bot", &[])], |told, _| if told.id == "page" { Err(Failure::permanent("410 Gone")) } else { Ok(()) });
    for (receiver, id) in [("bot", "page"), ("bot", "next"), ("nobody", "lost")] {
        world.push(receiver, "", id);
    }
    world.until(1).await;
    let mut ended = world.ended();
    ended.sort();
    assert_eq!(ended, ["lost refused the configuration knows no such receiver", "next sent", "page refused 410 Gone"]);
    assert_eq!(world.tried(), ["page", "next"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_receiver_asks_for_is_obeyed() {
    let world = world(&[("bot", &[])], |_, attempt| {
        let asked = Some(Duration::from_secs(600));
        if attempt == 1 { Err(Failure { retry_after: asked, ..Failure::temporary("429") }) } else { Ok(()) }
    });
    world.push("bot", "", "page");
    world.until(599).await;
    assert_eq!(world.tried().len(), 1);
    world.until(601).await;
    assert_eq!(world.ended(), ["page sent"]);
}

#[tokio::test(start_paused = true)]
async fn a_push_that_is_repeated_counts_once() {
    let world = world(&[("bot", &[])], |_, attempt| if attempt == 1 { Err(Failure::temporary("busy")) } else { Ok(()) });
    world.push("bot", "", "page");
    world.push("bot", "", "page");
    world.until(0).await;
    tokio::task::yield_now().await;
    world.push("bot", "", "page");
    world.until(10).await;
    assert_eq!(world.ended(), ["page sent"]);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_every_task_and_reports_nothing_unsent() {
    let mut world = world(&[("bot", &[]), ("mail", &["a"])], |_, _| Err(Failure::temporary("busy")));
    world.push("bot", "", "page");
    world.push("mail", "a", "page");
    world.until(300).await;
    world.lanes.close();
    while let Some(ended) = world.tasks.join_next().await {
        ended.unwrap();
    }
    assert!(world.begun.elapsed() < Duration::from_secs(301));
    assert!(world.ended().is_empty());
    world.push("bot", "", "later");
}
