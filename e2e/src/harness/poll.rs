//! Waiting for something to become true, with a deadline and without guessing how long it takes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Try until it succeeds; the last error is the one returned.
///
/// # Errors
/// It has not succeeded within `deadline`.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(20);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("waited {deadline:?} for {what}"));
            }
            Err(_) => sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}
