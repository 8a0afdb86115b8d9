//! Evaluates a ruleset in the JSON of nft (libnftables-json(5)) for the first packet of a connection of a pod. Pure.
//!
//! The evaluation uses two properties of such a packet: a link whose name begins with `nw` on one side, and a new connection. Rules with
//! other matches are skipped, so a verdict for some packets only is not found.

use std::collections::BTreeMap;
use std::fmt;

use netweft_common::link_names::PREFIX;
use serde_json::Value;

/// Maximum depth of jumps. The kernel has its own limit (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// A chain at the forward hook that can drop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// The table's name.
    pub table: String,
    /// The chain's name.
    pub name: String,
    drops_by_policy: bool,
}

/// The rules of a table, or of one chain of it: each is a list of statements.
#[derive(Debug, Default)]
pub struct Rules(BTreeMap<String, Vec<Vec<Value>>>);

/// Why a text is not a ruleset.
#[derive(Debug, thiserror::Error)]
pub enum RulesetError {
    /// The text is not JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The text has no list of objects.
    #[error("nft printed no list `nftables`")]
    NoList,
}

/// Which packets of pods a chain drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Packets from pods.
    pub from_pods: bool,
    /// Packets to pods.
    pub to_pods: bool,
}

/// The direction of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet {
    /// From a pod.
    FromPod,
    /// To a pod.
    ToPod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    Return,
}

impl BaseChain {
    /// The base chains at the forward hook, from the output of `nft -j list chains`.
    ///
    /// # Errors
    /// The text is not the JSON of nft.
    pub fn at_forward(text: &str) -> Result<Vec<Self>, RulesetError> {
        let text_of = |chain: &Value, key: &str| chain.get(key)?.as_str().map(str::to_owned);
        let base = |chain: &Value| {
            let forwards =
                text_of(chain, "type")? == "filter" && text_of(chain, "hook")? == "forward";
            let base = Self {
                family: text_of(chain, "family")?,
                table: text_of(chain, "table")?,
                name: text_of(chain, "name")?,
                drops_by_policy: text_of(chain, "policy").is_some_and(|policy| policy == "drop"),
            };
            let routed = matches!(base.family.as_str(), "ip" | "ip6" | "inet");
            (forwards && routed).then_some(base)
        };
        let objects = objects(text)?;
        let chains = objects.iter().filter_map(|object| object.get("chain"));
        Ok(chains.filter_map(base).collect())
    }

    /// A chain whose policy accepts.
    #[cfg(test)]
    pub fn new(family: &str, table: &str, name: &str) -> Self {
        Self {
            family: family.to_owned(),
            table: table.to_owned(),
            name: name.to_owned(),
            drops_by_policy: false,
        }
    }

    fn drop_message(&self, certain: bool) -> String {
        let Self {
            family,
            table,
            name,
            ..
        } = self;
        // iptables-nft keeps its rules in these tables, and its own rules are best changed with it.
        let iptables = match (family.as_str(), table.as_str(), name.as_str()) {
            ("ip", "filter", "FORWARD") => Some("iptables"),
            ("ip6", "filter", "FORWARD") => Some("ip6tables"),
            _ => None,
        };
        let allow = |iptables: &str, side: &str| {
            format!("{iptables} -I FORWARD -{side} {PREFIX}+ -j ACCEPT")
        };
        let insert = |side: &str| {
            format!("nft insert rule {family} {table} {name} {side}name '\"{PREFIX}*\"' accept")
        };
        let [from, to] = match iptables {
            Some(iptables) => [allow(iptables, "i"), allow(iptables, "o")],
            None => [insert("iif"), insert("oif")],
        };
        let what = if certain {
            "packets of pods, as a probe shows"
        } else {
            "packets that the node forwards, and no rule that netweft understands accepts packets of pods, so pods may be unreachable"
        };
        format!(
            "chain {name} of the nftables table {family} {table} drops {what}: allow these packets with `{from}` and `{to}`, and in the configuration of the program that made the chain"
        )
    }
}

/// A chain that drops packets of pods, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", chain.drop_message(*certain))]
pub struct DropsPods {
    /// The chain.
    pub chain: BaseChain,
    /// A probe packet was dropped; otherwise the rules make a drop likely.
    pub certain: bool,
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            table,
            name,
            ..
        } = self;
        write!(f, "nft chain {family} {table} {name}")
    }
}

