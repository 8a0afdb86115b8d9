//! All pods and nodes communicate during an action.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::lab::Lab;
use crate::lab::traffic::tcp::{Streams, Talks};
use crate::traffic::loss_meter;
use crate::traffic::loss_meter::Losses;

/// How often pods and nodes communicate.
pub struct Pace {
    /// Between two pings of a pair.
    pub pings: Duration,
    /// Between two chunks of a connection, and between two connections.
    pub talks: Duration,
}

/// What is tested does not have to fight for the CPU.
pub const CALM: Pace = Pace {
    pings: loss_meter::INTERVAL,
    talks: Duration::from_millis(50),
};

/// The node that may lose packets or connections during an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sufferer<'a> {
    /// No node.
    Nobody,
    /// This node and its pods lose packets, and no connection but those that its pods have to the outside: the kernel forgets whom it
    /// has masqueraded by a link that goes (`masq_device_event`).
    Links(&'a str),
    /// As well as connections of its own.
    Connections(&'a str),
}

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
    /// Performs an action. Afterwards every node has its desired state, all pods and nodes reach each other, and only the `sufferer` has
    /// lost something.
    ///
    /// # Errors
    /// One of these conditions is not met.
    pub fn costs(
        &mut self,
        what: &str,
        sufferer: Sufferer<'_>,
        deed: impl FnOnce(&mut Self) -> anyhow::Result<Duration>,
    ) -> anyhow::Result<()> {
        let mut own = match sufferer {
            Sufferer::Nobody => BTreeSet::new(),
            Sufferer::Links(node) | Sufferer::Connections(node) => self.addresses_on(node)?,
        };
        let pace = Pace {
            pings: self.options.pings,
            talks: self.options.pings * 5,
        };
        let cost = self.under_load(&pace, |lab| {
            let took = deed(lab)?;
            lab.site.is_as_wanted()?;
            anyhow::Ok(took)
        })?;
        let Cost {
            done,
            mut losses,
            streams,
        } = cost;
        let done = done.with_context(|| what.to_owned())?;
        let (Sufferer::Links(node) | Sufferer::Connections(node)) = sufferer else {
            ensure!(streams.dead.is_empty(), "{what}: {streams}");
            losses.check_none(&format!("{what} ({done:.1?})"))?;
            return self.everybody_is_reached(what);
        };
        own.extend(self.addresses_on(node)?);
        println!("{what} ({done:.1?}): the node's own: {losses}");
        let of_node = |from: &str| {
            let mut pods = self.site.pods.iter();
            pods.any(|pod| pod.name == from && pod.node == node)
        };
        losses
            .pairs
            .retain(|(from, answer)| !of_node(from) && !own.contains(&answer.target));
        losses.check_none(&format!("{what}: all others"))?;
        let may_end = |(from, to, _): &(String, SocketAddr, String)| {
            let mut pools = self.options.families.pools();
            let outside = !pools.any(|pool| pool.contains(&to.ip()));
            let with_the_node = from == node || own.contains(&to.ip());
            (outside && of_node(from)) || (sufferer == Sufferer::Connections(node) && with_the_node)
        };
        let all_may = streams.dead.iter().all(may_end);
        ensure!(all_may, "{what}: {streams}");
        self.everybody_is_reached(what)
    }

    /// All pods and nodes reach each other in every family.
    ///
    /// # Errors
    /// After the action `what`, a pod or node is not reached.
    pub fn everybody_is_reached(&self, what: &str) -> anyhow::Result<()> {
        let mut pools = self.options.families.pools();
        let matrix = pools.try_for_each(|pool| self.matrix(pool)?.check());
        matrix.with_context(|| what.to_owned())
    }

    /// Those of its pods, and its own.
    fn addresses_on(&self, node: &str) -> anyhow::Result<BTreeSet<IpAddr>> {
        let pods = self.site.pods.iter().filter(|pod| pod.node == node);
        let mut own: BTreeSet<IpAddr> = pods.flat_map(|pod| pod.addresses.clone()).collect();
        let mut nodes = self.site.nodes.iter();
        let found = nodes.find(|found| found.name == node).context("a node")?;
        own.extend(&found.addresses);
        Ok(own)
    }

    /// Does something under load. There are servers.
    ///
    /// # Errors
    /// The load cannot be measured.
    pub fn under_load<T>(
        &mut self,
        pace: &Pace,
        deed: impl FnOnce(&mut Self) -> T,
    ) -> anyhow::Result<Cost<T>> {
        let meter = self.site.meter(pace.pings)?;
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
