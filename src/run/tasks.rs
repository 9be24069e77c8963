//! Tasks start here and nowhere else: each has a name, and its end is noticed.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{debug, warn};

/// The tasks of the process.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    running: Arc<Mutex<JoinSet<()>>>,
}

impl Tasks {
    /// Starts a task; it ends by itself when what it listens to ends. Must be called inside the runtime.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that starts tasks")]
    pub fn spawn(&self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let name = name.into();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended are let go of, so that the set does not grow with connections.
        while running.try_join_next().is_some() {}
        running.spawn(async move {
            let inner = tokio::spawn(task);
            match inner.await {
                Ok(()) => debug!(task = name, "ended"),
                Err(error) => warn!(task = name, %error, "ended badly"),
            }
        });
    }

    /// Waits until all tasks have ended; those that take longer than `limit` are cut off.
    pub async fn drain(&self, limit: Duration) {
        let mut running = std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            warn!("some tasks did not end in time and are cut off");
        }
    }
}
