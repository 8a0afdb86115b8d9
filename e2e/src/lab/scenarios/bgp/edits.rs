//! Changes of the BGP topology. New sessions are established before old ones end, so that no packet is lost.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::lab::cluster::objects;
use crate::lab::scenarios::bgp::Lab;

/// AS number of the nodes and of the router, which is their route reflector.
const AS_NUMBER: u32 = 64_512;
/// Host number of the router.
const ROUTER: u8 = 254;

impl Lab {
    /// The topologies in order: mesh with reflectors, reflectors, reflectors with router, router.
    pub fn run_edits(&mut self) -> anyhow::Result<()> {
        for node in ["node-1", "node-2"] {
            self.cluster.label(node, "reflector", "yes");
        }
        let reflectors = json!([{ "nodeSelector": { "matchLabels": { "reflector": "yes" } },
            "clusterID": "10.0.0.250" }]);
        // Not measured: BIRD restarts a session when one of its ends becomes a reflector.
        self.apply_and_wait(&json!({ "routeReflectors": reflectors }))?;
        self.edit(
            "reflectors have replaced the mesh",
            &json!({ "nodeToNodeMesh": false, "routeReflectors": reflectors }),
        )?;
        self.add_router()?;
        self.edit(
            "a router was added",
            &json!({ "nodeToNodeMesh": false, "routeReflectors": reflectors }),
        )?;
        let before = self.cluster.established()?;
        self.edit(
            "the router has replaced the reflectors",
            &json!({ "nodeToNodeMesh": false }),
        )?;
        // Sessions that exist before and after did not restart.
        for (node, sessions) in self.cluster.established()? {
            let old = before.get(&node);
            let unchanged = |(name, since)| old.is_some_and(|old| old.get(name) == Some(since));
            ensure!(
                sessions.iter().all(unchanged),
                "sessions of {node} have restarted: {old:?}, then {sessions:?}"
            );
        }
        for pool in self.families.pools() {
            self.cluster.matrix(pool, |_, _| true)?.check()?;
        }
        Ok(())
    }

    fn edit(&mut self, what: &str, underlay: &Value) -> anyhow::Result<()> {
        self.expect_no_loss(what, |lab| lab.apply_and_wait(underlay))
    }

    fn apply_and_wait(&mut self, underlay: &Value) -> anyhow::Result<()> {
        self.set_underlay(underlay)?;
        self.wait_until_established()?;
        self.wait_for_routes()
    }

    /// Adds a router in the AS of the nodes that reflects their routes.
    fn add_router(&mut self) -> anyhow::Result<()> {
        let nodes: Vec<_> = self
            .cluster
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
        let router = self.start_foreign_speaker(ROUTER, |_| text.clone())?;
        for address in router.addresses {
            let name = if address.is_ipv4() {
                "router"
            } else {
                "router-ipv6"
            };
            let spec =
                json!({ "peerIP": address, "asNumber": AS_NUMBER, "connectRetryTime": "1s" });
            self.cluster.store.peers.push(objects::peer(name, &spec)?);
        }
        Ok(())
    }
}