impl Rules {
    /// From the output of `nft -j list table` or `nft -j list chain`.
    ///
    /// # Errors
    /// The text is not the JSON of nft.
    pub fn parse(text: &str) -> Result<Self, RulesetError> {
        let mut chains: BTreeMap<String, Vec<Vec<Value>>> = BTreeMap::new();
        for object in objects(text)? {
            let Some(rule) = object.get("rule") else {
                continue;
            };
            let chain = rule.get("chain").and_then(Value::as_str);
            let statements = rule.get("expr").and_then(Value::as_array);
            if let (Some(chain), Some(statements)) = (chain, statements) {
                chains
                    .entry(chain.to_owned())
                    .or_default()
                    .push(statements.clone());
            }
        }
        Ok(Self(chains))
    }

    /// Which packets of pods the chain drops, as far as the rules are known.
    #[must_use]
    pub fn dropped(&self, base: &BaseChain) -> Dropped {
        let drops = |packet| match self.verdict(&base.name, packet, DEPTH) {
            Some(Verdict::Accept) => false,
            Some(Verdict::Drop) => true,
            Some(Verdict::Return) | None => base.drops_by_policy,
        };
        Dropped {
            from_pods: drops(Packet::FromPod),
            to_pods: drops(Packet::ToPod),
        }
    }

    /// The verdict of a chain's rules; `None`: the packet passes all of them.
    fn verdict(&self, chain: &str, packet: Packet, depth: usize) -> Option<Verdict> {
        let rules = self.0.get(chain).filter(|_| depth > 0)?;
        for rule in rules {
            match self.verdict_of_rule(rule, packet, depth) {
                None => {}
                decided => return decided,
            }
        }
        None
    }

    /// The verdict of one rule; `None`: the packet goes on to the next.
    fn verdict_of_rule(&self, rule: &[Value], packet: Packet, depth: usize) -> Option<Verdict> {
        for statement in rule {
            let (kind, value) = statement.as_object()?.iter().next()?;
            match kind.as_str() {
                "match" if packet.surely_matches(value) => {}
                "counter" | "log" | "comment" => {}
                "accept" => return Some(Verdict::Accept),
                "drop" | "reject" => return Some(Verdict::Drop),
                "return" => return Some(Verdict::Return),
                "jump" | "goto" => {
                    let target = value.get("target")?.as_str()?;
                    let verdict = self.verdict(target, packet, depth - 1);
                    let ended = kind == "goto";
                    return match verdict {
                        Some(Verdict::Accept | Verdict::Drop) => verdict,
                        Some(Verdict::Return) | None => ended.then_some(Verdict::Return),
                    };
                }
                "xt" if value.get("name").and_then(Value::as_str) == Some("comment") => {}
                // Other statements, for example a match of iptables (`xt`), can match or not.
                _ => return None,
            }
        }
        None
    }
}

impl Packet {
    /// Whether a match applies to every such packet.
    fn surely_matches(self, test: &Value) -> bool {
        let equal = test
            .get("op")
            .and_then(Value::as_str)
            .is_some_and(|op| matches!(op, "==" | "in"));
        let (Some(left), Some(right)) = (test.get("left"), test.get("right")) else {
            return false;
        };
        let key = |kind: &str| {
            left.get(kind)
                .and_then(|it| it.get("key"))
                .and_then(Value::as_str)
        };
        let side = match self {
            Self::FromPod => "iifname",
            Self::ToPod => "oifname",
        };
        let holds = |right: &Value| match (key("meta"), key("ct"), right.as_str()) {
            (Some(name), _, Some(pattern)) if name == side => covers(pattern),
            (_, Some("state"), Some(state)) => state == "new",
            _ => false,
        };
        let any = right.get("set").unwrap_or(right).as_array();
        equal && any.map_or_else(|| holds(right), |some| some.iter().any(holds))
    }
}

/// Whether a pattern of link names matches the links of all pods.
fn covers(pattern: &str) -> bool {
    let prefix = pattern.strip_suffix('*');
    prefix.is_some_and(|prefix| PREFIX.starts_with(prefix))
}

