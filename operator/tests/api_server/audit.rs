//! Requests and their accounts in the audit log of the API server, compared with the rights that the chart's roles
//! grant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};
use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::Value;

use crate::chart;
use crate::control_plane::{ControlPlane, NAMESPACE};

/// A right of an account, or a use of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    account: String,
    verb: String,
    /// Resource with subresource and group.
    resource: String,
    /// Namespace; empty: cluster-scoped, or any namespace.
    namespace: String,
    /// Name of the object; empty: any object.
    name: String,
}

impl Display for Right {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self {
            account,
            verb,
            resource,
            namespace,
            name,
        } = self;
        write!(f, "{account}: {verb} {resource} {name} {namespace}")
    }
}

/// Requests of netweft's service accounts.
pub struct AuditedRequests {
    used: BTreeSet<Right>,
    /// Requests that were forbidden.
    pub forbidden: Vec<String>,
}

impl AuditedRequests {
    /// Reads the audit log of a control plane.
    pub fn of(plane: &ControlPlane) -> Self {
        let log = std::fs::read_to_string(plane.audit_log()).unwrap();
        let (mut used, mut forbidden) = (BTreeSet::new(), Vec::new());
        // The last line may be incomplete.
        for event in log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        {
            let user = event["user"]["username"].as_str().unwrap_or_default();
            let prefix = format!("system:serviceaccount:{NAMESPACE}:");
            let Some(account) = user.strip_prefix(&prefix) else {
                continue;
            };
            let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
            match code {
                200..=299 => used.extend(used_rights(account, &event, code)),
                403 => forbidden.push(format!(
                    "{account}: {} {}",
                    event["verb"], event["requestURI"]
                )),
                _ => {}
            }
        }
        Self { used, forbidden }
    }

    /// Rights that the chart's roles grant and no request has used.
    pub fn unused(&self) -> Vec<String> {
        let granted = granted();
        assert!(granted.len() > 30, "{granted:?}");
        let unused = granted.difference(&self.used);
        unused.map(ToString::to_string).collect()
    }
}

/// Counts the requests of an account by verb and resource, whatever the response. A watch counts once, at its start.
pub fn count_requests(plane: &ControlPlane, account: &str) -> BTreeMap<String, u64> {
    let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
    let mut counts = BTreeMap::new();
    for log in plane.audit_logs() {
        let lines = BufReader::new(File::open(log).unwrap()).lines();
        let own = lines
            .map_while(Result::ok)
            .filter(|line| line.contains(&user));
        // The last line may be incomplete.
        for event in own.filter_map(|line| serde_json::from_str::<Value>(&line).ok()) {
            let is_watch_start = event["stage"] == "ResponseStarted";
            if event["user"]["username"] != *user || is_watch_start != (event["verb"] == "watch") {
                continue;
            }
            let of = |key: &str| event["objectRef"][key].as_str().unwrap_or_default();
            let subresource = [of("resource"), of("subresource")].join("/");
            let request = format!(
                "{} {}",
                event["verb"].as_str().unwrap(),
                subresource.trim_end_matches('/')
            );
            *counts.entry(request).or_default() += 1;
        }
    }
    counts
}

/// The rights that a successful request has used, with and without namespace and name.
fn used_rights(account: &str, event: &Value, code: u64) -> Vec<Right> {
    let of = |key: &str| {
        event["objectRef"][key]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let verb = event["verb"].as_str().unwrap().to_owned();
    let mut verbs = vec![verb.clone()];
    // An apply of an object that does not exist needs the right to create it, too.
    if verb == "patch" && code == 201 {
        verbs.push("create".to_owned());
    }
    let subresource = event["objectRef"]["subresource"].as_str();
    let subresource = subresource
        .map(|name| format!("/{name}"))
        .unwrap_or_default();
    let resource = format!("{}{subresource}.{}", of("resource"), of("apiGroup"));
    let mut used_rights = Vec::new();
    for verb in verbs {
        for namespace in [of("namespace"), String::new()] {
            for name in [of("name"), String::new()] {
                used_rights.push(Right {
                    account: account.to_owned(),
                    verb: verb.clone(),
                    resource: resource.clone(),
                    namespace: namespace.clone(),
                    name,
                });
            }
        }
    }
    used_rights
}

/// The rights that the chart's roles grant.
fn granted() -> BTreeSet<Right> {
    let objects = chart::rendered(&[]);
    let mut granted = BTreeSet::new();
    for (bindings, roles) in [
        ("ClusterRoleBinding", "ClusterRole"),
        ("RoleBinding", "Role"),
    ] {
        let roles = chart::of_kind(&objects, roles);
        for binding in chart::of_kind(&objects, bindings) {
            let same = |role: &&&Value| {
                role["metadata"]["name"] == binding["roleRef"]["name"]
                    && role["metadata"]["namespace"] == binding["metadata"]["namespace"]
            };
            let role = roles.iter().find(same).unwrap();
            let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
            for subject in members(&binding["subjects"]) {
                let account = subject["name"].as_str().unwrap();
                for rule in members(&role["rules"]) {
                    granted.extend(rights_of_rule(account, namespace, rule));
                }
            }
        }
    }
    granted
}

fn rights_of_rule(account: &str, namespace: &str, rule: &Value) -> Vec<Right> {
    let texts = |key: &str| -> Vec<String> {
        let values = members(&rule[key]).iter();
        values
            .map(|value| value.as_str().unwrap().to_owned())
            .collect()
    };
    assert!(rule.get("nonResourceURLs").is_none());
    let mut names = texts("resourceNames");
    if names.is_empty() {
        names.push(String::new());
    }
    let mut rights = Vec::new();
    for group in texts("apiGroups") {
        for resource in texts("resources") {
            for verb in texts("verbs") {
                rights.extend(names.iter().map(|name| Right {
                    account: account.to_owned(),
                    verb: verb.clone(),
                    resource: format!("{resource}.{group}"),
                    namespace: namespace.to_owned(),
                    name: name.clone(),
                }));
            }
        }
    }
    rights
}

fn members(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}
