//! Conditions on prefixes in BIRD's filter language.

use ipnet::IpNet;
use netweft_crds::{FilterAction, FilterRule, IpFamily};

/// The shortest and the longest prefix length that is accepted inside a pool: from aggregates of blocks to a block. The whole
/// pool is not accepted, because no single peer has all of it, and a router that advertises it would attract packets to unused
/// addresses.
pub fn accepted_lengths(pool: IpNet, block: u8) -> (u8, u8) {
    let longest = block.max(pool.prefix_len());
    (pool.prefix_len().saturating_add(1).min(longest), longest)
}

/// The condition that a prefix matches one of the patterns.
pub fn matches_any(patterns: &[String]) -> String {
    if patterns.is_empty() {
        // The language has no empty prefix set.
        return "false".to_owned();
    }
    format!("net ~ [ {} ]", patterns.join(", "))
}

/// One line per rule that can match a prefix of the family.
pub fn rules(rules: &[FilterRule], family: IpFamily) -> String {
    rules.iter().filter_map(|it| rule(it, family)).collect()
}

fn rule(rule: &FilterRule, family: IpFamily) -> Option<String> {
    let net = rule.cidr.trunc();
    // A pattern that is shorter than its prefix would match prefixes that contain the range.
    let shortest = rule.min_length.unwrap_or(0).max(net.prefix_len());
    let longest = rule.max_length.unwrap_or(u8::MAX).min(net.max_prefix_len());
    let verdict = match rule.action {
        FilterAction::Accept => "accept",
        FilterAction::Reject => "reject",
    };
    (IpFamily::of(net.addr()) == family && shortest <= longest)
        .then(|| format!("\t\t\tif net ~ [ {net}{{{shortest},{longest}}} ] then {verdict};\n"))
}