fn objects(text: &str) -> Result<Vec<Value>, RulesetError> {
    let value: Value = serde_json::from_str(text)?;
    let objects = value.get("nftables").and_then(Value::as_array).cloned();
    objects.ok_or(RulesetError::NoList)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table whose base chain has this policy and these rules, each a list of statements.
    fn drops(policy: &str, rules: &str) -> bool {
        drops_with(policy, &[("FORWARD", rules)])
    }

    fn drops_with(policy: &str, chains: &[(&str, &str)]) -> bool {
        let listed = format!(
            r#"{{"nftables": [{{"metainfo": {{"json_schema_version": 1}}}},
                {{"chain": {{"family": "ip", "table": "nat", "name": "POSTROUTING", "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}}}},
                {{"chain": {{"family": "bridge", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}}},
                {{"chain": {{"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "{policy}"}}}}]}}"#
        );
        let bases = BaseChain::at_forward(&listed).unwrap();
        assert_eq!(bases.len(), 1, "{bases:?}");
        let rules = chains.iter().flat_map(|(chain, rules)| {
            let rules: Vec<Value> = serde_json::from_str(&format!("[{rules}]")).unwrap();
            let rule = |expr| serde_json::json!({"rule": {"family": "ip", "table": "filter", "chain": chain, "expr": expr}});
            rules.into_iter().map(rule).collect::<Vec<_>>()
        });
        let listed = serde_json::json!({ "nftables": rules.collect::<Vec<_>>() });
        let rules = Rules::parse(&listed.to_string()).unwrap();
        rules.dropped(&bases[0]) != Dropped::default()
    }

    fn link(side: &str, name: &str) -> String {
        format!(
            r#"{{"match": {{"op": "==", "left": {{"meta": {{"key": "{side}"}}}}, "right": "{name}"}}}}, {{"counter": {{"packets": 0, "bytes": 0}}}}"#
        )
    }

    const ESTABLISHED: &str = r#"[{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]"#;

    #[test]
    fn drop_policy_without_pod_rule_drops_pods() {
        assert!(drops("drop", ""));
        assert!(drops("drop", ESTABLISHED), "not the first packet");
        assert!(!drops("accept", ESTABLISHED));
        let docker = format!("[{}, {{\"accept\": null}}]", link("iifname", "docker0"));
        assert!(drops("drop", &docker));
        let mark = r#"[{"xt": {"type": "match", "name": "connmark"}}, {"accept": null}]"#;
        assert!(
            drops("drop", mark),
            "what is not understood accepts nothing"
        );
    }

    #[test]
    fn rules_accepting_both_pod_directions_clear_finding() {
        let accept = |side| format!("[{}, {{\"accept\": null}}]", link(side, "nw*"));
        let both = [accept("iifname"), accept("oifname")].join(", ");
        assert!(!drops("drop", &both));
        assert!(drops("drop", &accept("iifname")), "packets to pods");
        assert!(drops("drop", &accept("oifname")), "packets from pods");
        let jump = r#"[{"jump": {"target": "DOCKER-USER"}}]"#;
        assert!(!drops_with(
            "drop",
            &[("FORWARD", jump), ("DOCKER-USER", &both)]
        ));
        let comment =
            r#"[{"xt": {"type": "match", "name": "comment"}}, {"counter": {}}, {"accept": null}]"#;
        assert!(!drops("drop", comment));
    }

    #[test]
    fn rule_dropping_everything_counts_as_drop_policy() {
        let reject = r#"[{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]"#;
        assert!(drops("accept", &format!("{ESTABLISHED}, {reject}")));
        assert!(!drops(
            "accept",
            &format!("[{}, {{\"drop\": null}}]", link("iifname", "eth0"))
        ));
        let goto = r#"[{"goto": {"target": "end"}}]"#;
        assert!(drops_with("accept", &[("FORWARD", goto), ("end", reject)]));
        assert!(!drops_with(
            "accept",
            &[("FORWARD", goto), ("end", r#"[{"return": null}]"#)]
        ));
    }

    #[test]
    fn chain_jump_loop_terminates() {
        let jump = |to: &str| format!(r#"[{{"jump": {{"target": "{to}"}}}}]"#);
        assert!(drops_with(
            "drop",
            &[("FORWARD", &jump("a")), ("a", &jump("FORWARD"))]
        ));
    }

    #[test]
    fn firewall_message_names_chain_and_commands() {
        let base = |family: &str, name: &str| BaseChain {
            family: family.into(),
            table: "filter".into(),
            name: name.into(),
            drops_by_policy: true,
        };
        let message = |chain: BaseChain, certain| DropsPods { chain, certain }.to_string();
        let said = message(base("ip", "FORWARD"), false);
        assert!(
            said.starts_with("chain FORWARD of the nftables table ip filter drops packets"),
            "{said}"
        );
        assert!(
            said.contains(
                "`iptables -I FORWARD -i nw+ -j ACCEPT` and `iptables -I FORWARD -o nw+ -j ACCEPT`"
            ),
            "{said}"
        );
        let said = message(base("inet", "forward"), true);
        assert!(
            said.contains("`nft insert rule inet filter forward iifname '\"nw*\"' accept`"),
            "{said}"
        );
    }
}
