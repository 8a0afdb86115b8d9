//! What was asked of the API server and by whom, by its audit log; and whether what the chart's roles grant was used.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Formatter};
use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::Value;

use crate::chart;
use crate::control_plane::{ControlPlane, NAMESPACE};

/// One thing that an account may do, or has done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deed {
    account: String,
    verb: String,
    /// With its subresource and its group.
    resource: String,
    /// Of a namespace; empty: of the cluster, or of any.
    namespace: String,
    /// Of one object; empty: of any.
    name: String,
}

impl Display for Deed {
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

/// What our accounts did and were refused.
pub struct Account {
    done: BTreeSet<Deed>,
    /// Requests that were forbidden.
    pub forbidden: Vec<String>,
}

impl Account {
    /// Reads the audit log of `plane`.
    pub fn of(plane: &ControlPlane) -> Self {
        let log = std::fs::read_to_string(plane.audit_log()).unwrap();
        let (mut done, mut forbidden) = (BTreeSet::new(), Vec::new());
        // The last line may be half written.
        for event in log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        {
            let user = event["user"]["username"].as_str().unwrap_or_default();
            let ours = format!("system:serviceaccount:{NAMESPACE}:");
            let Some(account) = user.strip_prefix(&ours) else {
                continue;
            };
            let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
            match code {
                200..=299 => done.extend(deeds(account, &event, code)),
                403 => forbidden.push(format!(
                    "{account}: {} {}",
                    event["verb"], event["requestURI"]
                )),
                _ => {}
            }
        }
        Self { done, forbidden }
    }

    /// What the chart's roles grant and nobody did.
    pub fn unused(&self) -> Vec<String> {
        let granted = granted();
        assert!(granted.len() > 30, "{granted:?}");
        let unused = granted.difference(&self.done);
        unused.map(ToString::to_string).collect()
    }
}

/// How often an account asked for what, whatever the answer. A watch counts once, when it begins.
pub fn calls(plane: &ControlPlane, account: &str) -> BTreeMap<String, u64> {
    let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
    let mut calls = BTreeMap::new();
    for log in plane.audit_logs() {
        let lines = BufReader::new(File::open(log).unwrap()).lines();
        let own = lines
            .map_while(Result::ok)
            .filter(|line| line.contains(&user));
        // The last line may be half written.
        for event in own.filter_map(|line| serde_json::from_str::<Value>(&line).ok()) {
            let begins = event["stage"] == "ResponseStarted";
            if event["user"]["username"] != *user || begins != (event["verb"] == "watch") {
                continue;
            }
            let of = |key: &str| event["objectRef"][key].as_str().unwrap_or_default();
            let subresource = [of("resource"), of("subresource")].join("/");
            let call = format!(
                "{} {}",
                event["verb"].as_str().unwrap(),
                subresource.trim_end_matches('/')
            );
            *calls.entry(call).or_default() += 1;
        }
    }
    calls
}

/// What a request that succeeded was, in the words of roles: those with and without its namespace and name.
fn deeds(account: &str, event: &Value, code: u64) -> Vec<Deed> {
    let of = |key: &str| {
        event["objectRef"][key]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let verb = event["verb"].as_str().unwrap().to_owned();
    let mut verbs = vec![verb.clone()];
    // An object that is applied and was not there is created, and that takes the right to create.
    if verb == "patch" && code == 201 {
        verbs.push("create".to_owned());
    }
    let subresource = event["objectRef"]["subresource"].as_str();
    let subresource = subresource
        .map(|name| format!("/{name}"))
        .unwrap_or_default();
    let resource = format!("{}{subresource}.{}", of("resource"), of("apiGroup"));
    let mut deeds = Vec::new();
    for verb in verbs {
        for namespace in [of("namespace"), String::new()] {
            for name in [of("name"), String::new()] {
                deeds.push(Deed {
                    account: account.to_owned(),
                    verb: verb.clone(),
                    resource: resource.clone(),
                    namespace: namespace.clone(),
                    name,
                });
            }
        }
    }
    deeds
}

/// What the chart's roles grant to its accounts.
fn granted() -> BTreeSet<Deed> {
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
                    granted.extend(of_rule(account, namespace, rule));
                }
            }
        }
    }
    granted
}

fn of_rule(account: &str, namespace: &str, rule: &Value) -> Vec<Deed> {
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
    let mut deeds = Vec::new();
    for group in texts("apiGroups") {
        for resource in texts("resources") {
            for verb in texts("verbs") {
                deeds.extend(names.iter().map(|name| Deed {
                    account: account.to_owned(),
                    verb: verb.clone(),
                    resource: format!("{resource}.{group}"),
                    namespace: namespace.to_owned(),
                    name: name.clone(),
                }));
            }
        }
    }
    deeds
}

fn members(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}
