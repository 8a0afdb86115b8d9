//! The topology of BGP sessions changes. New sessions are established before old ones are removed: no packet is lost.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::lab::cluster::objects;
use crate::lab::scenarios::bgp::Lab;

/// AS number of the nodes, and of the router that reflects for them.
const AS_NUMBER: u32 = 64_512;
/// Host number of the router.
const ROUTER: u8 = 254;

impl Lab {
    /// A mesh with reflectors; they alone; a router beside them; it alone.
    pub fn edits(&mut self) -> anyhow::Result<()> {
        for node in ["node-1", "node-2"] {
            self.site.label(node, "reflector", "yes");
        }
        let reflectors = json!([{ "nodeSelector": { "matchLabels": { "reflector": "yes" } },
            "clusterID": "10.0.0.250" }]);
        // A session begins anew when one of its ends becomes a reflector: BIRD has no softer way.
        self.settle_on(&json!({ "routeReflectors": reflectors }))?;
        self.edit(
            "the mesh has given way to reflectors",
            &json!({ "nodeToNodeMesh": false, "routeReflectors": reflectors }),
        )?;
        self.add_router()?;
        self.edit(
            "a router was added",
            &json!({ "nodeToNodeMesh": false, "routeReflectors": reflectors }),
        )?;
        let before = self.site.established()?;
        self.edit(
            "reflectors have given way to the router",
            &json!({ "nodeToNodeMesh": false }),
        )?;
        // What has stayed has stayed up.
        for (node, sessions) in self.site.established()? {
            let old = before.get(&node);
            let kept = |(name, since)| old.is_some_and(|old| old.get(name) == Some(since));
            ensure!(
                sessions.iter().all(kept),
                "sessions of {node} have begun anew: {old:?}, then {sessions:?}"
            );
        }
        for pool in self.families.pools() {
            self.site.matrix(pool, |_, _| true)?.check()?;
        }
        Ok(())
    }

    fn edit(&mut self, what: &str, underlay: &Value) -> anyhow::Result<()> {
        self.metered(what, |lab| lab.settle_on(underlay))
    }

    fn settle_on(&mut self, underlay: &Value) -> anyhow::Result<()> {
        self.ask(underlay)?;
        self.wait_until_established()?;
        self.wait_for_routes()
    }

    /// A router of the nodes' own AS that reflects what they announce.
    fn add_router(&mut self) -> anyhow::Result<()> {
        let nodes: Vec<_> = self
            .site
            .nodes
            .iter()
            .flat_map(|node| node.addresses.clone())
            .collect();
        let session = |(n, node): (usize, &std::net::IpAddr)| {
            let channel = if node.is_ipv4() { "ipv4" } else { "ipv6" };
            format!(
                "protocol bgp n{n} {{ local as {AS_NUMBER}; neighbor {node} as {AS_NUMBER}; multihop; rr client;
                connect delay time 1; {channel} {{ import all; export where source = RTS_BGP; }}; }}\n"
            )
        };
        let text: String = nodes.iter().enumerate().map(session).collect();
        let router = self.foreign_speaker(ROUTER, |_| text.clone())?;
        for address in router.addresses {
            let name = if address.is_ipv4() {
                "router"
            } else {
                "router-ipv6"
            };
            let spec =
                json!({ "peerIP": address, "asNumber": AS_NUMBER, "connectRetryTime": "1s" });
            self.site.store.peers.push(objects::peer(name, &spec)?);
        }
        Ok(())
    }
}
