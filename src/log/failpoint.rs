//! Places where a test can have the process killed, to prove that nothing acknowledged is lost there.
//!
//! `SLOWBURN_KILL_AT=NAME:N` aborts at the N-th passage of the place. Compiled into debug builds only.

/// Aborts the process if a test asked for it at this place.
#[inline]
pub fn pass(name: &'static str) {
    #[cfg(debug_assertions)]
    armed::pass(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        name: String,
        left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    pub(super) fn pass(name: &'static str) {
        let armed = ARMED.get_or_init(|| {
            let setting = std::env::var("SLOWBURN_KILL_AT").ok()?;
            let (name, count) = setting.split_once(':')?;
            Some(Armed { name: name.to_owned(), left: AtomicU64::new(count.parse().ok()?) })
        });
        if let Some(armed) = armed
            && armed.name == name
            && armed.left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            // The test reads this line to know that the fault fired.
            eprintln!("killed at {name}");
            std::process::abort();
        }
    }
}
