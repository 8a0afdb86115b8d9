//! A pod of the lab.

use std::net::IpAddr;
use std::process::Child;

use ipnet::IpNet;
use serde_json::Value;

use super::{Namespace, Node};

/// A pod that ADD has attached.
pub struct Pod {
    pub container: String,
    pub space: Namespace,
    /// One of each family.
    pub addresses: Vec<IpAddr>,
    /// The host's end of its link.
    pub link: String,
}

impl Pod {
    /// What became of an ADD; what it said if it failed.
    pub fn of(container: &str, space: Namespace, added: Child) -> Result<Self, String> {
        let output = added.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!("{}: {said}", output.status));
        }
        let result: Value = serde_json::from_str(&said).unwrap();
        let addresses = result["ips"].as_array().unwrap().iter();
        let address = |ip: &Value| {
            let net = ip["address"].as_str().unwrap().parse::<IpNet>();
            net.unwrap().addr()
        };
        let interfaces = result["interfaces"].as_array().unwrap();
        let link = &interfaces[interfaces.len() - 2]["name"];
        Ok(Self {
            container: container.to_owned(),
            space,
            addresses: addresses.map(address).collect(),
            link: link.as_str().unwrap().to_owned(),
        })
    }

    /// Whether it answers at each of its addresses.
    pub fn answers(&self, whom: &Namespace) -> bool {
        let mut addresses = self.addresses.iter();
        addresses.all(|ip| whom.pings(&ip.to_string()))
    }

    /// Whether it reaches each address of its node.
    pub fn reaches(&self, node: &Node) -> bool {
        node.addresses().iter().all(|ip| self.space.pings(ip))
    }

    /// A line for each of its addresses, if it is about addresses at all: `LINK` is the host's end, `MAC` the pod's own,
    /// `IP` an address, `LEN` how long a prefix of it alone is, `OTHER` an address that no pod has. On a bridge `GATEWAY`
    /// is the bridge's address with its length, `BLOCK` the block that both are in, `VIA` the gateway alone.
    pub fn lines(&self, node: &Node, line: &str) -> Vec<String> {
        let record = node
            .attachments()
            .into_iter()
            .find(|found| found.owner.container_id == self.container)
            .expect("its record");
        let mut lines = Vec::new();
        for address in &record.addresses {
            let four = address.ip.is_ipv4();
            let gateway = address.gateway.unwrap_or_else(|| IpNet::from(address.ip));
            let mut filled = line.to_owned();
            for (word, value) in [
                ("LINK", self.link.clone()),
                ("MAC", record.pod_mac.to_string()),
                ("GATEWAY", gateway.to_string()),
                ("BLOCK", gateway.trunc().to_string()),
                ("VIA", gateway.addr().to_string()),
                ("IP", address.ip.to_string()),
                ("LEN", if four { "32" } else { "128" }.to_owned()),
                (
                    "OTHER",
                    if four { "10.244.0.9" } else { "fd00:244::9" }.to_owned(),
                ),
            ] {
                filled = filled.replace(word, &value);
            }
            if !lines.contains(&filled) {
                lines.push(filled);
            }
        }
        lines
    }
}
