//! The same sessions, as one would write them by hand.

use std::fmt::Write;
use std::fs;

use anyhow::Context;
use netweft_crds::Session;

use crate::lab::node::bird::FOLDER;
use crate::lab::scenarios::scale::Site;

/// Write the shortest configuration that works to every node.
pub fn write(site: &Site) -> anyhow::Result<()> {
    for (number, node) in (1..).zip(&site.nodes) {
        let network = site.store.network(&node.name)?;
        let bgp = network.spec.bgp.as_ref();
        let bgp = bgp.context("the operator's core configures BGP")?;
        let mut text = format!(
            "router id 10.0.0.{number};
            protocol device {{ }}
            protocol direct {{ ipv4; }}
            protocol kernel {{ metric 78; ipv4 {{ export where source = RTS_BGP; }}; }}
            protocol static {{ ipv4;\n"
        );
        for block in &network.spec.subnets {
            writeln!(text, "route {block} unreachable;")?;
        }
        text += "}\n";
        for (number, session) in bgp.sessions.iter().enumerate() {
            let client = if session.reflector_client {
                "rr client; "
            } else {
                ""
            };
            let Session {
                local,
                local_as,
                peer,
                peer_as,
                ..
            } = session;
            writeln!(
                text,
                "protocol bgp n{number} {{ local {local} as {local_as}; neighbor {peer} as {peer_as};
                connect delay time 1; {client}
                ipv4 {{ import all; export where source ~ [RTS_STATIC, RTS_BGP]; }}; }}"
            )?;
        }
        fs::create_dir_all(node.space.file(FOLDER))?;
        fs::write(node.space.file(&format!("{FOLDER}/plain.conf")), text)?;
    }
    Ok(())
}
