//! CEL rules of several fields. Every message names the field and a valid value.

use kube::core::{Message, Rule};

/// A duration as Go writes it, in whole numbers, for example `90s`, `50ms` or `1m30s`. The number of digits is bounded,
/// because an overflow in `duration()` is an error of the rule and not a refusal with its message.
const DURATION: &str = "^([0-9]{1,6}(h|m|s|ms))+$";

/// A duration from `least` to `most`.
pub fn duration(field: &str, least: &str, most: &str, example: &str) -> Rule {
    Rule::new(format!(
        "self.matches('{DURATION}') && duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"
    ))
    .message(text(format!("{field} must be {least} to {most}, for example {example}")))
}

/// The keepalive time is shorter than the hold time (RFC 4271, section 4.4); for a struct with both.
pub fn keepalive_before_hold(at: &str) -> Rule {
    Rule::new(format!(
        "!self.keepaliveTime.matches('{DURATION}') || !self.holdTime.matches('{DURATION}') || duration(self.keepaliveTime) < duration(self.holdTime)"
    ))
    .message(text(format!(
        "{at}.keepaliveTime must be shorter than {at}.holdTime, for example 30s and 90s"
    )))
}

/// A number from `least` to `most`.
pub fn within(field: &str, least: u32, most: u32, example: u32) -> Rule {
    Rule::new(format!("self >= {least} && self <= {most}")).message(text(format!(
        "{field} must be {least} to {most}, for example {example}"
    )))
}

/// A TCP or UDP port.
pub fn port(field: &str, example: u32) -> Rule {
    within(field, 1, 65535, example)
}

/// An AS number that a router can have: neither AS_TRANS (RFC 6793) nor a last AS number (RFC 7300).
pub fn as_number(field: &str) -> Rule {
    Rule::new("self >= 1 && self <= 4294967294 && self != 23456 && self != 65535").message(text(format!(
        "{field} must be 1 to 4294967294 except for 23456 and 65535, which are reserved, for example 64512"
    )))
}

/// A network address with its prefix length, strictly masked.
pub fn cidr(field: &str, example: &str) -> Rule {
    Rule::new("isCIDR(self) && cidr(self) == cidr(self).masked()").message(text(format!(
        "{field} must be a network address with its prefix length and no host bits, for example {example}"
    )))
}

/// An address of one host. Addresses that [`global`] refuses pass, so that no address is refused with two messages.
pub fn host(field: &str) -> Rule {
    Rule::new(
        "self.contains('%') || (isIP(self) && (ip(self).isGlobalUnicast() || ip(self).isLinkLocalUnicast() || ip(self).isLoopback()))",
    )
    .message(text(format!(
        "{field} must be the address of one host, for example 10.1.0.1"
    )))
}

/// An address that is the same on every node: neither link-local, with or without a zone, nor loopback.
pub fn global(field: &str) -> Rule {
    Rule::new(
        "!self.contains('%') && (!isIP(self) || !(ip(self).isLinkLocalUnicast() || ip(self).isLoopback()))",
    )
    .message(text(format!(
        "{field} must not be link-local (as in BGP unnumbered) or loopback, which is not supported: give a global address of the host, for example 10.1.0.1"
    )))
}

/// The name of a link (`dev_valid_name` in net/core/dev.c), or a pattern of names. Special characters of other pattern
/// languages are refused, because such a pattern would match nothing.
pub fn link_pattern(field: &str) -> Rule {
    Rule::new("self.matches('^[^]/:,|{}()\\\\[\\\\s]+$') && self != '.' && self != '..'").message(text(format!(
        "{field} must be the name of a link, for example eth1, or a pattern with * and ?, for example ens*"
    )))
}

/// A prefix length of a filter, for prefixes inside its `cidr`; for a struct with both.
pub fn prefix_length(field: &str, example: u32) -> Rule {
    Rule::new(format!(
        "!has(self.{field}) || !isCIDR(self.cidr) || (self.{field} >= cidr(self.cidr).prefixLength() && self.{field} <= (cidr(self.cidr).ip().family() == 4 ? 32 : 128))"
    ))
    .message(text(format!(
        "{field} of a filter must be from the prefix length of its cidr to that of a host (32, in IPv6 128), for example {example} for 10.244.0.0/16"
    )))
}

/// BGP communities, standard or large. Their numbers have 16 (RFC 1997) or 32 bits (RFC 8092).
pub fn communities(field: &str) -> Rule {
    let number = "(0|[1-9][0-9]{0,9})";
    Rule::new(format!(
        "self.all(c, c.matches('^{number}(:{number}){{1,2}}$') && c.split(':').all(n, int(n) <= (c.split(':').size() == 2 ? 65535 : 4294967295)))"
    ))
    .message(text(format!(
        "{field} must be two numbers up to 65535 or three up to 4294967295 with ':' between, for example 64512:100 or 64512:1:2"
    )))
}

/// The name of an object.
pub fn name(field: &str, example: &str) -> Rule {
    Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message(text(format!(
        "{field} must be the name of an object, for example {example}"
    )))
}

/// A label selector whose expressions are valid in Kubernetes.
pub fn selector(field: &str) -> Rule {
    Rule::new(
        "!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && e.values.size() > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || e.values.size() == 0))",
    )
    .message(text(format!(
        "{field}.matchExpressions take In or NotIn with values, or Exists or DoesNotExist without, for example {{key: rack, operator: In, values: [r1]}}"
    )))
}

fn text(text: String) -> Message {
    Message::Message(text)
}
