//! What the chained portmap plugin leaves when no pod has a host port any more: chains that it makes once and never takes away.
//!
//! They have the names that every network's portmap gives them, so they stay where another network is configured, and where a rule for
//! a pod is left. With the old `iptables` (legacy) nftables does not see them, and they stay.

use std::path::Path;

use crate::apply::cni_config;
use crate::apply::nft;
use crate::apply::nft::NftError;

const FAMILIES: [&str; 2] = ["ip", "ip6"];
/// The table of its nftables backend.
const OWN_TABLE: &str = "cni_hostport";
/// The table of its iptables backend, which is everybody's.
const SHARED_TABLE: &str = "nat";
/// What its chains there are called.
const CHAINS: &str = "CNI-HOSTPORT-";
/// A pod's chain there.
const OF_A_POD: &str = "CNI-DN-";
/// A pod's rule in its own table says so in a comment.
const RULE_OF_A_POD: &str = "dnat to";

/// Takes them away.
///
/// # Errors
/// nft refuses.
pub async fn remove(conf_dir: &Path) -> Result<(), NftError> {
    for script in scripts(conf_dir).await? {
        nft::load(&script).await?;
        println!("Done: chains for host ports removed.");
    }
    Ok(())
}

/// What there is of them, in sentences.
///
/// # Errors
/// nft cannot tell.
pub async fn left(conf_dir: &Path) -> Result<Vec<String>, NftError> {
    let scripts = scripts(conf_dir).await?.into_iter();
    Ok(scripts
        .map(|_| "There are chains for host ports.".to_owned())
        .collect())
}

async fn scripts(conf_dir: &Path) -> Result<Vec<String>, NftError> {
    let mut scripts = Vec::new();
    if !cni_config::others(conf_dir).is_empty() {
        return Ok(scripts);
    }
    for family in FAMILIES {
        let own = nft::list(family, OWN_TABLE).await?;
        if !own.is_empty() && !own.contains(RULE_OF_A_POD) {
            scripts.push(format!("delete table {family} {OWN_TABLE}\n"));
        }
        let shared = nft::list(family, SHARED_TABLE).await?;
        scripts.extend(unhook(family, &shared));
    }
    Ok(scripts)
}

/// What takes the plugin's chains out of a shared table that is listed with handles; `None` where there are none, or a pod's.
fn unhook(family: &str, listing: &str) -> Option<String> {
    if listing.contains(OF_A_POD) {
        return None;
    }
    let (mut rules, mut chains, mut chain) = (String::new(), Vec::new(), "");
    for line in listing.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("chain ") {
            chain = rest.split(' ').next().unwrap_or_default();
            if chain.starts_with(CHAINS) {
                chains.push(chain);
            }
        } else if !chain.starts_with(CHAINS)
            && line.contains(&format!("jump {CHAINS}"))
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

    /// As nft 1.0.6 shows what iptables-nft 1.8.9 has made for portmap 1.9, beside others' rules.
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
        let script = unhook("ip", LISTING).unwrap();
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
        let of_a_pod = LISTING.replace(
            "DNAT { # handle 29",
            "DNAT {\n jump CNI-DN-4f3a # handle 40",
        );
        assert_eq!(unhook("ip", &of_a_pod), None);
        assert_eq!(
            unhook("ip", "table ip nat {\n\tchain PREROUTING {\n\t}\n}\n"),
            None
        );
        assert_eq!(unhook("ip", ""), None);
    }
}
