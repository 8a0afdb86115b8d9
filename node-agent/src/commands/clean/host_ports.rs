//! The chains of the chained portmap plugin, which it creates once and never deletes.
//!
//! The portmap plugins of all networks use the same names, so the chains stay if another network is configured, or if a rule of a pod
//! remains. Chains of legacy iptables are not visible in nftables and stay.

use std::path::Path;

use crate::apply::cni_config;
use crate::apply::nft;
use crate::apply::nft::NftError;

const FAMILIES: [&str; 2] = ["ip", "ip6"];
/// The table of the nftables backend.
const OWN_TABLE: &str = "cni_hostport";
/// The table of the iptables backend, which other programs use, too.
const SHARED_TABLE: &str = "nat";
/// Prefix of the plugin's chains in the shared table.
const CHAIN_PREFIX: &str = "CNI-HOSTPORT-";
/// Prefix of a pod's chain in the shared table.
const POD_CHAIN_PREFIX: &str = "CNI-DN-";
/// Statement of a pod's rule in the plugin's own table.
const POD_RULE: &str = "dnat to";

/// Removes the chains.
///
/// # Errors
/// nft fails.
pub async fn remove(conf_dir: &Path) -> Result<(), NftError> {
    for script in scripts(conf_dir).await? {
        nft::load(&script).await?;
        println!("Removed chains for host ports.");
    }
    Ok(())
}

/// The remaining chains, one line per table.
///
/// # Errors
/// nft fails.
pub async fn remaining(conf_dir: &Path) -> Result<Vec<String>, NftError> {
    let scripts = scripts(conf_dir).await?.into_iter();
    Ok(scripts
        .map(|_| "Chains for host ports exist.".to_owned())
        .collect())
}

async fn scripts(conf_dir: &Path) -> Result<Vec<String>, NftError> {
    let mut scripts = Vec::new();
    if !cni_config::others(conf_dir).is_empty() {
        return Ok(scripts);
    }
    for family in FAMILIES {
        let own = nft::list(family, OWN_TABLE).await?;
        if !own.is_empty() && !own.contains(POD_RULE) {
            scripts.push(format!("delete table {family} {OWN_TABLE}\n"));
        }
        let shared = nft::list(family, SHARED_TABLE).await?;
        scripts.extend(deletions(family, &shared));
    }
    Ok(scripts)
}

/// The script that deletes the plugin's chains from a shared table, which is listed with handles; `None` without chains, or with a
/// chain of a pod.
fn deletions(family: &str, listing: &str) -> Option<String> {
    if listing.contains(POD_CHAIN_PREFIX) {
        return None;
    }
    let (mut rules, mut chains, mut chain) = (String::new(), Vec::new(), "");
    for line in listing.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("chain ") {
            chain = rest.split(' ').next().unwrap_or_default();
            if chain.starts_with(CHAIN_PREFIX) {
                chains.push(chain);
            }
        } else if !chain.starts_with(CHAIN_PREFIX)
            && line.contains(&format!("jump {CHAIN_PREFIX}"))
            && let Some((_, handle)) = line.rsplit_once("# handle ")
        {
            rules += &format!("delete rule {family} {SHARED_TABLE} {chain} handle {handle}\n");
        }
    }
    if chains.is_empty() {
        return None;
    }
    for verb in ["flush", "delete"] {
        for chain in &chains {
            rules += &format!("{verb} chain {family} {SHARED_TABLE} {chain}\n");
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of nft 1.0.6 for chains that iptables-nft 1.8.9 has created for portmap 1.9, with rules of other programs.
    const LISTING: &str = "table ip nat { # handle 1
	chain PREROUTING { # handle 2
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 172.18.0.1 counter packets 0 bytes 0 jump DOCKER_OUTPUT # handle 5
		fib daddr type local counter packets 7 bytes 420 jump CNI-HOSTPORT-DNAT # handle 31
	}
	chain POSTROUTING { # handle 3
		type nat hook postrouting priority srcnat; policy accept;
		 counter packets 9 bytes 540 jump CNI-HOSTPORT-MASQ # handle 33
	}
	chain CNI-HOSTPORT-DNAT { # handle 29
	}
	chain CNI-HOSTPORT-MASQ { # handle 32
		meta mark & 0x00002000 == 0x00002000 counter packets 0 bytes 0 masquerade # handle 34
	}
}
";

    #[test]
    fn clean_removes_portmap_chains_and_their_jumps() {
        let script = deletions("ip", LISTING).unwrap();
        let lines: Vec<&str> = script.lines().collect();
        assert_eq!(
            lines,
            [
                "delete rule ip nat PREROUTING handle 31",
                "delete rule ip nat POSTROUTING handle 33",
                "flush chain ip nat CNI-HOSTPORT-DNAT",
                "flush chain ip nat CNI-HOSTPORT-MASQ",
                "delete chain ip nat CNI-HOSTPORT-DNAT",
                "delete chain ip nat CNI-HOSTPORT-MASQ",
            ]
        );
    }

    #[test]
    fn clean_keeps_portmap_chains_used_by_pod() {
        let with_pod = LISTING.replace(
            "DNAT { # handle 29",
            "DNAT {\n jump CNI-DN-4f3a # handle 40",
        );
        assert_eq!(deletions("ip", &with_pod), None);
        assert_eq!(
            deletions("ip", "table ip nat {\n\tchain PREROUTING {\n\t}\n}\n"),
            None
        );
        assert_eq!(deletions("ip", ""), None);
    }
}
