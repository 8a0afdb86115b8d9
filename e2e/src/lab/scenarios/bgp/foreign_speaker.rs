//! A machine on the nodes' link that speaks BGP and is not ours.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::lab::scenarios::bgp::Lab;
use crate::lab::topology::namespace::Namespace;
use crate::lab::topology::underlay::{Subnet, addresses};

/// One of them.
pub struct ForeignSpeaker {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Lab {
    /// Let host number `number` speak: `text` is what its BIRD does besides knowing its own links.
    pub fn foreign_speaker(
        &mut self,
        number: u8,
        text: impl Fn(&ForeignSpeaker) -> String,
    ) -> anyhow::Result<ForeignSpeaker> {
        let programs = self.site.bird_programs()?.to_owned();
        let run = &mut self.site.run;
        let space = Namespace::node(run)?;
        let nets = addresses(self.families, Subnet::Near, number);
        self.segment.attach(&space, "host0", &nets)?;
        let speaker = ForeignSpeaker {
            addresses: nets.iter().map(IpNet::addr).collect(),
        };
        let name = format!("speaker-{number}");
        let configuration = run.folder().join(format!("{name}.conf"));
        let text = format!(
            "router id 10.0.0.{number};\nprotocol device {{ }}\nprotocol direct {{ ipv4; ipv6; }}\n{}",
            text(&speaker)
        );
        fs::write(&configuration, text)?;
        let mut command = space.command(programs.join("bird"));
        command.arg("-f").arg("-c").arg(&configuration);
        command.args(["-s", "/run/bird.ctl"]);
        let log = run.folder().join(format!("{name}.log"));
        space.start(run, &mut command, &log)?;
        Ok(speaker)
    }
}
