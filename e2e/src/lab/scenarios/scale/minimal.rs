//! A minimal configuration of BIRD with the same sessions.

use std::fmt::Write;
use std::fs;

use anyhow::Context;
use netweft_crds::Session;

use crate::lab::node::bird::FOLDER;
use crate::lab::scenarios::scale::Cluster;

/// Writes the configuration of every node.
pub fn write(cluster: &Cluster) -> anyhow::Result<()> {
    for (number, node) in (1..).zip(&cluster.nodes) {
        let network = cluster.store.network(&node.name)?;
        let bgp = network.spec.bgp.as_ref();
        let bgp = bgp.context("the NodeNetwork has no BGP configuration")?;
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
        fs::create_dir_all(node.namespace.file(FOLDER))?;
        fs::write(node.namespace.file(&format!("{FOLDER}/minimal.conf")), text)?;
    }
    Ok(())
}
