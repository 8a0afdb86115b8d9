//! Parser of the BGP sessions in the output of `show protocols all`.

use std::collections::BTreeMap;

use netweft_crds::SessionState;

use crate::bird::control_reply::Reply;

/// Code of the first line of a protocol.
const PROTOCOL: u16 = 1002;
/// Code of the detail lines of a protocol.
const DETAILS: u16 = 1006;

/// One BGP session in the output of BIRD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedSession {
    /// The state of the session.
    pub state: Option<SessionState>,
    /// Unix time in seconds since which the session is up, or since which BIRD tries to connect.
    pub since: Option<i64>,
    /// The last error, for example `Socket: Connection refused`.
    pub last_error: Option<String>,
    /// Number of accepted prefixes.
    pub imported: i64,
    /// Number of prefixes that the peer advertises and that BIRD rejects.
    pub filtered: i64,
    /// Number of advertised prefixes.
    pub exported: i64,
    /// Whether the peer advertises more prefixes than the limits of the session.
    pub limit_reached: bool,
}

/// The sessions by the names of their protocols. `reply` has times in seconds (`timeformat "%s"`).
#[must_use]
pub fn parse(reply: &Reply) -> BTreeMap<String, ObservedSession> {
    let mut sessions = BTreeMap::new();
    let mut current: Option<&mut ObservedSession> = None;
    for line in &reply.lines {
        match line.code {
            PROTOCOL => {
                current = first_line(&line.text)
                    .map(|(name, session)| sessions.entry(name.to_owned()).or_insert(session));
            }
            DETAILS => {
                if let Some((session, (key, value))) = current.as_deref_mut().zip(field(&line.text))
                {
                    session.set(key, value);
                }
            }
            _ => {}
        }
    }
    sessions
}

/// `name BGP table state since …`
fn first_line(text: &str) -> Option<(&str, ObservedSession)> {
    let mut words = text.split_whitespace();
    let name = words.next()?;
    (words.next() == Some("BGP")).then(|| {
        let since = words.nth(2).and_then(|since| since.parse().ok());
        (
            name,
            ObservedSession {
                since,
                ..ObservedSession::default()
            },
        )
    })
}

/// `    Key:   value`
fn field(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.trim().split_once(':')?;
    Some((key, value.trim()))
}

impl ObservedSession {
    /// Sets a detail. Only the first state and the first error count, because the capabilities of the peer, whose text the peer
    /// chooses, follow them.
    fn set(&mut self, key: &str, value: &str) {
        match key {
            "BGP state" if self.state.is_none() => self.state = state(value),
            "Last error" if self.last_error.is_none() => self.last_error = Some(value.to_owned()),
            "Receive limit" | "Import limit" => self.limit_reached |= value.ends_with("[HIT]"),
            "Routes" => self.count(value),
            _ => {}
        }
    }

    /// `1 imported, 2 filtered, 1 exported, 1 preferred`
    fn count(&mut self, text: &str) {
        for part in text.split(", ") {
            let (number, what) = part.split_once(' ').unwrap_or_default();
            let number = number.parse().unwrap_or_default();
            match what {
                "imported" => self.imported = number,
                "filtered" => self.filtered = number,
                "exported" => self.exported = number,
                _ => {}
            }
        }
    }
}

fn state(word: &str) -> Option<SessionState> {
    Some(match word {
        "Idle" | "Close" | "Down" => SessionState::Idle,
        "Connect" => SessionState::Connect,
        "Active" | "Passive" => SessionState::Active,
        "OpenSent" => SessionState::OpenSent,
        "OpenConfirm" => SessionState::OpenConfirm,
        "Established" => SessionState::Established,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutated::mutated;

    proptest::proptest! {
        #[test]
        fn damaged_bird_protocols_are_parsed_or_refused(bytes in mutated(vec![OUTPUT.into()])) {
            let mut reply = Reply::default();
            let text = String::from_utf8_lossy(&bytes);
            // The connection ends with the first line that cannot be parsed.
            let lines = text.lines().take_while(|line| reply.parse_line(line).is_ok());
            lines.for_each(drop);
            drop(parse(&reply));
        }
    }

    /// Output of BIRD 2.20, shortened.
    const OUTPUT: &str = "\
2002-Name       Proto      Table      State  Since         Info
1002-nw_own_v4  Static     master4    up     1795637878    
1006-  Channel ipv4
     State:          UP
     Routes:         9 imported, 0 exported, 9 preferred
 
1002-bgp-mesh-worker-2 BGP        ---        up     1795637879    Established   
1006-  BGP state:          Established
     Neighbor address: 192.0.2.2
     Neighbor capabilities
       Hostname: BGP state: Idle
     Session:          internal multihop route-reflector AS4
   Channel ipv4
     State:          UP
     Receive limit:  200000
       Action:       block
     Import limit:   20000 [HIT]
       Action:       block
     Routes:         1 imported, 2 filtered, 3 exported, 1 preferred
     Route change stats:     received   rejected   filtered    ignored   accepted
       Import updates:              3          0          2          0          1
 
1002-bgp-tor    BGP        ---        start  1795637900    Active        Socket: Connection refused
1006-  BGP state:          Active
     Neighbor AS:      65001
     Last error:       Socket: Connection refused
   Channel ipv4
     State:          DOWN
 
0000 ";

    fn parse_text(text: &str) -> BTreeMap<String, ObservedSession> {
        let mut reply = Reply::default();
        for line in text.lines() {
            reply.parse_line(line).unwrap();
        }
        parse(&reply)
    }

    #[test]
    fn bird_protocols_parse_state_error_and_counts() {
        let sessions = parse_text(OUTPUT);
        assert_eq!(sessions.len(), 2, "{sessions:?}");
        let mesh = ObservedSession {
            state: Some(SessionState::Established),
            since: Some(1_795_637_879),
            last_error: None,
            imported: 1,
            filtered: 2,
            exported: 3,
            limit_reached: true,
        };
        assert_eq!(sessions["bgp-mesh-worker-2"], mesh);
        let tor = ObservedSession {
            state: Some(SessionState::Active),
            since: Some(1_795_637_900),
            last_error: Some("Socket: Connection refused".to_owned()),
            ..ObservedSession::default()
        };
        assert_eq!(sessions["bgp-tor"], tor);
    }

    #[test]
    fn empty_bird_reply_has_no_sessions() {
        assert_eq!(parse_text("0000 "), BTreeMap::new());
    }
}
