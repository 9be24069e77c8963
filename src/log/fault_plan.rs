//! What a test wants of the disk: the N-th operation in a folder fails, and every operation there is recorded. Compiled into debug builds only.
//!
//! A plan belongs to a folder, so that tests beside each other do not meet. A process takes one for all folders from
//! `SLOWBURN_FAIL_AT=OPERATION:N:ERROR[:lasting]`, for instance `append:12:ENOSPC:lasting` or `any:3:EIO`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;

use super::disk_ops::Operation;

/// An operation that was done.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its kind.
    pub operation: Operation,
    /// To what.
    pub path: PathBuf,
    /// The name before.
    pub renamed_from: Option<PathBuf>,
    /// Where bytes were added, or cut off.
    pub offset: u64,
    /// The bytes added.
    pub bytes: Vec<u8>,
}

impl Event {
    pub(super) fn of(operation: Operation, path: &Path) -> Self {
        Self { operation, path: path.to_owned(), renamed_from: None, offset: 0, bytes: Vec::new() }
    }
}

/// What is to fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Only operations of this kind are counted; without one, all that can fail with this error, but for the index.
    pub operation: Option<Operation>,
    /// How many are to be done before.
    pub after: u64,
    /// With which error.
    pub error: Errno,
    /// Those that follow fail too.
    pub lasting: bool,
    /// Of an append, so many bytes are written all the same.
    pub bytes_done: usize,
}

impl Fault {
    /// The next operation that can fail with this error, once.
    #[must_use]
    pub fn once(error: Errno) -> Self {
        Self { operation: None, after: 0, error, lasting: false, bytes_done: 0 }
    }

    fn concerns(&self, operation: Operation) -> bool {
        let takes_room = matches!(operation, Operation::Append | Operation::Create | Operation::CreateDir);
        let is_ours = operation != Operation::IndexWrite;
        self.operation.map_or(is_ours && (self.error != Errno::NOSPC || takes_room), |o| o == operation)
    }

    fn parse(setting: &str) -> Option<Self> {
        let mut parts = setting.split(':');
        let operation = match parts.next()? {
            "any" => None,
            "create" => Some(Operation::Create),
            "append" => Some(Operation::Append),
            "sync" => Some(Operation::Sync),
            "sync_dir" => Some(Operation::SyncDir),
            "rename" => Some(Operation::Rename),
            "index" => Some(Operation::IndexWrite),
            _ => return None,
        };
        let after = parts.next()?.parse::<u64>().ok()?.checked_sub(1)?;
        let error = match parts.next()? {
            "EIO" => Errno::IO,
            "ENOSPC" => Errno::NOSPC,
            _ => return None,
        };
        Some(Self { operation, after, error, lasting: parts.next() == Some("lasting"), bytes_done: 7 })
    }
}

#[derive(Debug, Default)]
struct Plan {
    fault: Option<Fault>,
    fired: u64,
    /// To what, and after how many events.
    failed: Vec<(Operation, PathBuf, usize)>,
    events: Vec<Event>,
}

impl Plan {
    /// The error that the operation is to fail with, and how many bytes are written all the same.
    fn verdict(&mut self, operation: Operation, path: &Path) -> Option<(Errno, usize)> {
        let fault = self.fault.as_mut().filter(|f| f.concerns(operation))?;
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        let (error, bytes_done) = (fault.error, fault.bytes_done);
        if !fault.lasting {
            self.fault = None;
        }
        self.fired += 1;
        self.failed.push((operation, path.to_owned(), self.events.len()));
        Some((error, bytes_done))
    }
}

type Shared = Arc<Mutex<Plan>>;

static WATCHED: Mutex<Vec<(PathBuf, Shared)>> = Mutex::new(Vec::new());
static WATCHED_COUNT: AtomicUsize = AtomicUsize::new(0);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder that is watched until this is dropped.
#[derive(Debug)]
pub struct Watch {
    plan: Shared,
}

/// Watches a folder and all below it.
#[must_use]
pub fn watch(dir: &Path) -> Watch {
    let plan = Shared::default();
    locked(&WATCHED).push((dir.to_owned(), Arc::clone(&plan)));
    WATCHED_COUNT.fetch_add(1, Ordering::SeqCst);
    Watch { plan }
}

impl Watch {
    /// Has something fail.
    pub fn fail(&self, fault: Fault) {
        locked(&self.plan).fault = Some(fault);
    }

    /// Has nothing fail any more.
    pub fn heal(&self) {
        locked(&self.plan).fault = None;
    }

    /// How many operations failed.
    #[must_use]
    pub fn fired(&self) -> u64 {
        locked(&self.plan).fired
    }

    /// Which operations failed: to what, and after how many that were done.
    #[must_use]
    pub fn failed(&self) -> Vec<(Operation, PathBuf, usize)> {
        locked(&self.plan).failed.clone()
    }

    /// How many operations were done.
    #[must_use]
    pub fn operations(&self) -> usize {
        locked(&self.plan).events.len()
    }

    /// What was done so far, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        locked(&self.plan).events.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        locked(&WATCHED).retain(|(_, plan)| !Arc::ptr_eq(plan, &self.plan));
        WATCHED_COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

fn plan_of(path: &Path) -> Option<Shared> {
    if WATCHED_COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    locked(&WATCHED).iter().find(|(dir, _)| path.starts_with(dir)).map(|(_, plan)| Arc::clone(plan))
}

/// The plan of the whole process.
fn of_process() -> Option<&'static Mutex<Plan>> {
    static PLAN: OnceLock<Option<Mutex<Plan>>> = OnceLock::new();
    let read = || {
        let fault = Fault::parse(&std::env::var("SLOWBURN_FAIL_AT").ok()?)?;
        Some(Mutex::new(Plan { fault: Some(fault), ..Plan::default() }))
    };
    PLAN.get_or_init(read).as_ref()
}

fn verdict(operation: Operation, path: &Path) -> Option<(Errno, usize)> {
    if let Some(verdict) = of_process().and_then(|plan| locked(plan).verdict(operation, path)) {
        // The test reads this line to know that the fault fired.
        eprintln!("failed {operation:?} of {}: {}", path.display(), verdict.0);
        return Some(verdict);
    }
    plan_of(path).and_then(|plan| locked(&plan).verdict(operation, path))
}

pub(super) fn before(operation: Operation, path: &Path) -> io::Result<()> {
    verdict(operation, path).map_or(Ok(()), |(error, _)| Err(error.into()))
}

pub(super) fn before_append(path: &Path) -> Result<(), (io::Error, usize)> {
    verdict(Operation::Append, path).map_or(Ok(()), |(error, bytes_done)| Err((error.into(), bytes_done)))
}

pub(super) fn after(event: Event) {
    if let Some(plan) = plan_of(&event.path) {
        locked(&plan).events.push(event);
    }
}
