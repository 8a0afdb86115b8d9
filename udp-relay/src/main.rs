//! The relay of the `udp` overlay.
//!
//! ```text
//!            ┌ queue ─▶ outbound: peer by destination, checksums, segmentation ─▶ socket ┐
//!   TUN link │                                                                           │ UDP
//!            └ queue ◀─ inbound: check of source and length, coalescing ◀─────── socket ┘
//! ```
//!
//! `routes`, `packet`, `checksum`, `segment` and `coalesce` are pure functions. `outbound` and `inbound` are the loops that call
//! them, one thread per queue or socket. `relay`, `tunnel`, `takeover` and `control` open, start, change and hand over tunnels, and
//! process no packets. `sys` has the system calls.

mod admin;
mod args;
mod checksum;
mod coalesce;
mod control;
mod counters;
mod drop_log;
mod event_sources;
mod handover_protocol;
mod inbound;
mod metrics;
mod outbound;
mod packet;
mod probe;
mod rcu;
mod relay;
mod routes;
mod run;
mod segment;
mod stop;
mod sys;
mod takeover;
#[cfg(test)]
mod testing;
mod tunnel;
mod virtio_net_hdr;
mod worker;

use clap::Parser;

use args::{Command, Verb};

fn main() -> anyhow::Result<()> {
    let Command { log, verb } = Command::parse();
    log.init();
    match verb {
        Verb::Run(args) => run::run(args),
        Verb::Ready(args) => probe::ready(&args.run_dir),
        Verb::Alive(args) => probe::alive(&args.run_dir),
    }
}
