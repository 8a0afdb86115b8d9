//! Everybody talks to everybody while something is done.

use std::time::Duration;

use super::Lab;
use super::meter::Losses;
use super::talk::{Streams, Talks};

/// Between two chunks of a connection, and between two connections: what is tested shall not have to fight for the CPU.
const PAUSE: Duration = Duration::from_millis(50);
/// Before and after: all is under way then.
const AROUND: Duration = Duration::from_millis(300);

/// What was done, and what it cost.
pub struct Cost<T> {
    /// What the deed says.
    pub done: T,
    /// Pings.
    pub losses: Losses,
    /// Connections.
    pub streams: Streams,
}

impl Lab {
    /// Does something under load. There are servers.
    ///
    /// # Errors
    /// The deed fails, or the load cannot be measured.
    pub fn under_load<T>(
        &mut self,
        deed: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<Cost<T>> {
        let meter = self.site.meter()?;
        let talks = Talks::start(&self.site, PAUSE, self.options.masquerading)?;
        std::thread::sleep(AROUND);
        let done = deed(self);
        std::thread::sleep(AROUND);
        let losses = meter.finish()?;
        let streams = talks.finish()?;
        Ok(Cost {
            done: done?,
            losses,
            streams,
        })
    }
}
