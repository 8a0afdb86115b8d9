//! The sessions of BIRD (`show protocols all`), as data.

use std::collections::BTreeMap;

use netweft_crds::SessionState;

use crate::bird::reply::Reply;

/// Lines about a protocol.
const PROTOCOL: u16 = 1002;
/// Lines about its details.
const DETAILS: u16 = 1006;

/// One BGP session as BIRD sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its state.
    pub state: Option<SessionState>,
    /// Since when BIRD has called it up, or begun to try, in seconds of Unix time.
    pub since: Option<i64>,
    /// Why it is not there, or was not, as `Socket: Connection refused`.
    pub last_error: Option<String>,
    /// Prefixes taken.
    pub imported: i64,
    /// Prefixes announced by the peer and not taken.
    pub filtered: i64,
    /// Prefixes announced.
    pub exported: i64,
    /// Whether the peer announces more than the session takes.
    pub limited: bool,
}

/// The sessions by their protocols' names. `reply` has times as seconds (`timeformat "%s"`).
#[must_use]
pub fn sessions(reply: &Reply) -> BTreeMap<String, Seen> {
    let mut sessions = BTreeMap::new();
    let mut current: Option<&mut Seen> = None;
    for line in &reply.lines {
        match line.code {
            PROTOCOL => {
                current = headed(&line.text)
                    .map(|(name, seen)| sessions.entry(name.to_owned()).or_insert(seen));
            }
            DETAILS => {
                if let Some((seen, (key, value))) = current.as_deref_mut().zip(field(&line.text)) {
                    seen.learn(key, value);
                }
            }
            _ => {}
        }
    }
    sessions
}

/// `name BGP table state since …`
fn headed(text: &str) -> Option<(&str, Seen)> {
    let mut words = text.split_whitespace();
    let name = words.next()?;
    (words.next() == Some("BGP")).then(|| {
        let since = words.nth(2).and_then(|since| since.parse().ok());
        (
            name,
            Seen {
                since,
                ..Seen::default()
            },
        )
    })
}

/// `    Key:   value`
fn field(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.trim().split_once(':')?;
    Some((key, value.trim()))
}

impl Seen {
    /// What a peer makes BIRD print (its capabilities) stands behind the state and cannot take its place.
    fn learn(&mut self, key: &str, value: &str) {
        match key {
            "BGP state" if self.state.is_none() => self.state = state(value),
            "Last error" if self.last_error.is_none() => self.last_error = Some(value.to_owned()),
            "Receive limit" | "Import limit" => self.limited |= value.ends_with("[HIT]"),
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

    /// Output of BIRD 2.20, shortened.
    const SAID: &str = "\
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

    fn read(text: &str) -> BTreeMap<String, Seen> {
        let mut reply = Reply::default();
        for line in text.lines() {
            reply.take(line).unwrap();
        }
        sessions(&reply)
    }

    #[test]
    fn bird_protocols_parse_state_error_and_counts() {
        let seen = read(SAID);
        assert_eq!(seen.len(), 2, "{seen:?}");
        let mesh = Seen {
            state: Some(SessionState::Established),
            since: Some(1_795_637_879),
            last_error: None,
            imported: 1,
            filtered: 2,
            exported: 3,
            limited: true,
        };
        assert_eq!(seen["bgp-mesh-worker-2"], mesh);
        let tor = Seen {
            state: Some(SessionState::Active),
            since: Some(1_795_637_900),
            last_error: Some("Socket: Connection refused".to_owned()),
            ..Seen::default()
        };
        assert_eq!(seen["bgp-tor"], tor);
    }

    #[test]
    fn empty_bird_reply_has_no_sessions() {
        assert_eq!(read("0000 "), BTreeMap::new());
    }
}
