//! Polling of a condition until a deadline.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Repeat `attempt` until it succeeds. The pause between attempts grows from 20 ms to 500 ms. `what` names the condition in the
/// error.
///
/// # Errors
/// No attempt has succeeded within `deadline`. The cause is the error of the last attempt.
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
