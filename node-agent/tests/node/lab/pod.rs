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
    /// One address per family.
    pub addresses: Vec<IpAddr>,
    /// The host end of its link.
    pub link: String,
}

impl Pod {
    /// The pod of a started ADD; the output of the plugin if the ADD fails.
    pub fn of(container: &str, space: Namespace, add: Child) -> Result<Self, String> {
        let output = add.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!("{}: {text}", output.status));
        }
        let result: Value = serde_json::from_str(&text).unwrap();
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

    /// Whether each address of the pod replies to a ping from a namespace.
    pub fn is_reachable_from(&self, source: &Namespace) -> bool {
        let mut addresses = self.addresses.iter();
        addresses.all(|ip| source.pings(&ip.to_string()))
    }

    /// Whether the pod reaches each address of its node.
    pub fn reaches(&self, node: &Node) -> bool {
        node.addresses().iter().all(|ip| self.space.pings(ip))
    }

    /// Replaces the placeholders of a template for each address of the pod, and returns the different lines: `LINK` is the host end of
    /// the link, `MAC` the MAC address of the pod, `IP` the address, `LEN` its prefix length as a host address, `OTHER` an address
    /// without a pod. With a bridge, `GATEWAY` is the bridge's address with its prefix length, `BLOCK` the block, `VIA` the gateway.
    pub fn lines(&self, node: &Node, template: &str) -> Vec<String> {
        let record = node
            .attachments()
            .into_iter()
            .find(|found| found.owner.container_id == self.container)
            .expect("the record of the pod");
        let mut lines = Vec::new();
        for address in &record.addresses {
            let four = address.ip.is_ipv4();
            let gateway = address.gateway.unwrap_or_else(|| IpNet::from(address.ip));
            let mut line = template.to_owned();
            for (placeholder, value) in [
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
                line = line.replace(placeholder, &value);
            }
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        lines
    }
}
