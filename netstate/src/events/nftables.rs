//! Notifications of nf_tables (`nf_tables_commit`): one for each change of a transaction, and then one for the transaction.

use super::{NetlinkPortId, Notification};
use crate::object_ref::ObjectRef;

/// `NFNLGRP_NFTABLES`, as a bit mask for `bind`.
pub(super) const GROUPS: u32 = 1 << (7 - 1);

/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_NEWGEN`: the transaction. Its first attribute is not a table.
const GENERATION: u16 = 15;
/// The first attribute of all other messages: the table's name (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, …).
const TABLE: u16 = 1;
/// `sizeof(struct nlmsghdr)` and `sizeof(struct nfgenmsg)`
const HEADERS: (usize, usize) = (16, 4);

/// Relevant if a message is about the table `table`, or cannot be parsed.
pub(super) fn parse(mut datagram: &[u8], table: &str) -> Notification {
    let mut notification = Notification::default();
    while !datagram.is_empty() {
        let Some(message) = Message::parse(datagram) else {
            notification.is_relevant = true;
            return notification;
        };
        if message.is_about(table) {
            notification.is_relevant = true;
            let object = ObjectRef::Table(table.to_owned());
            notification.writers.push((object, message.port));
        }
        let length = message.length.next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    notification
}

/// The header of a message, and the attributes after `nfgenmsg`.
struct Message<'a> {
    length: usize,
    kind: u16,
    port: NetlinkPortId,
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    /// `None` for a truncated message.
    fn parse(datagram: &'a [u8]) -> Option<Self> {
        let length = u32_at(datagram, 0)? as usize;
        let port = NetlinkPortId(u32_at(datagram, 12)?);
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        let attributes = datagram.get(HEADERS.0 + HEADERS.1..length)?;
        Some(Self {
            length,
            kind,
            port,
            attributes,
        })
    }

    fn is_about(&self, table: &str) -> bool {
        if self.kind >> 8 != SUBSYSTEM || self.kind & 0xff == GENERATION {
            return false;
        }
        let mut rest = self.attributes;
        while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
            let length = usize::from(length);
            let value = rest.get(4..length).unwrap_or_default();
            if kind == TABLE {
                return value.strip_suffix(&[0]).unwrap_or(value) == table.as_bytes();
            }
            rest = rest
                .get(length.max(4).next_multiple_of(4)..)
                .unwrap_or_default();
        }
        false
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::mutated::mutated;

    /// A message of this kind with one attribute.
    fn message(kind: u16, attribute: u16, value: &[u8]) -> Vec<u8> {
        let mut attributes = Vec::new();
        attributes.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        attributes.extend(attribute.to_ne_bytes());
        attributes.extend(value);
        attributes.resize(attributes.len().next_multiple_of(4), 0);
        let length = u32::try_from(20 + attributes.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(77_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn notification_of_other_nft_table_is_ignored() {
        let own = message(2, TABLE, b"netweft\0");
        let datagram = [message(6, TABLE, b"kube-proxy\0"), own].concat();
        let notification = parse(&datagram, "netweft");
        assert!(notification.is_relevant);
        let object = ObjectRef::Table("netweft".to_owned());
        assert_eq!(notification.writers, [(object, NetlinkPortId(77))]);
        for other in [
            message(2, TABLE, b"netweft2\0"),
            message(6, TABLE, b"kube-proxy\0"),
            message(GENERATION, TABLE, b"netweft\0"),
            message(6, 2, b"netweft\0"),
        ] {
            assert_eq!(parse(&other, "netweft"), Notification::default());
        }
    }

    #[test]
    fn truncated_nft_notification_is_relevant() {
        let complete = message(2, TABLE, b"kube-proxy\0");
        for end in 1..complete.len() {
            let (truncated, _) = complete.split_at(end);
            assert!(parse(truncated, "netweft").is_relevant, "{end}");
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_nft_notification_is_parsed_to_end(bytes in mutated(vec![message(2, TABLE, b"netweft\0")])) {
            parse(&bytes, "netweft");
        }
    }
}
