//! Everybody talks to everybody while something is done.

use std::time::Duration;

use super::Lab;
use super::meter::{self, Losses, Meter};
use super::talk::{Streams, Talks};

/// How often everybody talks.
pub struct Pace {
    /// Between two pings of a pair.
    pub pings: Duration,
    /// Between two chunks of a connection, and between two connections.
    pub talks: Duration,
}

/// What is tested does not have to fight for the CPU.
pub const CALM: Pace = Pace {
    pings: meter::INTERVAL,
    talks: Duration::from_millis(50),
};

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
    /// The load cannot be measured.
    pub fn under_load<T>(
        &mut self,
        pace: &Pace,
        deed: impl FnOnce(&mut Self) -> T,
    ) -> anyhow::Result<Cost<T>> {
        let meter = Meter::start(&self.site.binaries, &self.site.pods, pace.pings)?;
        let talks = Talks::start(&self.site, pace.talks, self.options.masquerading)?;
        std::thread::sleep(AROUND);
        let done = deed(self);
        std::thread::sleep(AROUND);
        let losses = meter.finish()?;
        let streams = talks.finish()?;
        Ok(Cost {
            done,
            losses,
            streams,
        })
    }
}
