//! Command line flags. Each flag has an environment variable, which the chart sets.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector};
use netweft_telemetry::logging::LogArgs;

/// The cluster operator of netweft: assigns blocks of pod addresses to nodes and writes the NodeNetwork of each node.
#[derive(Clone, Debug, Parser)]
#[command(name = "netweft-operator", version)]
pub struct Args {
    /// Namespace of the Helm release, with the lease and the Secrets of BGP passwords.
    #[arg(long, env = "POD_NAMESPACE", default_value = "netweft-system")]
    pub namespace: String,

    /// Name of the Lease for leader election.
    #[arg(long, env = "NETWEFT_LEASE_NAME", default_value = "netweft-operator")]
    pub lease_name: String,

    /// Identity of this operator in the leader election. Random by default.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,

    /// Time after the last renewal until another operator can acquire the lease, for example 15s. At least 2s.
    #[arg(long, env = "NETWEFT_LEASE_DURATION", default_value = "15s", value_parser = parse_lease_duration)]
    pub lease_duration: Duration,

    /// Address and port of /livez, /readyz and /metrics. These have no authentication, so the default is the loopback address.
    #[arg(long, env = "NETWEFT_LISTEN", default_value = "127.0.0.1:9470")]
    pub listen: SocketAddr,

    /// Grace period for the blocks of a deleted Node, for example 90s, 10m or 1h.
    #[arg(long, env = "NETWEFT_ORPHAN_GRACE", default_value = "10m", value_parser = parse_duration)]
    pub orphan_grace: Duration,

    /// Time until a node releases an empty block that it does not need, for example 90s, 10m or 1h.
    #[arg(long, env = "NETWEFT_SURPLUS_DELAY", default_value = "10m", value_parser = parse_duration)]
    pub surplus_delay: Duration,

    /// LabelSelector in JSON of the Nodes on which the agent runs, for example
    /// {"matchLabels": {"kubernetes.io/os": "linux"}}. Empty: all Nodes.
    #[arg(long, env = "NETWEFT_AGENT_NODES", default_value = "{}", value_parser = parse_selector)]
    pub agent_nodes: Selector,

    /// Whether the operator applies the CRDs of its version when it starts. Set false if another tool applies the CRDs, for example
    /// GitOps.
    #[arg(long, env = "NETWEFT_MANAGE_CRDS", default_value_t = true, action = ArgAction::Set)]
    pub manage_crds: bool,

    /// Whether IPPools may overlap spec.podCIDRs of Nodes that are Ready without netweft. Set true if no network uses these ranges.
    #[arg(long, env = "NETWEFT_IGNORE_NODE_POD_CIDRS", default_value_t = false, action = ArgAction::Set)]
    pub ignore_node_pod_cidrs: bool,

    /// Whether the nodes run the UDP relay, which encapsulation udp needs. False if the chart does not install the relay.
    #[arg(long, env = "NETWEFT_UDP_RELAY", default_value_t = true, action = ArgAction::Set)]
    pub udp_relay: bool,

    /// Whether the nodes run BIRD, which mode underlay needs. False if the chart does not install BIRD.
    #[arg(long, env = "NETWEFT_BIRD", default_value_t = true, action = ArgAction::Set)]
    pub bird: bool,

    /// Names of the Secrets that BGPPeers can name, separated by commas. The operator has the right to read these.
    #[arg(long, env = "NETWEFT_PASSWORD_SECRETS", value_delimiter = ',')]
    pub password_secrets: Vec<String>,

    /// URL of the API server, for example https://192.0.2.10:6443. Default: the URL of the kubeconfig or of the pod's environment.
    #[arg(long, env = "NETWEFT_API_SERVER")]
    pub api_server: Option<String>,

    /// Flags of the log.
    #[command(flatten)]
    pub log: LogArgs,

    /// Command to run instead of the operator.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Other commands of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Remove what blocks an uninstallation after the last operator: the finalizers of IPPools, the Lease, and the Secret of BGP passwords
    /// for the agents. Waits until no operator is the leader.
    Clean,
}

/// A whole number and a unit, as Kubernetes users write it.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a duration; write for example 90s, 10m or 1h");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| error())?;
    let seconds = match unit {
        "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => None,
    };
    seconds.map(Duration::from_secs).ok_or_else(error)
}

fn parse_lease_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_secs(2) {
        return Err(format!(
            "{text} is too short; write at least 2s, for example 15s"
        ));
    }
    Ok(duration)
}

fn parse_selector(text: &str) -> Result<Selector, String> {
    let error = |why: String| {
        format!(
            "{text:?} is not a LabelSelector in JSON: {why}; write for example {{\"matchLabels\": {{\"kubernetes.io/os\": \"linux\"}}}}"
        )
    };
    let selector: LabelSelector =
        serde_json::from_str(text).map_err(|cause| error(cause.to_string()))?;
    Selector::try_from(selector).map_err(|ParseExpressionError(why)| error(why))
}

#[cfg(test)]
mod tests {
    use kube::core::SelectorExt;

    use super::*;

    #[test]
    fn agent_nodes_flag_is_parsed_as_label_selector() {
        let selects = |selector: &str, labels: &[(&str, &str)]| {
            let labels = labels.iter();
            let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            parse_selector(selector).unwrap().matches(&labels.collect())
        };
        assert!(selects("{}", &[]));
        let linux = r#"{"matchLabels": {"os": "linux"},
            "matchExpressions": [{"key": "type", "operator": "NotIn", "values": ["kwok"]}]}"#;
        assert!(selects(linux, &[("os", "linux")]));
        assert!(!selects(linux, &[("os", "windows")]));
        assert!(!selects(linux, &[("os", "linux"), ("type", "kwok")]));
        for invalid in [
            "",
            "os=linux",
            r#"{"matchExpressions": [{"key": "os", "operator": "Is"}]}"#,
        ] {
            let error = parse_selector(invalid).unwrap_err();
            assert!(error.contains("is not a LabelSelector in JSON"), "{error}");
        }
    }

    #[test]
    fn duration_without_unit_is_refused() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for invalid in ["", "10", "m", "1d", "-1s", "99999999999999999999h"] {
            assert!(parse_duration(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn lease_duration_below_two_seconds_is_refused() {
        assert_eq!(parse_lease_duration("2s"), Ok(Duration::from_secs(2)));
        assert!(
            parse_lease_duration("1s")
                .unwrap_err()
                .contains("at least 2s")
        );
    }

    #[test]
    fn boolean_flags_accept_true_and_false() {
        let parse = |flag: &str| Args::try_parse_from(["netweft-operator", flag]).unwrap();
        assert!(parse("--manage-crds=true").manage_crds);
        assert!(!parse("--manage-crds=false").manage_crds);
        assert!(!parse("--bird=false").bird);
    }
}
