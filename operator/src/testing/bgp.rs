//! Objects and reports of agents in clusters with BGP.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use netweft_crds::condition::READY;
use netweft_crds::names::PASSWORDS_SECRET;
use netweft_crds::{BGPPeer, Session, SessionFault, SessionState, SessionStatus};

use crate::plan::model::secret::{Password, PasswordChange, Secret};
use crate::testing::{Cluster, at, cluster, condition_text, mode, node, yaml};

/// A BGPPeer with this spec.
pub fn peer(name: &str, spec: &str) -> BGPPeer {
    yaml(&format!(
        "{{apiVersion: netweft.io/v1alpha1, kind: BGPPeer, metadata: {{name: {name}, generation: 1}}, spec: {spec}}}"
    ))
}

/// A Secret with this key.
pub fn secret(key: &str, password: &str) -> Secret {
    Secret {
        labelled: true,
        keys: [(key.to_owned(), Password::new(password.into()))].into(),
        ..Secret::default()
    }
}

/// A Node with these addresses of type InternalIP and this label.
pub fn labelled(name: &str, addresses: &[&str], key: &str, value: &str) -> Node {
    let mut node = node(name, addresses);
    node.labels_mut().insert(key.to_owned(), value.to_owned());
    node
}

/// A cluster with `nodes` Nodes, whose pool has a NetworkMode of mode underlay with these parameters.
pub fn underlay(nodes: usize, parameters: &str) -> Cluster {
    let spec = format!("{{mode: underlay, underlay: {{{parameters}}}}}");
    Cluster {
        modes: vec![at(0, mode("default", &spec))],
        secrets: [(PASSWORDS_SECRET.to_owned(), None)].into(),
        ..cluster(nodes)
    }
}

impl Cluster {
    /// Every agent reports that its sessions are established, with `prefixes` received and advertised prefixes.
    pub fn agents_report_sessions(&mut self, prefixes: i64) {
        for network in &mut self.networks {
            let sessions = network.spec.bgp.iter().flat_map(|bgp| &bgp.sessions);
            let reported = sessions.map(|session| SessionStatus {
                name: session.name.clone(),
                peer: session.peer,
                state: SessionState::Established,
                last_transition_time: None,
                received: prefixes,
                advertised: prefixes,
                rejected: 0,
                fault: None,
                message: String::new(),
            });
            let reported = reported.collect();
            network.status.get_or_insert_default().sessions = reported;
        }
    }

    /// The agent of a node reports a state and a fault of a session.
    pub fn agent_reports_session_fault(
        &mut self,
        node: &str,
        name: &str,
        state: SessionState,
        fault: SessionFault,
    ) {
        let network = self
            .networks
            .iter_mut()
            .find(|n| n.name_any() == node)
            .unwrap();
        let sessions = &mut network.status.as_mut().unwrap().sessions;
        let session = sessions.iter_mut().find(|s| s.name == name).unwrap();
        session.state = state;
        session.fault = Some(fault);
        session.message = format!("message of {fault:?}");
    }

    /// The sessions of a node as `name: local AS -> peer port AS`, with unusual parameters.
    pub fn sessions(&self, node: &str) -> Vec<String> {
        let network = self.networks.iter().find(|n| n.name_any() == node).unwrap();
        let sessions = network.spec.bgp.iter().flat_map(|bgp| &bgp.sessions);
        let text = |s: &Session| {
            let client = if s.reflector_client { " client" } else { "" };
            let hops = s
                .multihop
                .map(|hops| format!(" {hops} hops"))
                .unwrap_or_default();
            let (name, local, peer) = (&s.name, s.local, s.peer);
            let (local_as, peer_as, port) = (s.local_as, s.peer_as, s.port);
            format!("{name}: {local} AS{local_as} -> {peer} {port} AS{peer_as}{client}{hops}")
        };
        sessions.map(text).collect()
    }

    /// Status, reason and message of the condition `Ready` of a BGPPeer.
    pub fn peer_message(&self, name: &str) -> String {
        let peer = self
            .peers
            .iter()
            .find(|peer| peer.name_any() == name)
            .unwrap();
        condition_text(&peer.status.as_ref().unwrap().conditions, READY)
    }

    /// Status, reason and message of the condition `Ready` of a NetworkMode.
    pub fn mode_message(&self, name: &str) -> String {
        let mode = self
            .modes
            .iter()
            .find(|mode| mode.name_any() == name)
            .unwrap();
        condition_text(&mode.status.as_ref().unwrap().conditions, READY)
    }

    /// Applies a change of the agents' Secret.
    pub fn apply_passwords(&mut self, change: &PasswordChange) {
        let stored = self.secrets.get_mut(PASSWORDS_SECRET).unwrap();
        let version = stored
            .as_ref()
            .map(|s| (s.uid.clone(), s.resource_version.clone()));
        assert_eq!(version, change.seen, "409");
        self.versions += 1;
        let secret = stored.get_or_insert_default();
        secret.uid = Some("uid-passwords".to_owned());
        secret.resource_version = Some(self.versions.to_string());
        secret.keys.retain(|key, _| !change.remove.contains(key));
        secret.keys.extend(change.set.clone());
    }
}
