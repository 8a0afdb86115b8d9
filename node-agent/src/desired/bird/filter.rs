//! Conditions on prefixes, in BIRD's filter language.

use ipnet::IpNet;
use netweft_crds::{FilterAction, FilterRule};

use crate::desired::bird::Family;

/// The prefix lengths of a pool that are taken from others: from the aggregate of two blocks or more to a block. The pool itself
/// is not: nobody but the cluster as a whole has it, and a router that does would draw what is sent to addresses nobody has.
pub fn lengths(pool: IpNet, block: u8) -> (u8, u8) {
    let longest = block.max(pool.prefix_len());
    (pool.prefix_len().saturating_add(1).min(longest), longest)
}

/// Whether a prefix is inside a set of patterns.
pub fn inside(patterns: &[String]) -> String {
    if patterns.is_empty() {
        // The language has no empty set.
        return "false".to_owned();
    }
    format!("net ~ [ {} ]", patterns.join(", "))
}

/// One line for each rule that can match a prefix of the family.
pub fn rules(rules: &[FilterRule], family: Family) -> String {
    rules.iter().filter_map(|one| rule(one, family)).collect()
}

fn rule(rule: &FilterRule, family: Family) -> Option<String> {
    let net = rule.cidr.trunc();
    // A pattern that begins below its own length would match what is around the range.
    let shortest = rule.min_length.unwrap_or(0).max(net.prefix_len());
    let longest = rule.max_length.unwrap_or(u8::MAX).min(net.max_prefix_len());
    let verdict = match rule.action {
        FilterAction::Accept => "accept",
        FilterAction::Reject => "reject",
    };
    (family.holds(&net) && shortest <= longest)
        .then(|| format!("\t\t\tif net ~ [ {net}{{{shortest},{longest}}} ] then {verdict};\n"))
}
