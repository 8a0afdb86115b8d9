//! A foreign BGP speaker on the link of the nodes.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::lab::scenarios::bgp::Lab;
use crate::lab::topology::namespace::Namespace;
use crate::lab::topology::underlay::{Subnet, addresses};

/// A running foreign speaker.
pub struct ForeignSpeaker {
    /// The addresses of the host.
    pub addresses: Vec<IpAddr>,
}

impl Lab {
    /// Starts BIRD on a new host with this number. `protocols` returns the configuration in addition to the device and direct protocols.
    pub fn start_foreign_speaker(
        &mut self,
        number: u8,
        protocols: impl Fn(&ForeignSpeaker) -> String,
    ) -> anyhow::Result<ForeignSpeaker> {
        let programs = self.cluster.bird_programs()?.to_owned();
        let run = &mut self.cluster.run;
        let namespace = Namespace::node(run)?;
        let nets = addresses(self.families, Subnet::Near, number);
        self.segment.attach(&namespace, "host0", &nets)?;
        let speaker = ForeignSpeaker {
            addresses: nets.iter().map(IpNet::addr).collect(),
        };
        let name = format!("speaker-{number}");
        let configuration = run.folder().join(format!("{name}.conf"));
        let text = format!(
            "router id 10.0.0.{number};\nprotocol device {{ }}\nprotocol direct {{ ipv4; ipv6; }}\n{}",
            protocols(&speaker)
        );
        fs::write(&configuration, text)?;
        let mut command = namespace.command(programs.join("bird"));
        command.arg("-f").arg("-c").arg(&configuration);
        command.args(["-s", "/run/bird.ctl"]);
        let log = run.folder().join(format!("{name}.log"));
        namespace.start(run, &mut command, &log)?;
        Ok(speaker)
    }
}
